"""What libraries raise, told in one line with what to do."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from experiments.training import failures

GONE = "DataLoader worker (pid(s) 7) exited unexpectedly"
KILLED = "DataLoader worker (pid 7) is killed by signal: "
SHARED = "It is possible that dataloader's workers are out of shared memory. Please try to raise your shared memory limit."
TORCH = "shared memory object </torch_1_2_3>"


@pytest.mark.parametrize(
    ("said", "room", "expected"),
    [
        (f"{KILLED}Bus error. {SHARED}", 1e12, r"/dev/shm, whose 1,000,000 MB are full: .*--shm-size=8g"),
        ("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)", 64e6, "64 MB are full"),
        (GONE, 64e6, "whose 64 MB are full: .*num_workers=0"),
        (GONE, 16e9, None),  # something else ended it
        (f"{KILLED}Killed. ", 64e6, "a data worker was killed, most likely for memory: give"),
        ("DataLoader timed out after 1800.0 seconds", 16e9, "no batch came from the data workers for half an hour: the disk"),
        ("received 0 items of ancdata", 16e9, "too many open files: raise their limit"),
        (f"unable to open {TORCH} in read-write mode: Too many open files (24)", 16e9, "ulimit -n 65536"),
        ("mat1 and mat2 shapes cannot be multiplied", 64e6, None),
    ],
)  # fmt: skip
def test_why_a_data_worker_is_gone(said: str, room: float, expected: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures.shutil, "disk_usage", lambda _: SimpleNamespace(total=int(room)))
    monkeypatch.setattr(failures.os.path, "isdir", lambda _: True)
    wrapped = ValueError("in the loop")
    wrapped.__cause__ = RuntimeError(said)
    for error in (RuntimeError(said), wrapped):
        told = failures.lost_worker(error)
        if expected is None:
            assert told is None
        else:
            assert told is not None
            assert re.search(expected, told), told
            assert "\n" not in told
