"""Whether a captioner's words attend to what they name: shares of their attention in the named object's box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datamodules.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

    from datamodules.records import Box, Caption
    from experiments.analysis.stored_maps import BoxedMaps, WordShares

Floats = NDArray[np.float64]


def word_shares(network: Any, root: Path, images: int, drawn: int = 3) -> tuple[WordShares, list[BoxedMaps]]:
    """How much of their attention the words of captions have in the boxes of what they name, at the position that predicts a
    word: the maps that Figure 3 shows (those of the last I-Tuning module), over many images. And the maps themselves of a few of
    the images, the first caption of each that names something; they are spread evenly, none is chosen by its maps.

    Args:
        network: A captioner with I-Tuning modules.
        root: Flickr30k with its Entities; the test split's reference captions are fed as they are.
        images: So many of its images.
        drawn: Images whose maps are given.

    Raises:
        InputError: The data are not there, or the captioner has no maps.
    """
    import torch

    from datamodules.files.images import open_image
    from datamodules.flickr30k_entities import Flickr30kEntities
    from datamodules.image_text import Limits
    from experiments.analysis.grid import covered_area, find_grid, part_in_boxes
    from experiments.analysis.stored_maps import WordShares
    from experiments.analysis.word_maps import layer_maps
    from lightning_modules.networks.captioner import VisualFeatures

    limits = Limits(train=1, val=1, test=images)
    data = Flickr30kEntities(root=str(root), split="karpathy", num_workers=0, eval_batch_size=16, limits=limits)
    data.connect(network.inputs)
    (loader,), records, grid = data.evaluation_loaders("test"), data.records("test"), find_grid(network)
    named: list[_Named] = []
    layers: list[int] = []
    shown = "mean over heads, where each token is predicted"
    pictures: dict[int, BoxedMaps] = {}
    chosen = set(spread(len(records), drawn))
    for batch in loader:
        with torch.no_grad():
            features = VisualFeatures(network.encode_images(batch).tokens_IVD)
        rows = [(row, image, *naming(network, caption), caption) for row, image in enumerate(batch.index_B.tolist())
                for caption in records[image].captions]  # fmt: skip
        found = layer_maps(network, features, [ids for _, _, ids, *_ in rows], [row for row, *_ in rows])
        layers = list(found)
        maps_LBTV = torch.stack([maps_BHTV.mean(1) for maps_BHTV in found.values()])
        maps_LBTYX = maps_LBTV[..., grid.special :].unflatten(-1, (grid.rows, grid.columns)).float().cpu().numpy()
        areas = {image: covered_area(network.inputs.image, *open_image(records[image]).size) for image in batch.index_B.tolist()}
        for number, (_, image, _, names, caption) in enumerate(rows):
            here = [(boxes, maps_LBTYX[:, number, token]) for token, boxes in names]
            for boxes, maps_LYX in here:
                part_YX = part_in_boxes(boxes, areas[image], grid.rows, grid.columns)
                named.append(_Named(image, part_YX, _inside(maps_LYX, part_YX), maps_LYX[-1].copy()))
            if here and image in chosen and image not in pictures:
                things = [caption.text[phrase.start : phrase.end] for phrase in caption.phrases if phrase.boxes]
                parts = [(thing, boxes, maps_LYX[-1]) for thing, (boxes, maps_LYX) in zip(things, here, strict=True)]
                which = f"layer {layers[-1]}, {shown}"
                pictures[image] = _boxed(open_image(records[image]), areas[image], parts, caption.text, which)
    away = len(named) // 2  # words of an image follow each other
    rows_W = [
        (word.image, word.inside_L, word.part_YX.mean(), _inside(named[at - away].map_YX, word.part_YX), *_spread_of(word.map_YX))
        for at, word in enumerate(named)
    ]
    kept = [row for row in rows_W if row[2] > 0 and np.isfinite([*row[1], row[3]]).all()]
    if not kept:
        raise InputError(f"{root}: no word of its test captions names a thing with a box in the part of the image that is seen")
    image_W, inside_WL, area_W, elsewhere_W, patches_W, peak_W = (np.array(each) for each in zip(*kept, strict=True))
    patches = f"{grid.rows} x {grid.columns} patches, {shown}"
    measured = WordShares(
        image_W, np.array(layers), inside_WL.T, area_W, elsewhere_W, patches_W, peak_W, data.fingerprint(), patches
    )
    return measured, [pictures[image] for image in sorted(pictures)]


@dataclass(frozen=True)
class _Named:
    """A word that names a thing: its image, the part of each patch inside of the thing's boxes, the share of its map there in
    each layer, its map in the last one."""

    image: int
    part_YX: Floats
    inside_L: Floats
    map_YX: NDArray[np.float32]


def _inside(maps_LYX: NDArray[np.float32], part_YX: Floats) -> Floats:
    """[L]: the share of maps inside of boxes; nan of one that has nothing on patches."""
    total_L = maps_LYX.sum((-2, -1), dtype=np.float64)
    return np.divide((maps_LYX * part_YX).sum((-2, -1)), total_L, out=np.full(total_L.shape, np.nan), where=total_L > 0)


def _spread_of(map_YX: NDArray[np.float32]) -> tuple[float, int]:
    """Over how many patches a map is spread (exp of its entropy), and the number of the patch with most of it."""
    some_P = map_YX[map_YX > 0] / map_YX.sum(dtype=np.float64)
    return float(np.exp(-(some_P * np.log(some_P)).sum())), int(map_YX.argmax())


def _boxed(
    image: Image.Image, covered: Box, named: Sequence[tuple[str, Sequence[Box], NDArray[np.float32]]], caption: str, shown: str
) -> BoxedMaps:
    """An image with phrases, their boxes and their maps, as it is stored."""
    from experiments.analysis.grid import share_in_box
    from experiments.analysis.stored_maps import BoxedMaps

    shares = [share_in_box(map_YX, boxes, covered) for _, boxes, map_YX in named]
    small = image.copy()
    small.thumbnail((320, 320))
    scale = small.size[0] / image.size[0]
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
