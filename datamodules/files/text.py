"""Opens text files for all readers: what is no text, or another file than it should be, is named before anything is parsed.

A byte order mark says the encoding (UTF-8, 16, 32) and is no part of the text; without one it is UTF-8.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from datamodules.errors import InputError

_HEAD = 1024  # bytes that tell what a file is
_ARCHIVES = (
    (b"\x1f\x8b", "compressed with gzip", "unpack it with gunzip"),
    (b"BZh", "compressed with bzip2", "unpack it with bunzip2"),
    (b"\xfd7zXZ\x00", "compressed with xz", "unpack it with unxz"),
    (b"(\xb5/\xfd", "compressed with zstd", "unpack it with unzstd"),
    (b"PK\x03\x04", "a zip archive", "unpack it with unzip"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it with 7z"),
)
_LFS = b"version https://git-lfs.github.com/spec/"
_WEB_PAGE = re.compile(
    rb"(?:\xef\xbb\xbf)?(?:\s|<\?xml[^>]*>|<!--(?:(?!-->).)*-->)*<(?:!doctype\s+html|html|head|body)\b", re.IGNORECASE | re.DOTALL
)


def is_web_page(head: bytes) -> bool:
    """Whether a file that begins so is an HTML page."""
    return _WEB_PAGE.match(head) is not None


@contextmanager
def open_bytes(path: Path, expected: str, archives: bool = False) -> Iterator[io.BufferedReader]:
    """A file to read, which is there, is a file and holds something; its errors of reading, and of decoding, name it.

    Args:
        path: The file.
        expected: What it should be, for errors.
        archives: Whether it may be an archive or compressed.

    Raises:
        InputError: it is missing, a folder, a pipe or a device (which are not opened: that could wait for ever), empty, a link to
            itself, not allowed to be read, a pointer of Git LFS, a web page, or compressed.
    """
    try:
        _require_file(path, expected)
        with path.open("rb") as file:
            _require_content(path, file.peek(_HEAD)[:_HEAD], expected, archives)
            yield file
    except UnicodeDecodeError as error:
        raise _no_text(path, expected, error) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}); expected {expected}.") from error


@contextmanager
def open_text(path: Path, expected: str, newline: str | None = None) -> Iterator[TextIO]:
    """As `open_bytes`, decoded; `newline` is that of `open`."""
    with open_bytes(path, expected) as file:
        encoding = json.detect_encoding(file.peek(4)[:4])  # by its mark, or by the zeros of ASCII characters
        with io.TextIOWrapper(file, encoding, newline=newline) as text:
            yield text


def read_text(path: Path, expected: str) -> str:
    """The whole text, line ends as they are.

    Raises:
        InputError: as `open_bytes`, or it is no text.
    """
    with open_bytes(path, expected) as file:
        raw = file.read()
        try:
            return raw.decode(json.detect_encoding(raw[:4]))
        except UnicodeDecodeError as error:
            raise _no_text(path, expected, error, f"line {raw.count(10, 0, error.start) + 1}: ") from None


def read_words(path: Path, expected: str) -> list[str]:
    """The words of a text, such as image ids, one a line.

    Raises:
        InputError: as `read_text`, or one is a path that leaves its folder.
    """
    words = read_text(path, expected).split()
    for word in words:
        if "/" in word or word in (".", ".."):
            raise InputError(f"{path} names {word!r}, which is a path; expected {expected}.")
    return words


def _no_text(path: Path, expected: str, error: UnicodeDecodeError, place: str = "") -> InputError:
    found = f"0x{error.object[error.start]:02x}" if error.start < len(error.object) else "its end"
    return InputError(
        f"{path} is not a text file in {error.encoding.upper()} ({place}{error.reason} at {found}); expected {expected}. Save it "
        "as UTF-8: `iconv -f latin1 -t utf-8 FILE` if it is Latin-1."
    )


def _require_file(path: Path, expected: str) -> None:
    try:
        status = path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            raise InputError(f"{path} is a link to {os.readlink(path)}, which does not exist; expected {expected}.") from None
        raise InputError(f"{path} does not exist; expected {expected} there.") from None
    except ValueError as error:
        raise InputError(f"{path} is no path of a file ({error}); expected {expected}.") from None
    except OSError as error:
        reason = "is a link that leads to itself" if error.errno == errno.ELOOP else f"cannot be read ({error.strerror})"
        raise InputError(f"{path} {reason}; expected {expected}.") from None
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"{path} is a folder; expected {expected}.")
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path} is a pipe or a device, not a file; expected {expected}.")
    if status.st_size == 0:
        raise InputError(f"{path} is empty (0 bytes); expected {expected}.")


def _require_content(path: Path, head: bytes, expected: str, archives: bool) -> None:
    if head.startswith(_LFS):
        raise InputError(
            f"{path} is a pointer of Git LFS, not the file itself; expected {expected}. Run `git lfs pull` in its repository."
        )
    if is_web_page(head):
        raise InputError(f"{path} is a web page (HTML), as servers send in place of a file; expected {expected}. Remove it.")
    for magic, what, remedy in () if archives else _ARCHIVES:
        if head.startswith(magic):
            raise InputError(f"{path} is {what}; expected {expected}: {remedy}.")
