"""Tiny data sets on disk: noise photographs and captions of a few words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WORDS = ["a", "dog", "cat", "runs", "sleeps", "on", "the", "red", "blue", "grass", "quickly", "under", "tree"]


def write_image(path: Path, seed: int, size: tuple[int, int] = (40, 30)) -> None:
    """A JPEG of smooth noise, different for each seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(path, quality=90)


def caption(seed: int) -> str:
    rng = np.random.default_rng(seed)
    return " ".join(rng.choice(WORDS, rng.integers(3, 12)))


def karpathy(splits: dict[str, int], folder: str | None = None) -> dict[str, Any]:
    """A Karpathy file's content: `splits` says how many images each has; image i has 1 + i % 5 sentences."""
    images: list[dict[str, Any]] = []
    sentence = 0
    for split, count in splits.items():
        for _ in range(count):
            number = len(images)
            sentences = []
            for _ in range(1 + number % 5):
                sentences.append({"raw": caption(sentence), "sentid": sentence, "imgid": number, "tokens": []})
                sentence += 1
            image = {"filename": f"{1000 + number}.jpg", "imgid": number, "split": split, "sentences": sentences}
            if folder is not None:
                image |= {"filepath": folder, "cocoid": 5000 + number}
            images.append(image)
    return {"images": images, "dataset": "tiny"}


def write_flickr8k(root: Path, splits: dict[str, int] | None = None) -> Path:
    content = karpathy(splits or {"train": 13, "val": 5, "test": 3})
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset_flickr8k.json").write_text(json.dumps(content))
    for image in content["images"]:
        write_image(root / "images" / image["filename"], image["imgid"])
    return root
