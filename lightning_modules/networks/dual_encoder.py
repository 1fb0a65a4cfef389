"""An image tower and a text tower that meet in one space: cosine similarity of two linear projections."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter

from datamodules.errors import InputError
from datamodules.inputs import Inputs
from datamodules.records import ImageBatch, TextBatch
from lightning_modules.networks.network import RetrievalNetwork, pixels_of
from lightning_modules.networks.start import fresh_names, refuse_until_read, to_read
from lightning_modules.networks.towers.base import ImageTower, TextTower


def _projection(kind: str, width: int, embed_dim: int) -> nn.Module:
    if kind == "linear":
        return nn.Linear(width, embed_dim, bias=False)
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, embed_dim, bias=False))


class TwoTowers(RetrievalNetwork):
    """What networks share that are an image tower beside a text tower."""

    image: ImageTower
    text: TextTower
    heads: tuple[str, ...]
    """Beginnings of the names of heads: projections, temperature, bias."""

    def head_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Projections, temperature and bias, with their names in this network."""
        return ((name, parameter) for name, parameter in self.named_parameters() if name.startswith(self.heads))

    def compile_encoders(self, backend: str = "inductor") -> None:
        """`torch.compile` both towers in place (keys stay as they are). Inject adapters before: hooks are compiled in."""
        self.image.compile(backend=backend)
        self.text.compile(backend=backend)

    @property
    def num_layers(self) -> int:
        """Blocks of the deeper tower."""
        return max(self.image.num_layers, self.text.num_layers)

    def layer_id(self, name: str) -> int:
        """Layer of a parameter for layer-wise decay, 0 .. num_layers + 1.

        Embeddings 0, block i -> i + 1, norms behind the blocks and heads num_layers + 1. Decay counts from the top, so the
        shallower tower is aligned at the top: of 12 and 6 layers, the latter's embeddings are 6 and its last block is 12.
        """
        side, _, rest = name.partition(".")
        if side not in ("image", "text") or name.startswith(self.heads):
            return self.num_layers + 1
        tower: ImageTower | TextTower = self.image if side == "image" else self.text
        return tower.layer_id(rest) + self.num_layers - tower.num_layers


class DualEncoder(TwoTowers):
    """Any image tower beside any text tower, each with a projection into a shared space.

    Args:
        image: The image tower.
        text: The text tower.
        embed_dim: Width of the shared space.
        projection: "linear" (no bias, as in CLIP and BEiT-3) or "mlp" (one hidden layer of the tower's width).
        init_temperature: Start of the learned temperature; `logit_scale` starts at log(1 / it). Null = the objective's, or 0.07.
        weights: Projections and temperature of a CLIP of Hugging Face, by hub name, folder or file, over its own towers (image
            pooling pooler, text pooling last); random = random on purpose. Null = random, to be trained or brought by init_from.
        checkpoint_activations: Recompute the towers' activations in the backward pass: less memory, about a third more compute.

    Raises:
        InputError: An option is out of range, or checkpointing finds no blocks.
    """

    heads = ("image_projection.", "text_projection.", "logit_scale")

    def __init__(
        self,
        image: ImageTower,
        text: TextTower,
        embed_dim: int = 256,
        projection: Literal["linear", "mlp"] = "linear",
        init_temperature: float | None = None,
        weights: str | None = None,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        if embed_dim < 1 or (init_temperature is not None and init_temperature <= 0):
            raise InputError(f"embed_dim ({embed_dim}) and init_temperature ({init_temperature}) must be positive")
        self.image = image
        self.text = text
        self.image_projection = _projection(projection, image.width, embed_dim)
        self.text_projection = _projection(projection, text.width, embed_dim)
        self.init_temperature = init_temperature
        self.logit_scale = Parameter(torch.tensor(math.log(1.0 / (init_temperature or 0.07))))
        self.inputs = Inputs(image=image.image_input, text=text.text_input)
        self.loaded_heads: frozenset[str] = frozenset()  # heads that a checkpoint brought: an adapter run leaves them frozen
        self.weights = to_read(weights)
        own = fresh_names(self, weights)
        self.fresh = frozenset(name for name in own if name.startswith(self.heads))  # the towers say it of themselves
        refuse_until_read(self)
        if checkpoint_activations:
            image.checkpoint_activations()
            text.checkpoint_activations()

    def encode_images(self, batch: ImageBatch) -> Tensor:
        """Unit vectors [B, embed_dim] in fp32 (also under autocast: bf16 would round cosines to two decimals).

        Raises:
            InputError: The batch carries no pixels.
        """
        return F.normalize(self.image_projection(self.image(pixels_of(batch, "the dual encoder needs"))).float(), dim=-1)

    def encode_texts(self, batch: TextBatch) -> Tensor:
        """Unit vectors [B, embed_dim] in fp32."""
        return F.normalize(self.text_projection(self.text(batch.tokens_BT, batch.mask_BT)).float(), dim=-1)

    def unused_parameters(self) -> frozenset[str]:
        """Parameters that take no part in either encoding (mask tokens, poolers): never trainable."""
        return frozenset(
            f"{side}.{name}" for side, tower in (("image", self.image), ("text", self.text)) for name in tower.unused_parameters()
        )

    def encoder_parameters(self, side: Literal["image", "text"]) -> frozenset[str]:
        """Names of the parameters that only this side's vectors depend on: its tower and its projection."""
        parts = (f"{side}.", f"{side}_projection.")
        return frozenset(name for name, _ in self.named_parameters() if name.startswith(parts))
