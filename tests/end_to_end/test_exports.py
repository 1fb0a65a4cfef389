"""An export of each method, loaded by a process that can open nothing of the world and the runs: the same outputs, bit by bit."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from cards import what_it_prints
from end_to_end import BRIDGED, arguments, captioner, succeed
from forks import ended, forked

import lightning_modules
from datamodules.loading.tokens import Tokenizer
from datamodules.records import ImageBatch, Regions, TextBatch
from lightning_modules.checkpoints.model_card import FOLDER
from lightning_modules.networks.captioner import Captioner

ONE_EPOCH = "--trainer.max_epochs=1"


@torch.no_grad()
def outputs(folder: Path) -> dict[str, Any]:
    """What a loaded model makes of a caption and of random images."""
    model: Any = lightning_modules.load(folder)
    network, draw, mask = model.network, torch.Generator().manual_seed(3), torch.ones(2, 5, dtype=torch.bool)
    tokens, present = Tokenizer(network.inputs.text)(["a red square", "two circles and a small blue star"])
    index = torch.arange(2)
    texts = TextBatch(("0", "1"), ("", ""), index, index, tokens, present)
    if network.inputs.image is None:
        width = network.inputs.regions.feature_width
        regions = Regions(torch.randn(2, 5, width, generator=draw), torch.rand(2, 5, 7, generator=draw), torch.ones(2, 5), mask)
        images = ImageBatch(("0", "1"), index, regions=regions)
        embedded = network.embed_images(images), network.embed_texts(texts)
        return {"tokens": tokens, "scores": network.score_pairs(*embedded, index, index)}
    size = network.inputs.image.size
    images = ImageBatch(("0", "1"), index, torch.randn(2, 3, size, size, generator=draw))
    if network.inputs.ranking:
        embedded = network.embed_images(images), network.embed_texts(texts)
        return {"tokens": tokens, "scores": network.score_pairs(*embedded, index, index)}
    if isinstance(network, Captioner):
        features = network.encode_images(images)
        return {"tokens": tokens, "features": features.tokens_IVD, "captions": network.generate(features, model.decoding)}
    return {"tokens": tokens, "images": network.encode_images(images), "texts": network.encode_texts(texts)}


def load_alone(folders: Sequence[Path], forbidden: Sequence[str], out: Path) -> None:
    """In a process of its own: the outputs of all exports, with every file below some folders out of reach."""

    def watch(event: str, given: tuple[Any, ...]) -> None:
        if event in ("open", "os.listdir", "os.scandir") and str(given[0]).startswith(tuple(forbidden)):
            raise PermissionError(f"{given[0]} is gone")

    sys.addaudithook(watch)
    torch.save({folder.name: outputs(folder) for folder in folders}, out)


def cards_say_how_to_use_them(exports: Path, world: Path, runs: Path) -> None:
    """The Python of a card runs and gives what the run gives."""
    images = sorted((world / "flickr30k" / "flickr30k-images").iterdir())[:2]
    printed = {}
    for name in ("mwa", "i_tuning"):
        card = exports / name / "README.md"
        card.write_text(card.read_text().replace(FOLDER, str(exports / name)))
        printed[name] = what_it_prints(card, str(exports / name), images, exports.parent)
    model = lightning_modules.load(runs / "mwa")
    scores = model.encode_texts(["a dog in the snow"]) @ model.encode_images(images).T
    assert printed["mwa"] == str(scores.argmax(1))
    assert printed["i_tuning"] == str(lightning_modules.load(runs / "i_tuning").caption(images))


@pytest.fixture(scope="module")
def others(runs: Path, full_run: Path) -> list[Path]:
    """Runs of the methods that other tests do not train."""
    started = f"--model.init_args.init_from={full_run}"
    succeed("run", *arguments("ke_only", ONE_EPOCH, started, f"--run_dir={runs / 'ke'}"))
    succeed("run", *arguments("lora", ONE_EPOCH, started, f"--run_dir={runs / 'lora'}"))
    succeed("run", *captioner("clipcap", f"--run_dir={runs / 'clipcap'}"))
    succeed("run", *captioner("lora_both", *BRIDGED, f"--run_dir={runs / 'lora_both'}"))
    return [runs / name for name in ("ke", "lora", "clipcap", "lora_both")]


def test_exports_of_every_method_load_where_nothing_else_is(
    others: list[Path], mwa_run: Path, head_run: Path, full_run: Path, uniter_run: Path, vilt_run: Path, i_tuning_run: Path,
    world: Path, runs: Path, tmp_path: Path,
) -> None:  # fmt: skip
    names = [run.name for run in (*others, mwa_run, head_run, full_run, uniter_run, vilt_run, i_tuning_run)]
    for name in names:
        succeed("export", str(runs / name), str(tmp_path / "here" / name))
        text = "".join(file.read_text(errors="replace") for file in (tmp_path / "here" / name).rglob("*") if file.is_file())
        assert not [place for place in (world, runs, tmp_path, Path.home()) if f"{place}/" in text], name
    cards_say_how_to_use_them(tmp_path / "here", world, runs)
    copies = [Path(shutil.copytree(tmp_path / "here" / name, tmp_path / "there" / name)) for name in names]
    gone = [str(place) for place in (world, runs, tmp_path / "here")]
    with forked(load_alone, copies, gone, tmp_path / "outputs.pt", log=tmp_path / "log") as process:
        status, printed = ended(process, tmp_path / "log")
    assert status == 0, printed
    found = torch.load(tmp_path / "outputs.pt", weights_only=True)
    for name in names:
        expected = outputs(runs / name)
        assert found[name].keys() == expected.keys()
        for key, value in expected.items():
            same = torch.equal(found[name][key], value) if isinstance(value, torch.Tensor) else found[name][key] == value
            assert same, (name, key)
    assert len({str(found[name]) for name in names}) == len(names)
