"""What follows a run that is finished: further epochs, new training from its weights, the vectors of any split."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from end_to_end import STEPS, VAL, arguments, crosslight, metrics, results, succeed

from experiments.runs.results import read_results
from experiments.runs.seeds import configuration_of


def test_a_finished_run_goes_on_in_a_folder_of_its_own(head_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = crosslight("run", *arguments("head", "--trainer.max_epochs=2", f"--run_dir={head_run}"))
    assert answer.status == 2
    last = head_run / "checkpoints" / "last.ckpt"
    assert "trainer.max_epochs" in answer.error
    assert f"--ckpt_path={last} goes on where it stopped, for more epochs" in answer.error
    assert f"--model.init_args.init_from={head_run} starts new training from its best weights" in answer.error

    more = tmp_path / "more"
    monkeypatch.chdir(tmp_path)
    answer = succeed(
        "run", "-c", str(head_run / "config.yaml"), "--trainer.max_epochs=2", f"--ckpt_path={last}", "--run_dir=more"
    )
    first, *rest = answer.out.splitlines()
    said = f"training: {STEPS} steps an epoch, 2 epochs, {2 * STEPS} steps in all; {STEPS} of them are done; "
    assert first.startswith(said)
    assert first.endswith(" parameters train")
    assert "          crosslight index IMAGES --run more" in rest
    assert rest[-1] == "results:  more/results.json"
    found = results(more)
    assert (found["fit"]["steps"], found["resumed_from"]) == (2 * STEPS, str(last))
    assert {step for step, _ in metrics(more, "train/loss")} == set(range(STEPS, 2 * STEPS))  # the optimizer's steps go on
    state = torch.load(more / "checkpoints" / "last.ckpt", weights_only=True)["optimizer_states"][0]["state"]
    assert {int(each["step"]) for each in state.values()} == {2 * STEPS}

    of_more = read_results(more)
    one, other = (configuration_of(more, each) for each in (of_more, replace(of_more, resumed_from=None)))
    assert one.digest != other.digest
    assert str(one.options["ckpt_path"]).startswith("checkpoints/last.ckpt of run ")


def test_what_cannot_go_on_is_refused(head_run: Path, tmp_path: Path) -> None:
    last = head_run / "checkpoints" / "last.ckpt"
    config = ("-c", str(head_run / "config.yaml"), f"--ckpt_path={last}")
    answer = crosslight("run", *config, "--model.init_args.optimization.lr=0.5", f"--run_dir={tmp_path / 'run'}")
    assert answer.status == 2
    assert "optimization.lr), so it cannot be resumed under this one" in answer.error
    assert "--model.init_args.init_from" in answer.error
    for option in ("accumulate_grad_batches=2", "limit_train_batches=1"):
        longer = ("--trainer.max_epochs=2", f"--trainer.{option}")
        answer = crosslight("run", *config, *longer, f"--run_dir={tmp_path / 'run'}")
        assert answer.status == 2
        assert f"it differs in: trainer.{option.partition('=')[0]})" in answer.error
    frozen = ("--model.init_args.tuning=frozen", f"--model.init_args.init_from={head_run}")
    answer = crosslight("run", *config, *frozen, f"--run_dir={tmp_path / 'run'}")
    assert answer.status == 2
    assert f"nothing trains in this model, so nothing goes on from {last}" in answer.error


def test_predict_embeds_any_split_and_names_unknown_words(
    head_run: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strange = tmp_path / "flickr30k"
    shutil.copytree(world / "flickr30k", strange)
    file = strange / "dataset_flickr30k.json"
    content = json.loads(file.read_text())
    image = next(image for image in content["images"] if image["split"] == "val")
    image["sentences"][0]["raw"] = "a zebra beside a xylophone and a zebra"
    file.write_text(json.dumps(content))
    given = ("-c", str(head_run / "config.yaml"), "--ckpt_path", str(head_run / "checkpoints" / "best.ckpt"))
    root = f"--data.init_args.root={strange}"
    answer = succeed("predict", *given, root, "--split=val", f"--run_dir={tmp_path / 'val'}")
    said = (
        "crosslight: flickr30k val: the network's tokenizer does not know 2 words of the captions, which come 3 times: zebra, "
        "xylophone."
    )
    assert said in answer.error
    found = np.load(tmp_path / "val" / "embeddings.npz")
    assert (found["images"].shape[0], found["texts"].shape[0], str(found["split"])) == (VAL, 5 * VAL, "val")
    records = [image for image in content["images"] if image["split"] == "val"]
    assert len(set(found["image_ids"])) == len(records)
    assert np.allclose(np.linalg.norm(found["images"], axis=1), 1, atol=1e-3)

    for split, says in (("trian", "flickr30k has no split 'trian'"), (str(tmp_path), f"crosslight embed {tmp_path} --run RUN")):
        answer = crosslight("predict", *given, f"--split={split}", f"--run_dir={tmp_path / 'none'}")
        assert answer.status == 2
        assert says in answer.error
