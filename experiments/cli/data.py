"""`crosslight world`, `crosslight data`, `crosslight convert`: files that others read."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from datamodules.errors import InputError
from experiments.cli.parser import Parser


def world(arguments: list[str]) -> int:
    from datamodules.miniworld.write import write_world

    parser = Parser("world")
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
    parser = Parser("data")
    parser.add_argument("action", choices=("check", "index", "text-db", "regions"))
    parser.add_argument("kind")
    parser.add_argument("root", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--spm")
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--tokenizer")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--names", choices=("released", "stem"), default="released")
    options = parser.parse_args(arguments)
    if options.action == "text-db":
        return _data_text_db(options.kind, options.root, options.tokenizer, options.out, options.names)
    if options.action == "index":
        return _data_index(options.kind, options.root, options.spm, options.overwrite)

    from datamodules.prepare.check import run_check

    report = run_check(options.kind, options.root, workers=options.workers)
    print("\n".join(report.lines()))
    return 1 if report.problems else 0


def _data_index(kind: str, root: Path, spm: str | None, overwrite: bool) -> int:
    from datamodules.prepare.data_sets import open_source

    index_kind, annotations = open_source(kind, root).index_source()
    if spm is None:
        raise InputError("data index needs --spm FILE, BEiT-3's sentencepiece file. See crosslight data --help.")

    from datamodules.inputs import TextInput
    from datamodules.loading.tokens import Tokenizer
    from datamodules.prepare.beit3_index import write_index

    written = write_index(annotations, index_kind, root, Tokenizer(TextInput(spm)), overwrite)
    for path, pairs in written.items():
        print(f"{path}: {pairs:,} pairs")
    return 0


def _data_text_db(kind: str, root: Path, tokenizer: str | None, out: Path | None, names: Literal["released", "stem"]) -> int:
    from datamodules.prepare.data_sets import open_source

    source = open_source(kind, root)
    annotations = source.karpathy_file()
    if tokenizer is None:
        raise InputError("data text-db needs --tokenizer NAME (UNITER's is bert-base-cased). See crosslight data --help.")

    from datamodules.inputs import TextInput
    from datamodules.loading.tokens import Tokenizer
    from datamodules.prepare.text_databases import write_text_databases

    written = write_text_databases(annotations, source.name, Tokenizer(TextInput(tokenizer)), out or root / "txt_db", names)
    for path, texts in written.items():
        print(f"{path}: {texts:,} texts")
    return 0


def _data_regions(arguments: list[str]) -> int:
    from experiments.cli.regions import add_options, run
    from experiments.training.quiet import quiet

    parser = Parser("data regions")
    parser.add_argument("kind")
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


def convert(arguments: list[str]) -> int:
    from experiments.training.quiet import quiet
    from lightning_modules.checkpoints.gguf import convert_gguf

    parser = Parser("convert")
    parser.add_argument("source", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    quiet()
    print(convert_gguf(options.source.expanduser(), options.folder.expanduser()))
    return 0
