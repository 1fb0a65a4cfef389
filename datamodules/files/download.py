"""Fetching public archives: progress, resume, checksums, safe unpacking.

A download lives in `NAME.part` until it is complete and checked, then takes its name in one step; what an interrupted run has
fetched is kept and continued with an HTTP Range request.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import re
import shutil
import stat
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from datamodules.errors import InputError
from datamodules.files.atomic import put_in_place

_CHUNK = 1 << 20
_ATTEMPTS = 4  # of a download whose connection breaks; each continues where the last ended


@dataclass(frozen=True, slots=True)
class Remote:
    """A file to fetch; `size` in bytes and `md5` where they are known (MD5 guards against accidents, not attackers)."""

    url: str
    size: int | None = None
    md5: str | None = None

    @property
    def name(self) -> str:
        return PurePosixPath(self.url.partition("?")[0]).name


def fetch(remote: Remote, folder: Path, pause: float = 2.0) -> Path:
    """Download into `folder`, continuing an earlier `.part`; returns the file's path.

    Args:
        remote: What to fetch.
        folder: Where to; made if need be.
        pause: Seconds before the second attempt after a broken connection (doubled each time).

    Raises:
        InputError: the server refuses, the connection keeps breaking, the disk is full (what was fetched stays for the next
            try), or size or checksum are wrong (the bad file is removed).
    """
    target = folder / remote.name
    part = folder / f"{remote.name}.part"
    if target.exists():
        return target
    with _DiskErrors(part):
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
            for attempt in range(_ATTEMPTS):
                try:
                    _continue(remote, part, lambda done, total: progress.update(bar, completed=done, total=total))
                    break
                except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
                    if isinstance(error, urllib.error.HTTPError) and error.code < 500:
                        raise InputError(f"{remote.url}: the server answers {error.code} {error.reason}.") from error
                    if attempt == _ATTEMPTS - 1:
                        reason = getattr(error, "reason", None) or error or type(error).__name__
                        raise InputError(
                            f"{remote.url} cannot be fetched ({reason}). Check the network and start again: what has arrived is "
                            f"kept in {part} and continued."
                        ) from error
                    time.sleep(pause * 2**attempt)
        _verify(remote, part)
        put_in_place(part, target)
    return target


def _continue(remote: Remote, part: Path, report: Callable[[int, int | None], None]) -> None:
    """One connection: append what is missing to `part`."""
    have = part.stat().st_size if part.exists() else 0
    if remote.size is not None and have == remote.size:
        return
    request = urllib.request.Request(remote.url, headers={"User-Agent": "crosslight", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
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
        if have and response.status != 206:
            have = 0  # this server knows no ranges and sends the file from its beginning
        length = response.headers.get("Content-Length")
        total_size = have + int(length) if length is not None else remote.size
        if remote.size is not None and total_size != remote.size:
            raise InputError(
                f"{remote.url} has {total_size:,} bytes, expected {remote.size:,}: the address or mirror serves another file."
            )
        with part.open("ab" if have else "wb") as file:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                have += len(chunk)
                report(have, total_size)
    if total_size is not None and have < total_size:
        raise ConnectionError(f"connection closed after {have:,} of {total_size:,} bytes")


def _verify(remote: Remote, part: Path) -> None:
    size = part.stat().st_size
    if remote.size is not None and size != remote.size:
        part.unlink()
        raise InputError(f"{remote.url}: got {size:,} bytes, expected {remote.size:,}; the download was removed, start again.")
    if remote.md5 is not None:
        with part.open("rb") as file:
            found = hashlib.file_digest(file, "md5").hexdigest()
        if found != remote.md5:
            part.unlink()
            raise InputError(
                f"{remote.url}: MD5 checksum {found}, expected {remote.md5}; the download was removed, start again (or the "
                "mirror serves another file)."
            )


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip file into `folder`, by way of a hidden folder beside it, so that no half-unpacked folder gets its name.

    Raises:
        InputError: not a sound zip file, the disk is full, or an entry that is absolute, climbs out with "..", or is a link.
    """
    staging = folder / f".{archive.name}.unpacking"
    with _DiskErrors(folder):
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        try:
            with zipfile.ZipFile(archive) as bundle:
                entries = bundle.infolist()
                for entry in entries:
                    _refuse_unsafe(archive, entry)
                needed, free = sum(entry.file_size for entry in entries), shutil.disk_usage(folder).free
                if needed > free:
                    raise InputError(
                        f"{archive} unpacks to {needed / 1e9:.1f} GB, {folder} has {free / 1e9:.1f} GB free: free some space."
                    )
                for entry in entries:
                    if entry.is_dir():
                        (staging / entry.filename).mkdir(parents=True, exist_ok=True)
                        continue
                    target = staging / entry.filename
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with bundle.open(entry) as source, target.open("wb") as file:
                        _copy(source, file)  # type: ignore[arg-type]
            _merge(staging, folder)
        except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
            raise InputError(f"{archive} is not a sound zip file ({error}): remove it and download again.") from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _copy(source: BinaryIO, target: BinaryIO) -> None:
    shutil.copyfileobj(source, target, _CHUNK)


def _refuse_unsafe(archive: Path, entry: zipfile.ZipInfo) -> None:
    path = PurePosixPath(entry.filename.replace("\\", "/"))
    mode = entry.external_attr >> 16
    reason = (
        "is an absolute path"
        if path.is_absolute() or re.match(r"[A-Za-z]:", entry.filename)
        else 'climbs out with ".."'
        if ".." in path.parts
        else "is a link or device"
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR)
        else None
    )
    if reason:
        raise InputError(f"{archive}: entry {entry.filename!r} {reason}; nothing was unpacked. Do not trust this archive.")


def _merge(source: Path, folder: Path) -> None:
    """Move what is in `source` into `folder`; whole folders where nothing of that name exists yet."""
    for entry in source.iterdir():
        target = folder / entry.name
        if entry.is_dir() and target.is_dir():
            _merge(entry, target)
        else:
            os.replace(entry, target)


class _DiskErrors:
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
