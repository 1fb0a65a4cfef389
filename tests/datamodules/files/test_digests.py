"""Digests of files: of their content alone, and read again only where that may have changed."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from datamodules.errors import InputError
from datamodules.files import digests as module
from datamodules.files.digests import digest, digests


@pytest.fixture
def reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is read, from now on; everything is worth remembering, nothing is known."""
    names: list[str] = []
    original = module._part

    def noting(file: Path, start: int) -> bytes:
        names.append(file.name)
        return original(file, start)

    monkeypatch.setenv("CROSSLIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "_part", noting)
    monkeypatch.setattr(module, "_MANY", 1)
    monkeypatch.setattr(module, "_SETTLED", -(10**15))
    monkeypatch.setattr(module, "_known", {})
    return names


def folder_of(path: Path, contents: dict[str, bytes]) -> list[Path]:
    path.mkdir(parents=True)
    for name, content in contents.items():
        (path / name).write_bytes(content)
    return [path / name for name in contents]


def another_process() -> None:
    module._known.clear()


def test_content_alone_decides(tmp_path: Path, reads: list[str]) -> None:
    a, b, c = folder_of(tmp_path / "here", {"a": b"1", "b": b"2", "c": b"1"})
    found = digests([a, b, c, tmp_path / "here" / "gone", tmp_path / "here"])
    assert found == {file: hashlib.sha256(file.read_bytes()).hexdigest()[:32] for file in (a, b, c)}
    shutil.move(tmp_path / "here", tmp_path / "there")
    os.utime(tmp_path / "there" / "a", (1, 1))
    assert [digest(tmp_path / "there" / name) for name in "abc"] == [found[file] for file in (a, b, c)]
    with pytest.raises(InputError, match="here/a does not exist"):
        digest(a)


def test_files_are_read_once_whatever_the_process(tmp_path: Path, reads: list[str]) -> None:
    files = folder_of(tmp_path / "images", {f"{number}": bytes([number]) for number in range(100)})
    first = digests(files)
    assert sorted(reads) == sorted(path.name for path in files)
    reads.clear()
    assert digests(files) == first
    another_process()
    assert digests(files[:3] + files[50:]) == {path: first[path] for path in files[:3] + files[50:]}
    assert reads == []
    (memory,) = (tmp_path / "cache" / "digests").iterdir()
    for damage in ("", "[]", '{"files": {"1": [1, 2, 3, "x"]}}', '{"files": {"1": 7}}'):
        memory.write_text(damage)
        another_process()
        assert digests(files) == first
        assert len(reads) == 100
        reads.clear()


def test_a_replaced_file_is_read_again_also_with_its_size_and_times_kept(tmp_path: Path, reads: list[str]) -> None:
    files = folder_of(tmp_path / "images", {"a": b"old", "b": b"same", "c": b"also"})
    before = digests(files)
    status = files[0].stat()
    other = tmp_path / "other"
    other.write_bytes(b"new")
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(other, files[0])
    assert (files[0].stat().st_size, files[0].stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    reads.clear()
    another_process()
    after = digests(files)
    assert reads == ["a"]
    assert after == before | {files[0]: hashlib.sha256(b"new").hexdigest()[:32]}


def test_what_changed_a_moment_ago_is_not_trusted_yet(tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Within one tick of the clock a file may change twice and keep its times."""
    monkeypatch.setattr(module, "_SETTLED", 2 * 10**9)
    (file,) = folder_of(tmp_path / "images", {"a": b"old"})
    digest(file)
    digest(file)
    assert reads == ["a", "a"]


def test_little_data_leave_nothing_behind(tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MANY", 2000)
    digests(folder_of(tmp_path / "images", {"a": b"1"}))
    assert not (tmp_path / "cache").exists()


def test_a_home_that_cannot_be_written_to_costs_time_only(tmp_path: Path, reads: list[str]) -> None:
    (tmp_path / "cache").write_text("no folder")
    (file,) = folder_of(tmp_path / "images", {"a": b"1"})
    assert digest(file) == digest(file)


def test_a_large_file_is_read_in_parts(tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PART", 10)
    contents = {"a": b"x" * 25, "b": b"x" * 24 + b"y", "c": b"y" + b"x" * 24, "d": b"x" * 20, "e": b"x" * 10, "f": b""}
    found = digests(folder_of(tmp_path / "large", contents))
    assert len(set(found.values())) == len(contents)
    assert sorted(reads) == sorted("aaabbbcccddef")
    parts = [hashlib.sha256(content).digest() for content in (b"x" * 10, b"x" * 10, b"x" * 5)]
    assert found[tmp_path / "large" / "a"] == hashlib.sha256(b"".join(parts)).hexdigest()[:32]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (file,) = folder_of(tmp_path / "images", {"a": b"1"})

    def fail(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(InputError, match=r"images/a cannot be read \(Permission denied\)"):
        digest(file)
