"""New training from old weights: of a run, a checkpoint, or an adapter export. Not a resume: only weights are taken."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from datamodules.errors import InputError, some
from lightning_modules.adapters.adapter import Adapter
from lightning_modules.adapters.tuning import HasHeads, head_names
from lightning_modules.checkpoints.adapter_export import CONFIG_FILE, WEIGHTS_FILE, read_adapter_config
from lightning_modules.checkpoints.fingerprint import backbone_fingerprint
from lightning_modules.checkpoints.fresh import note_brought
from lightning_modules.checkpoints.miniatures import located
from lightning_modules.checkpoints.places import split_part
from lightning_modules.checkpoints.run_folder import best_checkpoint
from lightning_modules.checkpoints.trainable import load_objective, split_objective
from lightning_modules.checkpoints.weights import misfits, read_weights

log = logging.getLogger("crosslight")


def start_from(network: nn.Module, adapter: Adapter | None, source: str | Path, objective: nn.Module | None = None) -> list[str]:
    """Copy the weights of `source` into the network and tell what it did not bring. Call it before `set_tuning`: heads that the
    file brings are entered in `network.loaded_heads`, and an adapter run leaves those frozen.

    What may be missing is what this network has new: the adapter's keys and the heads. A file that holds only trained parts (of
    an adapter run, or an export) brings no backbone; any other file must bring all of it.

    Args:
        network: With the adapter injected.
        adapter: The adapter, if any.
        source: A run folder, a checkpoint, a weights file (`FILE#PREFIX` and miniature:NAME too), or an adapter export.
        objective: What is trained by. It takes its parameters from a source that was trained by its like, and else starts fresh.

    Returns:
        Names of the parameters that start fresh.

    Raises:
        InputError: No such source, keys that do not belong, shapes that differ, or backbone keys missing.
    """
    name, part = split_part(located(str(source)))
    file = f"{_weights_file(Path(name).expanduser())}{part}"
    state, learnt = split_objective({key.removeprefix("network."): value for key, value in read_weights(file).items()})
    own = network.state_dict()
    unexpected = sorted(state.keys() - own.keys())
    if unexpected:
        raise InputError(
            f"init_from {file}: {len(unexpected)} of its tensors do not belong to this network ({some(unexpected)}). Use the "
            "network, and the adapter if it has one, that the file was made with; a file of a part, or in an official layout, is "
            "for `weights` of that part or of the network."
        )
    if wrong := misfits(state, own):
        raise InputError(f"init_from {file}: other shapes than this network: {some(wrong)}. Use the sizes it was made with.")
    heads = set(head_names(network))
    # what the network never reads does not train, so not even a run that tuned everything kept it
    unused: Set[str] = getattr(network, "unused_parameters", frozenset)()
    fresh = sorted(own.keys() - state.keys() - unused)
    backbone = [name for name in fresh if name not in heads and not (adapter is not None and adapter.owns(name))]
    partial = [name for name in state if name not in heads and not (adapter is not None and adapter.owns(name))] == []
    if backbone and not partial:
        raise InputError(
            f"init_from {file}: {len(backbone)} backbone tensors of this network are missing there ({some(backbone)}). "
            "Use the network it was made with."
        )
    network.load_state_dict(state, strict=False)
    if learnt:
        try:
            load_objective(objective, learnt, f"init_from {file}")
        except InputError as error:  # another objective is no mistake: it starts fresh
            log.info("%s The objective starts fresh.", error)
    if isinstance(network, HasHeads):
        network.loaded_heads |= heads & state.keys()
    note_brought(network, state.keys())
    started = [name for name in fresh if name not in backbone]
    log.info(
        "init_from %s: %d tensors taken, %d start fresh%s",
        file,
        len(state),
        len(started),
        f" ({some(started)})" if started else "",
    )
    return started


def _weights_file(source: Path) -> Path:
    if source.is_file():
        return source
    if (source / CONFIG_FILE).exists():
        read_adapter_config(source)
        return source / WEIGHTS_FILE
    if (source / "results.json").exists():
        best = best_checkpoint(source)
        if best is None:
            raise InputError(f"init_from {source}: the run kept no best checkpoint (checkpoints/best.ckpt is not there).")
        return best
    if not source.exists():
        raise InputError(
            f"init_from {source} does not exist (it is relative to {Path.cwd()}). If it was moved, say where it is now: "
            "model.init_from of a training or test; `backbone` of load, --backbone of a command. If it is on the "
            "Hugging Face Hub, fetch it first: `crosslight pull OWNER/NAME`."
        )
    raise InputError(f"init_from {source}: neither a weights file, a run folder, nor an adapter export.")


def short_fingerprint(network: nn.Module) -> dict[str, str]:
    """Architecture and content hash of everything that does not train: what a checkpoint of trained parts belongs to."""
    found = backbone_fingerprint(network)
    return {"architecture": found["architecture"], "weights": found["weights"]}


def require_backbone(network: nn.Module, stored: Mapping[str, Any] | None, state: Mapping[str, Tensor], source: str) -> None:
    """Refuse a checkpoint of trained parts on another backbone than it was trained on.

    Raises:
        InputError: Architecture or frozen weights differ, or the checkpoint does not say what it belongs to.
    """
    if stored is None:
        raise InputError(f"{source} does not say which backbone it belongs to: it was not written by this project's modules.")
    found = short_fingerprint(network)
    if stored["architecture"] != found["architecture"]:
        raise InputError(
            f"{source} belongs to a network of another architecture or tuning mode ({len(state)} trained tensors, first "
            f"{next(iter(sorted(state)), 'none')}). Use the configuration it was trained with, init_from included (config.yaml "
            "beside it)."
        )
    if stored["weights"] != found["weights"]:
        raise InputError(
            f"{source} was trained on a backbone of the same architecture but with other weights. Give the network the weights "
            "it was trained on (config.yaml beside it names them)."
        )
