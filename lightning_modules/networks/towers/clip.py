"""CLIP's vision side with its projection into the space that it shares with text: the vector ClipCap's released models were made
for (512-d of ViT-B/32). Everything else about vision towers is in `towers.py`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from datamodules.errors import InputError, some
from datamodules.inputs import ImageInput
from lightning_modules.networks.quiet_loading import hugging_face
from lightning_modules.networks.towers.base import NORMALIZATIONS, ImageTower
from lightning_modules.networks.towers.hugging_face import stored_normalization


class ProjectedCLIPTower(ImageTower):
    """CLIP's image embedding, not normalized. Its tokens are those of the last layer, as of `HFImageTower`.

    Args:
        name: Hub name or local folder of a CLIP, weights included; only its vision side and projection are loaded.
        config: Instead of `name`: options of `CLIPVisionConfig`, e.g. {hidden_size: 768, patch_size: 32, projection_dim: 512}.
        weights: With `config`: a safetensors or torch file with exactly the keys of `CLIPVisionModelWithProjection`; random =
            random weights on purpose. None = random, to be trained or brought by init_from.

    Raises:
        InputError: Nothing to build, or a name whose weights do not fit.
    """

    def __init__(self, name: str | None = None, config: dict[str, Any] | None = None, weights: str | None = None) -> None:
        super().__init__()
        self.loaded_from = name
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        where = f"CLIP tower {name or config}"
        if (name is None) == (config is None):
            raise InputError("CLIP tower: give either name (a hub name or local folder) or config (sizes)")
        if name is not None and weights is not None:
            raise InputError(f"{where}: weights ({weights}) go with config; a name brings its own weights")
        mean, std = NORMALIZATIONS["clip"]
        model: Any
        if name is not None:
            remedy = "give a folder with config.json and weights, a hub name (with network), or config: {sizes}"
            with hugging_face(f"{where}: no usable CLIP", remedy, name):
                settings = CLIPVisionConfig.from_pretrained(name)
                model, report = CLIPVisionModelWithProjection.from_pretrained(
                    name, config=settings, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
                )
            if missing := sorted(report["missing_keys"]):
                raise InputError(f"{where}: its weights lack {some(missing)}; give a CLIP with its projection")
            mean, std = stored_normalization(name, mean, std)
        else:
            sizes = dict(config or {})
            if unknown := sorted(sizes.keys() - set(dir(CLIPVisionConfig())) - {"model_type"}):
                raise InputError(f"{where}: CLIPVisionConfig has no option {some(unknown)}")
            sizes.pop("model_type", None)
            model = CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes)).float()
        self.model = model
        self._prefix = 1  # the class token
        self.width = int(model.config.projection_dim)
        self.image_input = ImageInput(size=int(model.config.image_size), mean=mean, std=std)
        self._finish((), ("post_layernorm", "visual_projection"), weights, brought=name is not None)

    def _encode(self, pixels_B3HW: Tensor) -> Tensor:
        return self.model(pixel_values=pixels_B3HW).image_embeds
