"""The full-rank benchmark at toy sizes: what it promises about its three ways. No times are asserted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from benchmark_scripts import benchmark
from torch.utils.flop_counter import FlopCounterMode


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return benchmark("full_rank")


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_lengths_are_those_the_text_names(script: ModuleType) -> None:
    regions, words = script.lengths(20_000, 20_000)
    assert (int(regions.min()), int(regions.max())) == (10, 100)
    assert float(regions.double().mean()) == pytest.approx(36, abs=0.5)
    assert float(words.double().mean()) == pytest.approx(14.3, abs=0.1)
    assert words.min() >= 4


def test_flops_are_those_that_torch_counts(script: ModuleType) -> None:
    world = script.World(script.SIZES["tiny"], 30, 20, "cpu", 100, 300, 2)
    unit = world.unit(1, 3)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        scores = world.encoder(world.ready(*unit))
    counted = world.count(*unit)
    heads = counted["pairs"] * (2 * 32 * 32 + 2 * 32)  # pooler and rank head, left out of the formula
    assert counter.get_total_flops() == counted["flops"] + heads
    assert len(scores) == counted["pairs"]
    assert counted["tokens"] <= 300


def test_measures_every_way_on_its_own_pairs(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "full_rank.json"
    arguments = "--size tiny --images 900 --texts 40 --rounds 3 --unit 500 --tokens 100 300 --threads 1 --stride 50"
    result = script.main([*arguments.split(), "--out", str(out)])
    assert [run["tokens"] for run in result["runs"]] == [100, 300]
    for run in result["runs"]:
        assert run["largest_difference_to_released"] < 1e-5
        assert [(s["round"], s["way"]) for s in run["steps"]] == [
            (number, way) for number in range(3) for way in ("ours", "encoder", "released")
        ]
        assert [s["pairs"] for s in run["steps"] if s["way"] == "released"] == [8, 8, 2]
        ours, encoder = ([s["tokens"] for s in run["steps"] if s["way"] == way] for way in ("ours", "encoder"))
        assert ours == encoder
        assert [row["way"] for row in run["rows"]] == ["ours", "encoder", "released"]
        assert run["rows"][0]["ours_cpu_ratio"] == {"median": 1, "low": 1, "high": 1}
    stored = json.loads(out.read_text())
    assert {"git", "versions", "device", "threads", "environment", "mean_tokens", "date"} <= stored.keys()
    assert stored["runs"][0]["steps"] == result["runs"][0]["steps"]
    assert capsys.readouterr().out.count("| released |") == 2
