"""Whether a captioner's words attend to what they name: shares of their attention in the named object's box."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamodules.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from datamodules.records import Box, Caption
    from experiments.analysis.stored_maps import WordShares


def word_shares(network: Any, root: Path, images: int) -> WordShares:
    """How much of their attention the words of captions have in the boxes of what they name, in the last I-Tuning module at the
    position that predicts a word: the maps that Figure 3 shows, over many images.

    Args:
        network: A captioner with I-Tuning modules.
        root: Flickr30k with its Entities; the test split's reference captions are fed as they are.
        images: So many of its images.

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
    for batch in loader:
        with torch.no_grad():
            features = VisualFeatures(network.encode_images(batch).tokens_IVD)
        rows = [(row, image, *naming(network, caption)) for row, image in enumerate(batch.index_B.tolist())
                for caption in records[image].captions]  # fmt: skip
        areas = {image: covered_area(network.inputs.image, *open_image(records[image]).size) for image in batch.index_B.tolist()}
        maps = token_maps(network, features, [ids for *_, ids, _ in rows], [row for row, *_ in rows], grid=grid)
        for (_, image, _, names), found in zip(rows, maps, strict=True):
            shown = found.shown
            named += [(image, boxes, areas[image], found.maps_TYX[token]) for token, boxes in names]
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
    return WordShares(image_W.astype(np.int64), inside_W, area_W, elsewhere_W, data.fingerprint(), shown)


def naming(network: Any, caption: Caption) -> tuple[list[int], list[tuple[int, tuple[Box, ...]]]]:
    """A caption's token ids; of each phrase with boxes its last token, which is the noun's ("two purple balls"), and them."""
    from datamodules.formats.flickr_entities import word_pieces

    tokenizer = network.language.hf_tokenizer
    options = {"add_special_tokens": False, "split_special_tokens": True}
    pieces = word_pieces(caption.text, caption.phrases, lambda word: tokenizer(word, **options)["input_ids"])
    named = [(tokens[-1], phrase.boxes) for tokens, phrase in zip(pieces.phrases, caption.phrases, strict=True) if phrase.boxes]
    return list(pieces.input_ids), named
