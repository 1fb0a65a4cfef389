"""BEiT-3 (arXiv 2208.10442) as the released code computes it: one self-attention, everything else twice, once a modality.

Official files: unilm `beit3/modeling_finetune.py` (the retrieval model), torchscale 0.2.0 `model/BEiT3.py`,
`architecture/encoder.py`. Where the papers draw a self-attention shared by the modalities, the released model shares only the
operation: each modality has its own query, key, value and output weights (222 M parameters are reached no other way).

A layer, for a token of modality m (pre-norm, with Magneto's sub-LN inside both branches):

    x' = x  + drop_path(Out_m(LN_m(attention(QKV_m(LN_m(x))))))
    y  = x' + drop_path(Fc2_m(LN_m(GELU(Fc1_m(LN_m(x'))))))

Legend: B batch, T tokens, D width, H/W pixels. Image tokens come first in fused input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter

from datamodules.errors import InputError
from datamodules.inputs import ImageInput, Inputs, TextInput
from datamodules.records import ImageBatch, PairBatch, TextBatch
from lightning_modules.networks.attention import Attended, Items, Relations, attend
from lightning_modules.networks.checkpointing import checkpoint_blocks
from lightning_modules.networks.network import RetrievalNetwork, pixels_of
from lightning_modules.networks.start import fresh_names, refuse_until_read, to_read

Side = Literal["image", "text"]
Start = Literal["official", "scratch"]
UNUSED_POSITIONS = 2  # both official position tables count from 2 (a fairseq habit); rows 0 and 1 are never read
HEADS = ("image_head.", "text_head.", "logit_scale")


@dataclass(frozen=True)
class Encoded:
    """What the encoder gives.

    Args:
        tokens_BTD: Output after the final norm; T = 1 (the first token) if only the pooled token was asked for.
        image_tokens: How many of the input tokens are image tokens (class token and patches).
        mask_BT: bool over the input tokens, True = real; None = all are.
        hidden: On request: input of layer 0, then the output of every layer (before the final norm).
        attention: On request: queries and keys by layer index.
    """

    tokens_BTD: Tensor
    image_tokens: int
    mask_BT: Tensor | None
    hidden: tuple[Tensor, ...]
    attention: dict[int, Attended]


def by_side(image_tokens: int, function: Callable[..., Tensor], *parts_BTD: Tensor) -> Tensor:
    """`function(side, *parts)` on the image tokens and on the text tokens apart; uncut when there is only one modality."""
    tokens = parts_BTD[0].shape[1]
    if image_tokens == tokens:
        return function("image", *parts_BTD)
    if image_tokens == 0:
        return function("text", *parts_BTD)
    image = function("image", *(part[:, :image_tokens] for part in parts_BTD))
    return torch.cat([image, function("text", *(part[:, image_tokens:] for part in parts_BTD))], dim=1)


def draw_weight(weight: Tensor) -> None:
    """The official start of every linear map, in place: N(0, .02) cut at one sigma (`trunc_normal_(std=.02, a=-.02, b=.02)`).

    Drawn through the inverse of the distribution function: `nn.init.trunc_normal_` rejects and redraws, 20 times as slow, which
    for base is a quarter of a minute on a processor.
    """
    if weight.is_meta:  # there, all this is slow Python that draws nothing
        return
    bound = math.erf(1 / math.sqrt(2))
    with torch.no_grad():
        weight.uniform_(-bound, bound).erfinv_().mul_(0.02 * math.sqrt(2)).clamp_(-0.02, 0.02)


class DropPath(nn.Module):
    """Stochastic depth: in training, a sample loses a whole branch with this probability; what stays is scaled up."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor, branch: Callable[[Tensor | None], Tensor], dense: bool = False) -> Tensor:
        """`x` + the branch of the samples that keep it, computed for these only.

        Args:
            x: Residual stream, a sample a row.
            branch: Computes the branch of some rows (int64), or of all (None).
            dense: Compute the branch of every sample, and drop after. So it is under torch.compile, which wants one shape.
        """
        if not self.training or self.probability == 0:
            return x + branch(None)
        keep = 1 - self.probability
        # drawn on the CPU, so that a GPU is not waited for to learn how many rows there are
        kept_B = torch.rand(len(x), device="cpu") < keep
        if dense or torch.compiler.is_compiling() or not kept_B.any():  # none left: DDP must see zero gradients, not none
            return x + branch(None) * (kept_B / keep).to(x).reshape(-1, *[1] * (x.ndim - 1))
        rows = kept_B.nonzero().squeeze(1).to(x.device, non_blocking=True)
        return x.index_add(0, rows, branch(rows).to(x.dtype), alpha=1 / keep)


def some_rows(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else x[rows]


class Expert(nn.Module):
    """One modality's weights of a layer (official: `A` = image, `B` = text)."""

    def __init__(self, width: int, ffn_width: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)  # one product instead of three
        self.inner_norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, width)
        self.ffn_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, ffn_width)
        self.sub_norm = nn.LayerNorm(ffn_width)
        self.fc2 = nn.Linear(ffn_width, width)

    def project(self, x_BTD: Tensor) -> Tensor:
        """Queries, keys and values side by side, [B, T, 3 D]."""
        return self.qkv(self.attention_norm(x_BTD))

    def merge(self, context_BTD: Tensor) -> Tensor:
        return self.out(self.inner_norm(context_BTD))

    def feed_forward(self, x_BTD: Tensor) -> Tensor:
        return self.fc2(self.sub_norm(F.gelu(self.fc1(self.ffn_norm(x_BTD)))))


class Layer(nn.Module):
    """One multiway layer. An adapter may put a module `multiway` into it, called as `multiway(side, x', y, drop_path)`."""

    multiway: nn.Module | None

    def __init__(self, width: int, num_heads: int, ffn_width: int, drop_path: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.image = Expert(width, ffn_width)
        self.text = Expert(width, ffn_width)
        self.drop_path = DropPath(drop_path)
        self.multiway = None

    def forward(
        self,
        x_BTD: Tensor,
        image_tokens: int,
        mask_BT: Tensor | None = None,
        pooled: bool = False,
        want_attention: bool = False,
    ) -> tuple[Tensor, Attended | None]:
        """All tokens, or with `pooled` only the first one: what the last layer owes a retrieval head."""
        seen: list[Attended] = []
        left = min(image_tokens, 1) if pooled else image_tokens  # image tokens among those that the layer gives

        def attention(rows: Tensor | None) -> Tensor:
            mask = None if mask_BT is None else some_rows(mask_BT, rows)
            qkv = by_side(image_tokens, lambda side, x: self._expert(side).project(x), some_rows(x_BTD, rows))
            # unbound before it is transposed: the three gradients then stack up in the layout of qkv, without another copy
            queries, keys, values = (part.transpose(1, 2) for part in qkv.unflatten(-1, (3, self.num_heads, -1)).unbind(2))
            if want_attention:
                seen.append(Attended(queries, keys, mask))
            context = attend(queries[:, :, :1] if pooled else queries, keys, values, mask)
            return by_side(left, lambda side, x: self._expert(side).merge(x), context)

        x = self.drop_path(x_BTD[:, :1] if pooled else x_BTD, attention, dense=want_attention)
        y = self.drop_path(
            x, lambda rows: by_side(left, lambda side, part: self._expert(side).feed_forward(part), some_rows(x, rows))
        )
        if self.multiway is not None:
            adapt = self.multiway
            y = by_side(left, lambda side, before, after: adapt(side, before, after, self.drop_path), x, y)
        return y, seen[0] if seen else None

    def _expert(self, side: Side) -> Expert:
        return self.image if side == "image" else self.text


class ImageEmbedding(nn.Module):
    """[B, 3, H, W] -> [B, 1 + patches, D]: class token and patches, with positions."""

    def __init__(self, width: int, image_size: int, patch_size: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.patches = nn.Conv2d(3, width, patch_size, patch_size)
        self.cls_token = Parameter(torch.zeros(1, 1, width))
        self.mask_token = Parameter(torch.zeros(1, 1, width))  # of masked pre-training; kept because checkpoints have it
        self.positions = Parameter(torch.empty(UNUSED_POSITIONS + 1 + (image_size // patch_size) ** 2, width))

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        if pixels_B3HW.shape[2:] != (self.image_size, self.image_size):
            raise InputError(
                f"BEiT-3 was built for images of {self.image_size} px, got {tuple(pixels_B3HW.shape[2:])}; set image_size of "
                "the network (its positions are interpolated when a checkpoint is loaded)"
            )
        patches_BND = self.patches(pixels_B3HW.to(self.patches.weight.dtype)).flatten(2).transpose(1, 2)
        tokens_BTD = torch.cat([self.cls_token.to(patches_BND.dtype).expand(len(patches_BND), -1, -1), patches_BND], dim=1)
        return tokens_BTD + self.positions[UNUSED_POSITIONS:]


class TextEmbedding(nn.Module):
    """[B, T] ids -> [B, T, D], with positions; padded positions are zero."""

    def __init__(self, width: int, vocab_size: int, positions: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = Parameter(torch.empty(positions, width))

    def forward(self, tokens_BT: Tensor, mask_BT: Tensor | None) -> Tensor:
        length, most = tokens_BT.shape[1], len(self.positions) - UNUSED_POSITIONS
        if length > most:
            raise InputError(f"BEiT-3 has positions for {most} text tokens, got {length}; lower max_tokens")
        try:
            embedded_BTD = self.tokens(tokens_BT)
        except IndexError as error:  # on the CPU; looking at the ids first would make a GPU wait for them at every step
            raise InputError(
                f"BEiT-3: token ids from {int(tokens_BT.min())} to {int(tokens_BT.max())}, but its vocabulary has rows 0 to "
                f"{len(self.tokens.weight) - 1}; use the tokenizer that fits the network, or set its vocab_size"
            ) from error
        x_BTD = embedded_BTD + self.positions[UNUSED_POSITIONS : UNUSED_POSITIONS + length]
        return x_BTD if mask_BT is None else x_BTD * mask_BT.unsqueeze(-1)


class BEiT3(nn.Module):
    """The encoder: images, texts, or both together.

    Args:
        width: Width of the residual stream.
        num_layers: Layers.
        num_heads: Attention heads.
        ffn_width: Width inside the FFN.
        image_size: Side of the square image in pixels.
        patch_size: Side of a patch in pixels.
        vocab_size: Rows of the token table.
        text_positions: Rows of the text position table (two of them are never read).
        drop_path: Stochastic depth of the last layer; it grows linearly from 0 at the first.
        init: Random start, see BEiT3Retrieval.
    """

    def __init__(
        self,
        width: int,
        num_layers: int,
        num_heads: int,
        ffn_width: int,
        image_size: int,
        patch_size: int,
        vocab_size: int,
        text_positions: int,
        drop_path: float,
        init: Start = "official",
    ) -> None:
        super().__init__()
        self.image_embed = ImageEmbedding(width, image_size, patch_size)
        self.text_embed = TextEmbedding(width, vocab_size, text_positions)
        rates = [drop_path * i / max(num_layers - 1, 1) for i in range(num_layers)]
        self.layers = nn.ModuleList(Layer(width, num_heads, ffn_width, rate) for rate in rates)
        self.norm = nn.ModuleDict({"image": nn.LayerNorm(width), "text": nn.LayerNorm(width)})
        self.reset_parameters(init)

    def reset_parameters(self, init: Start = "official") -> None:
        """Random weights. torchscale's sub-LN gains are overwritten by the official `_init_weights`, so they are not here."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                if init == "official":
                    draw_weight(module.weight)
                else:
                    nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.text_embed.tokens.weight, std=self.text_embed.tokens.embedding_dim**-0.5)
        for positions in (self.image_embed.positions, self.text_embed.positions):
            nn.init.normal_(positions, std=1.0 if init == "official" else 0.02)

    def forward(
        self,
        pixels_B3HW: Tensor | None = None,
        tokens_BT: Tensor | None = None,
        mask_BT: Tensor | None = None,
        *,
        pooled: bool = False,
        hidden: bool = False,
        attention: Sequence[int] = (),
    ) -> Encoded:
        """Encode images, texts, or images with texts (one sequence, image tokens first).

        Args:
            pixels_B3HW: Normalized images.
            tokens_BT: Token ids.
            mask_BT: bool, True = a real token; None = all are.
            pooled: Give only the first token's output, and do not compute in the last layer what only the others need.
            hidden: Also give every layer's input and output.
            attention: Layers (0-based) whose queries and keys are wanted.

        Raises:
            InputError: No input, an image of another size, too many tokens, or a layer that does not exist.
        """
        if wrong := [i for i in attention if not 0 <= i < len(self.layers)]:
            raise InputError(f"attention of layers {wrong} was asked for, but BEiT-3 here has layers 0 to {len(self.layers) - 1}")
        x_BTD, image_tokens, mask = self._embed(pixels_B3HW, tokens_BT, mask_BT)
        states, access = [x_BTD] if hidden else [], {}
        for i, layer in enumerate(self.layers):
            last = pooled and i == len(self.layers) - 1
            x_BTD, seen = layer(x_BTD, image_tokens, mask, last, i in attention)
            if hidden:
                states.append(x_BTD)
            if seen is not None:
                access[i] = seen
        if pooled:
            x_BTD = x_BTD[:, :1]
        out = by_side(min(image_tokens, x_BTD.shape[1]), lambda side, part: self.norm[side](part), x_BTD)
        return Encoded(out, image_tokens, mask, tuple(states), access)

    def _embed(
        self, pixels_B3HW: Tensor | None, tokens_BT: Tensor | None, mask_BT: Tensor | None
    ) -> tuple[Tensor, int, Tensor | None]:
        if pixels_B3HW is None and tokens_BT is None:
            raise InputError("BEiT-3 needs an image, a text or both")
        images = None if pixels_B3HW is None else self.image_embed(pixels_B3HW)
        if tokens_BT is None:
            assert images is not None
            return images, images.shape[1], None
        texts = self.text_embed(tokens_BT, mask_BT)
        if images is None:
            return texts, 0, mask_BT
        both = torch.cat([images, texts], dim=1)
        mask = None if mask_BT is None else torch.cat([mask_BT.new_ones(images.shape[:2]), mask_BT], dim=1)
        return both, images.shape[1], mask


def without_padding(tokens_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Without the columns that are padding in every caption: batches of the official data set are always 64 wide."""
    if mask_BT.is_meta:  # nobody knows what is padding
        return tokens_BT, mask_BT
    last_T = mask_BT.any(0) * torch.arange(1, mask_BT.shape[1] + 1, device=mask_BT.device)
    length = max(int(last_T.max()), 1)
    return tokens_BT[:, :length], mask_BT[:, :length]


class BEiT3Retrieval(RetrievalNetwork):
    """BEiT-3 as two encoders: an image pass and a text pass, each with a linear head on its first token.

    The defaults are base at 384 px, 222,458,881 parameters; large is 24 layers of width 1024 with 16 heads and FFN 4096.

    Args:
        image_size: Side of the square image in pixels.
        width: Width of the residual stream.
        num_layers: Layers.
        num_heads: Attention heads.
        ffn_width: Width inside the FFN.
        patch_size: Side of a patch in pixels.
        vocab_size: Rows of the token table.
        text_positions: Rows of the text position table (two of them are never read).
        tokenizer: BEiT-3's sentencepiece file (beit3.spm), or a Hugging Face name or folder; it must fit the checkpoint.
        max_tokens: Tokens of a caption, <s> and </s> included; longer ones are cut.
        drop_path: Stochastic depth of the last layer, from 0 at the first.
        weights: An official checkpoint (.pth) by path or by name, or such a file as safetensors; null = random. Positions
            are interpolated when it was made for another image size. Read by `checkpoints.fill`; until then the encoder is on
            the meta device and computes nothing. random = random weights on purpose; null asks for training, or init_from.
        checkpoint_activations: Recompute the layers' activations in the backward pass: less memory, about a third more compute.
        init: Random start. official = the released one: positions N(0, 1), linear layers within +-.02; made for checkpoints to
            be loaded over it. A small model trained from it by a contrastive loss alone gives every input the same vector.
            scratch = positions N(0, .02), linear layers of the encoder Xavier-uniform, which trains.

    Raises:
        InputError: Sizes that do not divide.
    """

    def __init__(
        self,
        image_size: int = 384,
        width: int = 768,
        num_layers: int = 12,
        num_heads: int = 12,
        ffn_width: int = 3072,
        patch_size: int = 16,
        vocab_size: int = 64010,
        text_positions: int = 1024,
        tokenizer: str = "beit3.spm",
        max_tokens: int = 64,
        drop_path: float = 0.0,
        weights: str | None = None,
        checkpoint_activations: bool = False,
        init: Start = "official",
    ) -> None:
        super().__init__()
        sizes = (image_size, width, num_layers, num_heads, ffn_width, patch_size, vocab_size, text_positions)
        if min(sizes) < 1:
            raise InputError(f"BEiT-3: every size must be 1 or more, got {sizes}")
        if image_size % patch_size or width % num_heads:
            raise InputError(
                f"BEiT-3: image_size ({image_size}) must be a multiple of patch_size ({patch_size}), and width ({width}) of "
                f"num_heads ({num_heads})"
            )
        if not 0 <= drop_path < 1:
            raise InputError(f"BEiT-3: drop_path is {drop_path}; give a probability, 0 <= x < 1")
        if max_tokens > text_positions - UNUSED_POSITIONS:
            raise InputError(f"BEiT-3: max_tokens {max_tokens} exceeds its {text_positions - UNUSED_POSITIONS} text positions")
        self.weights = to_read(weights)
        # A checkpoint fills the whole encoder or is refused: drawing random weights first would only take time (large: seconds).
        with torch.device("meta") if self.weights is not None else nullcontext():
            self.encoder = BEiT3(
                width, num_layers, num_heads, ffn_width, image_size, patch_size, vocab_size, text_positions, drop_path, init
            )
        self.image_head = nn.Linear(width, width, bias=False)
        self.text_head = nn.Linear(width, width, bias=False)
        for head in (self.image_head, self.text_head):
            draw_weight(head.weight)
        self.logit_scale = Parameter(torch.tensor(math.log(1 / 0.07)))
        half = (0.5, 0.5, 0.5)
        self.inputs = Inputs(
            image=ImageInput(image_size, half, half, resize="squash"),
            text=TextInput(tokenizer, max_tokens, vocab_size),
        )
        self.loaded_heads: frozenset[str] = frozenset()  # heads that a checkpoint brought: an adapter run leaves them frozen
        self.fresh = fresh_names(self, weights)
        refuse_until_read(self)
        if checkpoint_activations:
            checkpoint_blocks(self.encoder.layers)

    def encode_images(self, batch: ImageBatch) -> Tensor:
        """Unit vectors [B, D] in fp32.

        Raises:
            InputError: The batch carries no pixels, or pixels of another size.
        """
        pooled_BD = self.encoder(pixels_of(batch, "BEiT-3 needs"), pooled=True).tokens_BTD[:, 0]
        return F.normalize(self.image_head(pooled_BD).float(), dim=-1)

    def encode_texts(self, batch: TextBatch) -> Tensor:
        """Unit vectors [B, D] in fp32."""
        tokens_BT, mask_BT = without_padding(batch.tokens_BT, batch.mask_BT)
        pooled_BD = self.encoder(None, tokens_BT, mask_BT, pooled=True).tokens_BTD[:, 0]
        return F.normalize(self.text_head(pooled_BD).float(), dim=-1)

    def relations(self, batch: PairBatch, layers: Sequence[int]) -> Relations:
        """Contract 4, by a pass over image and text together: what IAIS aligns. Regions are the patches, words the tokens between
        <s> and </s>.

        Raises:
            InputError: The batch carries no pixels, or a layer that does not exist.
        """
        pixels_B3HW = pixels_of(batch.images, "BEiT-3 needs")
        tokens_BT, mask_BT = without_padding(batch.texts.tokens_BT, batch.texts.mask_BT)
        encoded = self.encoder(pixels_B3HW, tokens_BT, mask_BT, pooled=True, attention=layers)
        device, rows = tokens_BT.device, len(tokens_BT)
        # the sequence is <image> patches <s> words </s>
        patches = encoded.image_tokens - 1
        place_R = 1 + torch.arange(patches, device=device)
        regions = Items(place_R.expand(rows, -1), torch.ones(rows, patches, dtype=torch.bool, device=device))
        place_W = torch.arange(1, max(tokens_BT.shape[1] - 1, 2), device=device)
        content_BW = place_W < mask_BT.sum(1, keepdim=True) - 1
        end = encoded.image_tokens + tokens_BT.shape[1] - 1
        words = Items((encoded.image_tokens + place_W).clamp_max(end).expand(rows, -1), content_BW)
        return Relations(encoded.attention, words, regions)

    def head_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Both heads and the temperature, with their names: what a plain pre-training checkpoint does not bring."""
        return ((name, parameter) for name, parameter in self.named_parameters() if name.startswith(HEADS))

    def unused_parameters(self) -> frozenset[str]:
        """The mask token of masked pre-training: it takes no part in retrieval."""
        return frozenset({"encoder.image_embed.mask_token"})

    def no_decay_parameters(self) -> frozenset[str]:
        """Matrices that the official recipe spares from weight decay, besides all vectors (`no_weight_decay`)."""
        return frozenset({"encoder.image_embed.positions", "encoder.image_embed.cls_token"})

    def compile_encoders(self, backend: str = "inductor") -> None:
        """`torch.compile` the encoder in place (keys stay as they are). Inject adapters before."""
        self.encoder.compile(backend=backend)

    @property
    def num_layers(self) -> int:
        return len(self.encoder.layers)

    def layer_id(self, name: str) -> int:
        """Layer of a parameter for layer-wise decay: embeddings 0, layer i -> i + 1 (its adapters too), norm and heads last.

        Source: unilm `beit3/optim_factory.py`, `get_num_layer_for_vit`.
        """
        if "_embed." in name:
            return 0
        parts = name.split(".")
        return int(parts[parts.index("layers") + 1]) + 1 if "layers" in parts else self.num_layers + 1
