"""The captioning demo's own arithmetic: where words look, which tokens name a thing, and the weights that are handed on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn

from datamodules.records import Box, Caption, Phrase
from experiments.analysis import grounding
from experiments.analysis.grounding import Grounding, NamedMaps, Place, measure_grounding, naming
from experiments.demo.captioning import Results, report, save_part

LEFT, RIGHT = Box(0, 0, 10, 20), Box(10, 0, 20, 20)
COVERED = Box(0, 0, 20, 20)


def halves(left: float) -> NDArray[np.float32]:
    """A map of 2 x 2 cells with so much of it in the left half."""
    return np.array([[left / 2, (1 - left) / 2]] * 2, np.float32)


def words(right_place: float, wrong_place: float) -> NamedMaps:
    """Two words, of the thing on the left and of that on the right, that look at their own by so much."""
    maps: dict[Place, list[NDArray[np.float32]]] = {
        (1, "predicts"): [halves(right_place), halves(1 - right_place)],
        (0, "reads"): [halves(wrong_place), halves(1 - wrong_place)],
    }
    return NamedMaps([(LEFT,), (RIGHT,)], maps, COVERED)


def test_the_place_is_chosen_on_validation_images_and_reported_of_test_images(monkeypatch: pytest.MonkeyPatch) -> None:
    of = {"val": words(0.9, 0.6), "test": words(0.7, 1.0)}  # on test images the other place would look better
    monkeypatch.setattr(grounding, "named_maps", lambda run, world, split: of[split])

    measured = measure_grounding(Path("run"), Path("world"))

    assert (measured.place, measured.words) == ((1, "predicts"), 2)
    assert (measured.inside, measured.area) == (pytest.approx(0.7), pytest.approx(0.5))
    assert measured.elsewhere == pytest.approx(0.3)  # each word's map inside of the other's box
    assert measured.over == 1.0
    assert measured.everywhere == pytest.approx((0.7 + 1.0) / 2)


def test_only_phrases_with_boxes_name_a_thing_and_their_last_token_is_the_noun() -> None:
    text = "Two balls in the snow next to a red cube ."
    phrases = (
        Phrase(0, 9, "1", "other", (LEFT, RIGHT)),
        Phrase(13, 21, "2", "scene"),
        Phrase(30, 40, "3", "other", (RIGHT,)),
    )
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(text.split()))}
    tokenizer = lambda word, **_: {"input_ids": [vocabulary[word]]}  # noqa: E731
    network = SimpleNamespace(language=SimpleNamespace(hf_tokenizer=tokenizer))

    ids, named = naming(network, Caption("0", text, phrases))

    assert ids == list(range(11))
    assert named == [(1, (LEFT, RIGHT)), (9, (RIGHT,))]


def test_a_part_is_saved_under_its_own_keys_and_tied_weights_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lightning_modules

    network = nn.Module()
    words, head = nn.Embedding(3, 2), nn.Linear(2, 3, bias=False)
    head.weight = words.weight
    network.language = nn.ModuleDict({"words": words, "head": head})
    network.vision = nn.Linear(2, 2)
    monkeypatch.setattr(lightning_modules, "load", lambda run: SimpleNamespace(network=network))

    saved = load_file(save_part(tmp_path / "run", "language", tmp_path / "language.safetensors"))

    assert list(saved) == ["words.weight"]
    assert torch.equal(saved["words.weight"], words.weight)


def test_the_report_has_both_tables_with_deviations_over_seeds() -> None:
    row = {"name": "i_tuning", "cider": 0.5, "cider_sd": 0.02, "bleu_4": 0.25, "bleu_4_sd": None, "seconds_per_epoch": 1.5}
    table = [{"name": "language_model_only", "cider": 0.2}, {**row, "tunable_parameters": 74688.0}]
    seeds = [Grounding((1, "predicts"), 7, 0.3, 0.1, 0.12, 0.8, 0.2), Grounding((0, "reads"), 7, 0.4, 0.1, 0.12, 0.8, 0.2)]

    text = report(Results(table, {"i_tuning": seeds}, Path("picture.png")))

    assert "| no image | 20.0 | – | – |  |  |" in text
    assert "| i_tuning | 50.0 ±2.0 | 25.0 | – | 74,688 | 1.50 |" in text
    assert "where 7 words" in text
    assert "| i_tuning | 0, reading / 1, predicting | 35.0 ±7.1 | 10.0 ±0.0 | 12.0 ±0.0 | 80.0 ±0.0 | 20.0 ±0.0 |" in text
