"""What the papers claim, as data: published numbers, the runs that re-make them, and the tables and figures that show them.

    experiments/paper_numbers.yaml            every number that the papers print
    experiments/PAPER/runs.yaml               all runs of a paper, by name, in two scales; most are used by several artefacts
    experiments/PAPER/artefacts/NAME.yaml     a table or figure: its rows (runs), columns (metrics, costs), claims

Scales: "full" is the paper's models, data and recipe; "miniature" the same rows and code on the embedded world, on a processor.
A scale that a run does not have is a run that this scale leaves out.

`plan` makes jobs of runs and seeds, dependencies first. A job's key hashes everything that decides its result: the content of its
configuration files, its options, the seed, the embedded world, and the keys of the jobs it starts from. Runs that are equal share
one job, whatever they are called, and a changed configuration is a new job in a new folder.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from datamodules.errors import InputError

Scale = Literal["full", "miniature"]
Paper = Literal["mwa", "iais", "i_tuning"]
Style = Literal["source", "target"]
SCALES: tuple[Scale, ...] = get_args(Scale)
PAPERS: tuple[Paper, ...] = get_args(Paper)
HERE = Path(__file__).parent
# The embedded world of the miniature scale: COCO 640 / 64 / 96 images, Flickr30k 640 / 64 / 96.
SCENES = 1600
SPLITS = {"coco": 0.5, "coco_train": 0.7, "coco_restval": 0.1, "coco_val": 0.08, "flickr_train": 0.8, "flickr_val": 0.08}
_RUN = re.compile(r"\{run:([^{}]+)\}")


# ------------------------------------------------------------------------------------------------------------ what is written


@dataclass(frozen=True)
class Cost:
    """An estimate of one run, one seed.

    Args:
        hours: Device-hours in all: with two devices at once it takes half as long.
        devices: Devices at once, at least.
        device: Which.
        memory_gb: Of one device.
        disk_gb: Of data sets and weights.
    """

    hours: float
    devices: int = 1
    device: str = ""
    memory_gb: float | None = None
    disk_gb: float | None = None

    @property
    def seconds(self) -> float:
        """On the clock."""
        return 3600 * self.hours / self.devices


@dataclass(frozen=True)
class Recipe:
    """A run at one scale.

    Args:
        configs: YAML files, later ones win. Packaged ones (configs/..., experiments/...) work from any folder.
        options: Dotted options over them. `{run:NAME}` in a value is the folder of another run of the paper, which then comes
            first.
        start: Name of the run whose weights this one starts from (model.init_args.init_from).
        world: Style of the embedded world that the run reads (CROSSLIGHT_WORLD); see `write_miniature_world`.
        command: Sub-command of crosslight.
        seeded: Whether it depends on the seed. One that does not (a test of published weights) is one job for all seeds.
        cost: Estimate.
    """

    configs: list[str]
    options: dict[str, Any] = field(default_factory=dict)
    start: str | None = None
    world: Style | None = None
    command: Literal["run", "fit", "test"] = "run"
    seeded: bool = True
    cost: Cost | None = None


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        name: Of the published column, where there is one.
        label: What the table says.
        run: Which of a row's runs. A row that lacks it has nothing in this column.
        metric: A metric of the run's evaluations; or
        cost: A cost of the run (tunable_parameters, peak_memory_bytes, seconds_per_epoch, ...).
        data: Name of the evaluation (null: the run's own data, its first evaluation).
        factor: What the stored value is multiplied with to have the published unit.
        digits: Behind the point.
        better: Whether more or less of it is better; null is neither.
    """

    name: str
    label: str
    run: str = "run"
    metric: str | None = None
    cost: str | None = None
    data: str | None = None
    factor: float = 1.0
    digits: int = 1
    better: Literal["high", "low"] | None = "high"


@dataclass(frozen=True)
class Row:
    """A row of a table, or a curve or point of a figure.

    Args:
        label: What the table says.
        runs: Names of runs of the paper by the role that columns name ("run" where there is but one).
        published: Fields that the published row has, which select it; null where the paper has no such row.
        x: Place on a figure's axis.
        beyond: The row is ours, not the paper's.
    """

    label: str
    runs: dict[str, str]
    published: dict[str, Any] | None = None
    x: float | None = None
    beyond: bool = False


@dataclass(frozen=True)
class Claim:
    """A claim of the paper and the test that our numbers put it to. `experiments/report/verdicts.py` has the tests.

    Args:
        text: The claim in the paper's words, from paper_numbers.yaml (claims or readings), or a number of its tables.
        test: greater (every `high` more than `margin` above its `low`), within (at most `margin` below it), ratio (the mean of
            high / low is at most `margin`), correlation (Pearson's r of the points (high, low), or without points of the figure's
            two `logged` columns over each run's checkpoints, has the sign and about the size of `margin`, the claimed r), or none
            (`reason` says what keeps us from testing it).
        high: [row label, column name] pairs that should be higher ...
        low: ... than these, pair by pair.
        margin: See test.
        reason: Why there is no test; with a test, what of the claim it tests, and what not.
    """

    text: str
    test: Literal["greater", "within", "ratio", "correlation", "none"]
    high: list[list[str]] = field(default_factory=list)
    low: list[list[str]] = field(default_factory=list)
    margin: float = 0.0
    reason: str | None = None


@dataclass(frozen=True)
class Figure:
    """How a figure is drawn from its rows.

    Args:
        kind: lines (columns over `x` of the rows, a panel for each unit), curves (a logged metric of each row over steps),
            scatter (`x_column` against `y_column` of the rows, or with `logged` the first of its columns against the second over
            each row's checkpoints), schedules (annealing functions, no runs), maps (attention maps), captions (beside images).
        x_label: Of the axis.
        y_label: Of the axis.
        x_column: Of a scatter.
        y_column: Of a scatter.
        logged: Column of metrics.csv that curves show.
        log_x: Logarithmic axis.
        categories: The rows of `lines` are no numbers: they stand side by side in order, with their labels and no line between.
    """

    kind: Literal["lines", "curves", "scatter", "schedules", "maps", "captions"]
    x_label: str = ""
    y_label: str = ""
    x_column: str | None = None
    y_column: str | None = None
    logged: list[str] = field(default_factory=list)
    log_x: bool = False
    categories: bool = False


@dataclass(frozen=True)
class Artefact:
    """A table or figure of a paper.

    Args:
        title: What it shows.
        kind: table or figure.
        published: Place in paper_numbers.yaml, such as mwa.table1; null where the paper has no numbers of it.
        rows: In order.
        columns: In order.
        claims: What it is evidence for.
        figure: How it is drawn.
        note: What a reader must know: an ambiguity of the paper, another reading.
        beyond: It is ours, not the paper's.
    """

    title: str
    kind: Literal["table", "figure"]
    published: str | None = None
    rows: list[Row] = field(default_factory=list)
    columns: list[Column] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    figure: Figure | None = None
    note: str = ""
    beyond: bool = False


# ------------------------------------------------------------------------------------------------------------- reading it


def artefact_names() -> list[str]:
    """All artefacts as PAPER/NAME, in the papers' order."""
    return [f"{paper}/{file.stem}" for paper in PAPERS for file in sorted((HERE / paper / "artefacts").glob("*.yaml"))]


def read_artefact(name: str) -> Artefact:
    """An artefact by its name, PAPER/NAME. Do not change what it gives: it is read once.

    Raises:
        InputError: There is no such artefact, or its file is wrong: a mistyped key, a run or published row that does not exist.
    """
    paper, _, stem = name.partition("/")
    file = HERE / paper / "artefacts" / f"{stem}.yaml"
    if paper not in PAPERS or not file.is_file():
        raise InputError(f"there is no artefact {name!r}; there are {', '.join(artefact_names())}")
    beside = (HERE / paper / "runs.yaml", HERE / "paper_numbers.yaml")
    return _read_artefact(paper, file, _age(file), tuple(map(_age, beside)))


@lru_cache(maxsize=64)
def _read_artefact(paper: str, file: Path, age: tuple[int, int], of_others: tuple[tuple[int, int], ...]) -> Artefact:
    artefact: Artefact = _typed(Artefact, _yaml(file), str(file))
    runs = read_runs(paper)
    labels = [row.label for row in artefact.rows]
    columns = [column.name for column in artefact.columns]
    for kind, names in (("row", labels), ("column", columns)):
        if twice := {each for each in names if names.count(each) > 1}:
            raise InputError(f"{file}: two {kind}s are called {min(twice)!r}")
    for row in artefact.rows:
        for role, run in row.runs.items():
            if run not in runs:
                raise InputError(
                    f"{file}: row {row.label!r} names run {run!r} as its {role}; {paper}/runs.yaml has no such run"
                    f"{_near(run, runs)}"
                )
        if row.published is not None:
            try:
                published_row(artefact, row)
            except InputError as error:
                raise InputError(f"{file}: row {row.label!r}: {error}") from None
    roles = {role for row in artefact.rows for role in row.runs}
    for column in artefact.columns:
        if (column.metric is None) == (column.cost is None):
            raise InputError(f"{file}: column {column.name!r} has metric {column.metric!r} and cost {column.cost!r}; give one")
        if artefact.rows and column.run not in roles:
            raise InputError(
                f"{file}: column {column.name!r} is of the row's {column.run!r}, which no row has{_near(column.run, roles)}"
            )
    for claim in artefact.claims:
        where = f"{file}: the claim {claim.text[:60]!r}"
        for pair in (*claim.high, *claim.low):
            if len(pair) != 2 or pair[0] not in labels or pair[1] not in columns:
                raise InputError(f"{where} names {pair}, which is no row and column")
        if claim.low and len(claim.low) != len(claim.high):
            raise InputError(f"{where} compares {len(claim.high)} values with {len(claim.low)}; they are compared pair by pair")
        if claim.test in ("greater", "within", "ratio") and not claim.low:
            raise InputError(f"{where}: test {claim.test} needs high and low")
        if claim.test == "none" and not claim.reason:
            raise InputError(f"{where} has no test; say the reason")
    figure = artefact.figure
    for axis in () if figure is None else (figure.x_column, figure.y_column):
        if axis is not None and axis not in columns:
            raise InputError(f"{file}: the figure's axis {axis!r} is no column{_near(axis, columns)}")
    return artefact


def read_runs(paper: str) -> dict[str, dict[Scale, Recipe]]:
    """All runs of a paper: recipes by scale, by name. Do not change what it gives: it is read once.

    A file's `common` is put under all runs of a scale: its configs come first, its options are overridden. An entry with `matrix`
    is one run for every combination of the values, which stand for {names} in its name and texts. A value may bring more names of
    its own: `matrix: {data: {coco: {hours: 75}, flickr30k: {hours: 19}}}` gives {data} and {hours}. A text that is nothing but
    one name becomes the value as it is, a number for example.

    Raises:
        InputError: The file is wrong.
    """
    file = HERE / paper / "runs.yaml"
    return _read_runs(file, _age(file))


@lru_cache(maxsize=8)
def _read_runs(file: Path, age: tuple[int, int]) -> dict[str, dict[Scale, Recipe]]:
    content = _yaml(file)
    if unknown := content.keys() - {"common", "runs"}:
        raise InputError(f"{file}: unknown key {min(unknown)!r}; there are common and runs")
    entries, common = content.get("runs"), content.get("common") or {}
    if not isinstance(entries, dict) or not isinstance(common, dict):
        raise InputError(f"{file}: common and runs have names below them")
    if unknown := common.keys() - set(SCALES):
        raise InputError(f"{file}: common: unknown key {min(unknown)!r}; there are {' and '.join(SCALES)}")
    runs: dict[str, dict[Scale, Recipe]] = {}
    for template, entry in entries.items():
        where = f"{file}: run {template}"
        if not isinstance(entry, dict) or (unknown := entry.keys() - {"matrix", *SCALES}):
            wrong = f"unknown key {min(unknown)!r}" if isinstance(entry, dict) else f"{entry!r} is no mapping"
            raise InputError(f"{where}: {wrong}; there are matrix, full and miniature")
        for names in _combinations(entry.get("matrix") or {}, where):
            run = str(_filled(template, names))
            if run in runs:
                raise InputError(f"{file}: two runs are called {run}")
            runs[run] = {}
            for scale in SCALES:
                if scale in entry:
                    runs[run][scale] = _recipe(common.get(scale) or {}, _filled(entry[scale] or {}, names), f"{where} ({scale})")
    for run, scales in runs.items():
        for scale, recipe in scales.items():
            for needed in _needs(recipe):
                if scale not in runs.get(needed, {}):
                    raise InputError(
                        f"{file}: {run} ({scale}) starts from {needed!r}, which is no run of this scale{_near(needed, runs)}"
                    )
    return runs


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


def _recipe(common: Any, own: Any, where: str) -> Recipe:
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
    recipe: Recipe = _typed(Recipe, whole, where)
    for name in recipe.configs:
        if not _packaged(name).is_file():
            raise InputError(f"{where}: configuration {name} does not exist")
    return recipe


def _needs(recipe: Recipe) -> list[str]:
    """Names of the runs that must be finished first."""
    texts = json.dumps(recipe.options, default=str, ensure_ascii=False)
    return list(dict.fromkeys([*([recipe.start] if recipe.start else []), *_RUN.findall(texts)]))


def published_numbers() -> dict[str, Any]:
    """paper_numbers.yaml. Do not change what it gives: it is read once."""
    file = HERE / "paper_numbers.yaml"
    return _published_numbers(file, _age(file))


@lru_cache(maxsize=2)
def _published_numbers(file: Path, age: tuple[int, int]) -> dict[str, Any]:
    return _yaml(file)


def published_table(artefact: Artefact) -> list[dict[str, Any]]:
    """The published rows, each field by name; rows that are only quoted from other papers have `quoted` True.

    Raises:
        InputError: `published` is no place in paper_numbers.yaml.
    """
    if artefact.published is None:
        return []
    entry: Any = published_numbers()
    for part in artefact.published.split("."):
        if not isinstance(entry, Mapping) or part not in entry:
            raise InputError(f"artefact {artefact.title!r}: paper_numbers.yaml has no {artefact.published}")
        entry = entry[part]
    if not isinstance(entry, Mapping):
        return []
    rows = []
    for quoted, kind in ((True, "quoted"), (False, "rows")):
        for row in entry.get(kind, []):
            named = dict(zip(entry.get("columns", []), row.get("values", []), strict=False))
            rows.append({**{key: value for key, value in row.items() if key != "values"}, **named, "quoted": quoted})
    return rows


def published_row(artefact: Artefact, row: Row) -> dict[str, Any] | None:
    """The published row that belongs to a row.

    Raises:
        InputError: None or several fit.
    """
    if row.published is None:
        return None
    wanted, table = row.published, published_table(artefact)
    fields = list(dict.fromkeys(key for each in table for key in each))
    if unknown := wanted.keys() - set(fields):
        raise InputError(f"published rows of {artefact.published} have no {min(unknown)!r}, but {', '.join(fields) or 'nothing'}")
    found = [each for each in table if all(each.get(key) == value for key, value in wanted.items())]
    if len(found) != 1:
        raise InputError(f"{len(found)} published rows of {artefact.published} have {wanted}; name one")
    return found[0]


# --------------------------------------------------------------------------------------------------------------- the plan


@dataclass(frozen=True)
class Job:
    """One run with one seed: one folder.

    `names` are the names PAPER/RUN that it has; `after` the keys of the jobs that must be finished first.
    """

    key: str
    names: tuple[str, ...]
    scale: Scale
    seed: int
    recipe: Recipe
    after: tuple[str, ...]
    starts: Mapping[str, str]  # run name -> key of its job, for {run:...} and start

    @property
    def folder_name(self) -> str:
        return f"{self.names[0].replace('/', '-')}-s{self.seed}-{self.key[:8]}"

    def arguments(self, folders: Mapping[str, Path]) -> list[str]:
        """Arguments of `crosslight`, where `folders` has the folder of each job by its key."""
        recipe = self.recipe
        options = {name: _replaced(value, lambda run: str(folders[self.starts[run]])) for name, value in recipe.options.items()}
        if recipe.start is not None:
            options["model.init_args.init_from"] = str(folders[self.starts[recipe.start]])
        if recipe.seeded:
            options |= {"seed_everything": self.seed, "data.init_args.seed": self.seed}
        configs = [part for name in recipe.configs for part in ("-c", name)]
        paper, _, run = self.names[0].partition("/")
        options = {"name": run, "wandb.group": paper, **options, "scale": self.scale, "run_dir": str(folders[self.key])}
        return [recipe.command, *configs, *(f"--{name}={_text(value)}" for name, value in options.items())]


def plan(artefacts: Iterable[str], scale: Scale, seeds: Sequence[int]) -> list[Job]:
    """The jobs of artefacts (PAPER/NAME), each once, after those that it needs.

    Raises:
        InputError: An artefact or run is wrong, or runs start from each other in a circle.
    """
    wanted: dict[tuple[str, str], None] = {}
    for name in artefacts:
        paper = name.partition("/")[0]
        wanted |= {(paper, run): None for row in read_artefact(name).rows for run in row.runs.values()}
    return plan_runs([f"{paper}/{run}" for paper, run in wanted], scale, seeds)


def plan_runs(names: Iterable[str], scale: Scale, seeds: Sequence[int]) -> list[Job]:
    """The jobs of runs (PAPER/RUN), each once, after those that it needs. Runs that do not have the scale are left out."""
    books: dict[str, dict[str, dict[Scale, Recipe]]] = {}
    jobs: dict[str, Job] = {}

    def add(name: str, seed: int, above: tuple[str, ...] = ()) -> str | None:
        paper, _, run = name.partition("/")
        if paper not in PAPERS:
            raise InputError(f"{name}: there is no paper {paper!r}; there are {', '.join(PAPERS)}")
        book = books.setdefault(paper, read_runs(paper))
        if run not in book:
            raise InputError(f"there is no run {name}; {paper}/runs.yaml has {', '.join(book)}")
        if name in above:
            raise InputError(f"{paper}/runs.yaml: {' -> '.join((*above, name))} start from each other")
        if scale not in book[run]:
            return None
        recipe = book[run][scale]
        starts = {}
        for needed in _needs(recipe):
            key = add(f"{paper}/{needed}", seed, (*above, name))
            assert key is not None, "read_runs has seen that it has the scale"
            starts[needed] = key
        key = _key(recipe, scale, seed, starts)
        known = jobs.get(key)
        alias = known.names if known is not None else ()
        if name not in alias:
            own = seed if recipe.seeded or any(jobs[each].seed == seed for each in starts.values()) else 0
            jobs[key] = Job(key, (*alias, name), scale, own, recipe, tuple(dict.fromkeys(starts.values())), starts)
        return key

    for name in names:
        for seed in seeds:
            add(name, seed)
    return list(jobs.values())


def folder_of(job: Job, roots: Sequence[Path]) -> Path:
    """Where a job's run is, or else where it shall be: in the first root. Roots may come from several machines; a folder is known
    by the key at its end, since a run that has several names may have been started under another one."""
    for root in roots:
        for folder in sorted(root.glob(f"*-{job.key[:8]}")):
            if folder.is_dir():
                return folder
    return roots[0] / job.folder_name


def _key(recipe: Recipe, scale: Scale, seed: int, starts: Mapping[str, str]) -> str:
    text = json.dumps(
        {
            "command": recipe.command,
            "configs": [_yaml_content(name) for name in recipe.configs],
            "options": _replaced(recipe.options, lambda run: starts[run]),
            "start": starts.get(recipe.start or ""),
            "world": None if recipe.world is None else [recipe.world, SCENES, SPLITS],
            "scale": scale,
            "seed": seed if recipe.seeded else None,
        },
        sort_keys=True,
        default=str,
    )
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _yaml_content(name: str) -> Any:
    """Of a configuration file: a changed comment is no changed configuration."""
    file = _packaged(name)
    return copy.deepcopy(_cached_yaml(file, _age(file)))


@lru_cache(maxsize=256)
def _cached_yaml(file: Path, age: tuple[int, int]) -> Any:
    return _yaml(file)


def _replaced(value: Any, of_run: Any) -> Any:
    """`value` with {run:NAME} replaced in all its texts."""
    if isinstance(value, str):
        return _RUN.sub(lambda found: of_run(found[1]), value)
    if isinstance(value, dict):
        return {key: _replaced(each, of_run) for key, each in value.items()}
    return [_replaced(each, of_run) for each in value] if isinstance(value, list) else value


def write_miniature_world(folder: Path, style: Style) -> Path:
    """The embedded world that recipes of this style read, rendered into `folder` unless it is there. Returns the folder.

    Raises:
        InputError: `folder` holds something else, or the disk is full.
    """
    from datamodules.miniworld import Splits, write_world

    return write_world(folder, scenes=SCENES, seed=0, style=style, splits=Splits(**SPLITS))


# ----------------------------------------------------------------------------------------------------------------- reading


def _typed(kind: Any, content: Any, where: str) -> Any:
    """`content` of a YAML as a type: dataclasses, lists, mappings, literals and plain values, strictly. (jsonargparse would build
    the class that a class_path among options names.)

    Raises:
        InputError: An unknown or missing key, or a value of another type; names the place in the file.
    """
    if kind is Any:
        return content
    origin, inside = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        if content is None and type(None) in inside:
            return None
        (kind,) = (each for each in inside if each is not type(None))
        return _typed(kind, content, where)
    if origin is Literal:
        if content not in inside or isinstance(content, bool):
            raise InputError(f"{where} is {content!r}; it is one of {', '.join(map(str, inside))}")
        return content
    if origin is list and isinstance(content, list):
        return [_typed(inside[0], each, f"{where}[{place}]") for place, each in enumerate(content)]
    if origin is dict and isinstance(content, dict):
        return {_typed(inside[0], key, where): _typed(inside[1], each, f"{where}.{key}") for key, each in content.items()}
    if isinstance(kind, type) and is_dataclass(kind) and isinstance(content, dict):
        hints = _hints(kind)
        if unknown := [str(key) for key in content if key not in hints]:
            raise InputError(f"{where}: unknown key {unknown[0]!r}; there are {', '.join(hints)}")
        missing = [each.name for each in fields(kind) if each.default is MISSING and each.default_factory is MISSING]
        if missing := [name for name in missing if name not in content]:
            raise InputError(f"{where}: {missing[0]!r} is missing")
        return kind(**{key: _typed(hints[key], each, f"{where}: {key}") for key, each in content.items()})
    if kind is float and isinstance(content, int) and not isinstance(content, bool):
        return float(content)
    if not isinstance(kind, type) or is_dataclass(kind) or not isinstance(content, kind) or (kind is int and content is True):
        name = "a mapping" if is_dataclass(kind) or origin is dict else "a list" if origin is list else f"of type {kind.__name__}"
        raise InputError(f"{where} is {content!r}; it must be {name}")
    return content


@lru_cache(maxsize=16)
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _yaml(file: Path) -> dict[str, Any]:
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=_Strict)
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise InputError(f"{file} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise InputError(f"{file} is no mapping")
    return content


class _Strict(yaml.SafeLoader):
    """Safe, and a name that is there twice is a mistake, not the last of the two. What `<<` brings may be overridden."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is there twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _age(file: Path) -> tuple[int, int]:
    """When a file was written and how long it is, so that what was read of it is read again when it changes."""
    try:
        status = file.stat()
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from None
    return status.st_mtime_ns, status.st_size


def _packaged(name: str) -> Path:
    return HERE.parent / name


def _near(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), 2, 0.6)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


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


def _text(value: Any) -> str:
    """As the command line takes it."""
    return "null" if value is None else json.dumps(value) if isinstance(value, (dict, list, bool)) else str(value)
