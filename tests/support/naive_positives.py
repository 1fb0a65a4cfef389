"""Measures with several right answers a query, from sorted lists, one query after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor


def naive_measures(scores: Tensor, answers: Mapping[int, Sequence[int]], ties: str = "pessimistic") -> dict[str, float]:
    """Means in percent over the queries (rows of the scores) that have answers (columns)."""
    total = dict.fromkeys(("map_at_r", "rprecision", "r1", "r5", "r10"), 0.0)
    for query, right in answers.items():
        row = scores[query].tolist()
        order = sorted(range(len(row)), key=lambda c: (-row[c], ties == "pessimistic" and c in right, c))
        hits = [candidate in right for candidate in order]
        total["rprecision"] += sum(hits[: len(right)]) / len(right)
        total["map_at_r"] += sum(sum(hits[:k]) / k for k in range(1, len(right) + 1) if hits[k - 1]) / len(right)
        for k in (1, 5, 10):
            total[f"r{k}"] += any(hits[:k])
    return {name: 100 * value / len(answers) for name, value in total.items()}
