"""Ranks by sorting every query's candidates, and worlds with many ties to try them on."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_modules.metrics.ranks import Ties


def naive_ranks(scores: Tensor, image_index: list[int], ties: Ties) -> tuple[list[int], list[int]]:
    """Sort every query's candidates and look where its target stands. Pessimistic = candidates sorted with targets last
    among equals."""

    def place(values: list[float], positives: set[int]) -> int:
        def key(item: int) -> tuple[float, bool, int]:
            return (-values[item], ties == "pessimistic" and item in positives, item)

        ranking = sorted(range(len(values)), key=key)
        return 1 + next(position for position, item in enumerate(ranking) if item in positives)

    i2t = []
    for image in range(len(scores)):
        positives = {text for text, owner in enumerate(image_index) if owner == image}
        if positives:
            i2t.append(place(scores[image].tolist(), positives))
    t2i = [place(scores[:, text].tolist(), {owner}) for text, owner in enumerate(image_index)]
    return i2t, t2i


def world(seed: int, images: int, texts: int, levels: int, width: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Integer-valued embeddings (dot products are exact, whatever the order of summation; few levels = many ties), any
    number of captions an image, in shuffled order."""
    draw = torch.Generator().manual_seed(seed)
    image_index = torch.randint(images, (texts,), generator=draw)
    image_part = torch.randint(-levels, levels + 1, (images, width), generator=draw).float()
    noise = torch.randint(-levels, levels + 1, (texts, width), generator=draw).float()
    return image_part, image_part[image_index] + noise, image_index
