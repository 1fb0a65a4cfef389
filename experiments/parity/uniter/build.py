"""What the checks of UNITER's recordings share: our network with the recorded weights, recorded inputs as batches, a ledger.

Legend: B pairs, T text tokens, R regions, F feature width, N texts or images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from datamodules.errors import InputError, some
from datamodules.records import ImageBatch, PairBatch, Regions, TextBatch
from experiments.parity.compare import (
    EQUAL,
    GroupCheck,
    Tolerance,
    compare,
    compare_names,
    not_checked,
)
from experiments.parity.recordings import Recording
from lightning_modules.checkpoints.uniter import load_official, to_official
from lightning_modules.networks.uniter import UniterRetrieval

# What our UNITER is built as; a recording that says otherwise is of another network.
_FIXED: dict[str, Any] = {"type_vocab_size": 2, "hidden_act": "gelu"}
_SIZES = {
    "width": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "ffn_width": "intermediate_size",
    "vocab_size": "vocab_size",
    "text_positions": "max_position_embeddings",
}


class Ledger:
    """The rows of one recording, and which of its recorded tensors something was compared with."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.rows: list[GroupCheck] = []
        self._seen: set[str] = set()

    def add(
        self,
        group: str,
        found: Mapping[str, Tensor],
        tolerance: Tolerance,
        note: str = "",
        of: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Ours against what the recording records under the same names; what it lacks is said.

        Args:
            group: For the table.
            found: Ours by recorded name; what follows a blank tells apart two ways to the same value.
            tolerance: What is allowed.
            note: For the table.
            of: The part of a recorded tensor that ours is compared with.
        """
        recorded: dict[str, Tensor] = {}
        for name in found:
            key = name.partition(" ")[0]
            self._seen.add(key)
            if key in self.recording.tensors:
                tensor = self.recording.tensors[key]
                recorded[name] = tensor if of is None else of(tensor)
        self._compare(group, found, recorded, {name.partition(" ")[0] for name in found}, tolerance, note)

    def match(self, group: str, sets: Mapping[str, Mapping[str, Tensor]], tolerance: Tolerance) -> None:
        """Everything recorded below each prefix against ours: a recorded name that we lack is off. For gradients."""
        found = {f"{prefix}/{name}": tensor for prefix, ours in sets.items() for name, tensor in ours.items()}
        recorded = {f"{prefix}/{name}": tensor for prefix in sets for name, tensor in self.recording.group(prefix).items()}
        self._seen |= recorded.keys()
        self._compare(group, found, recorded, set(sets), tolerance, "")

    def _compare(
        self,
        group: str,
        found: Mapping[str, Tensor],
        recorded: Mapping[str, Tensor],
        wanted: set[str],
        tolerance: Tolerance,
        note: str,
    ) -> None:
        if recorded and (lacking := sorted(name for name in wanted if not self._has(name))):
            self.rows.append(not_checked(group, f"the file does not record {some(lacking)}"))
        ours, theirs = ({_short(name): tensor for name, tensor in part.items()} for part in (found, recorded))
        self.rows.append(compare(group, ours, theirs, tolerance, note))

    def _has(self, name: str) -> bool:
        return name in self.recording.tensors or any(each.startswith(f"{name}/") for each in self.recording.tensors)

    def rest(self) -> None:
        """Says which recorded outputs and gradients nothing was compared with."""
        recorded = {name for name in self.recording.tensors if name.startswith(("outputs/", "grads/"))}
        if beyond := sorted(recorded - self._seen):
            self.rows.append(not_checked("other outputs", f"nothing was compared with {some(beyond)}"))


def _short(name: str) -> str:
    """For the table; a group is of outputs or of gradients, never of both."""
    return name.removeprefix("outputs/").removeprefix("grads/")


# ------------------------------------------------------------------------------------------------------------- network


class Unsupported(Exception):
    """The recording is of something that our build cannot express."""


def build(recording: Recording, weights: Mapping[str, Tensor]) -> UniterRetrieval:
    """Our network in the sizes of a recording, its weights random.

    Raises:
        InputError: The recording lacks a size.
        Unsupported: It is of a network that our build cannot express.
    """
    sizes: dict[str, Any] = {ours: int(recording.value("config", theirs)) for ours, theirs in _SIZES.items()}
    for key, ours in _FIXED.items():
        if recording.value("config").get(key, ours) != ours:
            raise Unsupported(f"our UNITER has {key} {ours}, the file {recording.value('config', key)!r}")
    name = "uniter.img_embeddings.img_linear.weight"
    width = recording.about.get("img_dim") or (weights[name].shape[1] if name in weights else 2048)
    try:
        network = UniterRetrieval(**sizes, feature_width=width, tokenizer=None, max_tokens=sizes["text_positions"])
    except InputError as error:
        raise Unsupported(str(error)) from error
    return network.eval()


def load(network: UniterRetrieval, weights: Mapping[str, Tensor]) -> frozenset[str]:
    """Through the loader that users take, so it needs a file. What has no place is given back."""
    with TemporaryDirectory(prefix="crosslight-parity-") as folder:
        path = Path(folder) / "weights.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
        try:
            return load_official(network, path)
        except InputError as error:
            raise InputError(str(error).replace(str(path), "the recording")) from error


def weight_rows(network: UniterRetrieval, weights: Mapping[str, Tensor]) -> list[GroupCheck]:
    """Weights taken, written back, and the ranking head that starts from the matching head (`init_output`). The network has the
    recorded weights afterwards if the first row is ok."""
    head = {name: tensor for name, tensor in weights.items() if not name.startswith("rank_output.")}
    try:
        load(network, head)
        started = {f"rank_output.{part}": getattr(network.rank, part).detach().clone() for part in ("weight", "bias")}
        extra = load(network, weights)
    except InputError as error:
        return [GroupCheck("weights", "OFF", len(weights), note=str(error))]
    note = f"{len(extra)} recorded have no place here ({some(sorted(extra))})" if extra else ""
    written = to_official(network.state_dict())
    rows = [GroupCheck("weights taken", "OFF" if extra else "ok", len(weights), note=note)]
    if written.keys() != weights.keys():
        rows.append(compare_names("weights written back", set(written), set(weights)))
    else:
        rows.append(compare("weights written back", written, weights, EQUAL))
    matched = {f"rank_output.{part}": weights[f"itm_output.{part}"][1:] for part in ("weight", "bias")}
    return [*rows, compare("ranking head of matching head", started, matched, EQUAL, "as init_output")]


def gradients(network: UniterRetrieval, loss: Tensor) -> dict[str, Tensor]:
    """Gradients under the official names, 0 where none came."""
    network.zero_grad()
    loss.backward()
    return to_official(
        {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in network.named_parameters()}
    )


# -------------------------------------------------------------------------------------------------------------- batches


def text_batch(tokens_NT: Tensor, lengths_N: Tensor) -> TextBatch:
    """Recorded token ids, [CLS] and [SEP] included."""
    count = len(tokens_NT)
    mask_NT = torch.arange(tokens_NT.shape[1]) < lengths_N[:, None]
    return TextBatch(names(count), ("",) * count, torch.arange(count), torch.arange(count), tokens_NT, mask_NT)


def image_batch(features_NRF: Tensor, boxes_NR7: Tensor, lengths_N: Tensor) -> ImageBatch:
    """Recorded region features, padded."""
    count = len(features_NRF)
    mask_NR = torch.arange(features_NRF.shape[1]) < lengths_N[:, None]
    regions = Regions(features_NRF, boxes_NR7, mask_NR.float(), mask_NR)
    return ImageBatch(names(count), torch.arange(count), regions=regions)


def pair_batch(tokens_BT: Tensor, words_B: Tensor, features_BRF: Tensor, boxes_BR7: Tensor, regions_B: Tensor) -> PairBatch:
    return PairBatch(image_batch(features_BRF, boxes_BR7, regions_B), text_batch(tokens_BT, words_B))


def names(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))
