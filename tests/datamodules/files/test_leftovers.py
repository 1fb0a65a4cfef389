"""What a killed process left unfinished goes with the next write beside it; what is being written stays."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from datamodules.files import leftovers
from datamodules.files.atomic import whole_file, whole_folder, write_atomically
from datamodules.files.leftovers import remove_leftovers, unfinished


def killed(folder: Path) -> None:
    """A process that is killed while it writes a file and a folder."""
    child = os.fork()
    if child == 0:
        with whole_file(folder / "file.json") as part, whole_folder(folder / "folder") as inside:
            part.write_text("half")
            (inside / "x").write_text("half")
            os._exit(9)
    os.waitpid(child, 0)


def test_leftovers_of_a_killed_process_go(tmp_path: Path) -> None:
    killed(tmp_path)
    assert len(os.listdir(tmp_path)) == 2
    (tmp_path / ".mine.unfinished-notes").write_text("a user's own")
    write_atomically(tmp_path / "other", "text")
    assert sorted(os.listdir(tmp_path)) == [".mine.unfinished-notes", "other"]


def test_what_is_being_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with whole_file(tmp_path / "a.npz") as one, whole_folder(tmp_path / "b") as two:
        write_atomically(tmp_path / "c", "text")
        remove_leftovers(tmp_path)
        assert one.exists()
        assert two.is_dir()
    killed(tmp_path)
    monkeypatch.setattr(leftovers, "_place", lambda: "00000000")  # another machine sees them
    remove_leftovers(tmp_path)
    assert len([name for name in os.listdir(tmp_path) if ".unfinished-" in name]) == 2
    for name in os.listdir(tmp_path):
        os.utime(tmp_path / name, (time.time() - 1e6,) * 2)
    remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["a.npz", "b", "c"]


def test_a_long_name_has_room_for_it(tmp_path: Path) -> None:
    for name in ("ä" * 120, "x" * 250 + ".json"):
        assert len(unfinished(tmp_path / name).name.encode()) < 255
        write_atomically(tmp_path / name, "text")
        assert (tmp_path / name).read_text() == "text"


def test_who_is_alone_in_a_folder_removes_what_any_machine_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed(tmp_path)
    (tmp_path / ".mine.unfinished-notes").write_text("a user's own")
    monkeypatch.setattr(leftovers, "_place", lambda: "00000000")  # the folder was moved to another one
    remove_leftovers(tmp_path, alone=True)
    assert os.listdir(tmp_path) == [".mine.unfinished-notes"]
