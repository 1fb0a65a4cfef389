"""What a caption metric owes, and somebody's own: found by its class path, scored like ours, or refused with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from datamodules.errors import InputError
from lightning_modules.metrics.captions.caption_metric import CaptionMetric, find_metric
from lightning_modules.metrics.captions.evaluation import NAMES, CaptionScorer

OWN = """
from lightning_modules.metrics.captions.caption_metric import CaptionMetric

class Words(CaptionMetric):
    name = "words"
    def score_images(self, references, captions):
        return [len(caption.split()) / 10 for caption in captions]

class Nameless(Words):
    name = ""

class Silent(CaptionMetric):
    name = "silent"

class Short(Words):
    def score_images(self, references, captions):
        return [0.5]

class Stranger:
    name = "stranger"
"""


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "words_metric.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)


def test_ours_are_found_by_the_name_of_their_file() -> None:
    assert [find_metric(name).name for name in NAMES] == list(NAMES)
    assert {key: heading for name in NAMES for key, heading in find_metric(name).columns().items()} == {
        "bleu_4": "B@4", "meteor": "METEOR", "rouge_l": "ROUGE-L", "cider": "CIDEr", "spice": "SPICE",
    }  # fmt: skip
    assert find_metric("cider") is not find_metric("cider")  # an object scores the captions of one split


def test_an_own_metric_has_means_domains_and_images() -> None:
    references = [["a b"], ["c"], ["d e f"]]
    scorer = CaptionScorer(references, ("bleu", "words_metric.Words"), "none", domains=["in", None, "in"])
    found = scorer.score(["a b", "c", "d e f g"])
    assert (found.values["words"], found.values["in/words"]) == (pytest.approx(0.7 / 3), pytest.approx(0.3))
    assert found.per_image["words"].tolist() == pytest.approx([0.2, 0.1, 0.4])
    assert found.columns == {"bleu_4": "B@4", "words": "words"}
    assert found.values.keys() == {
        f"{part}{key}" for part in ("", "in/") for key in (*(f"bleu_{n}" for n in (1, 2, 3, 4)), "words")
    }


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ngrams", "there is no metric 'ngrams'; there are bleu, cider, meteor, rouge_l, spice, or give the class path"),
        (
            "words_metrics.Words",
            "words_metrics.Words: No module named 'words_metrics'; give the class path of a class in a file on",
        ),
        ("words_metric.Word", "has no attribute 'Word'"),
        ("words_metric.Stranger", "is no CaptionMetric: derive it from lightning_modules.metrics.captions.caption_metric"),
        ("words_metric.Nameless", "its name is ''; give the class one"),
        ("words_metric.Silent", r"scores nothing: give it score_images\(references, captions\)"),
    ],
)
def test_what_is_no_metric_is_refused(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_metric(name)


def test_scores_of_another_number_of_images_and_two_of_one_name_are_refused() -> None:
    with pytest.raises(InputError, match=r"caption metric words: 2 images need one number each, it gives \(1,\)"):
        CaptionScorer([["a"], ["b"]], ("words_metric.Short",), "none").score(["a", "b"])
    with pytest.raises(InputError, match="are called words; leave one out"):
        CaptionScorer([["a"]], ("words_metric.Words", "words_metric.Short"), "none")


def test_a_metric_object_keeps_its_options() -> None:
    class Scaled(CaptionMetric):
        name = "scaled"

        def __init__(self, factor: float) -> None:
            self.factor = factor

        def score_images(self, references: Sequence[Sequence[str]], captions: Sequence[str]) -> list[float]:
            return [self.factor for _ in captions]

    assert CaptionScorer([["a"]], [Scaled(0.25)], "none").score(["a"]).values == {"scaled": 0.25}
