"""ViLT with IAIS through the same commands: what a run holds, an adapter on it, and a run that is killed."""

from __future__ import annotations

import math
import signal
from pathlib import Path

import pytest
import torch
from end_to_end import forked, metrics, recalls, results, scores, succeed, vilt, weights
from forks import ended

import lightning_modules
from datamodules.flickr30k_entities import Flickr30kEntities

DATA = "flickr30k_entities"
NETWORK = "--model.init_args.network.init_args"


def test_results_have_recalls_and_distances_of_patches(vilt_run: Path) -> None:
    found = results(vilt_run)
    assert (found["status"], found["name"], found["fit"]["steps"]) == ("finished", "singular", 6)
    assert found["data"][DATA]["further"]["objects"] == {"regions": "patches", "pairs": None}
    values = recalls(vilt_run, DATA)
    assert all(math.isfinite(value) for value in values.values())
    assert min(values["isda"], values["iais_singular"], values["iais_distributed"]) > 0
    assert values["isda_pairs"] > 10
    for step, weight in metrics(vilt_run, "train/iais_weight"):
        assert weight == pytest.approx(math.exp((step / 6 - 1) * 5), rel=1e-5)
    assert all(value > 0 for _, value in metrics(vilt_run, "train/iais_vision_hard_texts"))


def test_load_gives_the_tested_model_whose_pairs_score_the_same_one_by_one(vilt_run: Path, world: Path) -> None:
    model = lightning_modules.load(vilt_run)
    data = Flickr30kEntities(str(world / "flickr30k"), num_workers=0, eval_batch_size=1)
    data.connect(model.network.inputs)
    images, texts = ({int(batch.index_B[0]): batch for batch in loader} for loader in data.evaluation_loaders("test")[:2])
    row = torch.tensor([0])
    with torch.no_grad():
        for image, text in ((0, 0), (3, 54), (10, 7)):
            embedded = model.network.embed_images(images[image]), model.network.embed_texts(texts[text])
            found = model.network.score_pairs(*embedded, row, row)[0]
            torch.testing.assert_close(found, scores(vilt_run)[image, text], atol=1e-5, rtol=1e-5)


def test_an_adapter_alone_trains(vilt_run: Path, tmp_path: Path) -> None:
    options = (
        f"--model.init_args.init_from={vilt_run}", "--model.init_args.tuning=adapter",
        "--model.init_args.adapter=lightning_modules.adapters.multiway.MultiWayAdapter",
        "--model.init_args.optimization.lr=0.01", "--trainer.max_steps=2", "--trainer.val_check_interval=4",
        "--data.init_args.object_pairs=4",
    )  # fmt: skip
    succeed("run", *vilt("distributed", *options, f"--run_dir={tmp_path / 'run'}"))
    trained = weights(tmp_path / "run", "best.ckpt")
    assert trained
    assert all(".multiway." in key for key in trained)
    assert any(tensor.any() for key, tensor in trained.items() if key.endswith("knowledge_extractor.up.weight"))


def test_killed_it_ends_as_if_left_alone(vilt_run: Path, tmp_path: Path) -> None:
    """Bit for bit, with dropout, by the same command: killed when 5 of 6 steps are done; of the 3rd there is a checkpoint."""
    run, log = tmp_path / "run", tmp_path / "log"
    command = vilt(
        "singular", f"{NETWORK}.config.hidden_dropout_prob=0.1", "--model.init_args.optimization.lr=0.005",
        "--checkpoint.every_n_steps=3", "--trainer.callbacks=kill_switch.KillSwitch", "--trainer.callbacks.step=5",
        f"--trainer.callbacks.spent={tmp_path / 'power cut'}", f"--run_dir={run}",
    )  # fmt: skip
    with forked(log, "run", *command) as process:
        status, printed = ended(process, log)
    assert status == -signal.SIGKILL, printed
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 3
    succeed("run", *command)
    for name in ("last.ckpt", "best.ckpt"):
        ours, theirs = weights(run, name), weights(vilt_run, name)
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert torch.equal(ours[key], theirs[key]), (name, key)
    assert torch.equal(scores(run), scores(vilt_run))
    for column in ("train/loss", "train/iais_vision_hard_texts", "val/isda", "val/rsum"):
        assert metrics(run, column) == metrics(vilt_run, column), column
