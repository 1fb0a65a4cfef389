"""Vision and text towers of Hugging Face."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from datamodules.errors import InputError
from datamodules.inputs import ImageInput, TextInput
from lightning_modules.networks.library_model import build_model, read_settings, require_one
from lightning_modules.networks.quiet_loading import quiet_loading
from lightning_modules.networks.towers.base import NORMALIZATIONS, ImageTower, TextTower, pool_tokens, triple


def _hugging_face_model(
    side: Literal["image", "text"],
    name: str | None,
    config: dict[str, Any] | None,
    weights: str | None,
    attention: str,
    pooler: bool,
) -> nn.Module:
    """The bare encoder of one modality, by name (weights included) or by configuration (random; a file of weights comes later).

    Of a two-tower checkpoint (CLIP, SigLIP) only the asked-for side is built and loaded.
    """
    where = f"{side} tower {name or config}"
    require_one(where if name or config else f"{side} tower", name, config, weights)
    settings = read_settings(where, name, config)
    settings = getattr(settings, "vision_config" if side == "image" else "text_config", settings)
    # Poolers that exist as a separate option are left out when unused: they would be trainable and never get a gradient.
    return build_model(where, settings, name, attention, add_pooling_layer=pooler)


class HFImageTower(ImageTower):
    """Any Hugging Face vision transformer (ViT, DINOv2, CLIP's and SigLIP's vision side ...) as an image tower.

    Args:
        name: Hub name or local folder, weights included. Of CLIP-like checkpoints only the vision side is loaded.
        config: Instead of `name`: the configuration, e.g. {model_type: dinov2, hidden_size: 384, num_hidden_layers: 12, ...}.
        weights: With `config`: a safetensors or torch file with exactly the model's keys; random = random weights on purpose.
            None = random, to be trained or brought by init_from.
        image_size: Side of the square input in pixels; None = the model's own. Position embeddings are resampled.
        pooling: "cls" token, "mean" over patches, "cls+mean" (both, twice as wide), or the model's own "pooler".
        mean: Normalization mean of RGB in [0, 1]; None = as preprocessor_config.json, else ImageNet (for CLIP its own).
        std: Normalization standard deviation; None = like `mean`.
        resize: Evaluation resize: "crop" (shorter side, then centre crop) or "squash" (both sides, aspect ratio not kept).
        crop_fraction: Part of the resized image that the centre crop keeps.
        attention: "sdpa" (fused) or "eager" (gives attention maps, slower).

    Raises:
        InputError: Nothing to build, weights that do not fit, or a size or pooling the model cannot do.
    """

    def __init__(
        self,
        name: str | None = None,
        config: dict[str, Any] | None = None,
        weights: str | None = None,
        image_size: int | None = None,
        pooling: Literal["cls", "mean", "cls+mean", "pooler"] = "cls",
        mean: list[float] | None = None,
        std: list[float] | None = None,
        resize: Literal["squash", "crop"] = "crop",
        crop_fraction: float = 1.0,
        attention: Literal["sdpa", "eager"] = "sdpa",
    ) -> None:
        super().__init__()
        self.loaded_from = name
        self.model = _hugging_face_model("image", name, config, weights, attention, pooler=pooling == "pooler")
        settings: Any = self.model.config
        where = f"image tower {name or settings.model_type}"
        native = int(settings.image_size)
        patch = int(settings.patch_size)
        size = image_size or native
        if size % patch and size != native:  # of its own size a model may leave a rest unread (SigLIP So400m: 384 px in 14)
            raise InputError(f"{where}: image_size {size} is not a multiple of the patch size {patch}")
        accepts = inspect.signature(self.model.forward).parameters
        self._resample = size != native and "interpolate_pos_encoding" in accepts
        self.pooling = pooling
        # tokens before the patches: class token (SigLIP has none) and registers
        self._prefix = (0 if "siglip" in settings.model_type else 1) + int(getattr(settings, "num_register_tokens", 0) or 0)
        if self._prefix == 0 and "cls" in pooling:
            raise InputError(f"{where} has no class token; use pooling mean or pooler instead of {pooling}")
        self.width = int(settings.hidden_size) * (2 if pooling == "cls+mean" else 1)
        default_mean, default_std = NORMALIZATIONS["clip" if "clip" in settings.model_type else "imagenet"]
        if name is not None and (mean is None or std is None):
            default_mean, default_std = stored_normalization(name, default_mean, default_std)
        self.image_input = ImageInput(
            size=size,
            mean=triple(mean, default_mean, "mean"),
            std=triple(std, default_std, "std"),
            resize=resize,
            crop_fraction=crop_fraction,
        )
        # CLIP's post_layernorm and SigLIP's head only serve the pooler; last_hidden_state comes before CLIP's post_layernorm
        unpooled = ("post_layernorm",) if "clip" in settings.model_type and "siglip" not in settings.model_type else ("head",)
        pools = ("pooler", *unpooled)
        unused = ("mask_token",) if pooling == "pooler" else ("mask_token", *pools)
        self._finish(unused, pools, weights, brought=name is not None)

    def _encode(self, pixels_B3HW: Tensor) -> Tensor:
        output = (
            self.model(pixel_values=pixels_B3HW, interpolate_pos_encoding=True)
            if self._resample
            else self.model(pixel_values=pixels_B3HW)
        )
        if self.pooling == "pooler":
            return output.pooler_output
        return pool_tokens(output.last_hidden_state, self.pooling, self._prefix)


def stored_normalization(
    name: str, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of a folder's or hub entry's preprocessor_config.json, or the given ones without one."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        with quiet_loading():
            stored, _ = ImageProcessingMixin.get_image_processor_dict(name)
    except OSError:  # the file is optional: folders made by save_pretrained of a model alone have none
        return mean, std
    return triple(stored.get("image_mean"), mean, "image_mean"), triple(stored.get("image_std"), std, "image_std")


class HFTextTower(TextTower):
    """Any Hugging Face text encoder (BERT, RoBERTa, MiniLM, CLIP's text side ...) as a text tower.

    Args:
        name: Hub name or local folder, weights included. Of CLIP-like checkpoints only the text side is loaded.
        config: Instead of `name`: the configuration, e.g. {model_type: bert, hidden_size: 384, num_hidden_layers: 6, ...}.
        weights: With `config`: a safetensors or torch file with exactly the model's keys; random = random weights on purpose.
            None = random, to be trained or brought by init_from.
        pooling: "cls" (first token), "mean" over real tokens, or "last" real token (CLIP's end-of-text).
        tokenizer: Hugging Face name or local folder; None = `name`.
        max_tokens: Longest caption in tokens, special ones included; longer captions are cut.
        attention: "sdpa" (fused) or "eager" (gives attention maps, slower).

    Raises:
        InputError: Nothing to build, no tokenizer, weights that do not fit, or more tokens than the model has positions.
    """

    def __init__(
        self,
        name: str | None = None,
        config: dict[str, Any] | None = None,
        weights: str | None = None,
        pooling: Literal["cls", "mean", "last"] = "mean",
        tokenizer: str | None = None,
        max_tokens: int = 64,
        attention: Literal["sdpa", "eager"] = "sdpa",
    ) -> None:
        super().__init__()
        if name is None and tokenizer is None:
            raise InputError("text tower: tokenizer is missing (a Hugging Face name or folder); it is needed with config")
        self.loaded_from = name
        self.model = _hugging_face_model("text", name, config, weights, attention, pooler=False)
        settings: Any = self.model.config
        positions = getattr(settings, "max_position_embeddings", None)
        if positions is not None and "roberta" in settings.model_type:
            positions -= int(settings.pad_token_id) + 1  # RoBERTa's position table starts behind the padding index
        if positions is not None and max_tokens > positions:
            raise InputError(
                f"text tower {name or settings.model_type}: max_tokens {max_tokens} exceeds its {positions} positions; "
                f"set max_tokens to {positions} or less"
            )
        self.pooling = pooling
        self.width = int(settings.hidden_size)
        self.text_input = TextInput(tokenizer=str(tokenizer or expanded(name)), max_tokens=max_tokens)
        self._finish(("pooler", "head"), (), weights, brought=name is not None)  # head: SigLIP's, behind its own pooling

    def _encode(self, tokens_BT: Tensor, mask_BT: Tensor) -> Tensor:
        tokens_BTD = self.model(input_ids=tokens_BT, attention_mask=mask_BT.long()).last_hidden_state
        if self.pooling == "cls":
            return tokens_BTD[:, 0]
        if self.pooling == "last":
            positions_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
            last_B = (mask_BT * positions_T).argmax(1)
            return tokens_BTD[torch.arange(len(last_B), device=mask_BT.device), last_B]
        weights_BT1 = mask_BT.unsqueeze(-1).float()
        mean_BD = (tokens_BTD.float() * weights_BT1).sum(1) / weights_BT1.sum(1).clamp_min(1.0)
        # what comes next has weights of the tokens' dtype (after `model.half()`), unless autocast sees to it
        return mean_BD if torch.is_autocast_enabled(mean_BD.device.type) else mean_BD.to(tokens_BTD.dtype)


def expanded(name: str | None) -> str | None:
    """A local folder as an absolute path, so that it survives a change of working folder; a hub name as it is."""
    return str(Path(name).resolve()) if name is not None and Path(name).is_dir() else name
