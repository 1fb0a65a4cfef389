"""GPUs by their data sheets (devices.yaml), and what a time on one of them would be on another."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from datamodules.errors import InputError
from datamodules.files.yaml_file import read_yaml
from datamodules.formats.typed import read_typed


@dataclass(frozen=True)
class Device:
    """A GPU.

    Args:
        name: As --on takes it.
        half_tflops: Peak of matrix products in bf16 or fp16 with sums in fp32, dense.
        fp32_tflops: In fp32, without TF32.
        memory_gb: Of one, 10^9 bytes.
        source: Of these numbers.
        bf16: It computes in bf16.
    """

    name: str
    half_tflops: float
    fp32_tflops: float
    memory_gb: float
    source: str
    bf16: bool = True

    def peak(self, precision: str) -> float:
        """TFLOP/s of a run at a Trainer's precision."""
        return self.half_tflops if "16" in precision else self.fp32_tflops


@dataclass(frozen=True)
class Machine:
    """So many GPUs of one kind, as `8xA100` names them."""

    count: int
    device: Device

    def __str__(self) -> str:
        return f"{self.count}x{self.device.name}"


def devices() -> dict[str, Device]:
    """All that are known, by name.

    Raises:
        InputError: devices.yaml is wrong.
    """
    file = Path(__file__).with_name("devices.yaml")
    content = read_yaml(file)["devices"]
    found: dict[str, Device] = {
        name: read_typed(Device, {"name": name, **each}, f"{file}: {name}") for name, each in content.items()
    }
    return found


def device_named(text: str) -> Device | None:
    """The GPU that a recipe (A100), or a driver (NVIDIA A100-SXM4-80GB) means; None where it is none of ours."""
    words = re.split(r"[^0-9A-Z]+", text.upper())
    return next((device for name, device in devices().items() if name in words), None)


def device_here() -> Device:
    """The first GPU of this machine: its memory as the driver says, its peaks where devices.yaml has it, else 0."""
    import torch

    found = torch.cuda.get_device_properties(0)
    known = device_named(found.name) or Device(found.name, 0.0, 0.0, 0.0, "this machine's driver", bf16=found.major >= 8)
    return replace(known, memory_gb=round(found.total_memory / 1e9, 1))


def machine_of(text: str, used: int | None = None) -> Machine:
    """What --on names: 8xA100, or A100 for one.

    Args:
        text: The words.
        used: GPUs that a run has of it; None = all.

    Raises:
        InputError: It is none, or has fewer.
    """
    match = re.fullmatch(r"(?:([1-9]\d*)x)?([0-9A-Za-z]+)", text)
    device = device_named(match[2]) if match else None
    if match is None or device is None:
        raise InputError(
            f"--on {text}: give a number and a GPU, such as 8xA100. There are {', '.join(devices())} (devices.yaml)."
        )
    count = int(match[1] or 1)
    if used is not None and used > count:
        raise InputError(f"--devices {used}, but --on {text} has {count}: give at most that, or --on {used}x{device.name}.")
    return Machine(used or count, device)


def translated(seconds: float, there: Device, here: Device, precision: str) -> float:
    """What takes so long on `here` by peak FLOPs on `there`: both are taken to reach the same share of their peak."""
    return seconds * here.peak(precision) / there.peak(precision)


def misfit(machine: Machine, precision: str) -> str | None:
    """Why a run at this precision does not belong on a machine; None: it may run there."""
    if precision.startswith("bf16") and not machine.device.bf16:
        return (
            f"{machine.device.name} has no bf16 (torch emulates it slowly): set --trainer.precision=16-mixed or take another GPU"
        )
    return None
