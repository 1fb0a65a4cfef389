"""Text of runs and data (names, captions, errors) in Markdown, LaTeX and CSV: nothing in it is markup or a formula there."""

from __future__ import annotations

import re

from datamodules.errors import printable

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "±": r"$\pm$", "–": "--",
    "−": "$-$", "×": r"$\times$", "γ": r"$\gamma$", "→": r"$\rightarrow$", "≤": r"$\leq$", "≥": r"$\geq$",
    "†": r"$\dagger$", "“": "``", "”": "''",
}  # fmt: skip
_MARKDOWN = re.compile(r"[\\`*_\[\]<>|#~&]")
_PRINTED = re.compile(r"[\\`*\[\]<>|~&]|(?<!\w)_|_(?!\w)")  # within a word "_" means itself
_FORMULA = re.compile(r"\s*[=+@\-＝＋＠－]|[\t\r\n]")


def markdown_text(text: str, printed: bool = False) -> str:
    """On one line, also in a table's cell; with as few signs as will do where a terminal `printed` it too."""
    signs = _PRINTED if printed else _MARKDOWN
    return signs.sub(lambda found: "\\" + found[0], printable(" ".join(text.split())))


def latex_text(text: str) -> str:
    """Of one paragraph."""
    return "".join(_LATEX.get(character, character) for character in printable(" ".join(text.split())))


def csv_value(value: object) -> object:
    """A spreadsheet takes text that begins like a formula for one; numbers stay numbers."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if _FORMULA.match(text) else text
