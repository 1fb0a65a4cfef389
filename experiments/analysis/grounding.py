"""Whether a captioner's words attend to what they name: shares of their attention in the named object's box."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamodules.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from datamodules.records import Box, Caption
    from experiments.analysis.stored_maps import BoxedMaps, WordShares


def word_shares(network: Any, root: Path, images: int, drawn: int = 3) -> tuple[WordShares, list[BoxedMaps]]:
    """How much of their attention the words of captions have in the boxes of what they name, in the last I-Tuning module at the
    position that predicts a word: the maps that Figure 3 shows, over many images. And the maps themselves of a few of the images,
    the first caption of each that names something; they are spread evenly, none is chosen by its maps.

    Args:
        network: A captioner with I-Tuning modules.
        root: Flickr30k with its Entities; the test split's reference captions are fed as they are.
        images: So many of its images.
        drawn: Images whose maps are given.

    Raises:
        InputError: The data are not there, or the captioner has no maps.
    """
    import numpy as np
    import torch

    from datamodules.files.images import open_image
    from datamodules.flickr30k_entities import Flickr30kEntities
    from datamodules.image_text import Limits
    from experiments.analysis.grid import covered_area, find_grid, share_in_box
    from experiments.analysis.stored_maps import WordShares
    from experiments.analysis.word_maps import token_maps
    from lightning_modules.networks.captioner import VisualFeatures

    limits = Limits(train=1, val=1, test=images)
    data = Flickr30kEntities(root=str(root), split="karpathy", num_workers=0, eval_batch_size=16, limits=limits)
    data.connect(network.inputs)
    (loader,), records, grid = data.evaluation_loaders("test"), data.records("test"), find_grid(network)
    named: list[tuple[int, tuple[Box, ...], Box, NDArray[np.float32]]] = []
    shown = ""
    pictures: dict[int, BoxedMaps] = {}
    chosen = set(spread(len(records), drawn))
    for batch in loader:
        with torch.no_grad():
            features = VisualFeatures(network.encode_images(batch).tokens_IVD)
        rows = [(row, image, *naming(network, caption), caption) for row, image in enumerate(batch.index_B.tolist())
                for caption in records[image].captions]  # fmt: skip
        areas = {image: covered_area(network.inputs.image, *open_image(records[image]).size) for image in batch.index_B.tolist()}
        maps = token_maps(network, features, [ids for _, _, ids, *_ in rows], [row for row, *_ in rows], grid=grid)
        for (_, image, _, names, caption), found in zip(rows, maps, strict=True):
            shown = found.shown
            here = [(image, boxes, areas[image], found.maps_TYX[token]) for token, boxes in names]
            named += here
            if here and image in chosen and image not in pictures:
                things = [caption.text[phrase.start : phrase.end] for phrase in caption.phrases if phrase.boxes]
                parts = [(thing, boxes, map_YX) for thing, (_, boxes, _, map_YX) in zip(things, here, strict=True)]
                pictures[image] = _boxed(open_image(records[image]), areas[image], parts, caption.text, shown)
    away = len(named) // 2  # words of an image follow each other
    shares = [
        (image, share_in_box(map_YX, boxes, area), share_in_box(named[word - away][3], boxes, area))
        for word, (image, boxes, area, map_YX) in enumerate(named)
    ]
    kept = [each for each in shares if each[1].area > 0 and math.isfinite(each[1].attention) and math.isfinite(each[2].attention)]
    if not kept:
        raise InputError(f"{root}: no word of its test captions names a thing with a box in the part of the image that is seen")
    columns = [[image, own.attention, own.area, other.attention] for image, own, other in kept]
    image_W, inside_W, area_W, elsewhere_W = np.array(columns, np.float64).T
    measured = WordShares(image_W.astype(np.int64), inside_W, area_W, elsewhere_W, data.fingerprint(), shown)
    return measured, [pictures[image] for image in sorted(pictures)]


def _boxed(
    image: Image.Image, covered: Box, named: Sequence[tuple[str, Sequence[Box], NDArray[np.float32]]], caption: str, shown: str
) -> BoxedMaps:
    """An image with phrases, their boxes and their maps, as it is stored."""
    import numpy as np

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
