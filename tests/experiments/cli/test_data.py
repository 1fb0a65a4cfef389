"""`crosslight data check` through the command line."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import zipfile
from pathlib import Path

import pytest
from local_server import Server, server
from PIL import Image
from tiny_data import karpathy

from datamodules.files.download import Remote
from datamodules.miniworld.write import write_world
from experiments.cli import main as cli

__all__ = ["server"]  # the fixture


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int | str | None, str]:
    """Exit status and what stood on stderr."""
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    return stop.value.code, capsys.readouterr().err


def test_data_check_tells_a_sound_root_from_a_damaged_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = write_world(tmp_path / "world", scenes=40, image_size=32)
    flickr, coco = world / "flickr30k", world / "coco"

    def check(kind: str, root: Path) -> tuple[int | str | None, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main(["data", "check", kind, str(root), "--workers", "1"])
        return stop.value.code, capsys.readouterr().out

    code, report = check("flickr30k", flickr)
    assert code == 0
    assert report.endswith("no problems found\n")
    assert "train: 11 images, 55 captions" in report  # 70 % of the Flickr30k part, five captions each
    assert check("coco", coco)[0] == 0

    photographs = sorted((flickr / "flickr30k-images").glob("*.jpg"))
    photographs[0].write_bytes(photographs[0].read_bytes()[:-80])
    photographs[1].unlink()
    code, report = check("flickr30k", flickr)
    assert code == 1
    assert report.endswith("2 problem(s)\n")
    assert "unreadable image: 1" in report
    assert photographs[0].name in report
    assert "missing image: 1" in report
    assert photographs[1].name in report

    shutil.rmtree(flickr / "flickr30k-images")
    code, error = fails(capsys, "data", "check", "flickr30k", str(flickr))
    assert code == 2
    assert str(flickr / "flickr30k-images") in error

    annotations = coco / "annotations" / "dataset_coco.json"
    content = json.loads(annotations.read_text())
    content["images"][0]["sentences"] = []
    annotations.write_text(json.dumps(content))
    code, report = check("coco", coco)
    assert code == 1
    assert "image without captions: 1" in report


def test_data_check_of_an_empty_root_says_what_belongs_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["data", "check", "flickr30k", str(tmp_path)])
    said = capsys.readouterr()
    assert stop.value.code in (1, 2)
    assert "dataset_flickr30k.json" in said.out + said.err


OFFICIAL = '{"images": [{"id": 1, "file_name": "1.png"}], "annotations": [{"id": 1, "image_id": 1, "caption": "a dog"}]}'


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """COCO's own caption files of 2017 and their images, one of each."""
    (tmp_path / "annotations").mkdir()
    for split, name in (("train2017", "1.png"), ("val2017", "2.png")):
        (tmp_path / split).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / split / name)
        (tmp_path / "annotations" / f"captions_{split}.json").write_text(OFFICIAL.replace("1", name[0]))
    return tmp_path


def checked(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int | str | None, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main(["data", "check", *map(str, arguments), "--workers", "1"])
    said = capsys.readouterr()
    return stop.value.code, said.out + said.err


@pytest.mark.parametrize("options", [["--captions", "official", "--year=2017"], ["--year", "2017", "--captions=official"]])
def test_data_check_takes_the_options_of_the_data_set(coco: Path, capsys: pytest.CaptureFixture[str], options: list[str]) -> None:
    code, said = checked(capsys, "coco", coco, *options)
    assert code == 0, said
    assert "train: 1 images, 1 captions" in said
    assert "val: 1 images, 1 captions" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], 'COCO\'s own caption files are there: set captions to "official"'),
        (["--captions", "offical"], "one of 'karpathy', 'official', 'beit3_index'. Got value: offical"),
        (
            ["--capions=official"],
            "unrecognized argument --capions. Did you mean --captions? --help-all lists the options of coco.",
        ),
        (["--worker=3"], "Did you mean --workers?"),
        (["--year=2015"], "2015"),
        (["--regions.image_db=a", "--regions.kind=fixd"], "Expected one of 'threshold', 'fixed', 'all'. Got value: fixd"),
        (["--regions.kind=fixed"], "image_db"),
        (["--captions=official", "--files.test=a.json"], 'Parser key "files": Expected a list. Got value: a.json. --help-all'),
        (["--files.test=[a.json]"], 'set captions to "official" or "beit3_index" with it'),
    ],
)
def test_options_that_are_none_are_named(
    coco: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    code, said = checked(capsys, "coco", coco, "--year=2017", *options)
    assert code == 2
    assert said.startswith("crosslight: error: ")
    assert message in said


def test_a_check_of_every_kind_and_of_regions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = write_world(tmp_path / "world", scenes=40, image_size=32)
    for kind, lines in {
        "nocaps": ["  val: "],
        "visual_genome": ["  train: ", "note: ", "are in an evaluation split of COCO"],
        "flickr30k_entities --split karpathy --unrelated=keep": ["  test: "],
        "flickr30k --split=entities": ["  test: "],
        "flickr30k --regions.image_db img_db/flickr30k --regions.kind=all": ["  test: "],
    }.items():
        name, *options = kind.split()
        code, said = checked(capsys, name, world / name.removesuffix("_entities"), *options)
        assert code == 0, said
        for line in (*lines, "no problems found"):
            assert line in said
    lists = world / "flickr30k/flickr30k_entities"
    (lists / "train.txt").write_text((lists / "train.txt").read_text() + (lists / "val.txt").read_text())
    code, said = checked(capsys, "flickr30k", world / "flickr30k", "--split=entities")
    assert (code, "is in train, val" in said) == (1, True)
    with pytest.raises(SystemExit) as stop:
        cli.main(["data", "check", "coco", ".", "--help-all"])
    assert stop.value.code == 0
    assert "--captions {karpathy,official,beit3_index}" in capsys.readouterr().out
    code, said = fails(capsys, "data", "index", "coco", str(world / "coco"), "--spm", "x", "--captions=official")
    assert (code, "unrecognized arguments: --captions=official" in said) == (2, True)


def get(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int | str | None, str, str]:
    """Exit status, and what stood on stdout and stderr."""
    with pytest.raises(SystemExit) as stop:
        cli.main(["data", "get", *arguments])
    return stop.value.code, *capsys.readouterr()


def test_data_get_says_steps_sizes_and_sums_and_fetches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CROSSLIGHT_DATA", str(tmp_path))
    code, said, _ = get(capsys, "coco", "--dry-run")
    assert code == 0
    assert f"1. {tmp_path}/coco/annotations/dataset_coco.json\n   caption_datasets.zip, 36.7 MB, SHA-256 4cfd7013" in said
    assert "train2014.zip, 13.5 GB, MD5 0da8c0bd3d6becc4dcb32757491aca88; unpacked in" in said
    assert "to fetch: 20.2 GB, at most 33.7 GB on disk while an archive is unpacked\n" in said
    assert "or --from yerevann: " in said
    assert not list(tmp_path.iterdir())
    assert "train2017.zip, 19.3 GB" in get(capsys, "coco", "--dry-run", "--captions=official", "--year=2017")[1]
    said = get(capsys, "coco", "--dry-run", "--from", "lavis")[1]
    assert "coco_karpathy_val.json, MD5 b273847456ef5580e33713b1f7de52a0" in said
    assert "caption_datasets.zip" not in said
    said = get(capsys, "flickr30k", "--dry-run")[1]
    assert "flickr30k-images.tar.gz, 4.4 GB, by the form at https://shannon" in said
    said = get(capsys, "visual_genome", "--dry-run")[1]
    assert said.count("caption_datasets.zip, 36.7 MB") == 1
    assert said.count("in caption_datasets.zip too") == 2
    code, _, error = get(capsys, "coco", "--dry-run", "--from", "kaggle")
    assert code == 2
    assert "also to be had from yerevann and lavis" in error


def test_data_get_fetches_what_needs_no_form_and_names_the_rest(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as bundle:
        bundle.writestr("dataset_flickr8k.json", json.dumps(karpathy({"train": 2, "val": 1, "test": 1})))
    server.files["/copy/caption_datasets.zip"] = buffer.getvalue()
    known = hashlib.sha256(buffer.getvalue()).hexdigest()
    there = Remote(f"{server.url}/caption_datasets.zip", sha256=known, others=(f"{server.url}/copy/caption_datasets.zip",))
    monkeypatch.setattr("datamodules.sources.flickr8k.KARPATHY", there)
    root = tmp_path / "flickr8k"
    code, said, _ = get(capsys, "flickr8k", str(root))
    assert code == 1
    assert f"{root}/images: Flickr8k_Dataset.zip, 1.1 GB, by the form at https://hockenmaier" in said
    assert "is not complete" in said
    assert [path.name for path in root.iterdir()] == ["dataset_flickr8k.json"]
    (root / "images").mkdir()
    code, said, _ = get(capsys, "flickr8k", str(root))
    assert (code, said) == (0, f"flickr8k is complete; `crosslight data check flickr8k {root}` looks into it\n")


def test_data_karpathy_writes_the_split_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "flickr30k_val.json"
    copy.write_text(json.dumps([{"image": "flickr30k-images/1.jpg", "caption": ["a dog", "a cat"]}]))
    with pytest.raises(SystemExit) as stop:
        cli.main(["data", "karpathy", "flickr30k", str(tmp_path / "flickr30k"), str(copy)])
    assert (stop.value.code, capsys.readouterr().out) == (0, "dataset_flickr30k.json: val 1 images\n")
    assert (tmp_path / "flickr30k" / "dataset_flickr30k.json").exists()


def test_data_stand_in_writes_a_data_set_and_says_where_runs_find_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("CROSSLIGHT_DATA", "CROSSLIGHT_WEIGHTS", "CROSSLIGHT_CACHE", "HF_HOME", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(variable, "before")  # put back behind the test
    root = tmp_path / "made"
    with pytest.raises(SystemExit) as stop:
        cli.main(["data", "stand-in", "nocaps", str(root), "--share", "0.001"])
    told = capsys.readouterr().out.splitlines()
    assert stop.value.code == 0
    assert "nocaps: cut to 0.10%" in told
    assert f"export CROSSLIGHT_DATA={root}/data" in told
    assert f"export HF_HOME={root}/hub" in told
    assert len(list((root / "data" / "nocaps" / "val").iterdir())) == 7
    assert (root / "STAND-IN").is_file()
    assert (
        fails(capsys, "data", "stand-in", "mwa/table1", str(tmp_path / "made" / "data"))[1].count("made/data is not empty") == 1
    )
    assert "there is no paper 'mva'" in fails(capsys, "data", "stand-in", "mva/table1", str(root))[1]
