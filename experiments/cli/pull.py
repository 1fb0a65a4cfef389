"""Fetch an export from the Hugging Face Hub to a folder.

Nothing of it is run or unpickled. lightning_modules.load("OWNER/NAME"), and every command that takes an export, fetch it by
themselves; this is for a copy of your own.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments.cli._parser import Parser


def add_options(parser: Parser) -> None:
    parser.add_argument("repository", metavar="NAME", help="OWNER/NAME, or OWNER/NAME@REVISION (a branch, tag or commit)")
    parser.add_argument("folder", type=Path, nargs="?", metavar="DIR", help="where to (default: the NAME behind OWNER/)")


def run(options: argparse.Namespace) -> int:
    from lightning_modules.checkpoints.hub_repository import pull

    name = options.repository.partition("@")[0].rpartition("/")[2]
    print(pull(options.repository, options.folder or Path(name)))
    return 0
