"""A finished run as a miniature of the package: its weights as halves, their SHA-256, and a card that says what made them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import lightning_modules
from datamodules.errors import InputError
from datamodules.files.atomic import write_atomically
from experiments.pretraining.card import card, chosen_by
from experiments.runs.results import read_results
from experiments.sweep.launches import Launch
from lightning_modules.checkpoints import miniatures
from lightning_modules.checkpoints.places import sha256_of
from lightning_modules.checkpoints.stored import stored
from lightning_modules.checkpoints.weights import require_finite, write_weights


@dataclass(frozen=True)
class Packed:
    """A miniature that was written.

    Args:
        name: Its name.
        file: Its weights.
        parameters: How many.
        chosen_by: The validation metric that chose them, and its value.
    """

    name: str
    file: Path
    parameters: int
    chosen_by: str


def pack(name: str, part: str, run: str, launch: Launch, folder: Path) -> Packed:
    """Write NAME.safetensors and NAME.md into `folder`, and enter the SHA-256 among those of the folder. The same run gives the
    same bytes.

    Args:
        name: The miniature's.
        part: Of the run's module, as a dotted path.
        run: PAPER/RUN.
        launch: The run with its folder; its environment says which world it read.
        folder: Where to.

    Raises:
        InputError: The run is not finished or on stand-ins, has an adapter, or weights that fp16 cannot hold.
    """
    results = read_results(launch.folder)
    if results.status != "finished":
        raise InputError(f"{launch.folder} is {results.status}, not finished: run it first.")
    model: Any = lightning_modules.load(launch.folder)
    if model.no_result is not None:
        raise InputError(f"{launch.folder} is no result ({model.no_result}), and no miniature is made of it.")
    if model.adapter is not None and part == "network":  # a tower beside which an adapter learnt is whole without it
        raise InputError(f"{launch.folder} has an adapter; a miniature is a whole network, tower or language model without one.")
    kept: nn.Module = model.get_submodule(part)
    state = halved(stored(kept))
    require_finite(state, f"{launch.folder} in fp16")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.safetensors"
    write_weights(state, file)
    parameters = sum(tensor.numel() for tensor in state.values())
    facts = {"what": f"`{part}` of the run, a {_kind(kept)}", "parameters": f"{parameters:,}; {file.stat().st_size:,} bytes"}
    write_atomically(folder / f"{name}.md", card(name, facts, run, launch, results))
    sums = miniatures.read_sums(folder) | {name: sha256_of(file)}
    write_atomically(folder / miniatures.SUMS_FILE, miniatures.sums_text(sums))
    return Packed(name, file, parameters, chosen_by(results))


def halved(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matrices as fp16. Vectors (biases, norms) and single numbers (temperatures) are few and stay as they are."""
    return {name: tensor.half() if tensor.is_floating_point() and tensor.ndim > 1 else tensor for name, tensor in state.items()}


def _kind(part: nn.Module) -> str:
    inside = getattr(part, "model", None)  # the library's, of a tower or language model
    return type(part).__name__ + (f" around {type(inside).__name__}" if isinstance(inside, nn.Module) else "")
