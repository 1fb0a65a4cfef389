"""The benchmarks run on their tiniest sizes, and their FLOP count is the one done by hand. No times are asserted."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def script(name: str) -> ModuleType:
    """A benchmark as a module: a process of its own would import torch once more, 10 seconds each time."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def step() -> ModuleType:
    return script("training_step")


@pytest.fixture(scope="module")
def recall() -> ModuleType:
    return script("retrieval_recall")


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("mode", ["full", "mwa", "ke", "ae", "head"])
def test_counted_flops_are_those_of_the_formula(step: ModuleType, mode: str, chunk: int | None) -> None:
    # towers that differ in everything, so that no two terms can be exchanged
    shape = replace(step.SIZES["tiny"], image=step.Transformer(3, 32), text=step.Transformer(2, 48), image_size=42)
    counted, operations = step.Variant(mode, shape, chunk=chunk).count_flops()
    assert counted == step.closed_form(shape, mode, chunk)
    assert counted == sum(operations.values())


def test_formula_follows_attention_in_separate_products(step: ModuleType) -> None:
    shape = replace(step.SIZES["tiny"], attention="eager", dropout=0.0)
    for mode in ("full", "mwa"):
        assert step.Variant(mode, shape).count_flops()[0] == step.closed_form(shape, mode)


def test_without_dropout_full_tuning_uses_the_fused_kernel_and_the_formula_follows(step: ModuleType) -> None:
    shape = replace(step.SIZES["tiny"], dropout=0.0)
    counted, operations = step.Variant("full", shape).count_flops()
    assert counted == step.closed_form(shape, "full")
    assert not any("bmm" in name for name in operations)
    assert counted > step.closed_form(step.SIZES["tiny"], "full")  # the fused backward recomputes its scores


def test_formula_with_the_numbers_written_out(step: ModuleType) -> None:
    """KE only, two towers of 12 and 6 blocks of 384, against the rule of facts and docs/speed.md: 2/3 and a little."""
    shape = step.SIZES["small"]
    linear, attention, ke = 37 * 24 * 384**2, 4 * 37 * 37 * 384, 37 * 4 * 384 * 64
    stem = 36 * 2 * 3 * 14 * 14 * 384
    forward, backward = step.tower_flops(shape.image, 37, "ke", stem)
    assert forward == stem + 12 * (linear + attention + ke)
    assert backward == 11 * (linear + 2.5 * attention) + 12 * 2 * ke - ke / 2
    assert step.tower_flops(shape.image, 37, "head", stem) == (stem + 12 * (linear + attention), 0)
    ratio = {mode: step.closed_form(shape, mode) / step.closed_form(shape, "full") for mode in step.LABELS}
    assert ratio["head"] == pytest.approx(1 / 3, abs=0.01)
    assert 0.64 < ratio["ke"] < ratio["ae"] < ratio["mwa"] < 0.74


def test_training_step_measures_every_mode_and_writes_all_rounds(
    step: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "step.json"
    result = step.main(["--size", "tiny", "--rounds", "2", "--out", str(out)])
    rows = {row["mode"]: row for row in result["rows"]}
    assert list(rows) == ["full", "mwa", "ke", "ae", "head"]
    assert [(s["round"], s["row"]) for s in result["steps"]] == [(number, row) for number in range(2) for row in range(5)]
    assert all(s["wall_s"] > 0 and s["cpu_s"] > 0 for s in result["steps"])
    for row in rows.values():
        memory = row["memory_bytes"]
        assert row["flops"] == row["flops_formula"]
        assert memory["gradients"] == 4 * row["tunable_parameters"]
        assert memory["optimizer"] >= 2 * memory["gradients"]
        assert memory["all"] == memory["activations"] + memory["gradients"] + memory["optimizer"]
    assert rows["full"]["memory_ratio"] == 1 > rows["mwa"]["memory_ratio"] > rows["head"]["memory_ratio"]
    assert rows["full"]["cpu_ratio"] == rows["full"]["wall_ratio"] == {"median": 1, "low": 1, "high": 1}
    assert rows["mwa"]["tunable_parameters"] > rows["ke"]["tunable_parameters"] > rows["head"]["tunable_parameters"]
    stored: dict[str, Any] = json.loads(out.read_text())
    assert {"git", "versions", "device", "threads", "environment", "load_average_at_start", "shape"} <= stored.keys()
    assert stored["steps"] == result["steps"]
    printed = capsys.readouterr().out
    assert all(printed.count(f"| {label} |") == 2 for label in step.LABELS.values())  # a table of times, one of memory


def test_gradient_cache_costs_a_forward_and_saves_activations(step: ModuleType) -> None:
    arguments = "--size tiny --batch 16 --gradient-cache --chunk 4 --modes full --rounds 1 --precision bf16 --threads 1"
    plain, cached = step.main(arguments.split())["rows"]
    assert cached["flops"] == cached["flops_formula"]
    assert 1.3 < cached["flops_ratio"] < 1.4
    assert cached["memory_bytes"]["activations"] < 0.5 * plain["memory_bytes"]["activations"]
    assert cached["memory_bytes"]["gradients"] == plain["memory_bytes"]["gradients"]


def test_retrieval_recall_runs_and_its_ways_agree(
    recall: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_this_process(way: str, images: int, options: Any, repeat: int) -> dict[str, Any]:
        recall.child(way, images, options.captions, options.width, options.threads, repeat)
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    monkeypatch.setattr(recall, "measure", in_this_process)
    out = tmp_path / "recall.json"
    arguments = "--images 12 --captions 2 --width 8 --threads 1 --repeat 1"
    monkeypatch.setattr(sys, "argv", ["retrieval_recall.py", *arguments.split(), "--out", str(out)])
    recall.main()
    measurements = json.loads(out.read_text())["measurements"]
    naive = next(m["recalls"] for m in measurements if m["way"] == "naive")
    assert {m["way"] for m in measurements} == {"ours", "metric", "naive", "torchmetrics"}
    for m in measurements:
        assert {name: m["recalls"][name] for name in naive} == pytest.approx(naive)
        assert 0 < m["recalls"]["i2t_r1"] < 100
