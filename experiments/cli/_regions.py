"""`crosslight data regions`: names on the command line to images, boxes and an extractor."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from datamodules.errors import InputError, some
from datamodules.files.images import ENDINGS, image_files_below
from datamodules.files.stand_in import mark
from datamodules.formats.uniter.layout import Layout
from datamodules.prepare.data_sets import open_source, source_of
from datamodules.records import ImageRecord
from experiments.runs.provenance import reads_stand_ins
from lightning_modules.extraction.boxes import BoxSource, DatabaseBoxes, EntitiesBoxes, GridBoxes
from lightning_modules.extraction.extractors import (
    FINAL,
    BackboneRegions,
    DetectorRegions,
    detector_regions,
    hugging_face_regions,
    timm_regions,
)
from lightning_modules.extraction.loop import Summary, extract


def extract_regions(kind: str, root: Path, options: argparse.Namespace, own: Mapping[str, Any]) -> Summary:
    """Extract as the options of `data.py` say, and the data set's `own` (see `extract` for what happens)."""
    import torch

    layout_kind: Any = options.layout or ("threshold" if _is_detector(options.backbone) else "all")
    layout = Layout(layout_kind, options.conf_th, options.max_bb, options.min_bb, options.num_bb, options.compressed)
    records = images(kind, root, options.image_dir, own)
    if options.limit is not None:
        records = records[: options.limit]
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    precision = options.precision
    if precision == "auto":
        precision = "bf16" if device.startswith("cuda") else "fp32"
    boxes = box_source(options, root)
    summary = extract(
        records,
        extractor(options, layout),
        boxes,
        options.out,
        layout,
        batch_size=options.batch_size,
        workers=options.workers,
        device=device,
        precision=precision,
        skip_unreadable=options.skip_unreadable,
        progress=not options.quiet,
    )
    given = (root, root / (options.image_dir or "."), options.weights, options.boxes, options.entities)
    if options.out.is_dir() and reads_stand_ins({"given": [str(Path(each).absolute()) for each in given if each]}):
        mark(options.out, "region features of stand-ins, or by them: nothing that is made of them is a result")
    return summary


def images(
    kind: str, root: Path, image_dir: str | None = None, own: Mapping[str, Any] = MappingProxyType({})
) -> list[ImageRecord]:
    """Every image of a data set, in the order of its splits; of a folder, all below it in the order of their paths.

    Raises:
        InputError: the data set is not complete.
    """
    if kind == "folder":
        names, other = image_files_below(root)
        if not names:
            raise InputError(f"{root} has no images ({', '.join(ENDINGS)}).")
        if other:
            what = f"{len(other):,} files whose endings are not images' ({', '.join(ENDINGS)}), hidden ones, and links to folders"
            print(f"left out {what}: {some(other)}", file=sys.stderr)
        files = [root / name for name in names]
        return [ImageRecord(path.stem, path.absolute(), ()) for path in files]
    place = {} if image_dir is None else {"image_dir": image_dir}
    return open_source(kind, root, **{**source_of(kind).whole, **place, **own}).every_image()


def box_source(options: argparse.Namespace, root: Path) -> BoxSource | None:
    """Where the boxes come from; None for a detector.

    Raises:
        InputError: a detector is given boxes, or there are none where the options say.
    """
    if _is_detector(options.backbone):
        if options.boxes is not None or options.grid is not None:
            raise InputError("--boxes and --grid: a detector finds its own boxes; pool another backbone over given ones.")
        return None
    if options.boxes in (None, "grid"):
        return GridBoxes(options.grid or GridBoxes().levels)
    if options.grid is not None:
        raise InputError("--grid is of --boxes grid.")
    if options.boxes == "entities":
        folder = options.entities or next(
            (place for place in (root / "flickr30k_entities", root) if (place / "Annotations").is_dir()), None
        )
        if folder is None or not (folder / "Annotations").is_dir():
            raise InputError(f"--boxes entities: no Annotations/ in {folder or root}; name their folder with --entities.")
        return EntitiesBoxes(folder)
    return DatabaseBoxes(Path(options.boxes))


def extractor(options: argparse.Namespace, layout: Layout) -> BackboneRegions | DetectorRegions:
    """The network that --backbone names.

    Raises:
        InputError: there is none of this name, or its options do not fit.
    """
    family, _, name = options.backbone.partition(":")
    if _is_detector(options.backbone):
        for option in ("options", "image_size", "samples"):
            if getattr(options, option) is not None:
                raise InputError(f"--{option.replace('_', '-')} is of timm and hf backbones, not of a detector.")
        if options.stages != (FINAL,):
            raise InputError("--stages is of timm and hf backbones, not of a detector.")
        most = layout.num_bb if layout.kind == "fixed" else layout.max_bb
        named = {"name": name} if name else {}
        return detector_regions(
            **named, weights=options.weights, most=most, shorter=options.shorter_side, longest=options.longest_side
        )
    if family not in ("timm", "hf") or not name:
        raise InputError(f"--backbone {options.backbone}: expected timm:NAME, hf:NAME, fasterrcnn or fasterrcnn:NAME.")
    pooling = {
        "stages": options.stages,
        "shorter": options.shorter_side,
        "longest": options.longest_side,
        "square": options.image_size,
        **({} if options.samples is None else {"samples": options.samples}),
    }
    make = timm_regions if family == "timm" else hugging_face_regions
    return make(name, options.weights, options.options, **pooling)


def _is_detector(backbone: str) -> bool:
    return backbone.partition(":")[0] == "fasterrcnn"
