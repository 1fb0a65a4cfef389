"""The benchmark of starts: what it runs does run, and its rows say what they promise. No times are asserted."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from benchmark_scripts import benchmark

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return benchmark("startup")


def test_ratios_are_to_torch_and_the_first_round_does_not_count(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(script.IMPORTS, "torch", "import json")  # which takes less of the tests' time
    out = tmp_path / "startup.json"
    result = script.main(["--rounds", "1", "--only", "help", "data_check", "--out", str(out)])
    rows = {row["name"]: row for row in result["rows"]}
    assert list(rows) == ["torch", "help", "data_check"]
    assert rows["torch"]["min_ratio"] == rows["torch"]["median_ratio"] == 1
    assert all(len(row["cpu_s"]) == 1 for row in rows.values())
    assert rows["help"]["min_cpu_s"] > 0
    assert json.loads(out.read_text())["rows"] == result["rows"]


def test_a_command_that_fails_is_no_measurement(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="ended with 2"):
        script.processor_seconds([sys.executable, "-m", "experiments.cli", "nothing"], tmp_path)


def test_packaged_files_are_there(script: ModuleType) -> None:
    files = [each for options in script.RUNS.values() for each in options if each.endswith(".yaml")]
    assert files
    assert all((BENCHMARKS.parent / each).is_file() for each in files)
