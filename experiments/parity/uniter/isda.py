"""Kind `isda`: the worked example of the relation distance, in all its readings (derived from the paper; no official code)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from datamodules.errors import InputError
from datamodules.records import Objects
from experiments.parity.compare import (
    OUTPUT,
    GroupCheck,
    Tolerance,
    compare,
    not_checked,
    stacked,
)
from experiments.parity.recordings import Recording
from lightning_modules.metrics.relation_distance import Compression, RelationDistance, Rows, compress
from lightning_modules.networks.attention import Attended, Items
from lightning_modules.objectives.relation_alignment import Scores

VARIANTS: dict[str, tuple[Compression, Rows, str]] = {
    "A_prob_renorm": ("probabilities", "renormalised", "isda"),
    "A_mean": ("probabilities", "renormalised", "isda_mean"),
    "B_score_softmax": ("scores", "softmax", "isda"),
    "C_prob_literal": ("probabilities", "literal", "isda"),
    "D_prob_softmax": ("probabilities", "softmax", "isda"),
}
EXACT = Tolerance(2e-6)  # the recorded numbers are float64, our scores float32


def check(recording: Recording) -> list[GroupCheck]:
    """The compressed maps and every variant.

    Raises:
        InputError: The recording lacks scores or objects.
    """
    scores = [torch.tensor(recording.value(f"S_{side}_scores"), dtype=torch.float32) for side in ("LL", "VV")]
    things = recording.value("objects")
    if any(each.ndim != 2 or each.shape[0] != each.shape[1] for each in scores):
        return [not_checked("all", f"scores of shapes {[list(each.shape) for each in scores]}; one square matrix each is read")]
    attended, words, regions = joint(*scores)
    objects = Objects(
        _marked(recording, things, "tokens", len(scores[0]), 1),
        _marked(recording, things, "regions", len(scores[1]), 0),
        torch.ones(1, len(things), dtype=torch.bool),
    )
    made = Scores(attended, words, regions)
    compressed = {}
    for side, items_BNI in (("L", objects.words_BNT[..., 1:]), ("V", objects.regions_BNR)):
        compressed[f"prob_cps_{side}{side}"] = compress(made.map(side, side)[:, None], items_BNI)[0, 0]
    recorded = {name: torch.tensor(recording.about[name], dtype=torch.float64) for name in compressed if name in recording.about}
    rows = [compare("compressed", compressed, recorded, EXACT)]

    found, wanted, unknown = {}, {}, []
    for name, value in recording.value("variants").items():
        variant = name.split()[0].rstrip(":")
        if variant not in VARIANTS:
            unknown.append(variant)
            continue
        compression, kind, reduction = VARIANTS[variant]
        metric = RelationDistance(compression, kind)
        metric.update(attended, words, regions, objects)
        found[variant], wanted[variant] = metric.compute()[reduction], float(value)
    rows.append(compare("distance", found, stacked(wanted), OUTPUT))
    lacking = sorted(VARIANTS.keys() - found.keys())
    if unknown or lacking:
        rows.append(not_checked("other variants", f"no counterpart of {unknown}; not recorded: {lacking}"))
    return rows


def joint(words_SS: Tensor, regions_RR: Tensor) -> tuple[Attended, Items, Items]:
    """Queries and keys of one head whose scores among words and among regions are the given ones."""
    size = len(words_SS) + len(regions_RR)
    queries = torch.block_diag(words_SS, regions_RR) * math.sqrt(size)
    places = torch.arange(size)[None]
    words, regions = places[:, : len(words_SS)], places[:, len(words_SS) :]
    return (
        Attended(queries[None, None], torch.eye(size)[None, None]),
        Items(words, torch.ones_like(words, dtype=torch.bool)),
        Items(regions, torch.ones_like(regions, dtype=torch.bool)),
    )


def _marked(recording: Recording, things: dict[str, dict[str, list[int]]], part: str, count: int, before: int) -> Tensor:
    """[1, N, before + count]: which items every object has."""
    mask = torch.zeros(1, len(things), before + count, dtype=torch.bool)
    for row, (name, thing) in enumerate(things.items()):
        places = thing.get(part)
        if not places or not all(0 <= place < count for place in places):
            raise InputError(f"{recording.path}: objects.{name}.{part} is {places}; expected places below {count}")
        mask[0, row, [before + place for place in places]] = True
    return mask
