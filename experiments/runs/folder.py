"""A run folder: one run, one folder, and the only thing that reports, notebooks and exports read.

    config.yaml     the resolved configuration, enough to start the run again (`-c config.yaml`)
    results.json    status, provenance, cost, evaluations (schema below)
    metrics.csv     everything logged, one row a step
    per_query/      ranks of every query of every evaluation (.npz)
    checkpoints/    best and last
    wandb/          W&B's files

`results.json`, schema `crosslight.results/1`: `status` running|finished|failed|oom|interrupted|stopped_early, `command`, `argv`,
`name`, `config_hash`, `scale` full|reduced|miniature, `parent`, `seed`, `started`, `finished`, `seconds` (of all attempts,
without what lay between them), `attempts`, `git`, `versions`, `device`, `data` (fingerprint and counts of each data module),
`cost`, `fit` (steps, epochs, best checkpoint and its validation value), `evaluations: [{data, split, protocol, metrics,
per_query_file}]`, `error`.

`stopped_early` is written by a sweep whose early_terminate found the run hopeless (`error` says why); the same command by hand
resumes it. A run that crashed before it opened its folder gets a `failed` row from the runner, without a configuration.

A run whose process was killed keeps `status: running` but nobody holds its lock; opening it again resumes it.
"""

from __future__ import annotations

import fcntl
import json
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from datamodules.errors import InputError
from experiments.runs.files import write_atomically
from experiments.runs.results import (
    HASHED,
    SCHEMA,
    config_hash,
    differing_keys,
    now,
    read_results,
    seconds_of_attempt,
)


class RunFolder:
    """An open run folder. The process that created or resumed it holds its lock until `finish`, or until it exits, however.

    `ours` tells whether this is that process (rank 0): the others write nothing into it.
    """

    def __init__(self, path: Path, results: dict[str, Any], lock: Any | None, resumed: bool) -> None:
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
        digest = config_hash({"command": command, **config})
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
        lock = cls._take_lock(folder)
        try:
            return cls._take_up(folder, lock, name=name, command=command, config=config, digest=digest)
        except BaseException:
            lock.close()
            raise

    @classmethod
    def _take_up(cls, folder: Path, lock: Any, *, name: str, command: str, config: dict[str, Any], digest: str) -> RunFolder:
        """The run that is in the locked folder, or a new one where the folder is empty."""
        results_file = folder / "results.json"
        if results_file.exists():
            results = read_results(folder)
            nothing_lost = results["status"] == "failed" and not any(
                (folder / n).exists() for n in ("checkpoints", "metrics.csv")
            )
            if nothing_lost and results["config_hash"] != digest:  # it stopped while being built: the mistake may be corrected
                results |= {"command": command, "name": name, "config_hash": digest, "evaluations": []}
            if results["config_hash"] != digest:
                old = yaml.safe_load((folder / "config.yaml").read_text()) if (folder / "config.yaml").exists() else {}
                names = [n for n in differing_keys(config, old) if n.split(".")[0] in HASHED]
                if results.get("command") != command:
                    names.insert(0, f"the command ({results.get('command')} there, {command} here)")
                listed = ", ".join(names[:6]) + (" ..." if len(names) > 6 else "")
                raise InputError(
                    f"--run_dir {folder} holds a run of another configuration (it differs in: {listed}). "
                    "A changed configuration is a new run: give another --run_dir."
                )
            if results["status"] == "finished":
                raise InputError(
                    f"--run_dir {folder} holds this very run, finished. Read its results.json, or give another --run_dir "
                    "to run it again."
                )
            if results["status"] == "running":  # killed: its last attempt has not been counted
                results["seconds"] = round((results.get("seconds") or 0.0) + seconds_of_attempt(folder), 1)
            results |= {"status": "running", "attempts": results.get("attempts", 1) + 1, "error": None}
            run = cls(folder, results, lock, resumed=True)
        else:
            strangers = [entry.name for entry in folder.iterdir() if entry.name != ".lock"]
            if strangers:
                raise InputError(
                    f"--run_dir {folder} is not empty and holds no results.json (found {strangers[0]!r}). "
                    "Give a new or empty folder, or the folder of an earlier run to resume it."
                )
            run = cls(folder, {"schema": SCHEMA, "status": "running", "attempts": 1}, lock, resumed=False)
            run.results |= {
                "command": command,
                "name": name,
                "config_hash": digest,
                "started": now(),
                "evaluations": [],
            }
        write_atomically(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False, width=120))
        run.save()
        return run

    @classmethod
    def attach(cls, path: str | Path) -> RunFolder:
        """The folder that rank 0 opened, for the other ranks: they write nothing into it."""
        folder = Path(path)
        # what rank 0 has already evaluated, so that all ranks skip the same
        results = read_results(folder) if (folder / "results.json").exists() else {"evaluations": []}
        return cls(folder, results, None, resumed=False)

    @staticmethod
    def _take_lock(folder: Path) -> Any:
        lock = open(folder / ".lock", "a")  # noqa: SIM115 - held open until the process exits, that is the lock
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"--run_dir {folder} is in use by a running process. Two runs never share a folder.") from None
        return lock

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def last_checkpoint(self) -> Path | None:
        path = self.checkpoints / "last.ckpt"
        return path if path.exists() else None

    def save(self) -> None:
        if self.ours:
            write_atomically(self.path / "results.json", json.dumps(self.results, indent=1, default=str) + "\n")

    def update(self, **entries: Any) -> None:
        self.results |= entries
        self.save()

    def evaluated(self, data: str) -> bool:
        return any(evaluation["data"] == data for evaluation in self.results["evaluations"])

    def finish(self, status: str, error: str | None = None) -> None:
        """Write how the run ended and let go of the folder, also when that cannot be written."""
        if self._lock is None:
            return
        seconds = (self.results.get("seconds") or 0.0) + time.monotonic() - self._began
        try:
            self.update(status=status, error=error, finished=now(), seconds=round(seconds, 1))
        finally:
            self._lock.close()  # a resume in this very process may come before the garbage collector does
            self._lock = None
