"""One training, dialled: how much of the target is gained, and how much forgotten, at alpha of what it learnt.

  crosslight dial --run runs/mine --evaluate other.yaml
  crosslight export runs/mine DIR --alpha picked

alpha goes from 0, the weights that the run started from, to 1, those that it trained. Of an adapter it is its own scale; all
other weights lie on the straight line between start and end. Nothing is trained. alpha is picked on validation splits alone;
each test split is measured once an alpha, for the curve. Everything is in RUN/dial.json; the same command goes on where it was
stopped, and measures further alphas and data sets. `crosslight report RUN` draws it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from experiments.cli._parser import Parser, add_backbone

ALPHAS = "0,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,1"


def add_options(parser: Parser) -> None:
    option = parser.add_argument
    option("--run", nargs="+", type=Path, required=True, metavar="RUN", help="run folders, one after the other")
    option(
        "--evaluate", nargs="+", default=[], metavar="[NAME=]DATA.yaml",
        help="what is to be retained: a YAML with a section `data` (packaged ones too), or the name of data that the run was "
        "tested on besides (its own --evaluate)",
    )  # fmt: skip
    option("--alphas", type=_alphas, default=ALPHAS, metavar="LIST", help="numbers from 0 to 1 with commas between them")
    option(
        "--pick", choices=("target", "mean"),
        help="by which validation metric: the target's, or the mean of the target's and of what is to be retained (several count "
        "as their mean). Default: mean with --evaluate, target without. Of equal ones the smallest alpha",
    )  # fmt: skip
    add_backbone(parser)


def run(options: argparse.Namespace) -> int:
    from experiments.analysis.dial import table, turn_dial
    from experiments.training.quiet import quiet

    quiet()
    for folder in options.run:
        dialling = turn_dial(
            folder, options.alphas, options.evaluate, options.pick, options.backbone, options.tokenizer,
            lambda line: print(line, file=sys.stderr, flush=True),
        )  # fmt: skip
        print(f"{folder}: {dialling.metric}; alpha is {dialling.turned}")
        if dialling.no_result is not None:
            print(f"no result: {dialling.no_result}")
        if dialling.kept:
            names = ", ".join(dialling.kept)
            print(f"as trained at every alpha, because they are new and there is nothing that they were before: {names}")
        print("\n".join(table(dialling)))
        if dialling.picked is not None:
            print(f"picked: alpha {dialling.picked:g}, {dialling.picked_by}")
            print(f"crosslight export {folder} DIR --alpha picked")
        else:
            print(f"nothing is picked, because a validation gave no {dialling.metric}; by rule it would be {dialling.picked_by}")
    return 0


def _alphas(text: str) -> tuple[float, ...]:
    from experiments.runs.dial import alphas_of

    try:
        return alphas_of(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers from 0 to 1, such as 0,0.5,1") from None
