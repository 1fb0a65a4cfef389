"""What jsonargparse lets pass and no run should have: nulls, one value for many options, empty places."""

from __future__ import annotations

from typing import Any

import pytest

from experiments.training.typed_values import mistyped

DATA: dict[str, Any] = {"class_path": "datamodules.table.Table", "init_args": {"root": "photos"}}
MODEL: dict[str, Any] = {"class_path": "lightning_modules.retrieval.RetrievalModule", "init_args": {}}


@pytest.mark.parametrize(
    ("section", "options", "said"),
    [
        (DATA, {"columns": None}, "x.init_args.columns is null: give it a value"),
        (DATA, {"columns": {"image": None}}, "x.init_args.columns.image is null"),
        (DATA, {"limits": 5}, "x.init_args.limits is 5, but has options of its own (train, val, test): give them by name"),
        (DATA, {"columns": ["image", "text"]}, "x.init_args.columns is ['image', 'text'], but has options of its own (image, "),
        (DATA, {"root": ""}, "x.init_args.root is empty: give a path"),
        (DATA, {"batch_size": None}, "x.init_args.batch_size is null"),  # of a class above it
        (MODEL, {"optimization": {"schedule": None}}, "x.init_args.optimization.schedule is null"),
        (MODEL, {"optimization": {"betas": None}}, "x.init_args.optimization.betas is null"),
        (MODEL, {"optimization": [1]}, "x.init_args.optimization is [1], but has options of its own (lr, "),
        (
            MODEL,
            {"network": {"class_path": "lightning_modules.networks.dual_encoder.DualEncoder", "init_args": {"projection": None}}},
            "x.init_args.network.init_args.projection is null",
        ),
    ],
)
def test_what_a_type_does_not_know_is_told(section: dict[str, Any], options: dict[str, Any], said: str) -> None:
    (told,) = mistyped({**section, "init_args": {**section["init_args"], **options}}, "x")
    assert told.startswith(said)


@pytest.mark.parametrize(
    "options",
    [
        {"draw": None},
        {"limits": {"train": None}},
        {"columns": {"split": None}},
        {"columns": {"captions": ["a", "b"]}},
        {"new": None},
    ],
)
def test_what_it_knows_passes(options: dict[str, Any]) -> None:
    assert not list(mistyped({**DATA, "init_args": {**DATA["init_args"], **options}}, "x"))


def test_places_in_lists_and_among_names_are_seen() -> None:
    held = {"mine": {**DATA, "init_args": {"root": ""}}, "list": [{**DATA, "init_args": {"limits": "5"}}]}
    assert [told.partition(" is ")[0] for told in mistyped(held, "evaluate")] == [
        "evaluate.mine.init_args.root", "evaluate.list[0].init_args.limits",
    ]  # fmt: skip
    assert not list(mistyped({"class_path": "no.such.Class", "init_args": {"a": None}}, "x")), "that is told elsewhere"
