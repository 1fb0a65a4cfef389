"""From photographs to a database of region features: `extract` reads them, runs an extractor and writes, and goes on where an
interrupted run stopped.

Which images share a batch depends on the list of images and the batch size only, and a batch that is there in part is computed
whole, so an interrupted run that goes on gives the same bits (on one kind of processor) as one that was not.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from rich.progress import Progress
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.errors import InputError
from datamodules.files.digests import digests
from datamodules.files.images import image_size, open_image
from datamodules.files.ownership import take_up, write_label
from datamodules.formats.uniter.image_writer import ImageDatabaseWriter
from datamodules.formats.uniter.layout import Layout
from datamodules.formats.uniter.sources import Sources
from datamodules.loading.loader import PATIENCE, workers_of
from datamodules.records import ImageRecord
from datamodules.workers import most_workers
from lightning_modules.extraction.boxes import BoxSource
from lightning_modules.extraction.extractors import BackboneRegions, DetectorRegions, Extracted, Sizing
from lightning_modules.extraction.progress import progress_bar

DESCRIPTION = "extractor.json"
Precision = Literal["fp32", "bf16", "fp16"]


# ------------------------------------------------------------------------------------------------------ which boxes


# ------------------------------------------------------------------------------------------------------ which images


def region_name(record: ImageRecord) -> str:
    """The image's name in a database of region features: its file's, with the ending .npz."""
    if record.regions is not None:
        return record.regions
    assert record.path is not None
    return f"{record.path.stem}.npz"


def plan(sizes: Sequence[tuple[int, int] | None], sizing: Sizing, batch_size: int) -> list[list[int]]:
    """Batches of rows whose images the network sees in one size, in the order in which they fill; incomplete ones at the end.

    Args:
        sizes: width and height of every image; None leaves it out.
        sizing: of the extractor.
        batch_size: images in a batch at most.
    """
    filling: dict[tuple[int, int], list[int]] = defaultdict(list)
    batches = []
    for row, size in enumerate(sizes):
        if size is None:
            continue
        batch = filling[sizing.of(*size)]
        batch.append(row)
        if len(batch) == batch_size:
            batches.append(batch)
            del filling[sizing.of(*size)]
    return batches + sorted(filling.values())


def _size(record: ImageRecord) -> tuple[int, int] | str:
    """Width and height, or what is wrong with the file."""
    assert record.path is not None
    try:
        return image_size(record.path)
    except InputError as error:
        return f"image {record.image_id}: {error}"


class _Images(Dataset[tuple[int, "Tensor | str", Tensor, Tensor]]):
    """Pixels (or what is wrong with the file), boxes and confidences by row, decoded in worker processes.

    Errors are values: a DataLoader would wrap them in its own traceback.
    """

    def __init__(self, records: Sequence[ImageRecord], sizing: Sizing, boxes: BoxSource | None) -> None:
        self.records, self.sizing, self.boxes = records, sizing, boxes

    def __getitem__(self, row: int) -> tuple[int, Tensor | str, Tensor, Tensor]:
        none = torch.empty(0)
        try:
            pixels = self.sizing.pixels(open_image(self.records[row]))
            boxes_R4, confidences_R = self.boxes.of(self.records[row]) if self.boxes is not None else (none, none)
        except InputError as error:
            return row, str(error), none, none
        return row, pixels, boxes_R4, confidences_R


# ---------------------------------------------------------------------------------------------------------- the loop


@dataclass(slots=True)
class Summary:
    """What `extract` did: images and regions that it wrote, images that were there before, those that were there and are made
    anew since their photograph or its boxes are others now (or nobody knows which they were), those that cannot be read (what is
    wrong with each), and seconds."""

    images: int = 0
    regions: int = 0
    there_before: int = 0
    outdated: int = 0
    unreadable: list[str] = field(default_factory=list)
    seconds: float = 0.0


def extract(
    records: Iterable[ImageRecord],
    extractor: BackboneRegions | DetectorRegions,
    boxes: BoxSource | None,
    out: Path,
    layout: Layout,
    *,
    batch_size: int = 32,
    workers: int = 2,
    device: str = "cpu",
    precision: Precision = "fp32",
    skip_unreadable: bool = False,
    progress: bool = True,
) -> Summary:
    """Writes the regions of images to an image database, or what is missing of them, or was made of other photographs.

    Args:
        records: images; those of one file name are one image.
        extractor: a backbone with `boxes`, or a detector without.
        boxes: where a backbone's boxes come from.
        out: folder of the database; `extractor.json` in it says what made it.
        layout: what to keep of each image.
        batch_size: images in one forward.
        workers: processes that decode; 0 decodes here.
        device: where the extractor runs.
        precision: autocast to bf16 or fp16; features are stored in fp16 in any case.
        skip_unreadable: leave out images that cannot be read, and those without boxes, instead of stopping at the first.
        progress: show a bar on stderr.

    Raises:
        InputError: the folder holds another extractor's features, or an image cannot be read; what was extracted before it
            stays.
    """
    if isinstance(extractor, BackboneRegions) == (boxes is None):
        raise InputError("A backbone needs boxes to pool its features over; a detector finds its own and takes none.")
    if batch_size < 1 or not 0 <= workers <= most_workers():
        raise InputError(f"batch size {batch_size}, workers {workers}: give at least 1, and 0 to {most_workers()}.")
    started = time.monotonic()
    target = _device(device)
    images = _distinct(records)
    source = {} if boxes is None else boxes.description
    _describe(out, layout, {**extractor.description, **source, "precision": precision})
    extractor.to(target, memory_format=torch.channels_last)  # type: ignore[call-overload]
    summary = Summary()
    with progress_bar(progress) as bar:
        sizes = _sizes(images, skip_unreadable, summary, bar)
        batches = plan(sizes, extractor.sizing, batch_size)
        names = [region_name(record) for record in images]
        sources = _sources(images, boxes)
        with ImageDatabaseWriter(out, layout) as there:
            outdated = [
                name
                for name, its in zip(names, sources, strict=True)
                if its is not None and name in there and there.sources(name) != its
            ]
            there.remove(outdated)
            summary.outdated = len(outdated)
            todo = [batch for batch in batches if any(names[row] not in there for row in batch)]
            summary.there_before = sum(name in there for name in names)
        loader = DataLoader(
            _Images(images, extractor.sizing, boxes),
            batch_sampler=todo,
            num_workers=workers,
            collate_fn=list,
            pin_memory=target.type == "cuda",
            timeout=PATIENCE if workers else 0,
        )
        # The workers start before the database is open for writing: LMDB must not be used across a fork.
        loaded = iter(loader)
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        task = bar.add_task("extracting", total=len(images), completed=summary.there_before)
        with (
            workers_of(loaded),
            ImageDatabaseWriter(out, layout) as writer,
            torch.inference_mode(),
            torch.autocast(target.type, dtype, enabled=precision != "fp32"),
        ):
            for batch in loaded:
                for row, regions in _regions(extractor, batch, skip_unreadable, summary):
                    labels = None if regions.classes_RC is None else regions.classes_RC.numpy()
                    written = writer.add(
                        names[row],
                        regions.features_RD.numpy(),
                        regions.boxes_R4.numpy(),
                        regions.confidences_R.numpy(),
                        labels,
                        sources[row],
                    )
                    if written:
                        summary.images += 1
                        summary.regions += layout.count(regions.confidences_R.numpy())
                        bar.advance(task)
    summary.seconds = time.monotonic() - started
    return summary


def _regions(
    extractor: BackboneRegions | DetectorRegions,
    batch: list[tuple[int, Tensor | str, Tensor, Tensor]],
    skip_unreadable: bool,
    summary: Summary,
) -> Iterator[tuple[int, Extracted]]:
    """Rows and regions of a batch's readable images.

    Raises:
        InputError: one is not readable and not to be skipped. The others are given first.
    """
    rows: list[int] = []
    pixels: list[Tensor] = []
    boxes: list[tuple[Tensor, Tensor]] = []
    wrong: list[str] = []
    for row, image, boxes_R4, confidences_R in batch:
        if isinstance(image, str):
            wrong.append(image)
            continue
        rows.append(row)
        pixels.append(image)
        boxes.append((boxes_R4, confidences_R))
    if rows and not (wrong and not skip_unreadable):
        if isinstance(extractor, DetectorRegions):
            yield from zip(rows, extractor(pixels), strict=True)
        else:
            found = extractor(pixels, [boxes_R4 for boxes_R4, _ in boxes])
            for row, regions, (_, confidences_R) in zip(rows, found, boxes, strict=True):
                yield row, Extracted(regions.features_RD, regions.boxes_R4, confidences_R)
    summary.unreadable += wrong
    if wrong and not skip_unreadable:
        raise InputError(f"{wrong[0]} --skip-unreadable goes on without such images; what was extracted before stays.")


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name}: {str(error).splitlines()[0]}. Give cpu, cuda or cuda:N.") from error
    return device


def _distinct(records: Iterable[ImageRecord]) -> list[ImageRecord]:
    """Each image once.

    Raises:
        InputError: two files would have one name in the database, or there are none.
    """
    by_name: dict[str, ImageRecord] = {}
    for record in records:
        known = by_name.setdefault(region_name(record), record)
        if known.path != record.path:
            raise InputError(
                f"{known.path} and {record.path} would both be {region_name(record)} in the database; extract the folders to "
                "databases of their own, or rename one."
            )
    if not by_name:
        raise InputError("There are no images to extract; see the folder's name and --limit.")
    return list(by_name.values())


def _describe(out: Path, layout: Layout, description: Mapping[str, Any]) -> None:
    """Writes `extractor.json`, or compares it with what is there.

    Raises:
        InputError: the database there is another extractor's, or nobody says whose it is.
    """
    label, database = out / DESCRIPTION, out / layout.folder / "data.mdb"
    strangers = [database] if database.exists() else []
    if not take_up(label, description, what="extractor", strangers=strangers, remedy="Give another --out, or its options."):
        write_label(label, description)


def _sources(records: Sequence[ImageRecord], boxes: BoxSource | None) -> list[Sources | None]:
    """What the regions of each image are made of; None where its photograph is not there."""
    box_files = [None if boxes is None else boxes.file(record) for record in records]
    photographs = [record.path for record in records]
    contents = digests(path for path in (*photographs, *box_files) if path is not None)
    return [
        None if path not in contents else (contents[path], None if file is None else contents.get(file))
        for path, file in zip(photographs, box_files, strict=True)
    ]


def _sizes(
    records: Sequence[ImageRecord], skip_unreadable: bool, summary: Summary, bar: Progress
) -> list[tuple[int, int] | None]:
    """Width and height of every image, None where it cannot be read."""
    sizes: list[tuple[int, int] | None] = []
    for record in bar.track(records, description="looking at files"):
        size = _size(record)
        if isinstance(size, str):
            if not skip_unreadable:
                raise InputError(f"{size} --skip-unreadable goes on without such images.")
            summary.unreadable.append(size)
            sizes.append(None)
        else:
            sizes.append(size)
    return sizes
