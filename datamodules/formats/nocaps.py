"""Reader of NoCaps (Agrawal et al. 2019): nocaps_val_4500_captions.json and nocaps_{val,test}_image_info.json.

COCO's layout: `images[]` with `id` (0, 1, ...), `open_images_id`, `file_name`, `coco_url` and, in the file with captions,
`domain`; `annotations[]` with `id`, `image_id`, `caption`, which the image_info files lack: captions of the test images are not
public.
Source: https://nocaps.org/download
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from datamodules.errors import InputError, shown
from datamodules.files.json_file import read_json
from datamodules.formats.caption_results import write_caption_results
from datamodules.formats.parsing import Entry, Parsed
from datamodules.records import Caption, ImageRecord

EXPECTED = "a NoCaps file (an object with images[].{id, open_images_id or file_name} and, but for test, annotations[])"
DOMAINS = ("in-domain", "near-domain", "out-domain")
"""How the objects of an image relate to COCO's classes, by the names of the file and of EvalAI's results."""


def parse_nocaps(path: Path, image_dir: Path) -> Parsed:
    """The file's images as one split "all", in the file's order, with `domain` where the file has it, and its problems.

    An image lies at `image_dir/OPEN_IMAGES_ID.jpg`. A file without `annotations` gives images without captions. A domain other
    than the three, or only on some of the images, is a problem: means over domains would not be of all images.

    Raises:
        InputError: the file is missing, cut short, or not of this format.
    """
    parsed = Parsed(path)
    image_dir = image_dir.absolute()
    top = Entry(read_json(path, EXPECTED), path, "the top level", EXPECTED)
    images: dict[str, tuple[str, str | None]] = {}
    for row, value in enumerate(top.items("images")):
        image = Entry(value, path, f"images[{row}]", EXPECTED)
        image_id, file = image.identity("id"), file_of(image)
        if image_id in images:
            parsed.add("duplicated id", f"images[{row}] ({file}) repeats image id {image_id}")
            continue
        domain = image.text("domain") if "domain" in image.value else None
        if domain is not None and domain not in DOMAINS:
            what = f"image {image_id} ({file}) has domain {domain!r}, not one of {', '.join(DOMAINS)}"
            parsed.add("unreadable annotation", what)
        images[image_id] = file, domain
    without = [image_id for image_id, (_, domain) in images.items() if domain is None]
    if 0 < len(without) < len(images):
        parsed.add("unreadable annotation", f"{len(without)} of {len(images)} images have no domain, first image {without[0]}")
    captions: dict[str, list[Caption]] = {image_id: [] for image_id in images}
    if "annotations" in top.value:
        _read_captions(top, parsed, captions)
        for image_id, (file, _) in images.items():
            if not captions[image_id]:
                parsed.add("image without captions", f"image {image_id} ({file})")
    parsed.splits["all"] = [
        ImageRecord(image_id, image_dir / file, tuple(captions[image_id]), domain) for image_id, (file, domain) in images.items()
    ]
    return parsed


def _read_captions(top: Entry, parsed: Parsed, captions: dict[str, list[Caption]]) -> None:
    seen: set[str] = set()
    for row, value in enumerate(top.items("annotations")):
        annotation = Entry(value, top.path, f"annotations[{row}]", EXPECTED)
        caption_id, image_id = annotation.identity("id"), annotation.identity("image_id")
        text = annotation.text("caption")
        if caption_id in seen:
            parsed.add("duplicated id", f"annotations[{row}] repeats caption id {caption_id}")
            continue
        seen.add(caption_id)
        if image_id in captions:
            captions[image_id].append(Caption(caption_id, text))
        else:
            parsed.add("caption without image", f"caption {caption_id} names image {image_id}, which images[] does not list")


def file_of(image: Entry) -> str:
    """The name of an image's file: its Open Images id.

    Raises:
        InputError: the entry has neither `open_images_id` nor `file_name`, or the name climbs out of its folder.
    """
    key = "open_images_id" if "open_images_id" in image.value else "file_name"
    name = image.file(key)
    if "/" in name or "\\" in name:
        raise InputError(f"{image.path}: {image.place}: {shown(name)} is no file name; expected {EXPECTED}.")
    return f"{name}.jpg" if key == "open_images_id" else name


def read_addresses(path: Path, split: str) -> dict[str, str]:
    """Where each image is fetched from, by file name: its `coco_url`, or that of the Open Images bucket's split.

    Args:
        path: The NoCaps file.
        split: "validation" or "test", as Open Images names it.

    Raises:
        InputError: the file is missing, cut short, or not of this format.
    """
    top = Entry(read_json(path, EXPECTED), path, "the top level", EXPECTED)
    addresses = {}
    for row, value in enumerate(top.items("images")):
        image = Entry(value, path, f"images[{row}]", EXPECTED)
        file = file_of(image)
        given = image.value.get("coco_url")
        official = f"https://s3.amazonaws.com/open-images-dataset/{split}/{file}"
        addresses[file] = given if isinstance(given, str) and given.startswith(("http://", "https://")) else official
    return addresses


def write_submission(path: Path, captions: Mapping[str, str], records: Sequence[ImageRecord]) -> None:
    """The file to upload to EvalAI's NoCaps challenge (355; phase 742 is val, 743 test): caption results of all of a split.

    Args:
        path: The file.
        captions: By image id.
        records: All images of the split, in the NoCaps file's order.

    Raises:
        InputError: images without a caption or captions of other images; ids are not NoCaps' numbers; it cannot be written.
    """
    other = [record.image_id for record in records if not record.image_id.isdecimal()]
    if other:
        raise InputError(f"{path} was not written: image id {other[0]!r} is not one of NoCaps', which are numbers.")
    write_caption_results(path, captions, [record.image_id for record in records])
