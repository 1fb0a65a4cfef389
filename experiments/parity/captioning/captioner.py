"""A captioner around recorded models: the image's features are given, so there is no vision tower to run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from datamodules.inputs import ImageInput
from datamodules.records import TextBatch
from experiments.parity.recordings import Recording
from lightning_modules.networks.captioner import Captioner
from lightning_modules.networks.language_model import LanguageModel
from lightning_modules.networks.towers.base import ImageTower


class Recorded(ImageTower):
    """In a tower's place: features of this width come from a file."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.image_input = ImageInput(1, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        self.model = torch.nn.Identity()
        self._finish(())


def captioner(recording: Recording, width: int, end: int) -> Captioner:
    """A captioner with the recorded GPT-2's sizes, in eval mode.

    Raises:
        InputError: The recording lacks a size.
    """
    sizes: dict[str, Any] = {
        key: recording.value("gpt2", key)
        for key in ("vocab_size", "n_embd", "n_layer", "n_head", "n_positions", "layer_norm_epsilon")
    }
    recorded = recording.value("gpt2")
    activation = recorded.get("activation_function", recorded.get("activation"))
    config = {"model_type": "gpt2", **sizes, "bos_token_id": end, "eos_token_id": end}
    if activation is not None:
        config["activation_function"] = activation
    config["tie_word_embeddings"] = bool(recorded.get("tied_lm_head", True))
    language = LanguageModel(config=config, max_tokens=1)
    return Captioner(Recorded(width), language, visual="pooled").eval()


def texts_of(tokens_BT: Tensor, mask_BT: Tensor) -> TextBatch:
    """Captions, the i-th of image i."""
    rows = torch.arange(len(tokens_BT))
    return TextBatch(tuple(map(str, rows.tolist())), ("",) * len(rows), rows, rows, tokens_BT, mask_BT)
