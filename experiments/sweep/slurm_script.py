"""Batch scripts of Slurm: launches as job arrays that wait for each other."""

from __future__ import annotations

import math
import re
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from datamodules.errors import InputError, shown
from experiments.sweep.launches import Launch
from experiments.sweep.outcomes import log_of

_VALUE = re.compile(r"[\w.,:;%+*&|!@/()\[\]=<>-]+")  # what sbatch takes for a value; a constraint may be [rack1*2&rack2]
_MEASURED = "# the time limit is half as long again as `crosslight sweep rehearse` measured\n"
MOST = 1000  # elements of an array; Slurm's MaxArraySize is 1001 unless configured


@dataclass(frozen=True)
class SlurmOptions:
    """What jobs ask for.

    Args:
        partition: Partition.
        account: Account.
        qos: Quality of service.
        constraint: Features that nodes must have.
        time: Time limit, such as 8:00:00 (default: of runs that were rehearsed on a GPU half as long again as measured, else the
            partition's own). A run that reaches it is queued again and goes on.
        notice: Seconds before the limit at which a run is told to save. A validation in progress is completed first.
        nodes: Nodes of a run on GPUs (one on the processor says so itself: --trainer.num_nodes).
        gpus_per_node: GPUs a node, with a process each (default: as many as the run's estimate says).
        cpus_per_task: Cores a process.
        mem: Memory a node, such as 64G.
        at_once: Elements of an array that run at once, at most.
        requeues: How often a run may be queued again before it counts as failed.
        setup: Lines for the batch script, such as `module load cuda`.
        extra: Further options of sbatch, such as --mail-type=END.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time: str | None = None
    notice: int = 120
    nodes: int = 1
    gpus_per_node: int | None = None
    cpus_per_task: int | None = None
    mem: str | None = None
    at_once: int | None = None
    requeues: int = 50
    setup: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("notice", "nodes", "gpus_per_node", "cpus_per_task", "at_once"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--slurm.{name} is {value}; it is at least 1.")
        if wrong := [line for line in self.extra if not line.startswith("-") or not line.isprintable()]:
            raise InputError(f"--slurm.extra has {shown(wrong[0])}, which is no option of sbatch, such as --mail-type=END.")
        for name in ("partition", "account", "qos", "constraint", "time", "mem"):
            value = getattr(self, name)
            if value is not None and not _VALUE.fullmatch(value):
                raise InputError(
                    f"--slurm.{name} is {shown(value)}; it goes into a line of the script: letters, digits, signs, no space."
                )


@dataclass(frozen=True)
class Shape:
    """Nodes of a launch, and processes and GPUs on each."""

    nodes: int
    processes: int
    gpus: int


@dataclass(frozen=True)
class Array:
    """Launches that one batch script runs; `after` has the keys of those that all of them start from."""

    launches: tuple[Launch, ...]
    shape: Shape
    after: tuple[str, ...]


def arrays_of(launches: Iterable[Launch], options: SlurmOptions) -> list[Array]:
    """Launches in arrays, those that others start from first. Parents come before their children in `launches`."""
    groups: dict[tuple[Shape, tuple[str, ...]], list[Launch]] = {}
    for launch in launches:
        shape = _shape(launch, options)
        groups.setdefault((shape, tuple(sorted(launch.after))), []).append(_shaped(launch, shape))
    return [
        Array(tuple(group[start : start + MOST]), shape, after)
        for (shape, after), group in groups.items()
        for start in range(0, len(group), MOST)
    ]


def _shape(launch: Launch, options: SlurmOptions) -> Shape:
    if launch.gpus:
        gpus = options.gpus_per_node or launch.gpus
        return Shape(options.nodes, gpus, gpus)
    return Shape(launch.nodes or 1, launch.processes, 0)


def _shaped(launch: Launch, shape: Shape) -> Launch:
    """Lightning wants to be told what srun starts. Neither decides a result: the global batch is the same."""
    if not launch.gpus or launch.command is None:
        return launch
    return replace(launch, devices=str(shape.processes), nodes=shape.nodes)


def script_of(array: Array, root: Path, options: SlurmOptions, target: str, dependency: str | None) -> str:
    """The batch script of an array.

    Raises:
        InputError: The folder's name has a line end, say: it goes into a line that sbatch reads.
    """
    if not str(root).isprintable():
        raise InputError(f"{shown(str(root))} goes into a line of the script: choose a folder whose name can be printed.")
    shape, at_once = array.shape, f"%{options.at_once}" if options.at_once else ""
    measured = None if options.time else measured_limit(array)
    header = {
        "job-name": re.sub(r"[^\w.-]+", "-", target), "array": f"0-{len(array.launches) - 1}{at_once}", "dependency": dependency,
        "kill-on-invalid-dep": "yes", "nodes": shape.nodes, "ntasks-per-node": shape.processes,
        "gpus-per-node": shape.gpus or None, "cpus-per-task": options.cpus_per_task, "mem": options.mem,
        "partition": options.partition, "account": options.account, "qos": options.qos, "constraint": options.constraint,
        "time": options.time or measured, "signal": f"USR1@{options.notice}", "requeue": "", "open-mode": "append",
        "output": _quoted(root / "slurm" / "%A_%a.out"),
    }  # fmt: skip
    lines = [f"--{name}={value}".rstrip("=") for name, value in header.items() if value is not None] + options.extra
    elements = "\n".join(
        f"{index})  # {_comment(launch.title)}\n"
        f"  key={launch.key} folder={_quoted(launch.folder)} log={_quoted(log_of(root, launch))}\n"
        + "".join(f"  export {name}={_quoted(value)}\n" for name, value in sorted(launch.whole_environment.items()))
        + f"  set -- {shlex.join(launch.started)} ;;"
        for index, launch in enumerate(array.launches)
    )
    cpus = f" --cpus-per-task={options.cpus_per_task}" if options.cpus_per_task else ""
    return f"""\
#!/bin/bash
# {_comment(target)}: {counted(len(array.launches), "run")}, an element each
{_MEASURED if measured else ""}{"".join(f"#SBATCH {line}{chr(10)}" for line in lines)}
cd {_quoted(Path.cwd())}
export OMP_NUM_THREADS=${{OMP_NUM_THREADS:-${{SLURM_CPUS_PER_TASK:-1}}}}
{"".join(line + chr(10) for line in options.setup)}
case $SLURM_ARRAY_TASK_ID in
{elements}
esac

exec >>"$log" 2>&1
echo "$(date -u +%FT%TZ) Slurm job ${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID on $SLURM_JOB_NODELIST," \\
  "requeued ${{SLURM_RESTART_COUNT:-0}} times: $*"
exec 9>>{_quoted(root / ".locks")}/$key
flock --nonblock 9 || {{ echo "crosslight: $folder is running elsewhere"; exit 1; }}
grep -qs '"status": "finished"' "$folder/results.json" && exit 0

trap : USR1 TERM  # for the run, which saves and leaves; the shell waits for it
srun --ntasks-per-node={shape.processes}{cpus} --kill-on-bad-exit=1 \\
  bash -c 'trap "" USR1; exec "$@"' crosslight "$@"  # ignored until the program listens: its default would kill
{shlex.join([sys.executable, "-m", "experiments.sweep.slurm", str(root)])} $key $?
"""


def measured_limit(array: Array) -> str | None:
    """A time limit for the longest of its launches, as sbatch takes it; None where one of them was not measured."""
    if not all(launch.measured and launch.cost is not None for launch in array.launches):
        return None
    devices = array.shape.nodes * array.shape.gpus or 1
    longest = max(3600 * launch.cost.hours / devices for launch in array.launches if launch.cost is not None)
    minutes = math.ceil(1.5 * longest / 60) + 10  # and ten minutes to start and to read the data
    return f"{minutes // 60}:{minutes % 60:02d}:00"


def counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _comment(text: str) -> str:
    """Names of runs, and so values of a sweep, are no lines of the script."""
    return " ".join(text.split())


def _quoted(value: object) -> str:
    return shlex.quote(str(value))
