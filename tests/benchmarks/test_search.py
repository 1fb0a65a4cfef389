"""The search benchmark: vectors with the statistics it says, rows that a small index fills, a worker without torch."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import search


def unit(vectors_ND: search.Array) -> search.Array:
    return vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def trained() -> tuple[search.Array, search.Array]:
    """Stands for a model's: a few directions have most of the variance, and images lie elsewhere than texts."""
    rng = np.random.default_rng(0)
    spread, mean = np.float32(0.7) ** np.arange(12, dtype=np.float32), np.full(12, 0.3, np.float32)
    normal = rng.standard_normal((2, 400, 12), dtype=np.float32) * spread
    return unit(normal[0] + mean), unit(normal[1] - mean)


@pytest.mark.parametrize("width", [12, 48])
def test_drawn_vectors_are_like_the_trained_ones(trained: tuple[search.Array, search.Array], width: int) -> None:
    source = search.Source(*trained, width)
    rng = np.random.default_rng(1)
    means = []
    for kind, own_ND in zip(("images", "texts"), trained, strict=True):
        drawn_ND = source.draw(kind, 4000, rng)
        np.testing.assert_allclose(np.linalg.norm(drawn_ND, axis=1), 1, atol=1e-5)
        means.append(drawn_ND.mean(0))
        assert np.linalg.norm(means[-1]) == pytest.approx(np.linalg.norm(own_ND.mean(0)), rel=0.15)
        found, own = (np.linalg.eigvalsh(np.cov(each.T))[::-1] for each in (drawn_ND, own_ND))
        assert found.sum() == pytest.approx(own.sum(), rel=0.1)
        assert found[: width // 4].sum() / found.sum() == pytest.approx(own[:3].sum() / own.sum(), abs=0.15)
    cosine = means[0] @ means[1] / np.linalg.norm(means[0]) / np.linalg.norm(means[1])
    own = [each.mean(0) for each in trained]
    assert cosine == pytest.approx(own[0] @ own[1] / np.linalg.norm(own[0]) / np.linalg.norm(own[1]), abs=0.15)


def test_a_row_of_a_small_index(trained: tuple[search.Array, search.Array], tmp_path: Path) -> None:
    made = search.row(tmp_path, search.Source(*trained, 12), 600, 12, rounds=2, queries=3)
    assert made["recall"] == 1  # every image is a candidate
    assert made["files_mib"]["vectors.npy"] == pytest.approx((600 * 12 * 4 + 128) / 2**20)
    for side in ("exact", "ann"):
        assert [step["mean_ms"] > 0 for step in made[side]["rounds"]] == [True, True]
    (line,) = search.report([made]).splitlines()[2:]
    assert line.startswith("| 600 x 12 |")
    assert line.endswith("| 1.000 |")
