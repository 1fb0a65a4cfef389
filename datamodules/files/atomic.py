"""Files and folders that are there whole or not at all, also when the disk fills up, the process is killed or the power goes.

What is written has another name until it is complete and on the disk; then it takes its own in one step. A reader sees the old
content or the new, and several processes may write at once: the last one wins. Modes are those that the umask leaves. What a
killed process left unfinished goes with the next write beside it (`leftovers`).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from datamodules.files.leftovers import remove_leftovers, unfinished

_OF_RUST = re.compile(r"\(os error (\d+)\)")  # how Rust ends what it says of a disk


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """An empty file beside `path` to write to, which takes its place when the block ends without an error, and else is removed.

    Its name ends like that of `path`, for writers that go by it.

    Raises:
        OSError: It cannot be written, also where the writer has an error of its own for that (safetensors).
    """
    remove_leftovers(path.parent)
    part = unfinished(path)
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        mode = os.fstat(handle).st_mode & 0o777
        os.close(handle)
        yield part
        os.chmod(part, mode)  # some writers (safetensors) make a file for its owner alone
        put_in_place(part, path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if not isinstance(error, OSError) and (of_disk := _OF_RUST.search(str(error))):
            number = int(of_disk[1])
            raise OSError(number, os.strerror(number), str(path)) from error
        raise


def put_in_place(part: Path, path: Path) -> None:
    """Have what was written to `part` on the disk, then give it the name `path`."""
    with open(part, "rb") as file:
        os.fsync(file.fileno())
    os.replace(part, path)


def write_atomically(path: Path, content: str | bytes) -> None:
    """A text (as UTF-8, line ends as they are) or bytes as a file, whole or not at all."""
    with whole_file(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """An empty folder beside `path` to fill, which takes its place when the block ends without an error, and else is removed.

    Raises:
        OSError: `path` is there and is not an empty folder when the block has ended, among others.
    """
    with staging_folder(path) as part:
        yield part
        part.rename(path)


@contextlib.contextmanager
def staging_folder(path: Path) -> Iterator[Path]:
    """An empty folder beside `path`, removed when the block ends."""
    remove_leftovers(path.parent)
    part = unfinished(path)
    part.mkdir(parents=True)
    try:
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)
