"""Pictures of what a retrieval model finds, and of what captioners write."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datamodules.errors import InputError
from datamodules.files.atomic import whole_file
from datamodules.files.images import open_image
from datamodules.image_text import ImageTextDataModule
from datamodules.records import ImageRecord
from experiments.analysis.grounding import spread
from experiments.runs.beside import Beside, beside_file, read_beside
from experiments.runs.identity import SEED_AND_KEY
from experiments.runs.results import read_results

# Green that eyes which see no red or green tell from the greys by its lightness; frames and weights say the same.
RIGHT, QUIET, NOTE, INK = "#00795a", "#c9d1d9", "#57606a", "#1c2127"
_COLUMN, _MARGIN, _HEADING = 6.6, 0.3, 0.85  # inches of the contact sheet: a column, what is around it, its heading
_BLOCK, _QUERY = 2.4, 1.75  # a query with what was found, and the picture of one that is an image


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


@dataclass(frozen=True)
class Query:
    """A query with what was found for it, best first.

    Args:
        asked: The row of its caption, or of its image.
        found: Rows of images, or of captions.
        right: Which of them are right.
        rank: Of the first right one among all, from 1.
    """

    asked: int
    found: tuple[int, ...]
    right: tuple[bool, ...]
    rank: int


def answered(scores_QC: Tensor, right_QC: Tensor, rows: Sequence[int], found: int) -> list[Query]:
    """What scores of queries and candidates find for some of the queries."""
    queries = []
    for row in rows:
        order = scores_QC[row].argsort(descending=True, stable=True)
        right = right_QC[row][order]
        best = order[:found].tolist()
        queries.append(Query(row, tuple(best), tuple(right[:found].tolist()), int(right.int().argmax()) + 1))
    return queries


def draw_queries(model: Any, data: ImageTextDataModule, split: str, path: Path, queries: int = 5, found: int = 5) -> Path:
    """A contact sheet: captions with the images found for them, and images with the captions found. What is right has a green
    frame or letters and its rank; where nothing right is among the first, the rank of the first right one stands there.

    The queries are spread evenly over the split; none is chosen by its result.
    """
    images_ID, texts_TD, owner_T = embed(model, data, split)
    records = data.records(split)
    captions = [caption.text for record in records for caption in record.captions]
    scores_IT = images_ID @ texts_TD.T
    right_IT = torch.arange(len(records))[:, None] == owner_T.cpu()[None]
    to_images = answered(scores_IT.T.cpu(), right_IT.T, spread(len(captions), queries), found)
    to_texts = answered(scores_IT.cpu(), right_IT, spread(len(records), queries), found)
    return _written_to(path, contact_sheet(records, captions, to_images, to_texts))


def contact_sheet(
    records: Sequence[ImageRecord],
    captions: Sequence[str],
    to_images: Sequence[Query],
    to_texts: Sequence[Query],
    chosen: str = "Queries spread evenly over the split: none is chosen by its result.",
) -> Any:
    """Captions and their images on the left, images and their captions on the right: a figure of matplotlib.

    Args:
        records: The images.
        captions: Of all of them.
        to_images: Queries that are captions.
        to_texts: Queries that are images.
        chosen: How the queries were chosen, in words.
    """
    from matplotlib.figure import Figure

    rows = max(len(to_images), len(to_texts))
    size = (2 * _COLUMN + 3 * _MARGIN, _HEADING + rows * _BLOCK)
    figure = Figure(figsize=size)

    def say(x: float, y: float, text: str, **style: Any) -> None:
        """Its upper left corner at so many inches from the picture's."""
        figure.text(x / size[0], 1 - y / size[1], text, va="top", parse_math=False, linespacing=1.15, **style)

    def show(x: float, y: float, side: float, record: ImageRecord, right: bool, rank: int | None) -> None:
        axes = figure.add_axes((x / size[0], 1 - (y + side) / size[1], side / size[0], side / size[1]))
        _picture(axes, record, RIGHT if right else QUIET, 4.0 if right else 0.8)
        if right and rank is not None:
            style: dict[str, Any] = {"boxstyle": "round,pad=0.25", "facecolor": RIGHT, "edgecolor": RIGHT}
            where: dict[str, Any] = {"transform": axes.transAxes, "ha": "left", "va": "top"}
            axes.text(0.04, 0.96, f"{rank}", fontsize=11, color="white", weight="bold", bbox=style, **where)

    left, right = _MARGIN, _COLUMN + 2 * _MARGIN
    bold: dict[str, Any] = {"fontsize": 15, "weight": "bold", "color": INK}
    say(left, 0.14, "A sentence, and the images found", **bold)
    say(right, 0.14, "An image, and the sentences found", **bold)
    note = f"{chosen} {len(records):,} images."
    say(left, 0.47, note, fontsize=10.5, color=NOTE)
    say(right, 0.47, f"Best first of {len(captions):,} sentences. Green: right, with its rank.", fontsize=10.5, color=NOTE)
    for row, query in enumerate(to_images):
        y = _HEADING + row * _BLOCK
        lines = _wrapped(f"“{captions[query.asked]}”", 12, _COLUMN, 2)
        say(left, y + 0.2 * (2 - len(lines)), "\n".join(lines), fontsize=12, color=INK)
        side = (_COLUMN - (len(query.found) - 1) * 0.12) / max(5, len(query.found))
        for place, image in enumerate(query.found):
            show(left + place * (side + 0.12), y + 0.46, side, records[image], query.right[place], place + 1)
        if not any(query.right):
            say(left, y + 0.53 + side, f"the right one has rank {query.rank:,} of {len(records):,}", fontsize=10.5, color=NOTE)
    for row, query in enumerate(to_texts):
        y = _HEADING + row * _BLOCK
        show(right, y + 0.04, _QUERY, records[query.asked], False, None)
        at, x = y, right + _QUERY + 0.2
        for place, text in enumerate(query.found):
            is_right = query.right[place]
            style: dict[str, Any] = {"color": RIGHT, "weight": "bold"} if is_right else {"color": NOTE, "weight": "normal"}
            lines = _wrapped(captions[text], 10.5, _COLUMN - _QUERY - 0.42, 2, style["weight"])
            say(x, at, f"{place + 1}", fontsize=10.5, **style)
            say(x + 0.22, at, "\n".join(lines), fontsize=10.5, **style)
            at += 0.18 * len(lines) + 0.07
        if not any(query.right):
            say(right, y + 0.11 + _QUERY, f"first right: rank {query.rank:,}", fontsize=10.5, color=NOTE)
    return figure


def draw_captions(runs: Sequence[Path], path: Path, data: str | None = None, images: int = 8) -> Path:
    """A picture of `captions_sheet`.

    Args:
        runs: Run folders that tested on the same images.
        path: The picture.
        data: Name of the evaluation (None: the first that the first run has).
        images: Images.

    Raises:
        InputError: A run has no captions of this data, or of other images.
    """
    return _written_to(path, captions_sheet(runs, data, images))


def captions_sheet(runs: Sequence[Path], data: str | None = None, images: int = 8) -> Any:
    """Images with what each run wrote about them, its CIDEr-D (times 100) and one reference: a figure of matplotlib.

    The images are spread evenly over the split; none is chosen by its captions.

    Args:
        runs: Run folders that tested on the same images.
        data: Name of the evaluation (None: the first that the first run has).
        images: Images.

    Raises:
        InputError: A run has no captions of this data, or of other images.
    """
    from matplotlib.figure import Figure

    if not runs:
        raise InputError("no run was given whose captions could be shown: none of them is finished.")
    if data is None:
        data = next((evaluation.data for evaluation in read_results(runs[0]).evaluations), None)
        if data is None:
            raise InputError(f"{runs[0]} has tested nothing: there are no captions to show.")
    short = [SEED_AND_KEY.sub("", run.name) for run in runs]
    names = short if len(set(short)) == len(runs) else [str(run) for run in runs]
    written = {name: _written(run, data) for name, run in zip(names, runs, strict=True)}
    first = next(iter(written.values()))
    for name, rows in written.items():
        if [row.image_id for row in rows] != [row.image_id for row in first]:
            raise InputError(f"{name} has captions of other images than {next(iter(written))}: give runs of one test set")
    if images < 1:
        raise InputError(f"{images} images are no picture; give 1 or more.")
    chosen = spread(len(first), images)
    columns = min(2, len(chosen))
    block = max(_QUERY, 0.62 * (1 + len(written))) + 0.35
    size = (columns * (_COLUMN + _MARGIN) + _MARGIN, 0.55 + block * -(-len(chosen) // columns))
    figure = Figure(figsize=size)

    def say(x: float, y: float, text: str, **style: Any) -> None:
        figure.text(x / size[0], 1 - y / size[1], text, va="top", parse_math=False, linespacing=1.15, **style)

    note = f"{len(chosen)} of {len(first):,} images of {data}, spread evenly: none is chosen by its captions. "
    note += "CIDEr is of one caption against all that people wrote."
    say(_MARGIN, 0.12, "\n".join(_wrapped(note, 10.5, size[0] - 2 * _MARGIN, 2)), fontsize=10.5, color=NOTE)
    for place, row in enumerate(chosen):
        x, y = _MARGIN + (place % columns) * (_COLUMN + _MARGIN), 0.55 + (place // columns) * block
        axes = figure.add_axes((x / size[0], 1 - (y + _QUERY) / size[1], _QUERY / size[0], _QUERY / size[1]), anchor="NW")
        file = first[row].file
        _picture(axes, ImageRecord(first[row].image_id, None if file is None else Path(file), ()), QUIET, 0.8)
        x, width = x + _QUERY + 0.2, _COLUMN - _QUERY - 0.2
        lines = [(name, rows[row].caption, rows[row].scores.get("cider"), INK) for name, rows in written.items()]
        for name, caption, score, color in [*lines, ("people", next(iter(first[row].references), ""), None, NOTE)]:
            say(x, y, _wrapped(name, 9.5, width - 0.9, 1)[0], fontsize=9.5, color=NOTE)
            if score is not None:
                say(x + width, y, f"CIDEr {100 * score:.0f}", fontsize=9.5, color=NOTE, ha="right")
            say(x, y + 0.18, "\n".join(_wrapped(caption, 11.5, width, 2)), fontsize=11.5, color=color)
            y += 0.62
    return figure


def draw_found(path: Path, answers: Sequence[tuple[str | Path, Sequence[tuple[Path, float]]]]) -> Path:
    """A picture of searches: a text or an image, and below it the images that were found, best first, each with its cosine.

    Raises:
        InputError: An image cannot be read.
    """
    return _written_to(path, found_sheet(answers))


def found_sheet(answers: Sequence[tuple[str | Path, Sequence[tuple[Path, float]]]]) -> Any:
    """The figure of `draw_found`."""
    from matplotlib.figure import Figure

    columns, side, gap, caption = 5, 1.9, 0.12, 0.45
    lines = [-(-len(found) // columns) for _, found in answers]
    heads = [0.42 if isinstance(query, str) else _QUERY + 0.35 for query, _ in answers]
    width = 2 * _MARGIN + columns * side + (columns - 1) * gap
    size = (width, 0.2 + sum(head + line * (side + caption) + 0.15 for head, line in zip(heads, lines, strict=True)))
    figure = Figure(figsize=size)

    def show(x: float, y: float, side: float, file: Path) -> None:
        axes = figure.add_axes((x / size[0], 1 - (y + side) / size[1], side / size[0], side / size[1]), anchor="NW")
        _picture(axes, ImageRecord(str(file), file, ()), QUIET, 0.8)

    def say(x: float, y: float, text: str, **style: Any) -> None:
        figure.text(x / size[0], 1 - y / size[1], text, va="top", parse_math=False, **style)

    top = 0.2
    for (query, found), head, line in zip(answers, heads, lines, strict=True):
        asked = f"“{query}”" if isinstance(query, str) else f"like {query.name}"
        say(_MARGIN, top, _wrapped(asked, 13, width - 2 * _MARGIN, 1, "bold")[0], fontsize=13, weight="bold", color=INK)
        if isinstance(query, Path):
            show(_MARGIN, top + 0.3, _QUERY, query)
        for place, (file, score) in enumerate(found):
            x, y = _MARGIN + (place % columns) * (side + gap), top + head + (place // columns) * (side + caption)
            show(x, y, side, file)
            name = file.name if len(file.name) <= 28 else f"{file.name[:10]}…{file.name[-17:]}"
            say(x, y + side + 0.05, f"{place + 1}   {score:.3f}\n{name}", fontsize=8, color=NOTE)
        top += head + line * (side + caption) + 0.15
    return figure


def _written_to(path: Path, figure: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part:
        figure.savefig(part, dpi=120)
    return path


def _written(run: Path, data: str) -> list[Beside]:
    rows = read_beside(run, data)
    if not rows:
        raise InputError(f"{run} has no captions of {data}: {beside_file(run, data)} does not exist, or has none")
    return rows


def _picture(axis: Any, record: ImageRecord, color: str, width: float) -> None:
    """An image as it is, in a frame of this color and width (points)."""
    axis.imshow(open_image(record))
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set(color=color, linewidth=width)


def _wrapped(text: str, size: float, inches: float, most: int, weight: str = "normal") -> list[str]:
    """On at most so many lines that are no wider than that at this font size; what is longer ends with "…"."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=size, weight=weight)
    whole = text_to_path.get_text_width_height_descent(text[:200], font, False)[0]
    mean_letter = max(whole / max(1, len(text[:200])), 0.1)
    for letters in range(int(1.1 * 72 * inches / mean_letter), 1, -2):
        lines = textwrap.wrap(text, letters, max_lines=most, placeholder=" …", break_long_words=True) or ["(nothing)"]
        if max(text_to_path.get_text_width_height_descent(line, font, False)[0] for line in lines) <= 72 * inches:
            break
    return lines
