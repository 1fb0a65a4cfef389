"""Kinds `i-tuning-module` and `i-tuning-gpt2`: a numpy computation of the paper's equations (there is no official code).

Of the language model with modules: logits, loss, greedy tokens, and the tokens of the library's beam search.
"""

from __future__ import annotations

import re
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

from datamodules.errors import InputError
from experiments.parity.captioning.captioner import captioner, texts_of
from experiments.parity.compare import (
    OUTPUT,
    STATE,
    GroupCheck,
    Tolerance,
    compare,
    compare_lines,
    compare_names,
    not_checked,
    stacked,
)
from experiments.parity.recordings import Recording
from lightning_modules.adapters.i_tuning import ITuning, ITuningModule, ITuningModules, Rows
from lightning_modules.checkpoints.language_model import load_language_weights
from lightning_modules.networks.captioner import Captioner, VisualFeatures
from lightning_modules.networks.language_model import Decoding

# Recorded in float64: unscaled attention (logits of 6 and more) makes fp32 rounding of a lower layer larger in the layers above.
LOGITS = Tolerance(5e-5, relative=1e-4)
_CASE = re.compile(r"heads(\d+)_(scaled|unscaled)")
_DROP = re.compile(r"_drop(\d+)$")
_GREEDY = re.compile(r"^greedy_(\d+)_tokens$")
_BEAM = re.compile(r"^beam(\d+)_\w+_max(\d+)$")


def check_module(recording: Recording) -> list[GroupCheck]:
    """dh and the attention maps of every recorded number of heads and scale.

    Raises:
        InputError: The recording lacks an input or a size.
    """
    x, visual = recording.tensor("inputs/X"), recording.tensor("inputs/V")
    weights = recording.group("weights")
    d_model, d_visual, bottleneck = (int(recording.value(key)) for key in ("d_model", "d_visual", "bottleneck"))
    deltas: dict[str, Tensor] = {}
    maps: dict[str, Tensor] = {}
    rows: list[GroupCheck] = []
    for heads in recording.value("heads"):
        for name, scale in (("unscaled", 1.0), ("scaled", None)):
            module = ITuningModule(d_model, d_visual, bottleneck, int(heads), scale, float(recording.value("lambda_")))
            if not rows:
                rows = [_fits("weights", dict(module.named_parameters()), weights)]
                counted = {"parameters": sum(parameter.numel() for parameter in module.parameters())}
                if "parameters" in recording.about:
                    rows.append(compare_lines("parameters", counted, {"parameters": recording.about["parameters"]}))
                if rows[0].verdict == "OFF":
                    return [*rows, not_checked("outputs", "the weights do not fit")]
            module.load_state_dict(weights)
            with torch.no_grad():
                images = module.keys_values(visual, Rows(len(visual), 1, None))
                deltas[f"delta_h_heads{heads}_{name}"] = module(x, images)
                kept: list[Tensor] = []
                module._maps = kept
                module(x, images)
                maps[f"attention_heads{heads}_{name}"] = kept[0].transpose(1, 2)
    recorded = recording.group("outputs")
    rows.append(compare("dh", deltas, {name: t for name, t in recorded.items() if name.startswith("delta_h_")}, STATE))
    stored = {name: _as_maps(t) for name, t in recorded.items() if name.startswith("attention_")}
    turned = sorted(name for name in stored if not torch.equal(stored[name], recorded[name]))
    note = f"{', '.join(turned)}: stored in another order of dimensions than labelled" if turned else ""
    rows.append(compare("attention", maps, stored, OUTPUT, note))
    if other := [name for name in recorded if name not in deltas and name not in maps]:
        rows.append(not_checked("others", f"nothing of ours is called {other[0]}"))
    return rows


def _as_maps(recorded: Tensor) -> Tensor:
    """A map [B, H, T, V] whose rows sum to 1.

    The recorded maps of several heads are stored as [B, T, V, H] under the label [B, H, T, V] (`safetensors.numpy` writes the
    bytes of an array that is not contiguous in the order of memory), and so their rows do not sum to 1. The order in which they
    come nearest to it is taken, the labelled one first.
    """
    if recorded.ndim != 4:
        return recorded

    def off(tensor: Tensor) -> float:
        return float((tensor.double().sum(-1) - 1).abs().mean())

    best = recorded
    for order in permutations(range(4)):  # of the dimensions in memory
        inverse = [order.index(dimension) for dimension in range(4)]
        turned = recorded.reshape([recorded.shape[dimension] for dimension in order]).permute(inverse)
        if off(turned) < off(best) - 1e-5:
            best = turned
    return best


def check_gpt2(recording: Recording) -> list[GroupCheck]:
    """Every recorded configuration.

    Raises:
        InputError: The recording lacks an input or a size.
    """
    ids, lengths = recording.tensor("inputs/input_ids"), recording.tensor("inputs/lengths")
    visual, results = recording.tensor("inputs/visual"), recording.value("results")
    end = int(recording.value("gpt2", "bos_eos_pad"))
    language = {name.removeprefix("lm."): t for name, t in recording.group("weights").items() if name.startswith("lm.")}
    modules = {name.removeprefix("ituning."): t for name, t in recording.group("weights").items() if name.startswith("ituning.")}
    texts = texts_of(ids[:, 1:], torch.arange(1, ids.shape[1]) < lengths[:, None])
    features, own = VisualFeatures(visual), torch.arange(len(visual))
    rows: list[GroupCheck] = []
    logits: dict[str, Tensor] = {}
    losses: dict[str, float] = {}
    tokens: dict[str, list[list[int]]] = {}
    for name, recorded in results.items():
        network = captioner(recording, visual.shape[2], end)
        try:
            load_language_weights(network.language.model, language, str(recording.path))
        except InputError as error:
            return [GroupCheck("weights", "OFF", note=str(error))]
        if name != "frozen_lm_only":
            case, drop = _CASE.match(name), _DROP.search(name)
            if case is None:
                rows.append(not_checked(name, "neither frozen_lm_only nor headsN_(un)scaled_dropK"))
                continue
            row = _put(network, modules, recording, int(case[1]), case[2] == "scaled", int(drop[1]) if drop else 0)
            if not any(each.group == row.group for each in rows) or row.verdict == "OFF":
                rows.append(row)
            if row.verdict == "OFF":
                return [*rows, not_checked("outputs", "the weights do not fit")]
        with torch.no_grad():
            network.i_tuning.set_images(visual, own) if network.i_tuning is not None else None
            logits[f"logits_{name}"] = network.language.logits(network.language.states(input_ids=ids))
            losses[name] = float(network.loss(features, texts, own)["loss"])
        tokens |= {f"{name}.{key}": found for key in recorded if (found := _decoded(network, features, key)) is not None}
    expected = {key: value for key, value in recording.group("outputs").items() if key.startswith("logits_")}
    rows.append(compare("logits", logits, expected, LOGITS))
    means = {name: result["loss_mean_over_tokens"] for name, result in results.items() if "loss_mean_over_tokens" in result}
    rows.append(compare("loss", stacked(losses), stacked(means), OUTPUT))
    for group, pattern in (("greedy tokens", _GREEDY), ("beam tokens", _BEAM)):
        wanted = {
            f"{name}.{key}": [_cut(row, end) for row in value]
            for name, result in results.items()
            for key, value in result.items()
            if pattern.match(key)
        }
        rows.append(compare_lines(group, {name: found for name, found in tokens.items() if name in wanted}, wanted))
    return rows


def _put(network: Captioner, weights: dict[str, Tensor], recording: Recording, heads: int, scaled: bool, drop: int) -> GroupCheck:
    """Inject modules with the recorded weights; the row says whether they fit."""
    adapter = ITuning(
        drop_first=drop,
        bottleneck=int(recording.value("bottleneck")),
        num_heads=heads,
        scale="sqrt" if scaled else 1.0,
        lambda_=float(recording.value("lambda_")),
    )
    adapter.inject(network)
    assert isinstance(network.i_tuning, ITuningModules)
    own = {name: t for name, t in weights.items() if int(name.split(".")[0]) >= drop}
    row = _fits(f"modules, first {drop} dropped", dict(network.i_tuning.named_parameters()), own)
    if row.verdict == "ok":
        network.i_tuning.load_state_dict(own)
    return row


def _fits(group: str, ours: dict[str, Any], recorded: dict[str, Tensor]) -> GroupCheck:
    def shapes(tensors: dict[str, Any]) -> set[str]:
        return {f"{name} {list(tensor.shape)}" for name, tensor in tensors.items()}

    return compare_names(group, shapes(ours), shapes(recorded))


def _decoded(network: Captioner, features: VisualFeatures, key: str) -> list[list[int]] | None:
    greedy, beam = _GREEDY.match(key), _BEAM.match(key)
    if greedy is not None:
        return network.generate_ids(features, Decoding(num_beams=1, max_new_tokens=int(greedy[1])))
    if beam is not None:
        return network.generate_ids(features, Decoding(num_beams=int(beam[1]), max_new_tokens=int(beam[2])))
    return None


def _cut(ids: list[int], end: int) -> list[int]:
    """Up to the end token. The recorded greedy tokens go on behind it, ours stop there."""
    return ids[: ids.index(end)] if end in ids else ids
