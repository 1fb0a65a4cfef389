"""The stages behind the training: the model is exported and loaded, and the report finds its numbers."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datamodules.errors import InputError, some
from experiments.papers.catalogue import exhibit_names, read_exhibit
from experiments.papers.schema import Column, Scale
from experiments.rehearsal.checks import one_line
from experiments.runs.rehearsed import Stage, Verdict
from experiments.runs.sizes import decimal_bytes

Tell = Callable[[Verdict], None]


def look_back(run: Path, names: Sequence[str], scale: Scale, tests: bool, tell: Tell) -> None:
    """Export and report of a finished run.

    Args:
        run: Its folder.
        names: PAPER/RUN, all that the run is called.
        scale: Of the exhibits.
        tests: Whether it tests anything.
        tell: Given the verdicts.
    """
    from experiments.training.quiet import quiet

    quiet()
    _told("export", lambda: _export(run), tell)
    if not tests:
        tell(Verdict("report", "skipped", "it tests nothing: others start from it"))
    else:
        _told("report", lambda: _report(run, names, scale), tell)


def _told(stage: Stage, act: Callable[[], Verdict], tell: Tell) -> None:
    try:
        tell(act())
    except InputError as error:
        tell(Verdict(stage, "failed", one_line(error)))


def _export(run: Path) -> Verdict:
    """Write the best model as an export, load it, and compare what was trained, bit by bit."""
    import lightning_modules
    from lightning_modules.exporting import export_run
    from lightning_modules.loading import read_checkpoint

    best = _best(run)
    if not best.exists():
        return Verdict("export", "skipped", "nothing was trained")
    folder = run.with_name(f"{run.name}.export")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        export_run(run, folder)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        loaded = lightning_modules.load(folder).state_dict()
        trained = read_checkpoint(best)["state_dict"]
        wrong = [name for name, value in trained.items() if name.startswith("network.") and not _same(loaded.get(name), value)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if wrong:
        return Verdict("export", "failed", f"what comes back differs from what was trained: {some(wrong)}")
    return Verdict("export", "passed", decimal_bytes(size))


def _best(run: Path) -> Path:
    return run / "checkpoints" / "best.ckpt"


def _same(ours: Any, theirs: Any) -> bool:
    return ours is not None and ours.shape == theirs.shape and bool((ours.to(theirs.dtype) == theirs).all())


def _report(run: Path, names: Sequence[str], scale: Scale) -> Verdict:
    """Read the run as the report does, and find the number of every column that shows it."""
    from experiments.report.collect import COUNTED, measure
    from experiments.runs.metrics_csv import require_whole
    from experiments.runs.results import read_results
    from experiments.runs.store import Run, RunFolders, arrays_of

    results = read_results(run)
    found = Run(results.name, results.seed or 0, results.status, run, results)
    for evaluation in results.tests():
        arrays_of(found, evaluation)
    require_whole(run)
    columns = columns_of(names, scale)
    if not _best(run).exists():  # nothing was trained: it has neither time nor memory of a training, and its row shows none
        columns = [(exhibit, column) for exhibit, column in columns if column.cost is None or column.cost in COUNTED]
    folders = RunFolders([])
    empty = [(exhibit, column) for exhibit, column in columns if measure(found, column, folders) is None]
    remedies = {name: said for each in results.tests() for name, said in each.notes.get("unavailable", {}).items()}
    absent = _absent_domains(results, [str(column.metric) for _, column in empty])
    unknown = {str(column.metric): said for _, column in empty if (said := _why_unknown(str(column.metric), remedies, absent))}
    lines = [
        f"{exhibit}: {column.label} ({column.metric or column.cost}{f' on {column.data}' if column.data else ''})"
        for exhibit, column in empty
        if str(column.metric) not in unknown
    ]
    if lines:
        has = "; ".join(f"{each.data}: {some(each.metrics)}" for each in results.tests())
        return Verdict("report", "failed", f"the run has no number for {some(lines)}. It has {has or 'no test'}")
    said = f"{len(columns) - len(empty)} numbers of {len({exhibit for exhibit, _ in columns})} exhibits"
    if empty:  # programs of others, which this machine lacks, as it may lack a GPU; or domains that so few images are not of
        why = "; ".join(dict.fromkeys(unknown.values()))
        return Verdict("report", "unknown", f"{said}; without {', '.join(unknown)}: {why}")
    return Verdict("report", "passed", said)


def _why_unknown(metric: str, remedies: Mapping[str, str], absent: Collection[str]) -> str | None:
    """Why the whole run may well have a number that its rehearsal lacks; None where it will lack it too."""
    domain, _, plain = metric.rpartition("/")
    if plain in remedies:
        return remedies[plain]
    return f"none of the few images is of {domain}, give more --items" if domain in absent else None


def _absent_domains(results: Any, wanted: Iterable[str]) -> set[str]:
    """Domains that no image of the tests is of, where others have numbers (NoCaps)."""
    there = {name.rpartition("/")[0] for each in results.tests() for name in each.metrics} - {""}
    return {domain for each in wanted if (domain := each.rpartition("/")[0]) and domain not in there} if there else set()


def columns_of(names: Sequence[str], scale: Scale) -> list[tuple[str, Column]]:
    """The columns of all exhibits that show a run, by PAPER/EXHIBIT: those with a metric or a cost, which the run itself writes
    down (shares of attention are measured later)."""
    found = []
    for exhibit in exhibit_names():
        paper, content = exhibit.partition("/")[0], read_exhibit(exhibit).at_scale(scale)
        roles = {role for variant in content.variants for role, run in variant.runs.items() if f"{paper}/{run}" in names}
        found += [(exhibit, column) for column in content.columns if column.run in roles and (column.metric or column.cost)]
    return found
