"""Run folders side by side: recalls or caption scores with mean and standard deviation over seeds, and what they cost."""

from __future__ import annotations

import csv
import difflib
import io
import math
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.errors import InputError, some
from experiments.report.escape import csv_value, markdown_text
from experiments.runs.frames import Runs, table_of
from experiments.runs.headings import DOMAINS, NONE, RECALLS, RELATIONS, factor_and_form, heading
from experiments.runs.results import Evaluation, Results
from experiments.runs.seeds import Configuration, configuration_of, differing, option_text, short_name
from experiments.runs.sizes import readable_bytes
from experiments.runs.store import Run, arrays_of, read_run, run_folders_below
from experiments.runs.validation import BestValidation, best_validation

_COSTS = (
    ("steps", "steps", "{:,.0f}"), ("tunable", "tunable_parameters", "{:,.0f}"), ("%", "tunable_percent", "{:.2f}"),
    ("memory", "peak_memory_bytes", ""), ("s/epoch", "seconds_per_epoch", "{:.1f}"), ("pairs/s", "pairs_per_second", "{:.0f}"),
)  # fmt: skip
_OPTIONS = 6  # columns that a printed table has of them


class _Member(NamedTuple):
    """A test of a run. `seed` are all its seeds, as text; `mode` is "max" or "min", whichever of a validation is better."""

    seed: str
    run: Results
    test: Evaluation
    best: BestValidation | None
    mode: str
    folder: Path


@dataclass(frozen=True)
class Validated:
    """The best validations of a row's seeds.

    Args:
        monitor: What chose them, without "val/".
        mode: Whether "max" or "min" of it is better.
        mean: Over seeds.
        sd: Likewise; None of one seed.
        count: How many seeds have it.
    """

    monitor: str
    mode: str
    mean: float
    sd: float | None
    count: int = 1


def find_runs(folders: Iterable[str | Path]) -> dict[Path, Run]:
    """Every run in or below the folders, each once; one whose results cannot be read, or are not those of its
    per-query files, says so.

    Raises:
        InputError: A folder does not exist or holds no run.
    """
    return {folder: _compared(read_run(folder)) for folder in run_folders_below(folders)}


def _compared(run: Run) -> Run:
    """A finished run whose numbers are those of its per-query files; else one that says which are not."""
    try:
        for evaluation in run.results.tests() if run.results is not None and run.status == "finished" else ():
            arrays_of(run, evaluation)
    except InputError as error:
        return replace(run, status="unreadable", results=None, error=str(error))
    return run


def rows(runs: Mapping[Path, Run], data: str | None = None) -> list[dict[str, Any]]:
    """One row a (name, configuration, data set, test split): finished runs that differ in nothing but the seed are its seeds; the
    others keep a row that says so. The best validation of a data set is first: tests choose nothing.

    Args:
        runs: What `find_runs` gives.
        data: Only this data set (default: all that were tested).
    """
    known: dict[Path, Configuration] = {}
    best: dict[Path, BestValidation | None] = {}
    told = dict(runs)
    for folder, run in runs.items():
        if run.results is None:
            continue
        try:
            best[folder] = best_validation(folder, run.results)
            known[folder] = configuration_of(folder, run.results)
        except InputError as error:
            told[folder] = replace(run, status="unreadable", results=None, error=str(error))
    options = _differing({folder: (told[folder].name, each) for folder, each in known.items()})
    grouped: dict[tuple[str, str, str], list[_Member]] = defaultdict(list)
    table: list[dict[str, Any]] = []
    about: dict[str, dict[str, Any]] = {}
    for folder, run in told.items():
        row: dict[str, Any] = {"name": run.name, "status": run.status, "folder": str(folder), "first": str(folder), "options": {}}
        if run.results is None:
            table.append({**row, "error": run.error})
            continue
        configuration = known[folder]
        row |= {"options": options[folder], "problem": configuration.problem}
        about[configuration.digest] = {key: row[key] for key in ("options", "problem")}
        tests = run.results.tests()
        if run.status != "finished" or not (tests or best[folder] or run.results.evaluations):
            table.append(row if run.status != "finished" else {**row, "status": "not tested"})
            continue
        for evaluation in tests or run.results.evaluations or [Evaluation("not tested", "test", "test", {})]:
            # A split cut by `limits` is "test[:100]": it is another data set, and says so. NoCaps is tested on what it calls val.
            label = evaluation.data + evaluation.split.removeprefix("test").replace("val", " val")
            if data in (None, evaluation.data):
                mode = str(configuration.options.get("checkpoint.mode", "max"))
                member = _Member(configuration.seed, run.results, evaluation, best[folder], mode, folder)
                grouped[run.name, configuration.digest, label].append(member)
    done = [
        {"name": name, "data": data_set, **about[digest], **_finished(members)}
        for (name, digest, data_set), members in grouped.items()
    ]
    return _labelled(_best_first(done) + table)


def _labelled(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With a `label` for each row: its run's name, and where another row of that test has the same name its folder too, by
    as many of its last parts as tell it from theirs. The runs of a sweep are all called by their variant."""
    alike: dict[tuple[str, str | None], list[dict[str, Any]]] = defaultdict(list)
    for row in table:
        alike[row["name"], row.get("data")].append(row)
    for (name, _), same in alike.items():
        places = [Path(row["first"]).parts for row in same]
        depth = next((n for n in range(1, max(map(len, places))) if len({each[-n:] for each in places}) == len(same)), 0)
        for row, place in zip(same, places, strict=True):
            tail = "/".join(place[-depth:])
            row["label"] = name if len(same) == 1 else tail if place[-1].startswith(name) else f"{name} ({tail})"
    return table


def _differing(configurations: Mapping[Path, tuple[str, Configuration]]) -> dict[Path, dict[str, Any]]:
    """The options of each run that differ between runs which have them; within a name also those that some have not, where the
    others leave two configurations alike."""
    options = {folder: each.options for folder, (_, each) in configurations.items()}
    names = dict.fromkeys(differing(list(options.values()), absent=False))
    named: dict[str, dict[str, Path]] = defaultdict(dict)
    for folder, (name, each) in configurations.items():
        named[name].setdefault(each.digest, folder)
    for members in named.values():
        alike = [str([options[folder].get(each) for each in names]) for folder in members.values()]
        if len(set(alike)) < len(alike):
            names |= dict.fromkeys(differing([options[folder] for folder in members.values()]))
    return {folder: {short_name(name): each[name] for name in names if name in each} for folder, each in options.items()}


def _best_first(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Within each data set by the validation that chose the checkpoint; what was not validated comes last."""
    places = list(dict.fromkeys((row["data"], row["val"].monitor if row["val"] else None) for row in table))
    data_sets = list(dict.fromkeys(data for data, _ in places))

    def place(row: dict[str, Any]) -> tuple[int, bool, int, float]:
        found: Validated | None = row["val"]
        value = 0.0 if found is None else found.mean if found.mode == "min" else -found.mean
        monitor = places.index((row["data"], None if found is None else found.monitor))
        return data_sets.index(row["data"]), found is None, monitor, value if math.isfinite(value) else math.inf

    return sorted(table, key=place)


def _finished(members: Sequence[_Member]) -> dict[str, Any]:
    """A row's numbers, from its runs and their seeds."""
    seeds = {each.seed: [other for other in members if other.seed == each.seed] for each in members}
    own = {key: title for each in members for key, title in each.test.columns.items()}
    row: dict[str, Any] = {"status": "finished", "seeds": len(seeds), "runs": len(members)}
    row["columns"] = {**RECALLS, **RELATIONS, **own, **DOMAINS}
    for key in row["columns"]:
        values = _of_seeds(seeds, lambda each, key=key: each.test.metrics.get(key))  # type: ignore[misc]
        if not values:
            continue
        row[key] = statistics.mean(values)
        row[f"{key}_sd"] = statistics.stdev(values) if len(values) > 1 else None
        row[f"{key}_n"] = len(values)
    row["val"] = _validated(seeds)
    row["first"] = str(members[0].folder)
    row["folder"] = row["first"] + (f" and {len(members) - 1} more" if len(members) > 1 else "")
    row["scale"] = members[0].run.scale
    row["steps"] = _mean(_of_seeds(seeds, lambda each: None if each.run.fit is None else each.run.fit.steps))
    for _, cost, _ in _COSTS[1:]:
        found = _of_seeds(seeds, lambda each, cost=cost: None if each.run.cost is None else getattr(each.run.cost, cost))  # type: ignore[misc]
        row[cost], row[f"{cost}_n"] = _mean(found), len(found)
    epochs = _of_seeds(seeds, lambda each: None if each.run.cost is None else each.run.cost.epochs)
    row["whole_epoch"] = not epochs or min(epochs) >= 1
    devices = {each.run.provenance.device.name: None for each in members if each.run.provenance is not None}
    row["device"] = "; ".join(devices) or None
    return row


def _validated(seeds: Mapping[str, Sequence[_Member]]) -> Validated | None:
    """Over the seeds that were validated by the first one's metric."""
    first = next((each for members in seeds.values() for each in members if each.best is not None), None)
    if first is None or first.best is None:
        return None
    monitor = first.best.monitor
    values = _of_seeds(seeds, lambda each: each.best.value if each.best is not None and each.best.monitor == monitor else None)
    if not values:
        return None
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Validated(monitor, first.mode, statistics.mean(values), deviation, len(values))


def _of_seeds(seeds: Mapping[str, Sequence[_Member]], value_of: Callable[[_Member], float | None]) -> list[float]:
    """A number of each seed that has it; of a seed that ran several times the mean."""
    found = {seed: [value for each in members if (value := value_of(each)) is not None] for seed, members in seeds.items()}
    finite = {seed: [value for value in values if math.isfinite(value)] for seed, values in found.items()}
    return [statistics.mean(values) for values in finite.values() if values]


def _mean(values: Sequence[float]) -> float | None:
    return statistics.mean(values) if values else None


class Column(NamedTuple):
    """Of the printed table.

    Args:
        title: Its heading.
        key: What `--sort` knows it by as well.
        text: A row's cell.
        value: By which rows are sorted; None comes last.
        falling: Whether more is better.
        option: Whether it is an option of the runs.
    """

    title: str
    key: str
    text: Callable[[dict[str, Any]], str]
    value: Callable[[dict[str, Any]], Any]
    falling: bool = False
    option: bool = False


def columns_of(table: Sequence[dict[str, Any]]) -> tuple[list[Column], list[str]]:
    """Options that differ, metrics of validation and tests, costs. And the options for which there is no room."""
    headings: dict[str, str] = {}
    for row in table:
        headings |= {key: title for key, title in row.get("columns", {}).items() if key not in DOMAINS}
    shown = {key: title for key, title in {**headings, **DOMAINS}.items() if any(key in row for row in table)}
    options = list(dict.fromkeys(name for row in table for name in row["options"]))
    within = [name for name in options if _varies(table, name)]
    fitting = options if len(options) <= _OPTIONS else within[:_OPTIONS]
    columns = [Column("run", "name", _name, lambda row: row["name"])]
    columns += [Column(short, name, *_option(name), option=True) for name, short in _shortest(fitting).items()]
    columns.append(Column("test data", "data", lambda row: row["data"], lambda row: row["data"]))
    columns.append(Column("seeds", "seeds", _seeds, lambda row: row["seeds"]))
    for monitor, mode in {row["val"].monitor: row["val"].mode for row in table if row.get("val")}.items():
        columns.append(_validation(monitor, mode == "max"))
    for key, title in shown.items():
        columns.append(Column(title, key, partial(metric_text, key=key), partial(_get, key=key), key not in RELATIONS))
    for title, key, form in _COSTS:
        columns.append(Column(title, key, partial(_cost, key=key, form=form), partial(_get, key=key), key == "pairs_per_second"))
    columns.append(Column("folder", "folder", lambda row: row["folder"], lambda row: row["folder"]))
    return columns, [name for name in options if name not in fitting]


def sort(table: list[dict[str, Any]], column: str) -> list[dict[str, Any]]:
    """By a column of the printed table: metrics and speed from the best down, all else upwards. Rows without it are last.

    Raises:
        InputError: There is no such column, or several have that heading.
    """
    columns, _ = columns_of(table)
    found = [each for each in columns if column in (each.key, each.title)]
    if len(found) != 1:
        if found:
            raise InputError(
                f"--sort {column}: {len(found)} columns have that heading; they are {' and '.join(each.key for each in found)}."
            )
        names = [name for each in columns for name in dict.fromkeys((each.title, each.key))]
        close = difflib.get_close_matches(column, names, 1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise InputError(
            f"--sort {column}: the table has no such column.{hint} It has: {', '.join(each.key for each in columns)}."
        )
    by = found[0]
    with_it = [row for row in table if row["status"] == "finished" and by.value(row) is not None]
    numbers = all(isinstance(by.value(row), (int, float)) for row in with_it)
    with_it.sort(key=by.value if numbers else lambda row: str(by.value(row)), reverse=by.falling)
    return with_it + [row for row in table if not any(row is each for each in with_it)]


def markdown(table: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table; recalls in percent, caption scores times 100, mean +- standard deviation over seeds."""
    columns, more = columns_of(table)
    options = [place for place, column in enumerate(columns) if column.option]
    lines = ["| " + " | ".join(_cell(column.title) for column in columns) + " |", "|" + " --- |" * len(columns)]
    for row in table:
        if row["status"] == "finished":
            cells = [column.text(row) for column in columns]
        else:
            why = f": {row['error']}" if row.get("error") else ""
            always = (0, *options, len(columns) - 1)
            cells = [column.text(row) if place in always else "" for place, column in enumerate(columns)]
            cells[len(options) + 1] = row["status"] + why
        lines.append("| " + " | ".join(map(_cell, cells)) + " |")
    if more:
        lines += ["", f"They differ in {len(more)} more options, which --csv has: {some(map(_cell, more))}."]
    return "\n".join(lines) + "\n"


def _varies(table: Sequence[dict[str, Any]], option: str) -> bool:
    """Whether rows of one name differ in it."""
    values: dict[str, set[str]] = defaultdict(set)
    for row in table:
        if row["options"]:
            values[row["name"]].add(option_text(row["options"].get(option)))
    return any(len(each) > 1 for each in values.values())


def _shortest(names: Sequence[str]) -> dict[str, str]:
    """lr of model.optimization.lr, where no other ends so."""
    tails = Counter(name.rpartition(".")[2] for name in names)
    return {name: tail if tails[tail := name.rpartition(".")[2]] == 1 else name for name in names}


# Shown by its name alone: the whole path would leave the scores no room.
_OUR_CLASS = re.compile(r"^(?:lightning_modules|datamodules)(?:\.\w+)+\.([A-Z]\w*)$")


def _option(name: str) -> tuple[Callable[[dict[str, Any]], str], Callable[[dict[str, Any]], Any]]:
    def text(row: dict[str, Any]) -> str:
        return _OUR_CLASS.sub(r"\1", option_text(row["options"][name])) if name in row["options"] else NONE

    return text, lambda row: row["options"].get(name)


def _validation(monitor: str, falling: bool) -> Column:
    def of(row: dict[str, Any]) -> Validated | None:
        found: Validated | None = row["val"]
        return found if found is not None and found.monitor == monitor else None

    def text(row: dict[str, Any]) -> str:
        found = of(row)
        if found is None:
            return NONE
        factor, form = factor_and_form(monitor, row["columns"])
        spread = "" if found.sd is None else f" ±{form.format(factor * found.sd)}"
        return form.format(factor * found.mean) + spread + _of_all(row, found.count)

    def value(row: dict[str, Any]) -> float | None:
        found = of(row)
        return None if found is None else found.mean

    return Column(f"val {heading(monitor)}", f"val/{monitor}", text, value, falling)


def _name(row: dict[str, Any]) -> str:
    return f"{row['label']} ({row['problem']})" if row.get("problem") else str(row["label"])


def _seeds(row: dict[str, Any]) -> str:
    return str(row["seeds"]) + (f" ({row['runs']} runs)" if row["runs"] != row["seeds"] else "")


def _get(row: dict[str, Any], key: str) -> Any:
    return row.get(key)


def _cost(row: dict[str, Any], key: str, form: str) -> str:
    some = _of_all(row, row.get(f"{key}_n"))
    if key == "peak_memory_bytes" and row[key] is not None:
        return readable_bytes(row[key]) + some
    extrapolated = "≈" if key == "seconds_per_epoch" and row[key] is not None and not row["whole_epoch"] else ""
    return extrapolated + _or_dash(row[key], form) + some


def _of_all(row: dict[str, Any], count: int | None) -> str:
    """ " (2 of 3)" where a number is of some seeds alone."""
    return f" ({count} of {row['seeds']})" if count and count < row["seeds"] else ""


def metric_text(row: dict[str, Any], key: str) -> str:
    """A metric of a row as papers print it, with its standard deviation over seeds."""
    factor, form = factor_and_form(key, row["columns"])
    value, spread = (None if row.get(name) is None else factor * row[name] for name in (key, f"{key}_sd"))
    return _or_dash(value, form) + ("" if spread is None else f" ±{form.format(spread)}") + _of_all(row, row.get(f"{key}_n"))


def to_csv(runs: Mapping[Path, Run], data: str | None = None) -> str:
    """A row a run for pandas, with the columns of `load_runs(...).frame()`: plain numbers, and every option in which runs differ.

    Args:
        runs: What `find_runs` gives.
        data: Of tests only those on this data set.
    """
    columns, lines, _ = table_of(Runs(tuple(runs.values())).rows())
    columns = [name for name in columns if data is None or name.count("/") < 2 or name.startswith(f"{data}/")]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(map(csv_value, columns))
    writer.writerows([csv_value(line.get(name)) for name in columns] for line in lines)
    return text.getvalue()


def _cell(text: str) -> str:
    return markdown_text(text, printed=True)


def _or_dash(value: Any, form: str) -> str:
    return NONE if value is None else form.format(value)
