"""`crosslight data regions`: from the command line to a database and back."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from datamodules.files.stand_in import MARK, mark, mark_of
from datamodules.formats.flickr_entities import read_annotation, write_entities
from datamodules.formats.uniter.image_database import ImageDatabase
from datamodules.formats.uniter.layout import Layout
from datamodules.miniworld.render import render
from datamodules.miniworld.scenes import sample_scene
from datamodules.records import Box, Caption, Phrase
from experiments.cli import main as cli
from experiments.cli._parser import with_subcommands
from experiments.cli._regions import images


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "test_efficientnet.safetensors"
    save_file(timm.create_model("test_efficientnet").state_dict(), path)
    return str(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Flickr30k of five images with a Karpathy file and Entities' boxes."""
    root = tmp_path / "flickr30k"
    (root / "flickr30k-images").mkdir(parents=True)
    entries = []
    for number in range(5):
        name = f"{1000 + number}"
        render(sample_scene(0, "source", number, image_size=64)).save(root / "flickr30k-images" / f"{name}.jpg")
        boxes = tuple(Box(4 * k, 2, 20 + 4 * k, 50) for k in range(1 + number % 3))
        caption = Caption("0", "some things", (Phrase(0, 11, "9", "other", boxes),))
        write_entities(root / "flickr30k_entities", name, (64, 64), [caption])
        sentences = [{"raw": "some things", "sentid": number, "imgid": number, "tokens": ["some", "things"]}]
        split = "train" if number < 3 else "test"
        entries.append({"filename": f"{name}.jpg", "imgid": number, "split": split, "sentences": sentences})
    (root / "dataset_flickr30k.json").write_text(json.dumps({"images": entries, "dataset": "flickr30k"}))
    return root


def crosslight(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int | str | None, str, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main(list(map(str, arguments)))
    printed = capsys.readouterr()
    return stop.value.code, printed.out, printed.err


def test_entities_boxes_then_a_grid_then_the_boxes_of_the_first(
    root: Path, weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, grid, third, fourth = (tmp_path / name for name in ("gt", "grid", "third", "fourth"))
    common = ("--backbone", "timm:test_efficientnet", "--weights", weights, "--shorter-side", "32", "--workers", "0", "--quiet")
    common = (*common, "--device", "cpu")
    status, out, _ = crosslight(
        capsys, "data", "regions", "flickr30k", root, "--out", first, "--boxes", "entities", "--stages", "2,final", *common
    )
    assert status == 0
    assert out.startswith(f"{first}: 5 images with 9 regions written in ")
    database = ImageDatabase(first, Layout("all"))
    annotation = read_annotation(root / "flickr30k_entities" / "Annotations" / "1002.xml")
    torch.testing.assert_close(
        torch.from_numpy(database.read("1002.npz").boxes_R7[:, :4]),
        torch.from_numpy(annotation.fractions_K4()),
        atol=1e-3,
        rtol=0,
    )

    assert crosslight(capsys, "data", "regions", "flickr30k", root, "--out", grid, "--limit", "2", *common)[0] == 0
    assert ImageDatabase(grid, Layout("all")).number_of_regions("1000.npz") == 21
    _, out, _ = crosslight(capsys, "data", "regions", "flickr30k", root, "--out", third, "--grid", "1,3", "--limit", "2", *common)
    assert "2 images with 20 regions" in out
    _, out, _ = crosslight(capsys, "data", "regions", "flickr30k", root, "--out", third, "--grid", "1,3", *common)
    assert "3 images with 30 regions" in out
    assert "2 were there" in out

    _, out, _ = crosslight(
        capsys, "data", "regions", "folder", root / "flickr30k-images", "--out", fourth, "--boxes", first, *common,
        "--layout", "threshold", "--max-bb", "2", "--min-bb", "1", "--compressed",
    )  # fmt: skip
    assert "5 images with 8 regions" in out
    assert (fourth / "feat_th0.2_max2_min1_compressed" / "data.mdb").exists()


def test_unreadable_images_are_listed(root: Path, weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photograph = root / "flickr30k-images" / "1003.jpg"
    photograph.write_bytes(photograph.read_bytes()[:600])
    command = ("data", "regions", "flickr30k", root, "--out", tmp_path / "db", "--backbone", "timm:test_efficientnet")
    command = (*command, "--weights", weights, "--shorter-side", "32", "--workers", "0", "--quiet", "--device", "cpu")
    status, _, err = crosslight(capsys, *command)
    assert status == 2
    assert "1003.jpg" in err
    assert err.count("\n") == 1
    status, out, _ = crosslight(capsys, *command, "--skip-unreadable")
    assert status == 0
    assert out.startswith("left out: image ")
    assert "1003.jpg" in out
    assert "1 left out" in out
    assert len(ImageDatabase(tmp_path / "db", Layout("all")).names()) == 4
    assert mark_of(tmp_path / "db") is None
    mark(root, "random contents")
    for _ in range(2):  # made, and found whole
        assert crosslight(capsys, *command, "--skip-unreadable")[0] == 0
        assert mark_of(tmp_path / "db") == tmp_path / "db" / MARK


def test_which_images(root: Path) -> None:
    assert [record.path.name for record in images("flickr30k", root)] == [f"{1000 + n}.jpg" for n in range(5)]  # type: ignore[union-attr]
    for split, numbers in {"train": (2, 0), "val": (4,), "test": (1,)}.items():
        (root / "flickr30k_entities" / f"{split}.txt").write_text("".join(f"{1000 + n}\n" for n in numbers))
    assert [record.image_id for record in images("flickr30k_entities", root)] == ["1002", "1000", "1004", "1001"]
    assert [record.path for record in images("folder", root)] == [record.path for record in images("flickr30k", root)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--backbone", "resnet18"], "--backbone resnet18: expected timm:NAME, hf:NAME, fasterrcnn"),
        (["--backbone", "timm:"], "--backbone timm:: expected timm:NAME"),
        (["--backbone", "timm:resnte18"], "timm has no model 'resnte18'"),
        (["--backbone", "fasterrcnn", "--boxes", "grid"], "a detector finds its own boxes"),
        (["--backbone", "fasterrcnn", "--stages", "1"], "--stages is of timm and hf backbones"),
        (["--backbone", "fasterrcnn", "--image-size", "64"], "--image-size is of timm and hf backbones"),
        (["--backbone", "fasterrcnn:other"], "torchvision has no Faster R-CNN 'other'"),
        (["--backbone", "timm:resnet18", "--boxes", "entities", "--entities", "/nowhere"], "no Annotations/ in /nowhere"),
        (["--backbone", "timm:resnet18", "--boxes", "entities", "--grid", "2"], "--grid is of --boxes grid"),
        (["--backbone", "timm:resnet18", "--boxes", "/nowhere"], "--boxes /nowhere: /nowhere is not a folder"),
        (["--backbone", "timm:resnet18", "--grid", "2,x"], "argument --grid: '2,x' is not a list of numbers"),
        (["--backbone", "timm:resnet18", "--stages", "last"], "argument --stages: 'last' is not a list"),
        (["--backbone", "timm:resnet18", "--options", "{"], "argument --options: '{' is not JSON"),
        (["--backbone", "timm:resnet18", "--min-bb", "0"], "1 <= min_bb <= max_bb"),
        (["--backbone", "timm:resnet18", "--precison", "bf16"], "unrecognized argument --precison"),
    ],
)
def test_mistakes_are_one_line(
    options: list[str], message: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = crosslight(capsys, "data", "regions", "flickr30k", root, "--out", tmp_path / "db", *options)
    assert status == 2
    assert err.startswith("crosslight: error: ")
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "db").exists()


def test_the_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["data", "regions", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    (parser,) = (each for each in with_subcommands(cli.build_parser("data")) if each.prog == "crosslight data regions")
    for option in parser._option_string_actions:
        assert re.search(rf"{option}\b", text), option
