"""Several right answers a query: against sorted lists, and against what the package eccv_caption gave on the same ranks."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from naive_positives import naive_measures
from torch import Tensor

from datamodules.errors import InputError
from datamodules.records import Positives
from lightning_modules.metrics.positives import embedding_measures, positive_notes, score_measures
from lightning_modules.metrics.ranks import Ties, positive_ranks, score_ranks
from lightning_modules.metrics.retrieval import RetrievalRecall

RECORDED = json.loads((Path(__file__).parents[2] / "recordings" / "retrieval" / "eccv_caption.json").read_text())


def positives(seed: int, images: int, texts: int, share: float) -> Positives:
    draw = torch.Generator().manual_seed(seed)

    def pairs(queries: int, candidates: int) -> tuple[Tensor, Tensor]:
        found = (torch.rand(queries, candidates, generator=draw) < share).nonzero()
        return tuple(found[torch.randperm(len(found), generator=draw)].T.contiguous())

    return Positives(*pairs(images, texts), *pairs(texts, images))


def answers(query_P: Tensor, answer_P: Tensor) -> dict[int, list[int]]:
    found = defaultdict(list)
    for query, answer in zip(query_P.tolist(), answer_P.tolist(), strict=True):
        found[query].append(answer)
    return found


@pytest.mark.parametrize("ties", ["pessimistic", "index"])
@pytest.mark.parametrize(
    ("seed", "images", "texts", "levels", "share"),
    [(0, 9, 31, 1, 0.2), (1, 23, 40, 2, 0.05), (2, 12, 60, 50, 0.5), (3, 1, 5, 1, 0.5), (4, 300, 11, 1, 0.9)],
)
def test_equal_to_sorted_lists(ties: Ties, seed: int, images: int, texts: int, levels: int, share: float) -> None:
    """Integer embeddings: few levels have many ties."""
    draw = torch.Generator().manual_seed(seed)
    images_ID, texts_TD = (torch.randint(-levels, levels + 1, (n, 3), generator=draw).float() for n in (images, texts))
    scores, found = images_ID @ texts_TD.T, positives(seed, images, texts, share)
    expected = {
        f"own_{side}_{name}": value
        for side, of_side, pairs in (
            ("i2t", scores, (found.i2t_image_P, found.i2t_text_P)),
            ("t2i", scores.T, (found.t2i_text_P, found.t2i_image_P)),
        )
        for name, value in naive_measures(of_side, answers(*pairs), ties).items()
    }
    for values in (embedding_measures(images_ID, texts_TD, {"own": found}, ties), score_measures(scores, {"own": found}, ties)):
        assert {name: float(value) for name, value in values.items()} == pytest.approx(expected)


@pytest.mark.parametrize("ties", ["pessimistic", "index"])
def test_one_right_answer_has_the_rank_of_the_plain_recalls(ties: Ties) -> None:
    scores = torch.randint(0, 6, (40, 40), generator=torch.Generator().manual_seed(3)).float()
    rows = torch.arange(40)
    ranks = positive_ranks(lambda queries: scores.T[queries], rows, rows, ties=ties, block_rows=7)
    assert ranks.tolist() == score_ranks(scores, rows, ties=ties).t2i_T.tolist()


def test_equal_to_the_package_on_the_same_ranks() -> None:
    images = {number: row for row, number in enumerate(RECORDED["image_ids"])}
    captions = {number: row for row, number in enumerate(RECORDED["caption_ids"])}

    def pairs(ids: dict[str, list[int]], queries: dict[int, int], candidates: dict[int, int]) -> tuple[Tensor, Tensor]:
        rows = [(queries[int(query)], candidates[answer]) for query, each in ids.items() for answer in each]
        return tuple(torch.tensor(rows).T)

    sets = {
        name: Positives(*pairs(files["image_to_caption"], images, captions), *pairs(files["caption_to_image"], captions, images))
        for name, files in RECORDED["positives"].items()
    }
    found = score_measures(torch.tensor(RECORDED["scores"], dtype=torch.float64), sets, "pessimistic")
    assert len(RECORDED["expected"]) == 16
    assert {name: float(found[name]) for name in RECORDED["expected"]} == pytest.approx(RECORDED["expected"])


def test_infinite_scores_are_ordered_and_nan_is_refused() -> None:
    scores = torch.tensor([[torch.inf, 1.0, torch.inf, -torch.inf]])
    query_P = torch.zeros(2, dtype=torch.int64)
    assert positive_ranks(lambda rows: scores[rows], query_P, torch.tensor([3, 2])).tolist() == [4, 2]
    scores[0, 1] = torch.nan
    with pytest.raises(InputError, match="a score is NaN"):
        positive_ranks(lambda rows: scores[rows], query_P, torch.tensor([3, 2]))
    with pytest.raises(InputError, match="no right answer to rank"):
        positive_ranks(lambda rows: scores[rows], query_P[:0], query_P[:0])


def test_a_retrieval_metric_gives_them_beside_its_recalls() -> None:
    draw = torch.Generator().manual_seed(1)
    images_ID, texts_TD = torch.randn(8, 4, generator=draw), torch.randn(16, 4, generator=draw)
    metric, found = RetrievalRecall(), positives(5, 8, 16, 0.3)
    metric.positives = {"own": found}
    order = torch.randperm(16, generator=draw)  # captions come in any order; positives are rows of the split
    metric.update_images(images_ID, torch.arange(8))
    metric.update_texts(texts_TD[order], order, order // 2)
    values = metric.compute()
    expected = embedding_measures(images_ID, texts_TD, {"own": found}, "pessimistic")
    assert {name: value for name, value in values.items() if name.startswith("own_")} == expected
    assert "i2t_r1" in values


def test_what_results_say_of_them() -> None:
    one = torch.tensor([0, 0, 2])
    notes = positive_notes({"eccv": Positives(one, torch.arange(3), torch.arange(3), one)})
    assert notes["positives"] == {"eccv": "i2t: 2 queries with 3 right answers, t2i: 3 queries with 3 right answers"}
    assert notes["columns"]["eccv_t2i_map_at_r"] == "eccv t2i mAP@R"
    assert positive_notes({}) == {}
