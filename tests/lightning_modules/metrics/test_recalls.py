"""Recalls against torchmetrics, by hand, and over folds."""

from __future__ import annotations

import pytest
import torch
from naive_ranks import naive_ranks, world
from torchmetrics.retrieval import RetrievalHitRate

from datamodules.errors import InputError
from lightning_modules.metrics.ranks import embedding_ranks, score_ranks
from lightning_modules.metrics.recalls import certain_recalls, fold_recalls, recalls


def test_equal_to_torchmetrics_hit_rate() -> None:
    draw = torch.Generator().manual_seed(7)
    image_index = torch.arange(40).repeat_interleave(5)
    scores = torch.randn(40, 200, generator=draw) + 1.5 * (image_index == torch.arange(40)[:, None])
    ours = recalls(score_ranks(scores, image_index))
    target = image_index == torch.arange(40)[:, None]
    for k in (1, 5, 10):
        images, texts = torch.meshgrid(torch.arange(40), torch.arange(200), indexing="ij")
        for name, query in (("i2t", images), ("t2i", texts)):
            hit_rate = RetrievalHitRate(top_k=k)(scores.flatten(), target.flatten(), query.flatten())
            assert float(ours[f"{name}_r{k}"]) == pytest.approx(100 * float(hit_rate), abs=1e-4)


def test_recalls_by_hand() -> None:
    scores = torch.eye(12).repeat_interleave(2, 1) + torch.linspace(0, 0.1, 24)
    scores[0, :2] = -1  # image 0: its captions come last, behind 22 others; and captions 0, 1 rank image 0 last of 12
    values = recalls(score_ranks(scores, torch.arange(12).repeat_interleave(2)))
    assert {name: round(float(value), 4) for name, value in values.items()} == {
        "i2t_r1": 91.6667, "i2t_r5": 91.6667, "i2t_r10": 91.6667, "t2i_r1": 91.6667, "t2i_r5": 91.6667, "t2i_r10": 91.6667,
        "rsum": 550.0, "mean_recall": 91.6667, "i2t_medr": 1.0, "t2i_medr": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize(("ranks", "median"), [([3, 1, 4], 3), ([1, 2], 1), ([5, 2, 8, 4], 4), ([1, 4], 2)])
def test_median_rank_of_an_even_count_is_rounded_down(ranks: list[int], median: int) -> None:
    # A score row per image: `rank - 1` others score higher than its own caption, one caption an image, 12 images.
    scores = torch.zeros(12, 12)
    for image, rank in enumerate(ranks):
        others = [text for text in range(12) if text != image]
        scores[image, others[: rank - 1]] = 2
        scores[image, image] = 1
    index = torch.arange(12)
    i2t = score_ranks(scores, index).i2t_Q[: len(ranks)]
    assert i2t.tolist() == ranks
    from lightning_modules.metrics.ranks import Ranks

    assert float(recalls(Ranks(i2t, index[: len(ranks)], i2t))["i2t_medr"]) == median


def test_fold_recalls_is_the_mean_over_galleries() -> None:
    images_ID, texts_TD, image_index = world(8, 30, 150, 3)
    folded = fold_recalls(images_ID, texts_TD, image_index, folds=3)
    parts = []
    for start in (0, 10, 20):
        rows = [text for text, owner in enumerate(image_index.tolist()) if start <= owner < start + 10]
        owners = [owner - start for owner in image_index[rows].tolist()]
        parts.append(naive_ranks(images_ID[start : start + 10] @ texts_TD[rows].T, owners, "pessimistic"))
    for k in (1, 5, 10):
        for name, which in (("i2t", 0), ("t2i", 1)):
            expected = sum(100 * sum(rank <= k for rank in part[which]) / len(part[which]) for part in parts) / 3
            assert float(folded[f"{name}_r{k}"]) == pytest.approx(expected)
    assert float(folded["t2i_r1"]) > float(recalls(embedding_ranks(images_ID, texts_TD, image_index))["t2i_r1"])
    with pytest.raises(InputError, match="folds is 7, and 30 images do not divide"):
        fold_recalls(images_ID, texts_TD, image_index, folds=7)


@pytest.mark.parametrize(
    ("images", "owners", "certain"),
    [
        (2, [0, 0, 0, 1, 1, 1], "i2t R@5, i2t R@10, t2i R@5, t2i R@10"),
        (2, [0, 0, 0, 1], "i2t R@5, i2t R@10, t2i R@5, t2i R@10"),  # the image of one caption may find it in the fourth place
        (5, list(range(5)) * 3, "t2i R@5, t2i R@10"),  # of 15 captions 3 are an image's own: the thirteenth place is the last
        (10, list(range(10)), "i2t R@10, t2i R@10"),
        (11, list(range(11)), ""),
    ],
)
def test_recalls_that_any_model_has_are_named(images: int, owners: list[int], certain: str) -> None:
    index = torch.tensor(owners)
    remark = certain_recalls(images, index)
    assert certain in remark
    assert bool(remark) == bool(certain)
    worst = torch.where(index[None] == torch.arange(images)[:, None], -1.0, 1.0)  # each pair behind all others
    values = recalls(score_ranks(worst, index))
    for direction in ("i2t", "t2i"):
        for k in (1, 5, 10):
            named = f"{direction} R@{k}" in certain.split(", ")
            assert (float(values[f"{direction}_r{k}"]) == 100) == named, (direction, k)
