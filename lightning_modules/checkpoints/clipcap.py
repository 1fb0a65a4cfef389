"""ClipCap's official checkpoints (`coco_weights.pt`, `conceptual_weights.pt`, and those of `train.py`) <-> a captioner.

A checkpoint is the flat state dict of `ClipCaptionModel`: `clip_project.*` is the mapper, `gpt.*` the whole GPT-2 under Hugging
Face's names (also where GPT-2 was frozen). Old ones hold GPT-2's causal masks as buffers, which are passed over.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from datamodules.errors import InputError, some
from lightning_modules.adapters.clipcap import ClipCap, Prefix
from lightning_modules.checkpoints.language_model import load_language_weights
from lightning_modules.checkpoints.weights import misfits, read_weights, write_torch
from lightning_modules.networks.captioner import Captioner

MAPPER, LANGUAGE = "clip_project.", "gpt."


def official_state(network: Captioner) -> dict[str, Tensor]:
    """The network under the official names.

    Raises:
        InputError: The network has no ClipCap prefix.
    """
    state = {f"{MAPPER}{name}": tensor for name, tensor in _mapper(network).state_dict().items()}
    return state | {f"{LANGUAGE}{name}": tensor for name, tensor in network.language.model.state_dict().items()}


def describe_official(state: dict[str, Tensor], source: str) -> ClipCap:
    """The adapter whose mapper a checkpoint holds; what shapes do not tell (num_heads) is as released.

    Raises:
        InputError: It holds no mapper of ClipCap.
    """
    names = {name.removeprefix(MAPPER): tensor for name, tensor in state.items() if name.startswith(MAPPER)}
    if "model.2.weight" in names:
        embedding = state.get(f"{LANGUAGE}transformer.wte.weight")
        if embedding is None:
            raise InputError(f"{source}: has no gpt.transformer.wte.weight; not a ClipCap checkpoint")
        return ClipCap("mlp", prefix_length=len(names["model.2.weight"]) // embedding.shape[1])
    if "prefix_const" in names and "linear.weight" in names:
        prefix_length, width = names["prefix_const"].shape
        layers = {name.split(".")[2] for name in names if name.startswith("transformer.layers.")}
        inside = names["transformer.layers.0.mlp.fc1.weight"].shape[0]
        return ClipCap("transformer", prefix_length, len(names["linear.weight"]) // width, len(layers), mlp_ratio=inside / width)
    raise InputError(
        f"{source}: has no clip_project.* of a ClipCap mapper (it has {some(sorted(state))}); give a checkpoint of it"
    )


def load_official(network: Captioner, source: str | Path) -> None:
    """Fill mapper and language model of a captioner with a ClipCap prefix from an official checkpoint.

    Raises:
        InputError: No such file, or it does not fit (the message says which adapter options would). The network is unchanged.
    """
    load_state(network, read_weights(source), str(source))


def load_state(network: Captioner, state: dict[str, Tensor], source: str) -> None:
    """`load_official` with the state dict at hand.

    Raises:
        InputError: It does not fit. The network is unchanged then.
    """
    own = official_state(network)
    if strange := sorted(name for name in state if not name.startswith((MAPPER, LANGUAGE))):
        raise InputError(f"{source} holds more than a ClipCap model ({some(strange)}); give its state dict")
    mapper, wanted = _part(state, MAPPER), _part(own, MAPPER)
    wrong = sorted(mapper.keys() ^ wanted.keys()) + misfits(mapper, wanted)
    if wrong:
        options = describe_official(state, source).describe()["init_args"]
        fits = ", ".join(f"{key}={options[key]}" for key in ("mapping", "prefix_length", "clip_length", "layers", "mlp_ratio"))
        raise InputError(f"{source} has another mapper than this captioner ({some(wrong)}); its adapter options are {fits}")
    load_language_weights(network.language.model, _part(state, LANGUAGE), source)
    _mapper(network).load_state_dict(mapper)


def _mapper(network: Captioner) -> nn.Module:
    if not isinstance(network.prefix, Prefix):
        raise InputError(
            "ClipCap: this captioner has no prefix; inject the adapter ClipCap before reading or writing its weights"
        )
    return network.prefix.mapper


def _part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def write_official(network: Captioner, path: str | Path) -> Path:
    """Write the network as `train.py` does: a flat state dict.

    Raises:
        InputError: The network has no ClipCap prefix, its language model is no GPT-2, or the file exists.
    """
    path = Path(path)
    if path.exists():
        raise InputError(f"{path} exists already; choose another name or remove it")
    kind = network.language.model.config.model_type
    if kind != "gpt2":
        raise InputError(f"ClipCap: the official layout is for GPT-2, this language model is a {kind}; keep the run's checkpoint")
    state = official_state(network)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_torch({name: tensor.detach().cpu().clone() for name, tensor in state.items()}, path)
    return path
