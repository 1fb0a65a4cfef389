"""Pictures of what a retrieval model finds."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datamodules.image_text import ImageTextDataModule
from datamodules.images import open_image
from datamodules.records import ImageRecord

RIGHT, WRONG = "#1a7f37", "#cf222e"


@torch.no_grad()
def embed(model: Any, data: ImageTextDataModule, split: str) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings of a split in its own order: images [I, D], texts [T, D], and the image row of each text [T]."""
    data.connect(model.network.inputs)
    image_loader, text_loader = data.evaluation_loaders(split)
    images, image_rows, texts, text_rows, owners = [], [], [], [], []
    for batch in image_loader:
        images.append(model.network.encode_images(batch))
        image_rows.append(batch.index_B)
    for batch in text_loader:
        texts.append(model.network.encode_texts(batch))
        text_rows.append(batch.index_B)
        owners.append(batch.image_index_B)
    in_order = torch.cat(text_rows).argsort()
    images_ID = torch.cat(images)[torch.cat(image_rows).argsort()]
    return images_ID, torch.cat(texts)[in_order], torch.cat(owners)[in_order]


def draw_queries(model: Any, data: ImageTextDataModule, split: str, path: Path, queries: int = 4, found: int = 5) -> Path:
    """Captions with the images found for them, and images with the captions found: right ones green, wrong ones red.

    The queries are spread evenly over the split; none is chosen by its result.
    """
    from matplotlib.figure import Figure

    images_ID, texts_TD, owner_T = embed(model, data, split)
    records = data.records(split)
    captions = [caption.text for record in records for caption in record.captions]
    scores_IT = images_ID @ texts_TD.T
    figure = Figure(figsize=(2.0 * (found + 1), 2.15 * queries * 2), layout="constrained")
    axes = figure.subplots(2 * queries, found + 1)
    for axis in axes.flat:
        axis.axis("off")
    for row, text in enumerate(range(0, len(captions), len(captions) // queries)[:queries]):
        _words(axes[row, 0], f"“{captions[text]}”", "black")
        for column, image in enumerate(scores_IT[:, text].topk(min(found, len(records))).indices.tolist(), 1):
            _picture(axes[row, column], records[image], RIGHT if image == owner_T[text] else WRONG)
    for row, image in enumerate(range(0, len(records), len(records) // queries)[:queries], queries):
        _picture(axes[row, 0], records[image], "#57606a")
        for column, text in enumerate(scores_IT[image].topk(min(found, len(captions))).indices.tolist(), 1):
            _words(axes[row, column], captions[text], RIGHT if owner_T[text] == image else WRONG)
    figure.suptitle("text to image (above) and image to text (below), best first; green = right, red = wrong", fontsize=11)
    figure.savefig(path, dpi=90)
    return path


def _picture(axis: Any, record: ImageRecord, colour: str) -> None:
    axis.imshow(open_image(record))
    axis.axis("on")
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set(color=colour, linewidth=3)


def _words(axis: Any, text: str, colour: str) -> None:
    wrapped = "\n".join(textwrap.wrap(text, 22))
    axis.text(0.5, 0.5, wrapped, ha="center", va="center", fontsize=8.5, color=colour, transform=axis.transAxes)
