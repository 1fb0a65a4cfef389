"""What all benchmarks share: order of the rounds, ratios, options, the JSON, the worker protocol."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
try:
    from benchmarks import harness, workers
finally:
    sys.path.pop(0)


def turns(calls: list[str], seconds: list[float]) -> dict[str, harness.Turn]:
    """Two turns that note when they run, and take what is next in `seconds`."""
    left = iter(seconds)

    def turn(name: str) -> harness.Turn:
        def call() -> dict[str, float]:
            calls.append(name)
            taken = next(left)
            return {"cpu_s": taken, "wall_s": 2 * taken}

        return call

    return {name: turn(name) for name in "ab"}


def test_turns_interleave_and_ratios_are_of_the_same_round(capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[str] = []
    steps = harness.interleave(turns(calls, [9, 9] * 2 + [1.0, 2.0, 10.0, 5.0, 4.0, 4.0]), rounds=3)
    assert calls == ["a", "b"] * 5
    found = harness.summary(steps, "b", "a")
    assert found["cpu_s"] == 4
    assert found["wall_s"] == 8
    assert found["cpu_ratio"] == found["wall_ratio"] == {"median": 1.0, "low": 0.5, "high": 2.0}
    assert capsys.readouterr().err.splitlines()[0] == "round 1 of 3: CPU ms 1000, 2000"


def test_a_round_may_have_its_own_work(capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[int] = []

    def of_round(number: int) -> dict[str, harness.Turn]:
        asked.append(number)
        return turns([], [float(number + 1)] * 2)

    steps = harness.interleave(of_round, rounds=2, warm=0, key="way")
    assert asked == [0, 1]
    assert [(s["round"], s["way"], s["cpu_s"]) for s in steps] == [(0, "a", 1), (0, "b", 1), (1, "a", 2), (1, "b", 2)]


def test_ratios_need_as_many_steps_of_either() -> None:
    with pytest.raises(ValueError, match="longer"):
        harness.ratios([1.0], [1.0, 2.0])


def test_timed_has_both_clocks() -> None:
    taken = harness.timed(lambda: sum(range(200_000)))
    assert taken["wall_s"] > 0
    assert taken["cpu_s"] > 0


def test_a_call_within_one_tick_of_the_cpu_clock_has_a_reading_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([(1.0, 7.0), (1.002, 7.0)])
    monkeypatch.setattr(harness, "clock", lambda device: next(readings))
    assert harness.timed(lambda: None) == {"wall_s": pytest.approx(0.002), "cpu_s": pytest.approx(0.002)}


def test_a_script_has_only_the_options_it_asks_for() -> None:
    plain, full = harness.command_line("about"), harness.command_line("about", devices=("cuda", "cpu"), threads=2, rounds=3)
    assert vars(plain.parse_args([])) == {"out": None}
    assert vars(full.parse_args(["--threads", "1"])) == {"device": "cuda", "threads": 1, "rounds": 3, "out": None}
    with pytest.raises(SystemExit):
        full.parse_args(["--round", "1"])  # no abbreviations


def test_heading_says_where_a_result_comes_from_and_the_line_shows_it(tmp_path: Path) -> None:
    result = harness.heading("name", "cpu", {"rounds": 2})
    assert list(result) == ["benchmark", "date", "rounds", "git", "versions", "device", "environment"]
    assert "environment" not in harness.heading("name", "cpu", {}, environment=())
    result["environment"] = {"MALLOC_TOP_PAD_": None}
    line = harness.machine_line(result, [{"load_average": 2.0}, {"load_average": 0.5}])
    assert "load average 0.5 to 2.0, MALLOC_* NOT set; torch " in line
    harness.write(result, tmp_path / "new" / "out.json")
    assert json.loads((tmp_path / "new" / "out.json").read_text()) == result
    harness.write(result, None)


def test_table_and_spread() -> None:
    values = {"median": 1.25, "low": 1.0, "high": 2.0}
    assert harness.spread(values) == "1.250 (1.00-2.00)"
    assert harness.spread(values, ".1%", ".0%", " to ") == "125.0% (100% to 200%)"
    assert harness.table(["a", "b"], [["x", "1"]]) == "| a | b |\n| --- | ---: |\n| x | 1 |"
    assert harness.table(["a", "b"], [], texts=2).splitlines()[1] == "| --- | --- |"


def test_peak_of_a_device() -> None:
    assert harness.peak_flops("NVIDIA H100 80GB HBM3") == harness.peak_flops("NVIDIA H200") == 989e12
    assert harness.peak_flops("NVIDIA H100 PCIe") == 756e12
    assert harness.peak_flops("AMD EPYC") is None


@pytest.mark.parametrize("module", [harness, workers])
def test_only_the_standard_library_is_imported(module: ModuleType) -> None:
    """A worker that reads its own memory must not carry torch, or this project, for it."""
    code = f"import sys, {module.__name__}; print({{'torch', 'numpy', 'experiments', 'lightning_modules'}} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_worker_answers_and_its_end_is_told(tmp_path: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom benchmarks import workers\n"
    (tmp_path / "worker.py").write_text(code + "workers.serve({'add': lambda a, b: print('noise') or a + b})")
    worker = workers.Worker([str(tmp_path / "worker.py")])
    answer: Any = worker.ask("add", a=1, b=2)
    assert answer == 3
    worker.close()
    (tmp_path / "dead.py").write_text("raise SystemExit(3)")
    with pytest.raises(SystemExit, match="status 3"):
        workers.Worker([str(tmp_path / "dead.py")])


def test_packages_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no thing in it"):
        workers.packages_alone("thing==1.0", tmp_path)
    (tmp_path / "thing").mkdir()
    assert workers.packages_alone("thing==1.0", tmp_path) == tmp_path
