"""Two encoders of one layer each, as a user's own retrieval network: mean colour and patches against a bag of words."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datamodules.inputs import ImageInput, Inputs, TextInput
from datamodules.records import ImageBatch, TextBatch
from lightning_modules.networks.network import RetrievalNetwork


class OwnNetwork(RetrievalNetwork):
    """Args:
    tokenizer: Folder or hub name of the tokenizer, whose ids are below `vocabulary`.
    """

    def __init__(self, tokenizer: str, width: int = 16, vocabulary: int = 512) -> None:
        super().__init__()
        half = (0.5, 0.5, 0.5)
        self.inputs = Inputs(ImageInput(16, half, half, resize="squash"), TextInput(tokenizer, max_tokens=16))
        self.image = nn.Conv2d(3, width, 8, 8)
        self.text = nn.EmbeddingBag(vocabulary, width)
        self.projection = nn.Linear(width, width)
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def encode_images(self, batch: ImageBatch) -> Tensor:
        assert batch.pixels_B3HW is not None
        pixels = batch.pixels_B3HW.float()
        return F.normalize(self.projection(self.image(pixels).relu().mean((2, 3))), dim=-1)

    def encode_texts(self, batch: TextBatch) -> Tensor:
        return F.normalize(self.text(batch.tokens_BT).float(), dim=-1)

    def head_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        heads = ("projection.", "logit_scale")
        return ((name, parameter) for name, parameter in self.named_parameters() if name.startswith(heads))
