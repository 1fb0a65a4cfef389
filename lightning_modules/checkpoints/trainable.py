"""The part of a network that was trained: what checkpoints and exports hold."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from datamodules.errors import InputError, some
from lightning_modules.adapters.linear_layers import WRAPPED
from lightning_modules.checkpoints.weights import misfits


def trainable_names(network: nn.Module) -> set[str]:
    """Parameters that train, and the buffers of modules that own one (batch norm's statistics move with its weight), by their
    state-dict names: those of a layer that peft wraps are the layer's own."""
    names = set()
    for prefix, module in network.named_modules(remove_duplicate=False):
        own = {name for name, parameter in module.named_parameters(recurse=False) if parameter.requires_grad}
        if own:
            own |= {name for name, _ in module.named_buffers(recurse=False)}
        names |= {f"{prefix}.{name}" if prefix else name for name in own}
    names = {name.replace(f".{WRAPPED}.", ".") for name in names}
    return names & network.state_dict().keys()  # without non-persistent buffers


def trainable_state_dict(network: nn.Module) -> dict[str, Tensor]:
    """What trains now (parameters, and statistics of trainable batch norms), detached, under its state-dict names."""
    names = trainable_names(network)
    return {name: tensor for name, tensor in network.state_dict().items() if name in names}


OBJECTIVE = "objective."
"""Before the names of an objective's parameters and buffers, in checkpoints and exports. No network has a part of that name."""


def split_objective(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What is the network's, and what is the objective's (without the prefix)."""
    network = {name: tensor for name, tensor in state.items() if not name.startswith(OBJECTIVE)}
    objective = {name.removeprefix(OBJECTIVE): tensor for name, tensor in state.items() if name.startswith(OBJECTIVE)}
    return network, objective


def load_objective(objective: nn.Module | None, state: Mapping[str, Tensor], source: str) -> None:
    """Put an objective's state back, all of it.

    Raises:
        InputError: The state is of another objective. Nothing is changed then.
    """
    own = {} if objective is None else objective.state_dict()
    differing = sorted(own.keys() ^ state.keys()) or misfits(state, own)
    if differing:
        raise InputError(
            f"{source} was made with another objective: they differ in {some(differing)}. Use the objective it was made with."
        )
    if objective is not None:
        objective.load_state_dict(dict(state))


def load_trainable(network: nn.Module, state: Mapping[str, Tensor], source: str = "checkpoint") -> None:
    """Put a `trainable_state_dict` back: exactly the parameters that train now, nothing missing and nothing left over.

    Plain `strict=False` would accept any file. Here the keys that the file lacks must be exactly the frozen ones.

    Args:
        network: The network with its adapter injected and its tuning mode set, as when the state was taken.
        state: Names to tensors.
        source: Where the state comes from, for messages.

    Raises:
        InputError: Keys are missing or left over, or shapes differ. The network is unchanged then.
    """
    load_exactly(network, state, trainable_names(network), source)


def load_exactly(network: nn.Module, state: Mapping[str, Tensor], wanted: set[str], source: str) -> None:
    missing, unexpected = sorted(wanted - state.keys()), sorted(state.keys() - wanted)
    if missing or unexpected:
        parts = [f"{len(missing)} that should be there are missing: {some(missing)}"] if missing else []
        parts += [f"{len(unexpected)} do not belong: {some(unexpected)}"] if unexpected else []
        raise InputError(
            f"{source} does not hold what this network trains ({'; '.join(parts)}); use the adapter options, tuning mode and "
            "train_heads it was saved with"
        )
    if wrong := misfits(state, network.state_dict()):
        raise InputError(f"{source} has other shapes than this network: {some(wrong)}; use the widths it was saved with")
    result = network.load_state_dict(dict(state), strict=False)
    if skipped := wanted & set(result.missing_keys):
        raise AssertionError(f"{source}: load_state_dict skipped {some(sorted(skipped))}")
