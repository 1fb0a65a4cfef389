"""Kind `uniter-iais`: UNITER and IAIS, from the embedding to the recalls.

Recorded from ChenRocks/UNITER and lancopku/IAIS (`model/{model,layer,itm}.py`, `data/*.py`, `optim/*.py`, `utils/itm_eval.py`).
The parts are in the files `uniter_*.py` beside this one.

Legend: B pairs, S tokens of our packed sequence, H heads, W words of a text with [CLS] and [SEP], D width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from datamodules.errors import InputError
from datamodules.records import PairBatch
from experiments.parity.compare import EQUAL, OUTPUT, STATE, GroupCheck, not_checked
from experiments.parity.recordings import Recording
from experiments.parity.uniter import evaluation as uniter_evaluation
from experiments.parity.uniter import losses as uniter_losses
from experiments.parity.uniter import mining as uniter_mining
from experiments.parity.uniter import schedules as uniter_schedules
from experiments.parity.uniter.build import Ledger, Unsupported, build, pair_batch, weight_rows
from lightning_modules.networks.packing import Packed, pack
from lightning_modules.networks.pair_scorer import Ragged
from lightning_modules.networks.uniter import UniterRetrieval


def check(recording: Recording) -> list[GroupCheck]:
    """Every recorded tensor and number against our build with the same weights.

    Raises:
        InputError: The recording lacks an input or a size.
    """
    weights = recording.group("weights")
    if not weights:
        raise InputError(
            f"{recording.path.with_suffix('.safetensors')}: has no weights/...; a {recording.kind} recording needs them"
        )
    tokens, words = recording.tensor("inputs/input_ids"), recording.tensor("inputs/txt_lens")
    features, boxes = recording.tensor("inputs/img_feat"), recording.tensor("inputs/img_pos_feat")
    batch = pair_batch(tokens, words, features, boxes, recording.tensor("inputs/num_bbs"))
    ledger = Ledger(recording)
    uniter_schedules.check(ledger)
    uniter_evaluation.recalls_of_scores(ledger)
    uniter_mining.selection(ledger)
    mode, dtype = str(recording.about.get("dropout", "eval")), recording.about.get("dtype", "float32")
    if not mode.startswith("eval") or dtype != "float32":
        ledger.rows.append(not_checked("network", f"recorded with dropout {mode} in {dtype}; ours is compared in eval, float32"))
        return ledger.rows
    try:
        network = build(recording, weights)
    except Unsupported as error:
        return [*ledger.rows, not_checked("network", str(error))]
    rows = weight_rows(network, weights)
    ledger.rows = [*rows, *ledger.rows]
    if rows[0].verdict == "OFF":
        return [*ledger.rows, not_checked("outputs", "the weights do not fit")]
    layouts(ledger, network, batch)
    uniter_losses.margin(ledger, network, batch)
    uniter_losses.alignment(ledger, network, batch)
    for side in uniter_mining.SIDES:
        uniter_mining.step(ledger, network, side)
    uniter_evaluation.databases(ledger, network)
    ledger.rest()
    return ledger.rows


def layouts(ledger: Ledger, network: UniterRetrieval, batch: PairBatch) -> None:
    """Our one packing against both official layouts, at real positions: the official code gives the same numbers in both."""
    with torch.no_grad():
        texts, images = network.embed_texts(batch.texts), network.embed_images(batch.images)
        packed = pack(texts, images)
        last = network.num_layers - 1
        joint = network.encoder(packed, hidden=True, attention=[last])
        pooled = network.encoder.pool(joint.tokens_BSD)
        everyone = torch.arange(len(batch))
        scores = network.score_pairs(images, texts, everyone, everyone)[:, None]
        every = network.rank(pooled)  # training and evaluation compute only the first token of the last layer
        matching = network.itm(pooled)
        attention = joint.attention[last]
        raw, maps = attention.scores(), attention.maps()
    assert batch.images.regions is not None
    real = torch.ones(packed.x_BSD.shape[:2], dtype=torch.bool) if packed.mask_BS is None else packed.mask_BS
    longest = batch.texts.tokens_BT.shape[1]
    packing(ledger, network, batch, packed, real)
    for layout in ("compact", "uncompact"):
        place = torch.arange(real.shape[1])
        shift = (longest - packed.words_B) if layout == "uncompact" else torch.zeros_like(packed.words_B)
        places_BS = place + torch.where(place >= packed.words_B[:, None], shift[:, None], 0)
        places_BS = torch.where(real, places_BS, 0)
        states, square = at(places_BS, real), between(places_BS, real)
        prefix = f"outputs/{layout}"
        ledger.add(f"{layout}: embedding", {f"{prefix}/embedding": packed.x_BSD[real]}, STATE, of=states)
        hidden = {f"{prefix}/hidden_{i + 1}": state[real] for i, state in enumerate(joint.hidden)}
        ledger.add(f"{layout}: hidden states", hidden, STATE, of=states)
        ledger.add(f"{layout}: attention scores", {f"{prefix}/last_attn_scores": chosen(raw, real)}, STATE, of=square)
        ledger.add(f"{layout}: attention maps", {f"{prefix}/last_attn_probs": chosen(maps, real)}, OUTPUT, of=square)
        ledger.add(f"{layout}: pooled, heads", {f"{prefix}/pooled": pooled, f"{prefix}/itm_logits": matching}, OUTPUT)
        both = {f"{prefix}/rank_scores": scores, f"{prefix}/rank_scores (all tokens)": every}
        ledger.add(f"{layout}: ranking scores", both, OUTPUT)


def packing(ledger: Ledger, network: UniterRetrieval, batch: PairBatch, packed: Packed, real: Tensor) -> None:
    """Where words and regions go, against the recorded index and masks: what our packing makes of the numbers of places."""
    tokens, regions = batch.texts.tokens_BT, batch.images.regions
    assert regions is not None
    longest, most = tokens.shape[1], regions.mask_BR.shape[1]

    def numbered(mask_BN: Tensor, start: int) -> Ragged:
        return Ragged.of((start + torch.arange(mask_BN.shape[1])).expand(len(mask_BN), -1)[..., None].double(), mask_BN)

    gather = pack(numbered(batch.texts.mask_BT, 0), numbered(regions.mask_BR, longest)).x_BSD[..., 0].long()
    ledger.add(
        "packing: index", {"inputs/gather_index": gather[real]}, EQUAL, of=lambda t: t[real] if t.shape == real.shape else t
    )
    ledger.add("packing: mask", {"inputs/attn_masks": real.long()}, EQUAL)
    with torch.no_grad():
        found = network.relations(batch, [network.num_layers - 1])
    masks = {}
    shift = longest - packed.words_B[:, None]  # the recorded masks are of the uncompacted layout
    for name, items, moved in (("txt", found.words, 0), ("img", found.regions, shift)):
        mask = torch.zeros(len(batch), longest + most, dtype=torch.int64)
        mask.scatter_add_(1, torch.where(items.mask_BN, items.place_BN + moved, 0), items.mask_BN.long())
        masks[f"inputs/uncompact_{name}_attn_masks"] = mask
    ledger.add("packing: words, regions", masks, EQUAL)


def at(places_BS: Tensor, real_BS: Tensor) -> Callable[[Tensor], Tensor]:
    """Of a recorded [B, L, D] the states at our real places [N, D]; one of another shape as it is (and so off)."""

    def of(recorded: Tensor) -> Tensor:
        if recorded.ndim != 3 or len(recorded) != len(places_BS) or recorded.shape[1] <= int(places_BS.max()):
            return recorded
        return recorded.gather(1, places_BS[:, :, None].expand(-1, -1, recorded.shape[2]))[real_BS]

    return of


def between(places_BS: Tensor, real_BS: Tensor) -> Callable[[Tensor], Tensor]:
    """Of a recorded [B, H, L, L] what is between our real places."""

    def of(recorded: Tensor) -> Tensor:
        if recorded.ndim != 4 or len(recorded) != len(places_BS) or min(recorded.shape[2:]) <= int(places_BS.max()):
            return recorded
        rows = recorded.gather(2, places_BS[:, None, :, None].expand(-1, recorded.shape[1], -1, recorded.shape[3]))
        return chosen(rows.gather(3, places_BS[:, None, None, :].expand(-1, rows.shape[1], rows.shape[2], -1)), real_BS)

    return of


def chosen(map_BHSS: Tensor, real_BS: Tensor) -> Tensor:
    """Between real places, [N, H]."""
    return map_BHSS.permute(0, 2, 3, 1)[real_BS[:, :, None] & real_BS[:, None, :]]
