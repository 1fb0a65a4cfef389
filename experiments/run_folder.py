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
import hashlib
import json
import os
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from datamodules.errors import InputError

SCHEMA = "crosslight.results/1"
# What a run is, as opposed to where it writes and how it looks: only these sections decide the configuration hash.
_HASHED = ("command", "seed_everything", "model", "data", "evaluate", "trainer", "checkpoint")
_NOT_HASHED_TRAINER = (
    "default_root_dir", "logger", "enable_progress_bar", "enable_model_summary", "log_every_n_steps", "devices", "num_nodes",
    "accelerator", "strategy", "profiler", "callbacks",
)  # fmt: skip
_TIMED = ("config.yaml", "results.json", "metrics.csv", "checkpoints/last.ckpt")


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def config_hash(config: dict[str, Any]) -> str:
    """12 hex digits over what decides the result. Devices do not: the global batch is the same on any number of them."""
    kept = {key: config[key] for key in _HASHED if config.get(key) is not None}
    if isinstance(kept.get("trainer"), dict):
        kept["trainer"] = {k: v for k, v in kept["trainer"].items() if k not in _NOT_HASHED_TRAINER}
    text = json.dumps(kept, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def differing_keys(ours: Any, theirs: Any, prefix: str = "") -> list[str]:
    """Dotted names of the leaves in which two configurations differ."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        names: list[str] = []
        for key in sorted(set(ours) | set(theirs), key=str):
            names += differing_keys(ours.get(key), theirs.get(key), f"{prefix}{key}.")
        return names
    return [] if ours == theirs else [prefix.rstrip(".")]


def write_atomically(path: Path, text: str) -> None:
    """A reader sees the old file or the new one, never half of one, also when the disk fills up."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


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
                names = [n for n in differing_keys(config, old) if n.split(".")[0] in _HASHED]
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


def seconds_of_attempt(folder: Path) -> float:
    """Of an attempt that could not say so itself: from its config.yaml, which it wrote first, to the last of its results, metrics
    and checkpoints. 0 without a config.yaml."""
    times = {name: (folder / name).stat().st_mtime for name in _TIMED if (folder / name).exists()}
    if "config.yaml" not in times:
        return 0.0
    return max(times.values()) - times["config.yaml"]


def read_results(folder: str | Path) -> dict[str, Any]:
    """`results.json` of a run folder.

    Raises:
        InputError: No such file, not JSON, no mapping, a schema that this version does not read, or no status.
    """
    file = Path(folder) / "results.json"
    try:
        results = json.loads(file.read_text())
    except FileNotFoundError:
        raise InputError(f"{file} does not exist: {folder} is not a run folder.") from None
    except ValueError as error:  # of JSON, or of UTF-8
        raise InputError(f"{file} is not JSON ({error}). Restore or delete it.") from None
    if not isinstance(results, dict):
        raise InputError(f"{file} is not the results of a run: it holds no mapping. Restore or delete it.")
    if results.get("schema") != SCHEMA:
        raise InputError(f"{file} has schema {results.get('schema')!r}; this version reads {SCHEMA!r}.")
    if not isinstance(results.get("status"), str):
        raise InputError(f"{file} has no status. Restore or delete it.")
    return results
