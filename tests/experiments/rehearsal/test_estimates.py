"""What a rehearsal says of the whole run, by arithmetic: validations, memory, what a shorter run must not be refused for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from experiments.rehearsal.changes import Changes, Settings, changes
from experiments.rehearsal.checks import Facts, _averages
from experiments.rehearsal.estimates import Notes, counted_bytes, evaluation_seconds, lower_for_a_validation, validations
from experiments.rehearsal.watch import Watch
from experiments.runs.results import Results, now
from lightning_modules.callbacks.cost_record import Cost
from lightning_modules.callbacks.ema import EMA


def facts_of(**trainer: Any) -> Facts:
    return Facts({"trainer": trainer, "data": {"init_args": {"batch_size": 8}}, "model": {}}, Changes((), ()), tunable=1)


def results_of(cost: Cost) -> Results:
    return Results("finished", "run", "x", "c", now(), seed=0, cost=cost)


def notes_of(batches: int) -> Notes:
    return Notes(({"event": "fit", "batches": batches, "step": 0},))


@pytest.mark.parametrize(
    ("trainer", "expected"),
    [
        ({"max_epochs": 4}, 4),
        ({"max_epochs": 4, "check_val_every_n_epoch": 3}, 1),
        ({"max_epochs": 4, "val_check_interval": 0.25}, 20),  # every second batch
        ({"max_epochs": 4, "val_check_interval": 6}, 4),  # counted anew in each epoch
        ({"max_steps": 9}, 0),  # the epoch never ends
        ({"max_steps": 15}, 1),
        ({"max_steps": 15, "val_check_interval": 0.5}, 3),
        ({"max_steps": 15, "val_check_interval": 4, "check_val_every_n_epoch": None}, 3),  # over the epochs
        ({"max_steps": 3, "val_check_interval": 4, "check_val_every_n_epoch": None}, 0),
        ({"max_epochs": 4, "accumulate_grad_batches": 4}, 4),  # an epoch's third step has two batches
        ({"max_steps": 5, "accumulate_grad_batches": 4}, 1),
        ({"max_epochs": 4, "val_check_interval": "00:00:10:00"}, 1),  # by the clock: not known
        ({"max_epochs": -1, "max_steps": -1}, 1),
    ],
)
def test_validations_of_the_whole_run(trainer: dict[str, Any], expected: int) -> None:
    facts = facts_of(**{"check_val_every_n_epoch": 1, "val_check_interval": 1.0, **trainer})
    assert validations(facts, notes_of(10)) == expected


def test_the_gate_of_validations_is_named() -> None:
    assert lower_for_a_validation(facts_of(max_epochs=4, check_val_every_n_epoch=5)) == "check_val_every_n_epoch"
    assert lower_for_a_validation(facts_of(max_steps=9, check_val_every_n_epoch=1)) == "val_check_interval"


def test_a_slow_loader_shows_once_its_batches_in_hand_are_used_up() -> None:
    """Eight workers have 16 batches ready before the first step ends; from then on eight come at once, every two seconds."""

    def notes(seconds: list[float]) -> Notes:
        fit = {"event": "fit", "batches": 100, "step": 0, "accumulated": 1, "ahead": 16}
        steps = [{"event": "batch", "step": step, "stepped": True, "seconds": each} for step, each in enumerate(seconds)]
        return Notes((fit, *steps))

    assert notes([2.0, *[0.05] * 15, *[1.65, *[0.05] * 7]]).seconds_per_step == pytest.approx(0.25)
    assert notes([2.0, *[0.05] * 7]).seconds_per_step == pytest.approx(0.05), "too short to tell"


def test_warming_up_does_not_count_with_the_square_of_the_images() -> None:
    facts = replace(facts_of(), pairwise=True, counts={"own": {"val": 100, "test": 100}})
    events = [
        {"event": "evaluated", "stage": stage, "data": "own", "batches": 0.0, "behind": behind}
        for stage, behind in (("val", 0.56), ("test", 0.1))
    ]
    assert evaluation_seconds(facts, Notes(tuple(events)), Settings(3, items=10)) == pytest.approx(2 * 0.1 * 100)


def test_an_average_takes_memory_where_it_is_kept() -> None:
    ema = {"class_path": "lightning_modules.callbacks.ema.EMA", "init_args": {"decay": 0.9}}
    assert _averages({"trainer": {"callbacks": [{"class_path": "another.Callback"}, ema]}}) == [None]
    assert _averages({"trainer": {"callbacks": [{**ema, "init_args": {"device": "cpu"}}]}}) == ["cpu"]
    assert _averages({"trainer": {"callbacks": None}}) == []
    cost = Cost(saved_activation_bytes=40, gradient_bytes=2, optimizer_state_bytes=4)
    facts = facts_of()
    facts.weight_bytes, facts.average_bytes = 100, 3
    assert counted_bytes(facts, results_of(cost), 1, 4) == 100 + 3 + 2 + 4 + 40 / 4


def test_copies_of_weights_do_not_grow_with_the_batch() -> None:
    """A rehearsal with a quarter of the batch keeps the weights' bf16 copies whole."""
    facts = facts_of()
    facts = replace(facts, changes=Changes(("--data.init_args.batch_size=2",), ()), weight_bytes=100)
    cost = Cost(saved_activation_bytes=40, saved_copy_bytes=30, gradient_bytes=2, optimizer_state_bytes=4)
    assert counted_bytes(facts, results_of(cost), 1, 1) == 100 + 2 + 4 + 30 + 4 * 10


def test_an_average_begins_within_the_rehearsal() -> None:
    late = EMA(update_starting_at_epoch=7)
    Watch("watch.jsonl", 3).setup(SimpleNamespace(callbacks=[late]), None, "fit")  # type: ignore[arg-type]
    assert late._due(0, 0)


def test_a_rehearsal_is_not_refused_for_what_it_has_changed() -> None:
    config = {"trainer": {"min_steps": 1000, "sync_batchnorm": True, "max_steps": 2000}}
    on_processor, on_gpus = (changes("run", config, Settings(3), gpus, Path("watch.jsonl")) for gpus in (0, 2))
    assert "--trainer.min_steps=null" in on_processor.options
    assert "--trainer.sync_batchnorm=false" in on_processor.options
    assert on_processor.cut
    assert not any("sync_batchnorm" in word for word in on_gpus.options)
