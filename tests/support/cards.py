"""The code of a model card, run as whoever reads the card runs it."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
from pathlib import Path

import pytest


def what_it_prints(card: Path, loads: str, images: list[Path], home: Path) -> str:
    """What the card's Python prints.

    Args:
        card: README.md of an export, or as it is on the Hub.
        loads: What `load` is given by the card; a folder may stand in its place.
        images: They become a.jpg, b.jpg and so on.
        home: Folder to run it in.
    """
    (code,) = re.findall(r"```python\n(.*?)```", card.read_text(), re.DOTALL)
    assert f'lightning_modules.load("{loads}"' in code
    for name, image in zip("ab", images, strict=True):
        shutil.copyfile(image, home / f"{name}.jpg")
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.chdir(home)
        exec(compile(code, str(card), "exec"), {})
    return out.getvalue().strip()
