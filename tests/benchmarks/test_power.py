"""`benchmarks/power.py` on made-up runs of three seeds."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from fake_runs import fill
from home import write_home

from datamodules.errors import InputError
from experiments.papers import catalogue, strict_yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.power import MORE, measure


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(strict_yaml, "HERE", write_home(tmp_path))
    return tmp_path / "runs"


def test_every_seed_alone_is_held_against_all(runs: Path) -> None:
    fill(runs, catalogue.exhibit_names(), "miniature", [0, 1, 2])
    result = measure([runs], "miniature")
    first, every = result["from"]["first seed alone"]["all"], result["from"]["each seed alone"]["all"]
    assert every["predictions"] == 3 * first["predictions"] == 3 * len(result["first_seed"])
    assert first["comparisons"] >= 4
    assert {each["seeds"] for each in result["first_seed"]} == {3}
    inside = [each["low"] <= each["measured"] <= each["high"] for each in result["first_seed"]]
    assert first["differences_inside"] == pytest.approx(sum(inside) / len(inside), abs=1e-3)
    assert sum(inside) >= len(inside) - 1
    assert result["measured_between"].keys() == {"mwa", "i_tuning"}


def test_more_seeds_and_images_decide_more(runs: Path) -> None:
    fill(runs, catalogue.exhibit_names(), "miniature", [0, 1, 2])
    today, *futures = measure([runs], "miniature")["decided"]
    assert [(each["seeds"], each["images"]) for each in futures] == list(MORE)
    total = {(each["seeds"], each["images"]): sum(each["decided"].values()) for each in futures}
    every = sum(today["comparisons"].values())
    assert total[3, 1] == pytest.approx(sum(today["decided"].values()), abs=0.15 * every)
    assert total[3, 1] < total[3, 16] <= every


def test_one_seed_has_nothing_to_be_held_against(runs: Path) -> None:
    fill(runs, ["mwa/table1"], "miniature", [0])
    with pytest.raises(InputError, match="no comparison with images has several finished seeds"):
        measure([runs], "miniature")
