"""What makes two configurations the same run."""

from __future__ import annotations

from typing import Any

import pytest
from configurations import CONFIG, changed

from experiments.runs.identity import config_hash, differing_keys


@pytest.mark.parametrize(
    "same",
    [
        {"trainer__devices": 8}, {"trainer__logger": False}, {"trainer__accelerator": "gpu"}, {"trainer__strategy": "ddp"},
        {"trainer__default_root_dir": "/x"}, {"trainer__num_nodes": 2}, {"wandb__enabled": False}, {"name": "other"},
    ],
)  # fmt: skip
def test_the_hash_ignores_where_and_how_it_runs(same: dict[str, Any]) -> None:
    assert config_hash(changed(**same)) == config_hash(CONFIG)


@pytest.mark.parametrize(
    "other",
    [
        {"model__init_args__optimization__lr": 1e-4}, {"seed_everything": 1}, {"data__init_args__batch_size": 32},
        {"trainer__max_epochs": 3}, {"trainer__precision": "32-true"}, {"command": "fit"}, {"evaluate": {"x": 1}},
        {"model__init_args__adapter": {"class_path": "a.Adapter"}},
    ],
)  # fmt: skip
def test_the_hash_sees_what_decides_the_result(other: dict[str, Any]) -> None:
    assert config_hash(changed(**other)) != config_hash(CONFIG)


def test_the_hash_does_not_depend_on_the_order_of_keys() -> None:
    assert config_hash(dict(reversed(CONFIG.items()))) == config_hash(CONFIG)
    assert len(config_hash(CONFIG)) == 12


def test_differing_keys_are_dotted_leaves() -> None:
    assert differing_keys(CONFIG, CONFIG) == []
    assert differing_keys({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}, "e": 5}) == ["a.c", "d", "e"]
    assert differing_keys({"a": {"b": 1}}, {"a": None}) == ["a"]
