"""What a run says of its model for the card of an export: command, data, tests with intervals, and no path of this machine."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from fake_runs import ranks, recalls, write_run

from datamodules.errors import InputError
from datamodules.files.stand_in import mark
from experiments.report.origins import origins_of

ARGV = ["run", "-c", "/site-packages/configs/data/coco.yaml", "-c", "/home/me/mine.yaml", "--run_dir", "/home/me/runs/x",
        "--run_dir=/home/me/y", "--data.init_args.root=/data/coco", "--model.init_args.x={a: ~/weights/big.pt, b: ../w.pt}",
        "--url=https://a.b/c"]  # fmt: skip


def fake(folder: Path, **options: object) -> Path:
    arrays = ranks(np.random.default_rng(0), 0.5)
    write_run(folder, {"coco": arrays}, metrics=recalls(arrays), **options)  # type: ignore[arg-type]
    content = json.loads((folder / "results.json").read_text())
    train = {"kind": "COCO", "name": "coco", "fingerprint": "0f", "splits": {"train": {"images": 9}}}
    content |= {"argv": ARGV, "data": {"coco": train, "table": train, "nocaps": {**train, "splits": {"test": {"images": 9}}}}}
    (folder / "results.json").write_text(json.dumps(content))
    return folder


def test_a_run_tells_where_its_model_comes_from(tmp_path: Path) -> None:
    origins = origins_of(fake(tmp_path / "run", scale="full", name="mine"), "mit")
    assert (origins.name, origins.license, origins.datasets) == ("mine", "mit", ("coco",))
    by_metric = {each.metric: each for each in origins.measured}
    assert by_metric["i2t_medr"].interval is None
    low, high = by_metric["i2t_r1"].interval or (0, 0)
    assert low < by_metric["i2t_r1"].value < high
    assert high - low > 1
    assert by_metric["i2t_r1"].data == "coco"
    assert origins.facts is not None
    assert origins.facts["command"] == (
        "`crosslight run -c configs/data/coco.yaml -c mine.yaml --data.init_args.root=coco "
        "'--model.init_args.x={a: big.pt, b: w.pt}' --url=https://a.b/c`"
    )
    assert origins.facts["data coco"] == "train 9 images (fingerprint 0f)"


def test_rendered_scenes_are_not_said_to_be_coco(tmp_path: Path) -> None:
    origins = origins_of(fake(tmp_path / "run", scale="miniature"))
    assert origins.datasets == ()
    assert {each.data for each in origins.measured} == {"coco (miniature)"}
    assert origins.facts is not None
    assert origins.facts["scale"].startswith("miniature")


def test_what_was_made_on_stand_ins_has_no_numbers(tmp_path: Path) -> None:
    run = fake(tmp_path / "run", scale="full")
    mark(run, "a run on stand-ins: none of its numbers is a result")
    origins = origins_of(run)
    assert (origins.datasets, origins.measured) == ((), ())
    assert origins.facts is not None
    assert origins.facts["no result"] == "a run on stand-ins: none of its numbers is a result"


def test_numbers_that_were_changed_are_refused(tmp_path: Path) -> None:
    folder = fake(tmp_path / "run")
    content = json.loads((folder / "results.json").read_text())
    content["evaluations"][0]["metrics"]["i2t_r1"] += 5
    (folder / "results.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"i2t_r1 is .* by its ranks"):
        origins_of(folder)
