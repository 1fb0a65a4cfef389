"""How what is missing comes to be there: by one process at a time."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest
from local_server import Server, server

from datamodules.files.download import Remote
from datamodules.files.locks import locked
from datamodules.files.steps import Step, carry_out

__all__ = ["server"]  # the fixture


def test_who_comes_second_waits_and_finds_it_there(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server.files["/a.json"] = b"{}"
    step, lock, waits = Step(tmp_path / "a.json", Remote(f"{server.url}/a.json")), tmp_path / ".a.json.lock", threading.Event()
    handler = logging.Handler()
    handler.emit = lambda record: waits.set()  # type: ignore[method-assign]
    caplog.set_level(logging.INFO, "crosslight")
    logging.getLogger("crosslight").addHandler(handler)
    try:
        second = threading.Thread(target=carry_out, args=(step,))
        with locked(lock):
            second.start()
            assert waits.wait(20)
            step.path.write_bytes(b"[]")  # by who came first
        second.join()
    finally:
        logging.getLogger("crosslight").removeHandler(handler)
    assert "another process is fetching a.json; waiting for it" in caplog.text
    assert server.requests == []
    assert step.path.read_bytes() == b"[]"


def test_a_lock_goes_with_the_work(server: Server, tmp_path: Path) -> None:
    server.files["/a.json"] = b"{}"
    carry_out(Step(tmp_path / "a.json", Remote(f"{server.url}/a.json")))
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
