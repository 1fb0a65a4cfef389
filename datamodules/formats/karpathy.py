"""Reader of Karpathy's split files: dataset_coco.json, dataset_flickr30k.json, dataset_flickr8k.json.

One JSON object: `images[]` with `filename`, optional `filepath` (the folder in COCO), `split`, `imgid`, optional `cocoid`, and
`sentences[]` with `raw` and `sentid`. All sentences are kept (COCO has images with six or seven), as in the official BEiT-3
index (unilm/beit3/datasets.py), which also uses `raw`.
"""

from __future__ import annotations

from pathlib import Path

from datamodules.errors import shown
from datamodules.files.json_file import read_json
from datamodules.formats.parsing import Entry, Parsed
from datamodules.records import Caption, ImageRecord

SPLITS = ("train", "restval", "val", "test")
EXPECTED = "a Karpathy split file (an object with images[].{filename, split, imgid, sentences[].{raw, sentid}})"


def parse_karpathy(path: Path, image_dir: Path) -> Parsed:
    """All splits of a file under the names it gives them ("train", "restval", "val", "test"), and its problems.

    `image_id` is the COCO id where the file has one and the file name's stem elsewhere (the id that Flickr30k Entities
    uses); `caption_id` is `sentid`. Images lie at `image_dir/filepath/filename`.

    Raises:
        InputError: the file is missing, cut short, or not of this format.
    """
    parsed = Parsed(path)
    image_dir = image_dir.absolute()
    images = Entry(read_json(path, EXPECTED), path, "the top level", EXPECTED).items("images")
    # What is optional all images have, or none: ids of two kinds would be mixed.
    given = {key for key in ("filepath", "cocoid") if any(isinstance(value, dict) and key in value for value in images)}
    seen_numbers: set[str] = set()
    split_of: dict[str, str] = {}
    seen_captions: set[str] = set()
    for row, value in enumerate(images):
        image = Entry(value, path, f"images[{row}]", EXPECTED)
        filename, split, number = image.file("filename"), image.text("split"), image.identity("imgid")
        folder = image.file("filepath") if "filepath" in given else ""
        image_id = image.identity("cocoid") if "cocoid" in given else Path(filename).stem
        if split not in SPLITS:
            what = f"images[{row}] ({filename}) is of split {shown(split)}, not one of {', '.join(SPLITS)}"
            parsed.add("unreadable annotation", what)
        if number in seen_numbers:
            parsed.add("duplicated id", f"images[{row}] ({filename}) repeats imgid {number}")
        seen_numbers.add(number)
        if image_id in split_of:
            what = f"images[{row}] ({filename}) of {split} repeats image {image_id} of {split_of[image_id]}"
            parsed.add("duplicated id" if split_of[image_id] == split else "image in several splits", what)
            continue
        split_of[image_id] = split
        captions = []
        for position, sentence_value in enumerate(image.items("sentences")):
            sentence = Entry(sentence_value, path, f"images[{row}].sentences[{position}]", EXPECTED)
            caption_id, text = sentence.identity("sentid"), sentence.text("raw")
            if caption_id in seen_captions:
                parsed.add("duplicated id", f"images[{row}] ({filename}) repeats sentid {caption_id}")
                continue
            seen_captions.add(caption_id)
            captions.append(Caption(caption_id, text))
        if not captions:
            parsed.add("image without captions", f"image {image_id} ({filename})")
        record = ImageRecord(image_id, image_dir / folder / filename, tuple(captions))
        parsed.splits.setdefault(split, []).append(record)
    return parsed


def read_karpathy(path: Path, image_dir: Path) -> dict[str, list[ImageRecord]]:
    """The splits of a Karpathy file (see `parse_karpathy`).

    Raises:
        InputError: the file is missing, cut short, not of this format, or has duplicated ids or images without captions.
    """
    return parse_karpathy(path, image_dir).valid()
