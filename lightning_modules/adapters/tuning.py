"""What trains: everything, the adapter with the heads that are new, the heads alone, or nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Set
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

from torch import nn
from torch.nn import Parameter

from datamodules.errors import InputError
from lightning_modules.adapters.adapter import Adapter
from lightning_modules.adapters.linear_layers import WRAPPED

TuningMode = Literal["full", "adapter", "head", "frozen"]
TrainHeads = Literal["new", "all", "none"]

log = logging.getLogger("crosslight")


@runtime_checkable
class HasHeads(Protocol):
    """The part of the network contract that tuning needs (the object is an nn.Module besides)."""

    loaded_heads: frozenset[str]  # names of the heads that a checkpoint brought

    def head_parameters(self) -> Iterable[tuple[str, Parameter]]: ...


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters. `total` includes the adapter; `backbone` is what is neither adapter nor head."""

    total: int
    trainable: int
    backbone: int
    adapter: int
    heads: int

    def with_objective(self, objective: nn.Module) -> ParameterCounts:
        """With the parameters of an objective, which count as heads: they are new, and train beside the adapter."""
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in objective.parameters()]
        size, trainable = sum(number for number, _ in sizes), sum(number for number, trains in sizes if trains)
        return replace(self, total=self.total + size, trainable=self.trainable + trainable, heads=self.heads + size)

    @property
    def percent(self) -> float:
        """Trainable parameters in percent of the network without its adapter, as MWA's Table 1 counts them."""
        own = self.total - self.adapter
        return 100.0 * self.trainable / own if own else 0.0


def set_tuning(network: nn.Module, adapter: Adapter | None, mode: TuningMode, train_heads: TrainHeads = "new") -> ParameterCounts:
    """Set `requires_grad` of every parameter.

    full: all parameters but those the network never uses (`network.unused_parameters()`: a mask token, a pooler). adapter: the
    adapter's, and of the heads what `train_heads` says. head: the heads. frozen: nothing. An adapter
    in another mode than adapter would silently change what the row of a table means, so it is an error; full fine-tuning of a
    network with adapters is nobody's baseline.

    Args:
        network: The network, with its weights loaded and the adapter injected already.
        adapter: The injected adapter; None in the other modes. One that is `off` leaves only the heads to train, or nothing.
        mode: What trains.
        train_heads: In mode adapter: "new" = the heads that no checkpoint brought (`network.loaded_heads`), "all" or "none". With
            official BEiT-3 retrieval weights "new" trains the adapter alone, as MultiWay-Adapter does.

    Raises:
        InputError: Mode and adapter contradict each other, the adapter is not in the network, or mode head may train no heads.
    """
    if mode == "adapter" and adapter is None:
        raise InputError("tuning mode 'adapter' needs an adapter; set model.adapter, or choose tuning mode head, full or frozen")
    if mode != "adapter" and adapter is not None:
        raise InputError(f"tuning mode {mode!r} takes no adapter, but one is set; set model.adapter to null or tuning to adapter")
    if mode == "head" and train_heads == "none":
        raise InputError(
            "tuning mode 'head' with train_heads none trains nothing; leave train_heads out, or set tuning to frozen"
        )
    heads = head_names(network)
    loaded = network.loaded_heads if isinstance(network, HasHeads) else frozenset()
    learn = heads - loaded if train_heads == "new" else heads if train_heads == "all" else frozenset()
    unused: Set[str] = getattr(network, "unused_parameters", frozenset)()
    for name, parameter in network.named_parameters():
        if mode == "full":
            parameter.requires_grad = name not in unused
        elif mode == "adapter":
            assert adapter is not None
            parameter.requires_grad = adapter.owns(name) or name in learn - unused
        else:
            parameter.requires_grad = mode == "head" and name in heads - unused
    counts = count_parameters(network, adapter)
    if mode == "adapter" and counts.adapter == 0 and adapter is not None and not adapter.off:
        raise InputError("the adapter has no parameters in this network: it was not injected")
    if mode == "adapter" and learn != heads:
        frozen = ", ".join(sorted(heads - learn))
        why = "a checkpoint brought them" if train_heads == "new" else "train_heads is none"
        log.info("%s parameters train; heads that stay frozen, because %s: %s", f"{counts.trainable:,}", why, frozen)
    return counts


def freeze_encoder(network: nn.Module, adapter: Adapter | None, side: Literal["image", "text"]) -> ParameterCounts:
    """After `set_tuning`: nothing of one encoder trains, its projection included.

    Args:
        network: A retrieval network.
        adapter: The injected adapter, if any.
        side: Whose encoder.

    Raises:
        InputError: The network has no such tower, the adapter is in it, or nothing is left to train.
    """
    untyped: Any = network
    names = untyped.encoder_parameters(side)
    if adapter is not None and any(adapter.owns(name) for name in names):
        other = "text" if side == "image" else "image"
        raise InputError(f"frozen_tower is {side}, and the adapter is in that tower: set adapter.towers to {other}")
    trained = any(parameter.requires_grad for parameter in network.parameters())
    for name, parameter in network.named_parameters():
        if name in names:
            parameter.requires_grad = False
    if trained and not any(parameter.requires_grad for parameter in network.parameters()):
        raise InputError(f"frozen_tower is {side}, and nothing else was to train: set it to null, or let more train (tuning)")
    return count_parameters(network, adapter)


def count_parameters(network: nn.Module, adapter: Adapter | None = None) -> ParameterCounts:
    """Count each parameter once, by what it belongs to and whether it trains now."""
    heads = head_names(network)
    total = trainable = owned = head = 0
    for name, parameter in network.named_parameters():
        total += parameter.numel()
        trainable += parameter.numel() if parameter.requires_grad else 0
        owned += parameter.numel() if adapter is not None and adapter.owns(name) else 0
        head += parameter.numel() if name in heads else 0
    return ParameterCounts(total=total, trainable=trainable, backbone=total - owned - head, adapter=owned, heads=head)


def head_names(network: nn.Module) -> frozenset[str]:
    """Names of the network's heads; none for a plain module that does not follow the network contract."""
    return frozenset(name for name, _ in network.head_parameters()) if isinstance(network, HasHeads) else frozenset()


def set_mode(network: nn.Module, training: bool, adapter: Adapter | None = None) -> None:
    """`network.train(training)`, but frozen parts stay in eval mode: no dropout or drop path, no new batch statistics in them.

    A module counts as frozen when none of the parameters below it trains, the adapter's aside; modules without parameters
    (dropout, drop path) follow the closest module around them that has some. Adapter modules always follow `training`, and so do
    those that an adapter has put around a layer: peft's ask themselves whether to drop anything (DoRA, LoHa, LoKr).
    """
    network.train(training)
    if not training:
        return
    owns = adapter.owns if adapter is not None else lambda _name: False
    base: dict[str, bool] = {}  # module name -> whether a parameter of its own (not the adapter's) trains below it
    for name, parameter in network.named_parameters(remove_duplicate=False):
        parts = name.split(".")[:-1]
        for depth in range(len(parts) + 1):
            prefix = ".".join(parts[:depth])
            base[prefix] = base.get(prefix, False) or (parameter.requires_grad and not owns(name))
    for name, module in network.named_modules():
        nearest = name
        while nearest not in base and nearest:
            nearest = nearest.rpartition(".")[0]
        wraps = hasattr(module, WRAPPED) and any(owns(f"{name}.{child}") for child, _ in module.named_children())
        module.training = wraps or owns(name) or base.get(nearest, False)
