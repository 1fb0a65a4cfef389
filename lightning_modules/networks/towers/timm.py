"""Vision towers of timm."""

from __future__ import annotations

from typing import Any, Literal, cast

from torch import Tensor

from datamodules.errors import InputError, some
from datamodules.files.hub import without_waiting
from datamodules.inputs import ImageInput
from lightning_modules.networks.start import to_read
from lightning_modules.networks.towers.base import ImageTower, pool_tokens, triple


class TimmImageTower(ImageTower):
    """Any timm model as an image tower.

    Args:
        name: timm's model name, e.g. vit_base_patch16_224 or tf_efficientnet_lite0.
        weights: A safetensors or torch file with this model's own keys; a classifier in it is left out. None = as `pretrained`;
            random = random weights on purpose.
        pretrained: Download timm's weights for `name` (needs the network or a filled cache). False = random weights, to be
            trained or brought by init_from.
        image_size: Side of the square input in pixels; None = the model's own. Position embeddings are resampled.
        pooling: "default" = as the model was trained; "cls", "mean" (over the grid), or "cls+mean" (both, twice as wide).
        mean: Normalization mean of RGB in [0, 1]; None = the model's own.
        std: Normalization standard deviation; None = the model's own.
        resize: Evaluation resize: "crop" (shorter side, then centre crop) or "squash" (both sides, aspect ratio not kept).
        crop_fraction: Part of the resized image that the centre crop keeps; None = the model's own.
        options: Further arguments of the timm model, e.g. {bn_eps: 1e-3} or {embed_dim: 64, depth: 2, num_heads: 2}.

    Raises:
        InputError: Unknown name or option, or a size or pooling the model cannot do.
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
        self.name = name
        self._other_size: int | None = None
        import timm  # late: a text-only run should not pay for it
        from timm.data import resolve_model_data_config

        if pretrained and weights:
            raise InputError(f"image tower {name}: give either weights ({weights}) or pretrained: true, not both")
        if not timm.is_model(name):
            near = timm.list_models(f"*{name.split('_')[0]}*")
            raise InputError(
                f"image tower: timm has no model {name!r}; near names: {some(near) or 'none (see timm.list_models())'}"
            )
        if pretrained:
            without_waiting(f"timm/{name}")
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
        data = resolve_model_data_config(model)
        native = int(data["input_size"][-1])
        fixed: Any = getattr(getattr(model, "patch_embed", None), "img_size", None)
        if fixed:
            native = int(fixed[0])  # options may have chosen another size than the published one
        if image_size is not None and image_size != native and fixed:
            if not hasattr(model, "set_input_size"):
                raise InputError(f"image tower {name} has a fixed image_size of {native}, got {image_size}")
            self._other_size = image_size
            if to_read(weights) is None:  # else when they are there: a file's positions are of the model's own size
                self.fit_image_size()
        self.pooling = pooling
        self._prefix = int(getattr(model, "num_prefix_tokens", 0))  # class token and registers; none in a CNN
        if pooling in ("cls", "cls+mean") and not self._prefix:
            raise InputError(f"image tower {name} has no class token; use pooling default or mean instead of {pooling}")
        features = int(model.num_features)
        self.width = int(getattr(model, "head_hidden_size", features)) if pooling == "default" else features
        self.width *= 2 if pooling == "cls+mean" else 1
        self.image_input = ImageInput(
            size=image_size or native,
            mean=triple(mean, data["mean"], "mean"),
            std=triple(std, data["std"], "std"),
            resize=resize,
            crop_fraction=float(data["crop_pct"] if crop_fraction is None else crop_fraction),
            interpolation=data["interpolation"] if data["interpolation"] in ("bicubic", "bilinear", "nearest") else "bicubic",
        )
        pools = ["fc_norm", "attn_pool", "head", "norm_head"]  # of timm's own pooling
        if type(model).__name__ == "MobileNetV3":  # in EfficientNet the layer of that name comes before it
            pools.append("conv_head")
        unused = ("mask_token",) if pooling == "default" else ("mask_token", *pools)
        self._finish(unused, pools, weights, brought=pretrained)

    def fit_image_size(self) -> None:
        """Resample the position embeddings to the `image_size` that was asked for, where it is not the model's own.

        Raises:
            InputError: The model cannot take that size.
        """
        if self._other_size is None:
            return
        try:
            cast(Any, self.model).set_input_size(img_size=self._other_size)
        except (AssertionError, ValueError) as error:
            raise InputError(f"image tower {self.name} cannot take image_size {self._other_size}: {error}") from error

    def classifier_keys(self) -> tuple[str, ...]:
        """What the names of a published classifier's weights begin with, which this tower leaves out."""
        heads = getattr(self.model, "pretrained_cfg", {}).get("classifier") or ()
        return tuple(f"{head}." for head in ([heads] if isinstance(heads, str) else heads))

    def _encode(self, pixels_B3HW: Tensor) -> Tensor:
        model: Any = self.model
        features = model.forward_features(pixels_B3HW)
        if self.pooling == "default":
            return model.forward_head(features, pre_logits=True)
        if features.ndim == 3:
            return pool_tokens(features, self.pooling, self._prefix)
        channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
        return features.mean((1, 2) if channels_last else (2, 3))
