"""Points of a sweep file as launches, and a sweep file being run."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from sweeps import BAYES, LR, sweep_of

from datamodules.errors import InputError
from experiments.cli.main import run_command
from experiments.sweep.launches import PROGRAM
from experiments.sweep.points import point_launch
from experiments.sweep.runner import Runner
from experiments.sweep.search import grid
from experiments.sweep.sweep_file import Sweep


def test_points_become_launches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CROSSLIGHT_WORLD", raising=False)
    row = tmp_path / "row.yaml"
    row.write_text("name: row")
    common = ["${env}", "crosslight", "run", "-c", "configs/data/world.yaml", "-c", str(row), "${args}"]
    parameters = {LR: {"values": [0.1, 0.2]}, "trainer.devices": {"value": 2}}
    sweep = sweep_of(tmp_path, parameters=parameters, command=common, name="rates")
    one, two = (point_launch(sweep, point, tmp_path, 4) for point in grid(sweep))
    arguments = ("run", "-c", "configs/data/world.yaml", "-c", str(row), f"--{LR}=0.1", "--trainer.devices=2")
    assert one.argv == (*PROGRAM, *arguments, f"--run_dir={one.folder}")
    assert one.folder.name == f"rates-{one.key[:8]}"
    assert one.folder != two.folder
    assert one.environment == {"WANDB_RUN_GROUP": "rates", "CROSSLIGHT_WORLD": str(tmp_path / "worlds" / "target")}
    assert (one.gpus, one.world, one.title) == (2, "target", "lr=0.1 devices=2")
    assert point_launch(sweep, next(grid(sweep)), tmp_path, 0).gpus == 0
    row.write_text("name: another")
    assert point_launch(sweep, next(grid(sweep)), tmp_path, 0).key != one.key  # a changed configuration is a new run
    other = sweep_of(tmp_path, parameters=parameters, command=["${interpreter}", "${program}", "${args}"], program="train.py")
    assert point_launch(other, next(grid(other)), tmp_path, 0).argv[1] == "train.py"
    for entry in (["${interpreter}", "-m", "experiments.cli", "fit"], ["${interpreter}", "${program}", "fit"]):
        sweep = sweep_of(tmp_path, parameters=parameters, command=entry, program="experiments/cli/main.py")
        assert point_launch(sweep, {}, tmp_path, 0).argv[:4] == (*PROGRAM, "fit")
    with pytest.raises(InputError, match="leave --run_dir out"):
        point_launch(sweep_of(tmp_path, parameters=parameters, command=["crosslight", "run", "--run_dir=x"]), {}, tmp_path, 0)


# A run that validates three times, `x` each time, or for ever where x is below 0; its metric is not there where x is 5.
PROGRAM_OF_POINTS = """
import json, os, signal, sys, time
options = dict(part[2:].split("=", 1) for part in sys.argv[1:])
folder, x = options["run_dir"], float(options["x"])
os.makedirs(folder)
def note(status):
    with open(folder + "/results.json", "w") as file:
        json.dump({"schema": "crosslight.results/2", "status": status, "command": "run", "name": "n", "config_hash": "c",
                   "started": "2026-11-21T15:32:55+00:00"}, file)
def stopped(*_):
    note("interrupted")
    sys.exit(130)
signal.signal(signal.SIGTERM, stopped)
with open(folder + "/metrics.csv", "w") as file:
    file.write("step,val/rsum" + chr(10) + "".join("%d,%g" % (step, x) + chr(10) for step in range(3) if x != 5))
while x < 0:
    time.sleep(0.01)
note("finished")
"""


def test_a_search_learns_from_its_points_stops_the_hopeless_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[list[float], list[float | None]]] = []

    class Engine:
        def __init__(self, sweep: Sweep, seed: int) -> None:
            self.seed = seed

        def suggest(self, points: list[dict[str, float]], values: list[float | None]) -> dict[str, float]:
            asked.append(([point["x"] for point in points], values))
            return {"x": [3.0, 5.0, -1.0, 2.0][len(points)]}

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr("experiments.sweep.points.Bayes", Engine)
    monkeypatch.setattr("experiments.sweep.points.Runner", partial(Runner, every=0.02))
    monkeypatch.setattr("experiments.sweep.points.visible_gpus", lambda: ["0"])
    monkeypatch.delenv("CROSSLIGHT_WORLD", raising=False)
    worlds: list[Path] = []
    monkeypatch.setattr("experiments.sweep.runner.write_miniature_world", lambda folder, style: worlds.append(folder))
    (tmp_path / "program.py").write_text(PROGRAM_OF_POINTS)
    content = {
        **BAYES, "run_cap": 3, "early_terminate": {"type": "hyperband", "min_iter": 2}, "program": str(tmp_path / "program.py"),
        "command": ["${interpreter}", "-S", "${program}", "--data=configs/data/world.yaml", "${args}"],
    }  # fmt: skip
    sweep = sweep_of(tmp_path, **content)
    assert run_command("sweep", ["run", str(sweep.file), "--out", str(tmp_path / "out")]) == 0
    assert asked == [([], []), ([3.0], [3.0]), ([3.0, 5.0], [3.0, 3.0])]  # no metric: the worst of all
    assert "2 finished, 1 stopped_early" in capsys.readouterr().err
    assert run_command("sweep", ["run", str(sweep.file), "--out", str(tmp_path / "out"), "--count", "4"]) == 0
    assert set(worlds) == {tmp_path / "out" / "worlds" / "target"}
    assert asked[3:] == [([3.0, 5.0, -1.0], [3.0, -1.0, -1.0])]
    assert "3 finished, 1 stopped_early" in capsys.readouterr().err
    assert run_command("sweep", ["status", str(tmp_path / "out")]) == 0
    assert "3 finished, 1 stopped_early" in capsys.readouterr().out
