"""`crosslight caption`: captions of images from a run folder, results files, pictures, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_captioning_run import captioning_run

import lightning_modules
from datamodules.errors import InputError
from datamodules.formats.caption_results import parse_caption_results
from datamodules.loading.images import SplitImages
from datamodules.miniworld.write import write_tokenizer
from datamodules.records import ImageBatch, ImageRecord
from experiments.analysis import captions as caption
from experiments.analysis.word_maps import token_maps
from experiments.cli.main import run_command
from lightning_modules.networks.language_model import Decoding


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Path:
    return captioning_run(tmp_path_factory.mktemp("runs") / "i_tuning", tokenizer)


@pytest.fixture(scope="module")
def loaded(run: Path) -> Any:
    return lightning_modules.load(run)


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Three of different shapes, with names that are and are not numbers."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / name for name in ("12.jpg", "0034.png", "a dog.jpg")]
    for path, shape in zip(paths, [(40, 60, 3), (60, 40, 3), (33, 33, 3)], strict=True):
        Image.fromarray(rng.integers(0, 255, shape, np.uint8)).save(path)
    return paths


def expected(network: Any, paths: list[Path], decoding: Decoding) -> list[str]:
    """As an evaluation would write them."""
    records = [ImageRecord(path.stem, path, ()) for path in paths]
    found = []
    for row in range(len(paths)):
        pixels = SplitImages(records, network.inputs.image).pixels([row], [0])
        found += network.generate(network.encode_images(ImageBatch(("",), torch.tensor([0]), pixels)), decoding)
    return found


def test_captions_are_those_of_an_evaluation(
    run: Path, loaded: Any, images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "captions.json"
    asked = [str(run), *map(str, images), "--device", "cpu"]
    assert run_command("caption", [*asked, "--out", str(out), "--batch-size", "2"]) == 0
    wanted = expected(loaded.network, images, Decoding(num_beams=2, max_new_tokens=6, min_new_tokens=2))
    assert all(len(each.split()) >= 2 for each in wanted)
    assert capsys.readouterr().out.splitlines() == [f"{path}: {each}" for path, each in zip(images, wanted, strict=True)]
    assert json.loads(out.read_text()) == [
        {"image_id": name, "caption": each} for name, each in zip([12, "0034", "a dog"], wanted, strict=True)
    ]
    assert list(parse_caption_results(out).valid()) == ["12", "0034", "a dog"]
    # what is given replaces what the run has, and nothing else
    assert run_command("caption", [*asked, "--num-beams", "1", "--max-new-tokens", "4"]) == 0
    shorter = expected(loaded.network, images, Decoding(num_beams=1, max_new_tokens=4, min_new_tokens=2))
    assert [line.rpartition(": ")[2] for line in capsys.readouterr().out.splitlines()] == shorter


def test_samples_are_those_of_the_seed(
    loaded: Any, images: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lightning_modules, "load", lambda run, **options: loaded)
    drawn = []
    for seed in ("1", "1", "2"):
        assert (
            run_command("caption", ["run", str(images[0]), "--num-beams", "1", "--sample", "--temperature", "9", "--seed", seed])
            == 0
        )
        drawn.append(capsys.readouterr().out)
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_picture_for_each_image(loaded: Any, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lightning_modules, "load", lambda run, **options: loaded)
    asked: list[tuple[Any, Any]] = []
    draw = caption.draw_maps

    def drawing(path: Path, image: Image.Image, maps: Any, covered: Any, about: Any) -> Path:
        asked.append((maps, covered))
        return draw(path, image, maps, covered, about=about)

    monkeypatch.setattr(caption, "draw_maps", drawing)
    folder = tmp_path / "new" / "maps"
    chosen = ["--layer", "1", "--head", "0", "--position", "reads"]
    assert run_command("caption", ["run", *map(str, images[:2]), "--maps", str(folder), *chosen]) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["0034.png", "12.png"]
    for path in folder.iterdir():
        with Image.open(path) as picture:
            picture.load()
            assert min(picture.size) > 100
    assert [maps.shown for maps, _ in asked] == ["layer 1, head 0, where each token is read"] * 2
    assert [(box.left, box.top, box.right, box.bottom) for _, box in asked] == [(10, 0, 50, 40), (0, 10, 40, 50)]
    for path, (maps, _) in zip(images, asked, strict=False):
        pixels = SplitImages([ImageRecord("", path, ())], loaded.network.inputs.image).pixels([0], [0])
        features = loaded.network.encode_images(ImageBatch(("",), torch.tensor([0]), pixels))
        (own,) = token_maps(loaded.network, features, [maps.tokens], layer=1, head=0, position="reads")
        np.testing.assert_allclose(maps.maps_TYX, own.maps_TYX, atol=1e-5)
        assert maps.text == loaded.network.generate(features, loaded.decoding)[0]
    assert np.abs(asked[0][0].maps_TYX[0] - asked[1][0].maps_TYX[0]).max() > 1e-3


def test_pictures_of_other_layers_are_drawn_anew_and_replace_nothing_else(
    loaded: Any, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lightning_modules, "load", lambda run, **options: loaded)
    folder, out = tmp_path / "maps", tmp_path / "captions.jsonl"
    asked = ["run", str(images[0]), "--out", str(out), "--maps", str(folder)]
    picture = folder / f"{images[0].stem}.png"
    drawn = []
    for layer in ("1", "1", "2"):
        assert run_command("caption", [*asked, "--layer", layer]) == 0
        drawn.append(picture.read_bytes())
    assert drawn[0] == drawn[1] != drawn[2]
    monkeypatch.chdir(images[0].parent)
    assert run_command("caption", ["run", images[0].name, "--maps", str(folder), "--layer", "2"]) == 0, "the same file"
    drawn.append(picture.read_bytes())
    other = tmp_path / "b" / images[0].name
    other.parent.mkdir()
    other.write_bytes(images[1].read_bytes())
    for file, message in ((other, "is there and is that of"), (images[1], "is there and is no picture of --maps")):
        Image.new("RGB", (9, 9)).save(folder / f"{images[1].stem}.png")
        with pytest.raises(InputError, match=message):
            run_command("caption", ["run", str(file), "--maps", str(folder)])
    assert picture.read_bytes() == drawn[-1]


def test_a_photograph_is_never_replaced(loaded: Any, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lightning_modules, "load", lambda run, **options: loaded)
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.open(images[0]).save(photos / "1.png")
    before = (photos / "1.png").read_bytes()
    with pytest.raises(InputError, match=r"--maps .*1\.png is .*1\.png, which is read: writing would destroy it"):
        run_command("caption", ["run", str(photos), "--maps", str(photos)])
    assert (photos / "1.png").read_bytes() == before


def test_captions_of_other_images_are_not_lost(
    loaded: Any, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lightning_modules, "load", lambda run, **options: loaded)
    out = tmp_path / "captions.json"
    assert run_command("caption", ["run", str(images[0]), "--out", str(out)]) == 0
    before = out.read_bytes()
    assert run_command("caption", ["run", str(images[0]), "--out", str(out)]) == 0, "the same ones again"
    with pytest.raises(InputError, match=r"has captions of 1 other images .*, which would be lost"):
        run_command("caption", ["run", str(images[1]), "--out", str(out)])
    assert out.read_bytes() == before
    for other in ('{"annotations": []}', '[{"image_id": 1, "caption": "a dog", "id": 7}]', "[1]", "no JSON"):
        out.write_text(other)
        with pytest.raises(InputError, match="is there and is no file of captions"):
            run_command("caption", ["run", str(images[1]), "--out", str(out)])
        assert out.read_text() == other


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.jpg"], "image .*gone.jpg does not exist"),
        (["empty"], "empty has no images below it"),
        (["12.jpg", "--out", "captions.txt"], r"captions.txt: give a name that ends in .jsonl, .csv or .json"),
        (["12.jpg", "--layer", "1"], "--layer chooses what --maps shows; give --maps DIR"),
        (["12.jpg", "--maps", "maps", "--layer", "x"], "'x' is neither a number from 0 nor last or mean"),
        (
            ["12.jpg", "--maps", "maps", "--layer", "0"],
            r"layers \[0\] have no module .* modules in layers \[1, 2\]",
        ),
        (["12.jpg", "--maps", "maps", "--head", "2"], "heads 0 to 1"),
        (["12.jpg", "--maps", "12.jpg/maps"], "cannot be written"),
        (["12.jpg", "b/12.jpg", "--out", "o.json"], "2 images are named 12"),
        (["12.jpg", "--num-beams", "0"], r"num_beams \(0\)"),
        (["12.jpg", "--max-new-tokens", "99"], "max_new_tokens .* needs 100 positions, the model has 48"),
        (["12.jpg", "--batch-size", "0"], "--batch-size is 0"),
        (["12.jpg", "--device", "abacus"], "--device abacus cannot be used"),
        (["12.jpg", "--beam", "3"], "unrecognized arguments: --beam 3"),
        ([], "the following arguments are required: IMAGE"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    loaded: Any, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.setattr(lightning_modules, "load", lambda run, **options: loaded)
    (tmp_path / "b").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "b" / "12.jpg").write_bytes(images[0].read_bytes())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message) as error:
        run_command("caption", ["run", *arguments])
    assert "\n" not in str(error.value)
    assert not Path("o.json").exists()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("clipcap", "clipcap is ClipCap's, which sees the whole image as one vector: there are no attention maps"),
        ("none", "none has a language model without an adapter, which sees no image"),
    ],
)
def test_runs_without_maps(
    images: list[Path], tmp_path: Path, tokenizer: Path, kind: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [str(captioning_run(tmp_path / kind, tokenizer, kind)), str(images[0])]
    with pytest.raises(InputError, match=message):
        run_command("caption", [*asked, "--maps", str(tmp_path / "maps")])
    assert not (tmp_path / "maps").exists()
    if kind == "clipcap":  # captions it writes all the same
        assert run_command("caption", asked) == 0
        assert capsys.readouterr().out.startswith(f"{images[0]}: ")


def test_other_networks_write_no_captions(images: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Module:
        network = torch.nn.Linear(1, 1)

    monkeypatch.setattr(lightning_modules, "load", lambda run, **options: Module())
    with pytest.raises(InputError, match="is a run of Linear, which writes no captions"):
        run_command("caption", [str(tmp_path), str(images[0])])


def test_captions_of_cocos_files_are_scored_against_cocos_references(
    loaded: Any, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lightning_modules, "load", lambda run, **options: loaded)
    coco = [images[0].rename(tmp_path / "COCO_val2014_000000391895.jpg"), images[1].rename(tmp_path / "000000000042.png")]
    out, references, scores = (tmp_path / f"{name}.json" for name in ("captions", "references", "scores"))
    assert run_command("caption", ["run", *map(str, coco), "--out", str(out), "--device", "cpu"]) == 0
    written = {entry["image_id"]: entry["caption"] for entry in json.loads(out.read_text())}
    assert list(written) == [391895, 42]
    annotations = [{"id": number, "image_id": number, "caption": text} for number, text in written.items()]
    listed = [{"id": number, "file_name": path.name} for number, path in zip(written, coco, strict=True)]
    references.write_text(json.dumps({"images": listed, "annotations": annotations}))
    assert run_command("score", [str(out), "--references", str(references), "--metrics", "rouge_l", "--out", str(scores)]) == 0
    assert json.loads(scores.read_text())["metrics"]["rouge_l"] == 1
    other = shutil.copy(coco[1], tmp_path / "COCO_val2014_000000000042.png")
    with pytest.raises(InputError, match="2 images are named 42, which --out"):
        run_command("caption", ["run", str(coco[1]), str(other), "--out", str(out)])


def test_broken_images_are_named_and_the_rest_is_captioned(
    loaded: Any, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lightning_modules, "load", lambda run, **options: loaded)
    images[0].write_bytes(b"no picture")
    out = tmp_path / "captions.json"
    asked = ["run", *map(str, images), "--out", str(out), "--batch-size", "2", "--device", "cpu", "--workers", "0"]
    assert run_command("caption", asked) == 1
    assert [entry["image_id"] for entry in json.loads(out.read_text())] == ["0034", "a dog"]
    said = capsys.readouterr()
    assert [line.partition(": ")[0] for line in said.out.splitlines()] == [str(path) for path in images[1:]]
    assert said.err.splitlines()[1:] == [
        "1 images cannot be read, and the rest is done:",
        f"  {images[0]} is not an image that PIL can read.",
    ]


def test_names_that_are_no_text(
    loaded: Any, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lightning_modules, "load", lambda run, **options: loaded)
    odd = images[0].rename(images[0].with_name(os.fsdecode(b"caf\xe9.jpg")))
    assert run_command("caption", ["run", str(odd), "--device", "cpu"]) == 0
    assert "caf\\udce9.jpg: " in capsys.readouterr().out
    with pytest.raises(InputError, match=r"caf\\udce9\.jpg: its name is not UTF-8, so --out cannot hold it; rename"):
        run_command("caption", ["run", str(images[1]), str(odd), "--out", str(tmp_path / "c.json")])
