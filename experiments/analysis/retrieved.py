"""Pictures of what a retrieval model finds, and of what captioners write."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datamodules.errors import InputError
from datamodules.files.atomic import whole_file
from datamodules.files.images import open_image
from datamodules.image_text import ImageTextDataModule
from datamodules.records import ImageRecord
from experiments.runs.beside import Beside, beside_file, read_beside
from experiments.runs.results import read_results

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
    with whole_file(path) as part:
        figure.savefig(part, dpi=90)
    return path


def draw_captions(runs: Sequence[Path], path: Path, data: str | None = None, images: int = 8) -> Path:
    """Images with what each run wrote about them, its CIDEr-D (times 100) and one reference.

    The images are spread evenly over the split; none is chosen by its captions.

    Args:
        runs: Run folders that tested on the same images.
        path: The picture.
        data: Name of the evaluation (None: the first that the first run has).
        images: Images.

    Raises:
        InputError: A run has no captions of this data, or of other images.
    """
    from matplotlib.figure import Figure

    if data is None:
        data = next((evaluation.data for evaluation in read_results(runs[0]).evaluations), None)
        if data is None:
            raise InputError(f"{runs[0]} has tested nothing: there are no captions to show.")
    names = [run.name for run in runs]
    written = {(run.name if names.count(run.name) == 1 else str(run)): _written(run, data) for run in runs}
    first = next(iter(written.values()))
    for name, rows in written.items():
        if [row.image_id for row in rows] != [row.image_id for row in first]:
            raise InputError(f"{name} has captions of other images than {next(iter(written))}: give runs of one test set")
    chosen = [len(first) * place // images for place in range(images)] if len(first) > images else range(len(first))
    figure = Figure(figsize=(11, 2.1 * len(chosen)), layout="constrained")
    axes = figure.subplots(len(chosen), 2, width_ratios=(1, 3), squeeze=False)
    for (picture, words), row in zip(axes, chosen, strict=True):
        picture.axis("off")
        words.axis("off")
        file = first[row].file
        picture.imshow(open_image(ImageRecord(first[row].image_id, None if file is None else Path(file), ())))
        lines = [("people", next(iter(first[row].references), ""), "#57606a")]
        for name, rows in written.items():
            score = rows[row].scores.get("cider")
            lines.append((name if score is None else f"{name} ({100 * score:.0f})", rows[row].caption, "black"))
        for place, (name, caption, color) in enumerate(lines):
            height = 1 - (place + 0.5) / len(lines)
            words.text(0, height, name, va="center", fontsize=9, color="#57606a", transform=words.transAxes, parse_math=False)
            text = "\n".join(textwrap.wrap(caption, 75)) or "(nothing)"
            words.text(0.24, height, text, va="center", fontsize=10, color=color, transform=words.transAxes, parse_math=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part:
        figure.savefig(part, dpi=80)
    return path


def _written(run: Path, data: str) -> list[Beside]:
    rows = read_beside(run, data)
    if not rows:
        raise InputError(f"{run} has no captions of {data}: {beside_file(run, data)} does not exist, or has none")
    return rows


def _picture(axis: Any, record: ImageRecord, color: str) -> None:
    axis.imshow(open_image(record))
    axis.axis("on")
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set(color=color, linewidth=3)


def _words(axis: Any, text: str, color: str) -> None:
    wrapped = "\n".join(textwrap.wrap(text, 22))
    axis.text(0.5, 0.5, wrapped, ha="center", va="center", fontsize=8.5, color=color, transform=axis.transAxes, parse_math=False)
