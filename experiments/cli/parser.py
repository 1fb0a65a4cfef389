"""The parser of every command: argparse, with errors of one line."""

from __future__ import annotations

import argparse
from typing import NoReturn

from datamodules.errors import InputError


class Parser(argparse.ArgumentParser):
    def __init__(self, command: str) -> None:
        super().__init__(prog=f"crosslight {command}", allow_abbrev=False, add_help=False)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}. See {self.prog} --help.")
