"""Recalls the slow way: one sort a query."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.flickr30k import Flickr30k


def embed(model: Any, world: Path) -> tuple[Tensor, Tensor]:
    """Embeddings of the test split's images and captions, in the split's order."""
    data = Flickr30k(str(world / "flickr30k"), num_workers=0)
    data.connect(model.network.inputs)
    sides = []
    with torch.no_grad():
        for loader, encode in zip(
            data.evaluation_loaders("test"), (model.network.encode_images, model.network.encode_texts), strict=True
        ):
            batches = list(loader)
            order = torch.cat([batch.index_B for batch in batches]).argsort()
            sides.append(torch.cat([encode(batch) for batch in batches])[order])
    return sides[0], sides[1]


def naive_recalls(images_ID: Tensor, texts_TD: Tensor) -> dict[str, float]:
    """Recalls in percent, query by query; five captions an image, in order; ties count against the query."""
    scores_IT = images_ID @ texts_TD.T
    own_T = torch.arange(len(texts_TD)) // 5
    i2t = [int((row > row[own_T == image].max()).sum()) for image, row in enumerate(scores_IT)]
    t2i = [int((column > column[image]).sum()) for column, image in zip(scores_IT.T, own_T.tolist(), strict=True)]
    found = {
        f"{name}_r{k}": 100 * float(np.mean([rank < k for rank in ranks]))
        for name, ranks in (("i2t", i2t), ("t2i", t2i))
        for k in (1, 5, 10)
    }
    return {**found, "rsum": sum(found.values())}
