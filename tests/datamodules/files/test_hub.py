"""A hub that is not there is asked once, and what needs it fails at once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from datamodules.errors import InputError
from datamodules.files import hub
from datamodules.files.hub import without_waiting
from datamodules.loading.tokens import _from_hugging_face


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    hub.answers.cache_clear()


def test_a_hub_that_does_not_answer_is_not_asked_again(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    begun = time.monotonic()
    with pytest.raises(InputError, match="no tokenizer at nobody/nothing: "):
        _from_hugging_face("nobody/nothing")
    assert time.monotonic() - begun < 10
    assert constants.is_offline_mode()
    assert [record.getMessage() for record in caplog.records if record.name == "crosslight"] == [
        "http://127.0.0.1:9 cannot be reached; only what is in its cache is used."
    ]
    monkeypatch.setattr(hub, "urlopen", None)
    without_waiting("nobody/else")


def test_folders_ask_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "urlopen", None)
    without_waiting(str(tmp_path))
    assert not constants.is_offline_mode()
