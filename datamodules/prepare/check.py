"""`crosslight data check`: everything that is wrong with a data root, in one pass.

report = run_check("flickr8k", "/data/flickr8k")
print("\\n".join(report.lines()))
raise SystemExit(report.exit_code)
"""

from __future__ import annotations

import hashlib
import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from datamodules.errors import InputError, printable, some
from datamodules.files.digests import digests
from datamodules.files.images import read_and_judge
from datamodules.formats.parsing import without_collecting
from datamodules.formats.problems import Problem
from datamodules.loading.region_files import RegionFiles, RegionReader, name_of
from datamodules.loading.splits import FileSplits, RegionSplits
from datamodules.prepare.data_sets import open_source
from datamodules.records import ImageRecord
from datamodules.source import Source
from datamodules.workers import most_workers

_Decoded = tuple[bytes, str | None, bool]


@dataclass(frozen=True, slots=True)
class SplitCounts:
    """Of one split."""

    images: int
    captions: int


@dataclass(slots=True)
class Report:
    """What a data root holds and what is wrong with it.

    `problems` must be mended; `notes` are properties that published data sets have too, but that a result should mention
    (the same caption text, or the same picture under two names, in two splits).
    """

    name: str
    root: Path
    splits: dict[str, SplitCounts] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        return 1 if self.problems else 0

    def lines(self, most: int = 20) -> list[str]:
        """The report as text: counts, then at most `most` problems of each kind, then notes."""
        lines = [f"{self.name} at {self.root}"]
        for split, counts in self.splits.items():
            lines.append(f"  {split}: {counts.images:,} images, {counts.captions:,} captions")
        kinds: dict[str, list[Problem]] = defaultdict(list)
        for problem in self.problems:
            kinds[problem.kind].append(problem)
        for kind, problems in kinds.items():
            lines.append(f"{kind}: {len(problems):,}")
            lines += [f"  {problem.text}" for problem in problems[:most]]
            if len(problems) > most:
                lines.append(f"  and {len(problems) - most:,} more")
        lines += [f"note: {note}" for note in self.notes]
        lines.append(f"{len(self.problems):,} problem(s)" if self.problems else "no problems found")
        return [printable(line).replace("\n", "\\n") for line in lines]


def run_check(
    kind: str, root: str | Path, workers: int = 2, regions: RegionFiles | None = None, progress: bool = True, **options: Any
) -> Report:
    """Check a data root of a kind ("coco", "flickr30k", ..., or a class path); `options` are those of its class, and `regions`
    are databases to check in place of the images' files.

    Raises:
        InputError: unknown kind, or the annotations cannot be read at all.
    """
    source = open_source(kind, root, **options)
    if options.get("download"):
        source.prepare_data()
    if regions is not None:  # as a data module has them
        vars(source).update(only_annotations=True, region_splits=RegionSplits(source, regions))
    return check(source, workers, progress)


def check(source: Source, workers: int = 2, progress: bool = True) -> Report:
    """Read the annotations and decode every image with `workers` processes; of a data module whose option `regions` is set, read
    the regions of every image instead, in this process.

    Raises:
        InputError: `workers` is out of range; the annotations, or the databases of regions, cannot be read at all.
    """
    if not 0 <= workers <= most_workers():
        raise InputError(f"workers is {workers}; give 0 to {most_workers()}.")
    splits: RegionSplits | None = getattr(source, "region_splits", None)
    regions = splits if splits is not None and splits.is_set else None
    with without_collecting():
        parsed, _ = (regions or FileSplits(source)).parse()
    report = Report(source.name, source.root, problems=parsed.all_problems())
    for split, records in parsed.splits.items():
        report.splits[source.split_name(split)] = SplitCounts(len(records), sum(len(record.captions) for record in records))

    splits_of_text: dict[str | tuple[int, ...], set[str]] = defaultdict(set)
    images: dict[Path, ImageRecord] = {}
    splits_of_path: dict[Path, set[str]] = defaultdict(set)
    repeated = 0  # images that have a caption twice
    for split, records in parsed.splits.items():
        for record in records:
            if record.path is not None:
                images[record.path] = record
                splits_of_path[record.path].add(split)
            texts = {caption.token_ids or caption.text.strip().lower() for caption in record.captions}
            repeated += len(texts) < len(record.captions)
            for text in texts if len(parsed.splits) > 1 else ():  # of one split there may be millions
                splits_of_text[text].add(split)
    report.notes += [*source.notes(), *(f"{split} has no image" for split, counts in report.splits.items() if not counts.images)]
    _note_shared(report, "caption text(s)", splits_of_text.values())
    if repeated:
        report.notes.append(f"{repeated:,} image(s) have the same caption more than once, which counts more than once")

    if regions is not None:
        every = {record.image_id: record for records in parsed.splits.values() for record in records}
        report.problems += _check_regions(list(every.values()), regions.reader, source.region_prefixes, progress)
        return report

    splits_of_content: dict[bytes, set[str]] = defaultdict(set)
    files_of_content: dict[bytes, list[Path]] = defaultdict(list)
    damaged_exif = []
    for record, (digest, error, has_damaged_exif) in _decode_all(list(images.values()), workers, progress):
        assert record.path is not None
        damaged_exif += [record.path.name] if has_damaged_exif else []
        if error is None:
            splits_of_content[digest] |= splits_of_path[record.path]
            files_of_content[digest].append(record.path)
        else:
            missing = not record.path.exists()
            report.problems.append(Problem("missing image" if missing else "unreadable image", str(record.path), error))
    if damaged_exif:
        report.notes.append(
            f"{len(damaged_exif):,} image file(s) with damaged EXIF data are read as they are stored, which may not be upright: "
            f"{some(damaged_exif)}"
        )
    copies: dict[str, list[str]] = defaultdict(list)
    for files in files_of_content.values():
        for split in {split for file in files for split in splits_of_path[file]} if len(files) > 1 else ():
            its = [file.name for file in files if split in splits_of_path[file]]
            copies[split] += its[1:]
    for split, names in sorted(copies.items()):
        if names:
            report.notes.append(
                f"{len(names):,} image file(s) of {split} have the same content as another one of it ({some(names)}): the right "
                "answer of one counts as wrong for the other"
            )
    several = {path for path, splits in splits_of_path.items() if len(splits) > 1}
    if not several:  # otherwise the image ids have already said so
        _note_shared(report, "image file(s) with equal content", splits_of_content.values())
    return report


def _note_shared(report: Report, what: str, sets: Iterable[set[str]]) -> None:
    together: dict[tuple[str, ...], int] = defaultdict(int)
    for splits in sets:
        if len(splits) > 1:
            together[tuple(sorted(splits))] += 1
    for names, count in sorted(together.items()):
        report.notes.append(f"{count:,} {what} occur in {' and '.join(names)}")


def _check_regions(
    records: Sequence[ImageRecord], reader: RegionReader, prefixes: Sequence[str], progress: bool
) -> Iterable[Problem]:
    console = Console(stderr=True)
    hidden = not (progress and console.is_terminal)
    names = [name_of(record, reader, prefixes) for record in records]
    made_of = [None if name is None else reader.photograph(name) for name in names]
    contents = digests(record.path for record, its in zip(records, made_of, strict=True) if record.path is not None and its)
    place = str(reader.databases[0].folder)
    every = list(zip(records, names, made_of, strict=True))
    for record, name, its in track(every, "reading regions", console=console, disable=hidden, transient=True):
        if name is None:
            yield Problem("missing image", place, f"image {record.image_id} has no regions")
            continue
        try:
            reader.read(name)
        except InputError as error:
            yield Problem("unreadable image", place, str(error))
            continue
        if record.path is not None and contents.get(record.path, its) != its:
            text = f"its regions were made of another photograph than {record.path} is now; extract it again"
            yield Problem("unreadable image", place, f"image {record.image_id}: {text}")


def _decode_all(records: Sequence[ImageRecord], workers: int, progress: bool) -> Iterable[tuple[ImageRecord, _Decoded]]:
    console = Console(stderr=True)
    hidden = not (progress and console.is_terminal)
    if workers <= 1:
        results: Iterable[_Decoded] = map(_decode, records)
        yield from zip(
            records,
            track(results, "decoding images", len(records), console=console, disable=hidden, transient=True),
            strict=True,
        )
        return
    with ProcessPoolExecutor(workers) as pool:
        results = pool.map(_decode, records, chunksize=32)
        yield from zip(
            records,
            track(results, "decoding images", len(records), console=console, disable=hidden, transient=True),
            strict=True,
        )


def _decode(record: ImageRecord) -> _Decoded:
    """Digest of the file, what is wrong with the image, and whether its EXIF data are damaged."""
    assert record.path is not None
    try:
        with warnings.catch_warnings(record=True) as given:
            warnings.simplefilter("always")
            _, has_damaged_exif = read_and_judge(record.path)
        has_damaged_exif |= any("EXIF" in str(each.message) or "Tag data" in str(each.message) for each in given)  # PIL's words
        return hashlib.blake2b(record.path.read_bytes(), digest_size=16).digest(), None, has_damaged_exif
    except InputError as error:
        return b"", f"image {record.image_id}: {error}".removesuffix("."), False
