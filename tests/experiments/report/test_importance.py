"""What decides a sweep's metric is found where there is enough to find it, and points are proposed where it is best."""

from __future__ import annotations

import json
import shlex

import numpy as np
import pandas
import pytest

from datamodules.errors import InputError
from experiments.report.importance import importance, proposals, varied
from experiments.runs.frames import Row, frame_of

OPTIONS = {"lr": "model.init_args.optimization.lr", "decay": "model.init_args.optimization.weight_decay",
           "adapter": "model.init_args.adapter", "adapter.mid": "model.init_args.adapter.init_args.mid"}  # fmt: skip


@pytest.fixture
def frame() -> pandas.DataFrame:
    """Sixteen runs whose metric is best at a rate of 0.001, and little else."""
    generator = np.random.default_rng(0)
    rates = 10 ** generator.uniform(-4, -2, 16)
    table = pandas.DataFrame(
        {
            "run": [f"point-{at}" for at in range(16)],
            "val/rsum": 400 - 60 * (np.log10(rates) + 3) ** 2 + generator.normal(0, 1, 16),
            "lr": rates,
            "decay": [0.0, 0.05] * 8,
            "adapter": [None, "mine.One", "mine.Two", None] * 4,
            "adapter.mid": [np.nan, 8, 16, np.nan] * 4,
        }
    )
    table.attrs["options"] = OPTIONS
    return table


def test_the_rate_that_decides_is_told_from_what_chance_gives(frame: pandas.DataFrame) -> None:
    table = importance(frame, "val/rsum").set_index("option")
    assert table.index[0] == "lr"
    assert table["share"]["lr"] > 0.8 > table["chance"]["lr"]
    assert (table["share"][["decay", "adapter"]] < 0.2).all()
    assert (table["chance"] > 0).all(), "an option that is not set is a group like others"
    frame["val/rsum"] += 500 * frame["adapter"].isna()
    assert importance(frame, "val/rsum")["option"][0] == "adapter"


def test_an_option_that_some_runs_lack_counts_as_varied(frame: pandas.DataFrame) -> None:
    some = frame[frame["adapter"].isna() | (frame["adapter"] == "mine.One")].assign(decay=0.0)
    some.attrs = frame.attrs
    assert varied(some, "val/rsum") == ["lr", "adapter", "adapter.mid"]


def test_points_are_proposed_where_the_metric_is_best_and_as_the_command_takes_them(frame: pandas.DataFrame) -> None:
    table = proposals(frame.drop(columns="adapter"), "val/rsum", count=2)
    assert table["lr"].between(4e-4, 3e-3).all()
    assert table["decay"].isin([0.0, 0.05]).all(), "two values are a choice"
    assert table["command"][0].startswith(f"--{OPTIONS['lr']}={table['lr'][0]}")
    assert "adapter" not in table["command"][0], "not all runs have one"
    assert table["expected"].between(380, 410).all()
    worst = proposals(frame.drop(columns="adapter"), "val/rsum", maximize=False, count=1)
    assert not 4e-4 < worst["lr"][0] < 3e-3


def test_too_few_runs_are_an_error(frame: pandas.DataFrame) -> None:
    with pytest.raises(InputError, match="3 runs have val/rsum; what decides it can be asked of 4 or more"):
        importance(frame.head(3), "val/rsum")
    with pytest.raises(InputError, match="differ in a number"):
        proposals(frame.assign(lr=0.1, decay=0.1), "val/rsum")
    with pytest.raises(InputError, match="no run has val/cider; the metrics are val/rsum"):
        varied(frame, "val/cider")


def test_a_command_has_whole_numbers_and_can_be_copied_where_a_run_lacks_the_option() -> None:
    def row(number: int, options: dict[str, object]) -> Row:
        return Row({"run": f"run-{number}"}, {"coco/test/rsum": float(number * number % 7)} if options else {}, options)

    runs = [row(number, {"model.mid": 2**number, "model.targets": ["a b", number % 2]}) for number in range(1, 7)]
    frame = frame_of([*runs, row(7, {})])
    assert frame["model.mid"].tolist() == [2, 4, 8, 16, 32, 64, None]
    for command in proposals(frame, "coco/test/rsum")["command"]:
        mid, targets = shlex.split(command)
        assert str(int(mid.removeprefix("--model.mid="))) == mid.removeprefix("--model.mid=")
        assert json.loads(targets.removeprefix("--model.targets="))[0] == "a b"
