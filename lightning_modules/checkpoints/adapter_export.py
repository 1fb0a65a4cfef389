"""A few megabytes instead of the whole network: what was trained, and proof of the backbone it belongs to.

An export is a folder in the layout that PEFT made common:

    adapter_model.safetensors   the adapter and the trained heads, under their names; objective.* is the objective's
    adapter_config.json         how to build the adapter again, the backbone's fingerprint, versions
    README.md                   a model card

Nothing in it is executed when it is loaded; the adapter's class must be ours or of a trusted module (trust.py).
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Collection, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from datamodules.errors import InputError, some
from datamodules.files.atomic import whole_file, write_atomically
from lightning_modules.adapters.adapter import Adapter
from lightning_modules.adapters.tuning import count_parameters, head_names
from lightning_modules.checkpoints.fingerprint import backbone_fingerprint
from lightning_modules.checkpoints.trainable import OBJECTIVE, load_exactly, load_objective, split_objective, trainable_state_dict
from lightning_modules.checkpoints.trust import require_trusted
from lightning_modules.checkpoints.weights import read_weights

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
CARD_FILE = "README.md"
FORMAT = 2  # 1 had other names of parts and options


def _refuse_other_backbone(folder: Path, stored: dict[str, Any], found: dict[str, Any], allow_other_weights: bool) -> None:
    if stored["architecture"] != found["architecture"]:
        ours, theirs = found["tensors"], stored["tensors"]
        if gone := sorted(theirs.keys() - ours.keys()):
            first = f"it was trained with {gone[0]} {theirs[gone[0]]['shape']}, which this network lacks"
        elif extra := sorted(ours.keys() - theirs.keys()):
            first = f"this network has {extra[0]} {ours[extra[0]]['shape']}, which the export's backbone lacks"
        else:
            name = next(key for key in sorted(ours) if ours[key]["shape"] != theirs[key]["shape"])
            first = f"{name} is {ours[name]['shape']} here and was {theirs[name]['shape']} there"
        raise InputError(
            f"adapter {folder} belongs to a backbone of another architecture: {first}; build the network that "
            f"{folder / CARD_FILE} describes"
        )
    if stored["weights"] != found["weights"] and not allow_other_weights:
        differ = [key for key in sorted(found["tensors"]) if found["tensors"][key] != stored["tensors"][key]]
        raise InputError(
            f"adapter {folder} belongs to a backbone of the same architecture but with other weights ({len(differ)} of "
            f"{len(found['tensors'])} tensors differ, first {differ[0]}); load the weights it was trained on, or set "
            "allow_other_weights to true to use it all the same"
        )


# ------------------------------------------------------------------------------------------------------------------- export


def export_adapter(
    network: nn.Module,
    adapter: Adapter | None,
    folder: str | Path,
    *,
    backbone: Mapping[str, Any] | None = None,
    notes: str = "",
    objective: nn.Module | None = None,
) -> Path:
    """Write what trains in `network` (its tuning mode must still be set) with everything needed to load it again.

    Args:
        network: The trained network.
        adapter: Its adapter; None after head-only tuning.
        folder: Where to; created, must not hold an export already.
        backbone: How the network is built (its part of the run's configuration); kept in the JSON for the reader.
        notes: Markdown for the model card: data, recalls, the run's command.
        objective: What it was trained by; its parameters go along.

    Returns:
        The folder.

    Raises:
        InputError: Nothing trains, or the folder holds an export.
    """
    folder = Path(folder)
    if (folder / CONFIG_FILE).exists() or (folder / WEIGHTS_FILE).exists():
        raise InputError(f"{folder} already holds an adapter export; choose another folder or remove it")
    state = trainable_state_dict(network)
    learnt = {} if objective is None else {f"{OBJECTIVE}{name}": value for name, value in objective.state_dict().items()}
    if not state:
        raise InputError("nothing to export: no parameter of the network trains; call set_tuning before export_adapter")
    heads = set(head_names(network))
    stray = sorted(name for name in state if name not in heads and not (adapter is not None and adapter.owns(name)))
    if stray:
        raise InputError(
            f"cannot export an adapter: backbone parameters train as well ({some(stray)}); after full fine-tuning keep the "
            "whole checkpoint instead"
        )
    config = {
        "format": FORMAT,
        "library": "crosslight",
        "adapter": adapter.describe() if adapter is not None else None,
        "trained_heads": sorted(name for name in state if name in heads),
        "tensors": {name: list(tensor.shape) for name, tensor in sorted((state | learnt).items())},
        "network": f"{type(network).__module__}.{type(network).__qualname__}",
        "backbone_config": dict(backbone) if backbone is not None else None,
        "backbone": backbone_fingerprint(network, set(state)),
        "versions": {name: version(name) for name in ("torch", "timm", "transformers", "safetensors")},
    }
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in (state | learnt).items()}
    with whole_file(folder / WEIGHTS_FILE) as part:
        save_file(tensors, part, metadata={"format": "pt"})
    write_atomically(folder / CARD_FILE, _card(network, adapter, tensors, config, notes))
    # the JSON comes last: a folder without it is an export that was cut short
    write_atomically(folder / CONFIG_FILE, json.dumps(config, indent=1) + "\n")
    return folder


def _card(network: nn.Module, adapter: Adapter | None, tensors: Mapping[str, Tensor], config: dict[str, Any], notes: str) -> str:
    counts = count_parameters(network, adapter)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) / 1e6
    described = json.dumps(config["adapter"], indent=1) if adapter is not None else "heads only, no adapter"
    backbone = json.dumps(config["backbone_config"], indent=1) if config["backbone_config"] else "not recorded"
    return f"""---
library_name: crosslight
tags: [image-text-retrieval, adapter]
---
# Adapter for {type(network).__name__}

{counts.trainable:,} trained parameters ({counts.percent:.2f} % of the network, {size:.1f} MB): {counts.adapter:,} adapter, \
{sum(tensors[name].numel() for name in config["trained_heads"]):,} heads. The backbone is not included.

```python
from lightning_modules.checkpoints.adapter_export import load_adapter
load_adapter(network, "path/to/this/folder")  # refuses any backbone but the one below
```

## Adapter
```json
{described}
```

## Backbone
Architecture {config["backbone"]["architecture"][:16]}, weights {config["backbone"]["weights"][:16]}, \
{len(config["backbone"]["tensors"])} tensors.
```json
{backbone}
```
{notes}
"""


# --------------------------------------------------------------------------------------------------------------------- load


def read_adapter_config(folder: str | Path) -> dict[str, Any]:
    """The parsed adapter_config.json.

    Raises:
        InputError: The folder is no (complete) export, or of a newer format.
    """
    folder = Path(folder).expanduser()
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise InputError(f"{folder} is no adapter export: it has no {CONFIG_FILE}; give the folder that export_adapter wrote")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid JSON ({error}); export the adapter again") from error
    lacking = [key for key in ("format", "adapter", "trained_heads", "tensors", "backbone") if key not in config]
    if lacking:
        raise InputError(f"{path} lacks {some(lacking)}; it was not written by crosslight, or was edited")
    if config["format"] != FORMAT:
        raise InputError(
            f"{path} has format {config['format']}, this version reads {FORMAT}; "
            "use the version that wrote it, or export the run again"
        )
    return config


def build_adapter(description: Mapping[str, Any], source: str = CONFIG_FILE, trust: Collection[str] = ()) -> Adapter:
    """An adapter from its `describe()`.

    Raises:
        InputError: The class is neither ours nor of a trusted module, or does not take these arguments.
    """
    path = str(description.get("class_path", ""))
    module_name, _, class_name = path.rpartition(".")
    require_trusted([path], source, trust)
    try:
        adapter = getattr(importlib.import_module(module_name), class_name)(**description.get("init_args", {}))
    except (ImportError, AttributeError, TypeError) as error:
        raise InputError(f"{source}: adapter {path} cannot be built ({error}); use the version that wrote it") from error
    if not isinstance(adapter, Adapter):
        raise InputError(f"{source}: {path} is not an adapter")
    return adapter


def load_adapter(
    network: nn.Module,
    folder: str | Path,
    allow_other_weights: bool = False,
    objective: nn.Module | None = None,
    trust: Collection[str] = (),
) -> Adapter | None:
    """Put an export into a network, injecting its adapter first unless the network has it already.

    Args:
        network: The same backbone the adapter was trained on, with or without the adapter.
        folder: The export.
        allow_other_weights: Accept a backbone of the same architecture with other weights.
        objective: Takes the parameters that the export's objective learnt; None leaves them in the file.
        trust: Modules of your own that the export may name.

    Returns:
        The adapter (None for an export of heads only).

    Raises:
        InputError: No export, a damaged one, or another backbone (says how it differs); the network is then as it was.
    """
    folder = Path(folder).expanduser()
    config = read_adapter_config(folder)
    state = read_weights(folder / WEIGHTS_FILE)
    if {name: list(tensor.shape) for name, tensor in state.items()} != config["tensors"]:
        differ = sorted(
            name
            for name in state.keys() | config["tensors"].keys()
            if name not in state or list(state[name].shape) != config["tensors"].get(name)
        )
        raise InputError(
            f"{folder / WEIGHTS_FILE} does not hold what {CONFIG_FILE} lists ({len(differ)} differ: {some(differ)}); the "
            "two files come from different exports, copy the folder again"
        )
    adapter = build_adapter(config["adapter"], str(folder / CONFIG_FILE), trust) if config["adapter"] is not None else None
    state, learnt = split_objective(state)
    owned = {name for name in network.state_dict() if adapter is not None and adapter.owns(name)}
    heads = set(config["trained_heads"])
    _refuse_other_backbone(folder, config["backbone"], backbone_fingerprint(network, owned | heads), allow_other_weights)
    if adapter is not None and not owned:
        adapter.inject(network)
        owned = {name for name in network.state_dict() if adapter.owns(name)}
    load_exactly(network, state, owned | heads, str(folder / WEIGHTS_FILE))
    if objective is not None:
        load_objective(objective, learnt, str(folder / WEIGHTS_FILE))
    return adapter
