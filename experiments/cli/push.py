"""Put an export on the Hugging Face Hub, in a repository that is made where there is none.

What `crosslight export` wrote is a complete repository. The token is that of huggingface_hub's own login: `hf auth login`, or
HF_TOKEN. lightning_modules.load("OWNER/NAME") loads it from there, on any machine.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments.cli._parser import Parser


def add_options(parser: Parser) -> None:
    parser.add_argument("repository", metavar="NAME", help="OWNER/NAME, or OWNER/NAME@BRANCH")
    parser.add_argument("--export", type=Path, required=True, metavar="DIR", help="what `crosslight export` wrote")
    parser.add_argument("--private", action="store_true", help="make the repository private, if it is made")
    parser.add_argument("--message", metavar="TEXT", help="of the commit")


def run(options: argparse.Namespace) -> int:
    from lightning_modules.checkpoints.hub_repository import push

    print(push(options.export, options.repository, options.private, options.message))
    return 0
