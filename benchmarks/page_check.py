"""Uses `crosslight page` in headless Chromium as a visitor does: requests, console, width, keyboard, accessibility (axe-core).

    python benchmarks/page_check.py RUN... [--shots DIR] [--images DIR]

RUN are runs as `crosslight page --run` takes them; one should search and one caption. Needs chromium, node and npm, as
report_check does, and exits 2 where they are missing. Exits 1 when the page asks for anything of another machine, logs an error,
is wider than its window, does not do what it should, or has an accessibility finding.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from report_check import CACHE, find_browser


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--images", help="as `crosslight page --images`")
    parser.add_argument("--shots", type=Path, help="folder for a screenshot of every step")
    options = parser.parse_args()
    chromium = find_browser("page_check")
    if chromium is None:
        return 2
    if options.shots is not None:
        options.shots.mkdir(parents=True, exist_ok=True)
    given = ["--run", *options.runs, *(() if options.images is None else ("--images", options.images)), "--port", "0"]
    command = [sys.executable, "-m", "experiments.cli.main", "page", *given]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            said = server.stdout.readline()
            if "http://" not in said:
                return server.wait() or 2
            address = said.split("http://", 1)[1].split()[0]
            shots = "" if options.shots is None else str(options.shots.resolve())
            script = Path(__file__).with_suffix(".mjs").resolve()
            visits = subprocess.run(
                ["node", str(script), chromium, f"http://{address}", shots], cwd=CACHE, stdout=subprocess.PIPE, text=True
            )
        finally:
            server.terminate()
    steps = [json.loads(line) for line in visits.stdout.splitlines()]
    problems = [f"node exited with {visits.returncode}"] if visits.returncode or not steps else []
    for step in steps:
        problems += [f"{step['name']}: {each}" for each in step["problems"]]
        problems += [
            f"{step['name']}: {each['impact']}: {each['id']}, {each['nodes']} x, {each['first']} ({each['why']})"
            for each in step["violations"]
        ]
    print("\n".join(problems))
    print(f"{len(steps)} steps, {len(problems)} findings")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
