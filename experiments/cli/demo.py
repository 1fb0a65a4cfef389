"""`crosslight demo`: the first five minutes."""

from __future__ import annotations

from pathlib import Path

from datamodules.errors import InputError
from experiments.cli.parser import Parser


def demo(arguments: list[str]) -> int:
    parser = Parser("demo")
    parser.add_argument("what", nargs="?", choices=("all", "iais", "captioning"), default="all")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    options = parser.parse_args(arguments)
    if options.what == "all":
        from experiments.demo.headlines import run_demo

        return run_demo(options.out, options.runs or Path("runs/papers"), options.seed)
    if options.runs is not None:
        raise InputError(f"--runs is of the whole demo; `crosslight demo {options.what}` writes its runs below --out.")
    if options.what == "iais":
        from experiments.demo import iais as iais_demo

        return iais_demo.run_demo(options.out, options.seed)
    from experiments.demo import captioning as captioning_demo

    return captioning_demo.run_demo(options.out, options.seed)
