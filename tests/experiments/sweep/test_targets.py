"""Planned runs as launches."""

from __future__ import annotations

from pathlib import Path

from experiments.papers.plan import PlannedRun
from experiments.papers.schema import Cost, Recipe
from experiments.sweep.launches import PROGRAM
from experiments.sweep.targets import launches_of


def test_launches_of_planned_runs(tmp_path: Path) -> None:
    first = PlannedRun("k1" * 6, ("mwa/pretrain",), "miniature", 2, Recipe(["c.yaml"], command="fit", world="source"), (), {})
    recipe = Recipe(["d.yaml"], start="pretrain", cost=Cost(3, devices=4, device="A100"))
    second = PlannedRun("k2" * 6, ("mwa/x", "mwa/y"), "full", 2, recipe, (first.key,), {"pretrain": first.key})
    one, two = launches_of([first, second], tmp_path, {second.key: "mwa/table1"})
    assert one.folder == tmp_path / "mwa-pretrain-s2-k1k1k1k1"
    assert one.argv[:5] == (*PROGRAM, "fit", "-c")
    assert one.environment == {"CROSSLIGHT_WORLD": str(tmp_path / "worlds" / "source")}
    assert (one.gpus, one.world, two.gpus, two.after) == (0, "source", 4, (first.key,))
    assert f"--model.init_args.init_from={one.folder}" in two.argv
    assert two.environment == {"WANDB_RUN_GROUP": "mwa/table1"}
