"""Pairs of a network that reads image and text together (UNITER): how well they match, and which regions each word looks at.

Such a network takes features of regions that a detector has made, so it cannot look at an image that is sent: the images are
those of the run's own test split. The text is free.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from datamodules.errors import InputError
from datamodules.files.images import open_image
from datamodules.loading.collate import text_batch
from datamodules.loading.tokens import Tokenizer
from datamodules.records import Box, Caption, ImageBatch
from experiments.analysis.word_regions import RegionMaps, word_regions
from experiments.page.folder import data_uri, jpeg
from experiments.page.writing import LARGE, Array, Look, heat_picture, is_tall, look_of
from lightning_modules.networks.modes import evaluating

_CELLS = 96  # a side of the grid that regions are drawn on


@dataclass(frozen=True)
class Pair:
    """An image with a text.

    Args:
        text: The text.
        score: Of the pair, as the network ranks by.
        picture: The image (data URI).
        tall: Whether it is, so that the page makes it narrow.
        looks: Of the text's words.
        best: Of these the one whose map is the least even.
        shown: Which layer the maps are of, in words.
        layers: How many there are.
        regions: Of the image.
        remarks: What the network does not read of the text.
    """

    text: str
    score: float
    picture: str
    tall: bool
    looks: tuple[Look, ...]
    best: int
    shown: str
    layers: int
    regions: int
    remarks: tuple[str, ...]


class Pairs:
    """The test split of a run, and its model.

    Args:
        model: A `RankingModule`, on its device.
        data: The run's data module.

    Raises:
        InputError: The data are not there, or the model shows no attention.
    """

    def __init__(self, model: Any, data: Any) -> None:
        self.model, self.network = model, model.network
        if not hasattr(self.network, "relations"):
            raise InputError(f"{type(self.network).__name__} has no attention of words to regions to show.")
        data.connect(self.network.inputs)
        self.records = data.records("test")
        self._images: Any = data.evaluation_loaders("test")[0].dataset
        self._tokenizer = Tokenizer(self.network.inputs.text)

    def __len__(self) -> int:
        return len(self.records)

    def image(self, row: int) -> Image.Image:
        """Of a row of the split.

        Raises:
            InputError: There is no such row, or its image has no file or cannot be read.
        """
        if not 0 <= row < len(self):
            raise InputError(f"image {row + 1:,}, of {len(self):,}.")
        return open_image(self.records[row])

    def look(self, row: int, text: str, layer: int | None) -> Pair:
        """An image with a text; an empty one stands for the image's first caption.

        Raises:
            InputError: There is no such image or layer, or no word in the text.
        """
        image = self.image(row)
        text = text.strip() or self.records[row].captions[0].text
        device = next(self.network.parameters()).device
        with evaluating(self.model), torch.no_grad():
            images: ImageBatch = self._images.make([row]).to(device)
            texts = text_batch([Caption("", text)], [0], [row], self._tokenizer).to(device)
            maps = word_regions(self.network, images, text, self._tokenizer, layer)
            first = torch.zeros(1, dtype=torch.int64, device=device)
            embedded = self.network.embed_images(images), self.network.embed_texts(texts)
            score = float(self.network.score_pairs(*embedded, first, first)[0])
        looks = _looks(image, maps)
        best = max(range(len(looks)), key=lambda word: looks[word].times)
        remarks = tuple(self._tokenizer.remarks([text]))
        picture = data_uri(jpeg(image, LARGE))
        return Pair(
            text, score, picture, is_tall(image), looks, best, maps.shown, self.network.num_layers, len(maps.boxes_R4), remarks
        )


def _looks(image: Image.Image, maps: RegionMaps) -> tuple[Look, ...]:
    whole = Box(0, 0, *image.size)
    looks = []
    for word, map_R in zip(maps.words, maps.maps_KR, strict=True):
        heat = heat_picture(painted(map_R, maps.boxes_R4), whole, image.size)
        left, top, right, bottom = maps.boxes_R4[int(map_R.argmax())].tolist()
        width, height = heat.size
        frame = (left * width, top * height, max(right * width - 1, left * width), max(bottom * height - 1, top * height))
        draw = ImageDraw.Draw(heat)
        draw.rectangle(frame, outline="black", width=4)
        draw.rectangle(frame, outline="white", width=2)
        looks.append(look_of(word, image, heat, map_R, np.zeros(0), ((left + right) / 2, (top + bottom) / 2)))
    return tuple(looks)


def painted(map_R: Array, boxes_R4: Array, cells: int = _CELLS) -> Array:
    """[cells, cells] a map over an image whose regions overlap: everywhere the attention of the region there that has most.

    Args:
        map_R: Attention to each region.
        boxes_R4: Left, top, right, bottom of each, as fractions of the image.
        cells: A side of the grid.
    """
    found_YX = np.zeros((cells, cells), np.float32)
    for value, (left, top, right, bottom) in zip(map_R, boxes_R4, strict=True):
        rows = slice(int(top * cells), max(int(np.ceil(bottom * cells)), int(top * cells) + 1))
        columns = slice(int(left * cells), max(int(np.ceil(right * cells)), int(left * cells) + 1))
        found_YX[rows, columns] = np.maximum(found_YX[rows, columns], value)
    return found_YX
