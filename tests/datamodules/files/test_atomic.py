"""Whole or not at all: what a reader, a full disk and a second writer see."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from safetensors.numpy import save_file

from datamodules.files.atomic import put_in_place, whole_file, whole_folder, write_atomically


def full(*arguments: object) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the files that were synced."""
    sizes: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: sizes.append(os.fstat(handle).st_size))
    return sizes


@pytest.mark.parametrize("content", ["ä\r\ntext\n", b"\x00bytes\n"])
def test_what_was_written_is_there_as_it_is(content: str | bytes, tmp_path: Path, synced: list[int]) -> None:
    write_atomically(tmp_path / "file.json", content)
    expected = content.encode() if isinstance(content, str) else content
    assert (tmp_path / "file.json").read_bytes() == expected
    assert synced == [len(expected)]
    assert os.listdir(tmp_path) == ["file.json"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_modes_are_those_that_the_umask_leaves(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "file", "text")
        with whole_file(tmp_path / "other") as part:  # as safetensors makes its files
            part.unlink()
            os.close(os.open(part, os.O_CREAT | os.O_WRONLY, 0o600))
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {mode}


@pytest.mark.parametrize("broken", ["replace", "fsync"])
def test_a_full_disk_leaves_the_old_file_and_nothing_beside_it(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_atomically(tmp_path / "file", "old")
    monkeypatch.setattr(os, broken, full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "file", "new")
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_a_full_disk_is_an_error_of_the_disk_also_where_safetensors_writes(tmp_path: Path) -> None:
    (tmp_path / "file.safetensors").write_text("old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as error, whole_file(tmp_path / "file.safetensors") as part:
            save_file({"a": np.zeros(1000)}, part)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert error.value.errno == errno.EFBIG
    assert error.value.filename == str(tmp_path / "file.safetensors")
    assert os.listdir(tmp_path) == ["file.safetensors"]
    assert (tmp_path / "file.safetensors").read_text() == "old"


def test_two_writers_at_once_do_not_meet(tmp_path: Path) -> None:
    with whole_file(tmp_path / "file.npz") as one, whole_file(tmp_path / "file.npz") as two:
        assert one != two
        assert one.suffix == two.suffix == ".npz"
        one.write_text("one")
        two.write_text("two")
    assert (tmp_path / "file.npz").read_text() == "one", "the last to end"


def test_a_part_takes_its_name(tmp_path: Path, synced: list[int]) -> None:
    (tmp_path / "a.part").write_text("fetched")
    put_in_place(tmp_path / "a.part", tmp_path / "a")
    assert synced == [7]
    assert os.listdir(tmp_path) == ["a"]


def killed_while_filling(folder: Path) -> NoReturn:
    with whole_folder(folder) as part:
        (part / "file").write_text("text")
        raise KeyboardInterrupt


def test_a_folder_appears_whole_also_onto_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    for name in ("made", "new/below"):
        with whole_folder(tmp_path / name) as part:
            (part / "file").write_text("text")
            assert not list((tmp_path / name).iterdir() if name == "made" else [])
        assert (tmp_path / name / "file").read_text() == "text"
    with pytest.raises(KeyboardInterrupt):
        killed_while_filling(tmp_path / "killed")
    with pytest.raises(OSError, match="not empty"), whole_folder(tmp_path / "made"):
        pass
    assert sorted(os.listdir(tmp_path)) == ["made", "new"]
