"""Whether a captioner's words look at what they name: shares of their maps in the named things' boxes, the pointing game.

  crosslight ground runs/coco-i-tuning                                     Flickr30k Entities beside the run's own data
  crosslight ground runs/coco-clipcap --by gradient --data entities.yaml   another data set with phrases and boxes

Reference captions of the test split are fed to the model; of each noun whose phrase has boxes, how much of its map is in them,
and whether the map's highest place is. Each with its 95 % interval over images. The file goes into RUN/attention_maps, where
`crosslight report` reads it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from datamodules.errors import InputError
from experiments.cli._parser import Parser


def add_options(parser: Parser) -> None:
    option = parser.add_argument
    option("run", type=Path, metavar="RUN", help="folder of a captioner's run")
    option(
        "--by", choices=("attention", "gradient"), default="attention",
        help="maps of I-Tuning's last cross-attention; or gradient x input of each word's log-probability, for ClipCap too "
        "(default: attention)",
    )  # fmt: skip
    option(
        "--data", metavar="FILE.yaml",
        help="a configuration, here or packaged, whose section `data` is a data set with phrases and boxes, such as "
        "configs/data/flickr30k_entities.yaml (default: Flickr30k Entities in the folder flickr30k beside the run's own data)",
    )  # fmt: skip
    option("--images", type=int, metavar="N", help="of that default so many test images (default: 128)")


def run(options: argparse.Namespace) -> int:
    if options.data is not None and options.images is not None:
        raise InputError("--images is of the data set beside the run's; with --data, set limits.test in that file.")
    if options.images is not None and options.images < 1:
        raise InputError(f"--images is {options.images}; give at least 1.")

    from experiments.analysis.data import read_data
    from experiments.analysis.run_maps import measure_shares
    from experiments.analysis.stored_maps import stored_shares
    from experiments.report.grounding import lines

    data = None if options.data is None else read_data("--data", options.data)
    file = measure_shares(options.run, options.images or 128, options.by, data)
    shares = stored_shares(options.run, options.by)
    assert shares is not None, "it has just been written"
    print("\n".join([*lines(shares, options.by), f"written: {file}"]))
    return 0
