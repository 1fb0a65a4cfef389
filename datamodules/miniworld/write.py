"""Puts a world on disk in the formats of the real data sets, for the real readers.

<root>/coco/annotations/dataset_coco.json                    Karpathy's file: train, restval, val, test
<root>/coco/annotations/captions_{train,val}2014.json        official COCO captions
<root>/coco/{train,val}2014/COCO_{train,val}2014_<12 digits>.jpg
<root>/coco/img_db/coco_{train,val}2014/all, txt_db/itm_coco_{train,restval,val,test}.db    UNITER's databases
<root>/flickr30k/dataset_flickr30k.json, flickr30k-images/<id>.jpg
<root>/flickr30k/img_db/flickr30k/all, txt_db/itm_flickr30k_{train,val,test}.db
<root>/flickr30k/flickr30k_entities/{train,val,test}.txt, Sentences/<id>.txt, Annotations/<id>.xml
<root>/visual_genome, <root>/nocaps                          see `datamodules.miniworld.captioned`
<root>/scenes.jsonl                                          everything known about each scene (`read_scenes`)
<root>/tokenizer/                                            a Hugging Face tokenizer that knows every word of both styles
<root>/world.json                                            arguments, counts, fingerprint: written worlds are complete
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from rich.console import Console
from rich.progress import track

from datamodules.errors import InputError
from datamodules.files.atomic import whole_folder
from datamodules.files.ownership import read_label, refuse_strangers, require_own
from datamodules.miniworld.captioned import NoCapsCounts, Run, write_nocaps, write_visual_genome
from datamodules.miniworld.captions import describe, region_descriptions, vocabulary
from datamodules.miniworld.grounded import (
    SceneRegions,
    region_name,
    scene_regions,
    write_entities_files,
    write_image_databases,
    write_text_databases,
)
from datamodules.miniworld.images import WorldImage
from datamodules.miniworld.render import render
from datamodules.miniworld.scenes import Style, sample_scene

if TYPE_CHECKING:
    from tokenizers import Tokenizer

VERSION = 3
"""Raise it when the same arguments give other bytes (layout, painting, grammar): older worlds are then refused."""

_ENTITIES = "flickr30k/flickr30k_entities"
_FEW = 300  # scenes below which starting workers costs more than it saves


@dataclass(frozen=True, slots=True)
class Splits:
    """Fractions of a world.

    Args:
        coco: Share of the scenes that go to the COCO part; the rest is Flickr30k's.
        coco_train: Share of the COCO part in `train`.
        coco_restval: Share of the COCO part in `restval` (joins `train` in Karpathy's protocol).
        coco_val: Share of the COCO part in `val`; the rest is `test`.
        flickr_train: Share of the Flickr30k part in `train`.
        flickr_val: Share of the Flickr30k part in `val`; the rest is `test`.
    """

    coco: float = 0.6
    coco_train: float = 0.6
    coco_restval: float = 0.1
    coco_val: float = 0.1
    flickr_train: float = 0.7
    flickr_val: float = 0.1

    def counts(self, scenes: int) -> dict[str, dict[str, int]]:
        """Scenes of every split by part; InputError if a share is no fraction or a split stays empty."""
        if any(not 0.0 < getattr(self, entry.name) < 1.0 for entry in fields(self)):
            raise InputError(f"miniworld: splits={self}: every share must lie strictly between 0 and 1.")
        coco = round(scenes * self.coco)
        counts = {
            "coco": _shares(coco, {"train": self.coco_train, "restval": self.coco_restval, "val": self.coco_val}),
            "flickr30k": _shares(scenes - coco, {"train": self.flickr_train, "val": self.flickr_val}),
        }
        for part, splits in counts.items():
            for split, count in splits.items():
                if count < 1:
                    raise InputError(
                        f"miniworld: scenes={scenes} leaves {part}'s split '{split}' empty: ask for more scenes (20 are enough"
                        " for the default splits) or change the shares in `splits`."
                    )
        return counts


def _shares(total: int, shares: dict[str, float]) -> dict[str, int]:
    counts = {split: round(total * share) for split, share in shares.items()}
    return {**counts, "test": total - sum(counts.values())}


def write_world(
    root: Path,
    *,
    scenes: int = 2000,
    seed: int = 0,
    style: Style = "source",
    image_size: int = 96,
    splits: Splits | None = None,
    nocaps: NoCapsCounts | None = None,
    workers: int | None = None,
) -> Path:
    """Renders a world into `root`, or returns at once if the very same world is there; the same bytes for any `workers`.

    The folder appears complete or not at all: it is built beside `root` and renamed.

    Args:
        root: Folder of the world; created, must be absent or empty, or hold this world.
        scenes: Number of images, both parts together.
        seed: Seed of the world; scene `i` depends on `(seed, style, i)` only.
        style: Dialect of pictures and sentences.
        image_size: Width and height of the images in pixels.
        splits: Shares of parts and splits; None takes the defaults of `Splits`.
        nocaps: Images of NoCaps; None takes `NoCapsCounts.of(scenes)`.
        workers: Processes that render; None takes one a core, 1 renders here.

    Raises:
        InputError: `root` holds something else, an argument makes no sense, or the disk is full.
    """
    root = Path(root).absolute()
    splits = splits or Splits()
    _check(scenes, seed, style, image_size, workers)
    counts = splits.counts(scenes)
    arguments = {"scenes": scenes, "seed": seed, "style": style, "image_size": image_size, "splits": asdict(splits)}
    if nocaps is not None:
        arguments["nocaps"] = {split: list(numbers) for split, numbers in asdict(nocaps).items()}
    if _is_written(root, arguments):
        return root
    try:
        with whole_folder(root) as building:
            _build(building, arguments, counts, nocaps or NoCapsCounts.of(scenes), _worker_count(workers, scenes))
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST) and _is_written(root, arguments):
            return root  # another process was faster with the same world
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise InputError(
            f"{root}: could not write the embedded world: {reason}. Free some space or choose another folder."
        ) from error
    return root


def write_tokenizer(folder: Path) -> None:
    """A word-level tokenizer for `AutoTokenizer.from_pretrained(folder)`: lower case, `[CLS] ... [SEP]`.

    It knows every word of both styles and no other: the vocabulary comes from the grammar, so ids are the same for every world.
    """
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(
        tokenizer_object=_tokenizer(),
        model_max_length=64,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    ).save_pretrained(str(folder))


def _tokenizer() -> Tokenizer:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    specials = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    ids = {word: number for number, word in enumerate((*specials, *vocabulary()))}
    tokenizer = Tokenizer(models.WordLevel(vocab=ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    return tokenizer


# ---------------------------------------------------------------------------------------------------------------- checks


def _check(scenes: int, seed: int, style: str, image_size: int, workers: int | None) -> None:
    if scenes < 1:
        raise InputError(f"miniworld: scenes={scenes}: must be a positive number.")
    if seed < 0:
        raise InputError(f"miniworld: seed={seed}: must not be negative.")
    if style not in get_args(Style):
        raise InputError(f"miniworld: style='{style}' is unknown; choose {', '.join(get_args(Style))}.")
    if not 32 <= image_size <= 1024:
        raise InputError(f"miniworld: image_size={image_size}: must lie between 32 and 1024 pixels.")
    if workers is not None and workers < 1:
        raise InputError(f"miniworld: workers={workers}: must be at least 1 (or None for one a core).")


def _is_written(root: Path, arguments: dict[str, Any]) -> bool:
    """True if `root` holds exactly this world, False if there is nothing; InputError if there is anything else."""
    label, remedy = root / "world.json", f"Choose another folder, or delete {root} to render the embedded world there."
    if label.is_file():
        world = read_label(label, remedy)
        there = world.get("arguments")
        found = {"version": world.get("version"), **(there if isinstance(there, dict) else {})}
        require_own(label, found, {"version": VERSION, **arguments}, "embedded world", remedy)
        return True
    if root.is_file():
        raise InputError(f"{root} is a file. {remedy}")
    refuse_strangers(label, root.iterdir() if root.is_dir() else (), remedy)
    return False


def _worker_count(workers: int | None, scenes: int) -> int:
    if workers is None:
        workers = 1 if scenes < _FEW else min(len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1, 8)
    # Elsewhere than on Linux a worker would start by importing torch, which takes longer than rendering a small world.
    return workers if sys.platform == "linux" else 1


# --------------------------------------------------------------------------------------------------------------- writing


@dataclass(frozen=True, slots=True)
class _Place:
    """Where one scene goes."""

    index: int
    part: str
    split: str
    image_id: str
    file: str


def _places(counts: dict[str, dict[str, int]]) -> Iterator[_Place]:
    index = 0
    for part, splits in counts.items():
        for split, count in splits.items():
            for _ in range(count):
                if part == "coco":
                    folder = "train2014" if split == "train" else "val2014"
                    image_id = str(index + 1)
                    file = f"coco/{folder}/COCO_{folder}_{index + 1:012d}.jpg"
                else:
                    image_id = str(1_000_000_000 + index)
                    file = f"flickr30k/flickr30k-images/{image_id}.jpg"
                yield _Place(index, part, split, image_id, file)
                index += 1


@dataclass(frozen=True, slots=True)
class _Rendered:
    """What the files about all images say of one: `line` of `scenes.jsonl`, and the outline of the rest."""

    line: str
    image: WorldImage
    regions: SceneRegions


def _render_one(place: _Place, root: Path, seed: int, style: Style, image_size: int) -> _Rendered:
    """Writes the files of one image."""
    scene = sample_scene(seed, style, place.index, image_size=image_size)
    picture = render(scene)
    # no chroma subsampling: at 96 pixels it would wash out the colors that captions name
    picture.save(root / place.file, quality=90, subsampling=0)
    captions, descriptions = describe(scene), region_descriptions(scene)
    image = WorldImage(place.part, place.split, place.image_id, place.file, scene, captions, descriptions)
    if place.part == "flickr30k":
        write_entities_files(root / _ENTITIES, [image])
    return _Rendered(f"{image.to_json()}\n", image.outline(), scene_regions(scene, captions, picture))


def _build(root: Path, arguments: dict[str, Any], counts: dict[str, dict[str, int]], nocaps: NoCapsCounts, workers: int) -> None:
    for folder in ("coco/annotations", "coco/train2014", "coco/val2014", "flickr30k/flickr30k-images", _ENTITIES):
        (root / folder).mkdir(parents=True)
    places = list(_places(counts))
    seed, style, image_size = arguments["seed"], arguments["style"], arguments["image_size"]
    with _pool(workers) as run:
        work = partial(_render_one, root=root, seed=seed, style=style, image_size=image_size)
        rendered = list(_progress(run(work, places), len(places)))
        images = [one.image for one in rendered]
        with (root / "scenes.jsonl").open("w", encoding="utf-8") as lines:
            lines.writelines(one.line for one in rendered)
        _write_coco(root / "coco", [image for image in images if image.part == "coco"])
        _write_flickr(root / "flickr30k", [image for image in images if image.part == "flickr30k"])
        write_image_databases(root, [(one.image, one.regions) for one in rendered])
        write_visual_genome(root, images)
        write_nocaps(root, seed=seed, style=style, image_size=image_size, counts=nocaps, run=run)
    fingerprint = _fingerprint(root)
    write_tokenizer(root / "tokenizer")
    world = {"version": VERSION, "arguments": arguments, "counts": counts, "fingerprint": fingerprint}
    _write_json(root / "world.json", world, indent=2)


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[Run]:
    """`map` of so many processes."""
    _keep_memory()
    if workers == 1:
        yield map
    else:
        # Fork: the workers only run numpy and Pillow, and need not import anything again.
        fork = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(workers, fork, initializer=_end_with, initargs=(os.getpid(),)) as pool:
            yield partial(pool.map, chunksize=25)


def _end_with(parent: int) -> None:
    """Has Linux kill this process with its parent; a worker of a parent that was killed waits for work forever."""
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:  # it was killed before
        os.kill(os.getpid(), signal.SIGKILL)


def _keep_memory() -> None:
    """Have glibc, and workers forked from here, keep memory that they will want again at once.

    It gives freed memory back beyond 128 KiB, about an array of `render`; the kernel then takes as long to clear it again as the
    arithmetic takes. It learns from a larger block that was freed.
    """
    np.empty(8 * 1024**2, np.uint8)


def _progress(images: Iterator[_Rendered], total: int) -> Iterator[_Rendered]:
    console = Console(stderr=True)
    shown = console.is_terminal
    yield from track(images, "rendering the embedded world", total, console=console, transient=True, disable=not shown)


def _write_json(path: Path, values: Any, indent: int | None = None) -> None:
    path.write_text(json.dumps(values, indent=indent), encoding="utf-8")


def _karpathy(images: list[WorldImage], dataset: Literal["coco", "flickr30k"]) -> dict[str, Any]:
    """Karpathy's layout; sentence ids count from 0 in the order of the images."""
    entries = []
    sentence_id = 0
    for number, image in enumerate(images):
        sentences = []
        for caption in image.captions:
            tokens = re.findall(r"\w+", caption.text.lower())
            sentences.append({"tokens": tokens, "raw": caption.text, "imgid": number, "sentid": sentence_id})
            sentence_id += 1
        entry: dict[str, Any] = {
            "filename": Path(image.file).name,
            "imgid": number,
            "sentids": [sentence["sentid"] for sentence in sentences],
            "split": image.split,
            "sentences": sentences,
        }
        if dataset == "coco":
            entry |= {"filepath": Path(image.file).parent.name, "cocoid": int(image.image_id)}
        entries.append(entry)
    return {"images": entries, "dataset": dataset}


def _write_coco(folder: Path, images: list[WorldImage]) -> None:
    karpathy = _karpathy(images, "coco")
    _write_texts(folder, karpathy, images)
    _write_json(folder / "annotations" / "dataset_coco.json", karpathy)
    for name in ("train2014", "val2014"):
        entries = [entry for entry in karpathy["images"] if entry["filepath"] == name]
        sizes = {int(image.image_id): image.scene.image_size for image in images}
        official = {
            "info": {"description": f"crosslight's embedded world, {name}", "version": str(VERSION), "year": 2014},
            "licenses": [{"id": 1, "name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"}],
            "images": [
                {
                    "license": 1,
                    "file_name": entry["filename"],
                    "height": sizes[entry["cocoid"]],
                    "width": sizes[entry["cocoid"]],
                    "id": entry["cocoid"],
                }
                for entry in entries
            ],
            "annotations": [
                {"image_id": entry["cocoid"], "id": sentence["sentid"], "caption": sentence["raw"]}
                for entry in entries
                for sentence in entry["sentences"]
            ],
        }
        _write_json(folder / "annotations" / f"captions_{name}.json", official)


def _write_flickr(folder: Path, images: list[WorldImage]) -> None:
    karpathy = _karpathy(images, "flickr30k")
    _write_json(folder / "dataset_flickr30k.json", karpathy)
    _write_texts(folder, karpathy, images)
    for split in ("train", "val", "test"):
        lines = "".join(f"{image.image_id}\n" for image in images if image.split == split)
        (folder / "flickr30k_entities" / f"{split}.txt").write_text(lines or "\n", encoding="utf-8")


def _write_texts(folder: Path, karpathy: dict[str, Any], images: list[WorldImage]) -> None:
    """UNITER's text databases of a Karpathy file: ids are its sentence ids."""
    texts = [
        (entry["split"], str(sentence["sentid"]), region_name(image), sentence["raw"])
        for entry, image in zip(karpathy["images"], images, strict=True)
        for sentence in entry["sentences"]
    ]
    write_text_databases(folder / "txt_db", karpathy["dataset"], texts, _tokenizer(), "crosslight's embedded world")


def _fingerprint(root: Path) -> str:
    """SHA-256 over the names and contents of all files written so far."""
    digest = hashlib.sha256()
    contents: dict[int, bytes] = {}  # by inode: an image's links are read once
    for path in _files(str(root)):
        inode = os.stat(path).st_ino
        if inode not in contents:
            with open(path, "rb", buffering=0) as file:
                contents[inode] = hashlib.sha256(file.read()).digest()
        digest.update(os.path.relpath(path, root).encode() + b"\0" + contents[inode])
    return digest.hexdigest()


def _files(folder: str) -> Iterator[str]:
    """All files, in the order of their paths' parts."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _files(entry.path)
        else:
            yield entry.path
