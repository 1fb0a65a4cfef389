"""results.json: what is written is read again, and nothing else is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from datamodules.errors import InputError
from experiments.runs.provenance import Device, Git, Provenance
from experiments.runs.results import DataDescription, Evaluation, Results, read_results, write_results
from lightning_modules.callbacks.cost_record import Cost
from lightning_modules.checkpoints.run_folder import Fit, best_checkpoint, fit_of

DEVICE = Device("cpu", "AMD EPYC", "32-true", 2, host="vm", threads=1, cores=2)
RESULTS = Results(
    "finished", "run", "mwa", "0123456789ab", "2026-11-21T15:32:55+00:00", attempts=2, seconds=425.0,
    finished="2026-11-21T15:40:00+00:00", argv=("run", "-c", "x.yaml"), scale="miniature", parent="runs/full", seed=3,
    provenance=Provenance(Git("148bf7a", False), {"python": "3.11.7", "timm": None}, DEVICE),
    data={"coco": DataDescription("COCO", "coco", "0862", {"restval": True}, {"test": {"images": 9}}, {"objects": {"pairs": 4}})},
    fit=Fit(140, 14, "val/rsum", 170.5, "checkpoints/best.ckpt"),
    cost=Cost(tunable_parameters=225024, tunable_percent=27.8, memory_kind="saved", epochs=14.0, pairs=8960),
    evaluations=(
        Evaluation("coco", "test", "test", {"rsum": 168.5}, "every image", "per_query/coco-test.npz", {"tokenizer": "simple"}),
        Evaluation("coco", "val", "val", {"rsum": 171.0}),
    ),
)  # fmt: skip


def changed(folder: Path, **entries: Any) -> Path:
    """The file with entries of its top level replaced; ... takes one away."""
    write_results(folder, RESULTS)
    content = {**json.loads((folder / "results.json").read_text()), **entries}
    file = folder / "results.json"
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))
    return file


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    write_results(tmp_path, RESULTS)
    assert read_results(tmp_path) == RESULTS
    assert [test.data for test in RESULTS.tests()] == ["coco"]
    assert RESULTS.tests("flickr30k") == []
    text = (tmp_path / "results.json").read_text()
    assert '\n "status": "finished",\n' in text, "which the batch scripts of Slurm look for"
    assert json.loads(text)["schema"] == "crosslight.results/2"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"sead": 3}, "unknown key 'sead'; there are status, command, name"),
        ({"name": ...}, "'name' is missing"),
        ({"seed": "3"}, "seed is '3'; it must be of type int"),
        ({"status": "done"}, "status is 'done'; it is one of running, finished, failed, oom, interrupted, stopped_early"),
        ({"fit": {"steps": 1}}, "fit: 'epochs' is missing"),
        ({"cost": {"step": 1}}, "cost: unknown key 'step'"),
        ({"evaluations": [{"data": "coco", "split": "test", "stage": "test", "metrics": {"r": None}}]},
         "evaluations[0]: metrics.r is None; it must be of type float"),
    ],
)  # fmt: skip
def test_a_wrong_key_is_named_with_its_file(entries: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = changed(tmp_path, **entries)
    with pytest.raises(InputError) as refused:
        read_results(tmp_path)
    assert str(refused.value).startswith(f"{file}: {message}")
    assert "\n" not in str(refused.value)


def test_earlier_versions_are_refused_by_every_reader(tmp_path: Path) -> None:
    changed(tmp_path, schema="crosslight.results/1")
    for read in (read_results, fit_of, best_checkpoint):
        with pytest.raises(InputError, match=r"schema 'crosslight\.results/1'; this version reads .*written with other names"):
            read(tmp_path)
    with pytest.raises(InputError, match="is not a run folder"):
        read_results(tmp_path / "none")


def test_the_best_checkpoint_is_the_one_that_is_named(tmp_path: Path) -> None:
    assert fit_of(tmp_path) is None
    assert best_checkpoint(tmp_path) is None
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.ckpt").touch()
    assert best_checkpoint(tmp_path) == tmp_path / "checkpoints" / "best.ckpt"
    (tmp_path / "checkpoints" / "chosen.ckpt").touch()
    changed(tmp_path, fit={"steps": 1, "epochs": 1, "best_checkpoint": "checkpoints/chosen.ckpt"})
    assert best_checkpoint(tmp_path) == tmp_path / "checkpoints" / "chosen.ckpt"
