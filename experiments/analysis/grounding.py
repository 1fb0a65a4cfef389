"""Whether a captioner's words attend to, or depend on, what they name: shares of their maps in the named object's boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datamodules.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

    from datamodules.records import Box, Caption, ImageBatch, ImageRecord
    from experiments.analysis.grid import Grid
    from experiments.analysis.stored_maps import BoxedMaps, By, WordShares

Floats = NDArray[np.float64]


def word_shares(network: Any, data: Any, drawn: int = 3, by: By = "attention") -> tuple[WordShares, list[BoxedMaps]]:
    """How much of their maps the words of captions have in the boxes of what they name, and whether their highest place is there
    (the pointing game, Zhang et al. 2016, arXiv 1608.00507), over many images. By attention these are the maps that Figure 3
    shows, at the position that predicts a word (those of the last I-Tuning module); by gradient those of gradient_maps.py. And
    the maps themselves of a few of the images, the first caption of each that names something; they are spread evenly, none is
    chosen by its maps.

    Args:
        network: A captioner; for attention with I-Tuning modules.
        data: An image-text data module whose captions have phrases with boxes; the test split's reference captions are fed as
            they are.
        drawn: Images whose maps are given.
        by: Which maps.

    Raises:
        InputError: The data are not there or have no boxes, or the captioner has no maps.
    """
    from datamodules.files.images import open_image
    from experiments.analysis.grid import covered_area, find_grid, part_in_boxes, tower_grid
    from experiments.analysis.stored_maps import WordShares

    data.connect(network.inputs)
    records = data.records("test")
    if not any(phrase.boxes for record in records for caption in record.captions for phrase in caption.phrases):
        raise InputError(
            f"{data.name}: no caption of its test split says where a thing is; give a data set with phrases and boxes."
        )
    (loader,), grid = data.evaluation_loaders("test"), find_grid(network) if by == "attention" else tower_grid(network)
    named: list[_Named] = []
    layers: list[int] = []
    shown = (
        "mean over heads, where each token is predicted"
        if by == "attention"
        else "gradient x input of each word's log-probability"
    )
    pictures: dict[int, BoxedMaps] = {}
    chosen = set(spread(len(records), drawn))
    for batch in loader:
        rows = [(row, image, *naming(network, caption), caption) for row, image in enumerate(batch.index_B.tolist())
                for caption in records[image].captions]  # fmt: skip
        layers, maps_of = (_attended if by == "attention" else _differentiated)(
            network, batch, [(row, ids, [token for token, _ in names]) for row, _, ids, names, _ in rows], grid
        )
        sizes = {image: _annotated_size(data, records[image]) for image in batch.index_B.tolist()}
        areas = {image: covered_area(network.inputs.image, *size) for image, size in sizes.items()}
        for number, (_, image, _, names, caption) in enumerate(rows):
            here = [(boxes, maps_LYX) for (_, boxes), maps_LYX in zip(names, maps_of[number], strict=True)]
            for boxes, maps_LYX in here:
                part_YX = part_in_boxes(boxes, areas[image], grid.rows, grid.columns)
                middle_YX = middles_in_boxes(boxes, areas[image], grid.rows, grid.columns)
                named.append(_Named(image, part_YX, middle_YX, _inside(maps_LYX, part_YX), maps_LYX[-1].copy()))
            if here and image in chosen and image not in pictures:
                things = [caption.text[phrase.start : phrase.end] for phrase in caption.phrases if phrase.boxes]
                parts = [(thing, boxes, maps_LYX[-1]) for thing, (boxes, maps_LYX) in zip(things, here, strict=True)]
                which = f"layer {layers[-1]}, {shown}" if by == "attention" else shown
                pictures[image] = _boxed(open_image(records[image]), sizes[image][0], areas[image], parts, caption.text, which)
    away = len(named) // 2  # words of an image follow each other
    rows_W = [
        (
            word.image,
            word.inside_L,
            word.part_YX.mean(),
            _inside(named[at - away].map_YX, word.part_YX),
            *_spread_of(word.map_YX),
            word.middle_YX.flat[word.map_YX.argmax()],
            word.middle_YX.mean(),
        )
        for at, word in enumerate(named)
    ]
    kept = [row for row in rows_W if row[2] > 0 and np.isfinite([*row[1], row[3]]).all()]
    if not kept:
        raise InputError(
            f"{data.name}: no word of its test captions names a thing with a box in the part of the image that is seen"
        )
    image_W, inside_WL, area_W, elsewhere_W, patches_W, peak_W, *pointed = (np.array(each) for each in zip(*kept, strict=True))
    patches = f"{grid.rows} x {grid.columns} patches, {shown}"
    measured = WordShares(
        image_W,
        np.array(layers),
        inside_WL.T,
        area_W,
        elsewhere_W,
        patches_W,
        peak_W,
        data.fingerprint(),
        patches,
        pointed[0].astype(np.float64),
        pointed[1].astype(np.float64),
        data.name,
    )
    return measured, [pictures[image] for image in sorted(pictures)]


@dataclass(frozen=True)
class _Named:
    """A word that names a thing: its image, the part of each patch inside of the thing's boxes, whether its middle is there, the
    share of its map there in each layer, its map in the last one."""

    image: int
    part_YX: Floats
    middle_YX: NDArray[np.bool_]
    inside_L: Floats
    map_YX: NDArray[np.float32]


def _annotated_size(data: Any, record: ImageRecord) -> tuple[int, int]:
    """Of the image whose pixels its boxes are in: files may be smaller than what was annotated."""
    from datamodules.files.images import open_image

    find = getattr(data, "annotated_size", None)
    width, height = open_image(record).size if find is None else find(record.image_id)
    return width, height


_Rows = Sequence[tuple[int, Sequence[int], Sequence[int]]]
"""Of each caption its image's row in the batch, its token ids, and the places of the tokens that name something."""


def _attended(network: Any, batch: ImageBatch, rows: _Rows, grid: Grid) -> tuple[list[int], list[list[NDArray[np.float32]]]]:
    """The layers, and [L, Y, X] of each token of each caption: attention, the mean over heads."""
    import torch

    from experiments.analysis.word_maps import layer_maps
    from lightning_modules.networks.captioner import VisualFeatures

    with torch.no_grad():
        features = VisualFeatures(network.encode_images(batch).tokens_IVD)
    found = layer_maps(network, features, [ids for _, ids, _ in rows], [row for row, *_ in rows])
    maps_LBTV = torch.stack([maps_BHTV.mean(1) for maps_BHTV in found.values()])
    maps_LBTYX = maps_LBTV[..., grid.special :].unflatten(-1, (grid.rows, grid.columns)).float().cpu().numpy()
    return list(found), [[maps_LBTYX[:, number, token] for token in tokens] for number, (_, _, tokens) in enumerate(rows)]


def _differentiated(
    network: Any, batch: ImageBatch, rows: _Rows, grid: Grid
) -> tuple[list[int], list[list[NDArray[np.float32]]]]:
    """The same by gradient, which is of the whole network: one map, counted as layer 0."""
    import torch

    from experiments.analysis.gradient_maps import gradient_maps

    assert batch.pixels_B3HW is not None, "a captioner's test images are pixels"
    words = [(row, ids, token) for row, ids, tokens in rows for token in tokens]
    pixels_N3HW = batch.pixels_B3HW[torch.tensor([row for row, *_ in words], dtype=torch.int64)]
    found = iter(gradient_maps(network, pixels_N3HW, [ids for _, ids, _ in words], [token for *_, token in words], grid))
    return [0], [[next(found)[None] for _ in tokens] for *_, tokens in rows]


def middles_in_boxes(boxes: Sequence[Box], covered: Box, rows: int, columns: int) -> NDArray[np.bool_]:
    """[Y, X]: whether the middle of each cell of a grid is in one of the boxes; see `part_in_boxes`."""
    y = covered.top + (np.arange(rows) + 0.5) * (covered.bottom - covered.top) / rows
    x = covered.left + (np.arange(columns) + 0.5) * (covered.right - covered.left) / columns
    inside = np.zeros((rows, columns), bool)
    for box in boxes:
        inside |= np.outer((y >= box.top) & (y < box.bottom), (x >= box.left) & (x < box.right))
    return inside


def _inside(maps_LYX: NDArray[np.float32], part_YX: Floats) -> Floats:
    """[L]: the share of maps inside of boxes; nan of one that has nothing on patches."""
    total_L = maps_LYX.sum((-2, -1), dtype=np.float64)
    return np.divide((maps_LYX * part_YX).sum((-2, -1)), total_L, out=np.full(total_L.shape, np.nan), where=total_L > 0)


def _spread_of(map_YX: NDArray[np.float32]) -> tuple[float, int]:
    """Over how many patches a map is spread (exp of its entropy), and the number of the patch with most of it."""
    some_P = map_YX[map_YX > 0] / map_YX.sum(dtype=np.float64)
    return float(np.exp(-(some_P * np.log(some_P)).sum())), int(map_YX.argmax())


def _boxed(
    image: Image.Image,
    width: int,
    covered: Box,
    named: Sequence[tuple[str, Sequence[Box], NDArray[np.float32]]],
    caption: str,
    shown: str,
) -> BoxedMaps:
    """An image with phrases, their boxes and their maps, as it is stored; `width` is of the image that they are pixels of."""
    from experiments.analysis.grid import share_in_box
    from experiments.analysis.stored_maps import BoxedMaps

    shares = [share_in_box(map_YX, boxes, covered) for _, boxes, map_YX in named]
    small = image.copy()
    small.thumbnail((320, 320))
    scale = small.size[0] / width
    boxes_B4 = [(box.left, box.top, box.right, box.bottom) for _, boxes, _ in named for box in boxes]
    return BoxedMaps(
        words=tuple(thing for thing, _, _ in named),
        maps_KYX=np.stack([map_YX for *_, map_YX in named]),
        inside_K=np.nan_to_num(np.array([share.attention for share in shares], np.float64)),
        area_K=np.array([share.area for share in shares], np.float64),
        word_B=np.array([word for word, (_, boxes, _) in enumerate(named) for _ in boxes], np.int64),
        boxes_B4=scale * np.array(boxes_B4, np.float64),
        image_YX3=np.asarray(small),
        covered=(scale * covered.left, scale * covered.top, scale * covered.right, scale * covered.bottom),
        caption=caption,
        shown=shown,
    )


def spread(total: int, number: int) -> list[int]:
    """So many of a split's rows (or all of it), the middles of equal parts: none is chosen by its result."""
    number = min(number, total)
    return [(2 * part + 1) * total // (2 * number) for part in range(number)]


def naming(network: Any, caption: Caption) -> tuple[list[int], list[tuple[int, tuple[Box, ...]]]]:
    """A caption's token ids; of each phrase with boxes its last token, which is the noun's ("two purple balls"), and them."""
    from datamodules.formats.flickr_entities import word_pieces

    tokenizer = network.language.hf_tokenizer
    options = {"add_special_tokens": False, "split_special_tokens": True}
    pieces = word_pieces(caption.text, caption.phrases, lambda word: tokenizer(word, **options)["input_ids"])
    named = [(tokens[-1], phrase.boxes) for tokens, phrase in zip(pieces.phrases, caption.phrases, strict=True) if phrase.boxes]
    return list(pieces.input_ids), named
