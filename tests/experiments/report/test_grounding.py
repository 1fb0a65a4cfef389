"""Shares of words' maps with intervals over images, as a terminal shows them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from experiments.analysis.stored_maps import WordShares
from experiments.report.grounding import lines, measured


def shares(words: int = 60) -> WordShares:
    draw = np.random.default_rng(2)
    inside_W, hits_W = draw.uniform(0, 1, words), (draw.uniform(0, 1, words) < 0.4).astype(float)
    image_W = 3 * (np.arange(words) // 4)  # images without words are no images
    return WordShares(
        image_W,
        np.arange(1),
        inside_W[None],
        inside_W / 2,
        inside_W / 3,
        inside_W,
        image_W,
        "f",
        "2 x 2 patches",
        hits_W,
        inside_W / 2,
    )


def test_means_are_over_words_and_intervals_over_images() -> None:
    found = {each.name: each for each in measured(shares())}
    assert found["inside"].mean == pytest.approx(100 * shares().inside_W.mean())
    assert found["pointed"].mean == pytest.approx(100 * shares().pointed_W.mean())  # type: ignore[union-attr]
    for each in found.values():
        assert each.low < each.mean < each.high
    constant = replace(shares(), inside_LW=np.full((1, 60), 0.25))
    (inside, *_) = measured(constant)
    assert (inside.low, inside.mean, inside.high) == pytest.approx((25, 25, 25))


def test_a_file_of_an_earlier_version_has_no_pointing_game() -> None:
    names = [each.name for each in measured(replace(shares(), pointed_W=None, pointed_even_W=None))]
    assert names == ["inside", "area", "elsewhere"]


def test_a_terminal_shows_each_on_a_line() -> None:
    said = lines(shares(), "gradient")
    assert said[0].startswith("60 words of reference captions that name a thing with boxes, 15 images; maps by gradient: 2 x 2")
    assert said[2] == f"  in the boxes            {100 * shares().inside_W.mean():6.1f}  " + said[2].partition("  (")[2].join(
        ["(", ""]
    )
    assert len(said) == 7
