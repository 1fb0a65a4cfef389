"""NoCaps (Agrawal et al. 2019): images of Open Images with objects that COCO's captions never name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, ClassVar, Literal

from rich.console import Console
from rich.progress import track

from datamodules.errors import InputError
from datamodules.files.download import DiskErrors, FetchError, Remote, fetch_as, is_lacking
from datamodules.files.steps import Step, in_turn
from datamodules.formats.nocaps import parse_nocaps, read_addresses
from datamodules.formats.parsing import Parsed
from datamodules.source import Source

_ANNOTATIONS = {
    "val": Remote("https://nocaps.s3.amazonaws.com/nocaps_val_4500_captions.json"),
    "test": Remote("https://s3.amazonaws.com/nocaps/nocaps_test_image_info.json"),
}
_OPEN_IMAGES = {"val": "validation", "test": "test"}
_CONNECTIONS = 16


class NoCapsSource(Source):
    """NoCaps, to evaluate captioners on: 4,500 images of val with ten captions and a domain (648 in, 2,938 near, 914 out), or
    10,600 of test without, for EvalAI. There is nothing to train or validate on.

    Root holds nocaps_val_4500_captions.json (or nocaps_test_image_info.json) and the images as val/OPEN_IMAGES_ID.jpg (test/...).
    Whichever split is chosen is what the Trainer tests on; results call it by its own name.

    Args:
        root: Folder of the data set.
        image_dir: Folder of the images, relative to root (or absolute); the split's name by default.
        split: "val" has captions and gives scores; "test" only gives a file to submit.
        annotations: The split's file, relative to root, in place of the name above.
        download: Fetch what is missing: the annotations (a few MB) and, one by one, the images (1.5 GB of val, 3.5 GB of test).
        mirror: Base address to fetch from instead of the official servers: the annotations from MIRROR/NAME.json, images from
            MIRROR/validation/ID.jpg and MIRROR/test/ID.jpg; the environment variable CROSSLIGHT_NOCAPS_MIRROR does the same.
        loading: Options of all image-text data modules, where it is one.
    """

    name: ClassVar[str] = "nocaps"

    def __init__(
        self,
        root: str,
        image_dir: str | None = None,
        split: Literal["val", "test"] = "val",
        annotations: str | None = None,
        download: bool = False,
        mirror: str | None = None,
        **loading: Any,
    ) -> None:
        super().__init__(root, image_dir or split, **loading)
        self.split = split
        self.annotations = self.root / (annotations or _ANNOTATIONS[split].name)
        self.download = download
        self.mirror = (mirror or os.environ.get("CROSSLIGHT_NOCAPS_MIRROR") or "").rstrip("/") or None

    def options(self) -> dict[str, Any]:
        return {"split": self.split}

    def annotation_files(self) -> list[Path]:
        return [self.annotations]

    def parse_options(self) -> dict[str, Any]:
        return {**self.options(), "root": str(self.root), "image_dir": str(self.image_dir)}

    def split_name(self, split: str) -> str:
        """The split's own name in results: the Trainer's "test" is "val" here unless `split` says otherwise."""
        return self.split if split == "test" else split

    def remote(self) -> Remote:
        """Where the annotations are fetched from."""
        official = _ANNOTATIONS[self.split]
        return official if self.mirror is None else Remote(f"{self.mirror}/{official.name}")

    def image_remotes(self) -> dict[str, Remote]:
        """Where the images come from, by file name, in the file's order.

        Raises:
            InputError: the annotations are missing, cut short, or not of their format.
        """
        folder = _OPEN_IMAGES[self.split]
        addresses = read_addresses(self.annotations, folder)
        return {
            file: Remote(address if self.mirror is None else f"{self.mirror}/{folder}/{file}")
            for file, address in addresses.items()
        }

    def steps(self) -> list[Step]:
        found = [Step(self.annotations, self.remote() if self.annotations.name == self.remote().name else None)]
        if self.needs_image_files:
            size = {"val": "4,500 images, 1.5 GB", "test": "10,600 images, 3.5 GB"}[self.split]
            found.append(Step(self.image_dir, by_hand=f"{size}, fetched one by one from {self._images_url()}"))
        return found

    def fetch_files(self) -> None:
        super().fetch_files()
        if self.annotations.exists() and self.needs_image_files:
            fetch_images(self.image_remotes(), self.image_dir)

    def _images_url(self) -> str:
        return f"{self.mirror or 'https://s3.amazonaws.com/open-images-dataset'}/{_OPEN_IMAGES[self.split]}/ID.jpg"

    def prepare_data(self) -> None:
        """Fetch what is missing if `download` allows it.

        Raises:
            InputError: something is missing that may not or cannot be fetched; says what and how.
        """
        if self.download:
            self.fetch_files()
        self.require_files()

    def require_files(self) -> None:
        """See that everything is there.

        Raises:
            InputError: names each missing file or folder and where it comes from.
        """
        sources = {self.annotations: self.remote().url}
        if self.needs_image_files:
            sources[self.image_dir] = f"{self._images_url()} of each image"
        missing = [f"  {path}: from {source}" for path, source in sources.items() if not path.exists()]
        if missing:
            advice = "Put them there:" if self.download else "Set download to true to fetch them, or put them there:"
            raise InputError("\n".join([f"NoCaps is not complete under {self.root}. {advice}", *missing]))

    def parse(self) -> Parsed:
        self.require_files()
        parsed = parse_nocaps(self.annotations, self.image_dir)
        records = parsed.splits["all"]
        if self.split == "val" and not any(record.captions for record in records):
            raise InputError(
                f"{self.annotations} has no captions, and images of val have ten each: take {_ANNOTATIONS['val'].name}, or set "
                'split to "test", which goes without.'
            )
        parsed.splits = {"test": records}
        return parsed


def fetch_images(remotes: Mapping[str, Remote], folder: Path, pause: float = 2.0) -> None:
    """Fetch those images that `folder` lacks, several at a time; an image takes its name when it is complete.

    Args:
        remotes: What to fetch, by the name that it gets.
        folder: Where to; made if need be.
        pause: Seconds before the second attempt after a broken connection (doubled each time).

    Raises:
        InputError: some cannot be fetched (the others are, and stay for the next try), or the folder cannot be written.
    """
    if _missing(remotes, folder):
        with in_turn(folder.with_name(f".{folder.name}.lock"), f"the images of {folder}"):
            _fetch_images(_missing(remotes, folder), folder, pause)


def _missing(remotes: Mapping[str, Remote], folder: Path) -> dict[str, Remote]:
    with DiskErrors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        return {file: remote for file, remote in remotes.items() if is_lacking(folder / file)}


def _fetch_images(missing: Mapping[str, Remote], folder: Path, pause: float) -> None:
    failures: list[str] = []
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        tasks = [pool.submit(_fetch_image, remote, folder / file, pause) for file, remote in missing.items()]
        console = Console(stderr=True)
        try:
            for task in track(as_completed(tasks), "fetching images", len(tasks), console=console):
                failure = task.result()
                failures += [failure] if failure else []
        except InputError:  # of the disk
            pool.shutdown(cancel_futures=True)
            raise
    if failures:
        raise InputError(
            f"{len(failures):,} of {len(missing):,} images cannot be fetched into {folder}, first: {failures[0]} Start "
            "again for the others: what has arrived is kept."
        )


def _fetch_image(remote: Remote, path: Path, pause: float) -> str | None:
    """What went wrong with the server, if anything did."""
    try:
        fetch_as(remote, path, pause)
    except FetchError as error:
        return str(error)
    return None
