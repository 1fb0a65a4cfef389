"""The rules of who may import whom hold, and a wrong import breaks them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("experiments", "lightning_modules", "datamodules")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the code and the rules, for wrong imports."""
    copy = tmp_path_factory.mktemp("house")
    for room in ROOMS:
        shutil.copytree(
            ROOT / room, copy / room, ignore=lambda _, names: [n for n in names if "." in n and not n.endswith(".py")]
        )
    shutil.copy(ROOT / "pyproject.toml", copy)
    return copy


def lint(house: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("lint-imports")
    return subprocess.run([program, "--no-logo", "--no-cache"], cwd=house, capture_output=True, text=True)


def test_every_room_keeps_the_rules(house: Path) -> None:
    done = lint(house)
    assert done.returncode == 0, done.stdout
    assert "Contracts: 5 kept, 0 broken." in done.stdout


WRONG = {
    "experiments/runs/folder.py": ("import experiments.cli.main", "experiments.runs is not allowed to import experiments.cli"),
    "experiments/analysis/grid.py": ("import experiments.parity.compare", "analysis is not allowed to import experiments.parity"),
    "datamodules/coco.py": ("import lightning_modules.base", "datamodules is not allowed to import lightning_modules"),
    "datamodules/records.py": ("import datamodules.coco", "datamodules.records is not allowed to import datamodules.coco"),
    "lightning_modules/networks/beit3.py": (
        "def late():\n    from lightning_modules.adapters import multiway",
        "lightning_modules.networks is not allowed to import lightning_modules.adapters",
    ),
    "datamodules/formats/parsing.py": (
        "import datamodules.formats.karpathy",  # which imports parsing
        "No cycles are allowed in datamodules.formats.",
    ),
}


def test_wrong_imports_are_named(house: Path) -> None:
    for file, (line, _) in WRONG.items():
        with (house / file).open("a") as end:
            end.write(f"\n{line}\n")
    done = lint(house)
    assert done.returncode == 1
    for _, message in WRONG.values():
        assert message in " ".join(done.stdout.split()), done.stdout
