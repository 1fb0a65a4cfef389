"""The products and attention that captioning consists of: FLOPs and bytes by hand, and what they take alone (`captioning.py`).

A training step or a generation is a list of `Work`: tests compare its FLOPs with torch's counter, and `saved_bytes` with what
autograd saves. `clock` times each shape alone, in the layout that the networks use and with weights that no cache holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import Any, Literal

import torch
import torch.nn.functional as F

from benchmarks.harness import clock as seconds_now

BYTES = 4  # of fp32
_CACHE = {"cpu": 64_000_000, "cuda": 256_000_000}  # bytes that no cache holds


@dataclass(frozen=True)
class Size:
    """Language model and tower; r is half the language model's width."""

    width: int
    layers: int
    heads: int
    vocabulary: int = 50257
    tower_width: int = 768
    tower_layers: int = 12
    tower_heads: int = 12
    image_size: int = 224
    patch_size: int = 16

    @property
    def bottleneck(self) -> int:
        return self.width // 2

    @property
    def visual(self) -> int:
        """Visual tokens of an image: patches and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1


SIZES = {
    "base": Size(768, 12, 12),
    "medium": Size(1024, 24, 16),
    "large": Size(1280, 36, 20),
    "tiny": Size(32, 4, 2, 100, 24, 2, 2, 32, 16),
}


@dataclass(frozen=True)
class Batch:
    """Images, captions of each, tokens of a caption."""

    images: int
    captions: int = 1
    tokens: int = 20

    @property
    def pairs(self) -> int:
        return self.images * self.captions


def now(device: str) -> float:
    """Seconds of the measure: CPU seconds of the process, or on a GPU wall seconds, synchronised."""
    wall, cpu = seconds_now(device)
    return wall if device == "cuda" else cpu


# ------------------------------------------------------------------------------------------------------------------- work


Layout = Literal["x W", "x W'", "g' x"]  # W stored [k, n]; W stored [n, k]; gradient of a weight


def _copies(device: str, values: int) -> int:
    return min(64, 1 + _CACHE[device] // (BYTES * values))


@dataclass(frozen=True)
class Product:
    """`count` products [m, k] x [k, n] of one part in one pass."""

    part: str
    backward: bool
    layout: Layout
    m: int
    k: int
    n: int
    count: int = 1

    @property
    def flops(self) -> float:
        return 2.0 * self.count * self.m * self.k * self.n

    @property
    def moved(self) -> int:
        """Bytes of operands and result, each once."""
        return BYTES * self.count * (self.m * self.k + self.k * self.n + self.m * self.n)

    @property
    def shape(self) -> tuple[str | int, ...]:
        return (self.layout, self.m, self.k, self.n)

    def prepare(self, device: str, dtype: torch.dtype) -> Callable[[], object]:
        """One product, each call with another copy of the right side, of which there are so many that no cache holds them."""
        make = partial(torch.randn, device=device, dtype=dtype)
        left = make(self.k, self.m).t() if self.layout == "g' x" else make(self.m, self.k)
        shape = (self.n, self.k) if self.layout == "x W'" else (self.k, self.n)
        copies = [make(*shape) for _ in range(_copies(device, self.k * self.n))]
        turn = cycle([copy.t() if self.layout == "x W'" else copy for copy in copies])
        return lambda: torch.mm(left, next(turn))


@dataclass(frozen=True)
class Attention:
    """`count` times fused attention of `q` queries to `v` keys of width `e`, in `b` batches or heads, of one part in one pass."""

    part: str
    backward: bool
    b: int
    q: int
    v: int
    e: int
    count: int = 1

    @property
    def flops(self) -> float:
        """The fused kernel recomputes its scores in the backward pass: five products for two."""
        return (10.0 if self.backward else 4.0) * self.count * self.b * self.q * self.v * self.e

    @property
    def moved(self) -> int:
        """Bytes of queries, keys, values and output, each once; their gradients, too."""
        return BYTES * self.count * 2 * self.b * (self.q + self.v) * self.e * (2 if self.backward else 1)

    @property
    def shape(self) -> tuple[str | int, ...]:
        return ("attention, backward" if self.backward else "attention", self.b, self.q, self.v, self.e)

    def prepare(self, device: str, dtype: torch.dtype) -> Callable[[], object]:
        make = partial(torch.randn, device=device, dtype=dtype, requires_grad=self.backward)
        copies = []
        for _ in range(_copies(device, self.b * self.v * self.e)):
            own = make(self.b, 1, self.q, self.e), make(self.b, 1, self.v, self.e), make(self.b, 1, self.v, self.e)
            copies.append((own, F.scaled_dot_product_attention(*own) if self.backward else None))
        turn = cycle(copies)

        def call() -> object:
            own, output = next(turn)
            if output is None:
                return F.scaled_dot_product_attention(*own)
            return torch.autograd.grad(output, own, output.detach(), retain_graph=True)

        return call


Work = Product | Attention


def _language(size: Size, sequences: int, length: int, context: int, layers: int, backward: bool = False) -> list[Work]:
    """Layers of a frozen GPT-2 (weights stored [k, n]); `backward`: gradient with respect to their input only."""
    d, part, rows = size.width, "language model", sequences * length
    shapes = [(d, 3 * d), (d, d), (d, 4 * d), (4 * d, d)]
    layout: Layout = "x W'" if backward else "x W"
    work: list[Work] = [Product(part, backward, layout, rows, *(shape[::-1] if backward else shape), layers) for shape in shapes]
    return [*work, Attention(part, backward, sequences * size.heads, length, context, d // size.heads, layers)]


def _tower(size: Size, images: int) -> list[Work]:
    """Forward pass of the vision tower over so many images."""
    w, rows = size.tower_width, images * size.visual
    shapes = [(w, w)] * 4 + [(w, 4 * w), (4 * w, w)]
    work: list[Work] = [Product("tower", False, "x W'", rows, *shape, size.tower_layers) for shape in shapes]
    attention = (images * size.tower_heads, size.visual, size.visual, w // size.tower_heads, size.tower_layers)
    patches = Product("tower", False, "x W'", rows - images, 3 * size.patch_size**2, w)
    return [patches, *work, Attention("tower", False, *attention)]


def training(size: Size, batch: Batch, dropped: int = 0, encoded: int = 0, keyed: int | None = None) -> list[Work]:
    """Products and attention of a training step (AdamW has none).

    Args:
        size: Of the networks.
        batch: Pairs.
        dropped: Layers from the bottom without module.
        encoded: Images that the tower encodes.
        keyed: Images whose keys and values are computed; None = every image once.
    """
    d, r, modules = size.width, size.bottleneck, size.layers - dropped
    images = batch.images if keyed is None else keyed
    rows, looked = batch.pairs * batch.tokens, images * size.visual
    language, beside = (batch.pairs, batch.tokens, batch.tokens), (images, rows // images, size.visual, r, modules)
    # nothing below the lowest module has a gradient, nor does what that module reads, nor the FFN beside it
    above = modules - 1
    kv, qo = "keys, values", "queries, output"
    return [
        *(_tower(size, encoded) if encoded else []),
        *_language(size, *language, size.layers),
        Product("head", False, "x W'", rows, d, size.vocabulary),
        Product(kv, False, "x W'", looked, size.tower_width, r, 2 * modules),
        Product(qo, False, "x W'", rows, d, r, modules),
        Product(qo, False, "x W'", rows, r, d, modules),
        Attention(qo, False, *beside),
        Product("head", True, "x W", rows, size.vocabulary, d),
        *_language(size, *language, above, backward=True),
        Product(kv, True, "g' x", r, looked, size.tower_width, 2 * modules),
        Product(qo, True, "g' x", r, rows, d, modules),
        Product(qo, True, "g' x", d, rows, r, modules),
        Product(qo, True, "x W", rows, d, r, modules),
        Product(qo, True, "x W", rows, r, d, above),
        Attention(qo, True, *beside),
    ]


def generation(size: Size, images: int, beams: int, steps: int, modules: int, keyed: Sequence[int]) -> list[Work]:
    """Products and attention of beam search over `images`, `steps` tokens each.

    Args:
        size: Of the networks.
        images: Captions made.
        beams: Of each.
        steps: Tokens of each.
        modules: Layers with a module.
        keyed: Images whose keys and values are computed, one entry a time that this happens.
    """
    d, r, rows = size.width, size.bottleneck, images * beams
    kv, qo = "keys, values", "queries, output"
    work: list[Work] = [
        *(each for step in range(steps) for each in _language(size, rows, 1, step + 1, size.layers)),
        Product("head", False, "x W'", rows, d, size.vocabulary, steps),
    ]
    if modules:
        looked = images if len(keyed) == 1 else rows  # the naive way has a row of keys for every beam
        work += [
            *(Product(kv, False, "x W'", count * size.visual, size.tower_width, r, 2 * modules) for count in keyed),
            Product(qo, False, "x W'", rows, d, r, modules * steps),
            Product(qo, False, "x W'", rows, r, d, modules * steps),
            Attention(qo, False, looked, rows // looked, size.visual, r, modules * steps),
        ]
    return work


def saved_bytes(size: Size, batch: Batch, dropped: int = 0) -> int:
    """What autograd keeps in a step, fp32, tokens ready.

    A layer of GPT-2 above the lowest module keeps 10 values of width d a token: inputs of two norms (2), queries, keys, values,
    and output of attention (4), and the input of its activation function (4); with frozen weights the products keep nothing.
    A module keeps X, Q and S U of every token, and K and U of every image.
    """
    d, r, modules = size.width, size.bottleneck, size.layers - dropped
    rows, looked = batch.pairs * batch.tokens, batch.images * size.visual
    layer = rows * (10 * d + 4 + size.heads)  # means and deviations of two norms, log-sum-exp of attention
    module = rows * (d + 2 * r + 1) + 2 * looked * r
    head = rows * (d + 2) + rows * size.vocabulary  # last norm, log probabilities
    values = (modules - 1) * layer + modules * module + head + looked * size.tower_width
    return BYTES * (values + 1) + rows * (8 + 1)  # the sum of the weights, targets, mask


def clock(work: Sequence[Work], device: str, dtype: torch.dtype, repeats: int = 3) -> dict[tuple[str | int, ...], float]:
    """Seconds of one product or attention of each shape: the best of `repeats`."""
    found: dict[tuple[str | int, ...], float] = {}
    for each in work:
        if each.shape in found or not each.count:
            continue
        call, calls = each.prepare(device, dtype), max(1, min(30, round(3e9 * each.count / each.flops)))
        seconds = []
        for _ in range(repeats + 1):  # the first warms up
            started = now(device)
            for _ in range(calls):
                call()
            seconds.append((now(device) - started) / calls)
        found[each.shape] = min(seconds[1:])
    return found


def predict(work: Sequence[Work], clocked: Mapping[tuple[str | int, ...], float]) -> dict[str, Any]:
    """FLOPs, bytes moved and seconds of the products and attention, whole and by part and pass."""
    parts: dict[str, dict[str, float]] = {}
    for each in work:
        name = f"{each.part}, {'backward' if each.backward else 'forward'}"
        part = parts.setdefault(name, {"flops": 0.0, "moved_bytes": 0.0, "products_s": 0.0})
        part["flops"] += each.flops
        part["moved_bytes"] += each.moved
        part["products_s"] += each.count * clocked[each.shape] if each.count else 0.0
    return {key: sum(part[key] for part in parts.values()) for key in ("flops", "moved_bytes", "products_s")} | {"parts": parts}
