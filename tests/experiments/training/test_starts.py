"""Who started a process is read from its variables, and what does not fit to the Trainer is refused."""

from __future__ import annotations

import os

import pytest
from ranks import srun

from datamodules.errors import AgreedError, InputError
from experiments.training.starts import Start, find_start, rank_here


def without_step(environment: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name != "SLURM_STEP_ID"}


TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none", "RANK": "3", "LOCAL_RANK": "1", "GROUP_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2",
    "GROUP_WORLD_SIZE": "2",
}  # fmt: skip
STARTED = [
    ({}, Start("hand")),
    ({"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "here"}, Start("hand")),  # of a container
    (TORCHRUN, Start("torchrun", 3, 4, 2)),
    ({**TORCHRUN, **srun(0, 2, 1)}, Start("torchrun", 3, 4, 2)),  # torchrun, which srun started on each node
    (srun(1, 2, 1), Start("srun", 1, 2)),
    ({**srun(5, 8, 1), "SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "4"}, Start("srun", 5, 8, 2)),
    ({**srun(0, 1, 1), "SLURM_NNODES": "2"}, Start("srun")),  # one task in an allocation of two nodes
    ({**srun(0, 2, 1), "SLURM_JOB_NAME": "interactive"}, Start("hand")),
    ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "job"}, Start("srun")),  # a batch script of one task
    ({"CROSSLIGHT_RANK0_RUN_FOLDER": "/run", "LOCAL_RANK": "2", "WORLD_SIZE": "3"}, Start("crosslight", 2)),
]
REFUSED = [
    ({**TORCHRUN, "LOCAL_WORLD_SIZE": "1"}, "4 processes on 2 machines, and 1 on this one: give the same --nproc-per-node"),
    ({**TORCHRUN, "RANK": "three"}, "RANK is 'three', which is no number"),
    ({**srun(0, 2, 1), "SLURM_NTASKS_PER_NODE": ""}, "2 tasks on 1 node, with no --ntasks-per-node: give srun --nodes=1"),
    ({**srun(0, 2, 1), "SLURM_NNODES": "2"}, "on 2 nodes, with --ntasks-per-node=2: give srun --nodes=2 --ntasks-per-node=1"),
    (without_step(srun(0, 2, 1)), "batch script of a job of 2 tasks"),
    ({"WORLD_SIZE": "2", "RANK": "1"}, "RANK=1, WORLD_SIZE=2 is set, but not by torchrun"),
    ({"OMPI_COMM_WORLD_SIZE": "4"}, "mpirun started 4 processes (OMPI_COMM_WORLD_SIZE), which is not supported: use torchrun"),
    ({"JSM_NAMESPACE_SIZE": "2"}, "jsrun started 2 processes"),
]  # fmt: skip


@pytest.mark.parametrize(("environment", "start"), STARTED)
def test_who_started_it(environment: dict[str, str], start: Start) -> None:
    assert find_start(environment) == start
    assert rank_here(environment) == start.rank


@pytest.mark.parametrize("tasks", [{"SLURM_PROCID": "1"}, {"SLURM_TASK_PID": str(os.getpid())}])
def test_srun_in_a_shell_of_salloc_is_refused_by_each_task(tasks: dict[str, str]) -> None:
    environment = {**srun(0, 2, 1), "SLURM_JOB_NAME": "interactive", **tasks}
    with pytest.raises(InputError, match="SLURM_JOB_NAME=run srun") as refused:
        find_start(environment)
    assert not isinstance(refused.value, AgreedError), "the first task may not know"
    assert rank_here(environment) == int(environment["SLURM_PROCID"])
    assert find_start({**environment, "SLURM_JOB_NAME": "run"}).by == "srun"


@pytest.mark.parametrize(("environment", "says"), REFUSED)
def test_contradictions_are_refused(environment: dict[str, str], says: str) -> None:
    with pytest.raises(AgreedError) as refused:
        find_start(environment)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)
    assert isinstance(rank_here(environment), int)  # one of them says it


@pytest.mark.parametrize(
    ("start", "devices", "nodes", "says"),
    [
        (Start("torchrun", 0, 2), 1, 1, "torchrun started 2 processes, but trainer.devices is 1 and trainer.num_nodes 1: give "
         "--trainer.devices=2 --trainer.num_nodes=1, or torchrun --nnodes=1 --nproc-per-node=1."),
        (Start("torchrun", 0, 4, 2), 4, 1, "give --trainer.devices=2 --trainer.num_nodes=2"),
        (Start("torchrun", 0, 1), 2, 1, "torchrun started 1 process, but trainer.devices is 2"),
        (Start("srun", 0, 1), 4, 1, "is 4 and trainer.num_nodes 1: give --trainer.devices=1 --trainer.num_nodes=1, "
         "or srun --nodes=1 --ntasks-per-node=4. In a job of one task: SLURM_JOB_NAME=interactive crosslight ..., "),
        (Start("srun", 0, 8, 2), 8, 1, "srun started 8 processes on 2 machines"),
        (Start("hand"), 1, 2, "start it on each machine with srun or torchrun"),
    ],
)  # fmt: skip
def test_other_processes_than_the_trainer_has_are_refused(start: Start, devices: int, nodes: int, says: str) -> None:
    with pytest.raises(AgreedError) as refused:
        start.require(devices, nodes)
    assert says in str(refused.value)


def test_the_trainers_own_processes_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    for start, devices, nodes in ((Start("hand"), 4, 1), (Start("crosslight", 1), 2, 1), (Start("torchrun", 0, 4, 2), 2, 2),
                                  (Start("srun", 1, 2), 2, 1), (Start("srun"), 1, 1)):  # fmt: skip
        start.require(devices, nodes)
    monkeypatch.setenv("NODE_RANK", "0")  # of one machine
    Start("hand").require(2, 1)
    monkeypatch.setenv("LOCAL_RANK", "0")
    Start("hand").require(1, 1)
    with pytest.raises(AgreedError, match="LOCAL_RANK is set, but not by torchrun, so nobody would start the 2 processes"):
        Start("hand").require(2, 1)
