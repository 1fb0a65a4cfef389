from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_data import write_image
from tiny_run import reading_run

import lightning_modules


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two tiny encoders that read words."""
    return reading_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="session")
def model(run: Path) -> Any:
    return lightning_modules.load(run)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Nine images in three folders, two of one content."""
    for number in range(9):
        write_image(tmp_path / "photos" / f"{'bac'[number % 3]}" / f"{number}.jpg", min(number, 7))
    return tmp_path / "photos"
