"""I-Tuning (Luo et al., arXiv 2202.06574): cross-attention to the image beside the FFN of every layer of a frozen language model.

    Q = Wq X + bq    K = Wk V + bk    U = Wv V + bv            Eq. 1-3; X [T, d] text, V [N, D] visual tokens, r wide inside
    S = softmax(scale * Q K^T)                                 Eq. 4, where scale is 1 and there is one head
    dh = lambda * Wo (S U) + bo                                Eq. 5, bo outside of lambda
    block output = residual + FFN(X) + dh

No official code exists. The printed parameter counts (14 M, 44 M, 95 M, and 47 M with half of the layers dropped) come out with
r = d/2, V = the 768-d hidden states of CLIP-ViT B/16, own K and V in every layer, and all biases: those are the defaults. X is
what the FFN itself reads. What the paper leaves open is an option.

The language model keeps its classes, module tree and state dict: the modules lie beside it (`network.i_tuning`, by layer), and
two hooks a layer read X and add dh. The image travels as state of the modules (`set_images`, `clear_images`), since `generate`
passes nothing to an FFN. Without an image the language model is bit for bit the plain one. Keys and values are computed once an
image in `set_images`: all captions or beams of an image share them by index.

Layers below the first module have no module to compute, and nothing in them requires a gradient, so they record no graph, with
`checkpoint_blocks` neither. (Hugging Face's own switch makes the embeddings require one, and all layers with them.)

Legend: I images, V visual tokens, D visual width, B rows of text, T tokens of a row, H heads, E width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from datamodules.errors import InputError
from lightning_modules.adapters.adapter import Adapter
from lightning_modules.adapters.line import times
from lightning_modules.networks.attention import attention_context
from lightning_modules.networks.checkpointing import Call, bind_calls
from lightning_modules.networks.decoder_layers import find_language_model

Reading = Literal["paper", "multihead"]
Initialization = Literal["normal", "zero_up"]
Input = Literal["ffn_input", "residual"]

NAME = "i_tuning"  # the network's attribute that holds the modules; its keys are the adapter's keys
HEAD_WIDTH = 64  # of the reading "multihead", as in GPT-2
_MOST_PADDING = 2  # times the queries; beyond it, keys are copied to the rows instead of padding the rows of an image


# ------------------------------------------------------------------------------------------------------------ whose image


@dataclass(frozen=True)
class Rows:
    """How rows of text share images.

    `slot_B` (int64) is a row's place in a table of `images` x `most` rows; None: rows of one image follow each other, as many for
    each image, so that a reshape is enough (beams, or a batch grouped by image).
    """

    images: int
    most: int
    slot_B: Tensor | None

    @staticmethod
    def of(image_row_B: Tensor, images: int) -> Rows:
        """Of the image row of each text row.

        Raises:
            InputError: A row names an image that does not exist.
        """
        rows = image_row_B.tolist()
        if not rows or min(rows) < 0 or max(rows) >= images:
            raise InputError(f"I-Tuning: captions name image rows {min(rows, default=0)} to {max(rows, default=-1)} of {images}")
        if len(rows) % images == 0 and rows == [i // (len(rows) // images) for i in range(len(rows))]:
            return Rows(images, len(rows) // images, None)
        count = [0] * images
        place = []
        for row in rows:
            place.append(count[row])
            count[row] += 1
        most = max(count)
        slots = [row * most + at for row, at in zip(rows, place, strict=True)]
        return Rows(images, most, torch.tensor(slots, device=image_row_B.device))

    def group(self, queries: Tensor) -> Tensor:
        """Queries of any shape [..., r], rows first -> [I, most * T, r]; rows that an image has not are zero."""
        width = queries.shape[-1]
        if self.slot_B is None:
            return queries.reshape(self.images, -1, width)
        queries_BTR = queries.reshape(len(self.slot_B), -1, width)
        table = queries_BTR.new_zeros(self.images * self.most, *queries_BTR.shape[1:])
        return table.index_copy(0, self.slot_B, queries_BTR).reshape(self.images, -1, width)

    def ungroup(self, grouped: Tensor, shape: torch.Size) -> Tensor:
        """Back to the rows: `[I, most * T, R]` -> `[*shape[:-1], R]`."""
        width = grouped.shape[-1]
        if self.slot_B is not None:
            grouped = grouped.reshape(self.images * self.most, -1, width).index_select(0, self.slot_B)
        return grouped.reshape(*shape[:-1], width)


@dataclass(frozen=True)
class KeysValues:
    """What one layer attends to: keys and values [I, H, V, E], lambda already in the values."""

    keys_IHVE: Tensor
    values_IHVE: Tensor
    rows: Rows


# ---------------------------------------------------------------------------------------------------------------- module


class ITuningModule(nn.Module):
    """The module of one layer.

    Args:
        width: d, width of the language model.
        visual_width: D.
        bottleneck: r.
        num_heads: Parts of the bottleneck that attend on their own; contiguous.
        scale: What Q K^T is multiplied with; None = 1 / sqrt(r / num_heads).
        lambda_: lambda of Eq. 5.
        init: "normal" = weights from N(0, `init_std`), biases zero; "zero_up" = Wo zero besides, so that training starts from the
            plain language model.
        init_std: Standard deviation of random weights.
        visual_norm: LayerNorm on V.
    """

    def __init__(
        self,
        width: int,
        visual_width: int,
        bottleneck: int,
        num_heads: int = 1,
        scale: float | None = 1.0,
        lambda_: float = 4.0,
        init: Initialization = "normal",
        init_std: float = 0.02,
        visual_norm: bool = False,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = 1 / math.sqrt(bottleneck / num_heads) if scale is None else scale
        self.lambda_ = lambda_
        self.init, self.init_std = init, init_std
        self.norm = nn.LayerNorm(visual_width) if visual_norm else None
        self.q = nn.Linear(width, bottleneck)
        self.k = nn.Linear(visual_width, bottleneck)
        self.v = nn.Linear(visual_width, bottleneck)
        self.o = nn.Linear(bottleneck, width)
        self._images: KeysValues | None = None
        self._x: Tensor | None = None  # X, from when the FFN reads it until dh is added in the same call
        self._maps: list[Tensor] | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for layer in (self.q, self.k, self.v, self.o):
            nn.init.normal_(layer.weight, std=self.init_std)
            nn.init.zeros_(layer.bias)
        if self.init == "zero_up":
            nn.init.zeros_(self.o.weight)

    def __getstate__(self) -> dict[str, Any]:
        """A copy starts without an image: tensors inside a graph cannot be copied."""
        return {**self.__dict__, "_images": None, "_x": None, "_maps": None}

    # ------------------------------------------------------------------------------------------------------- equations

    def keys_values(self, tokens_IVD: Tensor, rows: Rows) -> KeysValues:
        """Eq. 2 and 3. lambda goes to the values, where it is multiplied once an image: lambda * Wo (S U) = Wo (S lambda U)."""
        if self.norm is not None:
            tokens_IVD = self.norm(tokens_IVD)
        keys, values = self._split(self.k(tokens_IVD)), self._split(self.v(tokens_IVD) * self.lambda_)
        return KeysValues(keys, values, rows)

    def forward(self, x: Tensor, images: KeysValues) -> Tensor:
        """dh, of the shape of X: [B, T, d], or flat [B * T, d]."""
        queries = self.q(x)
        queries_IHSE = self._split(images.rows.group(queries))
        if self._maps is None:
            context_IHSE = attention_context(queries_IHSE, images.keys_IHVE, images.values_IHVE, scale=self.scale)
        else:
            scores = queries_IHSE.float() @ images.keys_IHVE.float().transpose(-2, -1) * self.scale
            maps_IHSV = scores.softmax(-1)
            context_IHSE = maps_IHSV.to(images.values_IHVE.dtype) @ images.values_IHVE
            maps_ISW = maps_IHSV.transpose(1, 2).flatten(2)
            self._maps.append(images.rows.ungroup(maps_ISW, queries.shape).unflatten(-1, (self.num_heads, -1)).detach())
        return self.o(images.rows.ungroup(context_IHSE.transpose(1, 2).flatten(2), queries.shape))

    def _split(self, x_INR: Tensor) -> Tensor:
        return x_INR.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    # ------------------------------------------------------------------------------------------------ beside an FFN

    def set_images(self, tokens_IVD: Tensor, rows: Rows) -> None:
        """Attend to these images from now on."""
        self._images = self.keys_values(tokens_IVD, rows)

    def clear_images(self) -> None:
        """Attend to none: the layer is the language model's own."""
        self._images = self._x = None

    def attach(self, block: nn.Module, reads: nn.Module, adds: nn.Module) -> None:
        """Hook into a block: X is the first input of `reads`, dh is added to the output of `adds`.

        All by bound methods, so that deepcopy follows.
        """
        bind_calls(block, self._with_images)
        reads.register_forward_pre_hook(self._before)
        adds.register_forward_hook(self._after)

    def _with_images(self, call: Call) -> Call:
        """A call that attends to the images of now, also when the backward pass calls it again."""
        images, maps = self._images, self._maps

        def with_images(*args: Any, **kwargs: Any) -> Any:
            nonlocal maps
            now = self._images, self._maps
            self._images, self._maps = images, maps
            maps = None if maps is None else []  # those of a second time are not kept
            try:
                return call(*args, **kwargs)
            finally:
                self._images, self._maps = now

        return with_images

    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self._images is not None:
            self._x = args[0]

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        x, self._x = self._x, None
        if self._images is None or x is None:
            return output
        return output + self(x, self._images).to(output.dtype)


class ITuningModules(nn.ModuleDict):
    """The modules of a language model by layer ("0", "1", ...). Dropped layers have none."""

    def set_images(self, tokens_IVD: Tensor, image_row_B: Tensor | None = None) -> None:
        """Attend to these images from now on, until `clear_images` or the next call.

        Args:
            tokens_IVD: Visual tokens.
            image_row_B: Image of each row of text; None = rows are the images' in order, equally many an image (generation).

        Raises:
            InputError: A row names an image that does not exist.
        """
        images = len(tokens_IVD)
        rows = Rows(images, 1, None) if image_row_B is None else Rows.of(image_row_B, images)
        # very unequal numbers of captions: one copy of keys and values a row is less work than queries padded to the most
        copied = rows.slot_B is not None and rows.images * rows.most > _MOST_PADDING * len(rows.slot_B)
        for module in self.modules_by_layer().values():
            module.set_images(tokens_IVD, rows)
            if copied and image_row_B is not None:
                once = module._images
                assert once is not None
                keys, values = once.keys_IHVE.index_select(0, image_row_B), once.values_IHVE.index_select(0, image_row_B)
                module._images = KeysValues(keys, values, Rows(len(image_row_B), 1, None))

    def clear_images(self) -> None:
        """Be the plain language model."""
        for module in self.modules_by_layer().values():
            module.clear_images()

    @property
    def layers(self) -> list[int]:
        return sorted(self.modules_by_layer())

    @property
    def num_heads(self) -> int:
        return self.modules_by_layer()[self.layers[0]].num_heads

    def modules_by_layer(self) -> dict[int, ITuningModule]:
        return {int(layer): cast(ITuningModule, module) for layer, module in self.items()}

    @contextmanager
    def keep_maps(self, layers: Sequence[int] | None = None) -> Iterator[dict[int, list[Tensor]]]:
        """While inside, keep cross-attention maps: one [B, T, H, V] (fp32) a call of the language model, by layer (None = all).

        Raises:
            InputError: A layer without a module.
        """
        modules = self.modules_by_layer()
        if wrong := [layer for layer in layers or () if layer not in modules]:
            raise InputError(f"I-Tuning: layers {wrong} have no module to keep maps of; there are modules in layers {[*modules]}")
        kept: dict[int, list[Tensor]] = {layer: [] for layer in modules if layers is None or layer in layers}
        for layer, maps in kept.items():
            modules[layer]._maps = maps
        try:
            yield kept
        finally:
            for layer in kept:
                modules[layer]._maps = None


# -------------------------------------------------------------------------------------------------------------- injection


class ITuning(Adapter):
    """I-Tuning modules beside the FFNs of a captioner's language model.

    Args:
        reading: "paper" = Eq. 4 as printed: one head, no scale. "multihead" = heads of width 64, scaled by 1/sqrt(64).
        drop_first: I-Tuning Dropping: no modules in so many layers from the bottom, or in half of them, rounded down (the paper:
            18 of GPT-2 large's 36).
        layers: Exactly these layers (0-based), in place of `drop_first`.
        bottleneck: r; null = half the language model's width.
        num_heads: Parts of the bottleneck that attend on their own. The paper prints no number. "language_model" = as many as the
            language model's attention has; null = as the reading.
        scale: What Q K^T is multiplied with: a number, or "sqrt" = 1 / sqrt(r / num_heads); null = as the reading.
        lambda_: lambda of Eq. 5, which the paper only says to be 1 or more; 4 is the scale of He et al. (2022), whose parallel
            adapter this follows.
        init: "normal" = N(0, `init_std`), biases zero; "zero_up" = Wo zero besides: starts as the plain language model.
        init_std: Standard deviation of random weights.
        x: X is what the FFN reads ("ffn_input", behind its norm), or the residual stream before that norm ("residual").
        visual_norm: LayerNorm on the visual tokens, one in each module.

    Raises:
        InputError: A value is out of range.
    """

    def __init__(
        self,
        reading: Reading = "paper",
        drop_first: int | Literal["half"] = 0,
        layers: list[int] | None = None,
        bottleneck: int | None = None,
        num_heads: int | Literal["language_model"] | None = None,
        scale: float | Literal["sqrt"] | None = None,
        lambda_: float = 4.0,
        init: Initialization = "normal",
        init_std: float = 0.02,
        x: Input = "ffn_input",
        visual_norm: bool = False,
    ) -> None:
        self._init_args: dict[str, Any] = {
            "reading": reading,
            "drop_first": drop_first,
            "layers": layers,
            "bottleneck": bottleneck,
            "num_heads": num_heads,
            "scale": scale,
            "lambda_": lambda_,
            "init": init,
            "init_std": init_std,
            "x": x,
            "visual_norm": visual_norm,
        }
        if reading not in ("paper", "multihead"):
            raise InputError(f"I-Tuning: unknown reading {reading!r}; choose paper or multihead")
        if layers is not None and (drop_first or not layers or len(set(layers)) != len(layers)):
            raise InputError(f"I-Tuning: give layers ({layers}, each once) or drop_first ({drop_first}), not both")
        least = {
            "drop_first": (0 if drop_first == "half" else drop_first, 0),
            "bottleneck": (bottleneck, 1),
            "num_heads": (1 if num_heads == "language_model" else num_heads, 1),
        }
        if wrong := [f"{name} {value}" for name, (value, low) in least.items() if value is not None and value < low]:
            raise InputError(f"I-Tuning: {', '.join(wrong)} is too small: bottleneck and num_heads start at 1, drop_first at 0")
        if not lambda_ > 0 or not init_std > 0 or (isinstance(scale, float) and not scale > 0):
            raise InputError(f"I-Tuning: lambda_ ({lambda_}), init_std ({init_std}) and scale ({scale}) must be positive")
        self.reading, self.drop_first, self.layers, self.bottleneck = reading, drop_first, layers, bottleneck
        self.num_heads, self.scale, self.lambda_, self.init, self.init_std = num_heads, scale, lambda_, init, init_std
        self.x, self.visual_norm = x, visual_norm

    @property
    def identity_at_start(self) -> bool:
        """Only with Wo zero."""
        return self.init == "zero_up"

    @property
    def off(self) -> bool:
        """Never: at least one layer has a module."""
        return False

    def owns(self, parameter_name: str) -> bool:
        """Whether the name of a parameter, of a state-dict entry or of a module is this adapter's."""
        return NAME in parameter_name.split(".")

    def scaled(self, start: Mapping[str, Tensor], trained: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
        """lambda of Eq. 5 times alpha: on Wo and its bias, so that at 0 the language model is the plain one."""
        return times(trained, alpha, lambda name: name.split(".")[-2] == "o")

    def describe(self) -> dict[str, Any]:
        """Constructor arguments to build it again."""
        return {
            "class_path": f"{type(self).__module__}.{type(self).__qualname__}",
            "init_args": dict(self._init_args),
            "identity_at_start": self.identity_at_start,
        }

    def module(self, width: int, visual_width: int, language_heads: int) -> ITuningModule:
        """A module for a layer of this width, whose own attention has so many heads.

        Raises:
            InputError: The heads do not divide the bottleneck.
        """
        bottleneck = self.bottleneck or width // 2
        multihead = self.reading == "multihead"
        own = language_heads if self.num_heads == "language_model" else self.num_heads
        num_heads = own or (max(1, bottleneck // HEAD_WIDTH) if multihead else 1)
        if bottleneck < 1 or bottleneck % num_heads:
            raise InputError(
                f"I-Tuning: {num_heads} heads do not divide the bottleneck of {bottleneck} (language model of width {width}); "
                "set num_heads or bottleneck"
            )
        scale = self.scale if self.scale is not None else "sqrt" if multihead else 1.0
        return ITuningModule(
            width,
            visual_width,
            bottleneck,
            num_heads,
            None if scale == "sqrt" else scale,
            self.lambda_,
            self.init,
            self.init_std,
            self.visual_norm,
        )

    def inject(self, network: nn.Module) -> None:
        """Give `network.i_tuning` a module for every chosen layer of its language model, on the layer's device, in fp32.

        Args:
            network: A captioner: it holds a causal language model and says the width of its visual tokens (`visual_width`).

        Raises:
            InputError: No language model of a known family, no such layers, no `visual_width`, or modules are there already.
        """
        if getattr(network, NAME, None) is not None:
            raise InputError("I-Tuning: this captioner has I-Tuning modules already; inject only once")
        visual_width = getattr(network, "visual_width", None)
        if not isinstance(visual_width, int):
            raise InputError(f"I-Tuning: {type(network).__name__} does not say its visual_width; it goes into captioners only")
        model, site = find_language_model(network)
        blocks = list(model.get_submodule(site.layers).children())
        dropped = len(blocks) // 2 if self.drop_first == "half" else self.drop_first
        chosen = self.layers if self.layers is not None else list(range(dropped, len(blocks)))
        if not chosen or min(chosen) < 0 or max(chosen) >= len(blocks):
            what = f"layers {self.layers}" if self.layers is not None else f"drop_first {self.drop_first}"
            raise InputError(f"I-Tuning: {what}, but the language model has layers 0 to {len(blocks) - 1}")
        config: Any = model.config
        # a post-norm layer (OPT 350m) has the residual stream itself as the FFN's input
        post_norm = getattr(config, "do_layer_norm_before", True) is False
        reads = site.norm if self.x == "residual" and not post_norm else site.first
        modules = ITuningModules()
        for layer in sorted(chosen):
            with torch.device(next(blocks[layer].parameters()).device):
                modules[str(layer)] = self.module(int(config.hidden_size), visual_width, int(config.num_attention_heads))
        for layer, module in modules.modules_by_layer().items():
            block = blocks[layer]
            module.attach(block, block.get_submodule(reads), block.get_submodule(site.last))
        modules.train(network.training)
        setattr(network, NAME, modules)
