"""Get a data set, check its folder before you train on it, or write the files that others read.

BEiT-3's index files, Karpathy's split file from a copy in another layout, UNITER's text databases, UNITER's image databases
(region features).
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datamodules.prepare.data_sets import names, open_source
from experiments.cli._parser import Parser

_GET = """\
Fetch what can be fetched without asking anybody: Karpathy's split file and the archives of COCO, Visual Genome and NoCaps, with
their sums checked where sums are known. What a form stands before is named. Exits 1 where something is left to do by hand."""
_KARPATHY = """\
Write Karpathy's split file (dataset_KIND.json) from a copy in another layout, fetched by hand: the Parquet files of
yerevann/coco-karpathy, flickr_annotations_30k.csv or the Parquet files of nlphuji/flickr30k, or LAVIS's
coco_karpathy_{train,val,test}.json and flickr30k_{train,val,test}.json. Kaggle's copy (shtvkumar/karpathy-splits) is Karpathy's
own files: just put them in their place. `data get KIND --from NAME` does the same with what it fetches."""
_CHECK = """\
Counts per split, unreadable or missing images, captions without images, duplicated ids. Exits 1 when something is wrong. What it
finds a run refuses too."""
_OTHERS = """\
then the options of the data set, as a run's --data.init_args has them, for example
  --captions=official --year=2017    --split=entities    --regions.image_db=img_db/flickr30k
  --help-all                         all those of KIND
"""
_INDEX = """\
Write the index files of the official BEiT-3 code (captions as token ids) from Karpathy's split, with BEiT-3's tokenizer:
coco_retrieval.{train,val,test}.jsonl or flickr30k.{train,val,test}.jsonl. --data.init_args.captions=beit3_index reads them."""
_TEXT_DB = """\
Write UNITER's text databases from Karpathy's split: itm_KIND_SPLIT.db with every caption's word pieces.
--data.init_args.regions.text_db reads them, as it reads the released ones. Those of Flickr30k Entities are flickr30k's."""
_STAND_IN = """\
Files of the official layouts with the right counts, sizes and names and random contents, to rehearse runs on where the data or
weights are not: COCO, Flickr30k with Entities, Visual Genome, NoCaps, UNITER's databases, BEiT-3's and UNITER's checkpoints, and
models of the Hugging Face hub. All of it bears the mark STAND-IN, and no result of it can enter a report.

Photographs are some dozen files with many names, and databases some hundred images, so that all data sets take 2 GB. What is
there is not made again. It prints the variables that send runs to it: set them before you start crosslight."""
_REGIONS = """\
Extract region features to an image database of UNITER's layouts; --data.init_args.regions.image_db reads it. An interrupted run
goes on with what is missing. docs/regions.md says more."""


def add_options(parser: Parser) -> None:
    actions = parser.add_subparsers(required=True, dest="action", metavar="ACTION", prog=parser.prog)

    kinds = f"the data set: {', '.join(names())}, or the class path of your own (my_module.MyData)"

    def action(
        name: str,
        help_text: str,
        description: str,
        act: Callable[..., int],
        kinds: str = kinds,
        others: bool = False,
        root: str | None = None,
    ) -> Any:
        below = actions.add_parser(name, help=help_text, description=description, epilog=_OTHERS if others else None)
        if others:
            below.keep_others("others")
        below.add_argument("kind", metavar="KIND", help=kinds)
        default = " (default: KIND in CROSSLIGHT_DATA, which is ./data)" if root else ""
        below.add_argument("root", type=Path, metavar="ROOT", help=f"its folder{default}", nargs=root)
        below.set_defaults(act=act)
        return below.add_argument

    option = action("get", "fetch a data set", _GET, _get, others=True, root="?")
    option("--from", dest="place", metavar="NAME", help="another place that has it in another layout; --dry-run lists them")
    option("--dry-run", action="store_true", help="say the steps, addresses, sizes and sums, and fetch nothing")
    option = action("check", "verify a data folder", _CHECK, _check, others=True)
    option("--workers", type=int, default=2, metavar="N", help="processes that open images")
    option = action("karpathy", "Karpathy's split file from a copy", _KARPATHY, _karpathy)
    option("files", nargs="+", type=Path, metavar="FILE", help="the copy's files, of all splits")
    option("--images", action="store_true", help="write the images that Parquet files hold, too, where they are not there yet")
    option("--overwrite", action="store_true", help="replace a file that is there")
    option = action("index", "BEiT-3's index files", _INDEX, _index)
    option("--spm", required=True, metavar="FILE", help="BEiT-3's sentencepiece file; just beit3.spm fetches the official one")
    option("--overwrite", action="store_true", help="replace index files that are there")
    option = action("text-db", "UNITER's text databases", _TEXT_DB, _text_db)
    option(
        "--tokenizer",
        required=True,
        metavar="NAME",
        help="the network's, by Hugging Face name or folder (UNITER: bert-base-cased)",
    )
    option("--out", type=Path, metavar="DIR", help="where to put them (default: ROOT/txt_db)")
    option(
        "--names", choices=("released", "stem"), default="released",
        help="images' names in the image database: flickr30k_000000036979.npz, or the file's own, 36979.npz",
    )  # fmt: skip
    _add_stand_in_options(actions.add_parser("stand-in", help="random files of the official layouts", description=_STAND_IN))
    _add_region_options(
        action("regions", "UNITER's image databases", _REGIONS, _regions, f"{kinds}; or folder, any images", True)
    )


def _add_stand_in_options(below: Parser) -> None:
    below.set_defaults(act=_stand_in)
    option = below.add_argument
    option(
        "target", metavar="TARGET",
        help="a data set (coco, flickr30k, nocaps, visual_genome); or an exhibit, run, paper or all: what its runs of full scale "
        "read",
    )  # fmt: skip
    option("root", type=Path, metavar="DIR", help="where to put them, a folder of their own")
    option("--share", type=float, default=1.0, metavar="X", help="of each data set (default: 1, all of it)")
    option("--max-disk", type=float, default=20.0, metavar="GB", help="at most so much more; weights are cut to 16 bits for it")


def _add_region_options(option: Callable[..., Any]) -> None:
    option("--out", type=Path, required=True, metavar="DIR", help="the database")
    option(
        "--backbone", required=True, metavar="NAME",
        help="timm:NAME or hf:NAME, pooled over given boxes, or fasterrcnn[:NAME], torchvision's detector",
    )  # fmt: skip
    option("--weights", metavar="FILE", help="its weights (default: the published ones, fetched)")
    option(
        "--options", type=_json_object, metavar="JSON",
        help="further arguments of a timm model; of hf:TYPE with --weights the sizes of its configuration",
    )  # fmt: skip
    option("--stages", type=_stages, default="final", metavar="LIST", help="feature maps to join, such as 3,final")
    option(
        "--boxes", metavar="WHICH",
        help="of a backbone: grid (the default), entities, or the folder of another image database",
    )  # fmt: skip
    option("--grid", type=_numbers, metavar="LIST", help="cells a side of each grid (default: 1,2,4, which is 21 boxes)")
    option("--entities", type=Path, metavar="DIR", help="where Annotations/ is (default: ROOT/flickr30k_entities or ROOT)")
    option("--image-dir", metavar="DIR", help="folder of the images, relative to ROOT (default: the data set's own)")
    option(
        "--shorter-side", type=int, metavar="PX",
        help="the shorter side's length, the aspect ratio is kept (default: the model's own)",
    )  # fmt: skip
    option(
        "--longest-side", type=int, metavar="PX",
        help="the longer side's greatest length (default: 5/3 of the shorter; a detector's own)",
    )  # fmt: skip
    option("--image-size", type=int, metavar="PX", help="squash to a square instead, for vision transformers of one size")
    option("--samples", type=int, metavar="N", help="points a side at which a box is read (default: 14)")
    option(
        "--layout", choices=("threshold", "fixed", "all"),
        help="UNITER's layout of a database (default: threshold of a detector, all of given boxes: all, in their order)",
    )  # fmt: skip
    option("--conf-th", type=float, default=0.2, metavar="X", help="of layout threshold: the least confidence")
    option("--max-bb", type=int, default=100, metavar="N", help="of layout threshold: boxes at most")
    option("--min-bb", type=int, default=10, metavar="N", help="of layout threshold: boxes at least")
    option("--num-bb", type=int, default=36, metavar="N", help="of layout fixed: boxes")
    option("--compressed", action="store_true", help="compress each image's arrays")
    option("--batch-size", type=int, default=32, metavar="N", help="images a forward, all of one size")
    option("--workers", type=int, default=2, metavar="N", help="processes that decode")
    option("--device", default="auto", metavar="NAME", help="cpu, cuda, cuda:N (default: cuda where there is one)")
    option(
        "--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto",
        help="of the forward (default: auto, which is fp32 on cpu and bf16 on cuda)",
    )  # fmt: skip
    option("--limit", type=int, metavar="N", help="the first N images only")
    option(
        "--skip-unreadable", action="store_true",
        help="leave out and list images that cannot be read, instead of stopping at the first",
    )  # fmt: skip
    option("--quiet", action="store_true", help="no progress bar")


def run(options: argparse.Namespace) -> int:
    return int(options.act(options))


def _get(options: argparse.Namespace) -> int:
    from experiments.cli._data_get import get
    from experiments.cli._data_options import data_options

    own = data_options(options.kind, options.others, "get", ("from", "dry_run"))
    return get(options.kind, options.root, options.place, options.dry_run, own)


def _karpathy(options: argparse.Namespace) -> int:
    from datamodules.prepare.karpathy_split import write_karpathy

    counts = write_karpathy(options.kind, options.root, options.files, options.images, options.overwrite)
    print(f"dataset_{options.kind}.json: {', '.join(f'{split} {count:,}' for split, count in counts.items())} images")
    return 0


def _check(options: argparse.Namespace) -> int:
    from datamodules.prepare.check import run_check
    from experiments.cli._data_options import data_options

    own = data_options(options.kind, options.others, "check", ("workers",))
    report = run_check(options.kind, options.root, workers=options.workers, **own)
    print("\n".join(report.lines()))
    return 1 if report.problems else 0


def _index(options: argparse.Namespace) -> int:
    from datamodules.inputs import TextInput
    from datamodules.loading.tokens import Tokenizer
    from datamodules.prepare.beit3_index import write_index

    kind, annotations = open_source(options.kind, options.root).index_source()
    written = write_index(annotations, kind, options.root, Tokenizer(TextInput(options.spm)), options.overwrite)
    for path, pairs in written.items():
        print(f"{path}: {pairs:,} pairs")
    return 0


def _text_db(options: argparse.Namespace) -> int:
    from datamodules.inputs import TextInput
    from datamodules.loading.tokens import Tokenizer
    from datamodules.prepare.text_databases import write_text_databases

    source = open_source(options.kind, options.root)
    file, out = source.karpathy_file(), options.out or options.root / "txt_db"
    written = write_text_databases(file, source.name, Tokenizer(TextInput(options.tokenizer)), out, options.names)
    for path, texts in written.items():
        print(f"{path}: {texts:,} texts")
    return 0


def _stand_in(options: argparse.Namespace) -> int:
    from experiments.papers.reads import Reads, reads_of, recipes_of
    from experiments.papers.stand_ins import data_sets, environment_of, write_stand_ins

    one = options.target in data_sets()
    reads = Reads(data=(options.target,)) if one else reads_of(recipes_of(options.target))
    os.environ |= environment_of(options.root)  # before transformers is imported
    environment = write_stand_ins(reads, options.root, max_disk_gb=options.max_disk, share=options.share)
    print("\n".join(f"export {name}={shlex.quote(value)}" for name, value in environment.items()))
    return 0


def _regions(options: argparse.Namespace) -> int:
    from experiments.cli._data_options import data_options
    from experiments.cli._regions import extract_regions
    from experiments.training.quiet import quiet

    quiet()
    own = data_options(options.kind, options.others, "regions", [name for name in vars(options) if name != "others"])
    summary = extract_regions(options.kind, options.root, options, own)
    for problem in summary.unreadable:
        print(f"left out: {problem}")
    if summary.outdated:
        print(
            f"made anew: {summary.outdated:,} images that were there, of other photographs or boxes than are there now "
            "(or of a version of crosslight that did not note which)"
        )
    rate = summary.images / summary.seconds if summary.seconds else 0.0
    print(
        f"{options.out}: {summary.images:,} images with {summary.regions:,} regions written in {summary.seconds:.0f} s "
        f"({rate:.1f} a second), {summary.there_before:,} were there, {len(summary.unreadable):,} left out"
    )
    return 0


# ------------------------------------------------------------------------------------------------------ how values are read


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f'{text} is not a JSON object, such as {{"bn_eps": 1e-3}}')
    return value


def _stages(text: str) -> tuple[str | int, ...]:
    parts = text.split(",")
    if not all(part == "final" or part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers from 0 and final, such as 3,final")
    return tuple(part if part == "final" else int(part) for part in parts)


def _numbers(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers, such as 1,2,4")
    return tuple(int(part) for part in parts)
