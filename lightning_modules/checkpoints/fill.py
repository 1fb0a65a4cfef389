"""Reads in the weights files that a network names: networks are plain torch, and their constructors only keep the wish.

A part of a network that takes weights keeps their path or name in `weights`; None = nothing to read. How they are read is chosen
by the part's class (`read_into.register` adds a way). A class without a way of its own has files with exactly its own keys.
"""

from __future__ import annotations

from functools import singledispatch
from typing import Any, TypeVar

from torch import nn

from lightning_modules.adapters.tuning import head_names
from lightning_modules.checkpoints import beit3, clip, uniter, vilt
from lightning_modules.checkpoints.language_model import load_language_weights
from lightning_modules.checkpoints.miniatures import located
from lightning_modules.checkpoints.weights import load_weights, read_weights, require_sound_model
from lightning_modules.networks.beit3 import BEiT3Retrieval
from lightning_modules.networks.dual_encoder import DualEncoder
from lightning_modules.networks.hugging_face_scorer import HuggingFaceScorer
from lightning_modules.networks.language_model import LanguageModel
from lightning_modules.networks.network import Network
from lightning_modules.networks.pretrained_dual_encoder import HFDualEncoder, own_names
from lightning_modules.networks.start import note_read
from lightning_modules.networks.towers.base import Tower
from lightning_modules.networks.towers.timm import TimmImageTower
from lightning_modules.networks.uniter import UniterRetrieval
from lightning_modules.networks.vilt import ViLT

Filled = TypeVar("Filled", bound=nn.Module)


def fill(network: Filled) -> Filled:
    """Read every weights file that a part of the network names. Nothing is left to read then: a second call does nothing.

    The base module calls it before adapters are injected, the command line for a Lightning module of one's own. Whoever builds a
    network in a script calls it: until then our networks refuse to compute.

    Returns:
        The network.

    Raises:
        InputError: A file is missing or damaged, or does not fit its part.
    """
    for part in network.modules():
        if isinstance(part, (Tower, LanguageModel, HuggingFaceScorer, HFDualEncoder)) and part.loaded_from is not None:
            require_sound_model(part.model, part.loaded_from)
            part.loaded_from = None
        weights = getattr(part, "weights", None)
        if isinstance(weights, str):
            untyped: Any = part
            untyped.fresh = frozenset()  # a reader that leaves something out says so
            read_into(part, located(weights))
            untyped.weights = None
        note_read(part)  # also where somebody has withdrawn the wish
    return network


def fill_inside(module: nn.Module) -> None:
    """Read the weights files that networks of ours inside a Lightning module name. What else it calls `weights` is its own.

    Raises:
        InputError: See `fill`.
    """
    for part in module.modules():
        if isinstance(part, (Network, Tower, LanguageModel)):
            fill(part)


@singledispatch
def read_into(part: nn.Module, weights: str) -> None:
    """Fill one part of a network.

    Args:
        part: The part.
        weights: A file, or what else its reader knows by name. (`fill` has put the file in the place of a miniature's name.)

    Raises:
        InputError: See `fill`.
    """
    load_weights(part, weights, what=type(part).__name__)


@read_into.register
def _(part: Tower, weights: str) -> None:
    load_weights(part.model, weights, spare=_spare(part), what=f"{type(part.model).__name__} of the given config")


@read_into.register
def _(part: TimmImageTower, weights: str) -> None:
    classifier = part.classifier_keys()
    load_weights(
        part.model, weights, drop=lambda key: key.startswith(classifier), spare=_spare(part), what=f"timm model {part.name}"
    )
    part.fit_image_size()


def _spare(tower: Tower) -> list[str]:
    return [name.removeprefix("model.") for name in tower.unused_parameters()]


@read_into.register
def _(part: LanguageModel, weights: str) -> None:
    load_language_weights(part.model, read_weights(weights), f"weights file {weights}")


@read_into.register
def _(part: BEiT3Retrieval, weights: str) -> None:
    part.encoder.to_empty(device=part.logit_scale.device)  # it is on the meta device: nothing was drawn for it
    beit3.load_official(part, weights)
    part.fresh = head_names(part) - part.loaded_heads


@read_into.register
def _(part: UniterRetrieval, weights: str) -> None:
    part.fresh = uniter.load(part, weights)


@read_into.register
def _(part: HuggingFaceScorer, weights: str) -> None:
    what = f"{type(part.model).__name__} of the given config"
    load_weights(part.model, weights, drop=lambda key: bool(part.without) and key.startswith(part.without), what=what)
    part.loaded_heads = frozenset(head_names(part))


@read_into.register
def _(part: ViLT, weights: str) -> None:
    part.fresh = vilt.load(part, weights)


@read_into.register
def _(part: DualEncoder, weights: str) -> None:
    clip.load_heads(part, weights)


@read_into.register
def _(part: HFDualEncoder, weights: str) -> None:
    load_weights(
        part, weights, drop=lambda key: key.endswith(".position_ids"), spare=part.unused_parameters(), translate=own_names,
        what=f"{type(part.model).__name__} of the given config",
    )  # fmt: skip
    part.loaded_heads = head_names(part)
