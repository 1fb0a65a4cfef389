"""Hard negatives: mining, then the step on what was mined, as recorded from the released data sets and training loops.

Kind `uniter-hard-negatives` (UNITER without IAIS, beside the recording that holds the weights) and a part of kind `uniter-iais`.
Side t: one text, an image and others (hard images); side i: one image, a text and others (hard texts). Row 0 is the positive.

Legend: C candidates with the positive first, P positives, X a positive and its mined negatives.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor

from datamodules.errors import InputError
from experiments.parity.compare import (
    EQUAL,
    OUTPUT,
    SMALL_GRADIENT,
    GroupCheck,
    compare,
    compare_lines,
    not_checked,
    stacked,
)
from experiments.parity.recordings import Recording, read_recording
from experiments.parity.uniter.build import (
    Ledger,
    Unsupported,
    build,
    gradients,
    image_batch,
    load,
    text_batch,
)
from lightning_modules.networks.packing import Packed, items_of, pack
from lightning_modules.networks.pair_scorer import Ragged
from lightning_modules.networks.uniter import UniterRetrieval
from lightning_modules.objectives.annealing import Annealing
from lightning_modules.objectives.matching import MarginRanking, hardest
from lightning_modules.objectives.relation_alignment import Anchor, Kind, RelationAlignment

Side = Literal["t", "i"]
SIDES: tuple[Side, ...] = ("t", "i")
KINDS: tuple[Kind, ...] = ("singular", "distributed")
TITLE = {"t": "hard images", "i": "hard texts"}
ANCHOR: dict[Side, tuple[str, Anchor]] = {"t": ("L", "language"), "i": ("V", "vision")}  # of IAIS, in the released training
_LAMBDA = re.compile(r"lambda\s*=\s*(\w+?)(?:_schedule)?(?: schedule)? at step (\d+)/(\d+)")


@dataclass(frozen=True)
class Candidates:
    """A recorded batch of one side.

    Args:
        texts: Embedded texts, one or all candidates.
        images: Embedded images, likewise.
        text_C: Each candidate's text.
        image_C: Each candidate's image.
    """

    texts: Ragged
    images: Ragged
    text_C: Tensor
    image_C: Tensor

    def lengths(self) -> Tensor:
        return self.texts.lengths_B[self.text_C] + self.images.lengths_B[self.image_C]


def candidates(recording: Recording, network: UniterRetrieval, side: str) -> Candidates | str:
    """Our embeddings of a recorded batch; the reason if that cannot be."""
    prefix = f"inputs/hn_{side}"
    needed = ("input_ids", "img_feat", "img_pos_feat", "attn_masks")
    if lacking := [f"{prefix}/{name}" for name in needed if f"{prefix}/{name}" not in recording.tensors]:
        return f"the file does not record {', '.join(lacking)}"
    tokens, features, boxes, masks = (recording.tensors[f"{prefix}/{name}"] for name in needed)
    count, total_C = len(masks), masks.sum(1)
    if len(tokens) not in (1, count) or len(features) not in (1, count) or len(tokens) == len(features):
        return f"{len(tokens)} texts, {len(features)} images and {count} masks: this is no batch of one side"
    # The side with one item records it unpadded, so its length is its width; the rest of the mask's sum is the other's.
    if len(tokens) == 1:
        words, regions = torch.tensor([tokens.shape[1]]), total_C - tokens.shape[1]
    else:
        words, regions = total_C - features.shape[1], torch.tensor([features.shape[1]])
    rows, none = torch.arange(count), torch.zeros(count, dtype=torch.int64)
    return Candidates(
        network.embed_texts(text_batch(tokens, words)),
        network.embed_images(image_batch(features, boxes, regions)),
        none if len(tokens) == 1 else rows,
        none if len(features) == 1 else rows,
    )


def selection(ledger: Ledger) -> None:
    """Mining from recorded scores. The order of the mined is unspecified in the official code, so it is not compared."""
    scores = ledger.recording.tensors.get("inputs/hn_select/scores")
    wanted = ledger.recording.tensors.get("outputs/hn_select/indices")
    if scores is None or wanted is None:
        ledger.rows.append(not_checked("mining", "the file does not record hn_select"))
        return
    found = hardest(scores.view(1, -1), len(wanted) - 1)[0]
    ledger.add("mining", {"outputs/hn_select/indices": found.sort().values}, EQUAL)


def step(ledger: Ledger, network: UniterRetrieval, side: Side) -> None:
    """One side of a training step: score the candidates, mine, score the mined anew, ranking loss + weight * IAIS, gradients."""
    recording, title = ledger.recording, TITLE[side]
    with torch.no_grad():
        batch = candidates(recording, network, side)
        if isinstance(batch, str):
            ledger.rows.append(not_checked(title, batch))
            return
        scores_C = network.score_pairs(batch.images, batch.texts, batch.image_C, batch.text_C)
    count, margin = recording.about.get("hard_size"), recording.about.get("margin")
    if count is None or margin is None:
        ledger.rows.append(not_checked(title, "the file does not say hard_size and margin"))
        return
    prefix = f"outputs/hn_{side}"
    ledger.add(f"{title}: mining scores", {f"{prefix}/mining_scores": scores_C[:, None]}, OUTPUT)
    mined = hardest(scores_C[None], count)[0]
    found = {
        f"{prefix}/hard_indices_sorted": mined[1:].sort().values,
        f"{prefix}/hard_attn_masks_sum": batch.lengths()[mined].sort().values,
    }
    ledger.add(f"{title}: mined", found, EQUAL)
    width = recording.about.get("hn_step", {}).get(side, {}).get("hard_batch_width")
    if side == "t" and width is not None:  # the released code does not cut the other side to its longest pair
        longest = int(batch.lengths()[mined].max())
        ledger.rows.append(compare_lines(f"{title}: width", {"hard_batch_width": longest}, {"hard_batch_width": width}))

    def forward() -> tuple[Tensor, Any, Packed]:
        fresh = cast(Candidates, candidates(recording, network, side))
        packed = pack(fresh.texts, fresh.images, fresh.text_C[mined], fresh.image_C[mined])
        scores, joint = network.score(packed, [network.num_layers - 1])
        return scores, joint, packed

    with torch.no_grad():
        ranked = hinges(forward()[0], margin)
    found = {f"{prefix}/rank_loss_sorted": ranked.sort().values, f"{prefix}/rank_loss_mean": ranked.mean()}
    ledger.add(f"{title}: ranking loss", found, OUTPUT)

    letter, anchor = ANCHOR[side]
    losses, totals, slopes = {}, {}, {}
    weight = told_weight(recording, side)
    parts = recording.about.get("hn_step", {}).get(side, {}).get("train_batch_size")
    for kind in KINDS:
        scores, joint, packed = forward()
        found_relations = items_of(packed, joint.attention, torch.zeros(1, dtype=torch.int64))
        attended = found_relations.attention[network.num_layers - 1]
        loss = RelationAlignment(kind)(attended, found_relations.words, found_relations.regions, (anchor,))[anchor].mean()
        name = f"{letter}-{kind}"
        losses[f"{prefix}/{name}/iais_loss"] = loss
        if weight is not None and parts:
            total = MarginRanking(margin)(scores[None]) / parts + weight * loss
            totals[f"{prefix}/{name}/total_loss"] = total
            slopes[f"grads/hn_{side}/{name}"] = gradients(network, total)
    ledger.add(f"{title}: IAIS", losses, OUTPUT)
    if not totals:
        ledger.rows.append(not_checked(f"{title}: total", "the file does not say its step (lambda) or train_batch_size"))
        return
    ledger.add(f"{title}: total", totals, OUTPUT)
    ledger.match(f"{title}: gradients", slopes, SMALL_GRADIENT)


def told_weight(recording: Recording, side: str) -> float | None:
    """IAIS's weight at the recorded step: by our schedule, for the step that the file names."""
    told = recording.about.get("hn_step", {}).get(side, {})
    schedule, at, total = told.get("schedule", "exp"), told.get("step"), told.get("T")
    if at is None:
        meanings = [
            str(about.get("meaning", ""))
            for name, about in recording.about.get("tensors", {}).items()
            if name.startswith(f"outputs/hn_{side}/") and isinstance(about, dict)
        ]
        match = next((m for meaning in meanings if (m := _LAMBDA.search(meaning))), None)
        if match is None:
            return None
        schedule, at, total = match[1], int(match[2]), int(match[3])
    if schedule not in ("exp", "linear", "log") or not total:
        return None
    return Annealing(schedule)(int(at), int(total))


def hinges(scores_X: Tensor, margin: float) -> Tensor:
    """[X - 1]: the margin loss of the positive (first) against each negative alone."""
    loss = MarginRanking(margin)
    return torch.stack([loss(scores_X[[0, column]][None]) for column in range(1, len(scores_X))])


# ---------------------------------------------------------------------------------------------- UNITER's own data sets


def check(recording: Recording) -> list[GroupCheck]:
    """UNITER's step without IAIS.

    Its hard-text side packs some pairs wrongly (`get_gather_index` gets the length of the last text in place of the longest). Our
    network reproduces that from the recorded index; our own packing is compared with what the file says of the right one.

    Raises:
        InputError: The recording that holds the weights is missing or damaged.
    """
    name = str(recording.value("weights")).split()[0]
    try:
        source = read_recording(recording.path.with_name(name).with_suffix(".json"))
        weights = source.group("weights")
        if not weights:
            raise InputError(f"{source.path} records no weights")
        network = build(source, weights)
        if extra := load(network, weights):
            raise InputError(f"{source.path}: {sorted(extra)[0]} has no place here")
    except (InputError, Unsupported) as error:
        return [not_checked("all", f"the weights are those of {name}: {error}")]
    ledger = Ledger(recording)
    margin, count = (_value(key, recording, source) for key in ("margin", "hard_size"))
    for side in SIDES:
        with torch.no_grad():
            _recorded_step(ledger, network, side, margin, count)
    ledger.rest()
    return ledger.rows


def _value(key: str, *recordings: Recording) -> Any:
    return next((recording.about[key] for recording in recordings if key in recording.about), None)


def _recorded_step(ledger: Ledger, network: UniterRetrieval, side: Side, margin: float | None, count: int | None) -> None:
    recording, title, prefix = ledger.recording, TITLE[side], f"outputs/hn_{side}"
    batch = candidates(recording, network, side)
    if isinstance(batch, str):
        ledger.rows.append(not_checked(title, batch))
        return
    if margin is None or count is None:
        ledger.rows.append(not_checked(title, "neither file says margin and hard_size"))
        return
    right_C = network.score_pairs(batch.images, batch.texts, batch.image_C, batch.text_C)
    told = recording.about.get("info", {}).get(side, {})
    packed = as_recorded(recording, network, side)
    if isinstance(packed, str):
        ledger.rows.append(not_checked(f"{title}: as recorded", packed))
    else:
        scores_C, _ = network.score(packed)
        mined = hardest(scores_C[None], count)[0]
        ranked = hinges(scores_C[mined], margin)
        found = {f"{prefix}/mining_scores": scores_C[:, None], f"{prefix}/rank_loss_sorted": ranked.sort().values}
        ledger.add(f"{title}: as recorded", found, OUTPUT, "the recorded packing")
        ours = {"max_abs_diff_mining_vs_correct": (scores_C - right_C).abs().max(), "rank_loss_mean": ranked.mean()}
        wanted = stacked({key: told[key] for key in ours if key in told})
        ledger.rows.append(compare(f"{title}: as told", {key: ours[key] for key in wanted}, wanted, OUTPUT, "recorded packing"))
    mined = hardest(right_C[None], count)[0]
    again = network.score_pairs(batch.images, batch.texts, batch.image_C[mined], batch.text_C[mined])
    key = "rank_loss_mean_iais_path"
    if key in told:
        found = {key: hinges(again, margin).mean()}
        ledger.rows.append(compare(f"{title}: right packing", found, stacked({key: told[key]}), OUTPUT))
    else:
        ledger.rows.append(not_checked(f"{title}: right packing", f"the file has no info.{side}.{key}"))


def as_recorded(recording: Recording, network: UniterRetrieval, side: str) -> Packed | str:
    """The candidates in the packing that the file records: rows of (padded words, then padded regions) by its `gather_index`."""
    prefix = f"inputs/hn_{side}"
    if f"{prefix}/gather_index" not in recording.tensors:
        return f"the file does not record {prefix}/gather_index"
    gather, masks = recording.tensors[f"{prefix}/gather_index"], recording.tensors[f"{prefix}/attn_masks"]
    tokens, features, boxes = (recording.tensors[f"{prefix}/{name}"] for name in ("input_ids", "img_feat", "img_pos_feat"))
    encoder = network.encoder
    words = encoder.text_embed(tokens)
    regions = encoder.region_embed(features, boxes, encoder.text_embed.types.weight[1])
    joined = torch.cat([each.expand(len(masks), -1, -1) for each in (words, regions)], 1)
    if gather.shape != masks.shape or int(gather.max()) >= joined.shape[1]:
        return f"{prefix}/gather_index does not fit the mask {list(masks.shape)} or the {joined.shape[1]} words and regions"
    x = joined.gather(1, gather[:, :, None].expand(-1, -1, joined.shape[2]))
    return Packed(x, masks.bool(), masks.sum(1), torch.zeros(len(masks), dtype=torch.int64))
