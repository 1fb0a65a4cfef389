"""The processes of the gather check: `python -m experiments.parity.beit3.gather_process WORLD FOLDER`.

It imports little and forks its ranks before anything has run, so that torch is imported once, however many ranks there are.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from lightning_modules.objectives.contrastive import ContrastiveLoss, gather


def run_rank(rank: int, world: int, folder: Path) -> None:
    """Reads `inputs.safetensors` (the recording's inputs), writes `found_RANK.safetensors` under the recording's names."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=world)
    data = load_file(folder / "inputs.safetensors")
    image, text = (data[f"{side}_{rank}"].requires_grad_() for side in ("image", "text"))
    scale = data["logit_scale"].requires_grad_()
    loss = ContrastiveLoss()(image, text, scale.exp())["loss"]
    loss.backward()
    assert image.grad is not None
    assert text.grad is not None
    assert scale.grad is not None
    with torch.no_grad():
        found = {
            f"loss_rank{rank}": loss,
            f"logits_per_image_rank{rank}": scale.exp() * image @ gather(text).T,
            f"logits_per_text_rank{rank}": scale.exp() * text @ gather(image).T,
            f"grads/image_{rank}": image.grad,
            f"grads/text_{rank}": text.grad,
            f"grads/logit_scale_rank{rank}": scale.grad,
        }
    save_file({name: value.detach().clone().contiguous() for name, value in found.items()}, folder / f"found_{rank}.safetensors")
    dist.destroy_process_group()


def main(world: int, folder: Path) -> int:
    """Run all ranks; the exit status. When one fails the others would wait for it for ever, so they are ended."""
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=run_rank, args=(rank, world, folder), daemon=True) for rank in range(world)]
    for process in ranks:
        process.start()
    while any(process.is_alive() for process in ranks) and not any(process.exitcode for process in ranks):
        time.sleep(0.01)
    return int(any(process.exitcode != 0 for process in ranks))  # daemons end with this process


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), Path(sys.argv[2])))
