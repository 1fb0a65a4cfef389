"""What makes two configurations the same run."""

from __future__ import annotations

from typing import Any

import pytest
from configurations import CONFIG, changed

from experiments.runs.identity import config_hash, differing_keys, without_seed


@pytest.mark.parametrize(
    "same",
    [
        {"trainer__devices": 8}, {"trainer__logger": False}, {"trainer__accelerator": "gpu"}, {"trainer__strategy": "ddp"},
        {"trainer__default_root_dir": "/x"}, {"trainer__num_nodes": 2}, {"wandb__enabled": False}, {"name": "other"},
        {"trainer__enable_progress_bar": False}, {"trainer__log_every_n_steps": 1}, {"trainer__profiler": "simple"},
        {"trainer__num_sanity_val_steps": 0}, {"checkpoint": {"every_n_steps": 4}},
        {"data__init_args__root": "/elsewhere/flickr30k"}, {"data__init_args__num_workers": 7},
        {"data__init_args__eval_batch_size": 3}, {"data__init_args__cache_pixels": True},
        {"model__init_args__gradient_cache_chunk": 8}, {"model__init_args__compile": True},
        {"trainer__callbacks": []}, {"trainer__callbacks": [{"class_path": "lightning.pytorch.callbacks.RichProgressBar"}]},
        {"trainer__callbacks": {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"dirpath": "x"}}},
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
        {"trainer__callbacks": [{"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "x"}}]},
        {"trainer__callbacks": {"class_path": "lightning.pytorch.callbacks.StochasticWeightAveraging"}},
        {"trainer__callbacks": [{"class_path": "mine.ModelCheckpoint"}]}, {"trainer__limit_train_batches": 1},
        {"checkpoint": {"monitor": "val/loss"}}, {"data__init_args__seed": 3}, {"trainer__max_epochs": 2.5},
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
    assert differing_keys({"a": {"b": 1, "c": 2}}, {"a": {"b": 1.0, "c": 2}}) == ["a.b"]  # one batch, and all of them


def test_files_count_by_their_names_wherever_they_are() -> None:
    def with_weights(path: str) -> str:
        return config_hash(changed(model__init_args__weights=path))

    assert with_weights("/old/disk/base.pth") == with_weights("/new/base.pth")
    assert with_weights("/old/base.pth") != with_weights("/old/large.pth")
    assert with_weights("/a/run-1/checkpoints/best.ckpt") == with_weights("/b/run-1/checkpoints/best.ckpt")
    assert with_weights("/a/run-1/checkpoints/best.ckpt") != with_weights("/a/run-2/checkpoints/best.ckpt")
    assert with_weights("openai/clip") != with_weights("laion/clip")  # names of a hub


def test_two_and_two_point_zero_are_one_number_and_one_batch_is_not_all() -> None:
    assert config_hash(changed(trainer__limit_train_batches=2)) == config_hash(changed(trainer__limit_train_batches=2.0))
    assert config_hash(changed(trainer__limit_train_batches=1)) != config_hash(changed(trainer__limit_train_batches=1.0))


def test_seeds_of_one_configuration() -> None:
    def seeded(seed: int, lr: float = 1e-3) -> dict[str, Any]:
        return without_seed(
            changed(
                seed_everything=seed, data__init_args__seed=seed, model__init_args__optimization__lr=lr,
                model__init_args__init_from=f"/runs/mwa-pre-s{seed}-0123456{seed}",
            )
        )  # fmt: skip

    assert seeded(0) == seeded(1)
    assert seeded(0) != seeded(0, lr=2e-3)
