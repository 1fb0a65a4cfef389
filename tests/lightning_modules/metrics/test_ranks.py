"""Ranks against naive argsort twins: ties, embeddings, precision, and what is refused."""

from __future__ import annotations

import pytest
import torch
from naive_ranks import naive_ranks, world

from datamodules.errors import InputError
from lightning_modules.metrics.ranks import Ties, embedding_ranks, score_ranks
from lightning_modules.metrics.recalls import recalls


@pytest.mark.parametrize("ties", ["pessimistic", "index"])
@pytest.mark.parametrize(
    ("seed", "images", "texts", "levels"), [(0, 7, 31, 1), (1, 23, 40, 2), (2, 12, 60, 50), (3, 1, 3, 1), (4, 9, 1, 1)]
)
@pytest.mark.parametrize(("block_rows", "keep_bytes"), [(4, 2**30), (4, 0), (1, 0), (1000, 2**30)])
def test_equal_to_naive_argsort(
    ties: Ties, seed: int, images: int, texts: int, levels: int, block_rows: int, keep_bytes: int
) -> None:
    images_ID, texts_TD, image_index = world(seed, images, texts, levels)
    scores = images_ID @ texts_TD.T
    i2t, t2i = naive_ranks(scores, image_index.tolist(), ties)
    from_embeddings = embedding_ranks(images_ID, texts_TD, image_index, ties=ties, block_rows=block_rows, keep_bytes=keep_bytes)
    from_scores = score_ranks(scores, image_index, ties=ties, block_rows=block_rows)
    for ranks in (from_embeddings, from_scores):
        assert ranks.i2t_Q.tolist() == i2t
        assert ranks.t2i_T.tolist() == t2i
        assert ranks.i2t_image_Q.tolist() == sorted(set(image_index.tolist()))


def test_real_valued_embeddings_equal_to_naive() -> None:
    draw = torch.Generator().manual_seed(5)
    image_index = torch.arange(300).repeat_interleave(5)[torch.randperm(1500, generator=draw)]
    images_ID = torch.nn.functional.normalize(torch.randn(300, 64, generator=draw, dtype=torch.float64), dim=1)
    texts_TD = images_ID[image_index] + 0.3 * torch.randn(1500, 64, generator=draw, dtype=torch.float64)
    ranks = embedding_ranks(images_ID, texts_TD, image_index, block_rows=7)
    scores = images_ID @ texts_TD.T
    t2i = (scores.argsort(0, descending=True) == image_index).nonzero()
    assert ranks.t2i_T[t2i[:, 1]].tolist() == (t2i[:, 0] + 1).tolist()
    own_in_order = image_index[scores.argsort(1, descending=True)] == torch.arange(300)[:, None]
    assert ranks.i2t_Q.tolist() == (own_in_order.int().argmax(1) + 1).tolist()
    assert 10 < float(recalls(ranks)["t2i_r1"]) < 99  # neither hopeless nor solved, or the comparison would show little


def test_targets_never_lose_against_themselves() -> None:
    """Every image its own best: with any rounding of the matmul a rank below or above 1 would show."""
    draw = torch.Generator().manual_seed(6)
    images_ID = torch.nn.functional.normalize(torch.randn(513, 96, generator=draw), dim=1)
    for keep_bytes in (0, 2**30):
        ranks = embedding_ranks(images_ID, images_ID, torch.arange(513), keep_bytes=keep_bytes, block_rows=100)
        assert ranks.i2t_Q.unique().tolist() == [1]
        assert ranks.t2i_T.unique().tolist() == [1]


def test_constant_scores_get_no_hits() -> None:
    image_index = torch.arange(20).repeat_interleave(5)
    ranks = score_ranks(torch.zeros(20, 100), image_index)
    assert ranks.i2t_Q.unique().tolist() == [96]  # behind the 95 captions of others
    assert ranks.t2i_T.unique().tolist() == [20]
    assert float(recalls(ranks)["rsum"]) == 0
    by_index = score_ranks(torch.zeros(20, 100), image_index, ties="index")
    assert by_index.i2t_Q.tolist() == list(range(1, 100, 5))
    assert by_index.t2i_T.tolist() == (image_index + 1).tolist()


def test_images_without_captions_are_candidates_but_no_queries() -> None:
    scores = torch.tensor([[0.9, 0.1], [0.95, 0.0], [0.2, 0.8]])
    ranks = score_ranks(scores, torch.tensor([0, 2]))
    assert ranks.i2t_image_Q.tolist() == [0, 2]
    assert ranks.i2t_Q.tolist() == [1, 1]
    assert ranks.t2i_T.tolist() == [2, 1]  # image 1 has no caption and still beats image 0 for caption 0


@pytest.mark.parametrize("precision", ["bf16 autocast", "medium"])
def test_precision_around_the_call_does_not_matter(precision: str) -> None:
    draw = torch.Generator().manual_seed(9)
    images_ID, texts_TD = torch.randn(200, 32, generator=draw), torch.randn(200, 32, generator=draw)
    expected = embedding_ranks(images_ID, texts_TD, torch.arange(200))
    torch.set_float32_matmul_precision("medium" if precision == "medium" else "highest")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16 autocast"):
            ranks = embedding_ranks(images_ID, texts_TD, torch.arange(200))
        assert torch.get_float32_matmul_precision() == ("medium" if precision == "medium" else "highest")
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(ranks.t2i_T, expected.t2i_T)
    assert torch.equal(ranks.i2t_Q, expected.i2t_Q)


def test_bad_input_is_named() -> None:
    good, index = torch.eye(4), torch.arange(4)
    broken = good.clone()
    broken[2, 1] = torch.nan
    with pytest.raises(InputError, match="image row 2 and caption row 1 is NaN"):
        score_ranks(broken, index)
    with pytest.raises(InputError, match="image embeddings hold NaN"):
        embedding_ranks(broken, good, index)
    with pytest.raises(InputError, match="caption embeddings hold NaN"):
        embedding_ranks(good, broken, index)
    with pytest.raises(InputError, match="overflowing"):
        embedding_ranks(good * 1e25, good * 1e25, index)
    with pytest.raises(InputError, match="caption row 3 points at image row 4"):
        score_ranks(good, torch.tensor([0, 1, 2, 4]))
    with pytest.raises(InputError, match="nothing to rank"):
        score_ranks(torch.empty(0, 4), index)
    with pytest.raises(InputError, match="do not match"):
        embedding_ranks(good, torch.eye(5), torch.arange(5))
    with pytest.raises(InputError, match="one int64 image row"):
        score_ranks(good, torch.arange(3))
    with pytest.raises(InputError, match="ties='random'"):
        score_ranks(good, index, ties="random")  # type: ignore[arg-type]
