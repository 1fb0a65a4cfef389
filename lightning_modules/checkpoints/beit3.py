"""The official BEiT-3 checkpoint layout: reading, writing, and an account of what did not fit.

Official files: unilm `beit3/utils.py` (`load_model_and_may_interpolate`), MultiWay-Adapter `multiway_encoder.py` (adapter keys).
Every tensor of ours has exactly one official name, except the packed `qkv`, which is three. `A` is the image expert, `B` the
text expert. Beware of the adapters: `adaptmlp_text` is the Knowledge Extractor of the IMAGE tokens and `adaptmlp_vision` that of
the TEXT tokens (the released code swaps the names).
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datamodules.errors import InputError, some
from datamodules.files.releases import checkpoint_file
from lightning_modules.checkpoints.weights import misfits, read_weights, write_torch, write_weights
from lightning_modules.networks.beit3 import UNUSED_POSITIONS, BEiT3Retrieval

log = logging.getLogger("crosslight")

_EXPERT = {"image": "A", "text": "B"}
_OUTSIDE = {
    "logit_scale": "logit_scale",
    "image_head.weight": "vision_head.weight",
    "text_head.weight": "language_head.weight",
    "encoder.image_embed.cls_token": "beit3.vision_embed.cls_token",
    "encoder.image_embed.mask_token": "beit3.vision_embed.mask_token",
    "encoder.image_embed.patches.weight": "beit3.vision_embed.proj.weight",
    "encoder.image_embed.patches.bias": "beit3.vision_embed.proj.bias",
    "encoder.image_embed.positions": "beit3.encoder.embed_positions.A.weight",
    "encoder.text_embed.tokens.weight": "beit3.text_embed.weight",
    "encoder.text_embed.positions": "beit3.encoder.embed_positions.B.weight",
}
_INSIDE = {  # of an expert; {} = A or B
    "attention_norm": "self_attn_layer_norm.{}",
    "inner_norm": "self_attn.inner_attn_ln.{}",
    "out": "self_attn.out_proj.{}",
    "ffn_norm": "final_layer_norm.{}",
    "fc1": "ffn.{}.fc1",
    "sub_norm": "ffn.{}.ffn_layernorm",
    "fc2": "ffn.{}.fc2",
}
_KNOWLEDGE = {"image": "adaptmlp_text", "text": "adaptmlp_vision"}
_ADAPTER = {  # the KE, and an AE of its form; then an AE of the FFN's form
    "down": "down_proj",
    "up": "up_proj",
    "norm": "adapter_layer_norm_before",
    "fc1": "fc1",
    "sub_norm": "ffn_layernorm",
    "fc2": "fc2",
}
_ADAPTER_KEYS = re.compile(r"\.(adaptmlp_text|adaptmlp_vision|enhancemlp)\.")
POSITIONS = "encoder.image_embed.positions"


def official_names(name: str) -> tuple[str, ...]:
    """Official name of one of our tensors (a state-dict name of `BEiT3Retrieval`); three (queries, keys, values) for `qkv`.

    Raises:
        InputError: The official layout has no place for it (LoRA, for one).
    """
    if name in _OUTSIDE:
        return (_OUTSIDE[name],)
    parts = name.split(".")
    if parts[:2] == ["encoder", "norm"]:
        return (f"beit3.encoder.layer_norm.{_EXPERT[parts[2]]}.{parts[3]}",)
    if parts[:2] == ["encoder", "layers"]:
        layer, where = f"beit3.encoder.layers.{parts[2]}", parts[3]
        if where in _EXPERT and len(parts) == 6:
            module, leaf = parts[4], parts[5]
            if module == "qkv":
                return tuple(f"{layer}.self_attn.{x}_proj.{_EXPERT[where]}.{leaf}" for x in "qkv")
            if module in _INSIDE:
                return (f"{layer}.{_INSIDE[module].format(_EXPERT[where])}.{leaf}",)
        if where == "multiway":
            kind, place, *rest = parts[4:]
            if kind == "knowledge_extractor":
                module = _KNOWLEDGE[place]
            else:
                module = "enhancemlp" if place == "shared" else f"enhancemlp.{_EXPERT[place]}"
            return (".".join([layer, module, *(_ADAPTER.get(part, part) for part in rest)]),)
    raise InputError(f"{name} has no place in the official BEiT-3 layout; export the adapter instead of writing a checkpoint")


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors (weights or gradients) under our names -> under the official ones; `qkv` becomes three views.

    Raises:
        InputError: The official layout has no place for one of them.
    """
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        names = official_names(name)
        out.update(zip(names, tensor.chunk(len(names)) if len(names) > 1 else (tensor,), strict=True))
    return out


@dataclass(frozen=True)
class Account:
    """What a checkpoint brought, in our names (`unexpected` in its own).

    Args:
        source: The file.
        loaded: Tensors taken.
        fresh: Heads and adapter tensors that the file does not have; they keep their start values.
        unexpected: Tensors of the file that have no place here.
        interpolated: Side of the position grid in the file and here, if they differ.
    """

    source: str
    loaded: tuple[str, ...]
    fresh: tuple[str, ...]
    unexpected: tuple[str, ...]
    interpolated: tuple[int, int] | None

    def __str__(self) -> str:
        lines = [f"{self.source}: {len(self.loaded)} tensors taken"]
        if self.interpolated:
            old, new = self.interpolated
            lines.append(f"image positions interpolated from {old}x{old} to {new}x{new} patches")
        if self.fresh:
            lines.append(f"{len(self.fresh)} not in it start fresh ({some(self.fresh)})")
        if self.unexpected:
            lines.append(f"{len(self.unexpected)} of it have no place here ({some(self.unexpected)})")
        return "; ".join(lines)


def load_official(network: BEiT3Retrieval, source: str | Path) -> Account:
    """Fill a network (adapters too, if it has them) from an official checkpoint, by path or by official name.

    Heads and adapters may be missing; the encoder may not. Heads that the file brings are entered in `network.loaded_heads`.

    Raises:
        InputError: No such file or name, encoder tensors missing, or other shapes. The network is unchanged then.
    """
    path = checkpoint_file(source)
    state = {name.removeprefix("module."): tensor for name, tensor in read_weights(path).items()}
    copies: list[tuple[Tensor, Tensor]] = []  # ours and the file's; made when all is known to fit
    loaded, missing, wrong = [], [], []
    interpolated = None
    used: set[str] = set()
    for name, target in network.state_dict().items():
        names = official_names(name)
        used.update(names)
        if absent := [each for each in names if each not in state]:
            missing.append((name, absent))
            continue
        loaded.append(name)
        for each, part in zip(names, target.chunk(len(names)) if len(names) > 1 else (target,), strict=True):
            tensor = state[each]
            if name == POSITIONS and tensor.shape != part.shape and tensor.shape[1:] == part.shape[1:]:
                tensor, interpolated = _resized(tensor, part, path)
            wrong += misfits({each: tensor}, {each: part})
            copies.append((part, tensor))
    heads = {name for name, _ in network.head_parameters()}
    lost = [each for name, absent in missing if name not in heads and ".multiway." not in name for each in absent]
    if lost:
        raise InputError(
            f"{path} lacks {len(lost)} tensors of this BEiT-3 ({some(lost)}); it is another model or a smaller one: check "
            "num_layers, or give an official BEiT-3 checkpoint"
        )
    if wrong:
        raise InputError(
            f"{path} has other shapes than this BEiT-3: {some(wrong)}; set width, num_heads, ffn_width, patch_size, vocab_size "
            "and text_positions of the network (and the adapter's sizes) to the file's"
        )
    with torch.no_grad():
        for part, tensor in copies:
            part.copy_(tensor)
    network.loaded_heads |= heads & set(loaded)
    account = Account(
        str(path),
        tuple(loaded),
        tuple(name for name, _ in missing),
        tuple(sorted(state.keys() - used)),
        interpolated,
    )
    log.info("%s", account)
    if adapters := [name for name in account.unexpected if _ADAPTER_KEYS.search(name)]:
        log.warning(
            "%s: %d adapter tensors have no place here (%s), so the network computes something else than the file's; inject the "
            "adapter they were trained in before loading",
            path,
            len(adapters),
            some(adapters),
        )
    return account


def _resized(table: Tensor, target: Tensor, path: Path) -> tuple[Tensor, tuple[int, int]]:
    """The image position table for another number of patches, and the two grid sides."""
    extra = UNUSED_POSITIONS + 1
    old, new = math.isqrt(len(table) - extra), math.isqrt(len(target) - extra)
    if old * old != len(table) - extra:
        raise InputError(f"{path}: its {len(table)} image positions are no square grid behind {extra} extra rows")
    return interpolate_positions(table, new), (old, new)


def interpolate_positions(table: Tensor, side: int) -> Tensor:
    """[3 + old^2, D] -> [3 + side^2, D]: the first rows (two unused, class token) stay, the grid is resampled bicubically."""
    extra = UNUSED_POSITIONS + 1
    old = math.isqrt(len(table) - extra)
    if old == side:
        return table
    grid_1DHW = table[extra:].float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    resized_1DHW = F.interpolate(grid_1DHW, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([table[:extra], resized_1DHW.permute(0, 2, 3, 1).flatten(0, 2).to(table.dtype)])


def write_official(network: nn.Module, path: str | Path) -> Path:
    """Write the network (with its MultiWay-Adapters) in the official layout: `{"model": ...}`, or flat as `.safetensors`.

    Raises:
        InputError: The file exists, or a tensor has no place in the official layout.
    """
    path = Path(path)
    if path.exists():
        raise InputError(f"{path} exists already; choose another name or remove it")
    # Nothing is cloned on the CPU: the three parts of a packed qkv are contiguous rows of one storage, which is written once.
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in to_official(network.state_dict()).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        write_weights(state, path)
        return path
    write_torch({"model": state}, path)
    return path
