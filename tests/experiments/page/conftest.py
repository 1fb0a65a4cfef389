from __future__ import annotations

from pathlib import Path

import pytest
import torch
from starlette.testclient import TestClient
from tiny_captioning_run import captioning_run
from tiny_data import write_image
from tiny_run import reading_run

from datamodules.miniworld.write import write_tokenizer
from experiments.page.app import make_app
from experiments.page.offers import find_offers
from experiments.page.shelf import Loading, Shelf


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs: one of two encoders, `search`, and one of a captioner, `writes`."""
    folder = tmp_path_factory.mktemp("page")
    reading_run(folder / "search")
    write_tokenizer(folder / "words")
    captioning_run(folder / "writes", folder / "words")
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven images, of which one is broken, and beside their folder a file that is none of them."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(6):
        write_image(folder / "photos" / "abc"[number % 3] / f"{number} & <b>.jpg", number)
    (folder / "photos" / "broken.jpg").write_text("no image")
    write_image(folder / "secret.jpg", 9)
    return folder / "photos"


@pytest.fixture(scope="session")
def shelf(runs: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    """Both runs on the photos."""
    offers = find_offers([str(runs / "search"), str(runs / "writes")], Path("runs"))
    return Shelf(offers, photos, None, Loading(None, None, torch.device("cpu")), tmp_path_factory.mktemp("kept"))


@pytest.fixture
def visitor(shelf: Shelf) -> TestClient:
    """Who has the page open."""
    return TestClient(make_app(shelf), base_url="http://localhost")
