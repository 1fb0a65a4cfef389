"""Runs programs one after the other, each in a fork of a process that has imported torch and nothing else: `after_torch.py`.

It reads a line a program, [PROGRAM, {VARIABLE: VALUE}] as JSON, and writes a line: [EXIT STATUS, STDOUT, STDERR].
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
import traceback

gc.disable()  # the programs are short, and import much

import torch  # noqa: E402, F401


def run(program: str, environment: dict[str, str]) -> tuple[int, str, str]:
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as error:
        child = os.fork()
        if child == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(error.fileno(), 2)
            os.environ.update(environment)
            status = 0
            try:
                exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})
            except BaseException:
                traceback.print_exc()
                status = 1
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        _, status = os.waitpid(child, 0)
        out.seek(0)
        error.seek(0)
        return os.waitstatus_to_exitcode(status), out.read(), error.read()


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(run(*json.loads(line))), flush=True)
