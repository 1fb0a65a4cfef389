"""A few megabytes instead of the whole network: what was trained, and proof of the backbone it belongs to.

An export is a folder in the layout that PEFT made common, complete but for the backbone's weights, and without a path of the
machine that wrote it (places.py):

    adapter_model.safetensors     what was trained (adapter, heads), under its names; objective.* is the objective's
    backbone_model.safetensors    frozen tensors that no file of the backbone brings: of another run of ours, or random; if any
    files/                        the tokenizer, and whatever else its configuration names that is no weights
    STAND-IN                      where nothing of it is a result: of a run on stand-ins, or of a rehearsal
    adapter_config.json           how to build all of it again, the backbone's fingerprint, checksums, versions
    README.md                     a model card (model_card.py): the folder is a whole repository of the Hugging Face Hub

Nothing in it is executed when it is loaded; the adapter's class must be ours or of a trusted module (trust.py).
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from datamodules.errors import InputError, some
from datamodules.files import stand_in
from datamodules.files.atomic import staging_folder, whole_folder
from datamodules.files.json_file import read_json
from datamodules.formats.typed import read_typed
from lightning_modules.adapters.adapter import Adapter
from lightning_modules.adapters.tuning import count_parameters
from lightning_modules.checkpoints.dial import Dialled
from lightning_modules.checkpoints.fingerprint import Fingerprint, backbone_fingerprint
from lightning_modules.checkpoints.fresh import note_brought
from lightning_modules.checkpoints.model_card import CARD_FILE, Origins, Task, card
from lightning_modules.checkpoints.places import inside, resolved, sha256_of, texts
from lightning_modules.checkpoints.trainable import OBJECTIVE, load_exactly, load_objective, split_objective, trainable_state_dict
from lightning_modules.checkpoints.trust import is_ours, require_trusted
from lightning_modules.checkpoints.weights import misfits, read_weights, write_weights

WEIGHTS_FILE = "adapter_model.safetensors"
BACKBONE_FILE = "backbone_model.safetensors"
CONFIG_FILE = "adapter_config.json"
FORMAT = 3  # 2 held paths of the machine that wrote it


@dataclass(frozen=True)
class Origin:
    """How the module is built: the `model:` section of its run (its paths as in places.py), and the run's seed."""

    model: dict[str, Any]
    seed: int


@dataclass(frozen=True)
class Export:
    """adapter_config.json.

    Args:
        format: Of this file.
        library: Ours.
        adapter: How to build the adapter; None where there was none.
        trained: What was trained beside the adapter.
        tensors: Shapes of adapter_model.safetensors.
        network: Its class, for the reader.
        backbone_config: How the module is built; None where only load_adapter can take the export.
        backbone: Fingerprint of all that was frozen.
        backbone_files: SHA-256 of the backbone's files, for whoever looks for them.
        files: SHA-256 of every file of the export but this one and the card.
        versions: Of the libraries that wrote it.
        dial: Where the trained tensors are between the start of the training and its end; None = at its end. They are written as
            they are there: whoever loads them has nothing to apply.
    """

    format: int
    library: str
    adapter: dict[str, Any] | None
    trained: tuple[str, ...]
    tensors: dict[str, list[int]]
    network: str
    backbone_config: Origin | None
    backbone: Fingerprint
    backbone_files: dict[str, str]
    files: dict[str, str]
    versions: dict[str, str]
    dial: Dialled | None = None


def _refuse_other_backbone(folder: Path, stored: Fingerprint, found: dict[str, Any], allow_other_weights: bool) -> None:
    ours, theirs = found["tensors"], stored.tensors
    if stored.architecture != found["architecture"]:
        if gone := sorted(theirs.keys() - ours.keys()):
            first = f"it was trained with {gone[0]} {theirs[gone[0]].shape}, which this network lacks"
        elif extra := sorted(ours.keys() - theirs.keys()):
            first = f"this network has {extra[0]} {ours[extra[0]]['shape']}, which the export's backbone lacks"
        else:
            name = next((key for key in sorted(ours) if ours[key]["shape"] != theirs[key].shape), "the order of its parts")
            first = f"{name} is {ours[name]['shape']} here and was {theirs[name].shape} there" if name in ours else name
        raise InputError(
            f"adapter {folder} belongs to a backbone of another architecture: {first}; build the network that "
            f"{folder / CARD_FILE} describes"
        )
    if stored.weights != found["weights"] and not allow_other_weights:
        differ = [key for key in sorted(ours) if key not in theirs or ours[key]["digest"] != theirs[key].digest]
        raise InputError(
            f"adapter {folder} belongs to a backbone of the same architecture but with other weights ({len(differ)} of "
            f"{len(ours)} tensors differ: {some(differ)}); load the weights it was trained on, or set "
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
    description: Mapping[str, Any] | None = None,
    frozen: Mapping[str, Tensor] | None = None,
    files: Mapping[str, Path] | None = None,
    backbone_files: Mapping[str, str] | None = None,
    task: Task = Task(),  # noqa: B008 - frozen
    origins: Origins = Origins(),  # noqa: B008 - frozen
    base_models: Sequence[str] = (),
    dialled: Dialled | None = None,
    mark: str | None = None,
) -> Path:
    """Write what trains in `network` (its tuning mode must still be set) with everything needed to load it again.

    The folder is there whole or not at all. One that holds this very export already, its card too, is left as it is.

    Args:
        network: The trained network.
        adapter: Its adapter; None after head-only or full tuning.
        folder: Where to; created, must be empty or not there.
        backbone: How the module is built (`Origin`); None leaves that to whoever calls load_adapter.
        notes: Markdown for the end of the model card.
        objective: What it was trained by; its parameters go along.
        description: Of the adapter, where its own has paths of this machine.
        frozen: Tensors of the network that its backbone does not bring.
        files: What else goes in, by its path in the export: a file, or the small files of a folder.
        backbone_files: See `Export`.
        task: For the model card: what the model does.
        origins: For the model card: where it comes from.
        base_models: For the model card: models of the Hub that it is made of.
        dialled: Where on its dial the network was put; None = nowhere, it is as it was trained.
        mark: Why nothing of it is a result (`run_folder.no_result`), which then stands in a file of its own and in the card.

    Returns:
        The folder.

    Raises:
        InputError: Nothing trains, the folder holds something else or cannot be written, or a path of this machine would go in.
    """
    folder = Path(folder).expanduser().resolve()
    state = trainable_state_dict(network)
    learnt = {} if objective is None else {f"{OBJECTIVE}{name}": value for name, value in objective.state_dict().items()}
    if not state:
        raise InputError("nothing to export: no parameter of the network trains (`tuning` is neither full, adapter nor head)")
    described = None if adapter is None else dict(description or adapter.describe())
    config: dict[str, Any] = {
        "format": FORMAT,
        "library": "crosslight",
        "adapter": described,
        "trained": sorted(name for name in state if not (adapter is not None and adapter.owns(name))),
        "tensors": {name: list(tensor.shape) for name, tensor in sorted((state | learnt).items())},
        "network": f"{type(network).__module__}.{type(network).__qualname__}",
        "backbone_config": dict(backbone) if backbone is not None else None,
        "backbone": backbone_fingerprint(network, set(state)),
        "backbone_files": dict(backbone_files or {}),
        "versions": {name: version(name) for name in ("torch", "timm", "transformers", "safetensors")},
    }
    if dialled is not None:
        config["dial"] = asdict(dialled)
    if machines := [f"{'.'.join(map(str, keys))} is {text}" for keys, text in texts(config) if os.path.isabs(text)]:
        raise InputError(f"cannot export: {some(machines)}, a path of this machine that no other has.")

    def write(part: Path) -> str:
        """Fills a folder, and gives what its adapter_config.json says."""
        write_weights(state | learnt, part / WEIGHTS_FILE)
        if frozen:
            write_weights(frozen, part / BACKBONE_FILE)
        for name, source in (files or {}).items():
            _copy(source, part / name)
        if mark is not None:
            stand_in.mark(part, mark)
        written = sorted(file for file in part.rglob("*") if file.is_file())
        config["files"] = {file.relative_to(part).as_posix(): sha256_of(file) for file in written}
        size = sum(tensor.numel() * tensor.element_size() for tensor in (state | learnt).values())
        about: dict[str, Any] = {
            "task": task,
            "origins": origins,
            "base_models": base_models,
            "trust": _own_modules(config),
            "notes": notes,
            "mark": mark,
        }
        (part / CARD_FILE).write_text(card(config, count_parameters(network, adapter), size / 1e6, **about), encoding="utf-8")
        content = json.dumps(config, indent=1) + "\n"
        (part / CONFIG_FILE).write_text(content, encoding="utf-8")
        return content

    try:
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            with whole_folder(folder) as part:
                write(part)
        else:
            with staging_folder(folder) as again:
                _require_same(folder, write(again), config["files"], again / CARD_FILE)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror or error})") from error
    return folder


def _own_modules(config: Mapping[str, Any]) -> list[str]:
    """Modules that are not crosslight's and that a configuration names, which whoever loads it has to trust."""
    named = [text for keys, text in texts(config) if keys[-1] == "class_path" or ("metrics" in keys and "." in text)]
    return sorted({path.rpartition(".")[0] for path in named if not is_ours(path)})


def _require_same(folder: Path, content: str, files: Mapping[str, str], card_file: Path) -> None:
    """A folder that is there already must hold this very export: it was written by a command that was stopped right after."""
    if not (folder / CONFIG_FILE).is_file():
        raise InputError(f"{folder} is not an empty folder; give another, or one that does not exist")
    if (folder / CONFIG_FILE).read_bytes() != content.encode():
        raise InputError(f"{folder} already holds an adapter export, of something else; choose another folder or remove it")
    require_files(folder, files)
    if not (folder / CARD_FILE).exists():
        shutil.copyfile(card_file, folder / CARD_FILE)
    elif (folder / CARD_FILE).read_bytes() != card_file.read_bytes():
        raise InputError(
            f"{folder} holds this very export with another {CARD_FILE}. Remove that file to have it written anew, or keep it and "
            "all is there."
        )


_TEXTS = (".json", ".txt", ".model", ".spm", ".jinja")  # of a folder of Hugging Face's: its tokenizer and configuration
_SETTINGS = ("config.json", "tokenizer_config.json")  # some of them remember where they lay


def _copy(source: Path, target: Path) -> None:
    """A file, or what a tokenizer needs of a folder: neither weights nor code."""
    if source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        return
    chosen = [file for file in sorted(source.iterdir()) if file.suffix in _TEXTS and file.is_file()]
    if not chosen:
        raise InputError(f"{source} has none of the files of a tokenizer ({', '.join(_TEXTS)}), which the export needs")
    target.mkdir(parents=True)
    for file in chosen:
        shutil.copyfile(file, target / file.name)
        if file.name in _SETTINGS:
            settings = read_json(file, "settings of Hugging Face's")
            if not isinstance(settings, dict):
                raise InputError(f"{file} is not the settings of a tokenizer or model: it holds no mapping")
            kept = {key: value for key, value in settings.items() if not (isinstance(value, str) and os.path.isabs(value))}
            if kept != settings:
                (target / file.name).write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


# --------------------------------------------------------------------------------------------------------------------- load


def read_adapter_config(folder: str | Path) -> Export:
    """The parsed adapter_config.json.

    Raises:
        InputError: The folder is no (complete) export, of another format, or was edited.
    """
    folder = Path(folder).expanduser()
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise InputError(f"{folder} is no adapter export: it has no {CONFIG_FILE}; give the folder that export_adapter wrote")
    content = read_json(path, "what crosslight export wrote")
    if not isinstance(content, dict) or content.get("library") != "crosslight":
        raise InputError(f"{path} was not written by crosslight; give the folder that export_adapter wrote")
    if content.get("format") != FORMAT:
        raise InputError(
            f"{path} has format {content.get('format')!r:.40}, this version reads {FORMAT}; "
            "use the version that wrote it, or export the run again"
        )
    export: Export = read_typed(Export, content, str(path))
    return export


def require_files(folder: Path, files: Mapping[str, str]) -> None:
    """See that the files of an export are there and as they were written.

    Raises:
        InputError: Names the first that is not.
    """
    for name, digest in files.items():
        file = inside(folder, name, str(folder / CONFIG_FILE))
        if not file.is_file():
            raise InputError(f"{folder} lacks {name}; copy the whole export again")
        if sha256_of(file) != digest:
            raise InputError(
                f"{file} was damaged or changed: it has not the SHA-256 that {CONFIG_FILE} lists; copy the export again"
            )


def build_adapter(description: Mapping[str, Any], source: str = CONFIG_FILE, trust: Collection[str] = ()) -> Adapter:
    """An adapter from its `describe()`, with those that it is made of. Nothing but a class of adapters is called.

    Raises:
        InputError: The class is neither ours nor of a trusted module, is no adapter, or does not take these arguments.
    """
    path: str = read_typed(str, description.get("class_path"), f"{source}: adapter: class_path")
    arguments = read_typed(dict[str, Any], description.get("init_args", {}), f"{source}: adapter: init_args")
    for name, value in arguments.items():
        if isinstance(value, list) and any(isinstance(part, dict) and "class_path" in part for part in value):
            parts = read_typed(list[dict[str, Any]], value, f"{source}: adapter: {name}")
            arguments[name] = [build_adapter(part, source, trust) for part in parts]
    module_name, _, class_name = path.rpartition(".")
    require_trusted(path, source, trust)
    remedy = "use the version that wrote it"
    try:
        kind = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"{source}: adapter {path} cannot be built ({error}); {remedy}") from error
    if not (isinstance(kind, type) and issubclass(kind, Adapter)):
        raise InputError(f"{source}: {path} is not an adapter; {remedy}")
    try:
        return kind(**arguments)
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:  # of arguments of other types
        raise InputError(f"{source}: adapter {path} cannot be built ({error}); {remedy}") from error


def load_adapter(
    network: nn.Module,
    folder: str | Path,
    allow_other_weights: bool = False,
    objective: nn.Module | None = None,
    trust: Collection[str] = (),
    backbone: str | Path | None = None,
) -> Adapter | None:
    """Put an export into a network, injecting its adapter first unless the network has it already.

    Args:
        network: The same backbone the adapter was trained on, with or without the adapter.
        folder: The export.
        allow_other_weights: Accept a backbone of the same architecture with other weights.
        objective: Takes the parameters that the export's objective learnt; None leaves them in the file.
        trust: Modules of your own that the export may name.
        backbone: Where weights lie that the adapter itself names.

    Returns:
        The adapter (None for an export of heads only).

    Raises:
        InputError: No export, a damaged one, or another backbone (says how it differs); the network is then as it was.
    """
    folder = Path(folder).expanduser()
    config = read_adapter_config(folder)
    require_files(folder, config.files)
    source = str(folder / CONFIG_FILE)
    state = read_weights(folder / WEIGHTS_FILE)
    if {name: list(tensor.shape) for name, tensor in state.items()} != config.tensors:
        differ = sorted(
            name
            for name in state.keys() | config.tensors.keys()
            if name not in state or list(state[name].shape) != config.tensors.get(name)
        )
        raise InputError(
            f"{folder / WEIGHTS_FILE} does not hold what {CONFIG_FILE} lists ({len(differ)} differ: {some(differ)}); the "
            "two files come from different exports, copy the folder again"
        )
    adapter = None
    if config.adapter is not None:
        adapter = build_adapter(resolved(config.adapter, folder, source, backbone, config.backbone_files), source, trust)
    frozen = read_weights(folder / BACKBONE_FILE) if BACKBONE_FILE in config.files else {}
    state, learnt = split_objective(state)
    own = network.state_dict()
    owned = {name for name in own if adapter is not None and adapter.owns(name)}
    trained = owned | set(config.trained)
    if stray := misfits(frozen, own) + sorted(frozen.keys() - own.keys()):
        raise InputError(f"adapter {folder} belongs to a backbone of another architecture: {some(stray)}; build its network")
    found = backbone_fingerprint(network, trained, frozen)
    _refuse_other_backbone(folder, config.backbone, found, allow_other_weights)
    if adapter is not None and not owned:
        adapter.inject(network)
        trained |= {name for name in network.state_dict() if adapter.owns(name)}
    load_exactly(network, state, trained, str(folder / WEIGHTS_FILE))
    network.load_state_dict(frozen, strict=False)
    note_brought(network, state.keys() | frozen.keys())
    if objective is not None:
        load_objective(objective, learnt, str(folder / WEIGHTS_FILE))
    return adapter
