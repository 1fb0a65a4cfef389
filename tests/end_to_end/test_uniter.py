"""UNITER with IAIS through the same commands: what a run holds, other views of the data, starting from runs, resuming; BEiT-3."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from end_to_end import (
    BATCH,
    BEIT3,
    RECALLS,
    STEPS,
    TEST,
    arguments,
    crosslight,
    forked,
    metrics,
    recalls,
    results,
    scores,
    succeed,
    uniter,
    weights,
)
from forks import ended
from kill_switch import note_scores, places
from naive_recalls import naive_recalls
from torch import Tensor

import lightning_modules
from datamodules.flickr30k_entities import Flickr30kEntities
from datamodules.loading.region_files import RegionFiles
from lightning_modules.metrics.score_store import ScoreStore
from lightning_modules.ranking import RankingModule

NETWORK = "--model.init_args.network.init_args"
OBJECTS = {
    "isda", "isda_mean", "isda_pairs", "iais_singular", "iais_distributed", "iais_pairs", "evenness_words", "evenness_regions",
}  # fmt: skip
HEAD = {"network.rank.weight", "network.rank.bias"}
DATA = "flickr30k_entities"
STEPPED = 6  # optimizer steps of a run


def recalls_of(scores_IT: Tensor) -> dict[str, float]:
    return naive_recalls(scores_IT.float(), torch.eye(scores_IT.shape[1]))


def region_data(world: Path, part: str) -> dict[str, Any]:
    """Arguments of a data module that reads UNITER's databases and nothing else."""
    splits = {"train": ["train"], "val": ["val"], "test": ["test"]}
    databases = ["flickr30k"] if part == "flickr30k" else ["coco_train2014", "coco_val2014"]
    if part == "coco":
        splits["train"].append("restval")
    return {
        "root": str(world / part),
        "num_workers": 0,
        "regions": {
            "image_db": [f"img_db/{name}" for name in databases],
            "kind": "all",
            "text_db": {split: [f"txt_db/itm_{part}_{name}.db" for name in names] for split, names in splits.items()},
        },
    }


# ------------------------------------------------------------------------------------------------- what a run holds


def test_results_have_recalls_and_distances(uniter_run: Path) -> None:
    found = results(uniter_run)
    assert (found["status"], found["name"], found["error"]) == ("finished", "distributed", None)
    assert (found["fit"]["steps"], found["fit"]["monitor"]) == (STEPPED, "val/rsum")
    assert found["cost"]["pairs"] == 2 * 2 * BATCH * STEPPED  # both sides, two micro-batches a step
    assert [(each["data"], each["split"]) for each in found["evaluations"]] == [
        (DATA, "test"), ("few", "test[:5]"),
    ]  # fmt: skip
    for evaluation, images in zip(found["evaluations"], (TEST, 5), strict=True):
        values = evaluation["metrics"]
        assert values.keys() >= RECALLS | OBJECTS
        assert not any(name.startswith(("folds_", "compat_")) for name in values)
        assert all(math.isfinite(value) for value in values.values())
        assert values["isda"] > values["isda_mean"] > 0
        assert min(values["iais_singular"], values["iais_distributed"]) > 0
        assert min(values["evenness_words"], values["evenness_regions"]) > 0
        assert max(values["evenness_words"], values["evenness_regions"]) <= 1
        assert 0 < values["isda_pairs"] <= values["iais_pairs"] <= 5 * images
        queries = np.load(uniter_run / evaluation["per_query_file"])
        assert len(queries["i2t_rank"]) == images
        assert len(queries["t2i_rank"]) == 5 * images
        assert values["t2i_r5"] == pytest.approx(100 * np.mean(queries["t2i_rank"] <= 5))


def test_recalls_are_those_of_the_kept_scores(uniter_run: Path) -> None:
    whole, few = scores(uniter_run), scores(uniter_run, "few")
    assert whole.shape == (TEST, 5 * TEST)
    torch.testing.assert_close(few, whole[:5, :25])
    assert whole.std(0).min() > 1e-3  # it tells images apart
    for name, matrix in ((DATA, whole), ("few", few)):
        values = recalls(uniter_run, name)
        assert {key: values[key] for key in RECALLS} == pytest.approx(recalls_of(matrix), abs=1e-3)


def test_metrics_have_both_sides_the_weight_and_isda_of_validation(uniter_run: Path) -> None:
    columns = {
        name: metrics(uniter_run, f"train/{name}")
        for name in ("loss", "rank_hard_texts", "rank_hard_images", "iais_vision_hard_texts", "iais_language_hard_images",
                     "iais_weight")
    }  # fmt: skip
    for name, rows in columns.items():
        assert [step for step, _ in rows] == list(range(STEPPED)), name
    with open(uniter_run / "metrics.csv") as file:
        header = file.readline().strip().split(",")
    assert {name for name in header if name.startswith("train/")} == {f"train/{name}" for name in columns}
    for step in range(STEPPED):
        value = {name: rows[step][1] for name, rows in columns.items()}
        assert value["iais_weight"] == pytest.approx(math.exp((step / STEPPED - 1) * 5), rel=1e-5)  # Eq. 16
        aligned = value["iais_vision_hard_texts"] + value["iais_language_hard_images"]
        rank = value["rank_hard_texts"] + value["rank_hard_images"]
        assert value["loss"] == pytest.approx(rank + 8 * value["iais_weight"] * aligned, rel=1e-4)  # summed over 8, as released
    for name in ("isda", "iais_singular", "iais_distributed", "evenness_words", "rsum"):
        assert [step for step, _ in metrics(uniter_run, f"val/{name}")] == [2, 5]


def test_load_gives_the_tested_model_whose_pairs_score_the_same_one_by_one(uniter_run: Path, world: Path) -> None:
    model = lightning_modules.load(uniter_run)
    assert not model.training
    regions = RegionFiles("img_db/flickr30k", "all")
    data = Flickr30kEntities(str(world / "flickr30k"), num_workers=0, eval_batch_size=1, regions=regions)
    data.connect(model.network.inputs)
    images, texts, _ = ({int(batch.index_B[0]): batch for batch in loader} if place < 2 else {}
                        for place, loader in enumerate(data.evaluation_loaders("test")))  # fmt: skip
    row = torch.tensor([0])
    with torch.no_grad():
        for image, text in ((0, 0), (3, 54), (10, 7), (5, 30)):
            embedded = model.network.embed_images(images[image]), model.network.embed_texts(texts[text])
            found = model.network.score_pairs(*embedded, row, row)[0]
            torch.testing.assert_close(found, scores(uniter_run)[image, text], atol=1e-5, rtol=1e-5)


def test_test_gives_folds_and_the_released_count_when_asked(uniter_run: Path, tmp_path: Path) -> None:
    own = ("-c", str(uniter_run / "config.yaml"), "--ckpt_path", str(uniter_run / "checkpoints" / "best.ckpt"))
    more = ("--evaluate=null", "--model.init_args.folds=2", "--model.init_args.compat=true", "--data.init_args.limits.test=10")
    succeed("test", *own, *more, f"--run_dir={tmp_path / 'test'}")
    (tested,) = results(tmp_path / "test")["evaluations"]
    said = "mean over 2 galleries of 5 images, consecutive in the split, with their captions"
    assert (tested["notes"]["folds"], tested["notes"]["columns"]["folds_i2t_r1"]) == (said, "5 i2t R@1")
    assert tested["protocol"] == f"{RankingModule.protocol}; folds_...: {said}"
    values, matrix = recalls(tmp_path / "test", DATA), scores(uniter_run)[:10, :50]
    halves = [recalls_of(matrix[5 * i : 5 * i + 5, 25 * i : 25 * i + 25]) for i in (0, 1)]
    for key in RECALLS:
        assert values[f"folds_{key}"] == pytest.approx((halves[0][key] + halves[1][key]) / 2, abs=1e-3)
    assert {key: values[key] for key in RECALLS} == pytest.approx(recalls_of(matrix), abs=1e-3)
    # utils/itm_eval.py: (rank < k).sum() over both columns of nonzero(), captions' rows and ranks
    own_T = torch.arange(50) // 5
    hits = (matrix.T.topk(10, dim=1).indices == own_T[:, None]).nonzero()
    for k in (1, 5, 10):
        assert values[f"compat_t2i_r{k}"] == pytest.approx(100 * int((hits < k).sum()) / 50, abs=1e-3)
        assert values[f"compat_i2t_r{k}"] == values[f"i2t_r{k}"]
    assert values["compat_t2i_r10"] > values["t2i_r10"]


def test_captions_cut_too_short_for_two_objects_have_no_distance(uniter_run: Path, tmp_path: Path) -> None:
    own = ("-c", str(uniter_run / "config.yaml"), "--ckpt_path", str(uniter_run / "checkpoints" / "best.ckpt"))
    succeed("test", *own, "--evaluate=null", f"{NETWORK}.max_tokens=4", f"--run_dir={tmp_path / 'test'}")
    values = recalls(tmp_path / "test", DATA)
    assert values.keys() >= RECALLS
    assert not OBJECTS & values.keys()
    assert "NaN" not in (tmp_path / "test" / "results.json").read_text()  # which is no JSON


# ---------------------------------------------------------------------------------------- other views, other networks


def test_databases_alone_give_the_same_scores(uniter_run: Path, world: Path, tmp_path: Path) -> None:
    """Flickr30k's and COCO's captions as token ids, for a network without a tokenizer; nothing trains."""
    evaluate = {"coco": {"class_path": "datamodules.coco.COCO", "init_args": region_data(world, "coco")}}
    data = {"class_path": "datamodules.flickr30k.Flickr30k", "init_args": region_data(world, "flickr30k")}
    (tmp_path / "data.yaml").write_text(json.dumps({"data": data, "evaluate": evaluate}))
    options = ("-c", str(tmp_path / "data.yaml"), f"{NETWORK}.tokenizer=null", "--model.init_args.tuning=frozen")
    base = [part for part in uniter("baseline") if not part.startswith("--data.")]
    base[base.index("configs/data/world_entities.yaml")] = "configs/data/flickr30k_regions.yaml"
    succeed("run", *base, *options, f"--model.init_args.init_from={uniter_run}", f"--run_dir={tmp_path / 'run'}")
    found = results(tmp_path / "run")
    assert (found["fit"]["skipped"], found["parent"]) == ("nothing trains", str(uniter_run))
    torch.testing.assert_close(scores(tmp_path / "run", "flickr30k"), scores(uniter_run))
    values, expected = recalls(tmp_path / "run", "flickr30k"), recalls(uniter_run, DATA)
    assert {key: values[key] for key in RECALLS} == {key: expected[key] for key in RECALLS}
    assert not OBJECTS & values.keys()
    coco = recalls(tmp_path / "run", "coco")
    assert {key: coco[key] for key in RECALLS} == pytest.approx(recalls_of(scores(tmp_path / "run", "coco")), abs=1e-3)
    assert found["data"]["coco"]["splits"]["train"] == {"images": 11, "captions": 55}  # with restval


def test_training_on_token_ids_alone(world: Path, tmp_path: Path) -> None:
    data = {"class_path": "datamodules.coco.COCO", "init_args": {**region_data(world, "coco"), "batch_size": BATCH}}
    data["init_args"]["ranking"] = {"candidates": 6}
    (tmp_path / "data.yaml").write_text(json.dumps({"data": data}))
    base = [part for part in uniter("singular_paper") if not part.startswith("--data.")]
    base[base.index("configs/data/world_entities.yaml")] = "configs/data/coco_regions.yaml"
    options = (f"{NETWORK}.tokenizer=null", "--trainer.max_steps=2", "--trainer.val_check_interval=4")
    succeed("run", *base, "-c", str(tmp_path / "data.yaml"), *options, f"--run_dir={tmp_path / 'run'}")
    assert results(tmp_path / "run")["fit"]["steps"] == 2
    weight = metrics(tmp_path / "run", "train/iais_weight")
    assert weight == [(0, pytest.approx(math.exp(-5))), (1, pytest.approx(math.exp(-2.5)))]
    for anchor in ("language", "vision"):  # the paper's reading has both on every positive
        for side in ("hard_texts", "hard_images"):
            assert all(value > 0 for _, value in metrics(tmp_path / "run", f"train/iais_{anchor}_{side}"))


def test_beit3_with_iais_trains_its_adapter(tmp_path: Path) -> None:
    options = (
        "-c",
        "experiments/papers/iais/variants/beit3_singular.yaml",
        "--trainer.max_epochs=1",
        f"--run_dir={tmp_path / 'run'}",
    )
    succeed("run", *arguments("mwa", *BEIT3, "--model.init_args.optimization.lr=0.01", *options))
    found = results(tmp_path / "run")
    assert (found["status"], found["name"], found["fit"]["steps"]) == ("finished", "beit3_singular", STEPS)
    columns = {
        name: [value for _, value in metrics(tmp_path / "run", f"train/{name}")]
        for name in ("loss", "image_to_text", "text_to_image", "iais_language", "iais_vision", "iais_weight")
    }
    for step in range(STEPS):
        value = {name: rows[step] for name, rows in columns.items()}
        assert value["iais_weight"] == pytest.approx(math.exp((step / STEPS - 1) * 5), rel=1e-5)
        assert min(value["iais_language"], value["iais_vision"]) > 0
        contrastive = (value["image_to_text"] + value["text_to_image"]) / 2
        aligned = value["iais_language"] + value["iais_vision"]  # the mean over pairs, Eq. 15
        assert value["loss"] == pytest.approx(contrastive + value["iais_weight"] * aligned, rel=1e-4)
    trained = weights(tmp_path / "run", "best.ckpt")
    zero_at_the_start = [
        key for key in trained if key.endswith(("knowledge_extractor.image.up.weight", "knowledge_extractor.text.up.weight"))
    ]
    assert len(zero_at_the_start) == 4  # two layers, two sides
    assert all(trained[key].any() for key in zero_at_the_start)
    assert recalls(tmp_path / "run").keys() >= RECALLS


# ------------------------------------------------------------------------------------------ starting from it, resuming


def test_a_run_starts_from_another(uniter_run: Path, tmp_path: Path) -> None:
    options = (
        f"--model.init_args.init_from={uniter_run}", "--model.init_args.tuning=head", "--trainer.max_steps=1",
        "--trainer.val_check_interval=2", "--data.init_args.object_pairs=4",
    )  # fmt: skip
    succeed("run", *uniter("baseline", *options, f"--run_dir={tmp_path / 'run'}"))
    assert results(tmp_path / "run")["parent"] == str(uniter_run)
    parent, child = weights(uniter_run, "best.ckpt"), weights(tmp_path / "run", "best.ckpt")
    assert set(child) == HEAD
    assert parent.keys() >= HEAD
    assert not torch.equal(child["network.rank.weight"], parent["network.rank.weight"])
    state = lightning_modules.load(tmp_path / "run").network.state_dict()
    for key, tensor in (parent | child).items():
        assert torch.equal(state[key.removeprefix("network.")], tensor), key
    assert recalls(tmp_path / "run", DATA)["iais_pairs"] == 4
    assert not [step for step, _ in metrics(tmp_path / "run", "train/iais_weight")]  # the row without IAIS


def test_predict_says_why_not(uniter_run: Path, tmp_path: Path) -> None:
    own = ("-c", str(uniter_run / "config.yaml"), "--ckpt_path", str(uniter_run / "checkpoints" / "best.ckpt"))
    answer = crosslight("predict", *own, f"--run_dir={tmp_path / 'run'}")
    assert answer.status == 2
    assert "scores pairs and has no embedding of an image alone; `test` keeps its score matrix" in answer.error
    assert results(tmp_path / "run")["status"] == "failed"


def test_help_of_the_module_and_the_data_names_their_options() -> None:
    model = " ".join(succeed("run", "--model.help", "lightning_modules.ranking.RankingModule").out.split())
    for part in (
        "Hard-negative fine-tuning of UNITER, ViLT",
        "--model.hard_negatives HARD_NEGATIVES How many of the candidates",
        "IAIS; null is plain ranking.",
        "relation_alignment.IAIS",
        "--model.optimization.algorithm {adamw,uniter_adamw}",
    ):
        assert part in model  # fmt: skip
    data = " ".join(succeed("run", "--data.help", "datamodules.flickr30k_entities.Flickr30kEntities").out.split())
    for part in (
        "--data.phrase_regions {gt,iou} Which regions show a phrase.",
        "--data.ranking.candidates CANDIDATES Random",
        "For a network that scores pairs: what a training batch consists of",
        "--data.regions REGIONS The data set's databases",
    ):
        assert part in data  # fmt: skip


def test_killed_three_times_it_ends_as_if_left_alone(uniter_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, with dropout, by the same command: killed when 5 of 6 steps are done (of the 3rd there is a checkpoint, after
    its validation), in the last validation, and in the test, after 4 units of pairs."""
    run, before, after, log = (tmp_path / name for name in ("run", "before", "after", "log"))
    command = uniter(
        "distributed", f"{NETWORK}.dropout=0.1", "--model.init_args.optimization.lr=0.005", "--checkpoint.every_n_steps=3",
        "--trainer.callbacks=kill_switch.KillSwitch", "--trainer.callbacks.step=5",
        f"--trainer.callbacks.spent={tmp_path / 'power cut'}", f"--run_dir={run}",
    )  # fmt: skip

    def is_killed(first: Callable[[], None] | None) -> None:
        with forked(log, "run", *command, first=first) as process:
            status, printed = ended(process, log)
        assert status == -signal.SIGKILL, printed
        assert (results(run)["status"], results(run)["evaluations"]) == ("running", [])

    def steps_kept() -> int:
        return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]

    is_killed(None)
    assert (tmp_path / "power cut").exists()
    assert (steps_kept(), len(metrics(run, "val/rsum"))) == (3, 1)
    is_killed(partial(note_scores, tmp_path / "validation", 2, kept=False))
    assert (steps_kept(), len(metrics(run, "val/rsum"))) == (3, 1)
    is_killed(partial(note_scores, before, 4))
    assert (steps_kept(), len(before.read_text().splitlines())) == (6, 4)

    with monkeypatch.context() as patch:
        patch.setattr(ScoreStore, "write", ScoreStore.write)  # puts it back afterwards
        note_scores(after)
        succeed("run", *command)
    assert sorted(places(before) + places(after)) == list(range(TEST * 5 * TEST))  # every pair once
    cut, whole = results(run), results(uniter_run)
    assert (cut["status"], cut["attempts"]) == ("finished", 4)
    assert cut["fit"] == whole["fit"]
    for name in ("last.ckpt", "best.ckpt"):
        ours, theirs = weights(run, name), weights(uniter_run, name)
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert torch.equal(ours[key], theirs[key]), (name, key)
    assert recalls(run, DATA) == recalls(uniter_run, DATA)
    assert torch.equal(scores(run), scores(uniter_run))
    tested = f"final/{DATA}/test/isda"
    for column in ("train/loss", "train/iais_weight", "train/iais_vision_hard_texts", "val/isda", "val/rsum", tested):
        assert metrics(run, column) == metrics(uniter_run, column), column
    assert len(metrics(run, "train/loss")) == STEPPED
