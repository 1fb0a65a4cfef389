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
from datamodules.inputs import Inputs, RegionInput, TextInput
from datamodules.records import ImageBatch, PairBatch, TextBatch
from lightning_modules.networks.attention import Attended, Relations, attend
from lightning_modules.networks.checkpointing import checkpoint_blocks
from lightning_modules.networks.network import RankingNetwork
from lightning_modules.networks.packing import Packed, items_of, pack
from lightning_modules.networks.pair_scorer import Ragged
from lightning_modules.networks.start import fresh_names, refuse_until_read, to_read

EPS = 1e-12  # of every LayerNorm
TEXT_TYPE, IMAGE_TYPE = 0, 1  # rows of the token type table


@dataclass(frozen=True)
class Joint:
    """What the encoder gives.

    Args:
        tokens_BSD: Output of the last layer.
        packed: Where words and regions are in the sequence.
        hidden: On request: output of every layer.
        attention: On request: queries and keys by layer index.
    """

    tokens_BSD: Tensor
    packed: Packed
    hidden: tuple[Tensor, ...]
    attention: dict[int, Attended]


class TextEmbedding(nn.Module):
    """[B, T] ids -> [B, T, D]. Holds the type table of both modalities, as the official code does."""

    def __init__(self, width: int, vocab_size: int, positions: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocab_size, width, padding_idx=0)
        self.positions = nn.Embedding(positions, width)
        self.types = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width, eps=EPS)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        length = tokens_BT.shape[1]
        if length > self.positions.num_embeddings:
            raise InputError(f"UNITER has {self.positions.num_embeddings} text positions, got {length} tokens; lower max_tokens")
        x_BTD = self.words(tokens_BT) + self.positions.weight[:length] + self.types.weight[TEXT_TYPE]
        return self.norm(x_BTD)


class RegionEmbedding(nn.Module):
    """Features [..., F] and boxes [..., 7] -> [..., D]."""

    def __init__(self, width: int, feature_width: int) -> None:
        super().__init__()
        self.features = nn.Linear(feature_width, width)
        self.feature_norm = nn.LayerNorm(width, eps=EPS)
        self.boxes = nn.Linear(7, width)
        self.box_norm = nn.LayerNorm(width, eps=EPS)
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.mask_feature = nn.Embedding(2, feature_width, padding_idx=0)  # of masked pre-training; checkpoints have it

    def forward(self, features_XF: Tensor, boxes_X7: Tensor, type_D: Tensor) -> Tensor:
        seen_XD = self.feature_norm(self.features(features_XF)) + self.box_norm(self.boxes(boxes_X7))
        return self.norm(seen_XD + type_D)


class Layer(nn.Module):
    """A post-norm BERT layer."""

    def __init__(self, width: int, num_heads: int, ffn_width: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
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
        queries, keys, values = self.qkv(x_BSD).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
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
        num_heads: Attention heads.
        ffn_width: Width inside the FFN.
        vocab_size: Rows of the word table.
        text_positions: Rows of the position table.
        feature_width: Width of the region features.
        dropout: Everywhere: embeddings, attention, hidden states.
        init_std: Standard deviation of the random weights.
    """

    def __init__(
        self,
        width: int,
        num_layers: int,
        num_heads: int,
        ffn_width: int,
        vocab_size: int,
        text_positions: int,
        feature_width: int,
        dropout: float,
        init_std: float = 0.02,
    ) -> None:
        super().__init__()
        self.text_embed = TextEmbedding(width, vocab_size, text_positions)
        self.region_embed = RegionEmbedding(width, feature_width)
        # The last thing that embedding does. Here it comes after pairs are made of the embeddings: every pair drops its own.
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(Layer(width, num_heads, ffn_width, dropout) for _ in range(num_layers))
        self.pooler = nn.Linear(width, width)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=init_std)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def embed_texts(self, tokens_BT: Tensor, mask_BT: Tensor) -> Ragged:
        """A text's embedding does not depend on the image: it is computed once, however many pairs it is in."""
        return Ragged.of(self.text_embed(tokens_BT), mask_BT)

    def embed_regions(self, features_BRF: Tensor, boxes_BR7: Tensor, mask_BR: Tensor) -> Ragged:
        """Likewise once an image; padding is not computed."""
        embed, type_D = self.region_embed, self.text_embed.types.weight[IMAGE_TYPE]
        dtype = embed.features.weight.dtype
        regions_NF, boxes_N7 = features_BRF[mask_BR].to(dtype), boxes_BR7[mask_BR].to(dtype)
        return Ragged(embed(regions_NF, boxes_N7, type_D), mask_BR.sum(1))

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
        x_BSD, states, access = self.dropout(packed.x_BSD), [], {}
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


class UniterRetrieval(RankingNetwork):
    """UNITER with its matching and ranking heads. The defaults are base: 109,901,059 parameters.

    Args:
        width: Width of the residual stream.
        num_layers: Layers.
        num_heads: Attention heads.
        ffn_width: Width inside the FFN.
        vocab_size: Rows of the word table.
        text_positions: Rows of the position table.
        feature_width: Width of the region features.
        dropout: Everywhere: embeddings, attention, hidden states.
        tokenizer: Hugging Face name or folder of a BERT tokenizer; null where captions come as token ids.
        max_tokens: Tokens of a caption, [CLS] and [SEP] included; longer ones are cut. Null = as many as there are positions.
        weights: An official checkpoint, pre-training or fine-tuned, by path or by name ("uniter-base", "uniter-large"), or a BERT
            of Hugging Face by name or folder: words, positions, layers and pooler are then BERT's, regions and heads random.
            Null = random weights, to be trained or brought by init_from; random = random on purpose. Read by `checkpoints.fill`.
        init_std: Standard deviation of random weights: 0.02 as BERT's. A narrow network that starts from nothing needs more: its
            layers else barely change what they are given (0.02 sqrt(768 / width) gives them the gain of base).
        checkpoint_activations: Recompute the layers' activations in the backward pass.

    Raises:
        InputError: Sizes that do not divide.
    """

    def __init__(
        self,
        width: int = 768,
        num_layers: int = 12,
        num_heads: int = 12,
        ffn_width: int = 3072,
        vocab_size: int = 28996,
        text_positions: int = 512,
        feature_width: int = 2048,
        dropout: float = 0.1,
        tokenizer: str | None = "bert-base-cased",
        max_tokens: int | None = None,
        weights: str | None = None,
        init_std: float = 0.02,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        if width % num_heads:
            raise InputError(f"UNITER: width ({width}) must be a multiple of num_heads ({num_heads})")
        max_tokens = text_positions if max_tokens is None else max_tokens
        if max_tokens > text_positions:
            raise InputError(f"UNITER: max_tokens {max_tokens} exceeds its {text_positions} text positions")
        self.num_heads = num_heads
        self.weights = to_read(weights)
        self.encoder = Uniter(
            width, num_layers, num_heads, ffn_width, vocab_size, text_positions, feature_width, dropout, init_std
        )
        self.itm = nn.Linear(width, 2)
        self.rank = nn.Linear(width, 1)
        for head in (self.itm, self.rank):
            nn.init.normal_(head.weight, std=init_std)
            nn.init.zeros_(head.bias)
        self.inputs = Inputs(text=TextInput(tokenizer, max_tokens, vocab_size), regions=RegionInput(feature_width))
        self.loaded_heads: frozenset[str] = frozenset()  # heads that a checkpoint brought
        self.fresh = fresh_names(self, weights)
        refuse_until_read(self)
        if checkpoint_activations:
            checkpoint_blocks(self.encoder.layers)

    def rank_from_itm(self) -> None:
        """Start the ranking head from the matching head's row "matched", as the official `init_output` does."""
        with torch.no_grad():
            self.rank.weight.copy_(self.itm.weight[1:])
            self.rank.bias.copy_(self.itm.bias[1:])

    def embed_images(self, batch: ImageBatch) -> Ragged:
        """Embedded regions of every image.

        Raises:
            InputError: The batch carries no regions.
        """
        if batch.regions is None:
            raise InputError("UNITER needs region features, but the data module's images carry none; set its regions option")
        regions = batch.regions
        return self.encoder.embed_regions(regions.features_BRD, regions.boxes_BR7, regions.mask_BR)

    def embed_texts(self, batch: TextBatch) -> Ragged:
        """Embedded words of every caption."""
        return self.encoder.embed_texts(batch.tokens_BT, batch.mask_BT)

    def score_pairs(self, images: Ragged, texts: Ragged, image_P: Tensor, text_P: Tensor) -> Tensor:
        """Raw ranking scores [P] (fp32, no sigmoid) of the pairs (image_P[p], text_P[p])."""
        return self.score(pack(texts, images, text_P, image_P))[0]

    def score(self, packed: Packed, attention: Sequence[int] = ()) -> tuple[Tensor, Joint]:
        """Raw ranking scores [B] (fp32, no sigmoid) of packed pairs, and what the encoder gave for its first token."""
        joint = self.encoder(packed, pooled=True, attention=attention)
        # In fp32 whatever autocast says: eight bits of a bf16 score leave a gallery full of ties, which count as misses.
        with torch.autocast(joint.tokens_BSD.device.type, enabled=False):
            pooled_BD = self.encoder.pool(joint.tokens_BSD.to(self.rank.weight.dtype))
            return self.rank(pooled_BD).float().squeeze(-1), joint

    def score_related(self, images: Ragged, texts: Ragged, layers: Sequence[int]) -> tuple[Tensor, Relations]:
        """See `RankingNetwork`."""
        packed = pack(texts, images)
        scores_P, joint = self.score(packed, layers)
        return scores_P, items_of(packed, joint.attention)

    def relations(self, batch: PairBatch, layers: Sequence[int]) -> Relations:
        """Contract 4: attention of some layers (0-based) for every pair, and where its words and regions are."""
        packed = pack(self.embed_texts(batch.texts), self.embed_images(batch.images))
        return items_of(packed, self.encoder(packed, pooled=True, attention=layers).attention)

    def head_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """The ranking head and the matching head, with their names."""
        return ((name, p) for name, p in self.named_parameters() if name.startswith(("rank.", "itm.")))

    def unused_parameters(self) -> frozenset[str]:
        """The mask feature of pre-training and the matching head take no part in ranking."""
        return frozenset({"encoder.region_embed.mask_feature.weight", "itm.weight", "itm.bias"})

    def decayed_vectors(self) -> frozenset[str]:
        """Norm weights that the official recipe decays: its list of what to spare names only the norms called LayerNorm."""
        return frozenset(f"encoder.region_embed.{norm}.weight" for norm in ("feature_norm", "box_norm"))

    @property
    def num_layers(self) -> int:
        return len(self.encoder.layers)

    def layer_id(self, name: str) -> int:
        """Layer of a parameter for layer-wise decay: embeddings 0, layer i -> i + 1, pooler and heads last."""
        if "_embed." in name:
            return 0
        parts = name.split(".")
        return int(parts[parts.index("layers") + 1]) + 1 if "layers" in parts else self.num_layers + 1
