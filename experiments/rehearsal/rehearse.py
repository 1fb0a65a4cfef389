"""All configurations of a target rehearsed, one after the other; what was rehearsed before stays so.

    ROOT/rehearsed.json      verdicts and figures by key (runs/rehearsed.py), written after every stage
    ROOT/rehearsed.md        the same as a page
    ROOT/rehearsal/          run folders and logs while they are needed; --keep keeps them

What was rehearsed whole by the same code, with the same settings and surroundings (libraries, where data and weights lie) is not
repeated. A run that others start from is kept until they are rehearsed, also by another process.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from datamodules.files.atomic import write_atomically
from datamodules.files.locks import locked, take_lock
from datamodules.files.stand_in import mark_of
from experiments.rehearsal.life import InHand, Life, Place
from experiments.rehearsal.show import page
from experiments.runs.provenance import CACHES, REHEARSAL_VARIABLE, git_state, versions
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
    """64 hexadecimal digits over code and configurations, own ones beside ours too: all that git does not ignore."""
    over = hashlib.sha256()
    told = subprocess.run(
        ["git", "-C", str(root), "ls-files", "-coz", "--exclude-standard", "*.py", "*.yaml"], capture_output=True, check=True
    )
    for name in sorted(filter(None, told.stdout.decode().split("\0"))):
        if (root / name).is_file():
            over.update(f"{name}\n".encode() + (root / name).read_bytes())
    return over.hexdigest()


def surroundings() -> str:
    """8 hexadecimal digits over what else a verdict rests on: the libraries, where data, weights and caches lie, and whether they
    are stand-ins."""
    own = (name for name in os.environ if name.startswith("CROSSLIGHT_") and name != REHEARSAL_VARIABLE)
    places = {name: os.environ[name] for name in (*own, *(name for name in CACHES if name in os.environ))}
    marked = [name for name, place in places.items() if os.path.exists(place) and mark_of(Path(place)) is not None]
    told = json.dumps([versions(), places, marked], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:8]


def settings_of(place: Place) -> str:
    """What a configuration is rehearsed anew for where it is another."""
    return f"{place.settings.words}{'' if place.on is None else f', for {place.on}'}, surroundings {surroundings()}"


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

    Raises:
        InHand: Another process rehearses some of them; the others are done first.
    """
    revision = revision or code_revision()
    settings = settings_of(place)
    done = {key: run for key, run in read_rehearsed(place.root).items() if (run.revision, run.settings) == (revision, settings)}
    waiting = {launch.key for launch in launches if launch.key not in done or not done[launch.key].whole}
    folders = {launch.key: launch.folder for launch in launches}
    failed: dict[str, str] = {}
    in_hand: dict[str, str] = {}
    ours: set[str] = set()  # folders that are removed: another process may rehearse others here
    with _stoppable(), _Used(place.scratch) as used:
        for launch in reversed(launches):  # children before parents: what a child starts from must be there, and stay
            if launch.key in waiting:
                used.take(launch.after)
                waiting |= {key for key in launch.after if not (folders[key] / "checkpoints" / "best.ckpt").exists()}
        for launch in launches:
            if launch.key in waiting:
                ours |= {launch.key, *launch.after}
                broken = next((failed[key] for key in launch.after if key in failed), None)
                waiting.discard(launch.key)
                if (other := next((in_hand[key] for key in launch.after if key in in_hand), None)) is not None:
                    in_hand[launch.key] = other
                    continue
                try:
                    done[launch.key] = _one(launch, place, revision, settings, broken, say)
                except InHand as error:
                    in_hand[launch.key] = str(error)
                    ours.discard(launch.key)
                    continue
            if _stops_children(done[launch.key]):
                failed[launch.key] = launch.title
            say(launch, done[launch.key], None)
            write_atomically(place.root / "rehearsed.md", page(launches, done, place))
            if not keep:
                _remove([launch for launch in launches if launch.key in ours], launches, waiting, used)
    if in_hand:
        raise InHand(" ".join(dict.fromkeys(in_hand.values())))
    return {launch.key: done[launch.key] for launch in launches}


class _Used:
    """Runs that others start from, as long as a rehearsal of ours will: no process removes them meanwhile."""

    def __init__(self, scratch: Path) -> None:
        self._scratch, self._held = scratch, dict[str, IO[Any]]()

    def __enter__(self) -> _Used:
        return self

    def __exit__(self, *_: object) -> None:
        for lock in self._held.values():
            lock.close()

    def take(self, keys: Iterable[str]) -> None:
        for key in keys:
            while key not in self._held:
                if (lock := take_lock(self._file(key), shared=True)) is not None:
                    self._held[key] = lock
                else:
                    time.sleep(0.05)  # it is being removed: that is short

    @contextlib.contextmanager
    def nobody(self, key: str) -> Iterator[bool]:
        """Whether no process uses it, ours neither; none may begin to within."""
        if (held := self._held.pop(key, None)) is not None:
            held.close()
        lock = take_lock(self._file(key))
        try:
            yield lock is not None
        finally:
            if lock is not None:
                lock.close()

    def _file(self, key: str) -> Path:
        return self._scratch / ".locks" / f"{key}.used"


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


def _remove(ours: Sequence[Launch], launches: Sequence[Launch], waiting: set[str], used: _Used) -> None:
    """Those of our run folders that no rehearsal to come starts from, of any process."""
    needed = {key for launch in launches if launch.key in waiting for key in launch.after}
    for launch in ours:
        if launch.key not in needed and launch.key not in waiting and launch.folder.exists():
            with used.nobody(launch.key) as free:
                if free:
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
