"""A backbone's fingerprint: samples of its frozen parameters."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.checkpoints.trainable import trainable_names


@dataclass(frozen=True)
class Identity:
    """What a backbone is known by: a hash of names and shapes, and one of the samples."""

    architecture: str
    weights: str


@dataclass(frozen=True)
class TensorPrint:
    """A tensor's shape, and a hash of samples."""

    shape: list[int]
    digest: str


@dataclass(frozen=True)
class Fingerprint(Identity):
    """`backbone_fingerprint`, as a file holds it."""

    tensors: dict[str, TensorPrint]


_SAMPLES = 1024  # values of a tensor that enter its digest: training moves all of them, so any sample shows it


def _digest(tensor: Tensor) -> str:
    """16 hex digits over evenly strided values as fp32 (or int64): equal on every device and for dtypes of equal values."""
    flat = tensor.detach().reshape(-1)
    sample = flat[:: max(1, flat.numel() // _SAMPLES)].cpu()
    sample = sample.to(torch.float32 if sample.is_floating_point() else torch.int64)
    return hashlib.sha256(sample.numpy().tobytes()).hexdigest()[:16]


def backbone_fingerprint(
    network: nn.Module, trained: set[str] | None = None, replaced: Mapping[str, Tensor] | None = None
) -> dict[str, Any]:
    """What an adapter was trained on: every tensor of the network but the trained ones, with shape and content digest.

    Args:
        network: The network.
        trained: Names of what is left out; None = what trains now.
        replaced: Tensors that count in place of the network's.

    Returns:
        `architecture` (hash of names and shapes), `weights` (hash of the digests), `tensors` {name: {shape, digest}}, so that a
        mismatch can be named. Takes about a tenth of a second for 50 million parameters.
    """
    skip = trainable_names(network) if trained is None else trained
    tensors = {
        name: {"shape": list(tensor.shape), "digest": _digest(tensor)}
        for name, tensor in sorted((network.state_dict() | dict(replaced or {})).items())
        if name not in skip
    }
    shapes = json.dumps([[name, entry["shape"]] for name, entry in tensors.items()])
    digests = json.dumps([[name, entry["digest"]] for name, entry in tensors.items()])
    return {
        "architecture": hashlib.sha256(shapes.encode()).hexdigest(),
        "weights": hashlib.sha256(digests.encode()).hexdigest(),
        "tensors": tensors,
    }


def settings_digest(network: nn.Module) -> str:
    """64 hexadecimal digits over what a network is beside its tensors: the class of every module, its numbers, words and
    functions (heads, layers that are read, activations, scales), and the configuration of a library's model. Networks of equal
    weights that compute something else differ here, as far as their modules keep what they do in such attributes. Where a model
    was read from does not count."""
    settings = {}
    seen: set[int] = set()
    for name, module in network.named_modules():
        config = getattr(module, "config", None)
        told = {} if config is None or id(config) in seen or not hasattr(config, "to_dict") else config.to_dict()
        seen.add(id(config))
        own = {key: _setting(value) for key, value in (vars(module) | told).items() if key not in _NO_SETTINGS}
        kind = f"{type(module).__module__}.{type(module).__qualname__}"
        settings[name] = [kind, {key: value for key, value in sorted(own.items()) if value is not None}]
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()


# What all modules have, where a model was read from, and by which version.
_NO_SETTINGS = frozenset(vars(nn.Module())) | {"loaded_from", "weights", "unread", "_name_or_path", "transformers_version"}


def _setting(value: Any) -> Any:
    """As JSON; None where it is no setting (tensors, modules, objects, paths, nothing)."""
    if isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return None if "/" in value else value
    if isinstance(value, (tuple, list)):
        parts = [_setting(each) for each in value]
        return parts if parts and None not in parts else None
    if isinstance(value, (nn.Module, type)) or not callable(value):
        return None
    name = getattr(value, "__qualname__", None)
    return None if name is None else f"{getattr(value, '__module__', '')}.{name}"
