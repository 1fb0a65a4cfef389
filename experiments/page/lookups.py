"""What a page asks an index: images by a text, by an image of the folder, by an upload."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from datamodules.errors import InputError
from experiments.page.folder import ImageFolder
from experiments.serving.index import ImageIndex
from experiments.serving.queries import ask
from lightning_modules.retrieval import RetrievalModule

LONGEST = 1_000  # characters of a text


@dataclass(frozen=True)
class Hit:
    """An image that was found: its rank from 1, its name in the folder, its cosine with the query."""

    rank: int
    name: str
    score: float


@dataclass(frozen=True)
class Result:
    """What was found, best first, and what the model cannot read of a text, a line each."""

    hits: tuple[Hit, ...]
    remarks: tuple[str, ...] = ()


def by_text(index: ImageIndex, model: RetrievalModule, folder: ImageFolder, text: str, top: int) -> Result:
    """Raises InputError: the text is empty, too long, or nothing that a tokenizer takes."""
    if not text.strip():
        raise InputError("type what you look for, such as “a dog in the snow”.")
    if len(text) > LONGEST:
        raise InputError(f"the text has {len(text):,} characters; give at most {LONGEST:,}.")
    remarks = tuple(model.tokenizer.remarks([text]))
    return Result(_hits(index, model, folder, top, texts=[text]), remarks)


def by_image(index: ImageIndex, model: RetrievalModule, folder: ImageFolder, image: Path, top: int) -> Result:
    """Raises InputError: the image cannot be read."""
    return Result(_hits(index, model, folder, top, images=[image]))


def _hits(
    index: ImageIndex, model: RetrievalModule, folder: ImageFolder, top: int, texts: list[str] | None = None,
    images: list[Path] | None = None,
) -> tuple[Hit, ...]:  # fmt: skip
    found = ask(index, model, texts or (), images or (), top)[0].found
    named = [(folder.shown(one.file.relative_to(index.label.images).as_posix()), one.score) for one in found]
    return tuple(Hit(rank, name, score) for rank, (name, score) in enumerate(named, 1) if name is not None)
