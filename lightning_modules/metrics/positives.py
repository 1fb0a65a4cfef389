"""Measures of retrieval where a query has several right answers: mAP@R, R-Precision and Recall@k.

Karpathy's captions of COCO know one image a caption and five captions an image; many others fit as well. ECCV Caption (Chun et
al., ECCV 2022, arXiv 2204.03359) and Crisscrossed Captions (Parekh et al., EACL 2021, arXiv 2004.15020) had people say which.

    R              right answers of a query
    R-Precision    right ones among the first R, over R
    mAP@R          (1 / R) * sum over k = 1..R of precision at k where the k-th is right (Musgrave et al. 2020)
    Recall@k       whether one of the first k is right

All are means over queries, in percent. Equal to the package eccv_caption on the same order of answers.

Legend: P pairs of a query and a right answer, Q queries, I images, T texts (captions).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from datamodules.records import Positives
from lightning_modules.metrics.ranks import Ties, embedding_positive_ranks, positive_ranks

_HEADINGS = {"map_at_r": "mAP@R", "r1": "R@1"}  # those that a table has columns of

Ranker = Callable[[Tensor, Tensor], Tensor]


def measures(ranks_P: Tensor, query_P: Tensor) -> dict[str, Tensor]:
    """The measures of each query [Q] (float64, 0 to 1, on the CPU), queries in ascending order of their rows.

    Args:
        ranks_P: From `positive_ranks`.
        query_P: The query of each.
    """
    _, place_P, right_Q = torch.unique(query_P.cpu(), return_inverse=True, return_counts=True)
    order_P = ranks_P.cpu().argsort(stable=True)
    order_P = order_P[place_P[order_P].argsort(stable=True)]
    rank_P, owner_P = ranks_P.cpu()[order_P].double(), place_P[order_P]
    number_P = torch.arange(1, len(owner_P) + 1) - (right_Q.cumsum(0) - right_Q)[owner_P]  # 1 = the best placed of its query
    among_P = rank_P <= right_Q[owner_P]

    def of_queries(value_P: Tensor) -> Tensor:
        return torch.zeros(len(right_Q), dtype=torch.float64).index_add_(0, owner_P, value_P.double())

    best_Q = rank_P[number_P == 1]
    return {
        "map_at_r": of_queries(torch.where(among_P, number_P / rank_P, 0.0)) / right_Q,
        "rprecision": of_queries(among_P) / right_Q,
        **{f"r{k}": (best_Q <= k).double() for k in (1, 5, 10)},
    }


def embedding_measures(images_ID: Tensor, texts_TD: Tensor, sets: Mapping[str, Positives], ties: Ties) -> dict[str, Tensor]:
    """Of each set of positives and both directions `SET_i2t_map_at_r` and so on, in percent, from embeddings."""
    return _all_measures(
        sets,
        lambda query_P, found_P: embedding_positive_ranks(images_ID, texts_TD, query_P, found_P, ties=ties),
        lambda query_P, found_P: embedding_positive_ranks(texts_TD, images_ID, query_P, found_P, ties=ties),
    )


def score_measures(scores_IT: Tensor, sets: Mapping[str, Positives], ties: Ties) -> dict[str, Tensor]:
    """The same from the scores of all pairs."""
    return _all_measures(
        sets,
        lambda query_P, found_P: positive_ranks(lambda rows: scores_IT[rows], query_P, found_P, ties=ties),
        lambda query_P, found_P: positive_ranks(lambda rows: scores_IT[:, rows].T, query_P, found_P, ties=ties),
    )


def _all_measures(sets: Mapping[str, Positives], i2t: Ranker, t2i: Ranker) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, positives in sets.items():
        sides = (
            ("i2t", i2t, positives.i2t_image_P, positives.i2t_text_P),
            ("t2i", t2i, positives.t2i_text_P, positives.t2i_image_P),
        )
        for side, ranker, query_P, answer_P in sides:
            of_queries = measures(ranker(query_P, answer_P), query_P)
            found |= {f"{name}_{side}_{measure}": 100 * values_Q.mean() for measure, values_Q in of_queries.items()}
    return found


def positive_notes(sets: Mapping[str, Positives]) -> dict[str, dict[str, str]]:
    """What results.json says of them: the sets, how large they are, and the headings that a table gives some measures."""
    if not sets:
        return {}
    sizes = {
        name: ", ".join(
            f"{side}: {len(query_P.unique()):,} queries with {len(query_P):,} right answers"
            for side, query_P in (("i2t", each.i2t_image_P), ("t2i", each.t2i_text_P))
        )
        for name, each in sets.items()
    }
    headings = {
        f"{name}_{side}_{measure}": f"{name} {side} {heading}"
        for name in sets
        for side in ("i2t", "t2i")
        for measure, heading in _HEADINGS.items()
    }
    return {"positives": sizes, "columns": headings}
