"""Whether a captioner's words attend to what they name: shares of their attention in the named object's box."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamodules.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from datamodules.records import Box, Caption, ImageRecord
    from experiments.analysis.grid import Share
    from experiments.analysis.stored_maps import WordShares
    from experiments.analysis.word_maps import Position
    from lightning_modules.networks.captioner import VisualFeatures


Place = tuple[int, "Position"]  # layer (0-based), and whose query: the one that reads a word's last token, or predicts it


@dataclass(frozen=True)
class Grounding:
    """What words of test captions attend to that name a thing with a box. Shares are means over words, 0 to 1.

    Args:
        place: Where maps are taken from: the place with the largest share on validation images.
        words: Number of words.
        inside: Attention inside of the box of the thing.
        area: The box's area: what attention has that is even over the image.
        elsewhere: What other words' maps, of other images, have inside of the box. If attention always went to where things often
            are, this would be as large as `inside`.
        over: Part of the words whose map has more inside of the box than its area.
        everywhere: `inside` as the mean over all layers and both queries.
    """

    place: Place
    words: int
    inside: float
    area: float
    elsewhere: float
    over: float
    everywhere: float


def measure_grounding(run: Path, world: Path) -> Grounding:
    """What the words of reference captions attend to under I-Tuning, captions being fed as they are."""
    chosen, found = named_maps(run, world, "val"), named_maps(run, world, "test")
    place = max(chosen.maps, key=lambda each: mean_of(share.attention for share in chosen.shares(each)))
    shares = found.shares(place)
    return Grounding(
        place=place,
        words=len(shares),
        inside=mean_of(share.attention for share in shares),
        area=mean_of(share.area for share in shares),
        elsewhere=mean_of(share.attention for share in found.shares(place, away=len(shares) // 2)),
        over=mean_of(share.attention > share.area for share in shares),
        everywhere=mean_of(share.attention for each in found.maps for share in found.shares(each)),
    )


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


@dataclass(frozen=True)
class NamedMaps:
    """Words that name a thing: of each its boxes, and by place its map [Y, X]. Words of an image follow each other. `covered` is
    what the maps cover of an image (pixels)."""

    boxes: list[tuple[Box, ...]]
    maps: dict[Place, list[NDArray[np.float32]]]
    covered: Box

    def shares(self, place: Place, away: int = 0) -> list[Share]:
        """The share of each word's map inside of its boxes; or of the map of the word so far away."""
        from experiments.analysis.grid import share_in_box

        maps = self.maps[place]
        return [share_in_box(maps[word - away], boxes, self.covered) for word, boxes in enumerate(self.boxes)]


def named_maps(run: Path, world: Path, split: str) -> NamedMaps:
    """The maps of all words of a split's reference captions that name a thing with boxes; the mean over heads."""
    import torch

    import lightning_modules
    from datamodules.files.images import open_image
    from experiments.analysis.grid import covered_area, find_grid

    network: Any = lightning_modules.load(run).network.eval()
    records, features = encode_split(network, world, split)
    captions = [(row, *naming(network, caption)) for row, record in enumerate(records) for caption in record.captions]
    longest = max(len(ids) for _, ids, _ in captions)
    tokens_BT = torch.tensor([[*ids, *[network.language.eos] * (longest - len(ids))] for _, ids, _ in captions])
    attention = network.attention(features, tokens_BT, torch.tensor([row for row, *_ in captions]))

    grid, size = find_grid(network), open_image(records[0]).size  # all scenes have one size
    named = [(caption, token, boxes) for caption, (_, _, names) in enumerate(captions) for token, boxes in names]
    maps: dict[Place, list[NDArray[np.float32]]] = {}
    for layer, maps_BHTV in attention.items():
        maps_BTYX = maps_BHTV.mean(1)[..., grid.special :].unflatten(-1, (grid.rows, grid.columns)).numpy()
        maps[layer, "reads"] = [maps_BTYX[caption, token] for caption, token, _ in named]
        # the token before it reads what predicts it; no noun is a caption's first token
        maps[layer, "predicts"] = [maps_BTYX[caption, token - 1] for caption, token, _ in named]
    return NamedMaps([boxes for *_, boxes in named], maps, covered_area(network.inputs.image, *size))


def encode_split(network: Any, world: Path, split: str) -> tuple[Sequence[ImageRecord], VisualFeatures]:
    """The records of a split with phrases and boxes, and all its images as a captioner sees them."""
    import torch

    from datamodules.flickr30k_entities import Flickr30kEntities
    from lightning_modules.networks.captioner import VisualFeatures

    data = Flickr30kEntities(root=str(world / "flickr30k"), split="karpathy", num_workers=0, eval_batch_size=64)
    data.connect(network.inputs)
    (loader,) = data.evaluation_loaders(split)
    with torch.no_grad():
        parts = [(batch.index_B, network.encode_images(batch).tokens_IVD) for batch in loader]
    order = torch.cat([rows for rows, _ in parts]).argsort()
    return data.records(split), VisualFeatures(torch.cat([tokens_IVD for _, tokens_IVD in parts])[order])


def naming(network: Any, caption: Caption) -> tuple[list[int], list[tuple[int, tuple[Box, ...]]]]:
    """A caption's token ids; of each phrase with boxes its last token, which is the noun's ("two purple balls"), and them."""
    from datamodules.formats.flickr_entities import word_pieces

    tokenizer = network.language.hf_tokenizer
    options = {"add_special_tokens": False, "split_special_tokens": True}
    pieces = word_pieces(caption.text, caption.phrases, lambda word: tokenizer(word, **options)["input_ids"])
    named = [(tokens[-1], phrase.boxes) for tokens, phrase in zip(pieces.phrases, caption.phrases, strict=True) if phrase.boxes]
    return list(pieces.input_ids), named


def mean_of(values: Iterable[float]) -> float:
    return statistics.fmean(values)
