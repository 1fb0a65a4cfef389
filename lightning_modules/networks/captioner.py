"""A frozen vision tower, a frozen causal language model, and a place for what connects them (I-Tuning or ClipCap).

The captioner is one network without either: `ITuning` puts `i_tuning` beside the language model's FFNs, `ClipCap` puts `prefix`
before its text. What both share is here: each image is encoded once (`encode_images`), all its captions
or beams refer to it by its row.

    row of text = what leads in | caption [eos]           leads in: [bos] prompt, or for ClipCap prefix, prompt

Legend: I images, V visual tokens, D visual width, B captions, T tokens of a caption (end token included), L tokens that lead in,
N tokens that are scored, W width of the language model's embeddings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter

from datamodules.errors import InputError
from datamodules.inputs import Inputs
from datamodules.records import ImageBatch, TextBatch
from lightning_modules.networks.checkpointing import checkpoint_blocks
from lightning_modules.networks.decoder_layers import find_language_model
from lightning_modules.networks.language_model import Decoding, LanguageModel
from lightning_modules.networks.network import Network, pixels_of
from lightning_modules.networks.random_state import drawing
from lightning_modules.networks.towers.base import ImageTower

Visual = Literal["tokens", "patches", "pooled"]


@dataclass(frozen=True)
class VisualFeatures:
    """What the vision tower made of images, each once: tokens [I, V, D]. Without a graph when the tower is frozen, so they may
    come from a cache as well."""

    tokens_IVD: Tensor

    def __len__(self) -> int:
        return len(self.tokens_IVD)


@dataclass(frozen=True)
class Written:
    """A caption.

    Args:
        text: As people read it.
        ids: Its tokens, as `generate_ids` gives them.
        log_prob: log P(its tokens and, where it ended, its end | image): natural, of the model itself, whatever a search or a
            temperature made of it.
        ended: Whether it ended by itself, and not because it may be no longer.
    """

    text: str
    ids: tuple[int, ...]
    log_prob: float
    ended: bool


class CrossAttention(Protocol):
    """What modules have to offer that let the language model attend to images (I-Tuning's)."""

    @property
    def layers(self) -> list[int]:
        """Layers of the language model (0-based) that have a module, in order."""
        ...

    @property
    def num_heads(self) -> int:
        """Heads of each module."""
        ...

    def set_images(self, tokens_IVD: Tensor, image_row_B: Tensor | None = None) -> None:
        """Attend to these images from now on; None = rows of text are the images' in order, equally many an image."""
        ...

    def clear_images(self) -> None:
        """Attend to none: the language model is the plain one."""
        ...

    def keep_maps(self, layers: Sequence[int] | None = None) -> AbstractContextManager[dict[int, list[Tensor]]]:
        """While inside, keep maps: one [B, T, H, V] (fp32) a call of the language model, by layer (None = all)."""
        ...


class PrefixMapper(Protocol):
    """What a module has to offer that makes a prefix of an image (ClipCap's)."""

    def __call__(self, tokens_IVD: Tensor) -> Tensor:
        """Embeddings [I, K, W] that lead in."""
        ...


class Captioner(Network):
    """A vision tower that yields tokens beside a causal language model.

    Args:
        vision: The vision tower: Hugging Face's CLIP-ViT, or any timm or Hugging Face ViT or CNN.
        language: The language model.
        visual: What is shown of an image: "tokens" = all tokens of the last layer, the class token and registers included;
            "patches" = without those; "pooled" = the tower's one vector (its `pooling`), which ClipCap needs.
        visual_norm: "none" = the last layer's output as it is; "tower" = through the norm that the tower applies to its pooled
            token only (CLIP's post_layernorm).
        checkpoint_activations: Recompute the language model's activations in the backward pass.

    Raises:
        InputError: The tower has no such norm, or the language model is of an unknown family and cannot be checkpointed.
    """

    def __init__(
        self,
        vision: ImageTower,
        language: LanguageModel,
        visual: Visual = "tokens",
        visual_norm: Literal["none", "tower"] = "none",
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        self.vision = vision
        self.language = language
        self.visual = visual
        self.i_tuning: CrossAttention | None = None
        self.prefix: PrefixMapper | None = None
        self.inputs = Inputs(image=vision.image_input, text=language.text_input, captions=True)
        self.loaded_heads: frozenset[str] = frozenset()
        self.tunes_language = False  # whether the language model counts as a head (ClipCap with a tuned GPT-2, tuning head)
        self.fresh: frozenset[str] = frozenset()  # nothing of its own: its parts say what they start from
        if visual_norm == "tower" and (visual == "pooled" or not hasattr(vision.model, "post_layernorm")):
            raise InputError(
                f"captioner: visual_norm tower needs the tokens of a tower with a post_layernorm (CLIP's), here visual is "
                f"{visual} of {type(vision.model).__name__}; set visual_norm to none"
            )
        self._norm = visual_norm == "tower"
        self.visual_width = vision.width if visual == "pooled" else vision.token_width
        if checkpoint_activations:
            checkpoint_blocks(language.blocks)

    @property
    def alone(self) -> bool:
        """Whether there is no adapter: the language model then writes without its images."""
        return self.i_tuning is None and self.prefix is None

    # ----------------------------------------------------------------------------------------------------------- images

    def encode_images(self, images: ImageBatch) -> VisualFeatures:
        """Tokens of every image: made of its pixels, or those that the batch carries, in the tower's dtype.

        Raises:
            InputError: The batch carries neither.
        """
        if images.tokens_BVD is not None:
            return VisualFeatures(images.tokens_BVD.to(next(self.vision.parameters()).dtype))
        return VisualFeatures(self.visual_tokens(pixels_of(images, "the captioner needs")))

    def no_features(self, images: ImageBatch) -> VisualFeatures:
        """No tokens [I, 0, D]: enough where there is no adapter that would attend to them."""
        return VisualFeatures(next(self.vision.parameters()).new_empty(len(images), 0, self.visual_width))

    def visual_tokens(self, pixels_I3HW: Tensor) -> Tensor:
        """[I, V, D]."""
        if self.visual == "pooled":
            return self.vision(pixels_I3HW).unsqueeze(1)
        tokens_IVD, special = self.vision.tokens(pixels_I3HW)
        if self._norm:
            tokens_IVD = cast(Any, self.vision.model).post_layernorm(tokens_IVD)
        return tokens_IVD[:, special:] if self.visual == "patches" else tokens_IVD

    # ------------------------------------------------------------------------------------------------------------- text

    def _set_images(self, features: VisualFeatures, image_row_B: Tensor | None) -> None:
        if self.i_tuning is not None:
            self.i_tuning.set_images(features.tokens_IVD, image_row_B)

    def clear_images(self) -> None:
        """Let go of the last images; the language model is then the plain one. A backward pass of before has its own."""
        if self.i_tuning is not None:
            self.i_tuning.clear_images()

    def _lead(self, features: VisualFeatures, image_row_B: Tensor | None) -> Tensor:
        """What comes before captions (`image_row_B` None = one row an image): ids [B, L], with ClipCap embeddings [B, L, W]."""
        rows, device = len(features) if image_row_B is None else len(image_row_B), features.tokens_IVD.device
        prompt = torch.tensor(self.language.prompt_ids, dtype=torch.int64, device=device).expand(rows, -1)
        if self.prefix is None:
            return torch.cat([torch.full((rows, 1), self.language.bos, dtype=torch.int64, device=device), prompt], dim=1)
        prefix_IKW = self.prefix(features.tokens_IVD)  # once an image
        prefix_BKW = prefix_IKW if image_row_B is None else prefix_IKW.index_select(0, image_row_B)
        return torch.cat([prefix_BKW, self.language.embed(prompt).to(prefix_BKW.dtype)], dim=1)

    def _inputs(self, features: VisualFeatures, tokens_BT: Tensor, image_row_B: Tensor) -> tuple[dict[str, Tensor], int]:
        """Inputs of the language model for lead and captions, and the position whose output predicts the first caption token."""
        lead = self._lead(features, image_row_B)
        self.language.require_positions(lead.shape[1] + tokens_BT.shape[1], "the longest caption of a batch (with what leads in)")
        if not lead.is_floating_point():
            return {"input_ids": torch.cat([lead, tokens_BT], dim=1)}, lead.shape[1] - 1
        embedded = self.language.embed(tokens_BT).to(lead.dtype)
        return {"inputs_embeds": torch.cat([lead, embedded], dim=1)}, lead.shape[1] - 1

    def states(self, features: VisualFeatures, tokens_BT: Tensor, image_row_B: Tensor) -> Tensor:
        """[B, T, hidden]: the state that predicts each caption token, from the lead and the tokens before it."""
        self._set_images(features, image_row_B)
        inputs, first = self._inputs(features, tokens_BT[:, :-1], image_row_B)
        return self.language.states(**inputs)[:, first:]

    def logits(self, features: VisualFeatures, texts: TextBatch, image_row_B: Tensor) -> Tensor:
        """[B, T, vocabulary]: logits of each caption token. `loss` computes only those of real tokens."""
        return self.language.logits(self.states(features, texts.tokens_BT, image_row_B))

    def loss(
        self, features: VisualFeatures, texts: TextBatch, image_row_B: Tensor, tokens: float | Tensor | None = None
    ) -> dict[str, Tensor]:
        """-sum log P(token | before, image) over the captions' tokens and end tokens, divided by their number.

        A backward pass that recomputes activations attends to these images, whatever was computed between.

        Args:
            features: The images, each once.
            texts: Captions with their end token and without a begin token; what `mask_BT` leaves out is not scored.
            image_row_B: Row of each caption's image in `features` (int64).
            tokens: Divide by this instead. With the number of tokens of all micro-batches and devices that make one step (and the
                sum, not the mean, of their gradients) the loss is the exact token mean.

        Returns:
            {"loss": scalar}.

        Raises:
            InputError: A caption has no token at all, or is longer than the language model's positions.
        """
        states_BTW = self.states(features, texts.tokens_BT, image_row_B)
        targets_N = texts.tokens_BT[texts.mask_BT]
        if not len(targets_N):
            raise InputError("captioner: the batch has no caption token to learn from; captions end with their end token")
        logits_NV = self.language.logits(states_BTW[texts.mask_BT]).float()
        total = F.cross_entropy(logits_NV, targets_N, reduction="sum")
        return {"loss": total / (len(targets_N) if tokens is None else tokens)}

    # ------------------------------------------------------------------------------------------------------- generation

    def generate_ids(
        self, features: VisualFeatures, decoding: Decoding | None = None, seeds: Sequence[int] | None = None
    ) -> list[list[int]]:
        """One caption an image as token ids, without the end token. Visual keys and values are computed once an image.

        Args:
            features: The images.
            decoding: How; default `Decoding()`.
            seeds: Of the draws of each image, where tokens are sampled. Each is then captioned by itself, so that its caption
                depends on its seed alone and on no neighbour; None draws for all in a row, from torch's generator as it stands.
        """
        decoding = decoding or Decoding()
        if not len(features):
            return []
        if decoding.sample and seeds is not None:
            drawn = []
            with drawing():
                for token_VD, seed in zip(features.tokens_IVD, seeds, strict=True):
                    torch.manual_seed(seed)
                    drawn += self.generate_ids(VisualFeatures(token_VD[None]), decoding)
            return drawn
        with torch.no_grad():
            self._set_images(features, None)
            try:
                lead = self._lead(features, None)
                key = "inputs_embeds" if lead.is_floating_point() else "input_ids"
                return self.language.generate(decoding, **{key: lead})
            finally:
                self.clear_images()

    def generate(
        self, features: VisualFeatures, decoding: Decoding | None = None, seeds: Sequence[int] | None = None
    ) -> list[str]:
        """One caption an image, see `generate_ids`.

        Raises:
            InputError: The language model has no tokenizer, or too few positions.
        """
        return self.language.decode(self.generate_ids(features, decoding, seeds))

    def write(
        self, features: VisualFeatures, decoding: Decoding | None = None, seeds: Sequence[int] | None = None
    ) -> list[Written]:
        """One caption an image with its log-probability, which takes one more pass; see `generate_ids`.

        Raises:
            InputError: See `generate`.
        """
        decoding = decoding or Decoding()
        ids = self.generate_ids(features, decoding, seeds)
        ended = [self.language.has_ended(row, decoding) for row in ids]
        scores = self.log_probs(features, ids, ended)
        texts = self.language.decode(ids)
        return [Written(text, tuple(row), score, end) for text, row, score, end in zip(texts, ids, scores, ended, strict=True)]

    @torch.no_grad()
    def log_probs(self, features: VisualFeatures, captions: Sequence[Sequence[int]], ended: Sequence[bool]) -> list[float]:
        """log P(tokens | image) of a caption of each image, summed over its tokens; in fp32.

        Args:
            features: The images.
            captions: Token ids, as `generate_ids` gives them.
            ended: Whether the end token is one of a caption's, also where `generate_ids` has cut it off.
        """
        if not captions:
            return []
        eos, device = self.language.eos, features.tokens_IVD.device
        rows = [[*row, eos] if end and list(row[-1:]) != [eos] else list(row) for row, end in zip(captions, ended, strict=True)]
        longest = max(map(len, rows))
        tokens_BT = torch.tensor([row + [eos] * (longest - len(row)) for row in rows], device=device)
        lengths_B = torch.tensor([len(row) for row in rows], device=device)
        try:
            states_BTW = self.states(features, tokens_BT, torch.arange(len(rows), device=device))
        finally:
            self.clear_images()
        chosen_BT = -F.cross_entropy(self.language.logits(states_BTW).float().mT, tokens_BT, reduction="none")
        real_BT = torch.arange(longest, device=device) < lengths_B[:, None]
        return chosen_BT.where(real_BT, 0).sum(1).tolist()

    @torch.no_grad()
    def attention(
        self, features: VisualFeatures, tokens_BT: Tensor, image_row_B: Tensor, layers: Sequence[int] | None = None
    ) -> dict[int, Tensor]:
        """Figure 3: cross-attention maps [B, H, T, V] (fp32) by layer: what each token of a caption attends to.

        Row t is of the position that reads token t. Every row sums to 1 over the visual tokens of the caption's own image.

        Args:
            features: The images.
            tokens_BT: Captions, right-padded.
            image_row_B: Their images.
            layers: Layers (0-based); None = all that have a module.

        Raises:
            InputError: There are no I-Tuning modules, or not in these layers.
        """
        if self.i_tuning is None:
            raise InputError("captioner: attention maps are I-Tuning's; this captioner has no I-Tuning modules")
        try:
            with self.i_tuning.keep_maps(layers) as kept:
                self._set_images(features, image_row_B)
                inputs, first = self._inputs(features, tokens_BT, image_row_B)
                self.language.states(**inputs)
        finally:
            self.clear_images()
        rows = len(tokens_BT)
        # OPT's FFN flattens rows and tokens
        maps = {layer: torch.cat(found).reshape(rows, -1, *found[0].shape[-2:]) for layer, found in kept.items()}
        return {layer: found_BTHV[:, first + 1 :].transpose(1, 2).contiguous() for layer, found_BTHV in maps.items()}

    # --------------------------------------------------------------------------------------------------------- contract

    def head_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """The whole language model where it is to learn (`tunes_language`): beside ClipCap, or by `tuning: head`, which makes a
        language model of captions. Otherwise none. Tied parameters come under both names."""
        named = self.language.named_parameters(remove_duplicate=False) if self.tunes_language else iter(())
        return ((f"language.{name}", parameter) for name, parameter in named)

    def unused_parameters(self) -> frozenset[str]:
        """The vision tower where nothing looks at images, and else what its tokens (or its one vector) do not need of it."""
        if self.alone:
            return frozenset(f"vision.{name}" for name, _ in self.vision.named_parameters())
        pooled = self.visual == "pooled"
        unused = {f"vision.{name}" for name in self.vision.unused_parameters(pooled)}
        if self._norm:
            unused = {name for name in unused if "post_layernorm" not in name.split(".")}
        return frozenset(unused)

    def towers(self) -> dict[str, nn.Module]:
        """The language model, and the vision tower once something looks at images."""
        return {"text": self.language} if self.alone else {"image": self.vision, "text": self.language}

    @property
    def num_layers(self) -> int:
        """Layers of the language model."""
        return len(self.language.blocks)

    def layer_id(self, name: str) -> int:
        """Layer for layer-wise decay: vision tower and embeddings 0, layer i of the language model and its I-Tuning module i + 1,
        what is behind the layers and ClipCap's mapper num_layers + 1."""
        top, _, rest = name.partition(".")
        if top == "i_tuning":
            return int(rest.split(".")[0]) + 1
        if top == "prefix":
            return self.num_layers + 1
        if top == "vision":
            return 0
        _, site = find_language_model(self.language)
        inside = rest.removeprefix("model.")
        if inside.startswith(f"{site.layers}."):
            return int(inside.removeprefix(f"{site.layers}.").split(".")[0]) + 1
        before = ("wte", "wpe", "embed_in", "embed_tokens", "embed_positions", "project_in")
        return 0 if inside.split(".")[-2] in before else self.num_layers + 1
