"""Fetching public archives: progress, resume, checksums, safe unpacking.

A download lives in `NAME.part` until it is complete and checked, then takes its name in one step; what an interrupted run has
fetched is kept and continued with an HTTP Range request. What is no file of its kind, such as a web page in place of an image,
never takes the name; where such a thing has it from elsewhere, the file is fetched anew.
"""

from __future__ import annotations

import email.utils
import errno
import hashlib
import http.client
import logging
import lzma
import os
import re
import shutil
import ssl
import stat
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from datamodules.errors import InputError, shown
from datamodules.files.atomic import put_in_place
from datamodules.files.text import is_web_page, open_bytes

_CHUNK = 1 << 20
_ATTEMPTS = 4  # in a row that get no further, of a download whose connection breaks; each continues where the last ended
_COME_AGAIN = (408, 425, 429)  # and all from 500
_LONGEST_WAIT = 300.0  # seconds that a server may ask to wait for

_IMAGES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")
_BEGINNINGS = {
    ".zip": (b"PK\x03\x04", b"PK\x05\x06"),
    ".json": (b"{", b"["),
    **dict.fromkeys((".jpg", ".jpeg", ".png"), _IMAGES),
}

log = logging.getLogger("crosslight")


class FetchError(InputError):
    """A file cannot be fetched."""


@dataclass(frozen=True, slots=True)
class Remote:
    """A file to fetch.

    Args:
        url: Where.
        size: In bytes, where it is known.
        md5: Where it is known (it guards against accidents, not attackers).
        sha256: Where it is known.
        others: Addresses of copies, tried in their order where the ones before give nothing. Only of a file with a sum: else
            nobody knows that they are copies.
    """

    url: str
    size: int | None = None
    md5: str | None = None
    sha256: str | None = None
    others: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return PurePosixPath(self.url.partition("?")[0]).name


def wrong_content(path: Path) -> str | None:
    """Why a file is certainly not of the kind that its name says (empty, a web page, no image, ...); None where it may be."""
    try:
        with path.open("rb") as file:
            head = file.read(1024)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from error
    return _wrong_beginning(path, head)


def _wrong_beginning(path: Path, head: bytes) -> str | None:
    """As `wrong_content`, of its first bytes."""
    if not head:
        return "is empty"
    if is_web_page(head):
        return "is a web page (HTML)"
    expected = _BEGINNINGS.get(PurePosixPath(path.name.removesuffix(".part")).suffix.lower(), ())
    found = head.removeprefix(b"\xef\xbb\xbf").lstrip() if b"{" in expected else head
    return None if not expected or found.startswith(expected) else f"begins with {shown(head[:12])}"


def is_lacking(path: Path) -> bool:
    """Whether a file or folder is to be fetched: it is not there, is an empty folder, or a file of `wrong_content`.

    Raises:
        InputError: It cannot be looked into.
    """
    if path.is_dir():
        try:
            with os.scandir(path) as entries:
                return next(entries, None) is None
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror}). Have it made readable.") from error
    return not path.is_file() or wrong_content(path) is not None


def fetch(remote: Remote, folder: Path, pause: float = 2.0) -> Path:
    """Download into `folder`, continuing an earlier `.part`; returns the file's path.

    Args:
        remote: What to fetch.
        folder: Where to; made if need be.
        pause: Seconds before the second attempt after a broken connection (doubled each time).

    Raises:
        InputError: the server refuses, or asks to wait for long; the connection keeps breaking or the disk is full (what was
            fetched stays for the next try); size, checksum or kind are wrong (the bad file is removed).
    """
    target = folder / remote.name
    part = folder / f"{remote.name}.part"
    if target.exists():
        bad = wrong_content(target) if target.is_file() else None
        if bad is None:
            size = target.stat().st_size if target.is_file() else -1
            if size < 0 or (remote.size is not None and size != remote.size):  # of the user, who may want to keep it
                why = "is no file" if size < 0 else f"has {size:,} bytes, not {remote.size:,}"
                raise InputError(
                    f"{target} {why}, so it is not {remote.url}. Remove it, it is fetched then; or unpack it yourself."
                )
            return target
        log.warning("%s %s: it is fetched anew", target, bad)
    with DiskErrors(part):
        folder.mkdir(parents=True, exist_ok=True)
        have = part.stat().st_size if part.exists() else 0
        free = shutil.disk_usage(folder).free
        if remote.size is not None and remote.size - have > free:
            raise InputError(
                f"{folder} has {free / 1e9:.1f} GB free, {remote.url} still needs {(remote.size - have) / 1e9:.1f} GB: "
                "free some space or choose another root."
            )
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task(remote.name, total=remote.size)
        fetch_as(remote, target, pause, lambda done, total: progress.update(bar, completed=done, total=total))
    return target


def fetch_as(
    remote: Remote, target: Path, pause: float = 2.0, report: Callable[[int, int | None], None] = lambda done, total: None
) -> None:
    """Download a file to the name `target`, without looking whether it is there; `report` is told bytes and their total.

    Raises:
        InputError: as `fetch`; what has to do with the server or what it sends is a `FetchError`.
    """
    places = [remote, *(replace(remote, url=url) for url in remote.others if remote.sha256 or remote.md5)]
    failures: list[str] = []
    for place in places:
        try:
            _fetch_from(place, target, pause, report)
            return
        except FetchError as error:
            if len(places) == 1:
                raise
            failures.append(str(error))
            if place is not places[-1]:
                log.warning("%s The next address is tried.", error)
    raise FetchError(f"none of {len(places)} addresses gives {remote.name}:\n" + "\n".join(f"  {each}" for each in failures))


def _fetch_from(remote: Remote, target: Path, pause: float, report: Callable[[int, int | None], None]) -> None:
    """From its first address alone."""
    part = target.with_name(f"{target.name}.part")
    attempt = 0  # counted from the last one that got further
    with DiskErrors(part):
        furthest = part.stat().st_size if part.exists() else 0
        while True:
            try:
                _continue(remote, part, report)
                break
            except urllib.error.HTTPError as error:
                reason = f"the server answers {error.code} {' '.join(str(error.reason).split())}"
                if error.code < 500 and error.code not in _COME_AGAIN:
                    raise FetchError(f"{remote.url}: {reason}.") from error
                wait = _retry_after(error.headers.get("Retry-After"))
            except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
                reason, wait = str(getattr(error, "reason", None) or error or type(error).__name__), None
            if wait is not None and wait > _LONGEST_WAIT:
                raise FetchError(f"{remote.url}: {reason} and asks to wait for {wait:,.0f} s; start again then.")
            have = part.stat().st_size if part.exists() else 0
            attempt, furthest = (1 if have > furthest else attempt + 1), max(have, furthest)
            if attempt == _ATTEMPTS:
                kept = f": what has arrived is kept in {part} and continued" if part.exists() else ""
                raise FetchError(f"{remote.url} cannot be fetched ({reason}). Check the network and start again{kept}.")
            time.sleep(pause * 2 ** (attempt - 1) if wait is None else wait)
        _verify(remote, part)
        put_in_place(part, target)
        _version_file(part).unlink(missing_ok=True)


def _retry_after(header: str | None) -> float | None:
    """Seconds to wait, which the header gives as such or as the time when to come again."""
    if header is None:
        return None
    if header.strip().isdecimal():
        return float(header)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _continue(remote: Remote, part: Path, report: Callable[[int, int | None], None]) -> None:
    """One connection: append what is missing to `part`."""
    if part.is_file() and part.stat().st_size and wrong_content(part) is not None:
        part.unlink()  # nothing to go on from
    have = part.stat().st_size if part.exists() else 0
    if remote.size is not None and have == remote.size:
        return
    request = urllib.request.Request(remote.url, headers={"User-Agent": "crosslight", "Accept-Encoding": "identity"})
    begun_of = _version_kept(remote, part) if have else None
    if have:
        request.add_header("Range", f"bytes={have}-")
        if begun_of is not None:
            request.add_header("If-Range", begun_of)  # of another file since then the whole is sent
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        # Nothing after `have`: either the part is complete, or it is longer than the file and belongs to another one.
        total = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
        if not total or int(total.group(1)) != have:
            part.unlink()
            _continue(remote, part, report)
        return
    with response:
        version, whole = _version(response), None
        if response.status == 206:  # what was asked for, and no other piece of it: not the middle of a file as its beginning
            sent = re.match(r"bytes (\d+)-\d+/(?:(\d+)|\*)", response.headers.get("Content-Range", ""))
            is_other = begun_of is not None and version != begun_of  # it does not know If-Range
            if not sent or int(sent[1]) != have or is_other:
                if have:  # it cannot go on from there
                    part.unlink()
                    _continue(remote, part, report)
                    return
                what = response.headers.get("Content-Range", "no range")
                raise FetchError(
                    f"{remote.url}: the server sends {shown(what)} of the file where bytes from 0 are wanted. Fetch it by other "
                    "means, or from a mirror."
                )
            whole = None if sent[2] is None else int(sent[2])  # nor its beginning as the whole: the rest is asked for next
        else:
            have = 0  # this server knows no ranges and sends the file from its beginning
        length = response.headers.get("Content-Length")
        total_size = whole or (have + int(length) if length is not None else remote.size)
        if remote.size is not None and total_size != remote.size:
            raise FetchError(
                f"{remote.url} has {total_size:,} bytes, expected {remote.size:,}: the address or mirror serves another file."
            )
        chunk = _received(response)
        # Looked at before what is there is written over: a page to log in at, in mid-download, would cost all that has arrived.
        is_uncut = length is None or len(chunk) in (_CHUNK, total_size)
        if not have and chunk and is_uncut and (why := _wrong_beginning(part, chunk[:1024])) is not None:
            raise FetchError(_in_place_of(remote, why))
        if not have:
            _keep_version(part, version)
        with part.open("ab" if have else "wb") as file:
            while chunk:
                file.write(chunk)
                have += len(chunk)
                report(have, total_size)
                chunk = _received(response)
    if total_size is not None and have < total_size:
        raise ConnectionError(f"connection closed after {have:,} of {total_size:,} bytes")


def _version(response: http.client.HTTPResponse) -> str | None:
    """What the server calls this version of the file: its strong ETag, or when it was modified."""
    tag = response.headers.get("ETag")
    return tag if tag is not None and not tag.startswith("W/") else response.headers.get("Last-Modified")


def _version_file(part: Path) -> Path:
    return part.with_name(f".{part.name}.version")


def _keep_version(part: Path, version: str | None) -> None:
    """Of the file that `part` is the beginning of, for the connection that goes on, which may be another day's."""
    if version is None:
        _version_file(part).unlink(missing_ok=True)
    else:
        _version_file(part).write_text(version)


def _version_kept(remote: Remote, part: Path) -> str | None:
    """None where it is not known; or not needed, as a checksum tells one file from another, wherever it lies."""
    file = _version_file(part)
    if remote.sha256 is not None or remote.md5 is not None or not file.is_file():
        return None
    return file.read_text()


def _received(response: http.client.HTTPResponse) -> bytes:
    """The next piece; what goes wrong is the network's, not the disk's."""
    try:
        return response.read(_CHUNK)
    except OSError as error:
        raise ConnectionError(str(error)) from error


def _verify(remote: Remote, part: Path) -> None:
    size = part.stat().st_size
    if remote.size is not None and size != remote.size:
        part.unlink()
        raise FetchError(f"{remote.url}: got {size:,} bytes, expected {remote.size:,}; the download was removed, start again.")
    if (why := wrong_content(part)) is not None:
        part.unlink()
        raise FetchError(_in_place_of(remote, why))
    for name, kind, known in (("MD5", "md5", remote.md5), ("SHA-256", "sha256", remote.sha256)):
        if known is None:
            continue
        with part.open("rb") as file:
            found = hashlib.file_digest(file, kind).hexdigest()
        if found != known:
            part.unlink()
            raise FetchError(
                f"{remote.url}: {name} checksum {found}, expected {known}; the download was removed, start again (or the "
                "mirror serves another file)."
            )


def _in_place_of(remote: Remote, why: str) -> str:
    return (
        f"{remote.url}: what the server sent in place of the file {why}; it is not kept. Open the address in a browser: it may "
        "ask you to log in, or have moved."
    )


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip file into `folder`, by way of a hidden folder beside it, so that no half-unpacked folder gets its name.

    Raises:
        InputError: not a sound zip file, empty or encrypted, the disk is full, or an entry that is absolute, climbs out with
            "..", is a link, has no name, or that of another.
    """
    staging = folder / f".{archive.name}.unpacking"
    with DiskErrors(folder):
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        try:
            with open_bytes(archive, "a zip file", archives=True):
                pass  # it is a file, and not a web page
            with zipfile.ZipFile(archive) as bundle:
                entries = bundle.infolist()
                _refuse_unsafe(archive, entries)
                needed, free = sum(entry.file_size for entry in entries), shutil.disk_usage(folder).free
                if needed > free:
                    raise InputError(
                        f"{archive} unpacks to {needed / 1e9:.1f} GB, {folder} has {free / 1e9:.1f} GB free: free some space."
                    )
                for entry in entries:
                    target = staging / entry.filename
                    if entry.is_dir():
                        target.mkdir(parents=True, exist_ok=True)
                        continue
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with bundle.open(entry) as source, target.open("wb") as file:
                        _copy(source, file)
            _merge(staging, folder)
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, ValueError, RuntimeError) as error:
            raise InputError(f"{archive} is not a sound zip file ({error}): remove it and download again.") from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _copy(source: IO[bytes], target: IO[bytes]) -> None:
    shutil.copyfileobj(source, target, _CHUNK)


def _refuse_unsafe(archive: Path, entries: list[zipfile.ZipInfo]) -> None:
    if not entries:
        raise InputError(f"{archive} is an archive without anything in it; nothing was unpacked. Remove it and download again.")
    files: set[PurePosixPath] = set()
    folders: set[PurePosixPath] = set()
    for entry in entries:
        path = PurePosixPath(entry.filename.replace("\\", "/"))
        mode = entry.external_attr >> 16
        reason = (
            "is an absolute path"
            if path.is_absolute() or re.match(r"[A-Za-z]:", entry.filename)
            else 'climbs out with ".."'
            if ".." in path.parts
            else "is a link or device"
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR)
            else "has no name"
            if not path.parts
            else "is encrypted"
            if entry.flag_bits & 1
            else "is there twice"
            if path in files or (path in folders and not entry.is_dir())
            else None
        )
        if reason:
            raise InputError(
                f"{archive}: entry {shown(entry.filename)} {reason}; nothing was unpacked. Do not trust this archive."
            )
        (folders if entry.is_dir() else files).add(path)
        folders.update(path.parents)
    if clash := files & folders:
        raise InputError(f"{archive}: entry {shown(str(clash.pop()))} is a file and a folder; nothing was unpacked.")


def _merge(source: Path, folder: Path) -> None:
    """Move what is in `source` into `folder`; whole folders where nothing of that name exists yet."""
    for entry in source.iterdir():
        target = folder / entry.name
        if entry.is_dir() and target.is_dir():
            _merge(entry, target)
        else:
            os.replace(entry, target)


class DiskErrors:
    """Turns a full or read-only disk into an `InputError` that names the place."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if not isinstance(error, OSError):
            return
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(
                f"the disk is full: {self.place} ({error.strerror}). Free some space and start again; what has arrived is kept."
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise InputError(f"{self.place} cannot be written ({error.strerror}); choose a root you may write to.") from error
        if isinstance(error, (urllib.error.URLError, ConnectionError, TimeoutError)):
            return  # of the network
        raise InputError(f"{self.place} cannot be written ({error.strerror or error}).") from error
