"""Reader of Karpathy's split files: dataset_coco.json, dataset_flickr30k.json, dataset_flickr8k.json.

One JSON object: `images[]` with `filename`, optional `filepath` (the folder in COCO), `split`, `imgid`, optional `cocoid`, and
`sentences[]` with `raw` and `sentid`. All sentences are kept (COCO has images with six or seven), as in the official BEiT-3
index (unilm/beit3/datasets.py), which also uses `raw`.
"""

from __future__ import annotations

from pathlib import Path

from datamodules.formats.parsing import Entry, Parsed, read_json
from datamodules.records import Caption, ImageRecord

KARPATHY_URL = "https://cs.stanford.edu/people/karpathy/deepimagesent"
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
    seen_numbers: set[str] = set()
    seen_images: set[str] = set()
    seen_captions: set[str] = set()
    for row, value in enumerate(images):
        image = Entry(value, path, f"images[{row}]", EXPECTED)
        filename, split, number = image.text("filename"), image.text("split"), image.identity("imgid")
        folder = image.text("filepath") if "filepath" in image.value else ""
        image_id = image.identity("cocoid") if "cocoid" in image.value else Path(filename).stem
        for key, known, identity in (("imgid", seen_numbers, number), ("image", seen_images, image_id)):
            if identity in known:
                parsed.add("duplicated id", f"images[{row}] ({filename}) repeats {key} {identity}")
            known.add(identity)
        captions = []
        for position, sentence_value in enumerate(image.items("sentences")):
            sentence = Entry(sentence_value, path, f"images[{row}].sentences[{position}]", EXPECTED)
            caption_id, text = sentence.identity("sentid"), sentence.text("raw")
            if caption_id in seen_captions:
                parsed.add("duplicated id", f"images[{row}] ({filename}) repeats sentid {caption_id}")
            seen_captions.add(caption_id)
            if not text.strip():
                parsed.add("empty caption", f"sentid {caption_id} of image {image_id}")
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
