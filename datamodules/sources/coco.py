"""COCO captions (Chen et al. 2015): Karpathy's split, the official caption files of 2014 and 2017, or BEiT-3's index files."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from datamodules.errors import InputError
from datamodules.files.addresses import KARPATHY
from datamodules.files.download import Remote
from datamodules.files.steps import Step
from datamodules.formats.beit3_index import IndexKind, how_to_write, index_files, parse_index, require_current_index
from datamodules.formats.coco_captions import parse_coco_captions
from datamodules.formats.held_out import FlickrHeldOut
from datamodules.formats.karpathy import parse_karpathy
from datamodules.formats.parsing import Parsed, join
from datamodules.formats.positives import positive_files
from datamodules.records import ImageRecord
from datamodules.source import Source

IMAGES_URL = "http://images.cocodataset.org"
POSITIVES_URL = "https://raw.githubusercontent.com/naver-ai/eccv-caption/main/eccv_caption/data"
POSITIVES = "positives"  # the folder under root where they are put
_OF_2014 = re.compile(r"COCO_(?:train|val)2014_([0-9]{12}\.jpg)")

# Path under its server, bytes, MD5 as widely circulated (COCO publishes none).
_ARCHIVES: dict[str, tuple[str, str, int, str | None]] = {
    "train2014": (IMAGES_URL, "zips/train2014.zip", 13_510_573_713, "0da8c0bd3d6becc4dcb32757491aca88"),
    "val2014": (IMAGES_URL, "zips/val2014.zip", 6_645_013_297, "a3d79f5ed8d289b7a7554ce06a5782b3"),
    "train2017": (IMAGES_URL, "zips/train2017.zip", 19_336_861_798, "cced6f7f71b7629ddf16f17bbcfab6b2"),
    "val2017": (IMAGES_URL, "zips/val2017.zip", 815_585_330, "442b8da7639aecaf257c1dceb8ba8c80"),
    "annotations2014": (
        IMAGES_URL,
        "annotations/annotations_trainval2014.zip",
        252_872_794,
        "0a379cfc70b0e71301e0f377548639bd",
    ),
    "annotations2017": (
        IMAGES_URL,
        "annotations/annotations_trainval2017.zip",
        252_907_541,
        "f4bbac642086de4f52a3fdda2de5fa2c",
    ),
    "karpathy": (KARPATHY.url.rpartition("/")[0], KARPATHY.name, 36_745_453, None),
    **{
        name: (POSITIVES_URL, f"{name}.json", size, md5)
        for name, size, md5 in (
            ("eccv_image_to_caption", 168_731, "a06d7737ad226e8b96ac42f33b8fe3cc"),
            ("eccv_caption_to_image", 91_246, "03208c91a0739987105f0250db1be213"),
            ("cxc_image_to_caption", 298_632, "ffba4e65679f489ba7c5a6da2ea9d64a"),
            ("cxc_caption_to_image", 513_636, "4c7f9450922593db0cfc52c0db5e0e83"),
        )
    },
}


class COCOSource(Source):
    """COCO captions.

    Karpathy: root holds annotations/dataset_coco.json (or dataset_coco.json), train2014/ and val2014/; 113,287/5,000/5,000
    images with restval. Official: root holds annotations/captions_{train,val}YEAR.json, trainYEAR/ and valYEAR/; there is no
    test split unless `files` names one. BEiT-3's index: root holds coco_retrieval.{train,val,test}.jsonl (`crosslight data index`
    writes them), train2014/ and val2014/; the images of Karpathy with restval.

    Args:
        root: Folder of the data set.
        image_dir: Folder of the images, relative to root (or absolute). For "karpathy" and "beit3_index" the folder that holds
            train2014/ and val2014/ (or those of `year`), root by default. For "official" the one folder of all images; by default
            each caption file has its own, captions_val2017.json has val2017/.
        captions: "karpathy" reads dataset_coco.json; "official" reads COCO's own caption files; "beit3_index" reads BEiT-3's
            index files, whose captions are token ids: only for a network with BEiT-3's tokenizer.
        restval: Karpathy: train on the 30,504 images of the split "restval" too, as is usual.
        year: Official: of the caption files. Karpathy and index: of the folders that the images lie in; with "2017" an image of
            train2014/ or val2014/ is found in train2017/ or val2017/, by its number.
        files: Official and index: which files make which split, relative to root; replaces `year` and the names above. Several
            files are joined: {test: [annotations/captions_train2017.json, annotations/captions_val2017.json]}.
        positives: Right answers of the test split beyond its own captions, as name: folder, where the folder (relative to root,
            or absolute) has NAME_image_to_caption.json and NAME_caption_to_image.json: {eccv: positives, cxc: positives} for ECCV
            Caption and Crisscrossed Captions, as the package eccv_caption ships them. Tests of retrieval then also give
            NAME_i2t_map_at_r, NAME_i2t_rprecision, NAME_i2t_r1 and so on.
        held_out: Training images that stay out because Flickr30k or Flickr8k evaluates on them, for who pre-trains here and
            evaluates there; null leaves them in. Text databases are then not read: they cannot know.
        download: Fetch what is missing (Karpathy's or the official captions, and 20 GB of images).
        mirror: Base address to fetch from instead of the official servers, with the same paths under it; the environment
            variable CROSSLIGHT_COCO_MIRROR does the same.
        loading: Options of all image-text data modules, where it is one.
    """

    name: ClassVar[str] = "coco"
    region_prefixes: ClassVar[tuple[str, ...]] = ("coco_train2014", "coco_val2014")

    def __init__(
        self,
        root: str,
        image_dir: str | None = None,
        captions: Literal["karpathy", "official", "beit3_index"] = "karpathy",
        restval: bool = True,
        year: Literal["2014", "2017"] = "2014",
        files: dict[str, list[str]] | None = None,
        positives: dict[str, str] | None = None,
        held_out: FlickrHeldOut | None = None,
        download: bool = False,
        mirror: str | None = None,
        **loading: Any,
    ) -> None:
        super().__init__(root, image_dir or ".", **loading)
        if files is not None and captions == "karpathy":
            raise InputError('files names the caption files of splits; set captions to "official" or "beit3_index" with it.')
        if positives and captions == "beit3_index":
            raise InputError(
                "positives name captions by their ids, which BEiT-3's index files do not have: set captions to karpathy or "
                "official."
            )
        self.captions = captions
        self._positives = {name: self.root / Path(folder).expanduser() for name, folder in (positives or {}).items()}
        self.held_out = held_out
        self.own_captions = held_out is not None  # type: ignore[misc]  # text databases would bring the images back
        self.restval = restval
        self.year = year
        self.files = files
        self.flat = image_dir is not None
        self.download = download
        self.mirror = mirror or os.environ.get("CROSSLIGHT_COCO_MIRROR") or None

    @property
    def positives(self) -> Mapping[str, Path]:
        return self._positives

    def options(self) -> dict[str, Any]:
        further: dict[str, Any] = {"positives": sorted(self.positives)} if self.positives else {}
        if self.held_out is not None:
            further["held_out"] = [*(Path(path).name for path in self.held_out.files()), *self.held_out.splits]
        if self.captions == "karpathy":
            return {"captions": self.captions, "restval": self.restval, **further}
        return {"captions": self.captions, "files": {s: [p.name for p in ps] for s, ps in self._files().items()}, **further}

    def annotation_files(self) -> list[Path]:
        held_out = [] if self.held_out is None else [self.root / path for path in self.held_out.files()]
        if self.captions == "karpathy":
            return [self.karpathy_file(), *held_out]
        return list(dict.fromkeys([*self._caption_files(), *held_out]))

    def _caption_files(self) -> list[Path]:
        """Official and index: the files of all splits."""
        return list(dict.fromkeys(path for paths in self._files().values() for path in paths))

    def parse_options(self) -> dict[str, Any]:
        moved = self.year == "2017" and self.captions != "official" and self.needs_image_files
        files = None if self.captions == "karpathy" else {s: [str(path) for path in paths] for s, paths in self._files().items()}
        held_out = None if self.held_out is None else asdict(self.held_out)
        return {
            **self.options(), "files": files, "held_out": held_out, "root": str(self.root), "image_dir": str(self.image_dir),
            "flat": self.flat, "year": self.year, "val2017": sorted(self._in_val2017()) if moved else None,
        }  # fmt: skip

    def karpathy_file(self) -> Path:
        beside = self.root / "dataset_coco.json"
        return beside if beside.exists() else self.root / "annotations" / "dataset_coco.json"

    def index_source(self) -> tuple[IndexKind, Path]:
        return "coco", self.karpathy_file()

    def _files(self) -> dict[str, list[Path]]:
        """Official and index: the files of each split."""
        official = {split: [f"annotations/captions_{split}{self.year}.json"] for split in ("train", "val")}
        files = self.files or (official if self.captions == "official" else index_files("coco"))
        return {split: [self.root / path for path in paths] for split, paths in files.items()}

    def _image_folder(self, captions: Path) -> Path:
        """Official: where the images of a caption file lie."""
        return self.image_dir if self.flat else self.root / captions.stem.removeprefix("captions_")

    def _needed(self) -> dict[Path, str | None]:
        """The files and folders that must exist, and the archive that brings each (None: not one we can fetch)."""
        if not self.needs_annotation_files:
            return self._needed_positives()
        return {**self._needed_captions(), **self._needed_positives()}

    def _needed_positives(self) -> dict[Path, str | None]:
        files = [path for name, folder in self.positives.items() for path in positive_files(folder, name)]
        own = self.root / POSITIVES
        return {path: path.stem if path.parent == own and path.stem in _ARCHIVES else None for path in files}

    def _needed_captions(self) -> dict[Path, str | None]:
        folders = (f"train{self.year}", f"val{self.year}")
        pictures = {self.image_dir / folder: folder if not self.flat else None for folder in folders}
        if not self.needs_image_files:
            pictures = {}
        if self.captions == "karpathy":
            return {self.karpathy_file(): "karpathy", **pictures}
        if self.captions == "beit3_index":  # files of the user's own may name other folders
            return {**dict.fromkeys(self._caption_files()), **({} if self.files else pictures)}
        needed: dict[Path, str | None] = {}
        for path in self._caption_files():
            folder = self._image_folder(path)
            standard = path.parent == self.root / "annotations" and path.stem.startswith("captions_")
            year = path.stem[-4:]
            needed[path] = f"annotations{year}" if standard and f"annotations{year}" in _ARCHIVES else None
            if self.needs_image_files:
                needed[folder] = folder.name if folder.name in _ARCHIVES and not self.flat else None
        return needed

    def remote(self, archive: str) -> Remote:
        """Where an archive is fetched from, and what it should be."""
        if archive == "karpathy" and self.mirror is None:
            return KARPATHY
        server, path, size, md5 = _ARCHIVES[archive]
        return Remote(f"{(self.mirror or server).rstrip('/')}/{path}", size, md5)

    def steps(self) -> list[Step]:
        return [self._step(path, archive) for path, archive in self._needed().items()]

    def _step(self, path: Path, archive: str | None) -> Step:
        if archive is None:
            index = self.captions == "beit3_index" and path in self._caption_files()
            return Step(path, by_hand=how_to_write("coco", self.root)) if index else Step(path)
        remote = self.remote(archive)
        if remote.name == path.name:
            return Step(path, remote)
        return Step(path, remote, self.root, self.root / "annotations" if archive == "karpathy" else self.root)

    def prepare_data(self) -> None:
        """Fetch what is missing if `download` allows it (never region features).

        Raises:
            InputError: something is missing that may not or cannot be fetched; says what and how.
        """
        if self.download:
            self.fetch_files()
        self.require_files()

    def require_files(self) -> None:
        """See that everything is there, and index files of what is there now.

        Raises:
            InputError: names each missing file or folder and where it comes from.
        """
        missing = [step for step in self.steps() if not step.path.exists()]
        if not missing:
            if self.captions == "beit3_index" and self.needs_annotation_files:
                require_current_index("coco", self.root, self._caption_files(), self.karpathy_file())
            return
        lines = [f"  {step.path}: {step.by_hand if step.remote is None else f'from {step.remote.url}'}" for step in missing]
        fetchable = any(step.remote for step in missing) and not self.download
        advice = "Set download to true to fetch them, or put them there:" if fetchable else "Put them there:"
        if self.year == "2014" and (self.image_dir / "val2017").is_dir() and self.captions != "official":
            lines.append('  The images of 2017 are there: set year to "2017" to take those.')
        official = self.root / "annotations" / f"captions_val{self.year}.json"
        if self.captions == "karpathy" and official.exists() and not self.karpathy_file().exists():
            lines.append('  COCO\'s own caption files are there: set captions to "official" to take those.')
        raise InputError("\n".join([f"COCO is not complete under {self.root}. {advice}", *lines]))

    def parse(self) -> Parsed:
        parsed = self._parse()
        if self.held_out is not None:
            out = self.held_out.coco_ids(self.root)
            parsed.splits["train"] = [record for record in parsed.splits.get("train", []) if record.image_id not in out]
        return parsed

    def _parse(self) -> Parsed:
        self.require_files()
        if self.captions == "karpathy":
            parsed = parse_karpathy(self.karpathy_file(), self.image_dir)
            if self.restval and "restval" in parsed.splits:
                restval = parsed.splits.pop("restval")
                parsed.splits["train"] = parsed.splits.get("train", []) + restval
            return self._of_year(parsed)
        if self.captions == "beit3_index":
            files = {s: [parse_index(p, self.image_dir) for p in ps] for s, ps in self._files().items()}
            return self._of_year(join(self.root, files))
        files = {s: [parse_coco_captions(p, self._image_folder(p)) for p in ps] for s, ps in self._files().items()}
        return join(self.root, files)

    def _in_val2017(self) -> set[str]:
        return set(os.listdir(self.image_dir / "val2017"))

    def _of_year(self, parsed: Parsed) -> Parsed:
        """Karpathy and index: the images where they lie. Those of 2014 and 2017 are the same: val2017/ has 5,000 of val2014/."""
        if self.year == "2014" or not self.needs_image_files:
            return parsed
        val = self._in_val2017()

        def moved(record: ImageRecord) -> ImageRecord:
            found = _OF_2014.fullmatch(record.path.name) if record.path is not None else None
            if found is None:
                return record
            return replace(record, path=self.image_dir / ("val2017" if found[1] in val else "train2017") / found[1])

        parsed.splits = {split: [moved(record) for record in records] for split, records in parsed.splits.items()}
        return parsed
