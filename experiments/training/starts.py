"""How a process of a run was started: by hand, by crosslight (rank 0 starts the others of its machine), by torchrun, by srun.

Lightning looks at the same variables, and where they do not fit to its Trainer it waits for processes that never come, or trains
the run once in each. Here that is refused, on all processes alike, before anything is read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from datamodules.errors import AgreedError, InputError

RUN_FOLDER_VARIABLE = "CROSSLIGHT_RANK0_RUN_FOLDER"  # rank 0 tells the ranks it launches
_LEFT_OVER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "NODE_RANK")
_OF_A_NODE = ("GROUP_RANK", "NODE_RANK")  # 0: of the one machine there is, as some clouds set it
_ELSEWHERE = {"JSM_NAMESPACE_SIZE": "jsrun", "OMPI_COMM_WORLD_SIZE": "mpirun", "PMI_SIZE": "mpirun"}
_INTERACTIVE = ("bash", "interactive")  # jobs of Slurm in whose shell somebody starts what she likes


@dataclass(frozen=True)
class Start:
    """Who started this process, and how many beside it.

    Args:
        by: Who.
        rank: Of this process among all.
        processes: Of all machines.
        nodes: Machines.
    """

    by: Literal["hand", "crosslight", "torchrun", "srun"]
    rank: int = 0
    processes: int = 1
    nodes: int = 1

    @property
    def outside(self) -> bool:
        """Whether others run already, whom nobody has told anything."""
        return self.by in ("torchrun", "srun") and self.processes > 1

    def require(self, devices: int, nodes: int) -> None:
        """See that the Trainer's processes are those that were started.

        Args:
            devices: Of a machine.
            nodes: Machines.

        Raises:
            AgreedError: They are others.
        """
        if self.by == "hand" and nodes > 1:
            raise AgreedError(
                f"trainer.num_nodes is {nodes}, but this process was started alone and would wait for the others for ever: start "
                "it on each machine with srun or torchrun, and with one --run_dir."
            )
        set_ = [name for name in _LEFT_OVER if name in os.environ and not (name in _OF_A_NODE and os.environ[name] == "0")]
        if self.by == "hand" and devices > 1 and set_:
            raise AgreedError(
                f"{set_[0]} is set, but not by torchrun, so nobody would start the {devices} processes: unset it "
                f"({', '.join(set_)}), or start the run with torchrun."
            )
        if self.by not in ("torchrun", "srun") or (self.processes, self.nodes) == (devices * nodes, nodes):
            return
        here = f"{self.processes} {'process' if self.processes == 1 else 'processes'}"
        where = f" on {self.nodes} machines" if self.nodes > 1 else ""
        each = (
            f"--nodes={nodes} --ntasks-per-node={devices}"
            if self.by == "srun"
            else f"--nnodes={nodes} --nproc-per-node={devices}"
        )
        alone = self.by == "srun" and self.processes == 1 and nodes == 1
        by_hand = " In a job of one task: SLURM_JOB_NAME=interactive crosslight ..., which starts the others itself."
        raise AgreedError(
            f"{self.by} started {here}{where}, but trainer.devices is {devices} and trainer.num_nodes {nodes}: give "
            f"--trainer.devices={self.processes // self.nodes} --trainer.num_nodes={self.nodes}, or {self.by} {each}."
            f"{by_hand if alone else ''}"
        )


def find_start(environment: Mapping[str, str] = os.environ) -> Start:
    """Who started this process.

    Raises:
        AgreedError: Somebody who is not known here, or the variables contradict each other.
        InputError: srun, whose tasks Lightning would not know for that.
    """
    read = _Numbers(environment)
    if RUN_FOLDER_VARIABLE in environment and "LOCAL_RANK" in environment:
        return Start("crosslight", read("LOCAL_RANK", 0))
    if "TORCHELASTIC_RUN_ID" in environment:
        return _by_torchrun(read)
    if "SLURM_NTASKS" in environment:
        if environment.get("SLURM_JOB_NAME") not in _INTERACTIVE:
            return _by_srun(read, environment)
        _require_a_shell(read, environment)
    for name, program in _ELSEWHERE.items():
        if read(name, 1) > 1:
            raise AgreedError(
                f"{program} started {read(name, 1)} processes ({name}), which is not supported: use torchrun or srun."
            )
    if read("WORLD_SIZE", 1) > 1 or read("RANK", 0) > 0:
        found = ", ".join(f"{name}={environment[name]}" for name in _LEFT_OVER if name in environment)
        raise AgreedError(
            f"{found} is set, but not by torchrun (no TORCHELASTIC_RUN_ID): start the run with torchrun, or unset it."
        )
    return Start("hand")


def rank_here(environment: Mapping[str, str] = os.environ) -> int:
    """This process's rank, as far as its variables tell; 0 where they do not."""
    try:
        return find_start(environment).rank
    except InputError:
        digits = environment.get("RANK") or environment.get("SLURM_PROCID") or "0"
        return int(digits) if digits.isdecimal() else 0


class _Numbers:
    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = environment

    def __call__(self, name: str, otherwise: int) -> int:
        text = self.environment.get(name) or str(otherwise)
        if not text.isdecimal():
            raise AgreedError(f"the environment variable {name} is {text!r}, which is no number: unset it.")
        return int(text)


def _by_torchrun(read: _Numbers) -> Start:
    start = Start("torchrun", read("RANK", 0), read("WORLD_SIZE", 1), read("GROUP_WORLD_SIZE", 1))
    here = read("LOCAL_WORLD_SIZE", 1)
    if here * start.nodes != start.processes:
        raise AgreedError(
            f"torchrun started {start.processes} processes on {start.nodes} machines, and {here} on this one: give the same "
            "--nproc-per-node on each."
        )
    return start


def _require_a_shell(read: _Numbers, environment: Mapping[str, str]) -> None:
    """See that somebody started this process in the shell of an interactive job. Lightning takes what srun starts in such a job
    for that, too: each task would train by itself, since inside of an allocation srun leaves the job its name.

    Raises:
        InputError: It is one of several tasks. (Each says so: of the first one that cannot always be known.)
    """
    tasks, task = read("SLURM_NTASKS", 1), read("SLURM_PROCID", 0)
    if tasks > 1 and (task > 0 or environment.get("SLURM_TASK_PID") == str(os.getpid())):
        raise InputError(
            f"srun started this as task {task} of {tasks} in a job named {environment['SLURM_JOB_NAME']!r}, in which each would "
            "train by itself, as if started by hand. Give the job another name: SLURM_JOB_NAME=run srun ..."
        )


def _by_srun(read: _Numbers, environment: Mapping[str, str]) -> Start:
    start = Start("srun", read("SLURM_PROCID", 0), read("SLURM_NTASKS", 1), read("SLURM_NNODES", 1))
    if start.processes == 1:
        return Start("srun")  # of a job of several nodes, perhaps
    if not (environment.get("SLURM_STEP_ID") or environment.get("SLURM_STEPID")):
        raise AgreedError(
            f"this is the batch script of a job of {start.processes} tasks, and one process of it: start the run with srun."
        )
    each = read("SLURM_NTASKS_PER_NODE", 0)
    if each * start.nodes != start.processes:
        told = f"--ntasks-per-node={each}" if each else "no --ntasks-per-node"
        raise AgreedError(
            f"srun started {start.processes} tasks on {start.nodes} {'node' if start.nodes == 1 else 'nodes'}, with {told}: give "
            f"srun --nodes={start.nodes} --ntasks-per-node={max(start.processes // start.nodes, 1)}."
        )
    return start
