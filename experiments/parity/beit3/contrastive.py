"""Kind `contrastive-gather`: the contrastive loss over the global batch, in one process and gathered over several.

Recorded from `utils.ClipLoss` and `GatherLayer` of MultiWay-Adapter; gradients are those of each rank before DDP averages them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from datamodules.errors import InputError
from experiments.parity.beit3 import gather_process
from experiments.parity.compare import (
    GRADIENT,
    OUTPUT,
    STATE,
    GroupCheck,
    compare,
    not_checked,
)
from experiments.parity.recordings import Recording
from lightning_modules.objectives.contrastive import ContrastiveLoss

_PATIENCE = 300.0  # seconds; it takes about 5


def check(recording: Recording) -> list[GroupCheck]:
    """Loss and gradients of one process with the global batch, then of as many processes as were recorded.

    Raises:
        InputError: The recording lacks an input.
    """
    inputs, outputs, grads = recording.group("inputs"), recording.group("outputs"), recording.group("grads")
    ranks = sum(name.startswith("image_") for name in inputs)
    if not ranks:
        raise InputError(
            f"{recording.path}: has no inputs/image_0; a recording of kind {recording.kind} needs the rows of each rank"
        )
    images, texts = ([recording.tensor(f"inputs/{side}_{rank}") for rank in range(ranks)] for side in ("image", "text"))
    scale = recording.tensor("inputs/logit_scale")
    return [
        *_one_process(torch.cat(images), torch.cat(texts), scale, outputs, grads, ranks),
        *_processes(recording, images, texts, scale, outputs, grads),
    ]


def _one_process(
    images: Tensor, texts: Tensor, scale: Tensor, outputs: dict[str, Tensor], grads: dict[str, Tensor], ranks: int
) -> list[GroupCheck]:
    images, texts, scale = (tensor.clone().requires_grad_() for tensor in (images, texts, scale))
    loss = ContrastiveLoss()(images, texts, scale.exp())["loss"]
    loss.backward()
    assert images.grad is not None
    assert texts.grad is not None
    assert scale.grad is not None

    recorded = {name: outputs[name] for name in ("loss_global_single_process",) if name in outputs}
    if all(f"loss_rank{rank}" in outputs for rank in range(ranks)):
        recorded["mean of loss_rank*"] = torch.stack([outputs[f"loss_rank{rank}"] for rank in range(ranks)]).mean()
    rows = [compare("loss, one process", dict.fromkeys(recorded, loss), recorded, OUTPUT)]

    found: dict[str, Tensor] = {}
    wanted: dict[str, Tensor] = {}
    for name, gradient in (("image", images.grad), ("text", texts.grad), ("logit_scale", scale.grad)):
        single = f"{name}_global_single_process"
        if single in grads:
            found[single], wanted[single] = gradient, grads[single]
        each = [f"logit_scale_rank{rank}" if name == "logit_scale" else f"{name}_{rank}" for rank in range(ranks)]
        if all(key in grads for key in each):  # what DDP makes of them
            parts = [grads[key] for key in each]
            averaged = f"{name}, mean over ranks"
            found[averaged] = gradient
            wanted[averaged] = torch.stack(parts).mean(0) if name == "logit_scale" else torch.cat(parts) / ranks
    return [*rows, compare("gradients, one process", found, wanted, GRADIENT)]


def _processes(
    recording: Recording,
    images: list[Tensor],
    texts: list[Tensor],
    scale: Tensor,
    outputs: dict[str, Tensor],
    grads: dict[str, Tensor],
) -> list[GroupCheck]:
    ranks, group = len(images), f"{len(images)} gloo processes"
    if ranks == 1:
        return [not_checked("gather", "the file records one rank, so nothing is gathered")]
    if len({len(rows) for rows in (*images, *texts)}) > 1:
        return [not_checked(group, "the ranks hold different numbers of pairs; ours need the same everywhere")]
    with TemporaryDirectory(prefix="crosslight-parity-") as name:
        folder = Path(name)
        save_file({key: tensor.contiguous() for key, tensor in recording.group("inputs").items()}, folder / "inputs.safetensors")
        problem = _run(folder, ranks)
        if problem:
            return [GroupCheck(group, "OFF", note=problem)]
        found: dict[str, Tensor] = {}
        for rank in range(ranks):
            found |= load_file(folder / f"found_{rank}.safetensors")
    losses = {key: outputs[key] for key in outputs if key.startswith("loss_rank")}
    logits = {key: outputs[key] for key in outputs if key.startswith("logits_")}
    own = {key: grads[key] for key in grads if not key.endswith("_global_single_process")}
    return [
        compare(f"loss, {group}", found, losses, OUTPUT),
        compare(f"logits, {group}", found, logits, STATE),
        compare(
            f"gradients, {group}", {key[6:]: value for key, value in found.items() if key.startswith("grads/")}, own, GRADIENT
        ),
    ]


def _run(folder: Path, ranks: int) -> str:
    """Run the processes; what went wrong, or nothing."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", gather_process.__name__, str(ranks), str(folder)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        return f"the processes were not done after {_PATIENCE:.0f} s"
    lines = done.stderr.strip().splitlines()
    return f"the processes failed: {lines[-1] if lines else f'exit status {done.returncode}'}" if done.returncode else ""
