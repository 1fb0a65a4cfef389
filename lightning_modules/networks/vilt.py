"""ViLT (arXiv 2102.03334) as transformers has it: one ViT over the words of a caption and the patches of an image.

Library: `ViltForImageAndTextRetrieval` (transformers/models/vilt/modeling_vilt.py). Its weights are on the Hugging Face Hub.

    words    LN(word + type 0 + position) + modality 0
    patches  [CLS], conv patches + positions resampled to the image's rows and columns, + modality 1
    layer    h = x + Out(attention(LN(x)));   y = h + Fc2(GELU(Fc1(LN(h))))
    score    Linear(tanh(Linear(LN(y[CLS of the words]))))

The library shuffles patches, and fills shorter images up with padding that it draws at random. Attention does not know the order
of its keys, and padding is masked: here patches stay row by row, nothing is padded, and the scores are the same. With
`max_image_length` above 0 the library also leaves patches out at random, in evaluation too, so that no score can be had
twice; here they are left out in training only.

Legend: B images, texts or pairs, T text tokens, H/W pixels, R rows and C columns of patches, P all patches, S tokens of the
packed sequence, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datamodules.errors import InputError
from datamodules.inputs import ImageInput, Inputs, TextInput
from datamodules.records import ImageBatch, PairBatch, TextBatch
from lightning_modules.networks.attention import Attended, Relations, attend
from lightning_modules.networks.checkpointing import checkpoint_blocks
from lightning_modules.networks.hugging_face_scorer import HuggingFaceScorer
from lightning_modules.networks.mixed import mixed
from lightning_modules.networks.network import pixels_of
from lightning_modules.networks.packing import Packed, items_of, pack
from lightning_modules.networks.pair_scorer import Ragged
from lightning_modules.networks.towers.base import NORMALIZATIONS, triple
from lightning_modules.networks.towers.hugging_face import expanded, stored_normalization

WORDS, PATCHES = 0, 1  # rows of the modality table
_SPECIAL = 1  # tokens of an image before its patches: [CLS]


class _Fused:
    """Mixed in before the library's layer: same parameters, same keys, same outputs, but attention is fused, and its queries and
    keys are given on request. (The library's own forms the whole map, always.)"""

    def forward(
        self, x_BSD: Tensor, mask_BS: Tensor | None, want_attention: bool = False, pooled: bool = False
    ) -> tuple[Tensor, Attended | None]:
        """All tokens, or with `pooled` only the first: what the last layer owes the score."""
        layer: Any = self
        attention = layer.attention.attention
        normed_BSD = layer.layernorm_before(x_BSD)

        def heads(states_BSD: Tensor) -> Tensor:
            return states_BSD.unflatten(-1, (attention.num_attention_heads, -1)).transpose(1, 2)

        asking_BSD = normed_BSD[:, :1] if pooled and not want_attention else normed_BSD
        queries, keys, values = (
            heads(linear(states))
            for linear, states in (
                (attention.query, asking_BSD), (attention.key, normed_BSD), (attention.value, normed_BSD)
            )
        )  # fmt: skip
        access = Attended(queries, keys, mask_BS) if want_attention else None
        if pooled:
            x_BSD, queries = x_BSD[:, :1], queries[:, :, :1]
        context = attend(queries, keys, values, mask_BS, attention.dropout.p if attention.training else 0.0)
        x_BSD = layer.attention.output(context, x_BSD) + x_BSD
        return layer.output(layer.intermediate(layer.layernorm_after(x_BSD)), x_BSD), access


class ViLT(HuggingFaceScorer):
    """ViLT with its ranking head. The published ones are base: 111,595,777 parameters.

    By name: dandelin/vilt-b32-finetuned-coco and dandelin/vilt-b32-finetuned-flickr30k have a ranking head. Of the pre-training,
    dandelin/vilt-b32-mlm, the library has no matching head, from which the paper starts the ranking head: here it starts random.

    Args:
        name: Hub name or local folder, weights included.
        config: Instead of `name`: options of the library's ViltConfig, {hidden_size: 96, num_hidden_layers: 3, ...}.
        weights: With `config`: a file with exactly the library's keys, or a ViT of timm's with the same sizes, from which ViLT
            itself was started: words, pooler and head stay random then. random = random on purpose; null = random, to be trained
            or brought by init_from. Read by `checkpoints.fill`.
        tokenizer: Hugging Face name or folder of a BERT tokenizer; null = `name`.
        max_tokens: Tokens of a caption, [CLS] and [SEP] included; longer ones are cut. Null = as many as there are positions.
        image_size: Shorter side of an image in pixels. Null = the configuration's (384).
        resize: keep = the aspect ratio is kept, as published: the longer side is at most 1333/800 of the shorter one (639 of
            384), and both are rounded down to whole patches. squash = a square of `image_size`, the simple reading: all images
            have equally many patches.
        mean: Normalization mean of RGB in [0, 1]. Null = that of the folder's preprocessor_config.json, or 0.5.
        std: Normalization standard deviation, likewise.
        checkpoint_activations: Recompute the layers' activations in the backward pass.

    Raises:
        InputError: Nothing to build, weights that do not fit, no tokenizer, or sizes that the model cannot have.
    """

    model: Any
    heads = ("rank_output.",)  # of one output

    def __init__(
        self,
        name: str | None = None,
        config: dict[str, Any] | None = None,
        weights: str | None = None,
        tokenizer: str | None = None,
        max_tokens: int | None = None,
        image_size: int | None = None,
        resize: Literal["keep", "squash"] = "keep",
        mean: list[float] | None = None,
        std: list[float] | None = None,
        checkpoint_activations: bool = False,
    ) -> None:
        from transformers import ViltForImageAndTextRetrieval

        super().__init__()
        settings = self._build(ViltForImageAndTextRetrieval, name, config, weights, "logit")
        where, self.patch = f"ViLT {name or 'by config'}", settings.patch_size
        if not isinstance(settings.image_size, int) or not isinstance(self.patch, int):
            raise InputError(
                f"{where}: image_size and patch_size of its configuration must be one number each, the side of a square"
            )
        size = image_size or settings.image_size
        if size % self.patch or settings.image_size % self.patch:
            raise InputError(f"{where}: image_size {size} must be a multiple of its patches' {self.patch}")
        if name is None and tokenizer is None:
            raise InputError(f"{where}: tokenizer is missing (a Hugging Face name or folder); it is needed with config")
        positions = settings.max_position_embeddings
        max_tokens = positions if max_tokens is None else max_tokens
        if max_tokens > positions:
            raise InputError(f"{where}: max_tokens {max_tokens} exceeds its {positions} text positions")
        half = NORMALIZATIONS["half"]
        stored = half if name is None else stored_normalization(name, *half)
        self.inputs = Inputs(
            image=ImageInput(
                size=size,
                mean=triple(mean, stored[0], "mean"),
                std=triple(std, stored[1], "std"),
                resize=resize,
                longest=int(1333 / 800 * size) if resize == "keep" else None,
                patch=self.patch,
            ),
            text=TextInput(tokenizer or expanded(name), max_tokens, settings.vocab_size),
            ranking=True,
        )
        for layer in self.blocks:
            layer.__class__ = mixed("Fused", _Fused, type(layer))
        if checkpoint_activations:
            checkpoint_blocks(self.blocks)

    @property
    def blocks(self) -> list[nn.Module]:
        """The layers, from input to output."""
        return list(self.model.vilt.encoder.layer)

    # ------------------------------------------------------------------------------------------------------ embedding

    def embed_images(self, batch: ImageBatch) -> Ragged:
        """[CLS] and the patches of every image, row by row.

        Raises:
            InputError: The batch carries no pixels.
        """
        pixels_B3HW = pixels_of(batch, "ViLT needs", "leave its regions option out")
        embed, sizes_B2 = self.model.vilt.embeddings, batch.sizes_B2
        x_BDRC = embed.patch_embeddings(pixels_B3HW)
        rows, columns = x_BDRC.shape[2:]
        if sizes_B2 is None:
            real_BRC = torch.ones(len(pixels_B3HW), rows, columns, dtype=torch.bool, device=x_BDRC.device)
            x_BDRC = x_BDRC + self._positions(rows, columns)
        else:
            grid_B2 = sizes_B2.to(x_BDRC.device) // self.patch
            place_R, place_C = (torch.arange(count, device=x_BDRC.device) for count in (rows, columns))
            real_BRC = (place_R < grid_B2[:, :1])[:, :, None] & (place_C < grid_B2[:, 1:])[:, None]
            kinds, kind_B = grid_B2.unique(dim=0, return_inverse=True)
            positions = [
                F.pad(self._positions(height, width), (0, columns - width, 0, rows - height)) for height, width in kinds.tolist()
            ]
            x_BDRC = x_BDRC + torch.cat(positions)[kind_B]
        real_BP = self._sampled(real_BRC.flatten(1))
        cls_11D = embed.cls_token + embed.position_embeddings[:, :1]
        x_BPD = torch.cat([cls_11D.expand(len(x_BDRC), -1, -1), x_BDRC.flatten(2).transpose(1, 2)], 1)
        real_BP = F.pad(real_BP, (_SPECIAL, 0), value=True)
        return Ragged.of(embed.dropout(x_BPD) + embed.token_type_embeddings.weight[PATCHES], real_BP)

    def _positions(self, rows: int, columns: int) -> Tensor:
        """[1, D, rows, columns]: the position table, resampled."""
        embed = self.model.vilt.embeddings
        side = self.model.config.image_size // self.patch
        table_1DRC = embed.position_embeddings[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        return F.interpolate(table_1DRC, (rows, columns), mode="bilinear", align_corners=True)

    def _sampled(self, real_BP: Tensor) -> Tensor:
        """Which patches are read: in training, where the configuration has a `max_image_length`, so many at random."""
        most = self.model.config.max_image_length
        if not self.training or most < 1 or most >= real_BP.shape[1]:
            return real_BP
        draw_BP = torch.rand(real_BP.shape, device=real_BP.device).masked_fill(~real_BP, 2.0)
        return real_BP & (draw_BP.argsort(1).argsort(1) < most)

    def embed_texts(self, batch: TextBatch) -> Ragged:
        """Embedded words of every caption.

        Raises:
            InputError: More tokens than there are positions.
        """
        positions = self.model.config.max_position_embeddings
        if batch.tokens_BT.shape[1] > positions:
            raise InputError(f"ViLT has {positions} text positions, got {batch.tokens_BT.shape[1]} tokens; lower max_tokens")
        embed = self.model.vilt.embeddings
        x_BTD = embed.text_embeddings(input_ids=batch.tokens_BT) + embed.token_type_embeddings.weight[WORDS]
        return Ragged.of(x_BTD, batch.mask_BT)

    # -------------------------------------------------------------------------------------------------------- scoring

    def encode(
        self, packed: Packed, *, pooled: bool = False, attention: Sequence[int] = ()
    ) -> tuple[Tensor, dict[int, Attended]]:
        """Run the layers.

        Args:
            packed: From `pack`, words first.
            pooled: Give only the first token, and do not compute in the last layer what only the others need.
            attention: Layers (0-based) whose queries and keys are wanted.

        Returns:
            Output of the last layer [B, S or 1, D], before the final LayerNorm, and the queries and keys.

        Raises:
            InputError: A layer that does not exist.
        """
        last = self.num_layers - 1
        if wrong := [i for i in attention if not 0 <= i <= last]:
            raise InputError(f"attention of layers {wrong} was asked for, but this ViLT has layers 0 to {last}")
        x_BSD, access = packed.x_BSD, {}
        for i, layer in enumerate(self.blocks):
            x_BSD, seen = layer(x_BSD, packed.mask_BS, i in attention, pooled and i == last)
            if seen is not None:
                access[i] = seen
        return x_BSD, access

    def score_packed(self, packed: Packed, attention: Sequence[int] = ()) -> tuple[Tensor, dict[int, Attended]]:
        """Raw ranking scores [B] (fp32) of packed pairs, and the queries and keys of some layers."""
        first_B1D, access = self.encode(packed, pooled=True, attention=attention)
        # In fp32 whatever autocast says: eight bits of a bf16 score leave a gallery full of ties, which count as misses.
        with torch.autocast(first_B1D.device.type, enabled=False):
            head = self.model.rank_output
            normed_B1D = self.model.vilt.layernorm(first_B1D.to(head.weight.dtype))
            return head(self.model.vilt.pooler(normed_B1D)).float().squeeze(-1), access

    def score_pairs(self, images: Ragged, texts: Ragged, image_P: Tensor, text_P: Tensor) -> Tensor:
        """Raw ranking scores [P] (fp32) of the pairs (image_P[p], text_P[p])."""
        return self.score_packed(pack(texts, images, text_P, image_P))[0]

    def score_related(self, images: Ragged, texts: Ragged, layers: Sequence[int]) -> tuple[Tensor, Relations]:
        """See `RankingNetwork`."""
        packed = pack(texts, images)
        scores_P, access = self.score_packed(packed, layers)
        return scores_P, items_of(packed, access, special=_SPECIAL)

    def relations(self, batch: PairBatch, layers: Sequence[int]) -> Relations:
        """Contract 4: attention of some layers (0-based) for every pair, and where its words and patches are."""
        packed = pack(self.embed_texts(batch.texts), self.embed_images(batch.images))
        return items_of(packed, self.encode(packed, pooled=True, attention=layers)[1], special=_SPECIAL)

    # --------------------------------------------------------------------------------------------------------- tuning

    @property
    def num_layers(self) -> int:
        return len(self.model.vilt.encoder.layer)

    def layer_id(self, name: str) -> int:
        """Layer of a parameter for layer-wise decay: embeddings 0, layer i -> i + 1, last norm, pooler and head last."""
        if name.startswith("model.vilt.embeddings."):
            return 0
        parts = name.split(".")
        return int(parts[parts.index("layer") + 1]) + 1 if "layer" in parts else self.num_layers + 1
