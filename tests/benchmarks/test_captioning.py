"""The captioning benchmark at toy sizes: its predictions against torch's counters, equal outputs of its rows; no times."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from benchmark_scripts import benchmark
from torch.utils.flop_counter import FlopCounterMode

COMMON = ["--size", "tiny", "--images", "2", "--tokens", "6", "--new-tokens", "4", "--beams", "3", "--rounds", "2"]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return benchmark("captioning")


@pytest.fixture(scope="module")
def work() -> ModuleType:
    return importlib.import_module("benchmarks.captioning_work")


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("dropped", "count"), [(0, 1), (2, 3)])
def test_a_step_costs_what_the_formulas_say(script: ModuleType, work: ModuleType, dropped: int, count: int) -> None:
    size, batch = work.SIZES["tiny"], work.Batch(2, count, 6)
    network, adapter = script.captioner(size, dropped)
    features = script.visual_tokens(size, 2, "cpu")
    step = script.Step(network, adapter, lambda: features, *script.captions(size, batch, "cpu"))
    assert step.memory() == {"saved": work.saved_bytes(size, batch, dropped)}
    with FlopCounterMode(display=False) as counter:
        step.loss().backward()
    assert counter.get_total_flops() == sum(each.flops for each in work.training(size, batch, dropped))


def test_a_step_with_the_tower_costs_what_the_formulas_say(script: ModuleType, work: ModuleType) -> None:
    size, batch = work.SIZES["tiny"], work.Batch(2, 3, 6)
    network, adapter = script.captioner(size)
    images = script.pixels(size, 6, "cpu")
    texts, _ = script.captions(size, batch, "cpu")
    step = script.Step(network, adapter, lambda: network.encode_images(images), texts, torch.arange(6))
    with FlopCounterMode(display=False) as counter:
        step.loss().backward()
    assert counter.get_total_flops() == sum(each.flops for each in work.training(size, batch, 0, 6, 6))


@pytest.mark.parametrize("way", ["plain", "all", "naive"])
def test_a_generation_costs_what_the_formulas_say(script: ModuleType, work: ModuleType, way: str) -> None:
    size = work.SIZES["tiny"]
    network, _ = script.captioner(size)
    features = None if way == "plain" else script.visual_tokens(size, 2, "cpu")
    search = script.Generate(network, features, 2, 3, 4, naive=way == "naive")
    with FlopCounterMode(display=False) as counter:
        search.ids()
    once = work.generation(size, 2, 3, 4, 0 if way == "plain" else 4, [2])
    naive = work.generation(size, 2, 3, 4, 4, [2 * 3] * 4)
    # the search computes keys and values once before the naive way takes over
    before = sum(each.flops for each in once if each.part == "keys, values")
    expected = sum(each.flops for each in naive) + before if way == "naive" else sum(each.flops for each in once)
    assert counter.get_total_flops() == expected


def test_dropped(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "dropped.json"
    result = script.main(["dropped", *COMMON, "--captions", "1", "2", "--out", str(out)])
    names = [f"{what}, {layers}" for what in ("train, 1 an image", "train, 2 an image", "generate") for layers in ("all", "half")]
    assert [row["name"] for row in result["rows"]] == names
    assert [(step["round"], step["row"]) for step in result["steps"]] == [(number, name) for number in range(2) for name in names]
    for row in result["rows"]:
        assert row["ratio"]["low"] <= row["ratio"]["median"] <= row["ratio"]["high"]
        half = row["name"].endswith("half")
        assert (row["ratio"]["median"] == 1) or half
        assert all((row["predicted"][key] < 1) == half for key in ("flops", "moved_bytes"))
        if row["name"].startswith("train"):
            assert row["saved_ratio"] == row["saved_predicted"]
            assert list(row["parts_s"]) == ["see_s", "forward_s", "backward_s", "optimizer_s"]
    assert [goal["goal"] for goal in result["goals"]] == ["within 3"] * 5
    stored = json.loads(out.read_text())
    keys = {"benchmark", "date", "sizes", "measure", "precision", "threads", "git", "versions", "device", "environment", "goals"}
    assert keys <= stored.keys()
    assert stored["steps"] == result["steps"]
    assert "saved bytes" in capsys.readouterr().out


def test_grouped_and_cached_steps_are_equal(script: ModuleType) -> None:
    result = script.main(["grouped", *COMMON, "--captions", "5"])
    assert [row["name"] for row in result["rows"]] == ["5 an image, encoded for each", "5 an image, encoded once"]
    assert result["checks"][0]["loss_difference"] < 1e-6
    assert result["checks"][0]["gradient_difference"] < 1e-5
    tower = [row["work"]["parts"]["tower, forward"]["flops"] for row in result["rows"]]
    assert tower[0] == 5 * tower[1]
    assert [goal["goal"] for goal in result["goals"]] == ["at least 2"]
    result = script.main(["cached", *COMMON, "--captions", "1"])
    assert [row["name"] for row in result["rows"]] == ["1 an image, on the fly", "1 an image, cached"]
    exact, rounded = result["checks"]
    assert (exact["dtype"], exact["loss_difference"], exact["gradient_difference"]) == ("float32", 0, 0)
    assert (rounded["dtype"], rounded["loss_difference"] < 1e-4) == ("float16", True)
    assert ["tower, forward" in row["work"]["parts"] for row in result["rows"]] == [True, False]


def test_steps_that_differ_are_not_compared(script: ModuleType, work: ModuleType) -> None:
    size, batch = work.SIZES["tiny"], work.Batch(2, 1, 6)
    network, adapter = script.captioner(size)
    texts, row_B = script.captions(size, batch, "cpu")
    features = [script.visual_tokens(size, 2, "cpu"), script.VisualFeatures(torch.zeros(2, size.visual, size.tower_width))]
    steps = [script.Step(network, adapter, lambda own=own: own, texts, row_B) for own in features]
    with pytest.raises(SystemExit, match="do not compute the same"):
        script.equal_steps(*steps, 1e-4)


def test_beams(script: ModuleType, work: ModuleType) -> None:
    result = script.main(["beams", *COMMON])
    names = ["plain language model", "all layers", "upper half", "keys and values for every beam and step"]
    assert [row["name"] for row in result["rows"]] == names
    assert result["checks"] == [{"equal_ids": True}]
    assert [goal["goal"] for goal in result["goals"]] == ["at least 4.5", "at most 1.15"]
    flops = [row["work"]["flops"] for row in result["rows"]]
    assert flops[0] < flops[2] < flops[1] < flops[3]


def test_the_naive_way_projects_for_every_beam_and_step(script: ModuleType, work: ModuleType) -> None:
    size = work.SIZES["tiny"]
    network, _ = script.captioner(size)
    features = script.visual_tokens(size, 2, "cpu")
    projected: list[int] = []
    module = network.i_tuning.modules_by_layer()[0]
    module.k.register_forward_hook(lambda _, args, __: projected.append(len(args[0])))
    naive = script.Generate(network, features, 2, 3, 4, naive=True).ids()
    assert projected == [2] + [6] * 4
    projected.clear()
    assert script.Generate(network, features, 2, 3, 4).ids() == naive  # and nothing of the naive way is left
    assert projected == [2]
    assert script.Generate(network, None, 2, 3, 4).ids() != naive
