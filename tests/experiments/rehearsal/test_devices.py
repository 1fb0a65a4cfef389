"""GPUs by their data sheets."""

from __future__ import annotations

import pytest

from datamodules.errors import InputError
from experiments.rehearsal.changes import Settings
from experiments.rehearsal.devices import device_named, devices, machine_of, misfit, translated


def test_names_of_recipes_and_drivers() -> None:
    for text, name in {
        "A100": "A100", "NVIDIA A100-SXM4-80GB": "A100", "NVIDIA RTX A6000": "A6000", "NVIDIA H200": "H200", "L40S": "L40S",
        "NVIDIA GeForce RTX 4090": "4090",
    }.items():  # fmt: skip
        device = device_named(text)
        assert device is not None
        assert device.name == name
    assert device_named("CPU core") is None
    assert all(device.fp32_tflops < device.half_tflops and device.source for device in devices().values())


def test_machines() -> None:
    assert str(machine_of("8xA100")) == "8xA100"
    assert machine_of("H100").count == 1
    for wrong in ("0xA100", "8xTPU", "8 A100", ""):
        with pytest.raises(InputError, match=r"--on .*such as 8xA100"):
            machine_of(wrong)


def test_a_run_on_a_part_of_a_machine() -> None:
    assert str(machine_of("8xA100", 2)) == "2xA100"
    assert str(machine_of("8xA100", 8)) == "8xA100"
    with pytest.raises(InputError, match="--devices 4, but --on 2xA100 has 2: give at most that, or --on 4xA100"):
        machine_of("2xA100", 4)
    assert Settings(3, devices=2).words != Settings(3, devices=4).words, "another number is rehearsed again"


def test_times_go_by_peak() -> None:
    a100, a6000 = machine_of("A100").device, machine_of("A6000").device
    assert translated(10, a6000, a100, "bf16-mixed") == pytest.approx(10 * 312 / 154.8)
    assert translated(10, a6000, a100, "32-true") == pytest.approx(10 * 19.5 / 38.7)
    assert misfit(machine_of("V100"), "bf16-mixed") is not None
    assert misfit(machine_of("V100"), "16-mixed") is None
