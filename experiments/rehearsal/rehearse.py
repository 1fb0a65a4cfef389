"""All configurations of a target rehearsed, one after the other; what was rehearsed before stays so.

    ROOT/rehearsed.json      verdicts and figures by key (runs/rehearsed.py), written after every stage
    ROOT/rehearsed.md        the same as a page
    ROOT/rehearsal/          run folders and logs while they are needed; --keep keeps them

What was rehearsed whole by the same code and with the same settings is not repeated. A run that others start from is kept until
they are rehearsed.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from datamodules.files.atomic import write_atomically
from datamodules.files.locks import locked
from experiments.rehearsal.life import Life, Place
from experiments.rehearsal.show import page
from experiments.runs.provenance import git_state, versions
from experiments.runs.rehearsed import STAGES, Figures, Rehearsed, Verdict, read_rehearsed, write_rehearsed
from experiments.runs.results import now
from experiments.sweep.launches import Launch

SCRATCH = "rehearsal"
Say = Callable[[Launch, Rehearsed, Verdict | None], None]


def code_revision(root: Path = Path(__file__).parents[2]) -> str:
    """Of the code that is rehearsed: a commit, with 8 hexadecimal digits over what there is where that has been changed; or a
    version.

    Args:
        root: Of the checkout.
    """
    git = git_state(root)
    if git["revision"] is None:
        return str(versions()["crosslight"])
    return f"{git['revision']:.12}" + (f"+{_contents(root):.8}" if git["dirty"] else "")


def _contents(root: Path) -> str:
    """64 hexadecimal digits over code and configurations."""
    over = hashlib.sha256()
    for room in ("configs", "datamodules", "experiments", "lightning_modules"):
        for file in sorted(file for kind in ("*.py", "*.yaml") for file in (root / room).rglob(kind)):
            over.update(f"{file.relative_to(root)}\n".encode() + file.read_bytes())
    return over.hexdigest()


def rehearse(
    launches: Sequence[Launch], place: Place, say: Say, *, keep: bool = False, revision: str | None = None
) -> dict[str, Rehearsed]:
    """Rehearse what was not.

    Args:
        launches: In the order of what starts from what, their folders in the place's scratch folder.
        place: Where, and how.
        say: Told each verdict, and each configuration when it is over (without a verdict).
        keep: Leave the run folders.
        revision: Of the code (default: what it is).

    Returns:
        Of all launches, by key.
    """
    revision = revision or code_revision()
    settings = place.settings.words + ("" if place.on is None else f", for {place.on}")
    done = {key: run for key, run in read_rehearsed(place.root).items() if (run.revision, run.settings) == (revision, settings)}
    waiting = {launch.key for launch in launches if launch.key not in done or not done[launch.key].whole}
    folders = {launch.key: launch.folder for launch in launches}
    for launch in reversed(launches):  # children before parents: what a child starts from must be there
        if launch.key in waiting:
            waiting |= {key for key in launch.after if not (folders[key] / "checkpoints" / "best.ckpt").exists()}
    failed: dict[str, str] = {}
    ours: set[str] = set()  # folders that are removed: another process may rehearse others here
    with _stoppable():
        for launch in launches:
            if launch.key in waiting:
                ours |= {launch.key, *launch.after}
                broken = next((failed[key] for key in launch.after if key in failed), None)
                done[launch.key] = _one(launch, place, revision, settings, broken, say)
                waiting.discard(launch.key)
            if _stops_children(done[launch.key]):
                failed[launch.key] = launch.title
            say(launch, done[launch.key], None)
            write_atomically(place.root / "rehearsed.md", page(launches, done, place))
            if not keep:
                _remove([launch for launch in launches if launch.key in ours], launches, waiting)
    return {launch.key: done[launch.key] for launch in launches}


def _one(launch: Launch, place: Place, revision: str, settings: str, broken: str | None, say: Say) -> Rehearsed:
    """A configuration's life, written down stage by stage."""
    record = Rehearsed(launch.title, revision, settings, when=now())

    def tell(verdict: Verdict) -> None:
        nonlocal record
        verdicts = sorted((*record.verdicts, verdict), key=lambda each: STAGES.index(each.stage))
        record = replace(record, verdicts=tuple(verdicts), when=now())
        _note(place.root, launch.key, record)
        say(launch, record, verdict)

    if broken is not None:
        tell(Verdict("weights", "failed", f"starts from {broken}, whose own rehearsal did not get to its end: see there"))
        return record
    found: Figures | None = Life(launch, place, tell).live()
    record = replace(record, figures=found)
    _note(place.root, launch.key, record)
    return record


def _note(root: Path, key: str, record: Rehearsed) -> None:
    with locked(root / ".locks" / "rehearsed"):  # of two rehearsals at once neither loses the other's
        write_rehearsed(root, {**read_rehearsed(root), key: record})


def _stops_children(record: Rehearsed) -> bool:
    """Whether there is no model that others could start from."""
    return not any(verdict.stage == "evaluation" and verdict.outcome == "passed" for verdict in record.verdicts)


def _remove(ours: Sequence[Launch], launches: Sequence[Launch], waiting: set[str]) -> None:
    """Those of our run folders that no rehearsal to come starts from."""
    needed = {key for launch in launches if launch.key in waiting for key in launch.after}
    for launch in ours:
        if launch.key not in needed and launch.key not in waiting:
            shutil.rmtree(launch.folder, ignore_errors=True)


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM and SIGHUP as Ctrl-C: what was started is ended on the way out."""

    def told(number: int, _: Any) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, told) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
