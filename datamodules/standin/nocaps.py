"""A stand-in for NoCaps' val split: 4,500 images of three domains, ten captions each."""

from __future__ import annotations

import json
from pathlib import Path

from datamodules.files.atomic import write_atomically
from datamodules.standin.amounts import begin_share, generator, part_of
from datamodules.standin.pictures import size_of, write_pictures
from datamodules.standin.words import sentences

DOMAINS = {"in-domain": 648, "near-domain": 2_938, "out-domain": 914}
_CAPTIONS = 10


def write_nocaps(root: Path, share: float = 1.0) -> None:
    """Everything that full-scale runs read of NoCaps.

    Args:
        root: Its folder.
        share: How much of it.

    Raises:
        InputError: `root` holds something else.
    """
    begin_share(root, "nocaps", share)
    domains = [domain for domain, count in DOMAINS.items() for _ in range(part_of(count, share))]
    random = generator("nocaps")
    identities = [random.bytes(8).hex() for _ in domains]
    images = []
    for number, (identity, domain) in enumerate(zip(identities, domains, strict=True)):
        width, height = size_of(number)
        address = f"https://s3.amazonaws.com/open-images-dataset/validation/{identity}.jpg"
        entry = {"id": number, "open_images_id": identity, "file_name": f"{identity}.jpg", "coco_url": address}
        images.append({**entry, "width": width, "height": height, "domain": domain})
    texts = sentences(random, _CAPTIONS * len(images), mean=11.3)
    annotations = [{"id": row, "image_id": row // _CAPTIONS, "caption": text} for row, text in enumerate(texts)]
    content = {"info": {"description": "stand-in"}, "licenses": [], "images": images, "annotations": annotations}
    path = root / "nocaps_val_4500_captions.json"
    if not path.exists():
        write_atomically(path, json.dumps(content))
    write_pictures(root / "val", [f"{identity}.jpg" for identity in identities])
