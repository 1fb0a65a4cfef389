"""Queries with what was found for them: the right ones marked, the ranks true, nothing cut and nothing over another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_runs import write_beside
from kept_figures import keep_figures
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from PIL import Image

from datamodules.errors import InputError
from datamodules.records import Caption, ImageRecord
from experiments.analysis import retrieved
from experiments.analysis.grounding import spread

LONG = "An extraordinarily long sentence of several people who stand about a market in front of a red house, " * 3


def test_queries_are_spread_evenly_and_depend_on_no_result() -> None:
    assert spread(100, 5) == [10, 30, 50, 70, 90]
    assert spread(3, 5) == [0, 1, 2]
    assert spread(7, 2) == [1, 5]


def test_what_is_found_comes_best_first_with_the_rank_of_the_first_right_one() -> None:
    scores_QC = torch.tensor([[0.1, 0.9, 0.5, 0.3], [0.4, 0.3, 0.2, 0.1]])
    right_QC = torch.tensor([[True, False, False, True], [True, True, False, False]])
    one, other = retrieved.answered(scores_QC, right_QC, [0, 1], found=2)
    assert one == retrieved.Query(0, (1, 2), (False, False), 3)
    assert other == retrieved.Query(1, (0, 1), (True, True), 1)


@pytest.fixture
def records(tmp_path: Path) -> list[ImageRecord]:
    """Six images of all shapes with two captions each."""
    made = []
    for image, size in enumerate([(90, 60), (60, 90), (300, 40), (40, 300), (64, 64), (64, 64)]):
        Image.new("RGB", size, (40 * image, 90, 120)).save(tmp_path / f"{image}.png")
        captions = tuple(
            Caption(f"{image}-{each}", text) for each, text in enumerate((f"a $thing$ {image}", LONG if image % 2 else "MW" * 60))
        )
        made.append(ImageRecord(str(image), tmp_path / f"{image}.png", captions))
    return made


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every picture that was written."""
    return keep_figures(monkeypatch)


def assert_nothing_is_cut_or_hidden(figure: Any) -> None:
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [text.get_window_extent(renderer) for text in figure.texts] + [axes.get_window_extent() for axes in figure.axes]
    for row, box in enumerate(boxes):
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert not any(box.overlaps(other) for other in boxes[:row])


def test_a_contact_sheet_marks_what_is_right_and_nothing_overlaps(records: list[ImageRecord]) -> None:
    captions = [caption.text for record in records for caption in record.captions]
    right_IT = torch.arange(6)[:, None] == torch.arange(12)[None] // 2
    scores_IT = torch.rand(6, 12, generator=torch.Generator().manual_seed(0)) - 5.0 * right_IT
    scores_IT[2, 4] = 9.0  # one that is found first, either way; all others come last
    to_images = retrieved.answered(scores_IT.T, right_IT.T, [4, 1, 11], 5)
    to_texts = retrieved.answered(scores_IT, right_IT, [2, 3, 0], 5)
    figure = retrieved.contact_sheet(records, captions, to_images, to_texts)
    frames = [to_hex(axes.spines["left"].get_edgecolor()) for axes in figure.axes]
    assert frames.count(retrieved.RIGHT) == sum(sum(query.right) for query in to_images) == 1
    assert frames.count(retrieved.QUIET) == len(frames) - 1 == 14 + 3
    badges = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert badges == ["1"]
    texts = [text.get_text() for text in figure.texts]
    assert {"the right one has rank 6 of 6", "first right: rank 11"} <= set(texts)
    green = [text.get_text() for text in figure.texts if text.get_color() == retrieved.RIGHT]
    assert green == ["1", "a $thing$ 2"]
    assert any("none is chosen by its result" in text for text in texts)
    assert_nothing_is_cut_or_hidden(figure)


def test_captions_stand_beside_their_images_with_their_scores(tmp_path: Path, figures: list[Any]) -> None:
    runs = [tmp_path / "one-s0-0123abcd", tmp_path / f"{'two' * 30}-s0-4567abcd"]
    for seed, run in enumerate(runs):
        run.mkdir()
        write_beside(run, "coco", np.random.default_rng(seed), tmp_path)
    path = retrieved.draw_captions(runs, tmp_path / "new" / "captions.png", "coco", images=3)
    with Image.open(path) as picture:
        assert picture.width > 1200
    (figure,) = figures
    texts = [text.get_text() for text in figure.texts]
    assert texts[0].startswith("3 of 4 images of coco, spread evenly: none is chosen by its captions.")
    assert (texts.count("one"), texts.count("people")) == (3, 3)
    assert sum(text.startswith("CIDEr ") for text in texts) == 6
    assert_nothing_is_cut_or_hidden(figure)
    with pytest.raises(InputError, match="no run was given"):
        retrieved.captions_sheet([])
    with pytest.raises(InputError, match="0 images are no picture; give 1 or more"):
        retrieved.draw_captions(runs, tmp_path / "captions.png", "coco", images=0)
