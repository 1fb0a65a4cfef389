"""Stand-ins for BEiT-3's and UNITER's released checkpoints: names and shapes of the networks, through the official layouts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datamodules.errors import InputError
from datamodules.files.releases import CHECKPOINTS, TOKENIZER, UNITER_CHECKPOINTS
from lightning_modules.checkpoints import beit3, uniter
from lightning_modules.checkpoints.standin.values import random_module
from lightning_modules.checkpoints.standin.vocabularies import write_sentencepiece
from lightning_modules.checkpoints.weights import write_torch
from lightning_modules.networks.beit3 import BEiT3Retrieval
from lightning_modules.networks.uniter_pretraining import UniterPretraining

_BASE: dict[str, Any] = {}
_LARGE: dict[str, Any] = {"width": 1024, "num_layers": 24, "num_heads": 16, "ffn_width": 4096}
_HEADS = ("vision_head.weight", "language_head.weight", "logit_scale")
_REGION_CLASSES = 1601
NAMES = (*CHECKPOINTS, *UNITER_CHECKPOINTS, TOKENIZER)
"""Files that there is a stand-in for."""


def write_official(path: Path, half: bool = False) -> None:
    """The file with this name; one that is there stays.

    Args:
        path: Its name is one of `NAMES`.
        half: Numbers of 16 bits in place of 32. (UNITER's are of 16 bits anyway.)

    Raises:
        InputError: There is no such official file.
    """
    if path.name not in NAMES:
        raise InputError(f"{path.name} is no official file of BEiT-3 or UNITER; there are {', '.join(NAMES)}")
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name == TOKENIZER:
        write_sentencepiece(path)
        return
    if path.name in UNITER_CHECKPOINTS:
        halves: dict[int, Tensor] = {}  # what is tied is stored once
        state = {name: halves.setdefault(tensor.data_ptr(), tensor.half()) for name, tensor in _uniter(path.name).items()}
        write_torch(state, path)
        return
    state = _beit3(path.name)
    if half:
        state = {name: tensor.half() for name, tensor in state.items()}
    write_torch({"model": state, "stand_in": True}, path)


def _beit3(name: str) -> dict[str, Tensor]:
    state = beit3.to_official(random_module(_unfilled(name)).state_dict())
    if "itc" in name or "retrieval" in name:
        return state
    return {key: tensor for key, tensor in state.items() if key not in _HEADS}  # a pre-training's has none


def _uniter(name: str) -> dict[str, Tensor]:
    return uniter.pretraining_to_official(random_module(_unfilled(name)).state_dict())


def _unfilled(name: str) -> nn.Module:
    """The network of a file, on the meta device."""
    sizes = _LARGE if "large" in name else _BASE
    with torch.device("meta"):
        if name in UNITER_CHECKPOINTS:
            return UniterPretraining(region_classes=_REGION_CLASSES, tokenizer=None, **sizes)
        size = re.search(r"patch16_(\d+)", name)
        assert size is not None
        return BEiT3Retrieval(int(size[1]), tokenizer=TOKENIZER, **sizes)


def official_bytes(name: str) -> int:
    """Of the weights in one of `NAMES`: in 32 bits, UNITER's in 16."""
    if name == TOKENIZER:
        return 0
    width = 2 if name in UNITER_CHECKPOINTS else 4
    return width * sum(parameter.numel() for parameter in _unfilled(name).parameters())
