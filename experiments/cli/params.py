"""Tunable and total parameters of every configuration, counted in seconds without weights.

From the meta device: of BEiT-3 base and large at 224 and 384 px and of CLIP ViT-B/32 under every row of MultiWay-Adapter's
tables, of UNITER and its pre-training, of pair scorers, dual encoders and captioners; or of the configuration given (any of
`run`; it needs no data, and weights stay unread; a model that it names is looked up at the hub).
"""

from __future__ import annotations

import argparse

from datamodules.errors import InputError
from experiments.cli._parser import Parser


def add_options(parser: Parser) -> None:
    parser.add_argument(
        "-c", "--config", action="append", default=[], metavar="FILE", help="a YAML of `crosslight run`; several merge"
    )
    parser.keep_others("overrides")
    parser.epilog = "Further options are those of the configuration: --key.subkey=value."


def run(options: argparse.Namespace) -> int:
    if options.overrides and not options.config:
        raise InputError("crosslight params takes nothing, or a configuration: -c FILE [-c FILE ...] [--key=value ...].")
    from experiments.parity.params import configured, report

    arguments = [*(part for file in options.config for part in ("-c", file)), *options.overrides]
    print("\n".join(configured(arguments) if options.config else report()))
    return 0
