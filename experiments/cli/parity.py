"""`crosslight parity`: this build against recordings of the official implementations."""

from __future__ import annotations

from pathlib import Path

from experiments.cli.parser import Parser


def parity(arguments: list[str]) -> int:
    import os

    from experiments.parity.run import check_files, print_reports, status

    parser = Parser("parity")
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--spm", type=Path, default=os.environ.get("CROSSLIGHT_BEIT3_SPM") or None)
    options = parser.parse_args(arguments)
    reports = check_files(options.files, options.spm)
    print_reports(reports)
    return status(reports)
