"""Kind `clipcap`: rmokady/CLIP_prefix_caption, `train.py` (`ClipCaptionModel`) and `predict.py` (`generate_beam`, `generate2`).

The official loss pads with id 0 and so ignores a real id 0 ("!") as well; here too the recorded loss is compared on that reading.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from datamodules.errors import InputError
from experiments.parity.captioning.captioner import captioner, texts_of
from experiments.parity.compare import (
    OUTPUT,
    GroupCheck,
    Tolerance,
    compare,
    compare_lines,
    not_checked,
    stacked,
)
from experiments.parity.recordings import Recording
from lightning_modules.adapters.clipcap import ClipCap, Prefix
from lightning_modules.checkpoints import clipcap as checkpoint
from lightning_modules.networks.captioner import Captioner, VisualFeatures
from lightning_modules.networks.language_model import Decoding, clipcap_beams

STATE = Tolerance(2e-5, scaled=True)  # as the recordings have it
NORM = Tolerance(1e-6, relative=1e-4)  # of a gradient


def check(recording: Recording) -> list[GroupCheck]:
    """Prefix, logits, loss, gradients and generated tokens.

    Raises:
        InputError: The recording lacks an input or a size.
    """
    tokens, mask, vectors = (recording.tensor(f"inputs/{name}") for name in ("tokens", "mask", "prefix"))
    prefix_length = int(recording.value("prefix_length"))
    stop = int(recording.value("stop_token"))
    network = captioner(recording, vectors.shape[1], stop)
    mapping = recording.value("mapping")
    if mapping not in ("mlp", "transformer"):
        return [not_checked("all", f"unknown mapping {mapping!r}")]
    options: dict[str, Any] = {"mapping": mapping, "prefix_length": prefix_length}
    if mapping == "transformer":
        of = {
            "clip_length": "clip_length",
            "layers": "mapper_layers",
            "num_heads": "mapper_heads",
            "mlp_ratio": "mapper_mlp_ratio",
        }
        options |= {ours: recording.value(theirs) for ours, theirs in of.items()}
    ClipCap(**options).inject(network)
    weights = recording.group("weights")
    try:
        checkpoint.load_state(network, weights, str(recording.path.with_suffix(".safetensors")))
    except InputError as error:
        return [GroupCheck("weights", "OFF", note=str(error))]
    back = {name: tensor for name, tensor in checkpoint.official_state(network).items() if name in weights}
    rows = [compare("weights, in and out", back, weights, Tolerance(0.0))]
    features, own = VisualFeatures(vectors[:, None]), torch.arange(len(vectors))
    assert network.prefix is not None
    with torch.no_grad():
        rows.append(_recorded(recording, "prefix_embeddings", {"prefix_embeddings": network.prefix(features.tokens_IVD)}, STATE))
        inputs, _ = network._inputs(features, tokens, own)
        logits = network.language.logits(network.language.states(**inputs))
    real = mask.bool()
    if bool((real[:, 1:] > real[:, :-1]).any()):
        rows.append(not_checked("logits", "the mask has holes; ours pads on the right only"))
    else:
        recorded = {name: t for name, t in recording.group("outputs").items() if name == "logits"}
        recorded = {name: t[real] if t.shape[:2] == real.shape else t for name, t in recorded.items()}
        rows.append(compare("logits at real positions", {"logits": logits[real]}, recorded, STATE))
    rows += _training(recording, network, features, tokens, own)
    rows += _generation(recording, network, features)
    return rows


def _recorded(recording: Recording, name: str, found: dict[str, Tensor], tolerance: Tolerance) -> GroupCheck:
    outputs = recording.group("outputs")
    return compare(name.replace("_", " "), found, {key: t for key, t in outputs.items() if key == name}, tolerance)


def _training(
    recording: Recording, network: Captioner, features: VisualFeatures, tokens: Tensor, own: Tensor
) -> list[GroupCheck]:
    network.requires_grad_(True)
    loss = network.loss(features, texts_of(tokens, tokens != 0), own)["loss"]
    loss.backward()
    rows = [_recorded(recording, "loss", {"loss": loss.detach().reshape(1)}, OUTPUT)]
    assert isinstance(network.prefix, Prefix)
    norms = {name: float(p.grad.norm()) for name, p in network.prefix.mapper.named_parameters() if p.grad is not None}
    wte = network.language.model.get_input_embeddings().weight
    norms["wte"] = float(wte.grad.norm())
    recorded = dict(recording.about.get("grad_norms_clip_project", {}))
    if "grad_norm_wte" in recording.about:
        recorded["wte"] = recording.about["grad_norm_wte"]
    rows.append(compare("norms of gradients", stacked(norms), stacked(recorded), NORM))
    return rows


def _generation(recording: Recording, network: Captioner, features: VisualFeatures) -> list[GroupCheck]:
    rows = []
    longest = int(recording.value("entry_length"))
    if "beam_outputs_best_first" in recording.about:
        decoding = Decoding(num_beams=int(recording.value("beam_size")), max_new_tokens=longest, algorithm="clipcap")
        with torch.no_grad():
            found = clipcap_beams(network.language, network._lead(features, None), decoding)
        recorded = recording.about["beam_outputs_best_first"]
        rows.append(compare_lines("generate_beam", _lines([[_said(ids) for ids in each] for each in found]), _lines(recorded)))
    if "greedy_outputs" in recording.about:
        greedy = network.generate_ids(features, Decoding(num_beams=1, max_new_tokens=longest, keep_eos=True))
        rows.append(compare_lines("generate2", _lines([_said(ids) for ids in greedy]), _lines(recording.about["greedy_outputs"])))
    return rows


def _said(ids: list[int]) -> str:
    return " ".join(map(str, ids))


def _lines(rows: list[Any]) -> dict[str, Any]:
    return {f"image {i}": row for i, row in enumerate(rows)}
