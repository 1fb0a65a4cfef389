"""One modality's encoder: any timm or Hugging Face image model, any Hugging Face text model, pooled to one vector.

A tower knows what it wants to be fed (`image_input`, `text_input`), how wide its vector is (`width`), and where its blocks are
(`blocks`, for adapters, checkpointing and layer decay). The library's model is `tower.model`, under its own keys.

A tower without any trainable parameter runs without recording a graph, so a frozen tower costs no activation memory.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from datamodules.errors import InputError
from datamodules.inputs import ImageInput, TextInput
from lightning_modules.checkpoints.hugging_face import quiet_loading
from lightning_modules.checkpoints.weights import load_weights, some
from lightning_modules.networks.checkpointing import checkpoint_blocks

NORMALISATIONS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
_BLOCK_LISTS = ("blocks", "layers", "layer", "stages", "resblocks")


def _find_blocks(model: nn.Module) -> str:
    """Path of the list of blocks inside a library's model ("" if it has none), e.g. "encoder.layer" or "blocks"."""
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in _BLOCK_LISTS and isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module):
            return name
    return ""


class Tower(nn.Module):
    """What all towers share. Subclasses call `_finish` when `self.model` is complete."""

    width: int
    model: nn.Module

    def _finish(self, unused: Sequence[str]) -> None:
        path = _find_blocks(self.model)
        self._blocks_path = f"model.{path}" if path else ""
        names = [name for name, _ in self.named_parameters()]
        first = next((i for i, name in enumerate(names) if path and name.startswith(self._blocks_path + ".")), 0)
        self._stem = frozenset(names[:first])  # registered before the blocks: patch, token and position embeddings
        self._unused = frozenset(name for name in names if any(part in name.split(".") for part in unused))

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer blocks (or convolution stages) from input to output; empty when none were found."""
        return list(self.get_submodule(self._blocks_path).children()) if self._blocks_path else []

    @property
    def num_layers(self) -> int:
        return len(self.blocks)

    def layer_id(self, name: str) -> int:
        """Layer of a parameter for layer-wise decay: embeddings 0, block i -> i + 1 (its adapters too), the rest after."""
        if self._blocks_path and name.startswith(self._blocks_path + "."):
            return int(name[len(self._blocks_path) + 1 :].split(".")[0]) + 1
        # some libraries keep shared position tables behind the blocks; they belong to the embeddings all the same
        return 0 if name in self._stem or "embed" in name or "relative_attention_bias" in name else self.num_layers + 1

    def unused_parameters(self) -> frozenset[str]:
        """Names of parameters that the tower never touches (a mask token, an unused pooler): they never get a gradient."""
        return self._unused

    def checkpoint_activations(self) -> None:
        """Recompute the blocks' activations in the backward pass.

        Raises:
            InputError: The model has no list of blocks.
        """
        if not self._blocks_path:
            raise InputError(
                f"checkpoint_activations: {type(self.model).__name__} has no list of blocks named {', '.join(_BLOCK_LISTS)}; "
                "set checkpoint_activations to false"
            )
        checkpoint_blocks(self.blocks)

    def _records(self, *inputs: Tensor) -> bool:
        """Whether this call has to record a graph: decided by what is trainable now, a walk over a few hundred flags."""
        return torch.is_grad_enabled() and (
            any(parameter.requires_grad for parameter in self.parameters()) or any(x.requires_grad for x in inputs)
        )


class ImageTower(Tower):
    """Pixels to one vector an image. `forward(pixels_B3HW)` gives [B, width], not normalised."""

    image_input: ImageInput
    _prefix: int = 0  # tokens that come before those of the grid
    _resample: bool = False  # whether a Hugging Face model has to be asked to fit its positions to another size

    @property
    def token_width(self) -> int:
        """D of `tokens` (pooling may join two vectors, or put a layer behind them)."""
        model: Any = self.model
        if hasattr(model, "forward_features"):
            return int(model.num_features)
        settings = model.config
        return int(settings.hidden_sizes[-1] if getattr(settings, "hidden_sizes", None) else settings.hidden_size)

    def tokens(self, pixels_B3HW: Tensor) -> tuple[Tensor, int]:
        """Tokens [B, V, D] of the last layer, and how many special ones come first.

        A grid of features (a CNN) becomes tokens row by row. CLIP's are before its post_layernorm, DINOv2's and timm's behind the
        norm that their own forward ends with.
        """
        model: Any = self.model
        if hasattr(model, "forward_features"):
            features = model.forward_features(pixels_B3HW)
            if features.ndim == 4:
                last = getattr(model, "output_fmt", "NCHW") == "NHWC"
                return (features.flatten(1, 2) if last else features.flatten(2).transpose(1, 2)), 0
            return features, int(getattr(model, "num_prefix_tokens", 0))
        resample: dict[str, bool] = {"interpolate_pos_encoding": True} if self._resample else {}
        features = model(pixel_values=pixels_B3HW, **resample).last_hidden_state
        if features.ndim == 4:
            return features.flatten(2).transpose(1, 2), 0
        return features, self._prefix

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        with torch.set_grad_enabled(self._records(pixels_B3HW)):
            return self._encode(pixels_B3HW)

    def _encode(self, pixels_B3HW: Tensor) -> Tensor:
        raise NotImplementedError


class TextTower(Tower):
    """Tokens to one vector a caption. `forward(tokens_BT, mask_BT)` gives [B, width], not normalised."""

    text_input: TextInput

    def forward(self, tokens_BT: Tensor, mask_BT: Tensor) -> Tensor:
        with torch.set_grad_enabled(self._records()):
            return self._encode(tokens_BT, mask_BT)

    def _encode(self, tokens_BT: Tensor, mask_BT: Tensor) -> Tensor:
        raise NotImplementedError


def _triple(values: Sequence[float] | None, default: Sequence[float], option: str) -> tuple[float, float, float]:
    chosen = tuple(float(value) for value in (default if values is None else values))
    if len(chosen) != 3:
        raise InputError(f"{option} needs three numbers (red, green, blue in [0, 1]), got {list(chosen)}")
    return chosen


def _pool_tokens(tokens_BTD: Tensor, pooling: str, prefix: int) -> Tensor:
    """`cls` is token 0, `mean` is over the patches (all tokens after the `prefix` special ones)."""
    if pooling == "cls":
        return tokens_BTD[:, 0]
    mean_BD = tokens_BTD[:, prefix:].mean(1)
    return mean_BD if pooling == "mean" else torch.cat([tokens_BTD[:, 0], mean_BD], dim=1)


# ------------------------------------------------------------------------------------------------------------------- timm


class TimmImageTower(ImageTower):
    """Any timm model as an image tower.

    Args:
        name: timm's model name, e.g. vit_base_patch16_224 or tf_efficientnet_lite0.
        weights: A safetensors or torch file with this model's own keys; a classifier in it is left out. None = as `pretrained`.
        pretrained: Download timm's weights for `name` (needs the network or a filled cache). False = random weights.
        image_size: Side of the square input in pixels; None = the model's own. Position embeddings are resampled.
        pooling: "default" = as the model was trained; "cls", "mean" (over the grid), or "cls+mean" (both, twice as wide).
        mean: Normalisation mean of RGB in [0, 1]; None = the model's own.
        std: Normalisation standard deviation; None = the model's own.
        resize: Evaluation resize: "crop" (shorter side, then centre crop) or "squash" (both sides, aspect ratio not kept).
        crop_fraction: Part of the resized image that the centre crop keeps; None = the model's own.
        options: Further arguments of the timm model, e.g. {bn_eps: 1e-3} or {embed_dim: 64, depth: 2, num_heads: 2}.

    Raises:
        InputError: Unknown name or option, weights that do not fit, or a size or pooling the model cannot do.
    """

    def __init__(
        self,
        name: str,
        weights: str | None = None,
        pretrained: bool = False,
        image_size: int | None = None,
        pooling: Literal["default", "cls", "mean", "cls+mean"] = "default",
        mean: list[float] | None = None,
        std: list[float] | None = None,
        resize: Literal["squash", "crop"] = "crop",
        crop_fraction: float | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        import timm  # late: a text-only run should not pay for it
        from timm.data import resolve_model_data_config

        if pretrained and weights:
            raise InputError(f"image tower {name}: give either weights ({weights}) or pretrained: true, not both")
        if not timm.is_model(name):
            near = timm.list_models(f"*{name.split('_')[0]}*")
            raise InputError(
                f"image tower: timm has no model {name!r}; near names: {some(near) or 'none (see timm.list_models())'}"
            )
        try:
            model: Any = timm.create_model(name, pretrained=pretrained, num_classes=0, **(options or {}))
        except TypeError as error:
            raise InputError(f"image tower {name}: options {options} do not fit this model ({error})") from error
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"image tower {name}: building it failed ({str(error).splitlines()[0]}); without network set pretrained: false "
                "and give weights: a local file"
            ) from error
        self.model = model
        settings = getattr(model, "pretrained_cfg", {})
        if weights:
            heads = settings.get("classifier") or ()
            prefixes = tuple(f"{head}." for head in ([heads] if isinstance(heads, str) else heads))
            load_weights(model, weights, drop=lambda key: key.startswith(prefixes), what=f"timm model {name}")
        data = resolve_model_data_config(model)
        native = int(data["input_size"][-1])
        fixed: Any = getattr(getattr(model, "patch_embed", None), "img_size", None)
        if fixed:
            native = int(fixed[0])  # options may have chosen another size than the published one
        if image_size is not None and image_size != native and fixed:
            if not hasattr(model, "set_input_size"):
                raise InputError(f"image tower {name} has a fixed image_size of {native}, got {image_size}")
            try:
                model.set_input_size(img_size=image_size)
            except (AssertionError, ValueError) as error:
                raise InputError(f"image tower {name} cannot take image_size {image_size}: {error}") from error
        self.pooling = pooling
        self._prefix = int(getattr(model, "num_prefix_tokens", 0))  # class token and registers; none in a CNN
        if pooling in ("cls", "cls+mean") and not self._prefix:
            raise InputError(f"image tower {name} has no class token; use pooling default or mean instead of {pooling}")
        features = int(model.num_features)
        self.width = int(getattr(model, "head_hidden_size", features)) if pooling == "default" else features
        self.width *= 2 if pooling == "cls+mean" else 1
        self.image_input = ImageInput(
            size=image_size or native,
            mean=_triple(mean, data["mean"], "mean"),
            std=_triple(std, data["std"], "std"),
            resize=resize,
            crop_fraction=float(data["crop_pct"] if crop_fraction is None else crop_fraction),
            interpolation=data["interpolation"] if data["interpolation"] in ("bicubic", "bilinear", "nearest") else "bicubic",
        )
        self._finish(("mask_token",) if pooling == "default" else ("mask_token", "fc_norm", "attn_pool"))

    def _encode(self, pixels_B3HW: Tensor) -> Tensor:
        model: Any = self.model
        features = model.forward_features(pixels_B3HW)
        if self.pooling == "default":
            return model.forward_head(features, pre_logits=True)
        if features.ndim == 3:
            return _pool_tokens(features, self.pooling, self._prefix)
        channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
        return features.mean((1, 2) if channels_last else (2, 3))


# ----------------------------------------------------------------------------------------------------------- Hugging Face


def _hugging_face_model(
    side: Literal["image", "text"],
    name: str | None,
    config: dict[str, Any] | None,
    weights: str | None,
    attention: str,
    pooler: bool,
) -> nn.Module:
    """The bare encoder of one modality, by name (weights included) or by configuration and weights file.

    Of a two-tower checkpoint (CLIP, SigLIP) only the asked-for side is built and loaded.
    """
    from transformers import AutoConfig, AutoModel
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    where = f"{side} tower {name or config}"
    if (name is None) == (config is None):
        raise InputError(f"{side} tower: give either name (a hub name or local folder) or config (model_type and sizes)")
    if name is not None and weights is not None:
        raise InputError(f"{where}: weights ({weights}) go with config; a name brings its own weights")
    try:
        if name is not None:
            with quiet_loading():
                settings = AutoConfig.from_pretrained(name)
        else:
            sizes = dict(config or {})
            settings = AutoConfig.for_model(sizes.pop("model_type", "(none given)"), **sizes)
            unknown = sorted(sizes.keys() - set(inspect.signature(type(settings)).parameters) - set(dir(type(settings)())))
            if unknown:
                raise InputError(f"{where}: {type(settings).__name__} has no option {some(unknown)}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{where}: no usable configuration ({str(error).splitlines()[0]}); give a folder with config.json, a hub name "
            "(with network), or config: {model_type: ..., sizes}"
        ) from error
    part = "vision_config" if side == "image" else "text_config"
    settings = getattr(settings, part, settings)
    model_class = MODEL_MAPPING.get(type(settings), None)
    if model_class is None:
        raise InputError(f"{where}: transformers has no bare model for {type(settings).__name__}")
    # Poolers that exist as a separate option are left out when unused: they would be trainable and never get a gradient.
    keeps_pooler = "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
    extra: dict[str, Any] = {"add_pooling_layer": pooler} if keeps_pooler else {}
    if name is not None and torch.get_default_device().type == "meta":  # only to count: weights stay unread
        return model_class._from_config(settings, attn_implementation=attention, **extra).float()
    if name is None:
        model = AutoModel.from_config(settings, attn_implementation=attention, **extra)
        if weights is not None:
            load_weights(model, weights, what=f"{type(model).__name__} of the given config")
        return model.float()
    try:
        with quiet_loading():
            model, report = model_class.from_pretrained(
                name, config=settings, attn_implementation=attention, dtype=torch.float32, output_loading_info=True, **extra
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{where}: weights cannot be loaded ({str(error).splitlines()[0]}); check that the folder is complete, or online"
        ) from error
    missing = sorted(report["missing_keys"])
    wrong = sorted(str(item[0]) for item in report.get("mismatched_keys", ()))
    if missing or wrong:
        raise InputError(
            f"{where}: its weights do not fill {type(model).__name__} (missing: {some(missing) or 'none'}; wrong shape: "
            f"{some(wrong) or 'none'}); the folder's config.json belongs to another model"
        )
    return model


class HFImageTower(ImageTower):
    """Any Hugging Face vision transformer (ViT, DINOv2, CLIP's and SigLIP's vision side ...) as an image tower.

    Args:
        name: Hub name or local folder, weights included. Of CLIP-like checkpoints only the vision side is loaded.
        config: Instead of `name`: the configuration, e.g. {model_type: dinov2, hidden_size: 384, num_hidden_layers: 12, ...}.
        weights: With `config`: a safetensors or torch file with exactly the model's keys. None = random weights.
        image_size: Side of the square input in pixels; None = the model's own. Position embeddings are resampled.
        pooling: "cls" token, "mean" over patches, "cls+mean" (both, twice as wide), or the model's own "pooler".
        mean: Normalisation mean of RGB in [0, 1]; None = as preprocessor_config.json, else ImageNet (for CLIP its own).
        std: Normalisation standard deviation; None = like `mean`.
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
        self.model = _hugging_face_model("image", name, config, weights, attention, pooler=pooling == "pooler")
        settings: Any = self.model.config
        where = f"image tower {name or settings.model_type}"
        native = int(settings.image_size)
        patch = int(settings.patch_size)
        size = image_size or native
        if size % patch:
            raise InputError(f"{where}: image_size {size} is not a multiple of the patch size {patch}")
        accepts = inspect.signature(self.model.forward).parameters
        self._resample = size != native and "interpolate_pos_encoding" in accepts
        self.pooling = pooling
        # tokens before the patches: class token (SigLIP has none) and registers
        self._prefix = (0 if "siglip" in settings.model_type else 1) + int(getattr(settings, "num_register_tokens", 0) or 0)
        if self._prefix == 0 and "cls" in pooling:
            raise InputError(f"{where} has no class token; use pooling mean or pooler instead of {pooling}")
        self.width = int(settings.hidden_size) * (2 if pooling == "cls+mean" else 1)
        default_mean, default_std = NORMALISATIONS["clip" if "clip" in settings.model_type else "imagenet"]
        if name is not None and (mean is None or std is None):
            default_mean, default_std = _stored_normalisation(name, default_mean, default_std)
        self.image_input = ImageInput(
            size=size,
            mean=_triple(mean, default_mean, "mean"),
            std=_triple(std, default_std, "std"),
            resize=resize,
            crop_fraction=crop_fraction,
        )
        # CLIP's post_layernorm and SigLIP's head only serve the pooler; last_hidden_state comes before CLIP's post_layernorm
        unpooled = ("post_layernorm",) if "clip" in settings.model_type and "siglip" not in settings.model_type else ("head",)
        self._finish(("mask_token",) if pooling == "pooler" else ("mask_token", "pooler", *unpooled))

    def _encode(self, pixels_B3HW: Tensor) -> Tensor:
        output = (
            self.model(pixel_values=pixels_B3HW, interpolate_pos_encoding=True)
            if self._resample
            else self.model(pixel_values=pixels_B3HW)
        )
        if self.pooling == "pooler":
            return output.pooler_output
        return _pool_tokens(output.last_hidden_state, self.pooling, self._prefix)


def _stored_normalisation(
    name: str, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of a folder's or hub entry's preprocessor_config.json, or the given ones without one."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        with quiet_loading():
            stored, _ = ImageProcessingMixin.get_image_processor_dict(name)
    except OSError:  # the file is optional: folders made by save_pretrained of a model alone have none
        return mean, std
    return _triple(stored.get("image_mean"), mean, "image_mean"), _triple(stored.get("image_std"), std, "image_std")


class HFTextTower(TextTower):
    """Any Hugging Face text encoder (BERT, RoBERTa, MiniLM, CLIP's text side ...) as a text tower.

    Args:
        name: Hub name or local folder, weights included. Of CLIP-like checkpoints only the text side is loaded.
        config: Instead of `name`: the configuration, e.g. {model_type: bert, hidden_size: 384, num_hidden_layers: 6, ...}.
        weights: With `config`: a safetensors or torch file with exactly the model's keys. None = random weights.
        pooling: "cls" (first token), "mean" over real tokens, or "last" real token (CLIP's end-of-text).
        tokeniser: Hugging Face name or local folder; None = `name`.
        max_tokens: Longest caption in tokens, special ones included; longer captions are cut.
        attention: "sdpa" (fused) or "eager" (gives attention maps, slower).

    Raises:
        InputError: Nothing to build, no tokeniser, weights that do not fit, or more tokens than the model has positions.
    """

    def __init__(
        self,
        name: str | None = None,
        config: dict[str, Any] | None = None,
        weights: str | None = None,
        pooling: Literal["cls", "mean", "last"] = "mean",
        tokeniser: str | None = None,
        max_tokens: int = 64,
        attention: Literal["sdpa", "eager"] = "sdpa",
    ) -> None:
        super().__init__()
        if name is None and tokeniser is None:
            raise InputError("text tower: tokeniser is missing (a Hugging Face name or folder); it is needed with config")
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
        self.text_input = TextInput(tokeniser=str(tokeniser or _expanded(name)), max_tokens=max_tokens)
        self._finish(("pooler",))

    def _encode(self, tokens_BT: Tensor, mask_BT: Tensor) -> Tensor:
        tokens_BTD = self.model(input_ids=tokens_BT, attention_mask=mask_BT.long()).last_hidden_state
        if self.pooling == "cls":
            return tokens_BTD[:, 0]
        if self.pooling == "last":
            positions_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
            last_B = (mask_BT * positions_T).argmax(1)
            return tokens_BTD[torch.arange(len(last_B), device=mask_BT.device), last_B]
        weights_BT1 = mask_BT.unsqueeze(-1).float()
        return (tokens_BTD.float() * weights_BT1).sum(1) / weights_BT1.sum(1).clamp_min(1.0)


def _expanded(name: str | None) -> str | None:
    """A local folder as an absolute path, so that it survives a change of working folder; a hub name as it is."""
    return str(Path(name).resolve()) if name is not None and Path(name).is_dir() else name
