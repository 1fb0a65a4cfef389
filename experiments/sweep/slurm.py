"""Launches as Slurm jobs: `crosslight sweep run TARGET --submit slurm`.

What is submitted is one batch script an array: launches of one shape (nodes, processes, GPUs) that start from the same launches.
`script_of` writes it, `--dry-run` prints it. An array that starts from others waits for their very elements
(`--dependency=afterok:JOB_ELEMENT`), and is cancelled by Slurm when one of them fails (`--kill-on-invalid-dep=yes`).

    ROOT/slurm/jobs.json      which job a launch was submitted as, and how: the only thing that is remembered
    ROOT/slurm/NAME-....sh    the batch scripts; Slurm's own output of an element is JOB_ELEMENT.out
    ROOT/logs, ROOT/.locks    as `runner.py` has them: a launch that a runner has in hand does not start here, nor the reverse

An element of an array takes its launch's lock, leaves if it is finished, starts it by srun, a process a device, and then asks
`settle` what has become of it: one that was preempted (`preemption.py`) is queued again, one that could not write down its own
failure is recorded. A second submission leaves alone what is finished, queued or running.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rich.console import Console

from datamodules.errors import InputError, shown
from datamodules.files.atomic import write_atomically
from datamodules.files.json_file import read_json
from datamodules.files.locks import is_held, locked
from datamodules.files.text import read_text
from datamodules.formats.typed import read_typed
from experiments.papers.worlds import world_folder, write_miniature_world
from experiments.runs.folder import is_running
from experiments.runs.results import now
from experiments.sweep.display import plain
from experiments.sweep.launches import Launch
from experiments.sweep.outcomes import known_state, log_of, record, state_of, why_it_ended
from experiments.sweep.request import Request
from experiments.sweep.slurm_script import SlurmOptions, arrays_of, counted, script_of
from experiments.training.preemption import PREEMPTED

# Of a job that will not come back by itself; all others are waiting or running.
ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT",
}  # fmt: skip


_NUMBER = re.compile(r"\d+_\d+")


@dataclass(frozen=True)
class _Job:
    """What jobs.json says of a launch."""

    title: str
    folder: str
    argv: list[str]
    command: str | None
    name: str | None
    seed: int | None
    scale: str | None
    job: str
    requeues: int
    submitted: str


# -------------------------------------------------------------------------------------------------------- what is submitted


def submit(launches: Sequence[Launch], root: Path, request: Request, console: Console) -> int:
    """Submit what is neither finished nor queued. Returns the exit status: 1 where something can only be reported.

    Raises:
        InputError: Slurm is not there or refuses a job.
    """
    options, dry_run, root = request.submit or SlurmOptions(), request.dry_run, root.absolute()
    with nullcontext() if dry_run else locked(root / ".locks" / "slurm"):  # one submission at a time
        jobs = read_jobs(root)
        waits, says = _sorted_out(launches, root, jobs, request.retry_failed)
        wanted = [launch for launch in launches if launch.key not in says]
        if not dry_run:
            for style in sorted({launch.world for launch in wanted if launch.world is not None}):
                write_miniature_world(world_folder(root, style), style)
            for folder in ("slurm", "logs", ".locks"):
                (root / folder).mkdir(parents=True, exist_ok=True)
        for number, array in enumerate(arrays_of(wanted, options), 1):
            parents = [waits[key] for key in array.after if key in waits]
            script = script_of(array, root, options, request.target, f"afterok:{':'.join(parents)}" if parents else None)
            file = root / "slurm" / f"{re.sub(r'[^-0-9A-Za-z_.]+', '-', request.target)}-{array.launches[0].key}.sh"
            job = f"JOB{number}" if dry_run else _sbatch(script, file, jobs)
            waits |= {launch.key: f"{job}_{index}" for index, launch in enumerate(array.launches)}
            if dry_run:
                console.print(script, highlight=False, markup=False, soft_wrap=True)
                continue
            jobs |= {
                launch.key: {
                    "title": launch.title, "folder": str(launch.folder), "argv": launch.argv, "command": launch.command,
                    "name": launch.name, "seed": launch.seed, "scale": launch.scale, "job": waits[launch.key],
                    "requeues": options.requeues, "submitted": now(),
                }
                for launch in array.launches
            }  # fmt: skip
            write_atomically(root / "slurm" / "jobs.json", json.dumps(jobs, indent=1) + "\n")
            _answer(file).unlink()
            names = ", ".join(launch.title for launch in array.launches[:3]) + (", ..." if len(array.launches) > 3 else "")
            after = f", after {' '.join(parents)}" if parents else ""
            console.print(plain(f"job {job}: {counted(len(array.launches), 'run')} ({names}){after}"), soft_wrap=True)
    for state in sorted(set(says.values())):
        console.print(plain(f"{list(says.values()).count(state)} {state}"), soft_wrap=True)
    if not wanted:
        console.print("nothing to submit", highlight=False)
    return int(any(state.startswith(("failed", "oom", "blocked")) for state in says.values()))


def _sbatch(script: str, file: Path, jobs: Mapping[str, Mapping[str, Any]]) -> str:
    """Submit a batch script, which stays in its file. Returns the job's number.

    sbatch writes its answer into a file itself: where a submission is killed before it has noted the job (in `jobs`), the next
    one takes that up and submits nothing twice.

    Raises:
        InputError: Slurm refuses the script, or what was submitted unnoted was another one.
    """
    answer = _answer(file)
    number = read_text(answer, "a job's number").strip().partition(";")[0] if answer.exists() and answer.stat().st_size else ""
    if number and not any(job["job"].startswith(f"{number}_") for job in jobs.values()):
        if file.read_text() == script:
            return number
        raise InputError(
            f"{file} was submitted as job {number} by a call that was killed, and is another script now: `scancel {number}`, "
            f"remove {answer}, and submit again."
        )
    write_atomically(file, script)
    with answer.open("w") as output:
        _slurm("sbatch", "--parsable", str(file), output=output)
    return answer.read_text().strip().partition(";")[0]


def _answer(script: Path) -> Path:
    return script.with_suffix(".job")


def _sorted_out(
    launches: Sequence[Launch], root: Path, jobs: Mapping[str, Mapping[str, Any]], retry_failed: bool
) -> tuple[dict[str, str], dict[str, str]]:
    """The jobs of queued launches by key, and what there is to say of every launch that is not submitted."""
    queue = states_of(jobs.values()) if any(launch.key in jobs for launch in launches) else {}
    waits: dict[str, str] = {}
    says: dict[str, str] = {}
    for launch in launches:
        state, results, error = known_state(launch)
        job = jobs.get(launch.key, {}).get("job", "")
        broken = next((key for key in launch.after if says.get(key, "").startswith(("failed", "oom", "block", "running"))), None)
        if state in ("finished", "stopped_early"):
            says[launch.key] = state
        elif is_active(queue.get(job)):
            says[launch.key], waits[launch.key] = "queued or running already", job
        elif is_held(root / ".locks" / launch.key) or is_running(launch.folder):
            says[launch.key] = "running outside of Slurm"
        elif state == "failed" and results is None:  # the run itself could not take up what is in its folder
            says[launch.key] = f"failed: {error}"
        elif state in ("failed", "oom") and not retry_failed:
            says[launch.key] = f"{state} earlier (--retry-failed submits it again)"
        elif broken is not None:
            says[launch.key] = "blocked by a run that failed or runs outside of Slurm"
    return waits, says


# ------------------------------------------------------------------------------------------------------------ what became of it


def states_of(jobs: Iterable[Mapping[str, Any]]) -> dict[str, tuple[str, str]]:
    """State and reason of jobs by JOB_ELEMENT. What Slurm has forgotten, and no accounting remembers, is left out."""
    wanted = {job["job"] for job in jobs}
    lines = _slurm("squeue", "--noheader", "--array", "--me", "--states=all", "--format=%i|%T|%r").splitlines()
    states = {job: (state, reason) for job, state, reason in (line.strip().split("|", 2) for line in lines) if job in wanted}
    if forgotten := sorted(wanted - states.keys()):
        numbers = ",".join(sorted({job.partition("_")[0] for job in forgotten}))
        command = ["sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State", f"--jobs={numbers}"]
        for line in _slurm(*command, optional=True).splitlines():
            job, _, state = line.partition("|")
            if job in forgotten:
                states[job] = (state.split()[0], "")
    return states


def is_active(state: tuple[str, str] | None) -> bool:
    return state is not None and state[0] not in ENDED


def queue_words(root: Path, keys: Collection[str] | None = None) -> dict[str, str]:
    """What Slurm says of launches (default: all) that were submitted, by key: `41_3 PENDING Dependency`."""
    jobs = {key: job for key, job in read_jobs(root).items() if keys is None or key in keys}
    here = shutil.which("squeue") is not None  # folders may be read elsewhere
    states = states_of(jobs.values()) if jobs and here else {}
    words = {}
    for key, job in jobs.items():
        state, reason = states.get(job["job"], ("forgotten by Slurm" if here else "(no Slurm here)", ""))
        words[key] = f"{job['job']} {state} {'' if reason in ('None', state) else reason}".strip()
    return words


def cancel(launches: Sequence[Launch], root: Path, console: Console) -> int:
    """Cancel the jobs of launches that are queued or running. A running one saves first, if Slurm's KillWait is long enough.

    Raises:
        InputError: Nothing was submitted from there.
    """
    jobs = {key: job for key, job in read_jobs(root).items() if key in {launch.key for launch in launches}}
    if not jobs:
        raise InputError(f"{root} has no jobs of these runs (slurm/jobs.json). Ctrl-C stops a runner of this machine.")
    states = states_of(jobs.values())
    active = {job["job"]: job["title"] for job in jobs.values() if is_active(states.get(job["job"]))}
    for number, name in active.items():
        console.print(plain(f"cancelling {number} ({states[number][0].lower()}): {name}"), soft_wrap=True)
    if active:
        _slurm("scancel", *active)
    console.print(f"{len(active)} cancelled; what was trained is kept: submitted again it goes on", highlight=False)
    return 0


def settle(root: Path, key: str, code: int) -> int:
    """In a job, after srun: queue it again if it was preempted, record what it could not. Returns the job's exit status."""
    job = read_jobs(root)[key]
    launch = Launch(
        key, job["title"], job["title"], Path(job["folder"]), job["command"], program=tuple(job["argv"][:1]), name=job["name"],
        seed=job["seed"], scale=job["scale"],
    )  # fmt: skip
    log = log_of(root, launch)
    element = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    shown = _slurm("scontrol", "--oneliner", "show", "job", element)
    state, reason = ("".join(re.findall(rf"\b{name}=(\w+)", shown)[:1]) for name in ("JobState", "Reason"))
    requeued = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    results = state_of(launch)[1]
    status, error = (None, None) if results is None else (results.status, results.error)
    if status == "finished":
        return 0
    # a rank that is killed while the others leave hides their exit status
    left = code == PREEMPTED or (code > 128 and status == "interrupted" and str(error).startswith("preempted"))
    if (left and state == "RUNNING") or (status in ("running", "interrupted") and reason == "TimeLimit"):
        if requeued < job["requeues"]:
            print(f"crosslight: preempted; Slurm job {element} goes back into the queue", flush=True)
            _slurm("scontrol", "requeue", element)
            return code
        record(
            launch, "failed", f"was queued again {requeued} times and did not finish: give more --slurm.time or --slurm.requeues"
        )
    elif state != "RUNNING":  # Slurm ends the job itself: preempted it is queued again, cancelled it is not
        print(f"crosslight: Slurm says that job {element} is {state}", flush=True)
    elif status not in ("failed", "oom"):
        killed = 128 < code <= 128 + max(signal.valid_signals())  # 255, say, is no signal's
        start = log.read_bytes().rfind(f" Slurm job {element} on ".encode())
        record(launch, "failed", why_it_ended(log, 128 - code if killed else code, start=max(start, 0)))
    return code or 1


# ---------------------------------------------------------------------------------------------------------------- the files


def read_jobs(root: Path) -> dict[str, dict[str, Any]]:
    """Submitted launches by key: title, folder, argv, job and what a row of theirs says.

    Raises:
        InputError: An earlier version wrote the file.
    """
    file = root / "slurm" / "jobs.json"
    if not os.path.lexists(file):
        return {}
    jobs = read_json(file, "submitted jobs")
    if isinstance(jobs, dict) and any(isinstance(job, dict) and "argv" not in job for job in jobs.values()):
        raise InputError(
            f"{file} was written by an earlier version: cancel its jobs with scancel, move the file away, submit again."
        )
    found: dict[str, dict[str, Any]] = read_typed(dict[str, dict[str, Any]], jobs, str(file))
    for key, job in found.items():
        read_typed(_Job, job, f"{file}: {key}")
        if not _NUMBER.fullmatch(job["job"]):
            raise InputError(f"{file}: {key}: job is {shown(job['job'])}, which is no element of a job array, such as 41_0.")
    return found


def _slurm(*command: str, optional: bool = False, output: IO[str] | None = None) -> str:
    """What a command of Slurm's prints; nothing where an optional one fails, or where it prints into `output`.

    Raises:
        InputError: There is no such command, it does not answer, or it says no.
    """
    try:
        answer = subprocess.run(
            command, stdout=output or subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL, timeout=120
        )  # fmt: skip
    except FileNotFoundError:
        if optional:
            return ""
        raise InputError(f"there is no {command[0]} on this machine: submit from a login node of the cluster.") from None
    except subprocess.TimeoutExpired:
        raise InputError(f"{command[0]} does not answer for two minutes: Slurm's controller seems to be away.") from None
    if answer.returncode != 0 and not optional:
        raise InputError(f"{shlex.join(command[:4])} failed: {' '.join(answer.stderr.split())}")
    return answer.stdout or "" if answer.returncode == 0 else ""


if __name__ == "__main__":
    try:
        sys.exit(settle(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
    except InputError as error:
        sys.exit(f"crosslight: error: {error}")
