"""Kind `caption-metrics`: scores of tokenized captions by coco-caption (BLEU, CIDEr-D, ROUGE-L), of the set and image by
image."""

from __future__ import annotations

import re

from datamodules.errors import InputError
from experiments.parity.compare import GroupCheck, Tolerance, compare, not_checked, stacked
from experiments.parity.recordings import Recording
from lightning_modules.metrics.captions.evaluation import JAVA_FREE, CaptionScorer

_NAME = re.compile(r"Bleu_([1-4])")
_OURS = {"CIDEr": "cider", "ROUGE_L": "rouge_l"}
# Both sides are float64, and differ in the order of sums only.
SCORES = Tolerance(1e-12, relative=1e-9)


def check(recording: Recording) -> list[GroupCheck]:
    """Every recorded score that needs no outside program.

    Raises:
        InputError: The recording lacks references or candidates, or an image has only one of both.
    """
    references, candidates = recording.value("references"), recording.value("candidates")
    if references.keys() != candidates.keys():
        one = sorted(references.keys() ^ candidates.keys())[0]
        raise InputError(f"{recording.path}: image {one} has references or a candidate, not both; record it again")
    found = CaptionScorer(list(references.values()), JAVA_FREE, tokenizer="none").score([candidates[name] for name in references])
    recorded = recording.about.get("computed", {})
    each = {name: recording.about.get("per_image", {}).get(name, {}) for name in references}
    names = sorted({*recorded, *(score for scores in each.values() for score in scores)})
    ours = {name: our for name in names if (our := _our_name(name)) is not None}
    whole = {name: float(value) for name, value in recorded.items() if name in ours}
    rows = [compare("corpus", stacked({name: found.values[ours[name]] for name in whole}), stacked(whole), SCORES)]
    place = {name: row for row, name in enumerate(references)}
    images = {
        f"{score} of {image}": (float(found.per_image[ours[score]][place[image]]), float(value))
        for image, scores in each.items()
        for score, value in scores.items()
        if score in ours
    }
    our_side, their_side = (stacked({name: pair[side] for name, pair in images.items()}) for side in (0, 1))
    rows.append(compare("image by image", our_side, their_side, SCORES))
    if others := [name for name in names if name not in ours]:
        rows.append(not_checked("other metrics", f"need an outside program, or are unknown: {', '.join(others)}"))
    return rows


def _our_name(name: str) -> str | None:
    match = _NAME.fullmatch(name)
    return f"bleu_{match[1]}" if match else _OURS.get(name)
