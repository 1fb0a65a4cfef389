"""One process of the two-process test of the contrastive losses and of gradient caching (see test_contrastive.py)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lightning_modules.objectives.contrastive import ContrastiveLoss
from lightning_modules.objectives.gradient_cache import encode_in_chunks
from lightning_modules.objectives.sigmoid import SigmoidLoss


@dataclass(frozen=True)
class Rows:
    x_BD: Tensor

    def __len__(self) -> int:
        return len(self.x_BD)


class Pair(nn.Module):
    """Two small encoders and a loss: what a training step does inside DDP."""

    def __init__(self, chunk: int | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image = nn.Sequential(nn.Linear(6, 32), nn.GELU(), nn.Linear(32, 4))
        self.text = nn.Sequential(nn.Linear(6, 32), nn.GELU(), nn.Linear(32, 4))
        self.logit_scale = nn.Parameter(torch.tensor(1.0))
        self.chunk = chunk

    def forward(self, images_BD: Tensor, texts_BD: Tensor) -> Tensor:
        def normal(tower: nn.Module):
            return lambda rows: nn.functional.normalize(tower(rows.x_BD), dim=-1)

        images = encode_in_chunks(normal(self.image), Rows(images_BD), self.chunk)
        texts = encode_in_chunks(normal(self.text), Rows(texts_BD), self.chunk)
        return ContrastiveLoss()(images, texts, self.logit_scale.exp())["loss"]


def official(rank: int, folder: Path) -> dict[str, Tensor]:
    """The recording's features through our losses; what is saved is named as in the recording."""
    data = load_file(folder / "inputs.safetensors")
    image, text = (data[f"inputs/{side}_{rank}"].requires_grad_() for side in ("image", "text"))
    scale = data["inputs/logit_scale"].requires_grad_()
    loss = ContrastiveLoss()(image, text, scale.exp())["loss"]
    loss.backward()
    found = {
        f"loss_rank{rank}": loss,
        f"image_{rank}": image.grad,
        f"text_{rank}": text.grad,
        f"logit_scale_rank{rank}": scale.grad,
    }
    ignoring = ContrastiveLoss(same_image="ignore")
    found["ignore"] = ignoring(image, text, scale.exp(), torch.tensor([[0, 1, 2], [1, 3, 2]])[rank])["loss"]
    sigmoid = SigmoidLoss(-2.0, "positive")
    image, text = (data[f"inputs/{side}_{rank}"].detach().requires_grad_() for side in ("image", "text"))
    loss = sigmoid(image, text, scale.detach().exp(), torch.tensor([[0, 1, 2], [1, 3, 2]])[rank])["loss"]
    loss.backward()
    found |= {"sigmoid": loss, "sigmoid_image": image.grad, "sigmoid_text": text.grad, "sigmoid_bias": sigmoid.bias.grad}
    return {name: value.detach().clone() for name, value in found.items()}


def cached(rank: int, world: int, folder: Path) -> dict[str, Tensor]:
    """Gradients of DDP over this rank's slice, with and without gradient caching."""
    data = load_file(folder / "inputs.safetensors")
    rows = slice(rank * len(data["images"]) // world, (rank + 1) * len(data["images"]) // world)
    found = {}
    for chunk in (0, 2):
        network = DistributedDataParallel(Pair(chunk or None))
        network(data["images"][rows], data["texts"][rows]).backward()
        found |= {f"{chunk}/{name.removeprefix('module.')}": p.grad for name, p in network.named_parameters()}
    return {name: value.clone() for name, value in found.items()}


def main(rank: int, world: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=world)
    save_file({**official(rank, folder), **cached(rank, world, folder)}, folder / f"found_{rank}.safetensors")
    dist.barrier()  # who leaves while the other still talks can end in an abort of gloo's thread
    dist.destroy_process_group()
