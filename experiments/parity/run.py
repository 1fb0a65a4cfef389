"""From fixture files to one table: which checker a kind has, what it found, and the exit status."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.parity.compare import LEGEND, Row, Verdict, not_checked
from experiments.parity.recordings import Fixture, read_fixture

WIDTH = 100
_STYLES: dict[Verdict, str] = {"ok": "", "OFF": "bold red", "not checked": "yellow"}


@dataclass(frozen=True)
class Report:
    """What the check of one fixture found."""

    fixture: Fixture
    rows: tuple[Row, ...]


def check_files(paths: Sequence[Path], spm: Path | None = None) -> list[Report]:
    """Check fixtures, each by the checker of its kind. All files are read before the first check.

    Args:
        paths: The fixtures' .json files.
        spm: BEiT-3's sentencepiece file; without it what needs it is not checked.

    Raises:
        InputError: A file is missing or damaged, or a fixture lacks what its check needs.
    """
    fixtures = [read_fixture(path) for path in paths]
    return [Report(fixture, (*_integrity(fixture), *check(fixture, spm))) for fixture in fixtures]


def check(fixture: Fixture, spm: Path | None = None) -> list[Row]:
    """The rows of the checker of the fixture's kind; checkers are imported when they are needed.

    Raises:
        InputError: The fixture lacks what its check needs.
    """
    match fixture.kind:
        case "beit3-retrieval":
            from experiments.parity.beit3 import retrieval as beit3_retrieval

            return beit3_retrieval.check(fixture)
        case "contrastive-gather":
            from experiments.parity.beit3 import contrastive

            return contrastive.check(fixture)
        case "retrieval-recall":
            from experiments.parity.beit3 import recalls

            return recalls.check(fixture)
        case "position-interpolation":
            from experiments.parity.beit3 import positions

            return positions.check(fixture)
        case "beit3-recipe":
            from experiments.parity.beit3 import recipe

            return recipe.check(fixture)
        case "beit3-tokenizer":
            from experiments.parity.beit3 import text

            return text.check_tokeniser(fixture, spm)
        case "beit3-index":
            from experiments.parity.beit3 import text

            return text.check_index(fixture, spm)
        case "eval-transform":
            from experiments.parity.beit3 import transform

            return transform.check(fixture)
        case "uniter-iais":
            from experiments.parity.uniter import network as uniter

            return uniter.check(fixture)
        case "uniter-hard-negatives":
            from experiments.parity.uniter import mining as uniter_mining

            return uniter_mining.check(fixture)
        case "isda":
            from experiments.parity.uniter import isda

            return isda.check(fixture)
        case "i-tuning-module":
            from experiments.parity.captioning import i_tuning

            return i_tuning.check_module(fixture)
        case "i-tuning-gpt2":
            from experiments.parity.captioning import i_tuning

            return i_tuning.check_gpt2(fixture)
        case "clipcap":
            from experiments.parity.captioning import clipcap

            return clipcap.check(fixture)
        case "caption-metrics":
            from experiments.parity.captioning import metrics as caption_metrics

            return caption_metrics.check(fixture)
    return [not_checked("all", f"no checker for kind {fixture.kind}")]


def _integrity(fixture: Fixture) -> list[Row]:
    """What the .json says of its .safetensors; silent when it fits. Tensors that are gone would be missed by no comparison."""
    about, rows = fixture.about, []
    count = about.get("n_tensors")
    if count is not None and count != len(fixture.tensors):
        rows.append(not_checked("file", f"the .json counts {count} tensors, the file has {len(fixture.tensors)}"))
    listed = {name for name, said in about.get("tensors", {}).items() if isinstance(said, dict)}  # others describe kinds of names
    if gone := sorted(listed - fixture.tensors.keys()):
        rows.append(not_checked("file", f"the .json lists {len(gone)} tensors that the file lacks ({gone[0]})"))
    recorded = about.get("sha256")
    if recorded is not None and fixture.sha256 is not None and recorded != fixture.sha256:
        rows.append(not_checked("file", "its sha256 is not the one in the .json: not the tensors that were recorded"))
    return rows


def status(reports: Sequence[Report]) -> int:
    """1 if anything is off, else 0."""
    return int(any(row.verdict == "OFF" for report in reports for row in report.rows))


def print_reports(reports: Sequence[Report]) -> None:
    """The table, its legend and the closing line, 100 columns wide wherever it goes."""
    console = Console(width=WIDTH, highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), width=WIDTH)
    table.add_column("file, group", width=31, overflow="fold")
    table.add_column("n", width=3, justify="right")
    table.add_column("largest", width=7, justify="right")
    table.add_column("allowed", width=7)
    table.add_column("verdict", width=11)
    table.add_column("where; note", overflow="fold")
    stems = [report.fixture.path.stem for report in reports]
    for report in reports:
        path = report.fixture.path
        name = path.stem if stems.count(path.stem) == 1 else f"{path.parent.name}/{path.stem}"
        table.add_row(Text(name, "bold"), "", "", "", "", Text(report.fixture.kind, "dim"))
        for row in report.rows:
            table.add_row(
                Text(f"  {row.group}"),
                str(row.count or ""),
                "" if row.deviation is None else f"{row.deviation:.1e}" if row.deviation else "0",
                row.tolerance,
                Text(row.verdict, _STYLES[row.verdict]),
                Text(row.note),
            )
        table.add_section()
    console.print(table)
    console.print(LEGEND, style="dim")
    of = {verdict: sum(row.verdict == verdict for report in reports for row in report.rows) for verdict in _STYLES}
    files = f"{len(reports)} file{'' if len(reports) == 1 else 's'}"
    console.print(f"{files}: {of['ok']} groups ok, {of['OFF']} off, {of['not checked']} not checked")
