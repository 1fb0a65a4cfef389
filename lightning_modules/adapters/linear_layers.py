"""The linear layers inside a network's transformer blocks, which LoRA and its relatives change; never embeddings and heads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from torch import nn

from datamodules.errors import InputError
from lightning_modules.adapters import multiway
from lightning_modules.adapters.towers import Towers, chosen_towers, require_all_reached, sides_of
from lightning_modules.networks import beit3
from lightning_modules.networks.towers.base import find_blocks

Targets = Literal["all", "attention", "ffn"]

WRAPPED = "base_layer"
"""What peft calls a layer inside of what it has put in its place."""


class LinearLayer(NamedTuple):
    """A linear layer and its path in the block that it belongs to."""

    path: str
    module: nn.Module

    @property
    def is_attention(self) -> bool:
        """Whether it belongs to the attention. BEiT-3's experts hold theirs as `qkv` and `out`."""
        return any(part in ("qkv", "out") or "attn" in part or "attention" in part for part in self.path.split("."))

    @property
    def features(self) -> int:
        """Inputs and outputs together: what a rank of LoRA costs."""
        return sum(self.module.get_parameter("weight").shape)


def find_linear_layers(
    network: nn.Module, targets: Targets | list[str], towers: Towers | None, adapter: str
) -> dict[str, LinearLayer]:
    """The layers by their whole names.

    Args:
        network: The network.
        targets: "attention" (projections), "ffn", "all", or names of linear layers as they end (["qkv", "fc1"]).
        towers: Which towers; None = all that take part in the task.
        adapter: Its name, for messages.

    Raises:
        InputError: Nothing matches, or nothing of one of several towers; or the layers are wrapped already.
    """
    of_sides = _linear_layers(network, towers, adapter)
    inside = {name: layer for layers in of_sides.values() for name, layer in layers.items()}
    if wrapped := next((name for name in inside if WRAPPED in name.split(".")), None):
        raise InputError(
            f"{adapter}: {wrapped.removesuffix(f'.{WRAPPED}')} of this network has LoRA or another method of peft already; "
            "inject only once into a layer"
        )
    if not inside:
        raise InputError(
            f"{adapter}: {type(network).__name__} has no linear layer inside a block of the {towers or 'both'} tower(s); "
            "choose towers with transformer blocks"
        )
    chosen = _chosen(inside, targets, adapter)
    reached = {side: not chosen.keys().isdisjoint(layers) for side, layers in of_sides.items()}
    said = targets if isinstance(targets, str) else f"[{', '.join(targets)}]"
    require_all_reached(network, reached, adapter, f"no linear layer inside a block that targets {said} names")
    return chosen


def _chosen(inside: Mapping[str, LinearLayer], targets: Targets | list[str], adapter: str) -> dict[str, LinearLayer]:
    """Those that the option names. Raises InputError: it, or one of its names, names none."""
    if isinstance(targets, str):
        chosen = {
            name: layer for name, layer in inside.items() if targets == "all" or (targets == "attention") == layer.is_attention
        }
        if not chosen:
            raise InputError(f"{adapter}: no linear layer of a block belongs to the {targets} part; name the layers in targets")
        return chosen
    for target in targets:
        if not any(ends_with(name, target) for name in inside):
            there = sorted({layer.path.rpartition(".")[2] for layer in inside.values()})
            raise InputError(f"{adapter}: no linear layer of a block is called {target!r}; there are {', '.join(there)}")
    return {name: layer for name, layer in inside.items() if any(ends_with(name, target) for target in targets)}


def ends_with(name: str, target: str) -> bool:
    """Whether the name of a layer ends with these whole parts."""
    return f".{name}".endswith(f".{target}")


def _linear_layers(network: nn.Module, towers: Towers | None, adapter: str) -> dict[str, dict[str, LinearLayer]]:
    """Of the chosen towers by side: whole name and layer of every linear layer inside a block. In BEiT-3 of the experts."""
    names = {module: name for name, module in network.named_modules()}
    experts = [module for module in names if isinstance(module, beit3.Layer)]
    if experts:
        return {side: dict(_inside(experts, names, side)) for side in sides_of(towers)}
    parts = chosen_towers(network, towers, adapter)
    return {side: dict(_inside(_blocks(part), names)) for side, part in parts.items()}


def _inside(blocks: Sequence[nn.Module], names: Mapping[nn.Module, str], part: str = "") -> Iterator[tuple[str, LinearLayer]]:
    """Whole name and layer of every linear layer of blocks, or of the part of them of this name."""
    for block in blocks:
        prefix = names[block]
        for path, module in block.named_modules():
            if _is_linear(module) and multiway.NAME not in path.split(".") and part in ("", path.split(".")[0]):
                yield f"{prefix}.{path}" if prefix else path, LinearLayer(path, module)


def _is_linear(module: nn.Module) -> bool:
    """A plain linear layer, or GPT-2's own, whose weight lies the other way."""
    kind = type(module)
    return kind is nn.Linear or (kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils")


def _blocks(part: nn.Module) -> list[nn.Module]:
    """Transformer blocks: those that a tower of ours lists, or of another part those that are known, or what stands in its list
    of blocks."""
    listed = getattr(part, "blocks", None)
    return listed if isinstance(listed, list) and listed else _known_blocks(part) or _listed_blocks(part)


def _known_blocks(part: nn.Module) -> list[nn.Module]:
    return [module for module in part.modules() if multiway.site_of(module) is not None]


def _listed_blocks(part: nn.Module) -> list[nn.Module]:
    return list(part.get_submodule(path).children()) if (path := find_blocks(part)) else []
