"""ClipCap (Mokady et al., arXiv 2111.09734): an image's one vector becomes a prefix of embeddings for a language model.

Official files: rmokady/CLIP_prefix_caption `train.py` (`MLP`, `TransformerMapper`, `ClipCaptionModel`). The mappers' parameters
have the official names, without `clip_project.`.

Legend: I images, P width of the vector, K prefix tokens, C tokens that the vector becomes inside the transformer mapper,
N = C + K, D width of the language model (W where a layer does not care).
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter

from datamodules.errors import InputError
from lightning_modules.adapters.adapter import Adapter
from lightning_modules.networks.attention import attention_context

NAME = "prefix"  # the network's attribute that holds the mapper

Mapping = Literal["mlp", "transformer", "linear"]


class MLPMapper(nn.Module):
    """[I, P] -> [I, K, D]: Linear, tanh, Linear, half as wide in the middle as its output."""

    def __init__(self, vector_width: int, width: int, prefix_length: int) -> None:
        super().__init__()
        self.prefix_length = prefix_length
        out = width * prefix_length
        self.model = nn.Sequential(nn.Linear(vector_width, out // 2), nn.Tanh(), nn.Linear(out // 2, out))

    def forward(self, vectors_IP: Tensor) -> Tensor:
        return self.model(vectors_IP).unflatten(-1, (self.prefix_length, -1))


class LinearMapper(nn.Module):
    """[I, P] -> [I, K, D] in one linear layer: the least that shows a language model an image (LiMBeR, arXiv 2209.15162)."""

    def __init__(self, vector_width: int, width: int, prefix_length: int) -> None:
        super().__init__()
        self.prefix_length = prefix_length
        self.linear = nn.Linear(vector_width, width * prefix_length)

    def forward(self, vectors_IP: Tensor) -> Tensor:
        return self.linear(vectors_IP).unflatten(-1, (self.prefix_length, -1))


class _Attention(nn.Module):
    """Self-attention without biases in queries, keys and values."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_queries = nn.Linear(width, width, bias=False)
        self.to_keys_values = nn.Linear(width, 2 * width, bias=False)
        self.project = nn.Linear(width, width)

    def forward(self, x_INW: Tensor) -> Tensor:
        parts = (self.to_queries(x_INW), *self.to_keys_values(x_INW).chunk(2, -1))
        queries, keys, values = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        return self.project(attention_context(queries, keys, values).transpose(1, 2).flatten(2))


class _FeedForward(nn.Module):
    def __init__(self, width: int, inside: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inside)
        self.fc2 = nn.Linear(inside, width)

    def forward(self, x_INW: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(x_INW)))


class _Layer(nn.Module):
    """Pre-norm."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = _Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = _FeedForward(width, int(width * mlp_ratio))

    def forward(self, x_INW: Tensor) -> Tensor:
        x_INW = x_INW + self.attn(self.norm1(x_INW))
        return x_INW + self.mlp(self.norm2(x_INW))


class _Layers(nn.Module):
    def __init__(self, width: int, num_heads: int, layers: int, mlp_ratio: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(width, num_heads, mlp_ratio) for _ in range(layers))

    def forward(self, x_INW: Tensor) -> Tensor:
        for layer in self.layers:
            x_INW = layer(x_INW)
        return x_INW


class TransformerMapper(nn.Module):
    """[I, P] -> [I, K, D]: the vector as C tokens before K learned ones; what comes out at the learned ones is the prefix."""

    def __init__(
        self,
        vector_width: int,
        width: int,
        prefix_length: int,
        clip_length: int,
        layers: int,
        num_heads: int = 8,
        mlp_ratio: float = 2.0,
    ) -> None:
        super().__init__()
        self.clip_length = clip_length
        self.transformer = _Layers(width, num_heads, layers, mlp_ratio)
        self.linear = nn.Linear(vector_width, clip_length * width)
        self.prefix_const = Parameter(torch.randn(prefix_length, width))

    def forward(self, vectors_IP: Tensor) -> Tensor:
        tokens_ICD = self.linear(vectors_IP).unflatten(-1, (self.clip_length, -1))
        learned_IKD = self.prefix_const.to(tokens_ICD.dtype).expand(len(tokens_ICD), -1, -1)
        return self.transformer(torch.cat([tokens_ICD, learned_IKD], dim=1))[:, self.clip_length :]


class ClipCap(Adapter):
    """A prefix made of the image's vector, for a frozen language model or one that is tuned with it.

    The network has to show one vector an image (`visual: pooled` of the captioner).

    Args:
        mapping: "mlp" (the paper's mapper for a tuned GPT-2), "transformer" (for a frozen one), or "linear" (not the paper's: one
            layer, a bridge for what tunes the language model beside it).
        prefix_length: K.
        clip_length: C, tokens that the vector becomes; transformer only.
        layers: Layers of the transformer.
        num_heads: Heads of the transformer.
        mlp_ratio: Width inside the transformer's FFN in widths of the language model.
        tune_language_model: Train the language model as well: its parameters become heads of the network, which train beside an
            adapter unless `train_heads` says otherwise.
        normalize: Make the vectors unit vectors first (`--normalize_prefix` of the released code).

    Raises:
        InputError: A value is out of range.
    """

    def __init__(
        self,
        mapping: Mapping = "transformer",
        prefix_length: int = 10,
        clip_length: int = 10,
        layers: int = 8,
        num_heads: int = 8,
        mlp_ratio: float = 2.0,
        tune_language_model: bool = False,
        normalize: bool = False,
    ) -> None:
        self._init_args: dict[str, Any] = {
            "mapping": mapping,
            "prefix_length": prefix_length,
            "clip_length": clip_length,
            "layers": layers,
            "num_heads": num_heads,
            "mlp_ratio": mlp_ratio,
            "tune_language_model": tune_language_model,
            "normalize": normalize,
        }
        if mapping not in ("mlp", "transformer", "linear"):
            raise InputError(f"ClipCap: unknown mapping {mapping!r}; choose mlp, transformer or linear")
        if min(prefix_length, clip_length, layers, num_heads) < 1 or mlp_ratio <= 0:
            raise InputError(f"ClipCap: lengths, layers, num_heads and mlp_ratio must be positive, got {self._init_args}")
        self.mapping, self.prefix_length, self.clip_length = mapping, prefix_length, clip_length
        self.layers, self.num_heads, self.mlp_ratio = layers, num_heads, mlp_ratio
        self.tune_language_model, self.normalize = tune_language_model, normalize

    @property
    def identity_at_start(self) -> bool:
        """Never: the prefix is there from the start."""
        return False

    @property
    def off(self) -> bool:
        """Never."""
        return False

    def owns(self, parameter_name: str) -> bool:
        """Whether the name of a parameter, of a state-dict entry or of a module is this adapter's."""
        return parameter_name.split(".")[0] == NAME

    def describe(self) -> dict[str, Any]:
        """Constructor arguments to build it again."""
        return {
            "class_path": f"{type(self).__module__}.{type(self).__qualname__}",
            "init_args": dict(self._init_args),
            "identity_at_start": self.identity_at_start,
        }

    def mapper(self, vector_width: int, width: int) -> nn.Module:
        """A mapper for these widths.

        Raises:
            InputError: The heads do not divide the width.
        """
        if self.mapping == "mlp":
            return MLPMapper(vector_width, width, self.prefix_length)
        if self.mapping == "linear":
            return LinearMapper(vector_width, width, self.prefix_length)
        if width % self.num_heads:
            raise InputError(f"ClipCap: {self.num_heads} heads do not divide the language model's width {width}; set num_heads")
        return TransformerMapper(
            vector_width, width, self.prefix_length, self.clip_length, self.layers, self.num_heads, self.mlp_ratio
        )

    def inject(self, network: nn.Module) -> None:
        """Give `network.prefix` the mapper, on the language model's device, in fp32.

        Args:
            network: A captioner: `language` (its model embeds tokens) and `visual_width`, the width of its one vector an image.

        Raises:
            InputError: No captioner, one that shows many tokens an image, or a mapper is there already.
        """
        if getattr(network, NAME, None) is not None:
            raise InputError("ClipCap: this captioner has a prefix already; inject only once")
        language, visual_width = getattr(network, "language", None), getattr(network, "visual_width", None)
        if not isinstance(language, nn.Module) or not isinstance(visual_width, int):
            raise InputError(f"ClipCap: {type(network).__name__} has no language and visual_width; it goes into captioners only")
        if getattr(network, "visual", "pooled") != "pooled":
            raise InputError("ClipCap makes its prefix of one vector an image; set visual of the captioner to pooled")
        # not the hidden size: OPT 350m embeds in fewer dimensions than its layers have
        weight = cast(Any, language).model.get_input_embeddings().weight
        with torch.device(weight.device):
            mapper = self.mapper(visual_width, weight.shape[1])
        mapper.train(network.training)
        setattr(network, NAME, Prefix(mapper, self.normalize))
        if self.tune_language_model:
            cast(Any, network).tunes_language = True


class Prefix(nn.Module):
    """Visual tokens [I, 1, P] -> prefix [I, K, D]."""

    def __init__(self, mapper: nn.Module, normalize: bool = False) -> None:
        super().__init__()
        self.mapper = mapper
        self.normalize = normalize

    def forward(self, tokens_I1P: Tensor) -> Tensor:
        vectors_IP = tokens_I1P.squeeze(1)
        return self.mapper(F.normalize(vectors_IP, dim=-1) if self.normalize else vectors_IP)
