"""Reader of the official COCO caption files (captions_train2014.json, captions_val2017.json, ...).

One JSON object: `images[]` with `id`, `file_name`; `annotations[]` with `id`, `image_id`, `caption`. One file is one split.
Source: https://cocodataset.org/#format-data
"""

from __future__ import annotations

from pathlib import Path

from datamodules.files.json_file import read_json
from datamodules.formats.parsing import Entry, Parsed
from datamodules.records import Caption, ImageRecord

EXPECTED = "a COCO caption file (an object with images[].{id, file_name} and annotations[].{id, image_id, caption})"


def parse_coco_captions(path: Path, image_dir: Path, split: str = "all") -> Parsed:
    """The file's images with their captions as one split named `split`, in the file's order, and its problems.

    Captions whose image the file does not list are left out (and are problems), so are repeated images and captions.

    Raises:
        InputError: the file is missing, cut short, or not of this format.
    """
    parsed = Parsed(path)
    image_dir = image_dir.absolute()
    top = Entry(read_json(path, EXPECTED), path, "the top level", EXPECTED)
    paths: dict[str, Path] = {}
    for row, value in enumerate(top.items("images")):
        image = Entry(value, path, f"images[{row}]", EXPECTED)
        image_id, filename = image.identity("id"), image.file("file_name")
        if image_id in paths:
            parsed.add("duplicated id", f"images[{row}] ({filename}) repeats image id {image_id}")
            continue
        paths[image_id] = image_dir / filename
    captions: dict[str, list[Caption]] = {image_id: [] for image_id in paths}
    seen: set[str] = set()
    for row, value in enumerate(top.items("annotations")):
        annotation = Entry(value, path, f"annotations[{row}]", EXPECTED)
        caption_id, image_id = annotation.identity("id"), annotation.identity("image_id")
        text = annotation.text("caption")
        if caption_id in seen:
            parsed.add("duplicated id", f"annotations[{row}] repeats caption id {caption_id}")
            continue
        seen.add(caption_id)
        if image_id not in captions:
            parsed.add("caption without image", f"caption {caption_id} names image {image_id}, which images[] does not list")
            continue
        captions[image_id].append(Caption(caption_id, text))
    for image_id, path_of_image in paths.items():
        if not captions[image_id]:
            parsed.add("image without captions", f"image {image_id} ({path_of_image.name})")
    parsed.splits[split] = [ImageRecord(image_id, paths[image_id], tuple(captions[image_id])) for image_id in paths]
    return parsed


def read_coco_captions(path: Path, image_dir: Path) -> list[ImageRecord]:
    """The images of an official caption file with their captions (see `parse_coco_captions`).

    Raises:
        InputError: the file is missing, cut short, not of this format, or has captions without an image, images without
            captions or duplicated ids.
    """
    return parse_coco_captions(path, image_dir).valid()["all"]
