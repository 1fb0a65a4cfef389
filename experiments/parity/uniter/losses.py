"""Margin ranking and IAIS of the recorded pairs: values, maps, gradients, any layer.

Legend: B pairs, P positives, X a positive and its negatives.
"""

from __future__ import annotations

import re
from itertools import product

import torch
from torch import Tensor

from datamodules.records import PairBatch
from experiments.parity.compare import (
    EQUAL,
    OUTPUT,
    SMALL_GRADIENT,
    GroupCheck,
    compare,
    not_checked,
)
from experiments.parity.uniter.build import Ledger, gradients
from experiments.parity.uniter.mining import KINDS
from lightning_modules.networks.attention import Attended, Items, Relations
from lightning_modules.networks.packing import items_of, pack
from lightning_modules.networks.uniter import UniterRetrieval
from lightning_modules.objectives.matching import MarginRanking
from lightning_modules.objectives.relation_alignment import Anchor, RelationAlignment, Scores

ANCHORS: dict[str, Anchor] = {"L": "language", "V": "vision"}
MAPS = {"txt_attn": ("L", "L"), "img_attn": ("V", "V"), "t2i_attn": ("L", "V"), "i2t_attn": ("V", "L")}
TIE = 1e-6  # of two probabilities that rounding may put in either order


def margin(ledger: Ledger, network: UniterRetrieval, batch: PairBatch) -> None:
    """Both readings of the hinge, and the gradients of the released one."""
    about = ledger.recording.about
    size, value = about.get("pairs_num"), about.get("margin")
    if not size or size < 2 or value is None or len(batch) % size:
        ledger.rows.append(not_checked("margin", f"{len(batch)} pairs, pairs_num {size}, margin {value}: which are positive?"))
        return
    everyone = torch.arange(len(batch))
    scores = network.score_pairs(network.embed_images(batch.images), network.embed_texts(batch.texts), everyone, everyone)
    scores_PX = scores.view(-1, size)
    loss = MarginRanking(value)
    each = torch.stack([torch.stack([loss(row[[0, j]][None]) for j in range(1, size)]) for row in scores_PX])
    total = loss(scores_PX)
    found = {"outputs/margin/rank_loss": each, "outputs/margin/rank_loss_mean": total}
    ledger.add("margin, mean of hinges", found, OUTPUT)
    ours = {"outputs/margin/rank_loss_sum": MarginRanking(value, "sum")(scores_PX)}
    if ours.keys() <= ledger.recording.tensors.keys():
        ledger.add("margin, Eq. 14", ours, OUTPUT)
    elif (scored := ledger.recording.tensors.get("outputs/compact/rank_scores")) is not None and len(scored) == len(batch):
        similar = torch.sigmoid(scored.double()).view(-1, size)
        printed = (similar[:, 1:].sum(1) - similar[:, 0] + value).clamp_min(0).mean()
        wanted = {"outputs/margin/rank_loss_sum": printed}
        ledger.rows.append(compare("margin, Eq. 14", ours, wanted, OUTPUT, "from the recorded scores"))
    else:
        ledger.rows.append(not_checked("margin, Eq. 14", "the file records none of it"))
    ledger.match("margin: gradients", {"grads/margin": gradients(network, total)}, SMALL_GRADIENT)


def alignment(ledger: Ledger, network: UniterRetrieval, batch: PairBatch) -> None:
    """IAIS of all pairs and of the positives only, in the released reading."""
    last = network.num_layers - 1
    with torch.no_grad():
        found = network.relations(batch, [last])
        maps(ledger, Scores(found.attention[last], found.words, found.regions))
    size = ledger.recording.about.get("pairs_num")
    groups: list[tuple[str, str, Tensor | None]] = [("IAIS", "iais_all", None)]
    if size:
        groups.append(("IAIS, positives", "iais_pos", torch.arange(0, len(batch), size)))
    else:
        ledger.rows.append(not_checked("IAIS, positives", "the file has no pairs_num"))
    for title, group, rows in groups:
        values, reduced, slopes = {}, {}, {}
        for kind in KINDS:
            losses: list[Tensor] = []
            for letter, anchor in ANCHORS.items():
                pairs_B = RelationAlignment(kind)(*taken(relations(network, batch, rows), last), (anchor,))[anchor]
                loss = pairs_B.mean()
                losses.append(loss)
                name = f"{group}/{kind}_{letter}"
                values[f"outputs/{name}/per_pair"], reduced[f"outputs/{name}/loss"] = pairs_B, loss
                slopes[f"grads/{name}"] = gradients(network, loss)
            both = RelationAlignment(kind)(*taken(relations(network, batch, rows), last), tuple(ANCHORS.values()))
            total = both["language"].mean() + both["vision"].mean()  # from one set of scores
            reduced[f"outputs/{group}/{kind}_LV/loss"] = total
            slopes[f"grads/{group}/{kind}_LV"] = gradients(network, total)
        ledger.add(f"{title}: per pair", values, OUTPUT)
        ledger.add(f"{title}: reduced", reduced, OUTPUT)
        ledger.match(f"{title}: gradients", slopes, SMALL_GRADIENT)
    layers(ledger, network, batch)


def relations(network: UniterRetrieval, batch: PairBatch, rows: Tensor | None) -> Relations:
    """Of all pairs, or as in training: all are scored, and only the positives' relations are taken."""
    last = network.num_layers - 1
    if rows is None:
        return network.relations(batch, [last])
    packed = pack(network.embed_texts(batch.texts), network.embed_images(batch.images))
    return items_of(packed, network.score(packed, [last])[1].attention, rows)


def taken(found: Relations, layer: int) -> tuple[Attended, Items, Items]:
    return found.attention[layer], found.words, found.regions


def maps(ledger: Ledger, scores: Scores) -> None:
    """The four head-averaged maps, and which item is whose mirror in the singular loss."""
    found = {}
    for name, (rows, columns) in MAPS.items():
        recorded = ledger.recording.tensors.get(key := f"outputs/iais_all/{name}")
        map_BRC = scores.map(rows, columns)
        if recorded is not None and recorded.ndim == 3:
            # recorded as wide as the widest text and image would be: 0 where nothing is
            grown = [max(recorded.shape[i] - map_BRC.shape[i], 0) for i in (1, 2)]
            map_BRC = torch.nn.functional.pad(map_BRC, (0, grown[1], 0, grown[0]))
        found[key] = map_BRC
    ledger.add("IAIS: maps", found, OUTPUT)
    mirrors = {}
    for letter, other in (("L", "V"), ("V", "L")):
        map_BAO = scores.map(letter, other)
        for pair, (mask_A, mask_O) in enumerate(zip(scores.masks[letter], scores.masks[other], strict=True)):
            key = f"outputs/iais_all/argmax_{letter}/pair_{pair}"
            map_AO = map_BAO[pair][mask_A][:, mask_O]
            ours = map_AO.argmax(-1)
            recorded = ledger.recording.tensors.get(key)
            if recorded is not None and recorded.shape == ours.shape:
                row, inside = torch.arange(len(ours)), recorded.clamp(0, map_AO.shape[1] - 1)
                tied = (map_AO[row, ours] - map_AO[row, inside] <= TIE) & (inside == recorded)
                ours = torch.where(tied, recorded, ours)
            mirrors[key] = ours
    ledger.add("IAIS: argmax", mirrors, EQUAL)


def layers(ledger: Ledger, network: UniterRetrieval, batch: PairBatch) -> None:
    """IAIS of every layer (the official code has only the last: it was run on truncated encoders)."""
    recorded = [m for name in ledger.recording.tensors if (m := re.fullmatch(r"outputs/iais_layer/\w+_[LV]/layer_(\d+)", name))]
    beyond = sorted({int(match[1]) for match in recorded} - set(range(network.num_layers)))
    if beyond:
        ledger.rows.append(
            GroupCheck("IAIS: by layer", "OFF", note=f"layers {beyond} are recorded, ours are {network.num_layers}")
        )
    with torch.no_grad():
        found = network.relations(batch, range(network.num_layers))
        values = {}
        for kind, (letter, anchor), layer in product(KINDS, ANCHORS.items(), range(network.num_layers)):
            loss = RelationAlignment(kind)(*taken(found, layer), (anchor,))[anchor].mean()
            values[f"outputs/iais_layer/{kind}_{letter}/layer_{layer}"] = loss
    ledger.add("IAIS: by layer", values, OUTPUT)
