"""What the words of a caption attend to among the regions of an image, in a network that reads both as one sequence (UNITER).

Legend: B pairs, R regions, K words, W word pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from datamodules.errors import InputError
from datamodules.loading.collate import text_batch
from datamodules.loading.tokens import Tokenizer
from datamodules.records import Caption, ImageBatch, PairBatch
from lightning_modules.objectives.relation_alignment import Scores


@dataclass(frozen=True)
class RegionMaps:
    """A pair's attention of words to regions, averaged over heads: of each word a softmax over the regions.

    Args:
        words: Of the caption, as the network reads them.
        maps_KR: Attention of each word; of a word of several pieces their mean.
        boxes_R4: Left, top, right, bottom of each region, as fractions of the image.
        shown: Layer and heads in words.
    """

    words: tuple[str, ...]
    maps_KR: NDArray[np.float32]
    boxes_R4: NDArray[np.float32]
    shown: str


@torch.no_grad()
def word_regions(network: Any, images: ImageBatch, text: str, tokenizer: Tokenizer, layer: int | None = None) -> RegionMaps:
    """The maps of one image and a text.

    Args:
        network: In eval mode, on the device of the batch.
        images: One image, with its regions.
        text: The text.
        tokenizer: The network's.
        layer: 0-based; None = the last.

    Raises:
        InputError: There is no such layer, or the text has no words that the network reads.
    """
    layer = network.num_layers - 1 if layer is None else layer
    if not 0 <= layer < network.num_layers:
        raise InputError(f"layer {layer}, but the network has layers 0 to {network.num_layers - 1}")
    regions = images.regions
    assert regions is not None, "images of a ranking network have regions"
    texts = text_batch([Caption("", text)], [0], images.index_B.tolist(), tokenizer).to(regions.mask_BR.device)
    relations = network.relations(PairBatch(images, texts), [layer])
    scores = Scores(relations.attention[layer], relations.words, relations.regions)
    kept_W, kept_R = relations.words.mask_BN[0], relations.regions.mask_BN[0]
    maps_WR = scores.map("L", "V")[0][kept_W][:, kept_R].float().cpu().numpy()
    if not len(maps_WR):
        raise InputError("the text has no words that the network reads.")
    ids = texts.tokens_BT[0][texts.mask_BT[0]][1 : 1 + len(maps_WR)].tolist()
    words, rows = _whole_words(tokenizer.pieces(ids))
    boxes_R4 = regions.boxes_BR7[0][regions.mask_BR[0]][:, :4].float().cpu().numpy()
    maps_KR = np.stack([maps_WR[row].mean(0) for row in rows])
    return RegionMaps(tuple(words), maps_KR, boxes_R4, f"layer {layer}, mean of all heads, of words to regions")


def _whole_words(pieces: Sequence[str]) -> tuple[list[str], list[list[int]]]:
    """Words of BERT's word pieces (##ing goes with what is before it), and the rows of each."""
    words: list[str] = []
    rows: list[list[int]] = []
    for row, piece in enumerate(pieces):
        if piece.startswith("##") and words:
            words[-1] += piece.removeprefix("##")
            rows[-1].append(row)
        else:
            words.append(piece)
            rows.append([row])
    return words, rows
