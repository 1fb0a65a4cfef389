"""From recording files to one table: which checker a kind has, what it found, and the exit status."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.parity.compare import LEGEND, GroupCheck, Verdict, not_checked
from experiments.parity.recordings import Recording, read_recording

WIDTH = 100
_STYLES: dict[Verdict, str] = {"ok": "", "OFF": "bold red", "not checked": "yellow"}


@dataclass(frozen=True)
class Report:
    """What the check of one recording found."""

    recording: Recording
    rows: tuple[GroupCheck, ...]


def check_files(paths: Sequence[Path], spm: Path | None = None) -> list[Report]:
    """Check recordings, each by the checker of its kind. All files are read before the first check.

    Args:
        paths: The recordings' .json files.
        spm: BEiT-3's sentencepiece file; without it what needs it is not checked.

    Raises:
        InputError: A file is missing or damaged, or a recording lacks what its check needs.
    """
    recordings = [read_recording(path) for path in paths]
    return [Report(recording, (*_integrity(recording), *check(recording, spm))) for recording in recordings]


def check(recording: Recording, spm: Path | None = None) -> list[GroupCheck]:
    """The rows of the checker of the recording's kind; checkers are imported when they are needed.

    Raises:
        InputError: The recording lacks what its check needs.
    """
    match recording.kind:
        case "beit3-retrieval":
            from experiments.parity.beit3 import retrieval as beit3_retrieval

            return beit3_retrieval.check(recording)
        case "contrastive-gather":
            from experiments.parity.beit3 import contrastive

            return contrastive.check(recording)
        case "retrieval-recall":
            from experiments.parity.beit3 import recalls

            return recalls.check(recording)
        case "position-interpolation":
            from experiments.parity.beit3 import positions

            return positions.check(recording)
        case "beit3-recipe":
            from experiments.parity.beit3 import recipe

            return recipe.check(recording)
        case "beit3-tokenizer":
            from experiments.parity.beit3 import text

            return text.check_tokenizer(recording, spm)
        case "beit3-index":
            from experiments.parity.beit3 import text

            return text.check_index(recording, spm)
        case "eval-transform":
            from experiments.parity.beit3 import transform

            return transform.check(recording)
        case "uniter-iais":
            from experiments.parity.uniter import network as uniter

            return uniter.check(recording)
        case "uniter-hard-negatives":
            from experiments.parity.uniter import mining as uniter_mining

            return uniter_mining.check(recording)
        case "isda":
            from experiments.parity.uniter import isda

            return isda.check(recording)
        case "i-tuning-module":
            from experiments.parity.captioning import i_tuning

            return i_tuning.check_module(recording)
        case "i-tuning-gpt2":
            from experiments.parity.captioning import i_tuning

            return i_tuning.check_gpt2(recording)
        case "clipcap":
            from experiments.parity.captioning import clipcap

            return clipcap.check(recording)
        case "caption-metrics":
            from experiments.parity.captioning import metrics as caption_metrics

            return caption_metrics.check(recording)
    return [not_checked("all", f"no checker for kind {recording.kind}")]


def _integrity(recording: Recording) -> list[GroupCheck]:
    """What the .json says of its .safetensors; silent when it fits. Tensors that are gone would be missed by no comparison."""
    about, rows = recording.about, []
    count = about.get("n_tensors")
    if count is not None and count != len(recording.tensors):
        rows.append(not_checked("file", f"the .json counts {count} tensors, the file has {len(recording.tensors)}"))
    listed = {name for name, said in about.get("tensors", {}).items() if isinstance(said, dict)}  # others describe kinds of names
    if gone := sorted(listed - recording.tensors.keys()):
        rows.append(not_checked("file", f"the .json lists {len(gone)} tensors that the file lacks ({gone[0]})"))
    recorded = about.get("sha256")
    if recorded is not None and recording.sha256 is not None and recorded != recording.sha256:
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
    stems = [report.recording.path.stem for report in reports]
    for report in reports:
        path = report.recording.path
        name = path.stem if stems.count(path.stem) == 1 else f"{path.parent.name}/{path.stem}"
        table.add_row(Text(name, "bold"), "", "", "", "", Text(report.recording.kind, "dim"))
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
