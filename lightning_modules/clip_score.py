"""CLIPScore and RefCLIPScore as a caption metric: what reads images and texts is any trained or downloaded dual encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datamodules.errors import InputError
from lightning_modules.base import TunedModule
from lightning_modules.checkpoints.adapter_export import CONFIG_FILE
from lightning_modules.checkpoints.hub_repository import is_hub_name
from lightning_modules.metrics.captions.caption_metric import CaptionMetric, Captions, MetricScores, References
from lightning_modules.metrics.captions.clip_scores import Reading, clip_scores, read_texts, reference_scores
from lightning_modules.networks.random_state import drawing


class CLIPScore(CaptionMetric):
    """CLIPScore (key clip_score) and RefCLIPScore (key ref_clip_score), from what a dual encoder makes of images, captions and
    references. Both are only comparable with scores by the same model.

    Args:
        model: A run folder or an adapter export of a dual encoder; or a model of Hugging Face with both encoders, by its folder
            or its name on the Hub, such as openai/clip-vit-base-patch32, which the paper used.
        reading: "paper" = 2.5 * max(cosine, 0), with "A photo depicts " before every text, and RefCLIPScore; "torchmetrics" = the
            cosine without a prompt, 1/100 of what torchmetrics' CLIPScore prints, and no RefCLIPScore.
        batch_size: Images, or texts, at once.
        device: "auto" = a GPU where there is one.

    Raises:
        InputError: `model` is no folder and no name.
    """

    name = "clip_score"
    heading = "CLIP-S"

    def __init__(self, model: str, reading: Reading = "paper", batch_size: int = 64, device: str = "auto") -> None:
        if not Path(model).expanduser().is_dir() and not is_hub_name(model):
            raise InputError(
                f"CLIPScore: model {model} is no folder and no name on the Hub; give a run or an export of a dual encoder, or a "
                "model such as openai/clip-vit-base-patch32."
            )
        if batch_size < 1:
            raise InputError(f"CLIPScore: batch_size is {batch_size}; give at least 1.")
        self.model, self.reading, self.batch_size, self.device = model, reading, batch_size, device
        self._encoder: Any = None
        self._files: list[Path] = []

    def require(self) -> None:
        """Load the model, once. The random numbers of the process stay as they are: this is before a training, too.

        Raises:
            InputError: It cannot be loaded or is no dual encoder.
        """
        if self._encoder is None:
            with drawing():
                self._encoder = load_dual_encoder(self.model)

    def count(self, references: References) -> None:
        """Encode images and references once.

        Raises:
            InputError: The model cannot be loaded or is no dual encoder, or an image has no file.
        """
        super().count(references)
        files = [file for file in references.files if file is not None]
        if len(files) != len(references.sentences):
            raise InputError(
                "CLIPScore looks at the images, and not every one has a file here: give them (`crosslight score --images`), or "
                "leave it out."
            )
        self.require()
        self._encoder.to(_device(self.device))
        if files != self._files:  # other references of the same images leave these as they are
            self._files, self._images_ID = files, self._encoder.encode_images(files, self.batch_size)
        self._image_S = [image for image, own in enumerate(references.raw) for _ in own]
        if self.reading == "paper":
            self._references_SD = self._encode([sentence for own in references.raw for sentence in own])

    def score(self, captions: Captions) -> MetricScores:
        captions_ID = self._encode(captions.raw)
        scores_I = clip_scores(self._images_ID, captions_ID, self.reading)
        found = self.means(scores_I)
        if self.reading == "torchmetrics":
            return MetricScores({key: max(value, 0.0) for key, value in found.values.items()}, found.per_image)
        with_references = self.means(
            reference_scores(scores_I, captions_ID, self._references_SD, self._image_S), "ref_clip_score"
        )
        return MetricScores({**found.values, **with_references.values}, {**found.per_image, **with_references.per_image})

    def _encode(self, texts: Sequence[str]) -> Tensor:
        return self._encoder.encode_texts(read_texts(texts, self.reading), self.batch_size)

    def columns(self) -> dict[str, str]:
        own = {self.name: self.heading}
        return own if self.reading == "torchmetrics" else {**own, "ref_clip_score": "RefCLIP-S"}


def load_dual_encoder(model: str) -> TunedModule:
    """A dual encoder in eval mode, by a run folder, an export's folder, or a model of Hugging Face.

    Raises:
        InputError: It cannot be loaded, or has not both encoders.
    """
    from lightning_modules.retrieval import RetrievalModule

    folder = Path(model).expanduser()
    if (folder / CONFIG_FILE).exists() or (folder / "config.yaml").exists():
        from lightning_modules.loading import load_export_or_run

        found = load_export_or_run(folder)
    else:
        from lightning_modules.networks.pretrained_dual_encoder import HFDualEncoder

        found = RetrievalModule(HFDualEncoder(name=model), tuning="frozen")
    if not isinstance(found, RetrievalModule):
        uses = getattr(found, "uses", "it is a module of somebody's own")
        raise InputError(f"CLIPScore: {model} is no dual encoder: {uses}.")
    return found.eval()


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)
