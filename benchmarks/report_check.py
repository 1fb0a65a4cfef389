"""Opens a report in headless Chromium: requests, console, width, colors, sorting, accessibility (axe-core), time to render.

    python benchmarks/report_check.py SITE [--pages NAME ...] [--shots DIR]

Needs chromium, node and npm (Debian: apt-get install chromium nodejs npm); at the first call npm fetches two packages to
~/.cache/crosslight/report_check. Exits 2 and says so where they are missing; 1 when a page asks for anything, logs an error, is
wider than its window, takes 3 s of processor time, or has an accessibility finding.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

PACKAGES = ("puppeteer-core@24", "axe-core@4")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "crosslight" / "report_check"
MOST_MILLISECONDS = 3000


def find_browser(who: str) -> str | None:
    """Chromium, where it and the packages that drive it are there, or can be fetched; else None, after saying what is missing."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    missing = [
        name for name, found in (("chromium", chromium), *((name, shutil.which(name)) for name in ("node", "npm"))) if not found
    ]
    if missing:
        print(f"{who} needs {', '.join(missing)}: apt-get install chromium nodejs npm", file=sys.stderr)
        return None
    if not (CACHE / "node_modules" / "axe-core").is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        if subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--silent", *PACKAGES], cwd=CACHE).returncode:
            print(f"npm could not fetch {' and '.join(PACKAGES)}, which {who} needs once", file=sys.stderr)
            return None
    return chromium


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", type=Path)
    parser.add_argument("--shots", type=Path, help="folder for a screenshot of every page, width and light")
    parser.add_argument("--pages", nargs="+", default=[], help="only these, such as index.html")
    options = parser.parse_args()
    if not (options.site / "index.html").is_file():
        print(f"{options.site} holds no index.html: give the folder that `crosslight report --out` wrote.", file=sys.stderr)
        return 2
    chromium = find_browser("report_check")
    if chromium is None:
        return 2
    if options.shots is not None:
        options.shots.mkdir(parents=True, exist_ok=True)
    script = Path(__file__).with_suffix(".mjs").resolve()
    shots = "" if options.shots is None else str(options.shots.resolve())
    visits = subprocess.run(
        ["node", str(script), chromium, str(options.site.resolve()), shots, *options.pages],
        cwd=CACHE,
        stdout=subprocess.PIPE,
        text=True,
    )
    pages = [json.loads(line) for line in visits.stdout.splitlines()]
    problems = [f"node exited with {visits.returncode}"] if visits.returncode or not pages else []
    for page in pages:
        where = f"{page['name']}, {page['width']} px, {page['light']}"
        problems += [f"{where}: asks for {each}" for each in page["requests"]]
        problems += [f"{where}: console: {each}" for each in page["errors"]]
        if page["wide"] > 0:
            problems.append(f"{where}: {page['wide']} px wider than the window")
        if page["busy"] >= MOST_MILLISECONDS:
            problems.append(f"{where}: {page['busy']} ms of processor time to render")
        if not page["lights"] or not page["sorted"]:
            problems.append(f"{where}: the {'color switch' if not page['lights'] else 'sorting'} does not work")
        problems += [
            f"{where}: {each['impact']}: {each['id']}, {each['nodes']} x, {each['first']} ({each['why']})"
            for each in page["violations"]
        ]
    print("\n".join(problems))
    slowest = max(pages, key=lambda page: page["busy"], default={"name": "-", "busy": 0, "milliseconds": 0, "elements": 0})
    print(
        f"{len(pages)} visits, {len(problems)} findings; slowest {slowest['name']}: {slowest['busy']} ms of processor time "
        f"({slowest['milliseconds']} ms on the clock), {slowest['elements']} elements"
    )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
