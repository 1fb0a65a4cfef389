"""What a caption metric owes. Ours are one file each in this folder, named like the metric; somebody's own is a class anywhere.

The least of a metric is a `name` and `score_images`: a number an image, whose mean is the score of a set.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from datamodules.errors import InputError
from lightning_modules.checkpoints.trust import require_importable
from lightning_modules.metrics.captions.ngrams import Candidates, ReferenceNgrams

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class References:
    """The references of a split; what several metrics count of them is counted once.

    Args:
        sentences: Tokenized sentences of each image (words separated by white space), at least one an image.
        rows_of: Rows of the images of each domain.
        own_frequencies: Whether a domain has document frequencies of its own, in place of those of the whole split.
        raw: The same sentences as people wrote them, for a metric with a tokenizer of its own.
        files: The images, for a metric that looks at them; None where there is no file.
    """

    sentences: list[list[str]]
    rows_of: Mapping[str, Integers] = field(default_factory=dict)
    own_frequencies: bool = False
    raw: Sequence[Sequence[str]] = ()
    files: Sequence[Path | None] = ()

    @cached_property
    def ngrams(self) -> ReferenceNgrams:
        return ReferenceNgrams(self.sentences)


@dataclass(frozen=True)
class Captions:
    """One tokenized caption an image of the references; `raw` as it was written."""

    sentences: list[str]
    references: References
    raw: Sequence[str] = ()

    @cached_property
    def matched(self) -> Candidates:
        """Their n-grams, found again among those of the references."""
        return self.references.ngrams.match(self.sentences)


@dataclass(frozen=True)
class MetricScores:
    """What one metric found.

    Args:
        values: Of the whole set by key, and of each domain as DOMAIN/key.
        per_image: The keys of the whole set, one number an image [I].
        remark: What these numbers do not show, where that is not what a reader takes them for; "" = nothing.
    """

    values: dict[str, float]
    per_image: dict[str, Floats]
    remark: str = ""


class CaptionMetric:
    """A caption metric: fractions, which tables show times 100. An object scores captions of one split.

    Attributes:
        name: Key of its score in results, logs and files.
        heading: Of its column in a table; by default the name.
    """

    name: ClassVar[str] = ""
    heading: ClassVar[str] = ""
    references: References

    def require(self) -> None:
        """See that what it needs is installed, before anybody has waited for captions.

        Raises:
            Unavailable: It is not; the message says what to install.
        """

    def count(self, references: References) -> None:
        """Take the references, and count what depends on them alone. Called once, before the first captions."""
        self.references = references

    def score(self, captions: Captions) -> MetricScores:
        """Scores of the set, of its domains and of each image.

        Raises:
            Unavailable: Something it needs is not installed: it is then left out, unless it is required.
            InputError: Captions that cannot be scored, or a program that fails.
        """
        return self.means(self.score_images(self.references.sentences, captions.sentences))

    def score_images(self, references: Sequence[Sequence[str]], captions: Sequence[str]) -> Floats | Sequence[float]:
        """One number an image, for a metric whose score of a set is their mean.

        Args:
            references: Tokenized sentences of each image.
            captions: One tokenized sentence an image.
        """
        raise NotImplementedError(f"{type(self).__name__} gives neither score_images nor score")

    def means(self, scores: Floats | Sequence[float], key: str | None = None) -> MetricScores:
        """What is found where sets are scored by the mean over their images.

        Args:
            scores: A number an image.
            key: Of a metric that has several; None = its name.

        Raises:
            InputError: Not one number an image.
        """
        scores_I = np.asarray(scores, np.float64)
        images = len(self.references.sentences)
        if scores_I.shape != (images,):
            raise InputError(f"caption metric {self.name}: {images} images need one number each, it gives {scores_I.shape}")
        key = key or self.name
        values = {key: float(scores_I.mean())}
        values |= {f"{domain}/{key}": float(scores_I[rows].mean()) for domain, rows in self.references.rows_of.items()}
        return MetricScores(values, {key: scores_I})

    def columns(self) -> dict[str, str]:
        """Headings of a table by key."""
        return {self.name: self.heading or self.name}


def find_metric(name: str) -> CaptionMetric:
    """A new metric object.

    Args:
        name: One of ours ("cider"), or the class path of somebody's own ("my_file.MyMetric").

    Raises:
        InputError: There is no such metric, it is none, or a file names it that is not trusted to.
    """
    module, _, class_name = name.rpartition(".")
    if not module:
        if (ours := _metric_of_file(name)) is None:
            known = sorted(info.name for info in pkgutil.iter_modules([str(Path(__file__).parent)]) if _metric_of_file(info.name))
            raise InputError(f"there is no metric {name!r}; there are {', '.join(known)}, or give the class path of your own")
        return ours()
    require_importable(name)
    try:
        found = getattr(importlib.import_module(module), class_name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"caption metric {name}: {error}; give the class path of a class in a file on PYTHONPATH") from error
    if not isinstance(found, type) or not issubclass(found, CaptionMetric):
        raise InputError(f"caption metric {name} is no {CaptionMetric.__name__}: derive it from {CaptionMetric.__module__}")
    if not found.name or "/" in found.name:
        raise InputError(f"caption metric {name}: its name is {found.name!r}; give the class one, its key in results, without /")
    if found.score is CaptionMetric.score and found.score_images is CaptionMetric.score_images:
        raise InputError(f"caption metric {name} scores nothing: give it score_images(references, captions)")
    return found()


def _metric_of_file(name: str) -> type[CaptionMetric] | None:
    """The metric that a file of this folder defines."""
    path = f"{__package__}.{name}"
    try:
        content = vars(importlib.import_module(path))
    except ModuleNotFoundError as error:
        if error.name != path:
            raise
        return None
    own = (
        each
        for each in content.values()
        if isinstance(each, type) and each.__module__ == path and each.__name__ != "CaptionMetric"
    )
    return next((each for each in own if issubclass(each, CaptionMetric)), None)
