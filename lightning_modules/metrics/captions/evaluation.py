"""All caption metrics of a split in one place: tokenized once, counted once, gathered over processes, by domain.

Scores are fractions, as coco-caption gives them (papers print 100 times that). A metric whose program is not installed is left
out and named in `CaptionScores.unavailable`, unless it is required.

By domain (NoCaps): CIDEr, ROUGE-L and SPICE of a domain are means of the per-image scores of the whole evaluation, so CIDEr's
document frequencies are those of the whole set ("whole", the default). This is what NoCaps' server does, as far as the published
tables tell: in all rows the overall CIDEr is the mean of the domains' weighted by their images. "subset" gives every domain its
own document frequencies, as many public scripts do; CIDEr comes out 1 to 6 % higher then on coco-caption's demo. BLEU and METEOR
are scores of a set and are always computed on the domain's images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics import Metric

from datamodules.errors import InputError
from lightning_modules.metrics.captions import tokenizer as tokenizers
from lightning_modules.metrics.captions.bleu import BLEUCounts
from lightning_modules.metrics.captions.cider import CIDErReferences
from lightning_modules.metrics.captions.java import SPICE_JAVA, Unavailable, find_java, meteor_jar, ptb_jar, spice_folder
from lightning_modules.metrics.captions.meteor import meteor
from lightning_modules.metrics.captions.ngrams import Candidates, ReferenceNgrams
from lightning_modules.metrics.captions.rouge import rouge_l
from lightning_modules.metrics.captions.spice import spice
from lightning_modules.metrics.gather import gather_rows, joined, split_order

Name = Literal["bleu", "meteor", "rouge_l", "cider", "spice"]
Tokenizer = Literal["auto", "ptb", "simple", "none"]
Frequencies = Literal["whole", "subset"]
Floats = npt.NDArray[np.float64]

NAMES: tuple[Name, ...] = get_args(Name)
JAVA_FREE: tuple[Name, ...] = ("bleu", "rouge_l", "cider")


@dataclass(frozen=True)
class Scores:
    """What was found.

    Args:
        values: Of the whole set `bleu_1` ... `bleu_4`, `meteor`, `rouge_l`, `cider`, `spice`, and of each domain `DOMAIN/cider`
            and so on.
        per_image: The same names, one number an image [I].
        unavailable: Metrics that were not computed, each with what to install; the tokenizer among them where "auto" did without.
        tokenizer: The one that was used.
    """

    values: dict[str, float]
    per_image: dict[str, Floats]
    unavailable: dict[str, str]
    tokenizer: str


class CaptionScorer:
    """Scores any number of candidate sets against the references of a split, which are tokenized and counted once.

    Args:
        references: Captions of each image, as people wrote them; without metrics there need be none.
        metrics: Which to compute.
        tokenizer: "ptb" = coco-caption's, for numbers that are compared with published ones (needs Java); "simple" = without
            Java; "auto" = ptb where it is installed, otherwise simple; "none" = the text is tokenized already.
        required: Metrics that must be there.
        domains: Domain of each image (None: of none; it counts in the whole only).
        domain_frequencies: CIDEr's document frequencies for a domain: of the "whole" set, or of its own "subset".
        spice_cache: Folder of SPICE's parsed sentences.

    Raises:
        InputError: No images, an image without references, or names that do not exist.
        Unavailable: A required metric, or the tokenizer "ptb", is not installed.
    """

    def __init__(
        self,
        references: Sequence[Sequence[str]],
        metrics: Sequence[Name] = NAMES,
        tokenizer: Tokenizer = "auto",
        required: Sequence[Name] = (),
        domains: Sequence[str | None] | None = None,
        domain_frequencies: Frequencies = "whole",
        spice_cache: Path | None = None,
    ) -> None:
        _among("metric", [*metrics, *required], NAMES)
        _among("tokenizer", [tokenizer], get_args(Tokenizer))
        _among("domain_frequencies", [domain_frequencies], get_args(Frequencies))
        if not references:
            raise InputError("there are no images to score captions of")
        self.metrics: tuple[Name, ...] = tuple(name for name in NAMES if name in {*metrics, *required})
        for row, sentences in enumerate(references):
            if not sentences and self.metrics:
                raise InputError(f"image row {row} has no references: every image needs at least one")
        if domains is not None and len(domains) != len(references):
            raise InputError(f"{len(domains)} domains for {len(references)} images: every image needs one, or None")
        self.required = tuple(required)
        self.images = len(references)
        self.domain_frequencies: Frequencies = domain_frequencies
        self.spice_cache = spice_cache
        self.rows_of: dict[str, npt.NDArray[np.int64]] = {}
        for name in sorted({domain for domain in domains or () if domain is not None}):
            self.rows_of[name] = np.array([row for row, domain in enumerate(domains or ()) if domain == name])
        _require(self.required)
        if tokenizer == "ptb":
            ptb_jar()
            find_java()
        self._raw = references
        self._kind: Tokenizer = tokenizer
        self._counted: _Counted | None = None

    @property
    def counted(self) -> _Counted:
        """The references, tokenized and counted when they are first needed: of many processes, only one needs them."""
        if self._counted is None:
            subsets = self.rows_of if self.domain_frequencies == "subset" else {}
            self._counted = _Counted(self._raw, self.metrics, self._kind, subsets)
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
        candidates = counted.tokenize(captions)
        matched = counted.ngrams.match(candidates) if counted.ngrams is not None else None
        values: dict[str, float] = {}
        per_image: dict[str, Floats] = {}
        unavailable = dict(counted.missing)
        for name in self.metrics:
            try:
                found, each = self._score(name, counted, candidates, matched)
            except Unavailable as error:
                if name in self.required:
                    raise Unavailable(f"{name} is required and unavailable: {error}") from error
                unavailable[name] = str(error)
            else:
                values |= found
                per_image |= each
        return Scores(values, per_image, unavailable, counted.tokenizer)

    def _score(
        self, name: Name, counted: _Counted, candidates: list[str], matched: Candidates | None
    ) -> tuple[dict[str, float], dict[str, Floats]]:
        """One metric: of the set and of the domains, and of every image."""
        values: dict[str, float] = {}
        if name == "bleu":
            assert counted.ngrams is not None
            assert matched is not None
            counts = BLEUCounts(counted.ngrams, matched)
            for prefix, rows in (("", None), *((f"{domain}/", rows) for domain, rows in self.rows_of.items())):
                values |= {f"{prefix}bleu_{order}": float(value) for order, value in enumerate(counts.corpus(rows), 1)}
            return values, {f"bleu_{order}": column for order, column in enumerate(counts.per_image().T, 1)}
        if name == "meteor":
            each, (whole, *parts) = meteor(counted.references, candidates, [rows.tolist() for rows in self.rows_of.values()])
            values = {name: whole, **{f"{domain}/{name}": part for domain, part in zip(self.rows_of, parts, strict=True)}}
            return values, {name: each}
        if name == "cider":
            assert counted.cider is not None
            assert matched is not None
            each = counted.cider.scores(matched)
        else:
            each = (
                rouge_l(counted.references, candidates)
                if name == "rouge_l"
                else spice(counted.references, candidates, self.spice_cache)
            )
        values = {name: float(each.mean())}
        values |= {f"{domain}/{name}": float(each[rows].mean()) for domain, rows in self.rows_of.items()}
        if name == "cider":
            for domain, references in counted.cider_of.items():  # "subset"
                chosen = references.references.match([candidates[row] for row in self.rows_of[domain]])
                values[f"{domain}/cider"] = float(references.scores(chosen).mean())
        return values, {name: each}


class _Counted:
    """What depends on the references alone: `references` tokenized, their `ngrams` and CIDEr weights as far as metrics need them;
    `cider_of` the domains that have document frequencies of their own; `missing` says what "auto" did without."""

    def __init__(
        self,
        raw: Sequence[Sequence[str]],
        metrics: Sequence[Name],
        tokenizer: Tokenizer,
        subsets: Mapping[str, npt.NDArray[np.int64]],
    ) -> None:
        self.missing: dict[str, str] = {}
        self.tokenize, self.tokenizer = self._choose(tokenizer)
        flat = iter(self.tokenize([sentence for sentences in raw for sentence in sentences]))
        self.references: list[list[str]] = [[next(flat) for _ in sentences] for sentences in raw]
        self.ngrams = ReferenceNgrams(self.references) if {"bleu", "cider"} & set(metrics) else None
        self.cider: CIDErReferences | None = None
        self.cider_of: dict[str, CIDErReferences] = {}
        if "cider" in metrics and self.ngrams is not None:
            self.cider = CIDErReferences(self.ngrams)
            for name, rows in subsets.items():
                self.cider_of[name] = CIDErReferences(ReferenceNgrams([self.references[row] for row in rows]))

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


def _require(names: Sequence[Name]) -> None:
    """Refuses required metrics whose programs are not there, before anybody has waited for captions."""
    for name in names:
        try:
            if name == "meteor":
                meteor_jar()
                find_java()
            elif name == "spice":
                spice_folder()
                find_java(SPICE_JAVA)
        except Unavailable as error:
            raise Unavailable(f"{name} is required and unavailable: {error}") from error


class CaptionScores(Metric):
    """Caption metrics of a split, on any number of devices: every process adds the captions of the images it saw, each exactly
    once over all processes; `compute` gathers the text and scores the whole split in one process, which tells the others.

    Use `update`, not `forward`: a corpus metric of one batch has no meaning.

    Args:
        references: Captions of each image of the split, in the split's order, the same in every process.
        metrics: Which to compute; by default those that need no Java.
        tokenizer: See `CaptionScorer`.
        required: See `CaptionScorer`.
        domains: See `CaptionScorer`.
        domain_frequencies: See `CaptionScorer`.

    Raises:
        InputError: See `CaptionScorer`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    characters: list[Tensor]
    lengths: list[Tensor]
    index: list[Tensor]

    def __init__(
        self,
        references: Sequence[Sequence[str]],
        metrics: Sequence[Name] = JAVA_FREE,
        tokenizer: Tokenizer = "auto",
        required: Sequence[Name] = (),
        domains: Sequence[str | None] | None = None,
        domain_frequencies: Frequencies = "whole",
    ) -> None:
        super().__init__(dist_sync_fn=gather_rows)
        self.scorer = CaptionScorer(references, metrics, tokenizer, required, domains, domain_frequencies)
        self.scores: Scores | None = None
        self.written: list[str] = []  # the captions of the last `compute`, in the split's order
        self.add_state("characters", default=[], dist_reduce_fx="cat")  # code points of all captions in a row
        self.add_state("lengths", default=[], dist_reduce_fx="cat")
        self.add_state("index", default=[], dist_reduce_fx="cat")

    def update(self, captions: Sequence[str], index_B: Tensor) -> None:
        """Adds one caption an image, and the images' rows [B] in the split (`ImageBatch.index_B`)."""
        if index_B.shape != (len(captions),):
            raise InputError(f"{len(captions)} captions need one image row each, got indices {tuple(index_B.shape)}")
        self.characters.append(torch.tensor([ord(c) for caption in captions for c in caption], dtype=torch.int64).to(self.device))
        self.lengths.append(torch.tensor([len(caption) for caption in captions], dtype=torch.int64).to(self.device))
        self.index.append(index_B.long().to(self.device))

    def captions(self) -> list[str]:
        """All captions added so far, in the split's order (after synchronisation: of all processes).

        Raises:
            InputError: Images without a caption, or with several.
        """
        order = split_order(joined(self.index), self.scorer.images, "image").tolist()
        text = "".join(map(chr, joined(self.characters).tolist()))
        ends = joined(self.lengths).cumsum(0).tolist()
        return [text[(ends[row - 1] if row else 0) : ends[row]] for row in order]

    def compute(self) -> dict[str, Tensor]:
        """The scores of the split by name (float64), also kept whole in `scores`. Names as in `Scores.values`.

        Raises:
            InputError: Images without a caption or with several, a program that fails, a required one that is missing (in all
                processes).
        """
        captions = self.written = self.captions()
        self.scores = _in_one_process(lambda: self.scorer.score(captions)) if self._is_synced else self.scorer.score(captions)
        return {name: torch.tensor(value, dtype=torch.float64, device=self.device) for name, value in self.scores.values.items()}

    @property
    def unavailable(self) -> dict[str, str]:
        """Of the last `compute`: metrics that were not computed, and what to install."""
        return dict(self.scores.unavailable) if self.scores else {}

    def per_image(self) -> dict[str, Tensor]:
        """Scores of each image [I] of the last `compute`, in the split's order, float64 on the CPU."""
        if self.scores is None:
            raise RuntimeError("per_image() needs compute() first")
        return {name: torch.from_numpy(values.copy()) for name, values in self.scores.per_image.items()}

    def reset(self) -> None:
        """Forgets everything but the references."""
        super().reset()
        self.scores, self.written = None, []


class BLEU(CaptionScores):
    """BLEU-1..4 of a split: `CaptionScores` with this metric alone."""

    def __init__(self, references: Sequence[Sequence[str]], tokenizer: Tokenizer = "auto") -> None:
        super().__init__(references, ("bleu",), tokenizer)


class ROUGEL(CaptionScores):
    """ROUGE-L of a split: `CaptionScores` with this metric alone."""

    def __init__(self, references: Sequence[Sequence[str]], tokenizer: Tokenizer = "auto") -> None:
        super().__init__(references, ("rouge_l",), tokenizer)


class CIDErD(CaptionScores):
    """CIDEr-D of a split: `CaptionScores` with this metric alone."""

    def __init__(self, references: Sequence[Sequence[str]], tokenizer: Tokenizer = "auto") -> None:
        super().__init__(references, ("cider",), tokenizer)


class METEOR(CaptionScores):
    """METEOR of a split, which must be installed: `CaptionScores` with this metric alone."""

    def __init__(self, references: Sequence[Sequence[str]], tokenizer: Tokenizer = "auto") -> None:
        super().__init__(references, ("meteor",), tokenizer, required=("meteor",))


class SPICE(CaptionScores):
    """SPICE of a split, which must be installed: `CaptionScores` with this metric alone."""

    def __init__(self, references: Sequence[Sequence[str]], tokenizer: Tokenizer = "auto") -> None:
        super().__init__(references, ("spice",), tokenizer, required=("spice",))


def _in_one_process(score: Callable[[], Scores]) -> Scores:
    """Runs in the first process; all have its result or its error."""
    box: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            box[0] = score()
        except Exception as error:
            dist.broadcast_object_list([error if isinstance(error, InputError) else RuntimeError(f"process 0: {error!r}")], 0)
            raise
    dist.broadcast_object_list(box, 0)
    if isinstance(box[0], Exception):
        raise box[0]
    return box[0]


def _among(what: str, given: Iterable[str], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise InputError(f"there is no {what} {name!r}; there are {', '.join(known)}")
