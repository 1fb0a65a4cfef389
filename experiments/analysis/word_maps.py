"""What a captioner attends to while it writes: I-Tuning's cross-attention as maps over the image (Figure 3 of the paper).

`find_grid` says how visual tokens lie in the image, `token_maps` gives the maps of captions, `covered_area` the part of the
image that the grid covers, `share_in_box` a number for a map and a box, `draw_maps` a picture.

A map is what softmax gave the patches. What it gave special tokens (the class token, registers) is apart, so a map sums to
1 - that; nothing is divided by its sum but where it says so. The cells of a grid are equal parts of the network's input. A patch
knows its surroundings (through self-attention, or a CNN's receptive field), so a map says which token was read, not which pixels
mattered.

Legend: V visual tokens, T tokens of a caption, K words of a caption, S special tokens, Y and X rows and columns of patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.errors import InputError
from experiments.analysis.grid import Grid, find_grid
from experiments.analysis.words import Word, split_words
from lightning_modules.networks.captioner import Captioner, CrossAttention, VisualFeatures

Position = Literal["predicts", "reads"]
Array = NDArray[np.float32]


# ------------------------------------------------------------------------------------------------------------------ maps


@dataclass(frozen=True)
class TokenMaps:
    """What the tokens of one caption attend to.

    Args:
        text: The caption.
        words: Its words and punctuation, without special tokens.
        tokens: Ids of the T tokens.
        maps_TYX: Attention to the patches, top row first.
        special_TS: Attention to the special tokens: `maps_TYX` and this sum to 1 for each token.
        shown: Which layer, head and position this is, in words.
    """

    text: str
    words: tuple[Word, ...]
    tokens: tuple[int, ...]
    maps_TYX: Array
    special_TS: Array
    shown: str

    def word_maps(self) -> Array:
        """[K, Y, X]: the mean over the tokens of each word."""
        return self._merged(self.maps_TYX)

    def word_special(self) -> Array:
        """[K, S]: the same of the special tokens."""
        return self._merged(self.special_TS)

    def _merged(self, values: Array) -> Array:
        merged = [values[list(word.tokens)].mean(0) for word in self.words]
        return np.stack(merged) if merged else np.zeros((0, *values.shape[1:]), np.float32)


@torch.no_grad()
def token_maps(
    network: Captioner,
    features: VisualFeatures,
    captions: Sequence[Sequence[int]],
    image_row: Sequence[int] | None = None,
    *,
    grid: Grid | None = None,
    layer: int | Literal["last", "mean"] = "last",
    head: int | Literal["mean"] = "mean",
    position: Position = "predicts",
) -> list[TokenMaps]:
    """What each token of each caption attends to.

    `position` says which row of attention counts as a token's. "predicts" is the position that wrote the token, and read the one
    before; "reads" is the next, which the token is fed to. The paper does not say which of them its Figure 3 shows: it speaks of
    "cross-attention maps of text tokens" and of regions "given different tokens", in the final module. What it finds, that the
    map of a word lies on the thing it names, was so with "predicts" where both were tried: in the embedded world nouns had
    several times an even share inside their boxes, with "reads" (the thing is named by then) about one. The printed module has
    one head.

    Args:
        network: A captioner with I-Tuning modules.
        features: The images.
        captions: Token ids of each caption, as `generate_ids` gives them; an end token may be among them.
        image_row: Image of each caption, as rows of `features`; None = a caption an image.
        grid: Of `find_grid`; None = find it now.
        layer: Layer of the language model (0-based), the last with a module, or the mean over all that have one.
        head: One head (0-based), or the mean over heads.
        position: See above.

    Raises:
        InputError: No I-Tuning modules, no such layer or head, one vector an image, or visual tokens of another tower.
    """
    modules = _modules(network)
    grid = grid or find_grid(network)
    visual = features.tokens_IVD.shape[1]
    if visual != grid.special + grid.rows * grid.columns:
        raise InputError(
            f"attention maps: an image has {visual} visual tokens here, the captioner's tower gives {grid.special} special ones "
            f"and {grid.rows} x {grid.columns} patches; show it tokens of its own tower"
        )
    present, heads = modules.layers, modules.num_heads
    layers = present if layer == "mean" else [present[-1] if layer == "last" else layer]
    if head != "mean" and not 0 <= head < heads:
        raise InputError(f"attention maps: head {head}, but the I-Tuning modules have heads 0 to {heads - 1}")
    rows = list(range(len(features))) if image_row is None else list(image_row)
    if len(rows) != len(captions):
        raise InputError(f"attention maps: {len(captions)} captions, but {len(rows)} images for them")
    found = layer_maps(network, features, captions, rows, layers, position) if captions else {}
    maps_BHTV = sum(found.values(), torch.zeros(())) / max(1, len(found))
    names = (
        f"mean of {len(present)} layers" if layer == "mean" else f"layer {layers[0]}",
        *(() if heads == 1 else (f"mean of {heads} heads",) if head == "mean" else (f"head {head}",)),
        "where each token is read" if position == "reads" else "where each token is predicted",
    )
    results = []
    for row, caption in enumerate(captions):
        one_TV = maps_BHTV[row].mean(0) if head == "mean" else maps_BHTV[row, head]
        one = one_TV[: len(caption)].float().cpu().numpy()
        text, words = split_words(network.language, caption)
        maps_TYX = one[:, grid.special :].reshape(len(caption), grid.rows, grid.columns)
        results.append(TokenMaps(text, words, tuple(caption), maps_TYX, one[:, : grid.special], ", ".join(names)))
    return results


def _modules(network: Captioner) -> CrossAttention:
    """Raises InputError: there are none."""
    if network.i_tuning is None:
        has = "ClipCap's prefix" if network.prefix is not None else "no adapter"
        raise InputError(f"attention maps are those of I-Tuning's modules; this captioner has {has}, so there are none")
    return network.i_tuning


@torch.no_grad()
def layer_maps(
    network: Captioner,
    features: VisualFeatures,
    captions: Sequence[Sequence[int]],
    image_row: Sequence[int],
    layers: Sequence[int] | None = None,
    position: Position = "predicts",
) -> dict[int, Tensor]:
    """The attention of each token, special tokens included, by layer: [B, H, T, V] of the captions padded to the longest. All
    layers take one pass.

    Args:
        network: A captioner with I-Tuning modules.
        features: The images.
        captions: Token ids of each caption.
        image_row: Image of each caption, as rows of `features`.
        layers: Layers of the language model (0-based); None = all that have a module.
        position: As `token_maps` has it.

    Raises:
        InputError: No I-Tuning modules.
    """
    modules = _modules(network)
    layers = modules.layers if layers is None else layers
    device = features.tokens_IVD.device
    longest = max([1, *map(len, captions)])
    padded = [[*caption, *[network.language.eos] * (longest - len(caption))] for caption in captions]
    tokens_BT = torch.tensor(padded, dtype=torch.int64, device=device)
    image_row_B = torch.tensor(image_row, device=device)
    if position == "reads":
        return network.attention(features, tokens_BT, image_row_B, layers)
    try:
        with modules.keep_maps(layers) as kept:
            network.states(features, tokens_BT, image_row_B)
    finally:
        network.clear_images()
    rows, tokens = tokens_BT.shape
    # the language model read what leads in and all tokens but the last: its last T positions are those that predict
    flat = {layer: torch.cat(maps).reshape(rows, -1, *maps[0].shape[-2:]) for layer, maps in kept.items()}
    return {layer: maps_BNHV[:, -tokens:].transpose(1, 2) for layer, maps_BNHV in flat.items()}
