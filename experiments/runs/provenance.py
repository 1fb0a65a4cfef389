"""Where a result comes from: git revision, versions, device. Everything here is read at run time, nothing is configured."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from datamodules.files.stand_in import mark_of

CACHES = ("CROSSLIGHT_CACHE", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")  # where names are looked up
PACKAGES = (
    "crosslight", "torch", "torchvision", "lightning", "transformers", "timm", "torchmetrics", "omegaconf", "jsonargparse",
    "wandb", "numpy", "pillow",
)  # fmt: skip
REHEARSAL_VARIABLE = "CROSSLIGHT_REHEARSAL"  # set in every process of a rehearsal


@dataclass(frozen=True)
class Git:
    """Revision and dirty flag of a checkout; both None outside of one (an installed wheel)."""

    revision: str | None = None
    dirty: bool | None = None


@dataclass(frozen=True)
class Device:
    """What computed, with what decides its speed.

    Args:
        kind: "cpu" or "cuda".
        name: Of the processor or GPU.
        precision: As the trainer calls it.
        world_size: Processes.
        host: Of this process.
        count: GPUs of the host, 1 of a processor.
        threads: Of torch, in this process.
        cores: Of the host.
    """

    kind: str
    name: str
    precision: str
    world_size: int
    host: str
    count: int = 1
    threads: int | None = None
    cores: int | None = None


@dataclass(frozen=True)
class Provenance:
    """Where a result comes from.

    Args:
        git: Of the checkout that holds this code.
        versions: By package; None where it is not installed.
        device: That it was computed on.
        rehearsal: It was made to see that the run works (`crosslight sweep rehearse`): none of its numbers is a result.
        stand_in: Of data or weights that are stand-ins (datamodules/files/stand_in.py), or of what a run on them or a rehearsal
            left: none of its numbers is a result.
    """

    git: Git
    versions: dict[str, str | None]
    device: Device
    rehearsal: bool = False
    stand_in: bool = False


def provenance(kind: str, precision: str, world_size: int, stand_in: bool = False) -> Provenance:
    """Of what this process computes.

    Args:
        kind: Of the device that is used: "cpu" may be said on a machine with a GPU.
        precision: As the trainer calls it.
        world_size: Processes.
        stand_in: See `reads_stand_ins`.
    """
    device = Device(precision=precision, world_size=world_size, **device_state(kind))
    return Provenance(Git(**git_state(Path(__file__).parent)), versions(), device, is_rehearsal(), stand_in)


def is_rehearsal() -> bool:
    """Whether this process is part of a rehearsal."""
    return REHEARSAL_VARIABLE in os.environ


def reads_stand_ins(config: Mapping[str, Any]) -> bool:
    """Whether a run reads stand-ins, or a run that did: a file or folder that its configuration names has their mark, or a cache
    that names are looked up in.

    Args:
        config: Of the run, as config.yaml has it.
    """
    named = [text.partition("#")[0] for text in _texts(config)]
    caches = [os.environ.get(variable, "") for variable in CACHES]
    # most texts are no paths: `exists` of os takes those too that no path could be
    places = [place for text in (*named, *caches) if text and os.path.exists(place := os.path.expanduser(text))]
    return any(mark_of(Path(place)) is not None for place in places)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)


def git_state(folder: Path) -> dict[str, Any]:
    """Revision and dirty flag of the checkout that `folder` is of; both None where there is none (an installed wheel, also one in
    a virtual environment that lies in the checkout of something else)."""

    def git(*arguments: str) -> str | None:
        try:
            answer = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20)
        except (FileNotFoundError, subprocess.TimeoutExpired):
            return None
        return answer.stdout.strip() if answer.returncode == 0 else None

    revision = git("rev-parse", "HEAD") if git("ls-files", "--", ".") else None
    status = git("status", "--porcelain") if revision else None
    return {"revision": revision, "dirty": None if status is None else bool(status)}


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def device_state(kind: str | None = None) -> dict[str, Any]:
    """What computed, with what decides its speed.

    Args:
        kind: Of the device that was used: "cpu" may be said on a machine with a GPU. None: a GPU where there is one.
    """
    import torch

    state: dict[str, Any] = {"host": socket.gethostname(), "threads": torch.get_num_threads(), "cores": os.cpu_count()}
    if kind == "cuda" or (kind is None and torch.cuda.is_available()):
        state |= {"kind": "cuda", "name": torch.cuda.get_device_name(0), "count": torch.cuda.device_count()}
    else:
        state |= {"kind": "cpu", "name": _processor_name(), "count": 1}
    return state


def _processor_name() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
