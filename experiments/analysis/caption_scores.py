"""A results file of captions against its references: reading both, which images are scored, and the table of scores."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from statistics import fmean
from typing import Any, Literal

from datamodules.errors import InputError, some
from datamodules.files.json_file import read_json
from datamodules.formats.caption_results import EXPECTED, image_id_of, parse_caption_results
from datamodules.formats.coco_captions import parse_coco_captions
from datamodules.formats.karpathy import parse_karpathy
from datamodules.formats.parsing import Entry, Parsed
from datamodules.records import ImageRecord
from experiments.runs.beside import read_beside
from lightning_modules.metrics.captions.evaluation import CaptionScorer, Scores

_ENDING = re.compile(r"\.(?:jpe?g|jpe|png|webp|gif|bmp|tiff?|avif|heic)$", re.IGNORECASE)
_LOST = ("duplicated id", "image in several splits")  # problems for which a reader leaves captions out
REFERENCES = "a COCO caption file (images[], annotations[]; NoCaps is one) or one of Karpathy's (images[].sentences[])"

# ---------------------------------------------------------------------------------------------------------------- files


def read_results(path: Path) -> tuple[dict[str, str], list[str]]:
    """Captions by image id, and what is worth saying about them.

    Raises:
        InputError: The file is missing, damaged or not of this format, empty, or has two captions for an image.
    """
    results = parse_caption_results(path)
    captions = results.valid(empty=True)
    if not captions:
        raise InputError(f"{path} has no captions; expected {EXPECTED}.")
    odd = len(results.odd_white_space)
    return captions, [f"{odd} captions have tabs, line breaks or the like, which count as spaces"] if odd else []


def read_references(path: Path, split: str) -> list[ImageRecord]:
    """The reference captions of all images of a file, with their domains where it names them.

    Args:
        path: COCO captions or a Karpathy file.
        split: Of the latter.

    Raises:
        InputError: The file is missing, damaged, of neither format, or has no such split.
    """
    top = Entry(read_json(path, REFERENCES), path, "the top level", REFERENCES)
    images = top.items("images")
    if images and isinstance(images[0], Mapping) and "sentences" in images[0]:
        parsed = parse_karpathy(path, path.parent)
        splits = parsed.splits
        _require_all_read(parsed)
        if split not in splits:
            raise InputError(f"{path} has no split {split!r}; it has {', '.join(sorted(splits))} (--split).")
        return splits[split]
    if "annotations" not in top.value:
        raise InputError(f"{path} has no 'annotations', so no captions to compare with; expected {REFERENCES}.")
    domains = {}
    for row, value in enumerate(images):
        image = Entry(value, path, f"images[{row}]", REFERENCES)
        if image.value.get("domain") is not None:
            domains[image.identity("id")] = image.text("domain")
    parsed = parse_coco_captions(path, path.parent)
    _require_all_read(parsed)
    # Images without captions matter where they are scored: `choose` sees.
    return [replace(record, domain=domains.get(record.image_id)) for record in parsed.splits["all"]]


def _require_all_read(parsed: Parsed) -> None:
    """No reference was left out for its id, or its image's: scores against the others would be other scores.

    Raises:
        InputError: Some were.
    """
    if lost := [problem for problem in parsed.problems if problem.kind in _LOST]:
        raise InputError(
            f"{lost[0]} ({len(lost)} such problem(s) in all). Not all of its captions can be references: give each image and "
            "each caption an id of its own."
        )


def by_reference(
    captions: Mapping[str, str],
    records: Sequence[ImageRecord],
    results: Path,
    references: Path,
    ids: Literal["auto", "id", "name"] = "auto",
) -> tuple[dict[str, str], list[str]]:
    """The captions by the references' ids, and what is worth saying about that.

    An image_id of results is an id of the references, or the name of an image's file, with folder and ending or without; COCO's
    files are also known by the number in their names. So COCO_val2014_000000391895, 000000391895.jpg and 391895 are one image.

    Args:
        captions: By the image_id of the results.
        records: The references.
        results: The file of the captions, for errors.
        references: That of the references.
        ids: "id" and "name" take an image_id as one of these alone; "auto" as either, unless that makes two images of it.

    Raises:
        InputError: Captions of images that the references lack, an image_id that could be two images, or two for one image.
    """
    known = {record.image_id for record in records} if ids != "name" else set()
    named: dict[str, set[str]] = defaultdict(set)
    for record in records if ids != "id" else ():
        for name in _names(record.path) if record.path is not None else ():
            named[name].add(record.image_id)
    found: dict[str, str] = {}
    unknown, by_name = [], 0
    for image_id in captions:
        meant = {image_id} & known
        as_name = set().union(*(named.get(name, ()) for name in _names(PurePath(image_id))))
        by_name += not meant and bool(as_name)
        meant |= as_name
        if len(meant) > 1:
            raise InputError(
                f"{results}: image_id {image_id} could be images {some(sorted(meant))} of {references}, by its id and by its "
                "file's name; say which with --ids id or --ids name."
            )
        for image in meant:
            if image in found:
                raise InputError(f"{results}: image_ids {found[image]} and {image_id} are both image {image} of {references}.")
            found[image] = image_id
        if not meant:
            unknown.append(image_id)
    if unknown:
        raise InputError(
            f"{results}: {len(unknown)} of {len(captions)} captions are for images that {references} does not have "
            f"(first: image_id {unknown[0]}, neither an id nor a file's name there); give the references of this split."
        )
    said = [f"{by_name} captions name their image by its file"] if by_name else []
    return {image: captions[image_id] for image, image_id in found.items()}, said


def _names(file: PurePath) -> set[str]:
    """What a file is known by."""
    stem = _ENDING.sub("", file.name)
    return {stem, image_id_of(stem)}


def choose(
    captions: Mapping[str, str], records: Sequence[ImageRecord], results: Path, references: Path, partial: bool
) -> tuple[list[ImageRecord], list[str]]:
    """The images to score, in the references' order, and what is worth saying about them.

    Raises:
        InputError: Images without references, or (unless `partial`) without caption.
    """
    chosen = [record for record in records if record.image_id in captions]
    bare = [record.image_id for record in chosen if not record.captions]
    if bare:
        raise InputError(f"{references}: {len(bare)} of the captioned images have no reference captions (first: {bare[0]}).")
    missing = [record.image_id for record in records if record.image_id not in captions]
    if missing and not partial:
        raise InputError(
            f"{results}: {len(missing)} of {len(records)} images of {references} have no caption (first: {missing[0]}); "
            "add them, or score the others alone with --partial."
        )
    return chosen, [f"{len(missing)} images of the references have no caption and are left out (--partial)"] if missing else []


def other_references(results: Path, records: Sequence[ImageRecord]) -> list[str]:
    """What is worth saying where a run's captions meet other references than the run's own test did: an id is an image's only
    within its data set, and captions of one scored against another's people say nothing.

    Args:
        results: The file of the captions; of a run, its references are in a file beside it.
        records: The references.

    Raises:
        InputError: That file cannot be read.
    """
    data = results.stem.removesuffix("-test")
    if results.parent.name != "captions" or data == results.stem:
        return []
    own = {each.image_id: set(each.references) for each in read_beside(results.parent.parent, data) if each.references}
    shared = [record for record in records if record.image_id in own]
    others = [record for record in shared if not own[record.image_id] & {caption.text for caption in record.captions}]
    if not others:
        return []
    return [
        f"{len(others)} of {len(shared)} images have here no reference that the run was tested with (first: image "
        f"{others[0].image_id}): if these are another data set's images, the scores say nothing"
    ]


def with_files(records: Sequence[ImageRecord], beside: Path, images: Path | None) -> list[ImageRecord]:
    """The records, each with the file of its image.

    Args:
        records: As `read_references` gives them, with paths beside the references' file.
        beside: The folder of that file.
        images: Where the images are; None = beside it. A file is found by its path there, or by its name alone.

    Raises:
        InputError: A file is not there.
    """
    found: list[ImageRecord] = []
    for record in records:
        path = record.path or Path(record.image_id)
        places = [path] if images is None else [images / path.relative_to(beside.absolute()), images / path.name]
        file = next((place for place in places if place.is_file()), None)
        if file is None:
            raise InputError(
                f"--clip looks at the images, and {' or '.join(map(str, dict.fromkeys(places)))} is not there: give their "
                "folder with --images DIR."
            )
        found.append(replace(record, path=file))
    return found


# --------------------------------------------------------------------------------------------------------------- report


@dataclass(frozen=True)
class Beside:
    """What people reach by the same metrics: means over the references, each of which is scored against the others of its image.

    Args:
        references: How many were held out in turn: as many as the image with the fewest has.
        people: Metrics of the references that were held out.
        results: Metrics of the results against the same others: with a reference less than usual they are lower.
    """

    references: int
    people: dict[str, float]
    results: dict[str, float]


def beside_people(
    records: Sequence[ImageRecord], captions: Sequence[str], scorer_of: Callable[[Sequence[Sequence[str]]], CaptionScorer]
) -> Beside:
    """Score each reference of an image against its others, and the results likewise.

    Args:
        records: Images with their references.
        captions: The results, one an image.
        scorer_of: A scorer for references [I][R].

    Raises:
        InputError: An image has one reference, which leaves nothing to score it against.
    """
    fewest = min(records, key=lambda record: len(record.captions))
    turns = len(fewest.captions)
    if turns < 2:
        raise InputError(
            f"--people scores a reference against the others of its image, and image {fewest.image_id} has only {turns}: "
            "leave it out."
        )
    people: list[dict[str, float]] = []
    results: list[dict[str, float]] = []
    for turn in range(turns):
        scorer = scorer_of([[each.text for at, each in enumerate(record.captions) if at != turn] for record in records])
        people.append(scorer.score([record.captions[turn].text for record in records]).values)
        results.append(scorer.score(captions).values)
    return Beside(turns, _means(people), _means(results))


def _means(of_turns: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: fmean(each[name] for each in of_turns) for name in of_turns[0]}


def beside_report(beside: Beside) -> list[str]:
    """Lines: a table of both, without domains."""
    names = [name for name in beside.people if "/" not in name]
    long = max(10, *map(len, names))
    return [
        "",
        f"each of {beside.references} references against the others of its image, and these results against the same; means",
        f"{'':{long}}{'people':>12}{'results':>12}",
        *(f"{name:{long}}{beside.people[name]:12.4f}{beside.results[name]:12.4f}" for name in names),
    ]


def report(scores: Scores, images_of: Mapping[str, int], images: int, said: Sequence[str]) -> list[str]:
    """Lines: what was scored, a table (a column a domain, where there are domains), and what is unavailable."""
    columns = {"": f"all ({images})"} | {name: f"{name} ({count})" for name, count in images_of.items()}
    width = max(10, *(len(title) for title in columns.values())) + 2
    names = [name for name in scores.values if "/" not in name]
    long = max(10, *map(len, [*names, *scores.unavailable, *scores.remarks, ""]))
    lines = [f"{images} images, tokenizer {scores.tokenizer}; fractions (papers print 100 times that)", *said, ""]
    if images_of:
        lines.append(f"{'':{long}}" + "".join(f"{title:>{width}}" for title in columns.values()))
    for name in names:
        cells = [scores.values[f"{domain}/{name}" if domain else name] for domain in columns]
        lines.append(f"{name:{long}}" + "".join(f"{cell:{width}.4f}" for cell in cells))
    lines += [f"{name:{long}}  unavailable: {remedy}" for name, remedy in scores.unavailable.items()]
    lines += [f"{name:{long}}  note: {remark}" for name, remark in scores.remarks.items()]
    return lines


def as_json(scores: Scores, records: Sequence[ImageRecord]) -> dict[str, Any]:
    """What --out writes."""
    domains = Counter(record.domain for record in records if record.domain is not None)
    return {
        "metrics": scores.values,
        "unavailable": scores.unavailable,
        "remarks": scores.remarks,
        "tokenizer": scores.tokenizer,
        "images": len(records),
        "domains": dict(sorted(domains.items())),
        "per_image": {
            record.image_id: {name: float(values[row]) for name, values in scores.per_image.items()}
            for row, record in enumerate(records)
        },
    }
