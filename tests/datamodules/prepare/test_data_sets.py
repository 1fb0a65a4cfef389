"""Data sets are found where their files are, by name or class path."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from datamodules.errors import InputError
from datamodules.image_text import ImageTextDataModule
from datamodules.prepare.data_sets import names, open_source, source_of
from datamodules.source import Source

OWN = """
from datamodules.formats.parsing import Parsed
from datamodules.source import Source

class Mine(Source):
    name = "mine"
    def __init__(self, root, image_dir="."): super().__init__(root, image_dir)
    def parse(self): return Parsed(self.root)
    def require_files(self): pass
    def annotation_files(self): return []

number = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_own_data.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", names())
def test_a_data_set_is_one_file_of_its_name_and_has_a_data_module(name: str) -> None:
    source = source_of(name)
    assert source.name == name
    module = import_module(f"datamodules.{name}")
    (data,) = [value for value in vars(module).values() if isinstance(value, type) and value.__module__ == module.__name__]
    assert issubclass(data, source)
    assert issubclass(data, ImageTextDataModule)
    assert data.__doc__


def test_names_and_files_are_found_without_torch() -> None:
    modules = "pkgutil, sys, datamodules.formats, datamodules.sources, datamodules.prepare.data_sets as found"
    code = f"""
import {modules}
assert not [name for name in sys.modules if name.startswith(("datamodules.sources.", "torch"))], "names alone import nothing"
assert len(found.names()) == {len(names())}
for package in (datamodules.formats, datamodules.sources):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        __import__(module.name)
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_class_of_ones_own(own: Path) -> None:
    mine = open_source("my_own_data.Mine", own)
    assert isinstance(mine, Source)
    assert (mine.name, mine.root, mine.every_image()) == ("mine", own, [])
    for ask, message in ((mine.karpathy_file, "mine has no split by Karpathy"), (mine.index_source, "coco and flickr30k only")):
        with pytest.raises(InputError, match=message):
            ask()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("cocoo", "unknown kind of data 'cocoo'; choose one of coco, .*, or give the class path of your own"),
        ("my_own_data.Yours", "module my_own_data has no Yours"),
        ("my_own_data.number", "my_own_data.number is not a data set: derive it from datamodules.source.Source"),
        ("my_absent_data.Mine", "no module 'my_absent_data' is found; its folder must be on PYTHONPATH"),
    ],
)
def test_what_is_no_data_set_is_named(own: Path, kind: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        source_of(kind)
