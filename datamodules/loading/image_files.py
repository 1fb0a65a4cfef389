"""Images by their files, of no data set: what a person points at. Of those that cannot be read it says why; the others go on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from datamodules.errors import InputError
from datamodules.files.images import read_image
from datamodules.inputs import ImageInput
from datamodules.loading.images import evaluation_transform, stacked
from datamodules.loading.loader import BatchDataset, BatchLoader, workers_of
from datamodules.records import ImageBatch
from datamodules.workers import most_workers


@dataclass(frozen=True)
class ReadImages:
    """A batch of files.

    Args:
        images: Those that could be read; `index_B` are rows among all files. None where none of the batch could.
        broken: What is wrong with the others, by row.
    """

    images: ImageBatch | None
    broken: Mapping[int, str]


class _ImageFiles(BatchDataset):
    def __init__(self, paths: Sequence[Path], spec: ImageInput) -> None:
        self.paths, self.spec = paths, spec
        self.transform = evaluation_transform(spec)

    def __len__(self) -> int:
        return len(self.paths)

    def make(self, keys: Sequence[int]) -> ReadImages:
        pixels, broken = {}, {}
        for row in keys:
            try:
                pixels[row] = self.transform(read_image(self.paths[row]))
            except InputError as error:
                broken[row] = str(error)
        if not pixels:
            return ReadImages(None, broken)
        names = tuple(str(self.paths[row]) for row in pixels)
        pixels_B3HW, sizes_B2 = stacked(list(pixels.values()), self.spec)
        return ReadImages(ImageBatch(names, torch.tensor(list(pixels)), pixels_B3HW, sizes_B2=sizes_B2), broken)


def require_files(paths: Iterable[str | Path]) -> list[str | Path]:
    """Paths of files as a list.

    Raises:
        InputError: It is one path, whose letters would be read as files, or something in it is none.
    """
    if isinstance(paths, str | Path):
        raise InputError(f"{str(paths)!r} is one file: give a list, [{str(paths)!r}].")
    found = list(paths) if isinstance(paths, Iterable) else [paths]
    if odd := [type(path).__name__ for path in found if not isinstance(path, str | Path)]:
        raise InputError(f"a {odd[0]} is no image file: give a list of paths.")
    return found


def read_image_files(
    paths: Iterable[str | Path], spec: ImageInput, batch_size: int = 32, workers: int = 0
) -> Iterator[ReadImages]:
    """Image files in their order, a batch at a time, as an evaluation sees them.

    Args:
        paths: The files.
        spec: What the network wants: `network.inputs.image`.
        batch_size: Files in a batch.
        workers: Processes that decode beside this one; 0 decodes here.

    Raises:
        InputError: A number is out of range. A file that cannot be read is no error: see `ReadImages.broken`.
    """
    if batch_size < 1 or not 0 <= workers <= most_workers():
        raise InputError(f"batch size {batch_size}, workers {workers}: give at least 1, and 0 to {most_workers()}.")
    files = [Path(path).expanduser() for path in require_files(paths)]
    rows = [list(range(first, min(first + batch_size, len(files)))) for first in range(0, len(files), batch_size)]
    workers = min(workers, len(rows)) if len(rows) > 1 else 0
    loader = BatchLoader(_ImageFiles(files, spec), batch_size=None, sampler=rows, num_workers=workers)
    batches = iter(loader)
    with workers_of(batches):
        yield from batches


def require_readable(read: ReadImages) -> ImageBatch:
    """The images of a batch, all of its files.

    Raises:
        InputError: What is wrong with the first that cannot be read.
    """
    for reason in read.broken.values():
        raise InputError(reason)
    assert read.images is not None, "a batch has a file"
    return read.images
