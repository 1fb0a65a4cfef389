"""Executes notebooks on run folders, and keeps what they show: `make notebooks`.

python notebooks/execute.py --runs runs/papers --out runs/notebooks [mwa iais ...]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import nbformat

HERE = Path(__file__).parent
NAMES = ("mwa", "iais", "i_tuning", "error_analysis", "sweeps", "your_own")


def read(name: str, runs: Path) -> nbformat.NotebookNode:
    """A notebook whose cell of parameters (the one with that tag) names these runs."""
    notebook = nbformat.read(HERE / f"{name}.ipynb", as_version=4)
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    first, _, others = parameters.source.partition("\n")
    assert first.startswith("RUNS = "), first
    parameters.source = f"RUNS = {str(runs.resolve())!r}\n{others}"
    return notebook


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME", help=f"of {', '.join(NAMES)} (default: all)")
    parser.add_argument("--runs", type=Path, default=Path("runs/papers"), help="where `crosslight demo` wrote its runs")
    parser.add_argument("--out", type=Path, default=Path("runs/notebooks"), help="where the executed notebooks go")
    options = parser.parse_args()
    from nbclient import NotebookClient

    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.names:
        began = time.perf_counter()
        notebook = read(name, options.runs)
        quiet = ["--log-level=ERROR"]
        NotebookClient(notebook, timeout=600, extra_arguments=quiet, resources={"metadata": {"path": str(HERE)}}).execute()
        nbformat.write(notebook, options.out / f"{name}.ipynb")
        print(f"{options.out / name}.ipynb: {time.perf_counter() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
