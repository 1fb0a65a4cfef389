"""What the papers claim, as data: published numbers, the runs that re-make them, and the tables and figures that show them.

    experiments/papers/numbers.yaml              every number that the three papers print; other papers have PAPER/numbers.yaml
    experiments/papers/PAPER/runs.yaml           all runs of a paper, by name, in two scales; most are of several exhibits
    experiments/papers/PAPER/exhibits/NAME.yaml     a table or figure: its variants (runs), columns (metrics, costs), claims

Papers of one's own lie in folders that CROSSLIGHT_PAPERS names (`places.py`).

Scales: "full" is the paper's models, data and recipe; "small" the same variants and code on photographs, with small pre-trained
models, on a processor; "miniature" on the embedded world, likewise. A scale that a run does not have is a run that this scale
leaves out.

`plan` makes planned runs of runs and seeds, dependencies first. A planned run's key hashes everything that decides its result:
the content of its configuration files, its options, the seed, the embedded world, the shipped weights that it names, and the keys
of those it starts from. Runs that are equal are planned once, whatever they are called, and a changed configuration is a new
planned run in a new folder.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from datamodules.errors import InputError
from datamodules.formats.typed import read_typed
from experiments.papers import strict_yaml
from experiments.papers.inputs import read_inputs
from experiments.papers.places import paper_folders
from experiments.papers.schema import (
    SCALES,
    Exhibit,
    Recipe,
    Scale,
    Variant,
    needs_of,
)
from experiments.papers.strict_yaml import (
    did_you_mean,
    file_age,
    packaged,
    read_yaml,
)
from lightning_modules.callbacks.cost_record import Cost

COSTS = tuple(field.name for field in fields(Cost))


def exhibit_names() -> list[str]:
    """All exhibits as PAPER/NAME, in the papers' order."""
    return [
        f"{paper}/{file.stem}"
        for paper, folder in paper_folders().items()
        for file in sorted((folder / "exhibits").glob("*.yaml"))
    ]


def read_exhibit(name: str) -> Exhibit:
    """An exhibit by its name, PAPER/NAME. Do not change what it gives: it is read once.

    Raises:
        InputError: There is no such exhibit, or its file is wrong: a mistyped key, a run or published row that does not exist.
    """
    paper, _, stem = name.partition("/")
    folder = paper_folders().get(paper)
    if folder is None or not (file := folder / "exhibits" / f"{stem}.yaml").is_file():
        raise InputError(f"there is no exhibit {name!r}; there are {', '.join(exhibit_names())}")
    beside = (folder / "runs.yaml", *_number_files().values())
    return _read_exhibit(paper, file, file_age(file), tuple(map(file_age, beside)))


@lru_cache(maxsize=64)
def _read_exhibit(paper: str, file: Path, age: tuple[int, int], of_others: tuple[tuple[int, int], ...]) -> Exhibit:
    exhibit: Exhibit = read_typed(Exhibit, read_yaml(file), str(file))
    runs = read_runs(paper)
    labels = [variant.label for variant in exhibit.variants]
    columns = [column.name for column in exhibit.columns]
    for kind, names in (("variant", labels), ("column", columns)):
        if twice := {each for each in names if names.count(each) > 1}:
            raise InputError(f"{file}: two {kind}s are called {min(twice)!r}")
    for variant in exhibit.variants:
        for role, run in variant.runs.items():
            if run not in runs:
                raise InputError(
                    f"{file}: variant {variant.label!r} names run {run!r} as its {role}; {paper}/runs.yaml has no such run"
                    f"{did_you_mean(run, runs)}"
                )
        if variant.published is not None:
            try:
                published_row(exhibit, variant)
            except InputError as error:
                raise InputError(f"{file}: variant {variant.label!r}: {error}") from None
    roles = {role for variant in exhibit.variants for role in variant.runs}
    for column in exhibit.columns:
        sources = {name: getattr(column, name) for name in ("metric", "cost", "attention", "gradient", "sum_of")}
        if len(given := [name for name, value in sources.items() if value]) != 1:
            has = " and ".join(given) or "no source"
            raise InputError(f"{file}: column {column.name!r} has {has}; give one of {', '.join(sources)}")
        for part in column.sum_of:
            if part not in columns[: columns.index(column.name)]:
                raise InputError(f"{file}: column {column.name!r} sums {part!r}, which is no column before it")
        if column.cost is not None and column.cost not in COSTS:
            raise InputError(
                f"{file}: column {column.name!r}: there is no cost {column.cost!r}{did_you_mean(column.cost, COSTS)}"
            )
        if exhibit.variants and not column.sum_of and column.run not in roles:
            raise InputError(
                f"{file}: column {column.name!r} is of the variant's {column.run!r}, which no variant has"
                f"{did_you_mean(column.run, roles)}"
            )
    quoted = [str(row["model"]) for row in published_table(exhibit) if row["quoted"]]
    for claim in exhibit.claims:
        where = f"{file}: the claim {claim.text[:60]!r}"
        gains = [gain for gain in (claim.gain, claim.than) if gain is not None]
        for pair in (*claim.high, *claim.low, *(pair for gain in gains for pair in gain.cells)):
            if len(pair) != 2 or pair[0] not in (*labels, *quoted) or pair[1] not in columns:
                raise InputError(f"{where} names {pair}, which is no variant and column")
        if claim.low and len(claim.low) != len(claim.high):
            raise InputError(f"{where} compares {len(claim.high)} values with {len(claim.low)}; they are compared pair by pair")
        if claim.test in ("greater", "within", "ratio") and not claim.low:
            raise InputError(f"{where}: test {claim.test} needs high and low")
        if (claim.test in ("mean", "amount", "relative")) != (claim.gain is not None) or not all(
            gain.of and gain.over and gain.columns for gain in gains
        ):
            raise InputError(f"{where}: a gain of, over and columns is of the tests mean, amount and relative, which need it")
        if (claim.test == "relative" and claim.than is None) or (claim.than and claim.test not in ("mean", "relative")):
            raise InputError(f"{where}: than is of the tests relative, which needs it, and mean")
        if claim.test == "none" and not claim.reason:
            raise InputError(f"{where} has no test; say the reason")
    for scale, own in exhibit.at.items():
        for kind, named, known in (("variant", own.variants, labels), ("column", own.columns, columns)):
            for each in named:
                if each not in known:
                    raise InputError(f"{file}: at {scale}: {each!r} is no {kind}{did_you_mean(each, known)}")
    figure = exhibit.figure
    for axis in () if figure is None else (figure.x_column, figure.y_column):
        if axis is not None and axis not in columns:
            raise InputError(f"{file}: the figure's axis {axis!r} is no column{did_you_mean(axis, columns)}")
    return exhibit


def read_runs(paper: str) -> dict[str, dict[Scale, Recipe]]:
    """All runs of a paper: recipes by scale, by name. Do not change what it gives: it is read once.

    A file's `common` is put under all runs of a scale: its configs come first, its options are overridden. An entry with `matrix`
    is one run for every combination of the values, which stand for {names} in its name and texts. A value may bring more names of
    its own: `matrix: {data: {coco: {hours: 75}, flickr30k: {hours: 19}}}` gives {data} and {hours}. A text that is nothing but
    one name becomes the value as it is, a number for example. Two entries may give one run, each at other scales.

    Raises:
        InputError: The file is wrong.
    """
    file = paper_folders()[paper] / "runs.yaml"
    return _read_runs(file, file_age(file))


@lru_cache(maxsize=8)
def _read_runs(file: Path, age: tuple[int, int]) -> dict[str, dict[Scale, Recipe]]:
    content = read_yaml(file)
    if unknown := content.keys() - {"common", "runs"}:
        raise InputError(f"{file}: unknown key {min(unknown)!r}; there are common and runs")
    entries, common = content.get("runs"), content.get("common") or {}
    if not isinstance(entries, dict) or not isinstance(common, dict):
        raise InputError(f"{file}: common and runs have names below them")
    if unknown := common.keys() - set(SCALES):
        raise InputError(f"{file}: common: unknown key {min(unknown)!r}; there are {_listed(SCALES)}")
    runs: dict[str, dict[Scale, Recipe]] = {}
    for template, entry in entries.items():
        where = f"{file}: run {template}"
        if not isinstance(entry, dict) or (unknown := entry.keys() - {"matrix", *SCALES}):
            wrong = f"unknown key {min(unknown)!r}" if isinstance(entry, dict) else f"{entry!r} is no mapping"
            raise InputError(f"{where}: {wrong}; there are {_listed(('matrix', *SCALES))}")
        for names in _combinations(entry.get("matrix") or {}, where):
            run = str(_filled(template, names))
            of_run = runs.setdefault(run, {})
            for scale in (scale for scale in SCALES if scale in entry):
                if scale in of_run:
                    raise InputError(f"{file}: two runs are called {run} at scale {scale}")
                own = _filled(entry[scale] or {}, names)
                of_run[scale] = _recipe(common.get(scale) or {}, own, file.parent, f"{where} ({scale})")
    for run, scales in runs.items():
        for scale, recipe in scales.items():
            for needed in needs_of(recipe):
                if scale not in runs.get(needed, {}):
                    raise InputError(
                        f"{file}: {run} ({scale}) starts from {needed!r}, which is no run of this scale"
                        f"{did_you_mean(needed, runs)}"
                    )
    return runs


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _combinations(matrix: Any, where: str) -> Iterable[dict[str, Any]]:
    """What {names} stand for, in every combination of a matrix' values."""
    axes: list[list[dict[str, Any]]] = []
    for name, values in matrix.items() if isinstance(matrix, dict) else ():
        if isinstance(values, list):
            axes.append([{name: value} for value in values])
        elif isinstance(values, dict) and all(isinstance(more, dict) for more in values.values()):
            axes.append([{name: value, **more} for value, more in values.items()])
        else:
            raise InputError(f"{where}: matrix {name} is neither a list of values nor values with further names")
    if not isinstance(matrix, dict):
        raise InputError(f"{where}: matrix is no mapping")
    for combination in itertools.product(*axes):
        yield {f"{{{name}}}": value for part in combination for name, value in part.items()}


def _recipe(common: Any, own: Any, folder: Path, where: str) -> Recipe:
    for part in (common, own):
        if (
            not isinstance(part, dict)
            or not isinstance(part.get("configs", []), list)
            or not isinstance(part.get("options", {}), dict)
        ):
            raise InputError(f"{where}: configs is a list of files and options a mapping")
    whole = {**common, **own}
    whole["configs"] = [*common.get("configs", []), *own.get("configs", [])]
    whole["options"] = {**common.get("options", {}), **own.get("options", {})}
    # a file of the paper's own is named from its folder
    whole["configs"] = [str(folder / name) if (folder / str(name)).is_file() else name for name in whole["configs"]]
    recipe: Recipe = read_typed(Recipe, whole, where)
    for name in recipe.configs:
        if not packaged(name).is_file():
            raise InputError(f"{where}: configuration {name} does not exist, neither in {folder} nor in the package")
    for name in recipe.reads:
        if name not in (inputs := read_inputs()):
            raise InputError(f"{where}: reads {name!r}, which inputs.yaml does not have{did_you_mean(name, inputs)}")
    return recipe


def published_numbers() -> dict[str, Any]:
    """numbers.yaml, and below the name of each paper of one's own what its numbers.yaml has. Do not change what it gives: it is
    read once."""
    files = _number_files()
    return _published_numbers(tuple(files.items()), tuple(map(file_age, files.values())))


@lru_cache(maxsize=2)
def _published_numbers(files: tuple[tuple[str, Path], ...], ages: tuple[tuple[int, int], ...]) -> dict[str, Any]:
    numbers: dict[str, Any] = {}
    for paper, file in files:
        numbers |= {paper: read_yaml(file)} if paper else read_yaml(file)
    return numbers


def _number_files() -> dict[str, Path]:
    """numbers.yaml of the three papers, by "", and of each other paper that has one in its folder, by its name."""
    own = {paper: folder / "numbers.yaml" for paper, folder in paper_folders().items()}
    return {"": strict_yaml.HERE / "numbers.yaml", **{paper: file for paper, file in own.items() if file.is_file()}}


def published_table(exhibit: Exhibit) -> list[dict[str, Any]]:
    """The published rows, each field by name; rows that are only quoted from other papers have `quoted` True.

    Raises:
        InputError: `published` is no place in paper_numbers.yaml.
    """
    if exhibit.published is None:
        return []
    entry: Any = published_numbers()
    for part in exhibit.published.split("."):
        if not isinstance(entry, Mapping) or part not in entry:
            raise InputError(f"exhibit {exhibit.title!r}: paper_numbers.yaml has no {exhibit.published}")
        entry = entry[part]
    if not isinstance(entry, Mapping):
        return []
    rows = []
    for quoted, kind in ((True, "quoted"), (False, "rows")):
        for row in entry.get(kind, []):
            named = dict(zip(entry.get("columns", []), row.get("values", []), strict=False))
            rows.append({**{key: value for key, value in row.items() if key != "values"}, **named, "quoted": quoted})
    return rows


def published_row(exhibit: Exhibit, variant: Variant) -> dict[str, Any] | None:
    """The published row that belongs to a variant.

    Raises:
        InputError: None or several fit.
    """
    if variant.published is None:
        return None
    wanted, table = variant.published, published_table(exhibit)
    fields = list(dict.fromkeys(key for each in table for key in each))
    if unknown := wanted.keys() - set(fields):
        raise InputError(f"published rows of {exhibit.published} have no {min(unknown)!r}, but {', '.join(fields) or 'nothing'}")
    found = [each for each in table if all(each.get(key) == value for key, value in wanted.items())]
    if len(found) != 1:
        raise InputError(f"{len(found)} published rows of {exhibit.published} have {wanted}; name one")
    return found[0]


def _filled(content: Any, names: Mapping[str, Any]) -> Any:
    """`content` with {names} replaced in all its texts."""
    if isinstance(content, str):
        if content in names:
            return names[content]
        for name, value in names.items():
            content = content.replace(name, str(value))
        return content
    if isinstance(content, dict):
        return {_filled(key, names): _filled(value, names) for key, value in content.items()}
    return [_filled(each, names) for each in content] if isinstance(content, list) else content
