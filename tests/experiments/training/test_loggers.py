"""metrics.csv over attempts, and when W&B goes online. W&B itself is never started."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from experiments.training import loggers
from experiments.training.loggers import MetricsCSV, make_wandb, wandb_logged_in


def read(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_one_row_a_step_and_columns_as_they_come(tmp_path: Path) -> None:
    logger = MetricsCSV(tmp_path)
    logger.log_metrics({"loss": 2.0}, 0)
    logger.log_metrics({"lr": 0.1}, 0)  # joins the row of its step
    logger.log_metrics({"loss": 1.5, "lr": 0.2}, 5)
    logger.log_metrics({"val/rsum": 100.0}, 5)  # a new column, on a row that is there
    logger.log_metrics({"loss": 1.25}, 10)
    expected = [
        {"step": "0", "loss": "2.0", "lr": "0.1", "val/rsum": ""},
        {"step": "5", "loss": "1.5", "lr": "0.2", "val/rsum": "100.0"},
        {"step": "10", "loss": "1.25", "lr": "", "val/rsum": ""},
    ]
    assert read(tmp_path) == expected  # at once: a killed run loses none of it
    logger.finalize("success")
    assert read(tmp_path) == expected
    logger.log_metrics({"loss": 1.0}, 10)  # after finalize (Lightning finalizes after fit, then the test logs) and again
    logger.log_metrics({"final/coco/test/rsum": 321.0}, 10)
    rows = read(tmp_path)
    assert [row["step"] for row in rows] == ["0", "5", "10"]
    assert rows[2]["loss"] == "1.0"
    assert rows[2]["final/coco/test/rsum"] == "321.0"
    assert next(iter(rows[0])) == "step"
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_a_resumed_run_keeps_the_rows_of_its_checkpoint(tmp_path: Path) -> None:
    first = MetricsCSV(tmp_path)
    for step in (0, 5, 10, 15):
        first.log_metrics({"loss": float(step)}, step)
    second = MetricsCSV(tmp_path)
    assert second.rows == len(read(tmp_path)) == 4
    second.keep(7)  # nothing to drop
    assert second.rows == 4
    second.keep(2)
    assert second.rows == len(read(tmp_path)) == 2
    second.log_metrics({"acc": 0.5}, 5)  # joins the last of them
    second.log_metrics({"loss": -10.0}, 10)
    second.log_metrics({"loss": -15.0, "acc": 1.0}, 15)
    assert [(row["step"], row["loss"], row["acc"]) for row in read(tmp_path)] == [
        ("0", "0.0", ""), ("5", "5.0", "0.5"), ("10", "-10.0", ""), ("15", "-15.0", "1.0"),
    ]  # fmt: skip
    assert second.rows == 4


def test_half_a_line_of_a_killed_run_is_dropped(tmp_path: Path) -> None:
    logger = MetricsCSV(tmp_path)
    logger.log_metrics({"loss": 1.0, "lr": 0.5}, 3)
    logger.log_metrics({"loss": 2.0, "lr": 0.5}, 120)
    content = (tmp_path / "metrics.csv").read_text()
    (tmp_path / "metrics.csv").write_text(content[: content.rindex("120") + 2])  # "12": a step that never was
    MetricsCSV(tmp_path).log_metrics({"loss": 4.0}, 120)
    assert [(row["step"], row["loss"]) for row in read(tmp_path)] == [("3", "1.0"), ("120", "4.0")]


def test_other_ranks_write_no_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers.rank_zero_only, "rank", 1)
    MetricsCSV(tmp_path).log_metrics({"loss": 1.0}, 0)
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------------------------------------------------------- W&B


@pytest.fixture
def logged_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No key anywhere; returns where a netrc would be."""
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(file))
    return file


def test_logged_in_by_key_or_netrc(logged_out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not wandb_logged_in()
    logged_out.write_text("machine example.org login user password secret\n")
    assert not wandb_logged_in()
    logged_out.write_text("machine api.wandb.ai login user password secret\n")
    assert wandb_logged_in()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org:8080")
    assert not wandb_logged_in()  # the key is another server's
    logged_out.write_text("machine wandb.example.org login user password secret\n")
    assert wandb_logged_in()
    logged_out.write_text("machine\n")  # not a netrc
    assert not wandb_logged_in()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert wandb_logged_in()


@pytest.mark.parametrize(
    ("mode", "key", "offline"),
    [
        (None, None, True),
        (None, "0" * 40, False),
        ("offline", "0" * 40, True),
        ("online", None, False),
        ("disabled", None, False),
    ],
)
def test_offline_unless_logged_in_and_wandb_mode_wins(
    mode: str | None, key: str | None, offline: bool, logged_out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    made = SimpleNamespace(_wandb_init={"anonymous": None})

    def make(**options: Any) -> SimpleNamespace:
        seen.update(options)
        return made

    monkeypatch.setattr(loggers, "WandbLogger", make)
    for name, value in (("WANDB_MODE", mode), ("WANDB_API_KEY", key)):
        if value is not None:
            monkeypatch.setenv(name, value)
    make_wandb(logged_out.parent, project="p", name="n", run_id="id", group="g", tags=["t"])
    assert seen["offline"] is offline
    assert (seen["save_dir"], seen["id"], seen["resume"]) == (logged_out.parent, "id", "allow")
    assert made._wandb_init == {}, "W&B warns of a setting that nobody set"
