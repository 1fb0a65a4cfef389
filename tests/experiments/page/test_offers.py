"""What a page offers: runs below a folder, exports, names of the Hub, classes of one's own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from datamodules.errors import InputError
from experiments.page import offers
from experiments.page.offers import Offer, find_offers
from lightning_modules.exporting import export_run


def found(*named: str, below: Path = Path("runs")) -> dict[str, Offer]:
    return {offer.name: offer for offer in find_offers(named, below)}


def test_what_lies_under_runs_is_offered(runs: Path, tmp_path: Path) -> None:
    """By its path below there; what is no run, or has nothing that can be loaded, is not."""
    for name in ("papers/one", "papers/two", "empty"):
        (tmp_path / name).mkdir(parents=True)
        shutil.copy(runs / "search" / "config.yaml", tmp_path / name / "config.yaml")
        (tmp_path / name / "results.json").write_text("{}")
    for name in ("papers/one", "papers/two"):
        (tmp_path / name / "checkpoints").mkdir()
        (tmp_path / name / "checkpoints" / "best.ckpt").touch()
    config = yaml.safe_load((runs / "search" / "config.yaml").read_text()) | {"data": {"init_args": {"root": "data/coco"}}}
    config["model"]["class_path"] = "mine.Module"
    (tmp_path / "papers" / "two" / "config.yaml").write_text(yaml.safe_dump(config))
    offered = found(below=tmp_path)
    assert list(offered) == ["papers/one", "papers/two"]
    assert (offered["papers/one"].use, offered["papers/one"].root) == ("search", None)
    assert (offered["papers/two"].use, offered["papers/two"].root) == (None, Path("data/coco"))  # what it can do is seen later
    assert list(found(str(tmp_path / "papers"))) == ["one", "two"]


def test_what_cannot_be_read_does_not_hide_the_others(runs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("sound", "cut"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "checkpoints" / "best.ckpt").touch()
        (tmp_path / name / "results.json").write_text("{}")
        shutil.copy(runs / "search" / "config.yaml", tmp_path / name)
    (tmp_path / "cut" / "config.yaml").write_text("model: [")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "adapter_config.json").write_text('{"library": "crosslight", "format": "earlier"}')
    assert list(found(below=tmp_path)) == ["sound"]
    assert [line.partition(" has format")[0] for line in caplog.messages if "old" in line] == [
        f"not offered: {tmp_path / 'old' / 'adapter_config.json'}"
    ]
    assert any("cut" in line for line in caplog.messages)
    with pytest.raises(InputError, match="has format 'earlier'"):
        found(str(tmp_path / "old"))


def test_an_export_and_a_name_of_the_hub_are_offered(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export_run(runs / "search", tmp_path / "mine")
    monkeypatch.setattr(offers, "pulled", lambda name: tmp_path / "mine")
    for name in (str(tmp_path / "mine"), "me/my-adapter"):
        (offer,) = find_offers([name], tmp_path)
        assert (offer.use, offer.about, offer.place) == ("search", "DualEncoder, MultiWayAdapter", (tmp_path / "mine"))
    assert offer.name == "me/my-adapter"
