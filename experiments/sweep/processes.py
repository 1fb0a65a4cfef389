"""Processes of launches: programs, or forks of one process that has imported everything."""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import resource_tracker
from multiprocessing.forkserver import ensure_running
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from datamodules.errors import InputError
from experiments.sweep.launches import Launch

# What a run may import before it reads its data. A class that is missing here costs its launches time, nothing else.
PRELOAD = [
    "experiments.sweep.runner",
    "experiments.training.lightning_cli",
    "experiments.training.command",
    "lightning_modules.retrieval",
    "lightning_modules.ranking",
    "lightning_modules.captioning",
    "lightning_modules.networks.beit3",
    "lightning_modules.networks.dual_encoder",
    "datamodules.coco",
    "datamodules.flickr30k_entities",
    "datamodules.nocaps",
    "datamodules.visual_genome",
    "torchvision.transforms.v2",
    "timm.models",
    "transformers.modeling_utils",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.bert.modeling_bert",
    "transformers.models.gpt2.modeling_gpt2",
]
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
FORKS = multiprocessing.get_context("forkserver")


def visible_gpus() -> list[str]:
    """Names of the devices present, for CUDA_VISIBLE_DEVICES."""
    import torch

    count = torch.cuda.device_count()
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",")[:count] if given else [str(index) for index in range(count)]


def environment_of(launch: Launch, processes: int) -> dict[str, str]:
    """All variables of a launch's process on this machine.

    Args:
        launch: It.
        processes: That share the machine's cores.
    """
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, len(os.sched_getaffinity(0)) // processes))
    environment = {**os.environ, "OMP_NUM_THREADS": threads, **launch.whole_environment}
    environment.pop("WANDB_SERVICE", None)  # of a W&B run in this very process: a notebook's, say
    environment.pop("SLURM_NTASKS", None)  # in a batch script: a run that is started here is none of srun's tasks
    return environment


def oom_kills() -> int:
    """Processes that this machine's kernel has killed for memory so far."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except FileNotFoundError:  # not Linux
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def start_forked(launch: Launch, environment: Mapping[str, str], log: Path, lock: Any) -> BaseProcess:
    """A process of a launch `is_forked`. `lock` is a `DupFd`."""
    process = FORKS.Process(target=_forked, args=(launch.command, launch.arguments, environment, log, lock))
    with _out_of_reach():
        process.start()
    return process


def import_everything() -> None:
    """Starts the process that launches are forked from, which then imports for seconds; `start_forked` would start it, too."""
    with _out_of_reach():
        ensure_running()


@contextlib.contextmanager
def _out_of_reach() -> Iterator[None]:
    """The server that forks may be started in here, and inherits what is blocked: a signal to the whole group of a runner (a
    hang-up, `timeout`) leaves it alone, so that the runner can see its launches end."""
    FORKS.set_forkserver_preload(PRELOAD)
    with _about_what_was_killed():
        resource_tracker.ensure_running()  # the server starts it where it must, and what it blocks meanwhile is unblocked after
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _about_what_was_killed() -> Iterator[None]:
    """The tracker removes the semaphores of whoever was killed, which is its task, and would warn of each time that it does."""
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [before, "ignore:resource_tracker:UserWarning"]))
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before


def _forked(command: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path, lock: Any) -> None:
    """A launch in its own process: what a shell does for a program, then crosslight's command."""
    os.setsid()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    lock.detach()  # held as long as this process lives, whatever becomes of the runner
    os.environ.clear()
    os.environ.update(environment)
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    import torch

    from experiments.training.command import run_alone

    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))  # its variable was read long ago
    sys.argv = [sys.argv[0], command, *arguments]
    try:
        sys.exit(run_alone(command, arguments))
    except InputError as error:
        print(f"crosslight: error: {error}", file=sys.stderr)
        sys.exit(2)
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves them out; W&B completes its files in one


def kill_process(process: BaseProcess | subprocess.Popen[bytes]) -> None:
    """SIGKILL to a launch's process group: itself, its ranks, its workers."""
    if process.pid is None:
        return
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        with contextlib.suppress(ProcessLookupError):
            if isinstance(process, BaseProcess) and process.exitcode is None:  # it has not made its group yet
                os.kill(process.pid, signal.SIGKILL)
