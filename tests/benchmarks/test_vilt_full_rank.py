"""ViLT's full-rank benchmark at toy sizes: its ways score alike, and its FLOPs are torch's. No times are asserted."""

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
def script() -> Iterator[ModuleType]:
    threads = torch.get_num_threads()
    try:
        yield benchmark("vilt_full_rank")
    finally:
        torch.set_num_threads(threads)


def test_flops_are_those_that_torch_counts(script: ModuleType) -> None:
    world = script.World(script.SIZES["tiny"], 10, 8, "cpu", 400, 1200, 4)
    unit = world.unit(1, 3)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        world.encoder(world.ready(*unit))
    counted = world.count(*unit)
    heads = counted["pairs"] * (2 * 32 * 32 + 2 * 32)  # pooler and rank head, left out of the formula
    assert counter.get_total_flops() == counted["flops"] + heads


def test_every_way_scores_its_pairs_as_the_library(script: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    arguments = "--size tiny --images 10 --texts 8 --rounds 2 --unit 1200 --batch 4 --threads 1"
    result = script.main([*arguments.split(), "--out", str(out)])
    assert result["run"]["largest_difference_to_the_library"] < 1e-5
    assert [row["way"] for row in result["run"]["rows"]] == ["ours", "encoder", "library"]
    ways = [(step["way"], step["round"]) for step in result["run"]["steps"]]
    assert len(ways) == 6
    assert json.loads(out.read_text())["run"]["rows"] == result["run"]["rows"]
