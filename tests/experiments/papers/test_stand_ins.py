"""Every file and name that full-scale runs read has a stand-in, and is where the run looks for it."""

from __future__ import annotations

import inspect
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from datamodules.errors import InputError
from datamodules.files.locks import locked
from datamodules.formats.held_out import FlickrHeldOut
from datamodules.loading.region_files import RegionFiles, RegionReader, named
from datamodules.prepare.data_sets import open_source
from datamodules.standin.kinds import WRITERS
from experiments.papers.catalogue import exhibit_names
from experiments.papers.plan import configuration
from experiments.papers.reads import Reads, reads_of, recipes_of
from experiments.papers.schema import Recipe
from experiments.papers.stand_ins import data_sets, environment_of, lacking, write_stand_ins

SHARE = 0.0005


def test_what_full_scale_reads_has_a_maker() -> None:
    reads = reads_of(recipes_of("all"))
    assert lacking(reads) == []
    assert set(reads.data) == set(data_sets())
    assert {"beit3.spm", "beit3_large_itc_patch16_224.pth"} < set(reads.weights)
    assert {"uniter-base.pt", "uniter-large.pt"} == set(reads.releases)
    assert {"gpt2-large", "bert-base-cased", "openai/clip-vit-base-patch16", "dandelin/vilt-b32-finetuned-coco"} < set(reads.hub)
    assert len(reads.timm) == len(reads.open_clip) == 3


def test_a_run_a_paper_and_an_unknown_name() -> None:
    reads = reads_of(recipes_of("mwa/large-zero_shot-mwa"))
    assert reads.weights == ("beit3.spm", "beit3_large_itc_patch16_224.pth")
    assert reads.data == ("coco", "flickr30k")  # it starts from what was trained on COCO
    assert reads_of(recipes_of("uniter")).hub == ("bert-base-cased",)
    with pytest.raises(InputError, match="there is no paper 'mva'"):
        recipes_of("mva/table1")
    with pytest.raises(InputError, match=r"mwa/pretrain-base has no run of full scale"):
        recipes_of("mwa/pretrain-base")


def test_other_places_are_told(tmp_path: Path) -> None:
    network = {"class_path": "lightning_modules.networks.x.Y", "init_args": {"name": "${oc.env:CROSSLIGHT_MINILM,./x}"}}
    (tmp_path / "a.yaml").write_text(json.dumps({"model": {"init_args": {"network": network}}}))
    reads = reads_of([Recipe([str(tmp_path / "a.yaml")])])
    assert lacking(reads) == list(reads.others) == ["${oc.env:CROSSLIGHT_MINILM,./x}"]
    with pytest.raises(InputError, match=r"there is no stand-in for .*MINILM"):
        write_stand_ins(reads, tmp_path / "made")
    assert not (tmp_path / "made").exists()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("standins")
    for name, write in WRITERS.items():
        write(folder / name, SHARE)
    return folder


def parts_of(value: Any) -> list[dict[str, Any]]:
    """Data modules in a configuration."""
    if isinstance(value, list):
        return [part for each in value for part in parts_of(each)]
    if not isinstance(value, dict):
        return []
    own = [value] if isinstance(value.get("init_args"), dict) and "root" in value["init_args"] else []
    return [*own, *(part for each in value.values() for part in parts_of(each))]


def test_every_data_module_of_full_scale_finds_its_files(root: Path) -> None:
    found = {}
    for name in exhibit_names():
        try:
            recipes = recipes_of(name)
        except InputError:
            continue  # a formula
        for recipe in recipes:
            for part in parts_of(configuration(recipe)):
                kept = {key: value for key, value in part["init_args"].items() if key in KEPT}
                found[json.dumps([part["class_path"], kept], sort_keys=True)] = (part["class_path"], kept)
    assert len(found) > 8
    for class_path, options in found.values():
        kind = class_path.split(".")[1]
        folder = root / options.pop("root").rpartition("/")[2]
        regions = options.pop("regions", None)
        if isinstance(options.get("held_out"), dict) and kind == "coco":
            options["held_out"] = FlickrHeldOut(**options["held_out"])
        known = inspect.signature(type(open_source(kind, folder)).__init__).parameters
        source = open_source(kind, folder, **{key: value for key, value in options.items() if key in known})
        splits = source.parse().valid()
        assert all(splits.values())
        if regions is None:
            assert all(record.path is not None and record.path.is_file() for split in splits.values() for record in split)
            continue
        files = RegionFiles(**regions)
        files.require(folder)
        reader = RegionReader(files.image_paths(folder), files.layout)
        for split, records in splits.items():
            assert len(named(records, reader, source.region_prefixes, split)) == len(records)


KEPT = ("root", "split", "unrelated", "restval", "held_out", "regions", "captions")


def test_disk_is_kept_to_and_what_was_cut_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_modules.checkpoints.standin import official

    small = {"width": 16, "num_layers": 2, "num_heads": 2, "ffn_width": 32, "vocab_size": 50_000}
    monkeypatch.setattr(official, "_BASE", small)
    reads = Reads(weights=("beit3_base_itc_patch16_224.pth",))  # 3.2 MB
    told: list[str] = []
    with pytest.raises(InputError, match=r"and 0\.2 are allowed or free: raise --max-disk"):
        write_stand_ins(reads, tmp_path / "a", max_disk_gb=0.2, tell=told.append)
    environment = write_stand_ins(reads, tmp_path / "a", max_disk_gb=0.203, tell=told.append)
    name = reads.weights[0]
    assert told == [f"{name}: cut to numbers of 16 bits, for the disk", f"{name}: made"]
    assert (tmp_path / "a" / "weights" / "STAND-IN").exists()
    assert environment == environment_of(tmp_path / "a")
    assert Path(environment["CROSSLIGHT_WEIGHTS"], name).is_file()
    write_stand_ins(reads, tmp_path / "a", max_disk_gb=0.2, tell=told.append)  # it is there
    assert len(told) == 2


def test_two_writers_of_one_folder_write_one_after_the_other(tmp_path: Path) -> None:
    reads, told, waiting = Reads(data=("nocaps",)), list[str](), threading.Event()

    def tell(line: str) -> None:
        told.append(line)
        waiting.set()

    def second() -> None:
        write_stand_ins(reads, tmp_path / "a", share=0.001, tell=tell)

    write_stand_ins(Reads(), tmp_path / "a", tell=told.append)  # marks it
    thread = threading.Thread(target=second)
    with locked(tmp_path / "a" / ".lock"):
        thread.start()
        assert waiting.wait(20)
        assert not (tmp_path / "a" / "data").exists()
    thread.join()
    assert told == [
        f"{tmp_path / 'a'}: another process writes stand-ins there; waiting for it",
        "nocaps: cut to 0.10%",
    ]
