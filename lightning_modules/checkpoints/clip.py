"""What a CLIP of Hugging Face has behind its towers: both projections and the temperature.

`CLIPModel`: image vectors are `visual_projection` of the pooled class token (behind post_layernorm), text vectors
`text_projection` of the end token's state; cosines times exp(`logit_scale`).
"""

from __future__ import annotations

from pathlib import Path

import torch

from datamodules.errors import InputError, some
from lightning_modules.checkpoints.weights import read_weights
from lightning_modules.networks.dual_encoder import DualEncoder
from lightning_modules.networks.quiet_loading import quiet_loading

_KEYS = {
    "image_projection.weight": "visual_projection.weight",
    "text_projection.weight": "text_projection.weight",
    "logit_scale": "logit_scale",
}


def load_heads(network: DualEncoder, source: str) -> None:
    """Fill projections and temperature, which then count as loaded.

    Args:
        network: Over CLIP's own towers.
        source: Hub name, folder or weights file.

    Raises:
        InputError: There is no such CLIP, or its projections do not belong behind these towers.
    """
    option = f"weights {source} of the dual encoder"
    pooling = getattr(network.image, "pooling", None), getattr(network.text, "pooling", None)
    if pooling != ("pooler", "last"):
        raise InputError(
            f"{option}: CLIP projects what its towers pool, so set pooling of the image tower to pooler and of the text tower to "
            f"last (they are {pooling[0]} and {pooling[1]})"
        )
    state = read_weights(_file(source))
    own = dict(network.named_parameters())
    if lacking := sorted(key for key in _KEYS.values() if key not in state):
        raise InputError(f"{option}: it has no {some(lacking)}, so it is no CLIP; leave weights out and train the projections")
    linear = own.keys() >= _KEYS.keys()
    wrong = [f"{key} {list(state[key].shape)}" for name, key in _KEYS.items() if linear and state[key].shape != own[name].shape]
    if wrong or not linear:
        raise InputError(
            f"{option}: {some(wrong) or 'its projections are linear'}; set projection to linear and embed_dim to the CLIP's "
            f"projection_dim ({len(state['text_projection.weight'])}), over its own towers"
        )
    with torch.no_grad():
        for name, key in _KEYS.items():
            own[name].copy_(state[key])
    network.loaded_heads |= frozenset(_KEYS)


def _file(source: str) -> Path:
    path = Path(source).expanduser()
    if path.is_file():
        return path
    from transformers.utils.hub import cached_file

    for name in ("model.safetensors", "pytorch_model.bin"):
        try:
            with quiet_loading():
                if found := cached_file(str(path) if path.is_dir() else source, name):
                    return Path(found)
        except OSError:
            continue  # of the other name, or there is none
    raise InputError(f"weights {source} of the dual encoder: no folder with model.safetensors, no file, and nothing on the hub")
