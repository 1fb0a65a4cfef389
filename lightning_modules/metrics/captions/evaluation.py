"""All caption metrics of a split in one place: tokenized once, counted once, by domain.

Scores are fractions, as coco-caption gives them (papers print 100 times that). A metric whose program is not installed is left
out and named in `Scores.unavailable`, unless it is required.

By domain (NoCaps): CIDEr, ROUGE-L and SPICE of a domain are means of the per-image scores of the whole evaluation, so CIDEr's
document frequencies are those of the whole set ("whole", the default). This is what NoCaps' server does, as far as the published
tables tell: in all rows the overall CIDEr is the mean of the domains' weighted by their images. "subset" gives every domain its
own document frequencies, as many public scripts do; CIDEr comes out 1 to 6 % higher then on coco-caption's demo. BLEU and METEOR
are scores of a set and are always computed on the domain's images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from datamodules.errors import InputError
from lightning_modules.metrics.captions import tokenizer as tokenizers
from lightning_modules.metrics.captions.caption_metric import CaptionMetric, Captions, Floats, Integers, References, find_metric
from lightning_modules.metrics.captions.java import Unavailable, find_java, ptb_jar

Tokenizer = Literal["auto", "ptb", "simple", "none"]
Frequencies = Literal["whole", "subset"]

NAMES = ("bleu", "meteor", "rouge_l", "cider", "spice")  # coco-caption's
JAVA_FREE = ("bleu", "rouge_l", "cider")


@dataclass(frozen=True)
class Scores:
    """What was found.

    Args:
        values: Of the whole set `bleu_1` ... `bleu_4`, `meteor`, `rouge_l`, `cider`, `spice`, and of each domain `DOMAIN/cider`
            and so on.
        per_image: The same names, one number an image [I].
        unavailable: Metrics that were not computed, each with what to install; the tokenizer among them where "auto" did without.
        tokenizer: The one that was used.
        columns: Headings of a table by key, of the metrics that were computed.
        remarks: By metric, and of "captions" and "references": what the numbers do not show.
    """

    values: dict[str, float]
    per_image: dict[str, Floats]
    unavailable: dict[str, str]
    tokenizer: str
    columns: dict[str, str] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)


class CaptionScorer:
    """Scores any number of candidate sets against the references of a split, which are tokenized and counted once.

    Args:
        references: Captions of each image, as people wrote them; without metrics there need be none.
        metrics: Which to compute: names of ours, class paths of others, or objects of this scorer's own.
        tokenizer: "ptb" = coco-caption's, for numbers that are compared with published ones (needs Java); "simple" = without
            Java; "auto" = ptb where it is installed, otherwise simple; "none" = the text is tokenized already.
        required: Metrics that must be there.
        domains: Domain of each image (None: of none; it counts in the whole only).
        domain_frequencies: CIDEr's document frequencies for a domain: of the "whole" set, or of its own "subset".
        files: Of each image, for metrics that look at images.

    Raises:
        InputError: No images, an image without references, or names that do not exist.
        Unavailable: A required metric, or the tokenizer "ptb", is not installed.
    """

    def __init__(
        self,
        references: Sequence[Sequence[str]],
        metrics: Sequence[str | CaptionMetric] = NAMES,
        tokenizer: Tokenizer = "auto",
        required: Sequence[str] = (),
        domains: Sequence[str | None] | None = None,
        domain_frequencies: Frequencies = "whole",
        files: Sequence[Path | None] = (),
    ) -> None:
        _among("tokenizer", tokenizer, get_args(Tokenizer))
        _among("domain_frequencies", domain_frequencies, get_args(Frequencies))
        if not references:
            raise InputError("there are no images to score captions of")
        objects = {each.name: each for each in metrics if isinstance(each, CaptionMetric)}
        asked = [each if isinstance(each, str) else each.name for each in metrics]
        self.metrics = {name: objects.get(name) or find_metric(name) for name in [*asked, *required]}
        names = [metric.name for metric in self.metrics.values()]
        if twice := {name for name in names if names.count(name) > 1}:
            raise InputError(f"two of the metrics {', '.join(self.metrics)} are called {twice.pop()}; leave one out")
        for row, sentences in enumerate(references):
            if not sentences and self.metrics:
                raise InputError(f"image row {row} has no references: every image needs at least one")
        if domains is not None and len(domains) != len(references):
            raise InputError(f"{len(domains)} domains for {len(references)} images: every image needs one, or None")
        self.required = tuple(required)
        self.images = len(references)
        self.domain_frequencies: Frequencies = domain_frequencies
        self.rows_of: dict[str, Integers] = {}
        for name in sorted({domain for domain in domains or () if domain is not None}):
            self.rows_of[name] = np.array([row for row, domain in enumerate(domains or ()) if domain == name])
        for name in self.required:
            try:
                self.metrics[name].require()
            except Unavailable as error:
                raise Unavailable(f"{name} is required and unavailable: {error}") from error
        if tokenizer == "ptb":
            ptb_jar()
            find_java()
        self._raw, self._files = references, files
        self._kind: Tokenizer = tokenizer
        self._counted: _Counted | None = None

    @property
    def counted(self) -> _Counted:
        """The references, tokenized and counted when they are first needed: of many processes, only one needs them."""
        if self._counted is None:
            own = self.domain_frequencies == "subset"
            self._counted = _Counted(self._raw, self._kind, self.rows_of, own, self._files)
            for metric in self.metrics.values():
                metric.count(self._counted.references)
        return self._counted

    def score(self, captions: Sequence[str]) -> Scores:
        """The scores of one caption an image.

        Raises:
            InputError: Not one caption an image, or a program fails.
            Unavailable: The tokenizer or a required metric is not installed any more.
        """
        if len(captions) != self.images:
            raise InputError(f"{len(captions)} captions for {self.images} images: every image needs exactly one")
        if not self.metrics:
            return Scores({}, {}, {}, "none")
        counted = self.counted
        tokenized = Captions(counted.tokenize(captions), counted.references, captions)
        values: dict[str, float] = {}
        per_image: dict[str, Floats] = {}
        unavailable = dict(counted.missing)
        columns: dict[str, str] = {}
        remarks = _without_words(tokenized)
        for name, metric in self.metrics.items():
            try:
                found = metric.score(tokenized)
            except Unavailable as error:
                if name in self.required:
                    raise Unavailable(f"{name} is required and unavailable: {error}") from error
                unavailable[metric.name] = str(error)
            else:
                values |= found.values
                per_image |= found.per_image
                columns |= metric.columns()
                remarks |= {metric.name: found.remark} if found.remark else {}
        return Scores(values, per_image, unavailable, counted.tokenizer, columns, remarks)


def _without_words(captions: Captions) -> dict[str, str]:
    """Captions, and images' references, of which the tokenizer left nothing."""
    bare = {
        "captions": [row for row, sentence in enumerate(captions.sentences) if not sentence.strip()],
        "references": [row for row, own in enumerate(captions.references.sentences) if not "".join(own).strip()],
    }
    what = {"captions": "captions have no word and score 0", "references": "images have no reference with a word, and score 0"}
    return {name: f"{len(rows)} {what[name]} (first: image row {rows[0]})" for name, rows in bare.items() if rows}


class _Counted:
    """The references, tokenized, and how captions are: `missing` says what "auto" did without."""

    def __init__(
        self,
        raw: Sequence[Sequence[str]],
        tokenizer: Tokenizer,
        rows_of: dict[str, Integers],
        own_frequencies: bool,
        files: Sequence[Path | None],
    ) -> None:
        self.missing: dict[str, str] = {}
        self.tokenize, self.tokenizer = self._choose(tokenizer)
        flat = iter(self.tokenize([sentence for sentences in raw for sentence in sentences]))
        tokenized = [[next(flat) for _ in sentences] for sentences in raw]
        self.references = References(tokenized, rows_of, own_frequencies, raw, files)

    def _choose(self, kind: Tokenizer) -> tuple[Callable[[Sequence[str]], list[str]], str]:
        if kind == "none":
            return list, kind
        if kind == "simple":
            return tokenizers.simple, kind
        try:
            ptb_jar()
            find_java()
        except Unavailable as error:
            if kind == "ptb":
                raise
            self.missing["ptb"] = f"the simple tokenizer did its work; for coco-caption's: {error}"
            return tokenizers.simple, "simple"
        return tokenizers.ptb, "ptb"


def _among(what: str, given: str, known: Iterable[str]) -> None:
    if given not in known:
        raise InputError(f"there is no {what} {given!r}; there are {', '.join(known)}")
