"""UNITER (arXiv 1909.11740) as the released code computes it: one BERT over the words of a caption and the regions of an image.

Official files: ChenRocks/UNITER `model/model.py`, `model/layer.py`, `model/itm.py`; lancopku/IAIS for the same.

    words    LN(word + position + type 0)
    regions  LN(LN(Linear(feature)) + LN(Linear(box)) + type 1)       box = left, top, right, bottom, width, height, area
    layer    h = LN(x + Out(attention(x)));   y = LN(h + Fc2(GELU(Fc1(h))))
    score    Linear(tanh(Linear(y[CLS])))

Legend: B pairs, T text tokens ([CLS] and [SEP] included), R regions, S tokens of the packed sequence, D width, F feature width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter

from datamodules.errors import InputError
from lightning_modules.networks.attention import Attended, attend
from lightning_modules.networks.checkpointing import checkpoint_blocks

EPS = 1e-12  # of every LayerNorm
TEXT_TYPE, IMAGE_TYPE = 0, 1  # rows of the token type table


@dataclass(frozen=True)
class Packed:
    """Words and regions in one sequence, the padding of both at its end, so that it is no longer than the longest pair.

    Args:
        x_BSD: Embeddings.
        mask_BS: bool, True = a real token.
        text_BT: Place of every text token in the sequence (of padding: somewhere behind the real tokens).
        regions_BR: Place of every region.
    """

    x_BSD: Tensor
    mask_BS: Tensor
    text_BT: Tensor
    regions_BR: Tensor


@dataclass(frozen=True)
class Joint:
    """What the encoder gives.

    Args:
        tokens_BSD: Output of the last layer.
        packed: Where words and regions are in the sequence (its `x_BSD` is the input of layer 0).
        hidden: On request: output of every layer.
        attention: On request: queries and keys by layer index.
    """

    tokens_BSD: Tensor
    packed: Packed
    hidden: tuple[Tensor, ...]
    attention: dict[int, Attended]


def pack(text_BTD: Tensor, text_mask_BT: Tensor, regions_BRD: Tensor, region_mask_BR: Tensor) -> Packed:
    """Join words and regions pair by pair and cut the sequence to the longest pair (the official `gather_index`)."""
    mask_BA = torch.cat([text_mask_BT, region_mask_BR], dim=1)
    order_BA = torch.sort(~mask_BA, dim=1, stable=True).indices  # real tokens first, in their order
    place_BA = torch.empty_like(order_BA).scatter_(
        1, order_BA, torch.arange(mask_BA.shape[1], device=mask_BA.device).expand_as(order_BA)
    )
    length = int(mask_BA.sum(1).max())
    order_BS = order_BA[:, :length]
    both_BAD = torch.cat([text_BTD, regions_BRD], dim=1)
    x_BSD = both_BAD.gather(1, order_BS.unsqueeze(-1).expand(-1, -1, both_BAD.shape[2]))
    place_BA = place_BA.clamp_max(length - 1)
    words = text_mask_BT.shape[1]
    return Packed(x_BSD, mask_BA.gather(1, order_BS), place_BA[:, :words], place_BA[:, words:])


class TextEmbedding(nn.Module):
    """[B, T] ids -> [B, T, D]. Holds the type table of both modalities, as the official code does."""

    def __init__(self, width: int, vocab_size: int, positions: int, dropout: float) -> None:
        super().__init__()
        self.words = nn.Embedding(vocab_size, width, padding_idx=0)
        self.positions = nn.Embedding(positions, width)
        self.types = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        length = tokens_BT.shape[1]
        if length > self.positions.num_embeddings:
            raise InputError(f"UNITER has {self.positions.num_embeddings} text positions, got {length} tokens; lower max_tokens")
        x_BTD = self.words(tokens_BT) + self.positions.weight[:length] + self.types.weight[TEXT_TYPE]
        return self.dropout(self.norm(x_BTD))


class RegionEmbedding(nn.Module):
    """Features [B, R, F] and boxes [B, R, 7] -> [B, R, D]."""

    def __init__(self, width: int, feature_width: int, dropout: float) -> None:
        super().__init__()
        self.features = nn.Linear(feature_width, width)
        self.feature_norm = nn.LayerNorm(width, eps=EPS)
        self.boxes = nn.Linear(7, width)
        self.box_norm = nn.LayerNorm(width, eps=EPS)
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.mask_feature = nn.Embedding(2, feature_width, padding_idx=0)  # of masked pre-training; checkpoints have it
        self.dropout = nn.Dropout(dropout)

    def forward(self, features_BRF: Tensor, boxes_BR7: Tensor, type_D: Tensor) -> Tensor:
        seen_BRD = self.feature_norm(self.features(features_BRF)) + self.box_norm(self.boxes(boxes_BR7))
        return self.dropout(self.norm(seen_BRD + type_D))


class Layer(nn.Module):
    """A post-norm BERT layer."""

    def __init__(self, width: int, heads: int, ffn_width: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_dropout = dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=EPS)
        self.fc1 = nn.Linear(width, ffn_width)
        self.fc2 = nn.Linear(ffn_width, width)
        self.ffn_norm = nn.LayerNorm(width, eps=EPS)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x_BSD: Tensor, mask_BS: Tensor | None, want_attention: bool = False, pooled: bool = False
    ) -> tuple[Tensor, Attended | None]:
        """All tokens, or with `pooled` only the first: what the last layer owes the score."""
        queries, keys, values = self.qkv(x_BSD).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        access = Attended(queries, keys, mask_BS) if want_attention else None
        if pooled:
            x_BSD, queries = x_BSD[:, :1], queries[:, :, :1]
        context = attend(queries, keys, values, mask_BS, self.attention_dropout if self.training else 0.0)
        x_BSD = self.attention_norm(x_BSD + self.dropout(self.out(context)))
        return self.ffn_norm(x_BSD + self.dropout(self.fc2(F.gelu(self.fc1(x_BSD))))), access


class Uniter(nn.Module):
    """The encoder with its pooler.

    Args:
        width: Width of the residual stream.
        num_layers: Layers.
        heads: Attention heads.
        ffn_width: Width inside the FFN.
        vocab_size: Rows of the word table.
        text_positions: Rows of the position table.
        feature_width: Width of the region features.
        dropout: Everywhere: embeddings, attention, hidden states.
    """

    def __init__(
        self,
        width: int,
        num_layers: int,
        heads: int,
        ffn_width: int,
        vocab_size: int,
        text_positions: int,
        feature_width: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.text_embed = TextEmbedding(width, vocab_size, text_positions, dropout)
        self.region_embed = RegionEmbedding(width, feature_width, dropout)
        self.layers = nn.ModuleList(Layer(width, heads, ffn_width, dropout) for _ in range(num_layers))
        self.pooler = nn.Linear(width, width)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def embed_texts(self, tokens_BT: Tensor) -> Tensor:
        """[B, T, D]. A text's embedding does not depend on the image: full-rank evaluation computes it once."""
        return self.text_embed(tokens_BT)

    def embed_regions(self, features_BRF: Tensor, boxes_BR7: Tensor) -> Tensor:
        """[B, R, D], likewise computed once an image."""
        return self.region_embed(features_BRF, boxes_BR7, self.text_embed.types.weight[IMAGE_TYPE])

    def forward(self, packed: Packed, *, pooled: bool = False, hidden: bool = False, attention: Sequence[int] = ()) -> Joint:
        """Run the layers.

        Args:
            packed: From `pack`.
            pooled: Give only the first token, and do not compute in the last layer what only the others need.
            hidden: Also give every layer's output.
            attention: Layers (0-based) whose queries and keys are wanted.

        Raises:
            InputError: A layer that does not exist.
        """
        if wrong := [i for i in attention if not 0 <= i < len(self.layers)]:
            raise InputError(f"attention of layers {wrong} was asked for, but this UNITER has layers 0 to {len(self.layers) - 1}")
        x_BSD, states, access = packed.x_BSD, [], {}
        mask = packed.mask_BS
        for i, layer in enumerate(self.layers):
            x_BSD, seen = layer(x_BSD, mask, i in attention, pooled and i == len(self.layers) - 1)
            if hidden:
                states.append(x_BSD)
            if seen is not None:
                access[i] = seen
        return Joint(x_BSD, packed, tuple(states), access)

    def pool(self, tokens_BSD: Tensor) -> Tensor:
        """[B, D]: tanh of a linear map of the first token."""
        return torch.tanh(self.pooler(tokens_BSD[:, 0]))


class UniterRetrieval(nn.Module):
    """UNITER with its matching and ranking heads. The defaults are base: 109,901,059 parameters.

    Args:
        width: Width of the residual stream.
        num_layers: Layers.
        heads: Attention heads.
        ffn_width: Width inside the FFN.
        vocab_size: Rows of the word table.
        text_positions: Rows of the position table.
        feature_width: Width of the region features.
        dropout: Everywhere: embeddings, attention, hidden states.
        checkpoint_activations: Recompute the layers' activations in the backward pass.

    Raises:
        InputError: Sizes that do not divide.
    """

    def __init__(
        self,
        width: int = 768,
        num_layers: int = 12,
        heads: int = 12,
        ffn_width: int = 3072,
        vocab_size: int = 28996,
        text_positions: int = 512,
        feature_width: int = 2048,
        dropout: float = 0.1,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        if width % heads:
            raise InputError(f"UNITER: width ({width}) must be a multiple of heads ({heads})")
        self.encoder = Uniter(width, num_layers, heads, ffn_width, vocab_size, text_positions, feature_width, dropout)
        self.itm = nn.Linear(width, 2)
        self.rank = nn.Linear(width, 1)
        for head in (self.itm, self.rank):
            nn.init.normal_(head.weight, std=0.02)
            nn.init.zeros_(head.bias)
        if checkpoint_activations:
            checkpoint_blocks(self.encoder.layers)

    def rank_from_itm(self) -> None:
        """Start the ranking head from the matching head's row "matched", as the official `init_output` does."""
        with torch.no_grad():
            self.rank.weight.copy_(self.itm.weight[1:])
            self.rank.bias.copy_(self.itm.bias[1:])

    def score(self, packed: Packed, attention: Sequence[int] = ()) -> tuple[Tensor, Joint]:
        """Raw ranking scores [B] (fp32, no sigmoid) of packed pairs, and what the encoder gave for its first token."""
        joint = self.encoder(packed, pooled=True, attention=attention)
        return self.rank(self.encoder.pool(joint.tokens_BSD)).float().squeeze(-1), joint

    def head_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """The ranking head and the matching head, with their names."""
        return ((name, p) for name, p in self.named_parameters() if name.startswith(("rank.", "itm.")))

    def unused_parameters(self) -> frozenset[str]:
        """The mask feature of pre-training and the matching head take no part in ranking."""
        return frozenset({"encoder.region_embed.mask_feature.weight", "itm.weight", "itm.bias"})

    @property
    def num_layers(self) -> int:
        return len(self.encoder.layers)

    def layer_id(self, name: str) -> int:
        """Layer of a parameter for layer-wise decay: embeddings 0, layer i -> i + 1, pooler and heads last."""
        if "_embed." in name:
            return 0
        parts = name.split(".")
        return int(parts[parts.index("layers") + 1]) + 1 if "layers" in parts else self.num_layers + 1
