"""What a weights file of a part of a network holds, so that `fill` reads it back into a part of that class."""

from __future__ import annotations

from functools import singledispatch

from torch import Tensor, nn

from lightning_modules.checkpoints import beit3, uniter
from lightning_modules.networks.beit3 import BEiT3Retrieval
from lightning_modules.networks.hugging_face_scorer import HuggingFaceScorer
from lightning_modules.networks.language_model import LanguageModel
from lightning_modules.networks.towers.base import Tower
from lightning_modules.networks.uniter import UniterRetrieval
from lightning_modules.networks.uniter_pretraining import UniterPretraining


@singledispatch
def stored(part: nn.Module) -> dict[str, Tensor]:
    """Tensors by their names in the file (`stored.register` adds a layout). They are the part's own, not copies.

    Args:
        part: A network, tower or language model.

    Raises:
        InputError: The layout has no place for one of its tensors, an adapter's for instance.
    """
    return part.state_dict()


@stored.register
def _(part: Tower) -> dict[str, Tensor]:
    return part.model.state_dict()


@stored.register
def _(part: HuggingFaceScorer) -> dict[str, Tensor]:
    return part.model.state_dict()


@stored.register
def _(part: LanguageModel) -> dict[str, Tensor]:
    kept: dict[str, Tensor] = {}
    places = set()
    for name, tensor in part.model.state_dict().items():
        if tensor.data_ptr() not in places:  # what is tied is read back under any of its names
            kept[name] = tensor
        places.add(tensor.data_ptr())
    return kept


@stored.register
def _(part: BEiT3Retrieval) -> dict[str, Tensor]:
    return beit3.to_official(part.state_dict())


@stored.register
def _(part: UniterRetrieval) -> dict[str, Tensor]:
    return uniter.to_official(part.state_dict())


@stored.register
def _(part: UniterPretraining) -> dict[str, Tensor]:
    return uniter.pretraining_to_official(part.state_dict())
