"""One modality's encoder: any timm or Hugging Face image model, any Hugging Face text model, pooled to one vector.

A tower knows what it wants to be fed (`image_input`, `text_input`), how wide its vector is (`width`), and where its blocks are
(`blocks`, for adapters, checkpointing and layer decay). The library's model is `tower.model`, under its own keys.

Weights by a hub name or folder come with the library's own `from_pretrained`; a file of `weights` is read by `checkpoints.fill`.

A tower without any trainable parameter runs without recording a graph, so a frozen tower costs no activation memory.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from datamodules.errors import InputError
from datamodules.inputs import ImageInput, TextInput
from lightning_modules.networks.checkpointing import checkpoint_blocks
from lightning_modules.networks.start import fresh_names, refuse_until_read, to_read

NORMALIZATIONS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
_BLOCK_LISTS = ("blocks", "layers", "layer", "stages", "resblocks")


def find_blocks(model: nn.Module) -> str:
    """Path of the list of blocks inside a library's model ("" if it has none), e.g. "encoder.layer" or "blocks"."""
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in _BLOCK_LISTS and isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module):
            return name
    return ""


def stem_of(names: Sequence[str], blocks_path: str) -> frozenset[str]:
    """Of a model's parameters those that are registered before its blocks: patch, token and position embeddings."""
    first = next((i for i, name in enumerate(names) if blocks_path and name.startswith(blocks_path + ".")), 0)
    return frozenset(names[:first])


def layer_of(name: str, blocks_path: str, stem: Collection[str], num_layers: int) -> int:
    """Layer of a parameter for layer-wise decay: embeddings 0, block i -> i + 1 (its adapters too), the rest num_layers + 1."""
    if blocks_path and name.startswith(blocks_path + "."):
        return int(name[len(blocks_path) + 1 :].split(".")[0]) + 1
    # some libraries keep shared position tables behind the blocks; they belong to the embeddings all the same
    return 0 if name in stem or "embed" in name or "relative_attention_bias" in name else num_layers + 1


class Tower(nn.Module):
    """What all towers share. Subclasses call `_finish` when `self.model` is complete."""

    width: int
    model: nn.Module
    weights: str | None  # a file with the model's own keys, still to be read
    fresh: frozenset[str]  # see networks/start.py
    loaded_from: str | None = None  # a folder or hub name of Hugging Face's, whose weights are in the model already

    def _finish(
        self, unused: Sequence[str], pooled: Sequence[str] = (), weights: str | None = None, brought: bool = True
    ) -> None:
        """When `self.model` is there.

        Args:
            unused: Parts of names of parameters that the tower never touches.
            pooled: Likewise, of those that only its one vector needs, and its tokens do not.
            weights: The option of that name.
            brought: Whether weights have been loaded already.
        """
        self.weights, self.fresh = to_read(weights), fresh_names(self, weights, brought)
        for module in self.model.modules():
            if isinstance(module, nn.Conv2d) and module.in_channels == _COLORS:
                module.register_forward_pre_hook(_as_the_weight)
        refuse_until_read(self)
        path = find_blocks(self.model)
        self._blocks_path = f"model.{path}" if path else ""
        names = [name for name, _ in self.named_parameters()]
        self._stem = stem_of(names, self._blocks_path)
        self._unused = frozenset(name for name in names if any(part in name.split(".") for part in unused))
        self._pooled = frozenset(name for name in names if any(part in name.split(".") for part in pooled))

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer blocks (or convolution stages) from input to output; empty when none were found."""
        return list(self.get_submodule(self._blocks_path).children()) if self._blocks_path else []

    @property
    def num_layers(self) -> int:
        return len(self.blocks)

    def layer_id(self, name: str) -> int:
        """Layer of a parameter for layer-wise decay: embeddings 0, block i -> i + 1 (its adapters too), the rest after."""
        return layer_of(name, self._blocks_path, self._stem, self.num_layers)

    def unused_parameters(self, pooled: bool = True) -> frozenset[str]:
        """Names of parameters that the tower never touches (a mask token, an unused pooler): they never get a gradient.

        Args:
            pooled: Whether its one vector is asked for. Its tokens alone do without what makes a vector of them.
        """
        return self._unused if pooled else self._unused | self._pooled

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


_COLORS = 3


def _as_the_weight(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Pixels are fp32; the first layer's weight is of another dtype after `model.half()` and its like."""
    weight: Any = module.weight
    return (args[0].to(weight.dtype), *args[1:])


class ImageTower(Tower):
    """Pixels to one vector an image. `forward(pixels_B3HW)` gives [B, width], not normalized."""

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
    """Tokens to one vector a caption. `forward(tokens_BT, mask_BT)` gives [B, width], not normalized."""

    text_input: TextInput

    def forward(self, tokens_BT: Tensor, mask_BT: Tensor) -> Tensor:
        with torch.set_grad_enabled(self._records()):
            return self._encode(tokens_BT, mask_BT)

    def _encode(self, tokens_BT: Tensor, mask_BT: Tensor) -> Tensor:
        raise NotImplementedError


def triple(values: Sequence[float] | None, default: Sequence[float], option: str) -> tuple[float, float, float]:
    chosen = tuple(float(value) for value in (default if values is None else values))
    if len(chosen) != 3:
        raise InputError(f"{option} needs three numbers (red, green, blue in [0, 1]), got {list(chosen)}")
    return chosen


def pool_tokens(tokens_BTD: Tensor, pooling: str, prefix: int) -> Tensor:
    """`cls` is token 0, `mean` is over the patches (all tokens after the `prefix` special ones)."""
    if pooling == "cls":
        return tokens_BTD[:, 0]
    mean_BD = tokens_BTD[:, prefix:].mean(1)
    return mean_BD if pooling == "mean" else torch.cat([tokens_BTD[:, 0], mean_BD], dim=1)


# ------------------------------------------------------------------------------------------------------------------- timm


# ----------------------------------------------------------------------------------------------------------- Hugging Face
