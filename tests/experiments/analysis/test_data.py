"""A run's own data module from its configuration, and one that an option names."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from datamodules.errors import InputError
from experiments.analysis.data import data_of, read_data


def test_data_of_somebody_else_needs_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "somebody_elses_data.py").write_text(
        "from lightning.pytorch import LightningDataModule\nclass Own(LightningDataModule): pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": "somebody_elses_data.Own"}))
    with pytest.raises(InputError, match=r"config.yaml names the class 'somebody_elses_data.Own'"):
        data_of(tmp_path)
    assert "somebody_elses_data" not in sys.modules
    monkeypatch.setenv("CROSSLIGHT_TRUST", "somebody_elses_data")
    assert type(data_of(tmp_path)).__name__ == "Own"
    (tmp_path / "config.yaml").write_text("name: nothing\n")
    with pytest.raises(InputError, match="its data cannot be built"):
        data_of(tmp_path)


def test_an_option_names_data_as_a_training_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CROSSLIGHT_DATA", "/data")
    packaged = read_data("--data", "configs/data/flickr30k_patches.yaml")
    assert (packaged.root, packaged.batch_size) == (Path("/data/flickr30k"), 1)
    section = {"class_path": "datamodules.flickr30k.Flickr30k", "init_args": {"root": "${name}/here"}}
    Path("mine.yaml").write_text(yaml.safe_dump({"name": "own", "data": section, "model": {"class_path": "x"}}))
    assert read_data("--data", "mine.yaml").root == tmp_path / "own/here"


@pytest.mark.parametrize(("content", "words"), [
    (None, "--data mine.yaml: there is no such file here, and none of that name is packaged"),
    ({"model": {}}, "--data mine.yaml: it holds no section `data`"),
    ({"data": {"class_path": "datamodules.flickr30k.Flickr30"}}, "--data mine.yaml: its section `data` cannot be read"),
    ({"data": {"class_path": "datamodules.flickr30k.Flickr30k", "init_args": {"rot": "x"}}}, "its section `data` cannot be read"),
    ({"data": {"class_path": "datamodules.flickr30k.Flickr30k", "init_args": {"root": "${oc.env:NO_SUCH}"}}}, "NO_SUCH"),
])  # fmt: skip
def test_mistakes_in_it_are_told_in_a_line(content: Any, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("mine.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(InputError) as error:
        read_data("--data", "mine.yaml")
    assert words in str(error.value)
    assert "\n" not in str(error.value)
