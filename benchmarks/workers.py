"""Processes beside a benchmark: a worker that takes turns with it, and the packages that only this worker sees.

`serve` and `Worker` are the two ends of the protocol: a line of JSON in (`{"do": ...}`), a line of JSON out. A worker measures
its own CPU and wall seconds, so the pipe is not in them. Only the standard library is imported: a worker's memory is its own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def resident_bytes(peak: bool = True) -> int:
    """Resident size of this process: its peak since `forget_peak`, or now."""
    key = "VmHWM:" if peak else "VmRSS:"
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {key} line")


def forget_peak() -> None:
    """Let the peak resident size count from here (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def serve(actions: dict[str, Callable[..., Any]]) -> None:
    """Answer requests from stdin until it closes. stdout belongs to the answers; what libraries print goes to stderr."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    sys.stdout = sys.stderr
    answers.write(json.dumps({"ready": True}) + "\n")
    for line in sys.stdin:
        request = json.loads(line)
        answers.write(json.dumps(actions[request.pop("do")](**request)) + "\n")


class Worker:
    """A process that speaks `serve`'s protocol."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker ended with status {self._process.wait()}; what it said is above")
        return json.loads(line)

    def ask(self, do: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        return self._answer()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def packages_alone(requirement: str, given: Path | None) -> Path:
    """A folder with one package alone, without its dependencies: in the user's cache, filled by pip the first time.

    Args:
        requirement: "name==version"; the package imports under this name.
        given: A folder that has it, instead.

    Raises:
        SystemExit: It is not in `given`, or cannot be installed.
    """
    package = requirement.partition("==")[0]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = given or cache / "crosslight" / requirement.replace("==", "-")
    if (folder / package).is_dir():
        return folder
    if given is not None:
        raise SystemExit(f"--packages {given}: there is no {package} in it; leave the option out to have it installed")
    uv = Path(sys.executable).with_name("uv")
    install = [str(uv), "pip", "install"] if uv.exists() else [sys.executable, "-m", "pip", "install"]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
        command = [*install, "--quiet", "--no-deps", "--target", unfinished + "/packages", requirement]
        if subprocess.run(command, check=False).returncode:
            raise SystemExit(f"could not install {requirement}: {' '.join(command)}; with a copy of it: --packages FOLDER")
        shutil.move(unfinished + "/packages", folder)
    return folder
