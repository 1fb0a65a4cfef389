"""What a text or an image finds in an index, as records, text and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from datamodules.errors import line_of
from datamodules.formats.caption_results import json_text
from experiments.serving.index import ImageIndex
from lightning_modules.retrieval import RetrievalModule


@dataclass(frozen=True)
class Found:
    """An image that was found, and its cosine with the query."""

    file: Path
    score: float


@dataclass(frozen=True)
class Answer:
    """A query (a text, or an image's file) and what was found, best first."""

    query: str | Path
    found: tuple[Found, ...]


def ask(
    index: ImageIndex,
    model: RetrievalModule,
    texts: Sequence[str] = (),
    images: Sequence[Path] = (),
    top: int = 10,
    exact: bool = False,
) -> list[Answer]:
    """Search an index by texts and images.

    Args:
        index: What is searched.
        model: That made it (`ImageIndex.require_model`).
        texts: Queries. Of what the model cannot read of them there is a `TextWarning`.
        images: Files that are queries.
        top: Images to find for each.
        exact: Look at every image, also where the index has approximate search.

    Returns:
        The answers of the texts, then of the images.

    Raises:
        InputError: An image cannot be read, or the network names no tokenizer.
    """
    queries: list[str | Path] = [*texts, *images]
    vectors = [model.encode_texts(texts)] if texts else []
    vectors += [model.encode_images(images)] if images else []
    rows_QK, scores_QK = index.search(torch.cat(vectors).numpy(), top, ann=False if exact else None)
    return [
        Answer(query, tuple(Found(index.path(row), score) for row, score in zip(rows.tolist(), scores.tolist(), strict=True)))
        for query, rows, scores in zip(queries, rows_QK, scores_QK, strict=True)
    ]


def as_text(index: ImageIndex, answers: Sequence[Answer]) -> list[str]:
    """A heading for each query, and a line for each image: rank, cosine, file."""
    lines = []
    for answer in answers:
        asked = f'"{line_of(answer.query)}"' if isinstance(answer.query, str) else f"like {line_of(answer.query)}"
        lines.append(f"{asked}, of {len(index):,} images:")
        lines += [f"{rank:4}  {found.score:.3f}  {line_of(found.file)}" for rank, found in enumerate(answer.found, 1)]
    return lines


def as_json(index: ImageIndex, answers: Sequence[Answer]) -> str:
    """A list with an object for each query."""
    return json_text(
        [
            {
                ("text" if isinstance(answer.query, str) else "image"): str(answer.query),
                "index": str(index.folder),
                "images": len(index),
                "found": [{"rank": rank, "score": one.score, "file": str(one.file)} for rank, one in enumerate(answer.found, 1)],
            }
            for answer in answers
        ],
        indent=1,
    )
