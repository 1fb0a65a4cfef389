"""dial.json: alpha is picked on validation alone, by a named rule, and what is read is what was written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from datamodules.errors import InputError
from experiments.runs.dial import Dialling, Point, alphas_of, read_dial, require_picked, with_evaluation, write_dial
from experiments.runs.results import Evaluation

# alpha: (target val, target test, retained val, retained test); each column has its best elsewhere
MEASURED = {
    0.0: (10.0, 10.0, 60.0, 10.0),
    0.3: (30.0, 40.0, 55.0, 90.0),
    0.6: (50.0, 99.0, 38.0, 20.0),
    1.0: (51.0, 20.0, 5.0, 5.0),
}


def dialling(**options: Any) -> Dialling:
    found = Dialling("ab12", "the output of Made", ("logit_scale",), "rsum", "max", "coco", retention=("web",), rule="mean")
    for alpha, values in MEASURED.items():
        for (data, stage), value in zip(
            [("coco", "val"), ("coco", "test"), ("web", "val"), ("web", "test")], values, strict=True
        ):
            found = with_evaluation(found, alpha, Evaluation(data, stage, stage, {"rsum": value}))  # type: ignore[arg-type]
    return replace(found, **options)


def test_the_pick_looks_at_validation_alone() -> None:
    assert dialling(rule="target").pick() == 1.0, "the tests say 0.6"
    assert dialling().pick() == 0.6, "the tests say 0.3"
    assert dialling(better="min", rule="target").pick() == 0.0


def test_of_equal_ones_the_smallest_and_never_nan() -> None:
    found = dialling(rule="target")
    points = [replace(point, evaluations=(replace(point.evaluations[0], metrics={"rsum": 7.0}),)) for point in found.points]
    assert replace(found, points=tuple(points)).pick() == 0.0
    points[0] = replace(points[0], evaluations=(replace(points[0].evaluations[0], metrics={"rsum": float("nan")}),))
    assert replace(found, points=tuple(points)).pick() == 0.3
    assert replace(found, points=(Point(0.5),)).pick() is None


def test_several_that_are_retained_count_as_their_mean() -> None:
    found = dialling(retention=("web", "more"))
    assert found.pick() is None, "one of them is not measured"
    for alpha in MEASURED:
        found = with_evaluation(found, alpha, Evaluation("more", "val", "val", {"rsum": 100.0 * (alpha == 0.3)}))
    assert found.pick() == 0.3
    point = found.point(0.3)
    assert point is not None
    assert (found.retained(point, "val"), found.score(point)) == (77.5, 53.75)


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_dial(tmp_path) is None
    with pytest.raises(InputError, match=r"was not dialled: `crosslight dial --run .*, or give a number as --alpha"):
        require_picked(tmp_path)
    found = dialling()
    write_dial(tmp_path, found)
    assert read_dial(tmp_path) == found
    with pytest.raises(InputError, match="was dialled in part, and nothing is picked yet"):
        require_picked(tmp_path)
    write_dial(tmp_path, replace(found, picked=found.pick()))
    assert require_picked(tmp_path)[1] == 0.6
    assert found.picked_by.endswith("(rsum on the validation split of coco and web)")


@pytest.mark.parametrize(("change", "words"), [
    ({"schema": "crosslight.dial/9"}, "this version reads 'crosslight.dial/1'"),
    ({"picked": "high"}, "picked"),
    ({"points": [{"alpha": 0, "evaluations": [{"data": "../x", "split": "", "stage": "val", "metrics": {}}]}]}, "no file of"),
    ({"more": 1}, "more"),
])  # fmt: skip
def test_what_is_not_a_dial_is_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    write_dial(tmp_path, dialling())
    content = json.loads((tmp_path / "dial.json").read_text())
    (tmp_path / "dial.json").write_text(json.dumps(content | change))
    with pytest.raises(InputError, match=words):
        read_dial(tmp_path)


def test_alphas_are_numbers_from_0_to_1() -> None:
    assert alphas_of("1, 0,0.5 0.5") == (0.0, 0.5, 1.0)
    for wrong in (",", "1.1", "-0.1", "a"):
        with pytest.raises(ValueError, match=r"no numbers from 0 to 1: |could not convert"):
            alphas_of(wrong)
