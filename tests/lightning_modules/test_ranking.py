"""Hard-negative training of a pair scorer: mining, both sides, IAIS on the right positives, against pair-by-pair twins."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_scorers
import torch
from tiny_ranking import CANDIDATES, HARD, WEIGHT, batch, module
from torch import Tensor

from datamodules.errors import InputError
from datamodules.loading.ranking import Ranking
from datamodules.records import Candidates, ImageBatch, Objects, PairBatch, RankingBatch, Regions, TextBatch
from lightning_modules import ranking
from lightning_modules.metrics.rerank import Rerank
from lightning_modules.objectives.annealing import Annealing
from lightning_modules.objectives.matching import MarginRanking
from lightning_modules.objectives.relation_alignment import IAIS, RelationAlignment
from lightning_modules.ranking import RankingModule


def pair(data: RankingBatch, image: int, text: int) -> PairBatch:
    """One pair without padding."""
    regions, texts = data.images.regions, data.texts
    assert regions is not None
    real = int(regions.mask_BR[image].sum())
    one = Regions(*(part[image : image + 1, :real] for part in (
        regions.features_BRD, regions.boxes_BR7, regions.confidences_BR, regions.mask_BR)))  # fmt: skip
    words = int(texts.mask_BT[text].sum())
    index = torch.tensor([0])
    return PairBatch(
        ImageBatch(("",), index, regions=one),
        TextBatch(("",), ("",), index, index, texts.tokens_BT[text : text + 1, :words], texts.mask_BT[text : text + 1, :words]),
    )


def score(model: RankingModule, data: RankingBatch, image: int, text: int) -> Tensor:
    one, row = pair(data, image, text), torch.tensor([0])
    network = model.network
    return network.score_pairs(network.embed_images(one.images), network.embed_texts(one.texts), row, row)[0]


def aligned(model: RankingModule, data: RankingBatch, image: int, text: int, anchor: Any, loss: RelationAlignment) -> Tensor:
    relations = model.network.relations(pair(data, image, text), [1])
    return loss(relations.attention[1], relations.words, relations.regions, (anchor,))[anchor][0]


def twin(model: RankingModule, data: RankingBatch) -> tuple[Tensor, dict[str, list[list[tuple[int, int]]]]]:
    """The ranking loss of both sides by scoring one pair at a time, and the pairs that were kept."""
    total, kept = torch.tensor(0.0), {}
    for side in ("hard_texts", "hard_images"):
        candidates = getattr(data, side)
        losses, kept[side] = [], []
        for images, texts in zip(candidates.image_PX.tolist(), candidates.text_PX.tolist(), strict=True):
            scores = [score(model, data, image, text) for image, text in zip(images, texts, strict=True)]
            order = sorted(range(1, len(scores)), key=lambda i: -scores[i].item())[:HARD]
            positive = torch.sigmoid(scores[0])
            losses += [(0.2 + torch.sigmoid(scores[i]) - positive).clamp_min(0) for i in order]
            kept[side].append([(images[i], texts[i]) for i in (0, *order)])
        total = total + torch.stack(losses).mean()
    return total, kept


def test_mining_keeps_the_highest_scored_candidates() -> None:
    model, data = module(dropout=0.5), batch()
    mined = model.mine(data)
    assert model.network.training
    model.eval()
    _, kept = twin(model, data)
    for side, pairs in mined.items():
        found = torch.stack([pairs.image_PX, pairs.text_PX], -1).tolist()
        assert [[tuple(each) for each in row] for row in found] == kept[side]


def test_nothing_is_scored_to_choose_all(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = module(), batch()
    model.hard_negatives = CANDIDATES
    monkeypatch.setattr(ranking, "score_pairs_by_length", lambda *arguments: pytest.fail("scored"))
    mined = model.mine(data)
    assert mined["hard_texts"] is data.hard_texts
    assert mined["hard_images"] is data.hard_images


def test_the_loss_is_that_of_one_pair_at_a_time() -> None:
    model, data = module(), batch()
    expected, _ = twin(model, data)
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in model.network.named_parameters() if p.grad is not None}
    model.zero_grad()
    loss = model.training_step(data, 0)
    torch.testing.assert_close(loss, expected)
    assert loss > 0.01
    loss.backward()
    unused = model.network.unused_parameters()
    assert gradients.keys() == {name for name, _ in model.network.named_parameters()} - unused
    for name, gradient in gradients.items():
        ours = model.network.get_parameter(name).grad
        torch.testing.assert_close(ours, gradient, atol=1e-6, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("kind", ["singular", "distributed"])
@pytest.mark.parametrize(
    ("reading", "anchors", "expected"),
    [
        ("released", "both", {"hard_texts": ["vision"], "hard_images": ["language"]}),
        ("released", "language", {"hard_texts": [], "hard_images": ["language"]}),
        ("released", "vision", {"hard_texts": ["vision"], "hard_images": []}),
        ("paper", "both", {"hard_texts": ["language", "vision"], "hard_images": ["language", "vision"]}),
        ("paper", "vision", {"hard_texts": ["vision"], "hard_images": ["vision"]}),
    ],
)
def test_iais_is_on_the_positives_that_its_reading_says(
    kind: Any, reading: Any, anchors: Any, expected: dict[str, list[str]]
) -> None:
    data = batch()
    model = module(iais=IAIS(kind, reading, anchors, annealing=Annealing("linear", weight=WEIGHT)))
    rank, kept = twin(model, data)
    loss, added = RelationAlignment(kind, reading), torch.tensor(0.0)
    for side, names in expected.items():
        positives = [row[0] for row in kept[side]]
        # released: the sum over the eight positives of its recipe, whatever the batch and accumulation here; paper: their mean
        factor = 8 if reading == "released" else 1
        for anchor in names:
            terms = [aligned(model, data, image, text, anchor, loss) for image, text in positives]
            added = added + factor * torch.stack(terms).mean()
    found = model.training_step(data, 0)
    torch.testing.assert_close(found, rank + WEIGHT * 5 / 10 * added)
    assert added > 1e-4


def test_a_side_may_be_missing() -> None:
    data = batch()
    model = module()
    both = model.training_step(data, 0)
    one = model.training_step(replace(data, hard_images=None), 0)
    other = model.training_step(replace(data, hard_texts=None), 0)
    torch.testing.assert_close(one + other, both)
    alone = module(iais=IAIS(anchors="language"))  # whose released positives are those of the missing side
    with pytest.raises(InputError, match=r"IAIS has no effect: anchors language see .* Set data\.ranking\.sides to both"):
        alone.training_step(replace(data, hard_images=None), 0)
    alone.training_step(replace(data, hard_texts=None), 0)


def test_nothing_is_made_on_the_default_device() -> None:
    """A tensor of the CPU in the logs ends a run on several GPUs (NCCL has no sum of it); here that device is meta."""
    model, data, logged = module(iais=IAIS()), batch(), {}
    model.log_dict = lambda values, **keywords: logged.update(values)  # type: ignore[method-assign,assignment]
    with torch.device("meta"):
        loss = model.training_step(data, 0)
    assert {"train/iais_weight", "train/loss"} <= logged.keys()
    assert {value.device.type for value in logged.values()} == {loss.device.type} == {"cpu"}


def test_mining_under_autocast_takes_no_gradient_away() -> None:
    """Autocast keeps the weights that mining casts without a gradient: training must not be given those."""
    model, data = module(), batch()
    with torch.autocast("cpu", torch.bfloat16):
        model.training_step(data, 0).backward()
    lacking = {name for name, parameter in model.network.named_parameters() if parameter.grad is None}
    assert lacking == model.network.unused_parameters()


def test_the_hinge_is_an_option() -> None:
    data = batch()
    each, total = module(), module(objective=MarginRanking(hinge="sum"))
    assert not torch.isclose(each.training_step(data, 0), total.training_step(data, 0))


def test_pairs_with_objects_feed_isda_and_both_distances() -> None:
    model, data = module().eval(), batch()
    one = pair(data, 1, 1)
    words, regions = torch.zeros(1, 2, 9, dtype=torch.bool), torch.zeros(1, 2, 7, dtype=torch.bool)
    words[0, 0, 1:3], words[0, 1, 4] = True, True
    regions[0, 0, 0], regions[0, 1, 3:5] = True, True
    with torch.no_grad():
        model.validation_step(replace(one, objects=Objects(words, regions, torch.ones(1, 2, dtype=torch.bool))), 0, 2)
    values = {**model.isda.compute(), **model.distances.compute()}
    assert values["isda_pairs"] == 1
    assert values["isda"] > 0
    loss = RelationAlignment("distributed")
    with torch.no_grad():
        expected = sum(aligned(model, data, 1, 1, anchor, loss) for anchor in ("language", "vision"))
    torch.testing.assert_close(values["iais_distributed"], expected)
    assert 0 < model.evenness.compute()["evenness_words"] < 1


def test_even_attention_is_remarked_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    model = module()
    monkeypatch.setattr(type(model), "trainer", SimpleNamespace(is_global_zero=True))
    for words, regions in ((0.94, 0.97), (0.9987, 0.94), (math.nan, 1.0), (1.0, math.nan), (0.9987, 1.0)):
        model._notes = {"remarks": {"recalls": "another remark stays"}}
        values = {"evenness_words": torch.tensor(words), "evenness_regions": torch.tensor(regions)}
        model._note_even_attention("test", values)
        said = model.evaluation_notes()["remarks"].get("ISDa, L(s) and L(d)", "")
        told = "attention is all but even, among words (0.999) and among regions (1.000)"
        assert (told in said) == (words > 0.95 and regions > 0.95), "one side alone that is even leaves a distance"
        assert model.evaluation_notes()["remarks"]["recalls"] == "another remark stays"
        assert said in capsys.readouterr().out


def test_bad_options_are_told() -> None:
    with pytest.raises(InputError, match="hard_negatives is 0"):
        RankingModule(module().network, hard_negatives=0)
    with pytest.raises(InputError, match="isda_layer is 2; the network has layers 0 to 1"):
        module(isda_layer=2)
    data = batch()
    assert data.hard_images is not None
    short = Candidates(data.hard_images.image_PX[:, :2], data.hard_images.text_PX[:, :2])
    with pytest.raises(InputError, match="2 hard negatives of 1 candidates"):
        module().training_step(replace(data, hard_texts=None, hard_images=short), 0)
    with pytest.raises(InputError, match="carry none; set its regions option"):
        module().training_step(replace(data, images=replace(data.images, regions=None)), 0)


def test_what_a_network_cannot_do_is_refused_before_training() -> None:
    blip, bridgetower = tiny_scorers.network("blip"), tiny_scorers.network("bridgetower")
    for network, options, words in (
        (blip, {"iais": IAIS()}, r"words look at patches by cross-attention.* Set model\.iais to null"),
        (bridgetower, {"iais": IAIS()}, "no sequence holds both"),
        (
            bridgetower,
            {"rerank": Rerank()},
            r"BridgeTower has no vectors of its own to choose pairs by.* Set model\.rerank to null",
        ),
        (blip, {"rerank": Rerank(), "folds": 5}, r"model\.folds: model\.rerank chooses from the whole gallery"),
    ):
        with pytest.raises(InputError, match=words):
            RankingModule(network, **options)
    model = RankingModule(blip, rerank=Rerank())
    for start in (
        model.on_fit_start,
        model.on_test_start,
    ):  # nothing has brought the projections, and ranking does not train them
        with pytest.raises(InputError, match=r"text_proj\.bias.* are at their random start .* chosen by chance"):
            start()


def test_too_few_candidates_are_told_before_the_first_batch() -> None:
    model, data = module(), SimpleNamespace(ranking=Ranking(candidates=HARD))
    model._trainer = SimpleNamespace(datamodule=data)
    model.on_fit_start()
    data.ranking = Ranking(candidates=HARD - 1)
    with pytest.raises(InputError, match=r"2 hard negatives of 1 candidates; lower model\.hard_negatives or raise data"):
        model.on_fit_start()
