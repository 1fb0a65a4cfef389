"""Pairs of a UNITER: its attention of words to regions, on the page."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_data import write_image

from datamodules.errors import InputError
from datamodules.loading.collate import text_batch
from datamodules.loading.tokens import Tokenizer
from datamodules.records import Caption, ImageBatch, ImageRecord, PairBatch, Regions
from experiments.analysis.word_regions import word_regions
from experiments.page.pairs import Pairs, painted
from lightning_modules.networks.uniter import UniterRetrieval
from lightning_modules.ranking import RankingModule


@pytest.fixture(scope="module")
def model(runs: Path) -> RankingModule:
    torch.manual_seed(0)
    network = UniterRetrieval(24, 2, 2, 48, 320, 16, 5, dropout=0.0, tokenizer=str(runs / "words"))
    for parameter in network.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return RankingModule(network, hard_negatives=2).eval()


def one_image(regions: int = 3) -> ImageBatch:
    draw = torch.Generator().manual_seed(1)
    corners_BR4 = torch.tensor([[[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]]])
    boxes_BR7 = torch.cat([corners_BR4, torch.rand(1, 3, 3, generator=draw)], 2)[:, :regions]
    features_BRD = torch.randn(1, regions, 5, generator=draw)
    mask_BR = torch.ones(1, regions, dtype=torch.bool)
    return ImageBatch(("7",), torch.tensor([0]), regions=Regions(features_BRD, boxes_BR7, torch.ones(1, regions), mask_BR))


@pytest.fixture
def data(tmp_path: Path) -> Any:
    """As far as a page needs a data module: one image with two captions, and its regions."""
    write_image(tmp_path / "7.jpg", 3)
    record = ImageRecord("7", tmp_path / "7.jpg", (Caption("1", "a red hat"), Caption("2", "a cat")))
    dataset = SimpleNamespace(make=lambda rows: one_image())
    return SimpleNamespace(
        connect=lambda inputs: None,
        records=lambda split: [record],
        evaluation_loaders=lambda split: [SimpleNamespace(dataset=dataset)],
    )


def test_maps_are_the_softmax_over_regions_of_each_head(model: RankingModule, runs: Path) -> None:
    tokenizer = Tokenizer(model.network.inputs.text)
    maps = word_regions(model.network, one_image(), "a red hat", tokenizer, 1)
    assert maps.words == ("a", "red", "hat")
    assert maps.boxes_R4.tolist()[1] == [0.5, 0.5, 1.0, 1.0]
    texts = text_batch([Caption("", "a red hat")], [0], [0], tokenizer)
    attended = model.network.relations(PairBatch(one_image(), texts), [1]).attention[1]
    scores_HQK = attended.queries_BHQD[0] @ attended.keys_BHKD[0].transpose(-2, -1) / attended.queries_BHQD.shape[-1] ** 0.5
    # the sequence is [CLS] a red hat [SEP] and then the regions
    expected_KR = scores_HQK[:, 1:4, 5:8].softmax(-1).mean(0)
    np.testing.assert_allclose(maps.maps_KR, expected_KR.detach().numpy(), atol=1e-6)


def test_a_pair_has_its_score_and_a_picture_a_word(model: RankingModule, data: Any) -> None:
    pairs = Pairs(model, data)
    pair, other = pairs.look(0, "", None), pairs.look(0, "a zebra", 0)
    assert ([look.text for look in pair.looks], pair.regions, pair.layers) == (["a", "red", "hat"], 3, 2)
    assert pair.shown == "layer 1, mean of all heads, of words to regions"
    assert pair.score != other.score
    assert "[UNK]" in other.remarks[0]
    for row, layer, message in ((1, None, "image 2, of 1"), (0, 5, "layer 5, but the network has layers 0 to 1")):
        with pytest.raises(InputError, match=message):
            pairs.look(row, "", layer)


def test_where_regions_overlap_the_one_with_more_attention_is_seen() -> None:
    painted_YX = painted(np.array([0.2, 0.5, 0.3]), np.array([[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1], [0, 0, 1, 1]]), cells=2)
    np.testing.assert_allclose(painted_YX, [[0.3, 0.3], [0.3, 0.5]], atol=1e-6)
