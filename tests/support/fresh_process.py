"""What a command imports, seen in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
_PROGRAM = """
import sys
from experiments.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert end.code in (0, None), end.code
print(*sorted(sys.modules), file=sys.stderr)
"""


def modules_after(*arguments: str | Path, folder: Path) -> set[str]:
    """Names of the modules that `crosslight ARGUMENTS` has imported when it is done."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", _PROGRAM, *map(str, arguments)]
    answer = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stderr
    return set(answer.stderr.splitlines()[-1].split())
