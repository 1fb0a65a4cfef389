"""Files of the official releases by name: fetched once into a cache, one process at a time, and recognised later.

The releases publish no checksums. Where a file's SHA-256 is known it is checked; otherwise the one that arrived is written
beside the file (`NAME.json`), the log says that nothing vouches for it, and a later use notices if the file changes.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from datamodules.errors import InputError
from datamodules.files.atomic import write_atomically
from datamodules.files.download import Remote, fetch, is_lacking
from datamodules.files.json_file import read_json
from datamodules.files.locks import locked

RELEASE = "https://github.com/addf400/files/releases/download/beit3"
UNITER_RELEASE = "https://acvrpublicycchen.blob.core.windows.net/uniter/pretrained"
URL_VARIABLE = "CROSSLIGHT_BEIT3_URL"  # a mirror of the release
CACHE_VARIABLE = "CROSSLIGHT_CACHE"
TOKENIZER = "beit3.spm"
CHECKPOINTS = (
    *(f"beit3_{size}_patch16_224.pth" for size in ("base", "large")),
    *(f"beit3_{size}_itc_patch16_224.pth" for size in ("base", "large")),
    *(f"beit3_{size}_patch16_384_{data}_retrieval.pth" for size in ("base", "large") for data in ("coco", "f30k")),
)
UNITER_CHECKPOINTS = ("uniter-base.pt", "uniter-large.pt")
SHA256 = {TOKENIZER: "6f5e2fefcf793761a76a6bfb8ad35489f9c203b25557673284b6d032f41043f4"}

log = logging.getLogger("crosslight")


@dataclass(frozen=True)
class Release:
    """Where a model's official files come from, the environment variable that names a mirror, and their folder of the cache.
    `closed`: where the official server gives them no more, why, and what to do instead."""

    name: str
    url: str
    variable: str
    folder: str
    closed: str = ""


BEIT3 = Release("BEiT-3", RELEASE, URL_VARIABLE, "beit3")
UNITER = Release(
    "UNITER",
    UNITER_RELEASE,
    "CROSSLIGHT_UNITER_URL",
    "uniter",
    "UNITER's official server has given nothing since November 2024 (HTTP 409, Public access is not permitted; ChenRocks/UNITER "
    "issue 96). Instead: pre-train one (`crosslight sweep run uniter/pretrain`, docs/iais.md) and give its checkpoint, "
    "RUN/checkpoints/best.ckpt#network.; or use a pair scorer that the Hugging Face Hub has (ViLT, docs/iais.md); or, where "
    "you know a mirror, name the address of its folder in the environment variable CROSSLIGHT_UNITER_URL; or give a copy's path",
)


def tokenizer_file(source: str | Path) -> Path:
    """BEiT-3's sentencepiece model: a local file, or the official `beit3.spm`.

    Raises:
        InputError: Neither, or it cannot be fetched.
    """
    return _resolve(source, BEIT3, (TOKENIZER,), "tokenizer")


def checkpoint_file(source: str | Path) -> Path:
    """A checkpoint: a local file, or an official name (`CHECKPOINTS`; `.pth` may be left out).

    Raises:
        InputError: Neither (the message has the closest name), or it cannot be fetched.
    """
    return _resolve(source, BEIT3, CHECKPOINTS, "weights")


def uniter_checkpoint_file(source: str | Path) -> Path:
    """A UNITER checkpoint: a local file, or an official name (`UNITER_CHECKPOINTS`; `.pt` may be left out).

    Raises:
        InputError: Neither, or it cannot be fetched.
    """
    return _resolve(source, UNITER, UNITER_CHECKPOINTS, "weights")


def _resolve(source: str | Path, release: Release, names: Sequence[str], what: str) -> Path:
    path = Path(source).expanduser()
    if release.closed and "://" in str(source):
        raise InputError(f"{what} {source}: an address is not fetched here, only a file or an official name. {release.closed}")
    if path.is_file():  # a local file comes first, even one with an official name
        return path
    if path.is_dir():
        raise InputError(f"{what} {source}: that is a folder; give the file")
    by_name = {Path(name).stem: name for name in names if not name.endswith(".spm")} | {name: name for name in names}
    if str(source) in by_name:
        return official_file(by_name[str(source)], release)
    near = difflib.get_close_matches(path.name, by_name, n=1, cutoff=0.7)
    hint = f"did you mean {near[0]}?" if near else f"official names: {', '.join(names)}"
    closed = f". {release.closed}" if release.closed else ""
    raise InputError(
        f"{what} {source}: there is no such file in {Path.cwd()}, and it is no official {release.name} file; {hint}{closed}"
    )


def cache_folder() -> Path:
    """Where what was fetched, or is remembered of this machine, is kept: `$CROSSLIGHT_CACHE`, by default ~/.cache/crosslight."""
    return Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/crosslight").expanduser().absolute()


def official_file(name: str, release: Release = BEIT3) -> Path:
    """The cached file of a release, fetched now if it is not there yet.

    The cache is `$CROSSLIGHT_CACHE/beit3` (`~/.cache/crosslight/beit3`; likewise `uniter`); a file put there by hand is taken
    like a fetched one.
    Processes that ask at once wait for the one that fetches.

    Raises:
        InputError: It cannot be fetched, or has not the SHA-256 that is known or was recorded.
    """
    folder = cache_folder() / release.folder
    target, note = folder / name, folder / f"{name}.json"
    if _as_recorded(target, note):
        return target
    url = f"{(os.environ.get(release.variable) or release.url).rstrip('/')}/{name}"
    if target.exists() and not os.access(folder, os.W_OK):  # a shared read-only cache, filled by hand: nothing can be noted
        if name in SHA256:
            _require(target, _sha256(target), SHA256[name], "is known for it")
        return target
    with _only_one(folder, name):
        if _as_recorded(target, note):  # fetched by another process while this one waited
            return target
        here = target.exists() and not is_lacking(target)
        if not here:
            log.info("fetching %s into %s", url, folder)
            try:
                fetch(Remote(url), folder)
            except InputError as error:
                remedy = (
                    f"Without a network: fetch {url} on another machine and put it at {target}, or give the file's path; "
                    f"{release.variable} names a mirror"
                )
                if release.closed and url.startswith(release.url):
                    remedy = release.closed
                raise InputError(f"{str(error).rstrip('.')}. {remedy}") from error
        digest = _sha256(target)
        if name in SHA256 and digest != SHA256[name] and not here:
            target.unlink()
            raise InputError(f"{url} has SHA-256 {digest}, but {SHA256[name]} is known for it; the download was removed")
        if name in SHA256:
            _require(target, digest, SHA256[name], "is known for it")
        elif here and note.exists():
            _require(target, digest, _noted(note)["sha256"], "was recorded when it came")
        else:
            log.warning("%s: SHA-256 %s, not verified (the release publishes no sums); it is noted in %s", target, digest, note)
        status = target.stat()
        record = {
            "sha256": digest,
            "size": status.st_size,
            "mtime_ns": status.st_mtime_ns,
            "url": url,
            "verified": name in SHA256,
        }
        write_atomically(note, json.dumps(record, indent=1) + "\n")
    return target


def _as_recorded(target: Path, note: Path) -> bool:
    """Whether file and note are there and the file was not touched since: two numbers, nothing is read from gigabytes."""
    if not note.exists() or not target.exists():
        return False
    record, status = _noted(note), target.stat()
    return (record["size"], record["mtime_ns"]) == (status.st_size, status.st_mtime_ns)


def _noted(note: Path) -> dict[str, Any]:
    expected = "what was noted of a file that was fetched; remove it, the file beside it is then examined again"
    record = read_json(note, expected)
    if not isinstance(record, dict) or not {"sha256", "size", "mtime_ns"} <= set(record):
        raise InputError(f"{note} is damaged; expected {expected}.")
    return record


def _require(target: Path, found: str, wanted: str, why: str) -> None:
    if found != wanted:
        raise InputError(
            f"{target} has SHA-256 {found}, but {wanted} {why}: it is damaged or another file; remove it and "
            f"{target.name}.json to fetch it again"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _only_one(folder: Path, name: str) -> Iterator[None]:
    """One process at a time."""
    file = folder / f".{name}.lock"
    with ExitStack() as held:
        try:
            held.enter_context(locked(file, partial(log.info, "another process is fetching %s; waiting for it", name)))
        except InputError as error:
            raise InputError(f"the cache {folder} cannot be written; set {CACHE_VARIABLE}. {error}") from error
        yield
