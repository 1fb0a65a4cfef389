"""The benchmark of data sets of full size: its worker starts on each kind of data, and its rows say what they promise. No times
are asserted."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from benchmark_scripts import benchmark

from datamodules.standin.flickr30k import write_flickr30k
from datamodules.standin.nocaps import write_nocaps


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return benchmark("data_at_full_size")


def part(cpu_s: float, pss: int) -> dict[str, float]:
    return {"cpu_s": cpu_s, "pss": pss}


def measured(imports: float, first_batch: float, words: float, above: int) -> dict[str, Any]:
    return {"imports": part(imports, 400), "first_batch": part(first_batch, 400 + above), "unknown_words": part(words, 0)}


def test_a_row_has_medians_ratios_and_whether_the_goals_are_reached(script: ModuleType) -> None:
    before = [measured(4, 20, 6, 10**9), measured(4, 22, 4, 2 * 10**9), measured(4, 90, 4, 3 * 10**9)]
    again = [measured(4, 1, 2, 10**8), measured(4, 2, 3, 3 * 10**8), measured(4, 1, 1, 2 * 10**8)]
    row = script.summary("coco", {"before": before, "again": again})
    assert row["before"]["cpu_s"] == 30
    assert row["again"] == {
        "cpu_s": 7, "first_batch_cpu_s": 5, "cpu_s_above_imports": 3, "pss": 400 + 2 * 10**8, "pss_above_imports": 2 * 10**8,
    }  # fmt: skip
    assert (row["ratio"], row["ratio_above_imports"]) == (7 / 30, 3 / 26)
    assert (row["seconds_reached"], row["memory_reached"]) == (True, True)
    assert not script.summary("coco", {"before": before, "again": before})["seconds_reached"]
    assert not script.summary("coco", {"before": before, "again": before})["memory_reached"]


def test_what_this_machine_has_no_memory_for_is_left_out(script: ModuleType, tmp_path: Path) -> None:
    code = script.Code(tmp_path, tmp_path)
    found = script.together(code, "coco", tmp_path, tmp_path, (8, 8), 1, needed=10.0**15)
    assert found["left_out"].startswith("about 1000000 GB are needed")


def test_a_worker_starts_on_a_data_set_and_says_what_it_took(script: ModuleType, tmp_path: Path) -> None:
    write_flickr30k(tmp_path / "flickr30k", 0.002)
    write_nocaps(tmp_path / "nocaps", 0.01)
    script.write_tokenizer(tmp_path / "tokenizer")
    start = importlib.import_module("benchmarks.data_start").Start()
    for name in ("flickr30k", "nocaps"):
        found = start.first_batch(name, str(tmp_path), str(tmp_path / "tokenizer"))
        assert found["cpu_s"] > 0
        assert found["pss"] > 10**7
        assert start.unknown_words(name)["pss"] > 10**7
        assert start.more(2)["process"] == os.getpid()
        assert len(start.fingerprint()) == 16


def test_each_name_has_a_data_module(script: ModuleType, tmp_path: Path) -> None:
    module_of = importlib.import_module("benchmarks.data_start").module_of
    for name in script.NAMES:
        module, inputs = module_of(name, tmp_path, "tokenizer", 0, 1)
        assert module.root.parent == tmp_path
        assert inputs.text.tokenizer == "tokenizer"
