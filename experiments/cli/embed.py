"""Write the vectors of a folder of images, or of a text file, to a Parquet or npz file.

  crosslight embed photos --run runs/f30k-mwa --out photos.parquet
  crosslight embed sentences.txt --run runs/f30k-mwa --out sentences.npz

A text file has a text on each line. Products of the vectors are cosines.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from datamodules.errors import InputError, printable
from experiments.cli._parser import Parser, require_apart, require_writable
from experiments.cli._serving import add_model_options, load_encoders, tell_broken, tell_others, warnings_as_lines

_TABLES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")


def add_options(parser: Parser) -> None:
    option = parser.add_argument
    option("source", type=Path, metavar="DIR|FILE", help="a folder of images, in folders of any depth, or a text file")
    option("--run", required=True, metavar="RUN", help="a run folder, an export, or OWNER/NAME of the Hub, of two encoders")
    option("--out", type=Path, required=True, metavar="FILE", help=".parquet (columns image or text, vector) or .npz")
    add_model_options(parser, batch_size=32)


def run(options: argparse.Namespace) -> int:
    from experiments.serving.embeddings import ENDINGS, embed_images, require_even, require_parquet, write_vectors

    source, out = options.source, options.out
    if out.suffix not in ENDINGS:
        raise InputError(f"--out {out}: give a name that ends in {' or '.join(ENDINGS)}.")
    require_writable(out, "--out")
    require_apart(out, "--out", [source])
    require_parquet(out)
    from datamodules.files.images import ENDINGS as IMAGE_ENDINGS

    if source.suffix.lower() in IMAGE_ENDINGS:
        raise InputError(f"{source} is an image: give the folder that it is in.")
    if source.suffix.lower() in _TABLES:
        raise InputError(f"{source} is a table: give a file with a text on each line, and nothing else.")
    if not source.is_dir():
        texts = _texts(source)
        require_even(out, texts)
        model = load_encoders(options.run, options)
        with warnings_as_lines():
            write_vectors(out, "text", texts, model.encode_texts(texts, options.batch_size).numpy(), model.no_result)
        print(printable(f"{out}: {len(texts):,} texts of {source}"))
        return 0

    from datamodules.files.images import image_files_below

    names, others = image_files_below(source)
    if not names:
        raise InputError(f"{source} has no images below it.")
    require_even(out, names)
    model = load_encoders(options.run, options)
    paths = [source / name for name in names]
    rows, vectors, broken = embed_images(model, paths, options.batch_size, options.workers, progress=sys.stderr.isatty())
    if rows:
        write_vectors(out, "image", [names[row] for row in rows], vectors, model.no_result)
        print(printable(f"{out}: {len(rows):,} images of {source}"))
    tell_others(others)
    return tell_broken(broken)


def _texts(file: Path) -> list[str]:
    """The lines of a text file; one that is empty stays, so that line and vector have the same number.

    Raises:
        InputError: It is no text.
    """
    from datamodules.files.text import read_text

    lines = read_text(file, "a folder of images, or a text file with a text on each line").replace("\r\n", "\n").split("\n")
    return lines if lines[-1] else lines[:-1]
