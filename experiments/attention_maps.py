"""Where a captioner looks while it writes: I-Tuning's cross-attention as maps over the photograph (Figure 3 of the paper).

`find_grid` says how visual tokens lie in the image, `token_maps` gives the maps of captions, `covered_area` the part of the
photograph that the grid covers, `share_in_box` a number for a map and a box, `draw_maps` a picture.

A map is what softmax gave the patches. What it gave special tokens (the class token, registers) is apart, so a map sums to
1 - that; nothing is divided by its sum but where it says so. The cells of a grid are equal parts of the network's input. A patch
knows its surroundings (through self-attention, or a CNN's receptive field), so a map says which token was read, not which pixels
mattered.

Legend: V visual tokens, T tokens of a caption, K words of a caption, S special tokens, Y and X rows and columns of patches.
"""

from __future__ import annotations

import math
import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from datamodules.errors import InputError
from datamodules.inputs import ImageInput
from datamodules.records import Box
from lightning_modules.networks.captioner import Captioner, Seen
from lightning_modules.networks.language_model import LanguageModel

Position = Literal["predicts", "reads"]
Array = NDArray[np.float32]


# ------------------------------------------------------------------------------------------------------------------ grid


@dataclass(frozen=True)
class Grid:
    """Visual tokens of an image: `special` ones first, then rows x columns of patches, row by row."""

    rows: int
    columns: int
    special: int = 0


@torch.no_grad()
def find_grid(network: Captioner) -> Grid:
    """How the visual tokens of a captioner lie in the image. Runs the vision tower once, on a plain image.

    Raises:
        InputError: The captioner sees one vector of an image, or the patches are no square.
    """
    if network.visual == "pooled":
        raise InputError(
            "attention maps: this captioner sees one vector of an image (visual: pooled), so there are no places to look at"
        )
    size, weight = network.vision.image_input.size, next(network.vision.parameters())
    tokens_1VD, special = network.vision.tokens(torch.zeros(1, 3, size, size, dtype=weight.dtype, device=weight.device))
    patches = tokens_1VD.shape[1] - special
    side = math.isqrt(patches)
    if not patches or side * side != patches:
        raise InputError(
            f"attention maps: the vision tower gives {patches} patches of a square image, which are not as many rows as columns; "
            "how they lie in the image is unknown"
        )
    return Grid(side, side, special if network.visual == "tokens" else 0)


def covered_area(spec: ImageInput, width: int, height: int) -> Box:
    """The part of a photograph (pixels) that the network sees: everything with "squash", the middle with "crop".

    The arithmetic is that of torchvision's Resize and CenterCrop, their rounding included. With a `crop_fraction` over 1, where
    the crop is larger than the resized image, it reaches beyond the photograph.

    Args:
        spec: The network's transform.
        width: Of the photograph as it is stored.
        height: Likewise.
    """
    if spec.resize == "squash":
        return Box(0.0, 0.0, float(width), float(height))
    shorter = math.floor(spec.size / spec.crop_fraction)
    longer = int(shorter * max(width, height) / min(width, height))
    new_width, new_height = (shorter, longer) if width <= height else (longer, shorter)

    def middle(new: int, old: int) -> tuple[float, float]:
        start = round((new - spec.size) / 2) if new >= spec.size else -((spec.size - new) // 2)
        return start * old / new, (start + spec.size) * old / new

    (left, right), (top, bottom) = middle(new_width, width), middle(new_height, height)
    return Box(left, top, right, bottom)


# ----------------------------------------------------------------------------------------------------------------- words


@dataclass(frozen=True)
class Word:
    """A word of a caption or the punctuation beside it: `start:end` are characters of the caption (`LanguageModel.decode`),
    `tokens` the rows of its tokens."""

    text: str
    start: int
    end: int
    tokens: tuple[int, ...]


def split_words(language: LanguageModel, ids: Sequence[int]) -> tuple[str, tuple[Word, ...]]:
    """A caption's text and its words with their tokens.

    Which characters a token writes is seen by decoding a token more each time, so this needs nothing of a kind of tokeniser. A
    token that writes none yet (half of a character, a space) goes with what follows it. Special tokens are of no word. Without a
    tokeniser every token is a word, its id.
    """
    if language.text_input.tokeniser is None:
        pieces = [str(token) for token in ids]
        text, starts = " ".join(pieces), np.cumsum([0] + [len(piece) + 1 for piece in pieces]).tolist()
        return text, tuple(
            Word(piece, start, start + len(piece), (row,)) for row, (piece, start) in enumerate(zip(pieces, starts, strict=False))
        )
    tokenizer = language.tokenizer

    def decode(number: int) -> str:
        return tokenizer.decode(list(ids[:number]), skip_special_tokens=True) if number else ""

    whole, special = decode(len(ids)), set(tokenizer.all_special_ids)
    ends = [_common(decode(number), whole) for number in range(len(ids) + 1)]
    spans = [_up_to_text(whole, start, end) for start, end in pairwise(ends)]
    text = " ".join(whole.split())
    words, at, place = [], 0, 0
    for piece in (piece for run in whole.split() for piece in _without_punctuation(run)):
        at = whole.index(piece, at)
        place = text.index(piece, place)
        rows = (row for row, (start, end) in enumerate(spans) if ids[row] not in special and start < at + len(piece) and end > at)
        words.append(Word(piece, place, place + len(piece), tuple(rows)))
        at, place = at + len(piece), place + len(piece)
    return text, tuple(words)


def _common(prefix: str, whole: str) -> int:
    """Length of what two texts begin with."""
    for at, (one, other) in enumerate(zip(prefix, whole, strict=False)):
        if one != other:
            return at
    return min(len(prefix), len(whole))


def _up_to_text(whole: str, start: int, end: int) -> tuple[int, int]:
    """A token's characters, or if those are only white space or none, all up to the first that is not."""
    while end < len(whole) and not whole[start:end].strip():
        end += 1
    return start, end


def _without_punctuation(run: str) -> list[str]:
    """Punctuation before and behind a word as pieces of their own: "(dog." -> "(", "dog", "."; "T-shirt" stays whole."""
    outside = [unicodedata.category(character)[0] in "PS" for character in run]
    if all(outside):
        return [run]
    first, last = outside.index(False), len(run) - outside[::-1].index(False)
    return [piece for piece in (run[:first], run[first:last], run[last:]) if piece]


# ------------------------------------------------------------------------------------------------------------------ maps


@dataclass(frozen=True)
class TokenMaps:
    """Where the tokens of one caption look.

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
    seen: Seen,
    captions: Sequence[Sequence[int]],
    image_row: Sequence[int] | None = None,
    *,
    grid: Grid | None = None,
    layer: int | Literal["last", "mean"] = "last",
    head: int | Literal["mean"] = "mean",
    position: Position = "predicts",
) -> list[TokenMaps]:
    """Where each token of each caption looks.

    `position` says which row of attention counts as a token's. "predicts" is the position that wrote the token, and read the one
    before; "reads" is the next, which the token is fed to. The paper does not say which of them its Figure 3 shows: it speaks of
    "cross-attention maps of text tokens" and of regions "given different tokens", in the final module. What it finds, that the
    map of a word lies on the thing it names, was so with "predicts" where both were tried: in the embedded world nouns had
    several times an even share inside their boxes, with "reads" (the thing is named by then) about one. The printed module has
    one head.

    Args:
        network: A captioner with I-Tuning modules.
        seen: The images.
        captions: Token ids of each caption, as `generate_ids` gives them; an end token may be among them.
        image_row: Image of each caption, as rows of `seen`; None = a caption an image.
        grid: Of `find_grid`; None = find it now.
        layer: Layer of the language model (0-based), the last with a module, or the mean over all that have one.
        head: One head (0-based), or the mean over heads.
        position: See above.

    Raises:
        InputError: No I-Tuning modules, no such layer or head, one vector an image, or visual tokens of another tower.
    """
    if network.i_tuning is None:
        has = "ClipCap's prefix" if network.prefix is not None else "no adapter"
        raise InputError(f"attention maps are those of I-Tuning's modules; this captioner has {has}, so there are none")
    grid = grid or find_grid(network)
    visual = seen.tokens_IVD.shape[1]
    if visual != grid.special + grid.rows * grid.columns:
        raise InputError(
            f"attention maps: an image has {visual} visual tokens here, the captioner's tower gives {grid.special} special ones "
            f"and {grid.rows} x {grid.columns} patches; show it tokens of its own tower"
        )
    present = sorted(network.i_tuning.modules_by_layer())
    layers = present if layer == "mean" else [present[-1] if layer == "last" else layer]
    heads = network.i_tuning.modules_by_layer()[present[0]].heads
    if head != "mean" and not 0 <= head < heads:
        raise InputError(f"attention maps: head {head}, but the I-Tuning modules have heads 0 to {heads - 1}")
    rows = list(range(len(seen))) if image_row is None else list(image_row)
    if len(rows) != len(captions):
        raise InputError(f"attention maps: {len(captions)} captions, but {len(rows)} images for them")
    device = seen.tokens_IVD.device
    longest = max([1, *map(len, captions)])
    padded = [[*caption, *[network.language.end] * (longest - len(caption))] for caption in captions]
    tokens_BT = torch.tensor(padded, dtype=torch.int64, device=device)
    found = _attention(network, seen, tokens_BT, torch.tensor(rows, device=device), layers, position) if captions else {}
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


def _attention(
    network: Captioner, seen: Seen, tokens_BT: Tensor, image_row_B: Tensor, layers: Sequence[int], position: Position
) -> dict[int, Tensor]:
    """[B, H, T, V] by layer."""
    if position == "reads":
        return network.attention(seen, tokens_BT, image_row_B, layers)
    assert network.i_tuning is not None
    try:
        with network.i_tuning.watching(layers) as kept:
            network.states(seen, tokens_BT, image_row_B)
    finally:
        network.forget()
    rows, tokens = tokens_BT.shape
    # the language model read what leads in and all tokens but the last: its last T positions are those that predict
    flat = {layer: torch.cat(maps).reshape(rows, -1, *maps[0].shape[-2:]) for layer, maps in kept.items()}
    return {layer: maps_BNHV[:, -tokens:].transpose(1, 2) for layer, maps_BNHV in flat.items()}


# ----------------------------------------------------------------------------------------------------------------- boxes


@dataclass(frozen=True)
class Share:
    """Of the attention to patches and of the area that they cover: the part inside of a box, both 0 to 1."""

    attention: float
    area: float

    @property
    def times(self) -> float:
        """How much more the box gets than it would of attention that is even over the image: 1 = no better. nan where nothing of
        the box is covered, or the patches got no attention at all."""
        return self.attention / self.area if self.area else math.nan


def share_in_box(map_YX: NDArray[Any], boxes: Box | Sequence[Box], covered: Box) -> Share:
    """Share of a map inside a box, or inside the union of several, by exact overlap of the grid's cells with it.

    Attention is even inside a cell. Both shares are of what the grid covers: what of a box lies outside counts nowhere, nor does
    attention to special tokens.

    Args:
        map_YX: Attention to the patches.
        boxes: In pixels of the photograph.
        covered: The part of the photograph under the grid (`covered_area`).
    """
    boxes = [boxes] if isinstance(boxes, Box) else list(boxes)
    rows, columns = map_YX.shape
    # Cut the plane at every edge of a cell or box: then each piece is wholly inside or outside of each.
    cells_y, cells_x = (
        np.linspace(covered.top, covered.bottom, rows + 1),
        np.linspace(covered.left, covered.right, columns + 1),
    )
    y = np.unique(np.clip([*cells_y, *(at for box in boxes for at in (box.top, box.bottom))], covered.top, covered.bottom))
    x = np.unique(np.clip([*cells_x, *(at for box in boxes for at in (box.left, box.right))], covered.left, covered.right))
    middle_y, middle_x = (y[1:] + y[:-1]) / 2, (x[1:] + x[:-1]) / 2
    inside = np.zeros((len(middle_y), len(middle_x)), bool)
    for box in boxes:
        inside |= np.outer((middle_y > box.top) & (middle_y < box.bottom), (middle_x > box.left) & (middle_x < box.right))
    area = np.outer(np.diff(y), np.diff(x)) * inside
    of_cell = np.ix_(np.searchsorted(cells_y, middle_y) - 1, np.searchsorted(cells_x, middle_x) - 1)
    whole = (covered.right - covered.left) * (covered.bottom - covered.top)
    total = float(map_YX.sum(dtype=np.float64))
    attention = float((map_YX[of_cell] * area).sum(dtype=np.float64)) * rows * columns / whole
    return Share(attention / total if total else math.nan, float(area.sum()) / whole)


# --------------------------------------------------------------------------------------------------------------- picture

_PANEL, _COLUMNS, _LETTERS = 2.1, 5, 24  # inches, panels a row, letters that fit over a panel at full size
_PIXELS = 500  # a photograph's longer side in a picture


def draw_maps(path: Path, photograph: Image.Image, maps: TokenMaps, covered: Box, smooth: bool = True) -> Path:
    """A picture: the photograph with its caption, then for each word the photograph with its map over it.

    Each map has its own colours, from nothing to its peak, which is given in times an even share: a map that is even is as bright
    as any other, but its peak is near 1.

    Args:
        path: A .png, or another format of matplotlib.
        photograph: As the network's transform was given it.
        maps: Of its caption.
        covered: The part of the photograph under the grid.
        smooth: Interpolate between cells; else each cell is seen.

    Raises:
        InputError: The file cannot be written.
    """
    from matplotlib.figure import Figure

    width, height = photograph.size
    small = photograph.copy()
    small.thumbnail((_PIXELS, _PIXELS))
    panels = 1 + len(maps.words)
    columns = min(_COLUMNS, panels)
    rows = -(-panels // columns)
    shape = min(max(height / width, 0.25), 1.6)  # of a panel; a very long photograph leaves some of it empty
    title = textwrap.wrap(f"“{maps.text}”" if maps.text else "(an empty caption)", 22 * columns, break_long_words=True)
    note = textwrap.wrap(f"I-Tuning, {maps.shown}", 26 * columns)
    above, below = 0.24 * len(title) + 0.19 * len(note) + 0.12, 0.06
    size = (_PANEL * columns, (_PANEL * shape + 0.5) * rows + above + below)
    figure = Figure(figsize=size)
    lines: dict[str, Any] = {"ha": "center", "parse_math": False}
    figure.text(0.5, 1 - 0.08 / size[1], "\n".join(title), va="top", fontsize=_fitting(title, 12, size[0]), **lines)
    at = 1 - (above - 0.02) / size[1]
    figure.text(0.5, at, "\n".join(note), va="bottom", fontsize=_fitting(note, 8.5, size[0]), color="#57606a", **lines)
    word_maps, special = maps.word_maps(), maps.word_special().sum(1)
    for panel in range(panels):
        row, column = divmod(panel, columns)
        left = (column + 0.03) / columns
        bottom = 1 - (above + (row + 1) * (_PANEL * shape + 0.5)) / size[1]
        axes = figure.add_axes((left, bottom, 0.94 / columns, _PANEL * shape / size[1]))
        axes.axis("off")
        axes.imshow(small, extent=(0, width, height, 0))
        if panel == 0:
            _head(axes, "photograph", "dashed: what the network sees", "#57606a")
            dashes = {"fill": False, "edgecolor": "white", "linewidth": 1.2, "linestyle": (0, (4, 3))}
            axes.add_patch(_rectangle(covered, **(dashes | {"edgecolor": "black", "linestyle": "-"})))
            axes.add_patch(_rectangle(covered, **dashes))
        else:
            word, map_YX = maps.words[panel - 1], word_maps[panel - 1]
            total = float(map_YX.sum())
            extent = (covered.left, covered.right, covered.bottom, covered.top)
            of_peak_YX = map_YX / (float(map_YX.max()) or 1.0)
            axes.imshow(
                of_peak_YX,
                extent=extent,
                interpolation="bilinear" if smooth else "nearest",
                cmap="turbo",
                vmin=0.0,
                vmax=1.0,
                alpha=0.3 + 0.35 * of_peak_YX,  # the photograph stays clear where the word does not look
            )
            peak = f"peak {map_YX.max() * map_YX.size / total:.1f}x even" if total else "no attention to patches"
            if specials := maps.special_TS.shape[1]:
                peak += f", {'class token' if specials == 1 else f'{specials} special tokens'} {special[panel - 1]:.0%}"
            _head(axes, word.text, peak, "black")
        axes.set_xlim(min(0, covered.left), max(width, covered.right))
        axes.set_ylim(max(height, covered.bottom), min(0, covered.top))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror or error}); give another folder.") from error
    return path


def _head(axes: Any, title: str, small: str, colour: str) -> None:
    """Two lines over a panel. Long words get small letters, then two lines."""
    lines = textwrap.wrap(title, 2 * _LETTERS, break_long_words=True) or [""]
    if len(lines) > 2:  # no word, but a caption without spaces
        lines = [lines[0], f"{lines[1][:-1]}…"]
    above = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": "center", "annotation_clip": False}
    axes.annotate(small, (0.5, 1), (0, 4), fontsize=_fitting([small], 7, _PANEL), color="#57606a", **above)
    size = _fitting(lines, 11, _PANEL)
    axes.annotate("\n".join(lines), (0.5, 1), (0, 15), fontsize=size, color=colour, parse_math=False, linespacing=1.0, **above)


def _fitting(lines: Sequence[str], size: float, inches: float) -> float:
    """This font size, or a smaller one with which the longest line is no wider than that."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=size)
    widest = max(text_to_path.get_text_width_height_descent(line, font, False)[0] for line in lines)
    return min(size, size * 0.94 * 72 * inches / max(widest, 1.0))


def _rectangle(box: Box, **look: Any) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((box.left, box.top), box.right - box.left, box.bottom - box.top, **look)
