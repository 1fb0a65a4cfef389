"""Weights for a ViLT: a file in the library's layout, or a ViT of timm's, as ViLT itself was started from one.

ViLT (arXiv 2102.03334, Section 4.2) takes the layers, patches and positions of a ViT and learns the words from nothing.
"""

from __future__ import annotations

import logging
import re

from torch import Tensor

from datamodules.errors import InputError, some
from lightning_modules.checkpoints.weights import load_weights, misfits, read_weights
from lightning_modules.networks.vilt import ViLT

log = logging.getLogger("crosslight")

_OUTSIDE = {
    "cls_token": "vilt.embeddings.cls_token",
    "pos_embed": "vilt.embeddings.position_embeddings",
    "patch_embed.proj": "vilt.embeddings.patch_embeddings.projection",
    "norm": "vilt.layernorm",
}
_LAYER = {
    "norm1": "layernorm_before",
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_QKV = ("query", "key", "value")
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)\.(weight|bias)")


def load(network: ViLT, source: str) -> frozenset[str]:
    """Fill a network from a file.

    Returns:
        Names of the parameters that it did not bring.

    Raises:
        InputError: It cannot be read, or does not fit.
    """
    state = read_weights(source)
    if "patch_embed.proj.weight" not in state:
        load_weights(network.model, source, what="ViLT of the given config")
        network.loaded_heads = frozenset(name for name, _ in network.head_parameters())
        return frozenset()
    own = network.model.state_dict()
    taken = from_vit(state)
    if more := sorted(taken.keys() - own.keys()):
        raise InputError(f"weights file {source}: a ViT of more layers than this ViLT ({some(more)}); set num_hidden_layers")
    lost = [name for name in own if name not in taken and not _is_new(name)]
    wrong = misfits(taken, own)
    if lost or wrong:
        raise InputError(
            f"weights file {source}: a ViT of other sizes than this ViLT ({some(wrong or lost)}); set hidden_size, "
            "num_hidden_layers, intermediate_size, image_size, patch_size and qkv_bias of its config to the ViT's"
        )
    network.model.load_state_dict(taken, strict=False)
    log.info("%s: %d tensors of a ViT taken; words, pooler and ranking head start from random weights", source, len(taken))
    return frozenset(name for name, _ in network.named_parameters() if name.removeprefix("model.") not in taken)


def _is_new(name: str) -> bool:
    """Whether a ViT has nothing like a tensor of ViLT's."""
    new = ("rank_output.", "vilt.pooler.", "vilt.embeddings.text_embeddings.", "vilt.embeddings.token_type_embeddings.")
    return name.startswith(new)


def from_vit(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a ViT of timm's under the library's names for ViLT; its classifier is left out."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        module, _, leaf = name.rpartition(".")
        if block := _BLOCK.fullmatch(name):
            layer, part = f"vilt.encoder.layer.{block[1]}", block[2]
            if part == "attn.qkv":
                found |= {
                    f"{layer}.attention.attention.{own}.{leaf}": each for own, each in zip(_QKV, tensor.chunk(3), strict=True)
                }
            elif part in _LAYER:
                found[f"{layer}.{_LAYER[part]}.{leaf}"] = tensor
            else:
                raise InputError(f"this ViT has a {name}, for which ViLT has no place; give a plain ViT")
        elif name in _OUTSIDE:
            found[_OUTSIDE[name]] = tensor
        elif module in _OUTSIDE:
            found[f"{_OUTSIDE[module]}.{leaf}"] = tensor
        elif not name.startswith(("head.", "head_dist.", "fc_norm.")):
            raise InputError(f"this ViT has a {name}, for which ViLT has no place; give a plain ViT")
    return found
