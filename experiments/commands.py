"""The sub-commands that do not train: a function each, named like it, from its arguments to the exit status."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Literal, NoReturn

from datamodules.errors import InputError


class _Parser(argparse.ArgumentParser):
    def __init__(self, command: str) -> None:
        super().__init__(prog=f"crosslight {command}", allow_abbrev=False, add_help=False)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}. See {self.prog} --help.")


def table(arguments: list[str]) -> int:
    from experiments.table import find_runs, markdown, rows, to_csv

    parser = _Parser("table")
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--data")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args(arguments)
    lines = rows(find_runs(options.runs), options.data)
    text = markdown(lines)
    print(text, end="")
    if options.out is not None:
        options.out.write_text(text)
    if options.csv is not None:
        options.csv.write_text(to_csv(lines))
    return 0


def report(arguments: list[str]) -> int:
    from experiments.report.command import main

    return main(arguments)


def correlate(arguments: list[str]) -> int:
    from experiments.correlation import ISDA, META_SUM, report

    parser = _Parser("correlate")
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--x", default=ISDA)
    parser.add_argument("--y", default=META_SUM)
    options = parser.parse_args(arguments)
    print("\n".join(report(options.runs, options.x, options.y)))
    return 0


def world(arguments: list[str]) -> int:
    from datamodules.miniworld.write import write_world

    parser = _Parser("world")
    parser.add_argument("root", type=Path)
    parser.add_argument("--scenes", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--style", choices=("source", "target"), default="source")
    parser.add_argument("--image-size", type=int, default=96)
    options = parser.parse_args(arguments)
    root = write_world(options.root, scenes=options.scenes, seed=options.seed, style=options.style, image_size=options.image_size)
    print(root)
    return 0


def data(arguments: list[str]) -> int:
    if arguments[:1] == ["regions"]:  # has many options of its own
        return _data_regions(arguments[1:])
    parser = _Parser("data")
    parser.add_argument("action", choices=("check", "index", "text-db", "regions"))
    parser.add_argument("kind", choices=("coco", "flickr30k", "flickr8k", "flickr30k_entities"))
    parser.add_argument("root", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--spm")
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--tokeniser")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--names", choices=("released", "stem"), default="released")
    options = parser.parse_args(arguments)
    if options.action == "text-db":
        return _data_text_db(options.kind, options.root, options.tokeniser, options.out, options.names)
    if options.action == "index":
        return _data_index(options.kind, options.root, options.spm, options.overwrite)

    from datamodules.check import run_check

    report = run_check(options.kind, options.root, workers=options.workers)
    print("\n".join(report.lines()))
    return 1 if report.problems else 0


def _data_index(kind: str, root: Path, spm: str | None, overwrite: bool) -> int:
    from datamodules.coco import COCO
    from datamodules.flickr30k import Flickr30k
    from datamodules.formats.beit3_index import write_index
    from datamodules.inputs import TextInput
    from datamodules.tokens import Tokeniser

    if kind not in ("coco", "flickr30k"):
        raise InputError(f"BEiT-3 has index files of coco and flickr30k only; {kind} is read as it is.")
    if spm is None:
        raise InputError("data index needs --spm FILE, BEiT-3's sentencepiece file. See crosslight data --help.")
    (annotations,) = (COCO if kind == "coco" else Flickr30k)(str(root)).annotation_files()
    written = write_index(annotations, "coco" if kind == "coco" else "flickr30k", root, Tokeniser(TextInput(spm)), overwrite)
    for path, pairs in written.items():
        print(f"{path}: {pairs:,} pairs")
    return 0


def _data_text_db(kind: str, root: Path, tokeniser: str | None, out: Path | None, names: Literal["released", "stem"]) -> int:
    from datamodules.inputs import TextInput
    from datamodules.text_databases import karpathy_file, write_text_databases
    from datamodules.tokens import Tokeniser

    if kind == "flickr30k_entities":
        raise InputError("the text databases of Flickr30k Entities are those of flickr30k: give that KIND.")
    if tokeniser is None:
        raise InputError("data text-db needs --tokeniser NAME (UNITER's is bert-base-cased). See crosslight data --help.")
    written = write_text_databases(
        karpathy_file(kind, root), kind, Tokeniser(TextInput(tokeniser)), out or root / "txt_db", names
    )
    for path, texts in written.items():
        print(f"{path}: {texts:,} texts")
    return 0


def _data_regions(arguments: list[str]) -> int:
    from experiments.extract import KINDS, add_options, run
    from experiments.training import quiet

    parser = _Parser("data regions")
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("root", type=Path)
    add_options(parser)
    options = parser.parse_args(arguments)
    quiet()
    summary = run(options.kind, options.root, options)
    for problem in summary.unreadable:
        print(f"left out: {problem}")
    rate = summary.images / summary.seconds if summary.seconds else 0.0
    print(
        f"{options.out}: {summary.images:,} images with {summary.regions:,} regions written in {summary.seconds:.0f} s "
        f"({rate:.1f} a second), {summary.there_before:,} were there, {len(summary.unreadable):,} left out"
    )
    return 0


def params(arguments: list[str]) -> int:
    from experiments.params import main

    return main(arguments)


def captions(arguments: list[str]) -> int:
    from experiments.pictures import draw_captions

    parser = _Parser("captions")
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data")
    parser.add_argument("--images", type=int, default=8)
    options = parser.parse_args(arguments)
    print(draw_captions(options.runs, options.out, options.data, options.images))
    return 0


def caption(arguments: list[str]) -> int:
    from experiments.caption import main

    return main(arguments)


def score(arguments: list[str]) -> int:
    from experiments.score import main

    return main(arguments)


def convert(arguments: list[str]) -> int:
    from experiments.convert_gguf import convert_gguf
    from experiments.training import quiet

    parser = _Parser("convert")
    parser.add_argument("source", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    quiet()
    print(convert_gguf(options.source.expanduser(), options.folder.expanduser()))
    return 0


def export(arguments: list[str]) -> int:
    import yaml

    import lightning_modules
    from experiments.training import quiet
    from lightning_modules.checkpoints.adapter_export import export_adapter

    parser = _Parser("export")
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    quiet()
    model = lightning_modules.load(options.run)
    config = yaml.safe_load((options.run / "config.yaml").read_text())
    backbone = {"model": config["model"], "seed": config["seed_everything"]}
    export_adapter(model.network, model.adapter, options.folder, backbone=backbone)
    size = sum(file.stat().st_size for file in options.folder.iterdir())
    print(f"{options.folder}: {size / 2**20:.2f} MiB")
    return 0


def parity(arguments: list[str]) -> int:
    import os

    from experiments.parity.run import check_files, print_reports, status

    parser = _Parser("parity")
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--spm", type=Path, default=os.environ.get("CROSSLIGHT_BEIT3_SPM") or None)
    options = parser.parse_args(arguments)
    reports = check_files(options.files, options.spm)
    print_reports(reports)
    return status(reports)


def sweep(arguments: list[str]) -> int:
    from experiments.sweep import main

    return main(arguments)


def demo(arguments: list[str]) -> int:
    parser = _Parser("demo")
    parser.add_argument("what", nargs="?", choices=("all", "iais", "captioning"), default="all")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    options = parser.parse_args(arguments)
    if options.what == "all":
        from experiments.demo import run_demo

        return run_demo(options.out, options.runs or Path("runs/papers"), options.seed)
    if options.runs is not None:
        raise InputError(f"--runs is of the whole demo; `crosslight demo {options.what}` writes its runs below --out.")
    if options.what == "iais":
        from experiments import iais_demo

        return iais_demo.run_demo(options.out, options.seed)
    from experiments import captioning_demo

    return captioning_demo.run_demo(options.out, options.seed)
