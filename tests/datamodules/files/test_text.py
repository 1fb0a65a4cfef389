"""What is no text, or not the file that it should be, is named; byte order marks are no part of a text."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import zipfile
from pathlib import Path

import pytest

from datamodules.errors import InputError
from datamodules.files.text import is_web_page, open_bytes, open_text, read_text, read_words

TEXT = "Ein Hund läuft.\r\nzwei\u2028drei\n"


def as_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as bundle:
        bundle.writestr("a.txt", "a")
    return buffer.getvalue()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_the_mark_says_the_encoding_and_is_no_part_of_the_text(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(TEXT.encode(encoding))
    assert read_text(path, "a text") == TEXT
    with open_text(path, "a text", newline="") as file:
        assert "".join(file) == TEXT
    with open_text(path, "a text") as file:
        assert next(file) == "Ein Hund läuft.\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is empty \(0 bytes\); expected a text"),
        (TEXT.encode("latin-1", "replace"), r"not a text file in UTF-8 \((line 1: )?invalid .*0xe4\).*iconv -f latin1 -t utf-8"),
        (b"ab\x00\xff\xfe\n", "not a text file in UTF"),
        (TEXT.encode("utf-16")[:-1], "not a text file in UTF-16"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "pointer of Git LFS.*git lfs pull"),
        (b"\n <!DOCTYPE html>\n<title>404</title>", r"web page \(HTML\)"),
        (b"<HTML lang='en'>", r"web page \(HTML\)"),
        (gzip.compress(b"text", mtime=0), "compressed with gzip; expected a text: unpack it with gunzip"),
        (bz2.compress(b"text"), "compressed with bzip2"),
        (lzma.compress(b"text"), "compressed with xz"),
        (as_zip(), "a zip archive; expected a text: unpack it"),
    ],
)
def test_what_is_no_text_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"a\.txt .*{message}"):
        read_text(path, "a text")
    with pytest.raises(InputError, match=rf"a\.txt .*{message}"), open_text(path, "a text") as file:
        file.read()


def test_what_is_no_file_is_named_and_never_waited_for(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    os.mkfifo(tmp_path / "pipe")
    named = {
        "loop": "is a link that leads to itself",
        "dangling": f"is a link to {tmp_path / 'gone'}, which does not exist",
        "pipe": "is a pipe or a device, not a file",
        ".": "is a folder",
        "none": "does not exist; expected a text there",
        "pipe/below": "cannot be read",
        "null\0": "is no path of a file",
        "x" * 300: "cannot be read",
    }
    for name, message in named.items():
        with pytest.raises(InputError, match=message):
            read_text(tmp_path / name, "a text")
    with pytest.raises(InputError, match="is a pipe or a device"), open_bytes(Path("/dev/zero"), "a text"):
        pass


def test_archives_are_opened_where_they_are_meant(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(as_zip())
    with open_bytes(tmp_path / "a.zip", "an archive", archives=True) as file:
        assert file.read() == as_zip()


def test_a_web_page_is_told_at_once() -> None:
    """Comments without an end must not be tried in every way there is."""
    assert not is_web_page(b" <!---->" * 100 + b"<!--")
    assert is_web_page(b" <!---->" * 100 + b"<html>")


def test_words_are_no_paths(tmp_path: Path) -> None:
    path = tmp_path / "test.txt"
    path.write_bytes(b"\xef\xbb\xbf12\n 13 \r\n")
    assert read_words(path, "ids") == ["12", "13"]
    for word in ("../../etc/passwd", "..", "/etc/passwd"):
        path.write_text(f"12\n{word}\n")
        with pytest.raises(InputError, match=r"test\.txt names .*, which is a path; expected ids"):
            read_words(path, "ids")
