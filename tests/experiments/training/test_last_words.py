"""Why another process ended: it leaves word in the run folder, and the first one writes it down."""

from __future__ import annotations

from pathlib import Path

import pytest

from datamodules.errors import AgreedError, InputError
from experiments.runs.folder import RunFolder
from experiments.runs.results import read_results
from experiments.training import last_words
from experiments.training.command import settle_failure
from lightning_modules import collectives

TORN = RuntimeError("[/gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:18858. This is typically caused by")


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[RunFolder, RunFolder]:
    """One run folder, of the first process and of another."""
    monkeypatch.setattr(collectives, "several", lambda: True)
    made = {"name": "x", "command": "run", "config": {"seed_everything": 0}}
    return RunFolder.open(tmp_path / "run", **made), RunFolder.attach(tmp_path / "run", **made)


def test_the_first_says_what_the_other_left(
    folders: tuple[RunFolder, RunFolder], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, other = folders
    with monkeypatch.context() as patch:
        patch.setenv("TORCHELASTIC_RUN_ID", "x")
        patch.setenv("RANK", "3")
        assert settle_failure(InputError("a.jpg cannot be decoded."), other) == 2
        assert capsys.readouterr().err == "crosslight: error: a.jpg cannot be decoded.\n"
        assert settle_failure(TORN, other) == 1  # of a third one, say
        assert capsys.readouterr().err == ""
    assert settle_failure(TORN, first) == 1
    assert capsys.readouterr().err == "crosslight: error: process 3: a.jpg cannot be decoded.\n"
    found = read_results(first.path)
    assert (found.status, found.error) == ("failed", "process 3: a.jpg cannot be decoded.")
    assert not (first.path / "traceback.log").exists()
    last_words.forget(first.path)
    assert last_words.of_another(first.path) is None


def test_nobody_left_word(folders: tuple[RunFolder, RunFolder], capsys: pytest.CaptureFixture[str]) -> None:
    first, other = folders
    assert settle_failure(AgreedError("all alike"), other) == 2  # the first says it
    assert settle_failure(KeyboardInterrupt(), other) == 130
    assert last_words.of_another(first.path) is None
    capsys.readouterr()
    assert settle_failure(TORN, first) == 1
    assert "another process of the run ended before this one" in capsys.readouterr().err


def test_a_process_that_is_told_to_end_says_who_was_first(
    folders: tuple[RunFolder, RunFolder], capsys: pytest.CaptureFixture[str]
) -> None:
    first, _ = folders
    last_words.leave(first.path, 1, "out of memory")
    assert settle_failure(KeyboardInterrupt(), first) == 1
    assert "process 1: out of memory" in capsys.readouterr().err
    assert not last_words.torn(ValueError("Connection closed by peer"))
