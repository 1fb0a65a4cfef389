"""What goes wrong from outside: one readable error with file and remedy, exit status 2, and a run folder that says so."""

from __future__ import annotations

import errno
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import pytest
import torch
from end_to_end import arguments, crosslight, recalls, results, succeed, uniter

import lightning_modules
from lightning_modules.checkpoints.adapter_export import load_adapter

ONE_EPOCH = "--trainer.max_epochs=1"


def refused(command: str, *options: str, run: Path | None = None, says: tuple[str, ...]) -> None:
    """The command ends with status 2 and a message of a few lines with all of `says`; so does its run folder's record."""
    if run is not None:
        options += (f"--run_dir={run}",)
    answer = crosslight(command, *options)
    assert answer.status == 2, answer.error
    assert "Traceback" not in answer.error
    message = answer.error[answer.error.index("crosslight: error:") :]
    assert len(message.splitlines()) <= 8, message
    for part in says:
        assert part in message
    if run is not None:
        assert results(run)["status"] == "failed"
        assert results(run)["error"] in message


@pytest.fixture
def photographs(world: Path, tmp_path: Path) -> Path:
    """A copy of the Flickr30k part that a test may damage."""
    return Path(shutil.copytree(world / "flickr30k", tmp_path / "flickr30k"))


def annotations(root: Path) -> dict:
    return json.loads((root / "dataset_flickr30k.json").read_text())


@pytest.mark.parametrize("split", ["val", "test"])
def test_missing_split_is_found_before_the_training(photographs: Path, tmp_path: Path, split: str) -> None:
    content = annotations(photographs)
    content["images"] = [image for image in content["images"] if image["split"] != split]
    (photographs / "dataset_flickr30k.json").write_text(json.dumps(content))
    refused(
        "run", *arguments("head", ONE_EPOCH, f"--data.init_args.root={photographs}"), run=tmp_path / "run",
        says=(f"no split '{split}'", str(photographs / "dataset_flickr30k.json"), "train (27 images)"),
    )  # fmt: skip
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_test_without_captions_is_found_before_the_training(world: Path, tmp_path: Path) -> None:
    nocaps = ("--evaluate.nc=datamodules.nocaps.NoCaps", f"--evaluate.nc.init_args.root={world / 'nocaps'}",
              "--evaluate.nc.init_args.split=test", "--evaluate.nc.init_args.num_workers=0")  # fmt: skip
    says = ("evaluate.nc: nocaps test has images and no captions, without which RetrievalModule measures nothing",)
    refused("run", *arguments("head", ONE_EPOCH, *nocaps), run=tmp_path / "run", says=says)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_truncated_photograph_met_by_a_worker_in_training(photographs: Path, tmp_path: Path) -> None:
    image = next(image for image in annotations(photographs)["images"] if image["split"] == "train")
    file = photographs / "flickr30k-images" / image["filename"]
    file.write_bytes(file.read_bytes()[:300])
    options = (f"--data.init_args.root={photographs}", "--data.init_args.num_workers=1", "--data.init_args.batch_size=27")
    refused(
        "run", *arguments("head", ONE_EPOCH, *options), run=tmp_path / "run",
        says=(str(file), "truncated", "Replace the file", "crosslight data check"),
    )  # fmt: skip


def test_caption_without_image(photographs: Path, tmp_path: Path) -> None:
    image = next(image for image in annotations(photographs)["images"] if image["split"] == "test")
    (photographs / "flickr30k-images" / image["filename"]).unlink()
    refused(
        "run", *arguments("head", ONE_EPOCH, f"--data.init_args.root={photographs}"), run=tmp_path / "run",
        says=("test: 1 of 11 image files are missing", image["filename"], "Put the images there"),
    )  # fmt: skip


def test_checkpoint_of_another_configuration(mwa_run: Path, full_run: Path, tmp_path: Path) -> None:
    config, other = str(mwa_run / "config.yaml"), str(full_run / "checkpoints" / "best.ckpt")
    refused(
        "test", "-c", config, "--ckpt_path", other, run=tmp_path / "test",
        says=(other, "another architecture or tuning mode", "config.yaml beside"),
    )  # fmt: skip
    own = str(mwa_run / "checkpoints" / "best.ckpt")
    refused(
        "fit", "-c", config, "--ckpt_path", own, "--model.init_args.optimization.lr=0.5", run=tmp_path / "fit",
        says=("another configuration", "model.init_args.optimization.", "lr", "--model.init_args.init_from"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda whole: None, "does not exist"),
        (lambda whole: whole[: len(whole) // 2], "it is truncated, damaged or no checkpoint"),
        (lambda whole: b"half a sentence", "it is truncated, damaged or no checkpoint"),
        (lambda whole: b"", "is empty"),
    ],
    ids=["missing", "truncated", "text", "empty"],
)
def test_file_that_is_no_checkpoint(head_run: Path, tmp_path: Path, damage: Callable[[bytes], bytes | None], says: str) -> None:
    file = tmp_path / "some.ckpt"
    content = damage((head_run / "checkpoints" / "best.ckpt").read_bytes())
    if content is not None:
        file.write_bytes(content)
    options = ("-c", str(head_run / "config.yaml"), "--ckpt_path", str(file))
    refused("test", *options, run=tmp_path / "test", says=(str(file), says))


def test_checkpoint_of_something_else(head_run: Path, tmp_path: Path) -> None:
    torch.save({"state_dict": {"weight": torch.zeros(2)}}, tmp_path / "some.ckpt")
    options = ("-c", str(head_run / "config.yaml"), "--ckpt_path", str(tmp_path / "some.ckpt"))
    refused("test", *options, run=tmp_path / "test", says=("some.ckpt is not of a crosslight run", "init_from"))


@pytest.mark.parametrize(("change", "says"), [
    (lambda state: state.pop("loops"), "has no loops"), (lambda state: state.update(epoch="1"), "epoch is '1'"),
    (lambda state: state["loops"].clear(), "cannot be taken up (KeyError: 'fit_loop')"),
    (lambda state: state.update(optimizer_states=[]), "states of (0, 1) optimizers and schedules, here there are (1, 1)"),
    (lambda state: moments(state).update(exp_avg=torch.zeros(3)), "the optimizer's exp_avg [3] instead of []"),
    (lambda state: moments(state).update(exp_avg=torch.tensor(1)), "the optimizer's exp_avg whole numbers"),
    (lambda state: state["state_dict"].update({"network.logit_scale": torch.tensor(1)}), "logit_scale whole numbers"),
    (lambda state: state["state_dict"].update({"network.logit_scale": torch.tensor(math.nan)}), "NaN or infinite"),
])  # fmt: skip
def test_a_checkpoint_with_other_parts_is_not_gone_on_from(change: Any, says: str, head_run: Path, tmp_path: Path) -> None:
    state = torch.load(head_run / "checkpoints" / "last.ckpt", weights_only=True)
    change(state)
    torch.save(state, tmp_path / "last.ckpt")
    shutil.copy(head_run / "checkpoints" / "best.ckpt", tmp_path)
    options = ("-c", str(head_run / "config.yaml"), "--ckpt_path", str(tmp_path / "last.ckpt"), "--trainer.max_epochs=2")
    refused("fit", *options, run=tmp_path / "fit", says=("last.ckpt", says))


def moments(state: Any) -> Any:
    return state["optimizer_states"][0]["state"][0]


def test_adapter_for_another_backbone(mwa_run: Path, full_run: Path, head_run: Path, tmp_path: Path) -> None:
    """Here the parent's weights are left out, so the towers are random. An export brings them along."""
    options = ("-c", str(mwa_run / "config.yaml"), "--ckpt_path", str(mwa_run / "checkpoints" / "best.ckpt"))
    refused(
        "test", *options, f"--model.init_args.init_from={head_run}", run=tmp_path / "test",
        says=(options[-1], "same architecture but with other weights", "Give the network the weights it was trained on"),
    )  # fmt: skip
    refused(  # without the parent the heads are new, and would train
        "test", *options, "--model.init_args.init_from=null", run=tmp_path / "bare",
        says=(options[-1], "another architecture or tuning mode", "init_from included"),
    )  # fmt: skip
    succeed("export", str(mwa_run), str(tmp_path / "export"))
    network = lightning_modules.load(head_run).network
    load_adapter(network, tmp_path / "export")
    whole = lightning_modules.load(mwa_run).network.state_dict()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in network.state_dict().items())


def test_init_from_something_else(world: Path, tmp_path: Path) -> None:
    options = arguments("mwa", ONE_EPOCH)
    refused(
        "run", *options, f"--model.init_args.init_from={world}", run=tmp_path / "folder",
        says=(f"init_from {world}", "neither a weights file, a run folder, nor an adapter export"),
    )  # fmt: skip
    torch.save({"layer.weight": torch.zeros(2, 2)}, tmp_path / "other.pt")
    refused(
        "run", *options, f"--model.init_args.init_from={tmp_path / 'other.pt'}", run=tmp_path / "file",
        says=(str(tmp_path / "other.pt"), "layer.weight", "Use the network"),
    )  # fmt: skip


def test_full_disk_and_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head_run: Path) -> None:
    """The disk fills up with the second checkpoint, and the record cannot be written either: what was there stays whole."""
    from experiments.runs import folder as run_folder

    write_results, write_checkpoint = run_folder.write_results, torch.save
    written: list[str] = []

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def one_more(checkpoint: dict, path: Path) -> None:
        written.append(str(path))
        if len(written) == 3:
            monkeypatch.setattr(run_folder, "write_results", full)
            full()
        write_checkpoint(checkpoint, path)

    monkeypatch.setattr(torch, "save", one_more)
    command = arguments("head", ONE_EPOCH, "--checkpoint.every_n_steps=1", f"--run_dir={tmp_path / 'run'}")
    answer = crosslight("run", *command)
    assert answer.status == 1
    assert "Traceback" not in answer.error
    for part in ("the disk is full", "Free some space", f"--run_dir {tmp_path / 'run'} resumes it", "results.json"):
        assert part in answer.error
    assert results(tmp_path / "run")["status"] == "running"
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2

    monkeypatch.setattr(torch, "save", write_checkpoint)
    monkeypatch.setattr(run_folder, "write_results", write_results)
    succeed("run", *command)
    assert (results(tmp_path / "run")["status"], results(tmp_path / "run")["attempts"]) == ("finished", 2)
    assert recalls(tmp_path / "run") == recalls(head_run)


def test_distributed_sampler_is_refused_before_processes_start(tmp_path: Path) -> None:
    options = ("--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.use_distributed_sampler=true")
    refused(
        "run", *arguments("head", ONE_EPOCH, *options), run=tmp_path / "run",
        says=("trainer.use_distributed_sampler is true", "Leave it false"),
    )  # fmt: skip


@pytest.mark.parametrize("option", ["limit_test_batches=2", "limit_val_batches=0.5", "fast_dev_run=true"])
def test_part_of_a_split_has_no_metrics(option: str, tmp_path: Path) -> None:
    refused(
        "run", *arguments("head", ONE_EPOCH, f"--trainer.{option}"), run=tmp_path / "run",
        says=("_batches is ", "--data.init_args.limits."),
    )  # fmt: skip


def test_name_of_a_second_data_module_that_is_taken(world: Path, tmp_path: Path) -> None:
    second = ("--evaluate.flickr30k=datamodules.coco.COCO", f"--evaluate.flickr30k.init_args.root={world / 'coco'}")
    refused("run", *arguments("head", ONE_EPOCH, *second), run=tmp_path / "run", says=("--evaluate.flickr30k", "another name"))


# ------------------------------------------------------------------------------------------ regions, Entities, UNITER

NETWORK, DATA = "--model.init_args.network.init_args", "--data.init_args"
TEXTS = {split: [f"txt_db/itm_flickr30k_{split}.db"] for split in ("train", "val", "test")}


def identities(root: Path, split: str) -> list[str]:
    return (root / "flickr30k_entities" / f"{split}.txt").read_text().split()


def put(root: Path, name: str, value: bytes | None) -> None:
    """Replaces or removes an image's regions."""
    with lmdb.open(str(root / "img_db" / "flickr30k" / "all")) as database, database.begin(write=True) as transaction:
        if value is None:
            transaction.delete(name.encode())
        else:
            transaction.put(name.encode(), value)


def test_image_database_cut_short(photographs: Path, tmp_path: Path) -> None:
    file = photographs / "img_db" / "flickr30k" / "all" / "data.mdb"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    refused(
        "run", *uniter("singular", f"{DATA}.root={photographs}"), run=tmp_path / "run",
        says=(str(file), "copied incompletely? Fetch it again"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("value", "says"),
    [(b"\x81\xa8features", "its value is not msgpack of plain arrays"), (None, "and holds nothing of it")],
    ids=["damaged", "gone"],
)
def test_image_whose_regions_are_damaged_or_gone(photographs: Path, tmp_path: Path, value: bytes | None, says: str) -> None:
    name = f"flickr30k_{int(identities(photographs, 'train')[4]):012d}.npz"
    put(photographs, name, value)
    options = (f"{DATA}.root={photographs}", f"{DATA}.batch_size=27")  # this image is among them
    refused("run", *uniter("singular", *options), run=tmp_path / "run", says=(name, says, "extract the image again"))


def test_image_that_the_region_database_never_had(photographs: Path, tmp_path: Path) -> None:
    identity = identities(photographs, "test")[-1]
    name, folder = f"flickr30k_{int(identity):012d}.npz", photographs / "img_db" / "flickr30k"
    with lmdb.open(str(folder / "all")) as database, database.begin(write=True) as transaction:
        names = json.loads(transaction.get(b"__keys__"))
        transaction.put(b"__keys__", json.dumps([each for each in names if each != name]).encode())
        transaction.delete(name.encode())
    counts = json.loads((folder / "nbb.json").read_text())
    del counts[name]
    (folder / "nbb.json").write_text(json.dumps(counts))
    refused(
        "run", *uniter("singular", f"{DATA}.root={photographs}"), run=tmp_path / "run",
        says=("flickr30k_entities test: 1 of 11 images have no regions", identity, name, "set regions.image_db"),
    )  # fmt: skip
    assert not (tmp_path / "run" / "checkpoints").exists()  # found before the training


@pytest.mark.parametrize("split", ["train", "test"])
def test_text_database_of_other_captions(photographs: Path, tmp_path: Path, split: str) -> None:
    identity = identities(photographs, split)[0]
    sentences = photographs / "flickr30k_entities" / "Sentences" / f"{identity}.txt"
    text = sentences.read_text()
    sentences.write_text(text.replace("]", " big]", 1))
    refused(
        "run", *uniter("singular", f"{DATA}.root={photographs}", f"{DATA}.regions.text_db={json.dumps(TEXTS)}"),
        run=tmp_path / "run",
        says=(f"caption {identity}#0", "big", f"itm_flickr30k_{split}.db", "crosslight data text-db", "regions.text_db to null"),
    )  # fmt: skip
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_text_database_of_other_images(photographs: Path, world: Path, tmp_path: Path) -> None:
    texts = json.dumps({split: [str(world / "coco" / "txt_db" / f"itm_coco_{split}.db")] for split in ("train", "val", "test")})
    options = (f"{DATA}.root={photographs}", f"{DATA}.regions.text_db={texts}")
    refused(
        "run", *uniter("singular", *options), run=tmp_path / "entities",
        says=("itm_coco_train.db", "have none of the images of flickr30k_entities", "give those of Flickr30k, or null"),
    )  # fmt: skip
    command = [part for part in uniter("singular", *options) if part != "configs/data/world_entities.yaml"]
    command[command.index("-c", 3)] = "--data=datamodules.flickr30k.Flickr30k"
    image_db = (f"{DATA}.regions.image_db=img_db/flickr30k", f"{DATA}.regions.kind=all")
    refused(
        "run", *command, *image_db, run=tmp_path / "other",
        says=("images have no regions, first image coco_train2014_", "set regions.image_db"),
    )  # fmt: skip


def test_malformed_entities_annotation(photographs: Path, tmp_path: Path) -> None:
    file = photographs / "flickr30k_entities" / "Annotations" / f"{identities(photographs, 'test')[3]}.xml"
    file.write_bytes(file.read_bytes()[:150])
    refused(
        "run", *uniter("singular", f"{DATA}.root={photographs}"), run=tmp_path / "run",
        says=(str(file), "is not valid XML", "not copied completely"),
    )  # fmt: skip
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_regions_that_are_not_the_annotated_boxes(photographs: Path, tmp_path: Path) -> None:
    for identity in identities(photographs, "val"):
        file = photographs / "flickr30k_entities" / "Annotations" / f"{identity}.xml"
        file.write_text(re.sub(r"(?s)(<xmin>)\d+(.*?<xmax>)\d+", r"\g<1>1\g<2>1", file.read_text()))  # a line at the left edge
    options = uniter("singular", f"{DATA}.root={photographs}", "--trainer.max_steps=1", "--trainer.val_check_interval=2")
    refused(
        "run",
        *options,
        run=tmp_path / "run",
        says=('phrase_regions "gt" takes region k for box k', 'set phrase_regions to "iou"'),
    )
    succeed("run", *options, f"{DATA}.phrase_regions=iou", f"--run_dir={tmp_path / 'iou'}")


def test_a_network_and_data_of_different_views(photographs: Path, tmp_path: Path) -> None:
    shutil.rmtree(photographs / "flickr30k-images")
    pixels = arguments("head", ONE_EPOCH, "-c", "configs/data/world_entities.yaml", f"{DATA}.root={photographs}")
    refused("run", *pixels, run=tmp_path / "pixels", says=(f"missing {photographs / 'flickr30k-images'}", "Fetch by hand"))
    refused(
        "run", *uniter("singular", f"{DATA}.regions=null"), run=tmp_path / "regions",
        says=("the network takes region features in place of pixels", "set its option regions"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("option", "says"),
    [
        (f"{NETWORK}.feature_width=64", ("img_db/flickr30k/all has features of width 108", "the network takes 64")),
        (f"{NETWORK}.tokenizer=null", ("captions", "regions.text_db", "the network's tokenizer")),
        (f"{DATA}.ranking.candidates=27", ("only 26 candidate other images", "set ranking.candidates to at most 26")),
        ("--model.init_args.hard_negatives=7", ("7 hard negatives of 6 candidates", "lower model.hard_negatives")),
        ("--model.init_args.iais.init_args.layers=[0, 2]", ("IAIS: layers [0, 2]", "layers 0 to 1")),
        ("--trainer.precision=bf16-true", ("trainer.precision is bf16-true", "bf16-mixed, 16-mixed, or 32-true")),
        ("--model.init_args.isda_layer=2", ("isda_layer is 2", "layers 0 to 1")),
    ],
)
def test_options_that_do_not_fit_each_other(option: str, says: tuple[str, ...], tmp_path: Path) -> None:
    refused("run", *uniter("singular", option), run=tmp_path / "run", says=says)


def test_folds_that_do_not_divide_are_found_before_the_pairs_are_scored(uniter_run: Path, tmp_path: Path) -> None:
    own = ("-c", str(uniter_run / "config.yaml"), "--ckpt_path", str(uniter_run / "checkpoints" / "best.ckpt"))
    refused("test", *own, "--model.init_args.folds=3", run=tmp_path / "run", says=("folds is 3", "11 images do not divide"))
    assert not (tmp_path / "run" / "scores").exists()
