"""A run folder: one run, one folder, and the only thing that reports, notebooks and exports read.

    config.yaml     the resolved configuration, enough to start the run again (`-c config.yaml`)
    results.json    status, provenance, cost, evaluations (`results.py`)
    metrics.csv     everything logged, one row a step (`metrics_csv.py`)
    per_query/      ranks of every query of every evaluation (.npz)
    checkpoints/    best and last
    dial.json       what `crosslight dial` measured, with dial/ (`dial.py`)
    wandb/          W&B's files
    traceback.log   of an error that was not foreseen
    error-N.log     of several processes, why the N-th ended (`experiments/training/last_words.py`)

A run whose process was killed keeps `status: running` but nobody holds its lock; opening it again resumes it.
"""

from __future__ import annotations

import re
import sys
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import yaml

from datamodules.errors import InputError
from datamodules.files.atomic import write_atomically
from datamodules.files.leftovers import remove_leftovers
from datamodules.files.locks import is_held, take_lock
from datamodules.files.ownership import refuse_strangers
from datamodules.files.stand_in import mark
from datamodules.files.yaml_file import read_yaml
from experiments.runs.identity import config_hash, deciding, differing_keys, without_new_options
from experiments.runs.metrics_csv import FILE as METRICS
from experiments.runs.results import DataDescription, Evaluation, Results, ResultsStatus, now, read_results, write_results

_BEFORE = re.compile(r"\.lock|(error|traceback)-\d+\.log")
"""What may be there before a run is: its lock, and why another of its processes ended before the first one began it."""
_TIMED = ("config.yaml", "results.json", METRICS, "checkpoints/last.ckpt")


class RunFolder:
    """An open run folder. The process that created or resumed it holds its lock until `finish`, or until it exits, however.

    `ours` tells whether this is that process (rank 0): the others write nothing into it.
    """

    def __init__(self, path: Path, results: Results, lock: IO[Any] | None, resumed: bool) -> None:
        self.path = path
        self.results = results
        self.resumed = resumed
        self.ours = lock is not None
        self._lock = lock
        self._began = time.monotonic()

    @classmethod
    def open(cls, path: str | Path | None, *, name: str, command: str, config: dict[str, Any]) -> RunFolder:
        """Create the folder, or take up the run that is in it.

        Args:
            path: The folder; None makes a new one, `runs/<name>/<time>-<hash>`.
            name: What the run is called in tables.
            command: Sub-command that writes here.
            config: Resolved configuration (what `config.yaml` will hold).

        Raises:
            InputError: The folder holds a finished run, a run of another configuration, something that is no run, or a
                run that is going on.
        """
        digest = config_digest(command, config)
        if path is None:
            stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
            base = Path("runs") / name / f"{stamp}-{digest[:6]}"
            folder, tries = base, 1
            while True:
                try:
                    folder.mkdir(parents=True, exist_ok=False)
                    break
                except FileExistsError:  # two runs of the same second
                    tries += 1
                    folder = base.with_name(f"{base.name}-{tries}")
        else:
            folder = Path(path)
            if folder.exists() and not folder.is_dir():
                raise InputError(f"--run_dir {folder} is a file. Give a new or empty folder.")
            folder.mkdir(parents=True, exist_ok=True)
        folder = folder.resolve()
        lock = take_lock(lock_of(folder))
        if lock is None:
            raise InputError(f"--run_dir {folder} is in use by a running process. Two runs never share a folder.")
        try:
            return cls._take_up(folder, lock, name=name, command=command, config=config, digest=digest)
        except BaseException:
            lock.close()
            raise

    @classmethod
    def _take_up(cls, folder: Path, lock: IO[Any], *, name: str, command: str, config: dict[str, Any], digest: str) -> RunFolder:
        """The run that is in the locked folder, or a new one where the folder is empty."""
        remove_leftovers(folder, alone=True)  # of a process that was killed in its first write, should it be one of ours
        if (folder / "results.json").exists():
            results = read_results(folder)
            for inner in (path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink()):
                remove_leftovers(inner, alone=True)
            if _nothing_lost(folder, results):  # the mistake may be corrected: options, or the data
                results = replace(results, evaluations=(), data={})
                if results.config_hash != digest:
                    results = Results(
                        "failed", command, name, digest, now(), attempts=results.attempts, wandb_id=_wandb_id(digest, folder)
                    )
                    for file in (METRICS, "traceback.log"):
                        (folder / file).unlink(missing_ok=True)
            if results.config_hash != digest:
                _require_same_run(folder, results, command, config)
            if results.status == "finished":
                raise InputError(
                    f"--run_dir {folder} holds a finished run of these options (of its data as they were then). Read its "
                    f"results.json, or give another --run_dir to run it again.{_how_to_go_on(folder)}"
                )
            seconds = counted_seconds(folder, results) or None
            results = replace(results, status="running", attempts=results.attempts + 1, error=None, seconds=seconds)
            run = cls(folder, results, lock, resumed=True)
        else:
            refuse_strangers(
                folder / "results.json", (entry for entry in folder.iterdir() if not _BEFORE.fullmatch(entry.name)),
                "Give a new or empty --run_dir, or the folder of an earlier run to resume it.",
            )  # fmt: skip
            results = Results("running", command, name, digest, now(), wandb_id=_wandb_id(digest, folder))
            run = cls(folder, results, lock, resumed=False)
        run.save()  # first: it says whose the folder is, should the process be killed before the next line
        write_atomically(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False, width=120))
        return run

    @classmethod
    def attach(cls, path: str | Path, *, name: str, command: str, config: dict[str, Any]) -> RunFolder:
        """The folder that rank 0 opens, for the other ranks: they write nothing into it. It is empty where they are first."""
        folder = Path(path)
        begun = (folder / "results.json").exists()
        results = read_results(folder) if begun else Results("running", command, name, config_digest(command, config), now())
        return cls(folder, results, None, resumed=False)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def last_checkpoint(self) -> Path | None:
        path = self.checkpoints / "last.ckpt"
        return path if path.exists() else None

    def save(self) -> None:
        if self.ours:
            write_results(self.path, self.results)

    def update(self, **entries: Any) -> None:
        """Fields of `Results` that have become known."""
        self.results = replace(self.results, **entries)
        self.save()

    def mark(self, what: str) -> None:
        """Say that it is no result, to whoever starts from its checkpoints or makes something of them."""
        if self.ours:
            mark(self.path, what)

    def describe(self, name: str, data: DataDescription) -> None:
        """What the run is made on.

        Raises:
            InputError: An earlier attempt began on other data.
        """
        before = self.results.data.get(name)
        if before is not None and before.fingerprint != data.fingerprint:
            raise InputError(
                f"{self.path} holds a run that began on other data: the content of {name} has changed since (fingerprint "
                f"{before.fingerprint} then, {data.fingerprint} now). Put the data back, or give another --run_dir."
                f"{_how_to_test(self.path)}"
            )
        self.update(data={**self.results.data, name: data})

    def add(self, evaluation: Evaluation, data: DataDescription) -> None:
        """A test that is done, and what it was on; says where that has changed since the run began."""
        before = self.results.data.get(evaluation.data)
        if before is not None and before.options == data.options and before.fingerprint != data.fingerprint:
            data = replace(data, further={**data.further, "fingerprint_at_the_start": before.fingerprint})
            print(
                f"crosslight: the content of {evaluation.data} has changed while the run was going on (fingerprint "
                f"{before.fingerprint} at its start, {data.fingerprint} now): its test is not on what it was trained on.",
                file=sys.stderr,
            )
        self.update(evaluations=(*self.results.evaluations, evaluation), data={**self.results.data, evaluation.data: data})

    def finish(self, status: ResultsStatus, error: str | None = None) -> None:
        """Write how the run ended and let go of the folder, also when that cannot be written."""
        if self._lock is None:
            return
        seconds = (self.results.seconds or 0.0) + time.monotonic() - self._began
        try:
            self.update(status=status, error=error, finished=now(), seconds=round(seconds, 1))
        finally:
            self._lock.close()  # a resume in this very process may come before the garbage collector does
            self._lock = None


def _nothing_lost(folder: Path, results: Results) -> bool:
    """Whether an attempt ended before it kept anything: no checkpoint to resume from, and no test that is done."""
    kept = folder / "checkpoints"
    return results.status != "finished" and not results.evaluations and not (kept.is_dir() and any(kept.iterdir()))


def _how_to_go_on(folder: Path) -> str:
    """What a person may have meant who asks more of a run that has been trained."""
    if not (folder / "checkpoints" / "best.ckpt").exists():
        return ""
    return (
        f" There, --model.init_args.init_from={folder} starts new training from its best weights, and "
        f"--ckpt_path={folder / 'checkpoints' / 'last.ckpt'} goes on where it stopped, for more epochs."
    )


def _how_to_test(folder: Path) -> str:
    """What a person may have meant who mended an image that a test needs, when the training was over."""
    best = folder / "checkpoints" / "best.ckpt"
    if not best.exists():
        return ""
    return (
        " Its best weights are tested on the data as they are now by: crosslight test -c "
        f"{folder / 'config.yaml'} --ckpt_path {best} --run_dir NEW"
    )


def _require_same_run(folder: Path, results: Results, command: str, config: dict[str, Any]) -> None:
    """Refuse a folder that holds another run; one of an earlier version, without an option that is at its default, is the same.

    Raises:
        InputError: It is another; names what differs.
    """
    old = read_yaml(folder / "config.yaml") if (folder / "config.yaml").exists() else {}
    known = without_new_options(config, old)
    if results.config_hash == config_digest(command, known):
        return
    names = differing_keys(deciding(known), deciding(old))
    if results.command != command:
        names.insert(0, f"the command ({results.command} there, {command} here)")
    listed = ", ".join(names[:6]) + (" ..." if len(names) > 6 else "")
    raise InputError(
        f"--run_dir {folder} holds a run of another configuration (it differs in: {listed}). "
        f"A changed configuration is a new run: give another --run_dir.{_how_to_go_on(folder)}"
    )


def _wandb_id(digest: str, folder: Path) -> str:
    return f"{digest}-{folder.name}"[:60]


def config_digest(command: str, config: dict[str, Any]) -> str:
    return config_hash({"command": command, **config})


def lock_of(folder: Path) -> Path:
    """The file whose lock the process that runs holds."""
    return folder / ".lock"


def is_running(folder: Path) -> bool:
    return is_held(lock_of(folder))


def counted_seconds(folder: Path, results: Results) -> float:
    """Of all attempts that ended, and of the last one where it was killed before it could count itself: from its config.yaml,
    which it wrote first, to the last of its results, metrics and checkpoints (0 without a config.yaml)."""
    counted = results.seconds or 0.0
    if results.status != "running":
        return counted
    times = {name: (folder / name).stat().st_mtime for name in _TIMED if (folder / name).exists()}
    return round(counted + (max(times.values()) - times["config.yaml"] if "config.yaml" in times else 0.0), 1)
