"""Makes an index, and brings it up to date: what is new in the folder is encoded, what is gone goes (`index.py` has the layout).

Legend: N images of the folder, M images of the index, D width.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.errors import InputError, printable
from datamodules.files.atomic import whole_file, write_atomically
from datamodules.files.digests import changed_since, readable_digests
from datamodules.files.images import image_files_below
from datamodules.files.locks import take_lock
from datamodules.formats.caption_results import json_text
from datamodules.loading.image_files import read_image_files
from experiments.serving import neighbors
from experiments.serving.index import LABEL, Floats, ImageIndex, Label, generation_folder, read_label, require_key
from experiments.serving.models import model_key, probe
from lightning_modules.extraction.progress import progress_bar
from lightning_modules.retrieval import RetrievalModule

_DIGEST = "S16"  # bytes of a content's digest; none = it cannot be read
_BLOCK = 10_000  # vectors that are copied at once
_PART_SECONDS = 10.0  # of encoding: what an update that is killed may lose

Digests = NDArray[np.bytes_]
Rows = NDArray[np.int64]


@dataclass
class Update:
    """What an update did.

    Args:
        images: In the index now.
        encoded: Contents that went through the model.
        kept: Images whose vectors were there already.
        gone: Contents that are no more in the folder.
        broken: Images that cannot be read, a line each.
        others: Files below the folder that are no images by their endings, or hidden.
        seconds: That it took.
    """

    images: int
    encoded: int
    kept: int
    gone: int
    broken: list[str]
    others: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class Encoding:
    """How an update goes through its images.

    Args:
        batch_size: Images at once.
        workers: Processes that decode; 0 decodes in this one.
        progress: Whether a bar is shown on stderr.
        part_seconds: Of encoding, after which what there is is written.
        tell: Called with how many images are encoded and how many have to be, from time to time.
    """

    batch_size: int = 32
    workers: int = 0
    progress: bool = False
    part_seconds: float = _PART_SECONDS
    tell: Callable[[int, int], None] | None = None


def update_index(
    index: Path,
    images: Path,
    model: RetrievalModule,
    run: str | Path,
    ann: bool = False,
    how: Encoding = Encoding(),
    backbone: str | Path | None = None,
    tokenizer: str | Path | None = None,
) -> Update:
    """Have an index say what is in a folder now.

    Args:
        index: The index; made where there is none.
        images: The folder; those below it count too.
        model: What encodes, on its device.
        run: Where it was loaded from.
        ann: Keep approximate search with it from now on.
        how: Sizes.
        backbone: Where else the model's weights lie, as `lightning_modules.load` was told.
        tokenizer: Likewise, in place of its own.

    Raises:
        InputError: The index is of another model, or of another folder that is still there; another process updates it; or the
            folder has no image that can be read (the index then stays as it is: a disk may not be mounted).
    """
    started = time.monotonic()
    if ann:
        neighbors.require_library()
    names, others = image_files_below(images)
    if not names:
        raise InputError(
            f"{images} has no images below it, so {index} stays as it is. Give the folder that has them: links to "
            "folders are not followed."
        )
    if index.exists() and index.samefile(images):
        raise InputError(f"--index {index} is the folder of the images; give a folder of its own.")
    lock = take_lock(index / "lock")
    if lock is None:
        raise InputError(f"{index} is being updated by another process; wait for it, or give another --index.")
    try:
        with lock:
            made = Label(
                model_key(model), probe(model), _place(run), str(images.absolute()), _place_or_none(backbone),
                _place_or_none(tokenizer), ann=ann, no_result=model.no_result,
            )  # fmt: skip
            label = _begin(index, made)
            if label.ann:
                neighbors.require_library()  # before anything takes time
            update = _bring_up(index, label, names, model, how)
    except OSError as error:
        raise InputError(f"{index} cannot be written ({error.strerror or error}); what was encoded stays.") from error
    update.others, update.seconds = others, time.monotonic() - started
    return update


def _place(run: str | Path) -> str:
    """A folder's path from anywhere; the name of what is no folder here."""
    return os.path.abspath(run) if os.path.exists(run) else str(run)


def _place_or_none(path: str | Path | None) -> str | None:
    return None if path is None else _place(path)


def _begin(index: Path, wanted: Label) -> Label:
    """The label of the index that is there, or of one that begins now, for this model and folder.

    Raises:
        InputError: It is of another model, or of a folder that is still there.
    """
    if not (index / LABEL).exists():
        if strangers := [name for name in os.listdir(index) if name != "lock"]:
            raise InputError(f"{index} is not empty and no index ({strangers[0]!r} is there). Give another --index.")
        _write_label(index, wanted)
        return wanted
    label = read_label(index)
    require_key(index, label, wanted.model, wanted.probe, wanted.run)
    if Path(label.images).resolve() != Path(wanted.images).resolve() and Path(label.images).is_dir():
        raise InputError(f"{index} is of the images in {label.images}. Give another --index for {wanted.images}, or delete it.")
    for folder in index.glob("generation-*"):  # of an update that was killed
        if folder != generation_folder(index, label.generation):
            shutil.rmtree(folder, ignore_errors=True)  # over NFS a file that is searched yet stays, and is in nobody's way
    no_result = wanted.no_result or label.no_result  # a model that is copied without its mark is the same one
    kept = replace(wanted, model=label.model, probe=label.probe, generation=label.generation, count=label.count)
    return replace(kept, ann=label.ann or wanted.ann, no_result=no_result)


def _bring_up(index: Path, label: Label, names: Sequence[str], model: RetrievalModule, how: Encoding) -> Update:
    """Encode what is new, then write the generation of these files."""
    images, began = Path(label.images), time.time_ns()
    found, unread = readable_digests(images / name for name in names)
    contents_N = np.array([bytes.fromhex(found.get(images / name, "")) for name in names], _DIGEST)
    known = _Known(index, label.generation)
    there_N = known.rows_of(contents_N) >= 0
    missing = np.flatnonzero(~there_N & (contents_N != b""))
    _, first = np.unique(contents_N[missing], return_index=True)
    todo = missing[np.sort(first)]  # each content once
    broken: dict[bytes, str] = {}
    written, done = time.monotonic(), 0
    try:
        with progress_bar(how.progress) as bar:
            task = bar.add_task("encoding images", total=len(todo))
            paths = [images / names[row] for row in todo]
            for read in read_image_files(paths, model.image_input, how.batch_size, how.workers):
                broken |= {contents_N[todo[row]]: reason for row, reason in read.broken.items()}
                if read.images is not None:
                    rows_B, vectors_BD = read.images.index_B.numpy(), model.encode_batch(read.images).numpy()
                    changed = changed_since({paths[row]: found[paths[row]] for row in rows_B}, began)
                    same_B = np.array([paths[row] not in changed for row in rows_B])
                    known.add(contents_N[todo[rows_B[same_B]]], vectors_BD[same_B])
                    for row in rows_B[~same_B]:
                        broken[contents_N[todo[row]]] = f"{paths[row]} changed while it was read: index the folder again."
                if time.monotonic() - written >= how.part_seconds:
                    known.flush()
                    written = time.monotonic()
                done += len(read.broken) + len(read.images or ())
                bar.update(task, completed=done)
                if how.tell is not None:
                    how.tell(done, len(todo))
    finally:
        known.flush()  # what is interrupted loses nothing
    rows_N = known.rows_of(contents_N)
    there = np.flatnonzero(rows_N >= 0)
    told = {images / names[row]: broken.get(contents_N[row], "") for row in np.flatnonzero(rows_N < 0).tolist()} | unread
    named = [(printable(str(path)), printable(reason)) for path, reason in sorted(told.items())]
    lines = [reason if path in reason else f"{path}: as {reason}" for path, reason in named]
    if not len(there):
        raise InputError(f"no image of {images} can be read, so {index} stays as it is. The first: {lines[0]}")
    gone = known.of_generation(contents_N)
    _write_generation(index, label, [names[row] for row in there.tolist()], contents_N[there], rows_N[there], known, how.progress)
    return Update(len(there), len(todo) - len(broken), int(there_N.sum()), gone, lines)


class _Known:
    """The vectors that are there already, by the digests of what they are of: a generation's, and those of parts. Rows count
    through all of these.

    Args:
        index: The index.
        generation: The one that counts; 0 = none.
    """

    def __init__(self, index: Path, generation: int) -> None:
        self._parts = index / "parts"
        self._old = ImageIndex(index) if generation else None
        self._files = sorted(self._parts.glob("part-*.npy"))
        self._digests: list[Digests] = [] if self._old is None else [np.array(self._old.digests_N)]
        self._digests += [np.array(np.load(file, "r")["digest"]) for file in self._files]
        self._waiting: list[tuple[Digests, Floats]] = []

    def rows_of(self, contents_N: Digests) -> Rows:
        """Where the vector of each content is; -1 = nowhere."""
        every = np.concatenate([np.zeros(0, _DIGEST), *self._digests])
        if not len(every):
            return np.full(len(contents_N), -1)
        order = np.argsort(every, kind="stable")
        near = order[np.searchsorted(every, contents_N, sorter=order).clip(max=len(every) - 1)]
        return np.where((every[near] == contents_N) & (contents_N != b""), near, -1)

    def of_generation(self, contents_N: Digests) -> int:
        """How many contents of the generation are not among these."""
        return 0 if self._old is None else int(np.sum(~np.isin(np.unique(self._digests[0]), contents_N)))

    def add(self, contents: Digests, vectors: Floats) -> None:
        """New vectors; on the disk with the next `flush`."""
        self._waiting.append((contents, vectors))

    def flush(self) -> None:
        """Write what was added as a part."""
        if not self._waiting:
            return
        contents, vectors = (np.concatenate(each) for each in zip(*self._waiting, strict=True))
        part = np.empty(len(contents), [("digest", _DIGEST), ("vector", np.float32, vectors.shape[1:])])
        part["digest"], part["vector"] = contents, vectors
        self._parts.mkdir(exist_ok=True)
        number = int(self._files[-1].stem.removeprefix("part-")) + 1 if self._files else 0
        file = self._parts / f"part-{number:08d}.npy"
        with whole_file(file) as unfinished:
            np.save(unfinished, part)
        self._files.append(file)
        self._digests.append(contents)
        self._waiting = []

    def copy(self, rows_M: Rows, file: Path) -> Floats:
        """Write the vectors at these rows as one array [M, D], and give it, mapped."""
        sources: list[Any] = [] if self._old is None else [self._old.vectors_ND]
        width = int((sources[0] if sources else np.load(self._files[0], "r")["vector"]).shape[1])
        ends = np.cumsum([len(each) for each in self._digests])
        source_M = np.searchsorted(ends, rows_M, side="right")
        with whole_file(file) as unfinished:
            target_MD = np.lib.format.open_memmap(unfinished, "w+", np.float32, (len(rows_M), width))
            order = np.argsort(source_M, kind="stable")
            for of_source in np.split(order, np.flatnonzero(np.diff(source_M[order])) + 1):
                number = int(source_M[of_source[0]])
                is_part = number - len(sources)
                vectors = sources[number] if is_part < 0 else np.load(self._files[is_part], "r")["vector"]
                for start in range(0, len(of_source), _BLOCK):
                    places = of_source[start : start + _BLOCK]
                    target_MD[places] = vectors[rows_M[places] - (ends[number] - len(self._digests[number]))]
            target_MD.flush()
        return np.load(file, "r")

    def clear(self) -> None:
        """The parts stand in a generation now."""
        shutil.rmtree(self._parts, ignore_errors=True)

    def same(self, names: NDArray[np.uint8], digests_M: Digests) -> bool:
        """Whether the generation has just these images."""
        old = self._old
        return old is not None and np.array_equal(old.names, names) and np.array_equal(old.digests_N, digests_M)


def _write_generation(
    index: Path, label: Label, names: Sequence[str], digests_M: Digests, rows_M: Rows, known: _Known, progress: bool
) -> None:
    """Write the next generation, have the label name it, and remove what it replaces."""
    old = generation_folder(index, label.generation)
    written = [os.fsencode(name) for name in names]
    joined = np.frombuffer(b"".join(written), np.uint8)
    place = generation_folder(index, label.generation + 1)
    approximate = label.ann and not (old / neighbors.FILE).exists()
    if known.same(joined, digests_M) and not approximate:
        _write_label(index, label)
        known.clear()
        return
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for name, array in (("names", joined), ("name_ends", np.cumsum([len(name) for name in written])), ("digests", digests_M)):
        with whole_file(place / f"{name}.npy") as unfinished:
            np.save(unfinished, array)
    vectors_MD = known.copy(rows_M, place / "vectors.npy")
    if label.ann:
        neighbors.write(place / neighbors.FILE, vectors_MD, digests_M, old / neighbors.FILE, progress)
    _write_label(index, replace(label, generation=label.generation + 1, count=len(names)))
    known.clear()
    shutil.rmtree(old, ignore_errors=True)


def _write_label(index: Path, label: Label) -> None:
    write_atomically(index / LABEL, json_text(asdict(label), indent=1) + "\n")
