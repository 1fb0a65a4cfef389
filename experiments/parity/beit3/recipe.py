"""Kind `beit3-recipe`: what trains, with which learning rate and weight decay, and the schedule.

Recorded from MultiWay-Adapter's freeze rule (`run_beit3_finetuning.py`), `optim_factory.py` and `utils.cosine_scheduler`.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from datamodules.errors import InputError
from experiments.parity.compare import (
    GroupCheck,
    Tolerance,
    compare,
    compare_names,
    not_checked,
    stacked,
)
from experiments.parity.recordings import Recording
from lightning_modules.adapters.multiway import MultiWayAdapter
from lightning_modules.adapters.tuning import head_names, set_tuning
from lightning_modules.checkpoints.beit3 import official_names
from lightning_modules.networks.beit3 import BEiT3Retrieval
from lightning_modules.optimization import Optimization, parameter_groups, schedule_factor

_NUMBER = r"[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?"
_CASE = re.compile(r"(mwa|ke_only|ae_only)(?:_\w+?)?_from_(itc|retrieval|plain)")
_PARTS = {"mwa": (True, True), "ke_only": (True, False), "ae_only": (False, True)}
_RATE = Tolerance(1e-12)  # both sides are float64 arithmetic
_UNUSED = "without the mask token, unused: ours never trains it, the official code gives it a group but no gradient"


def check(recording: Recording) -> list[GroupCheck]:
    """Of each recorded case the trainable tensors and their groups, then the schedule.

    Raises:
        InputError: The recording lacks a part.
    """
    rows: list[GroupCheck] = []
    cases = recording.value("cases")
    layers = 1 + max(
        (int(match[1]) for case in cases.values() for name in _grouped(case) if (match := re.search(r"layers\.(\d+)\.", name))),
        default=-1,
    )
    if layers < 1:
        raise InputError(f"{recording.path}: no case names a tensor of a layer, so the number of layers is unknown")
    for name, case in cases.items():
        rows += _case(recording, name, case, layers)
    return [*rows, _schedule(recording)]


def _grouped(case: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Official tensor name -> (learning-rate scale, weight decay)."""
    groups = case.get("param_groups", {}).values()
    return {name: (float(group["lr_scale"]), float(group["weight_decay"])) for group in groups for name in group["params"]}


def _case(recording: Recording, name: str, case: dict[str, Any], layers: int) -> list[GroupCheck]:
    grouped = _grouped(case)
    listed = set(grouped) if case.get("trainable", "all") == "all" else set(case["trainable"])
    network, adapter, why = _network(name, listed, layers)
    unused = {official for own in network.unused_parameters() for official in official_names(own)}
    everything = not any(key.startswith("beit3.") for key in listed) or any(
        ".ffn.A." in key or key == "beit3.text_embed.weight" for key in listed
    )
    note = ""
    if everything and adapter is None:
        set_tuning(network, None, "full")
        note = _UNUSED
    elif everything:
        for own, parameter in network.named_parameters():
            parameter.requires_grad = own not in network.unused_parameters()
    else:
        match = _CASE.fullmatch(name)
        # An ITC or retrieval checkpoint brings the heads, a plain one does not; the released rule trains what was missing.
        heads = head_names(network)
        if match is not None:
            network.loaded_heads = heads if match[2] != "plain" else frozenset()
        else:
            network.loaded_heads = frozenset(head for head in heads if official_names(head)[0] not in listed)
            note = "which heads were loaded is read from the list"
        assert adapter is not None
        set_tuning(network, adapter, "adapter", "new")
    trains = {official for own, p in network.named_parameters() if p.requires_grad for official in official_names(own)}
    recorded = listed - unused if everything else listed

    if everything and adapter is not None:
        why = why or "officially nothing is frozen without --ffn_adapt; our full tuning takes no adapter"
        rows = [not_checked(f"{name}: trains", why)]
    else:
        rows = [compare_names(f"{name}: trains", trains, recorded, note)]
    if not grouped:
        return [*rows, not_checked(f"{name}: groups", "the file records none")]
    decay, layer_decay = _setting(recording, "weight_decay"), _setting(recording, "layer_decay")
    if layer_decay is None:
        return [*rows, not_checked(f"{name}: groups", "the file does not say which layer_decay")]
    if decay is None:
        decay = max(value for _, value in grouped.values())
    settings = Optimization(weight_decay=decay, layer_decay=layer_decay, layer_decay_on_adapters=True)
    found = _flat(_our_groups(network, settings, adapter))
    wanted = _flat({key: value for key, value in grouped.items() if key not in unused})
    row = compare(f"{name}: groups", found, wanted, _RATE)
    if beyond := sorted(found.keys() - wanted.keys()):
        row = GroupCheck(row.group, "OFF", row.count, row.deviation, row.tolerance, f"{len(beyond)} too many: {beyond[0]}")
    return [*rows, row]


def _network(name: str, listed: set[str], layers: int) -> tuple[BEiT3Retrieval, MultiWayAdapter | None, str]:
    """A network of that many layers, with the adapters that the case is about, and what its name does not tell."""
    network = BEiT3Retrieval(16, 8, layers, 1, 16, 16, 8, text_positions=8, max_tokens=4)
    match = _CASE.fullmatch(name)
    knowledge_extractor = any(".adaptmlp_" in key for key in listed)
    alignment_enhancer = any(".enhancemlp." in key for key in listed)
    if match is not None:  # by what the case is called, so that a part that is missing in ours or in the list shows
        knowledge_extractor, alignment_enhancer = _PARTS[match[1]]
    if not knowledge_extractor and not alignment_enhancer:
        return network, None, ""
    norm = any(".adapter_layer_norm_before." in key for key in listed)
    bottleneck = any(".enhancemlp.down_proj." in key for key in listed)
    each = any(".enhancemlp.A." in key for key in listed)
    adapter = MultiWayAdapter(
        "text" if bottleneck else "printed" if each else "released",
        knowledge_extractor=knowledge_extractor,
        alignment_enhancer=alignment_enhancer,
        layer_norm="in" if norm else "none",
        scale="learnable" if any(key.endswith(".scale") for key in listed) else 0.6,
    )
    adapter.inject(network)
    return network, adapter, ""


def _our_groups(
    network: BEiT3Retrieval, settings: Optimization, adapter: MultiWayAdapter | None
) -> dict[str, tuple[float, float]]:
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    owns = adapter.owns if adapter is not None else lambda _name: False
    groups = parameter_groups(network, settings, owns)
    return {
        official: (group["lr"] / settings.lr, group["weight_decay"])
        for group in groups
        for parameter in group["params"]
        for official in official_names(names[id(parameter)])
    }


def _flat(groups: dict[str, tuple[float, float]]) -> dict[str, Tensor]:
    """[learning-rate scale, weight decay] of each tensor."""
    return {name: torch.tensor(pair, dtype=torch.float64) for name, pair in groups.items()}


def _schedule(recording: Recording) -> GroupCheck:
    recorded = recording.about.get("schedule")
    if not recorded:
        return not_checked("schedule", "the file records none")
    names = ("base", "final", "epochs", "niter_per_ep", "warmup_epochs")
    values = {name: _setting(recording, name) for name in names}
    if lacking := [name for name, value in values.items() if value is None]:
        return not_checked("schedule", f"the file does not say {', '.join(lacking)}")
    base, final, epochs, steps, warmup = (float(values[name] or 0.0) for name in names)
    total = round(epochs * steps)
    settings = Optimization(lr=base, min_lr=final, warmup_fraction=warmup / epochs)
    found = {f"step {step}": settings.lr * schedule_factor(step, total, settings) for step in range(total)}
    wanted = {f"step {step}": value for step, value in enumerate(recorded)}
    if len(found) != len(wanted):
        return GroupCheck(
            "schedule", "OFF", len(wanted), note=f"{len(wanted)} steps recorded, {total} said ({epochs:g} x {steps:g})"
        )
    return compare("schedule", stacked(found), stacked(wanted), Tolerance(1e-12 * base))


def _setting(recording: Recording, name: str) -> float | None:
    """A number that the .json has under this name, or says in its `doc`; None if neither."""
    for place in (recording.about, recording.about.get("config"), recording.about.get("settings"), recording.about.get("recipe")):
        if isinstance(place, dict) and isinstance(place.get(name), (int, float)):
            return float(place[name])
    match = re.search(rf"\b{name}\s*[=:]?\s*({_NUMBER})", str(recording.about.get("doc", "")))
    return float(match[1]) if match else None
