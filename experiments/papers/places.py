"""Where papers lie: those of the package, and papers of one's own, which the environment variable CROSSLIGHT_PAPERS names."""

from __future__ import annotations

import os
import re
from pathlib import Path

from datamodules.errors import InputError
from experiments.papers import strict_yaml
from experiments.papers.schema import PAPERS

_NAME = re.compile(r"[a-z][a-z0-9_]*")


def paper_folders() -> dict[str, Path]:
    """The folder of each paper by its name: ours, then those that CROSSLIGHT_PAPERS names (separated as in PATH), in its order.

    A paper's name is its folder's. The folder holds runs.yaml, exhibits/NAME.yaml and, for printed numbers, numbers.yaml.

    Raises:
        InputError: CROSSLIGHT_PAPERS names a folder that is no paper, or two papers of one name.
    """
    folders: dict[str, Path] = {paper: strict_yaml.HERE / paper for paper in PAPERS}
    for text in filter(None, os.environ.get("CROSSLIGHT_PAPERS", "").split(os.pathsep)):
        folder = Path(text).expanduser().absolute()
        if not (folder / "runs.yaml").is_file():
            raise InputError(
                f"CROSSLIGHT_PAPERS names {text}, which has no runs.yaml. Name the folder of a paper itself: it holds runs.yaml, "
                "exhibits/ and numbers.yaml (docs/extend/paper.md)."
            )
        if not _NAME.fullmatch(folder.name):
            raise InputError(
                f"CROSSLIGHT_PAPERS names {text}: a paper's name is its folder's, of small letters, digits and _ (my_paper)."
            )
        if folders.get(folder.name, folder) != folder:
            raise InputError(
                f"CROSSLIGHT_PAPERS names {text}, but {folders[folder.name]} is called {folder.name!r} too. Rename the folder."
            )
        folders[folder.name] = folder
    return folders
