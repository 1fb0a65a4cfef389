"""`crosslight run`: what a run folder holds, and that models come back from it as they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from end_to_end import RECALLS, STEPS, TEST, TRAIN, VAL, arguments, crosslight, metrics, recalls, results, succeed, weights
from naive_recalls import embed, naive_recalls

import lightning_modules

SCHEMA_KEYS = {
    "schema", "status", "command", "argv", "name", "config_hash", "scale", "parent", "seed", "started", "finished", "seconds",
    "attempts", "provenance", "data", "cost", "fit", "evaluations", "error", "wandb_id", "resumed_from",
}  # fmt: skip
TOWER_BLOCKS = {"image": "image.model.blocks.{}.multiway.", "text": "text.model.encoder.layer.{}.multiway."}
ADAPTER = "--model.init_args.adapter.init_args"


@pytest.mark.parametrize("row", ["full", "mwa", "head"])
def test_results_are_complete(row: str, request: pytest.FixtureRequest, full_run: Path) -> None:
    run: Path = request.getfixturevalue(f"{row}_run")
    found = results(run)
    assert set(found) == SCHEMA_KEYS
    assert found["status"] == "finished"
    assert found["error"] is None
    assert found["attempts"] == 1
    assert (found["command"], found["name"], found["scale"]) == ("run", row, "miniature")
    assert found["seed"] == (3 if row == "full" else 0)
    assert found["parent"] == (str(full_run) if row == "mwa" else None)
    assert found["provenance"]["git"].keys() == {"revision", "dirty"}
    assert torch.__version__.startswith(found["provenance"]["versions"]["torch"])
    assert found["provenance"]["device"]["kind"] == "cpu"
    assert found["provenance"]["device"]["world_size"] == 1
    epochs = 3 if row == "mwa" else 1
    assert found["fit"]["steps"] == found["cost"]["steps"] == STEPS * epochs
    assert found["cost"]["pairs"] == 8 * STEPS * epochs
    for measured in ("tunable_parameters", "tunable_percent", "peak_memory_bytes", "seconds_per_epoch", "pairs_per_second"):
        assert found["cost"][measured] > 0
    described = found["data"]["flickr30k"]
    assert len(described["fingerprint"]) == 16
    assert {split: counts["images"] for split, counts in described["splits"].items()} == {
        "train": TRAIN, "val": VAL, "test": TEST,
    }  # fmt: skip
    names = ["flickr30k", "other"] if row == "mwa" else ["flickr30k"]
    assert [evaluation["data"] for evaluation in found["evaluations"]] == names
    for evaluation in found["evaluations"]:
        assert evaluation["split"] == "test"
        assert evaluation["protocol"]
        assert evaluation["metrics"].keys() >= RECALLS
        assert evaluation["metrics"]["rsum"] == pytest.approx(
            sum(evaluation["metrics"][key] for key in RECALLS - {"rsum"}), abs=1e-3
        )
        queries = np.load(run / evaluation["per_query_file"])
        for direction in ("i2t", "t2i"):
            assert evaluation["metrics"][f"{direction}_r5"] == pytest.approx(100 * np.mean(queries[f"{direction}_rank"] <= 5))
    assert yaml.safe_load((run / "config.yaml").read_text())["seed_everything"] == found["seed"]


def test_the_second_data_module_has_its_own_numbers(mwa_run: Path) -> None:
    found = results(mwa_run)
    assert found["data"]["other"]["kind"] == "COCO"
    assert found["data"]["other"]["fingerprint"] != found["data"]["flickr30k"]["fingerprint"]
    sizes = {
        evaluation["data"]: len(np.load(mwa_run / evaluation["per_query_file"])["i2t_rank"])
        for evaluation in found["evaluations"]
    }
    assert sizes == {"flickr30k": TEST, "other": found["data"]["other"]["splits"]["test"]["images"]}


def test_the_best_checkpoint_is_chosen_by_validation_and_nothing_else(mwa_run: Path) -> None:
    """Test numbers exist only after the fit, and the tested weights are those of the best validation."""
    found = results(mwa_run)
    assert found["fit"]["monitor"] == "val/rsum"
    validations = metrics(mwa_run, "val/rsum")
    assert len(validations) == 3
    best_step, best = max(validations, key=lambda row: (row[1], -row[0]))
    assert found["fit"]["best_value"] == pytest.approx(best)
    checkpoint = torch.load(mwa_run / found["fit"]["best_checkpoint"], weights_only=True)
    assert checkpoint["global_step"] == best_step + 1
    with open(mwa_run / "metrics.csv") as file:
        tested = [column for column in file.readline().strip().split(",") if "test" in column]
    for column in tested:
        assert {step for step, _ in metrics(mwa_run, column)} <= {3 * STEPS, best_step + 1}


def test_checkpoints_hold_what_trained_only(mwa_run: Path, head_run: Path, full_run: Path) -> None:
    heads = {"network.image_projection.weight", "network.text_projection.weight", "network.logit_scale"}
    assert set(weights(head_run, "best.ckpt")) == heads
    parts = {
        "knowledge_extractor.down",
        "knowledge_extractor.up",
        "alignment_enhancer.fc1",
        "alignment_enhancer.sub_norm",
        "alignment_enhancer.fc2",
    }
    keys = set(weights(mwa_run, "best.ckpt"))
    assert keys == set(weights(mwa_run, "last.ckpt"))
    adapter = {
        f"network.{blocks.format(block)}{part}.{kind}"
        for blocks, count in ((TOWER_BLOCKS["image"], 3), (TOWER_BLOCKS["text"], 2))
        for block in range(count)
        for part in parts
        for kind in ("weight", "bias")
    }
    assert keys == adapter  # the full run brought the heads: they stay as they are
    assert set(weights(full_run, "best.ckpt")) & keys == set()
    assert set(weights(full_run, "best.ckpt")) >= heads
    trained = sum(tensor.numel() for tensor in weights(mwa_run, "best.ckpt").values())
    size = (mwa_run / "checkpoints" / "best.ckpt").stat().st_size
    assert size < 3 * 4 * trained + 200_000  # in fp32: what trains and AdamW's two moments of it


def test_load_gives_the_tested_model(mwa_run: Path, full_run: Path, head_run: Path, world: Path) -> None:
    for run in (mwa_run, full_run, head_run):
        model = lightning_modules.load(run)
        assert not model.training
        expected = naive_recalls(*embed(model, world))
        measured = recalls(run)
        assert {key: measured[key] for key in RECALLS} == pytest.approx(expected, abs=1e-3)


def test_test_and_export_reproduce_the_run(mwa_run: Path, world: Path, tmp_path: Path) -> None:
    config, best = mwa_run / "config.yaml", mwa_run / "checkpoints" / "best.ckpt"
    succeed("test", "-c", str(config), "--ckpt_path", str(best), f"--run_dir={tmp_path / 'test'}")
    assert recalls(tmp_path / "test") == recalls(mwa_run)
    assert recalls(tmp_path / "test", "other") == recalls(mwa_run, "other")

    succeed("export", str(mwa_run), str(tmp_path / "export"))
    exported, trained = lightning_modules.load(tmp_path / "export"), lightning_modules.load(mwa_run)
    for ours, theirs in zip(embed(exported, world), embed(trained, world), strict=True):
        assert torch.equal(ours, theirs)


def test_an_adapter_started_from_the_full_run_leaves_it_alone(mwa_run: Path, full_run: Path) -> None:
    parent = weights(full_run, "best.ckpt")
    child = lightning_modules.load(mwa_run).network.state_dict()
    fresh = {key for key in child if f"network.{key}" not in parent}
    assert fresh
    assert all(".multiway." in key for key in fresh)
    old = [key for key in child if key not in fresh]
    assert len(old) > 50
    for key in old:
        assert torch.equal(child[key], parent[f"network.{key}"]), key


@pytest.mark.parametrize(("row", "options"), [
    ("frozen", ("--trainer.max_epochs=null",)),
    ("mwa", (f"{ADAPTER}.knowledge_extractor_mid=0", f"{ADAPTER}.alignment_enhancer_mid=0")),
])  # fmt: skip
def test_where_nothing_trains_run_tests_the_network_as_it_is(
    row: str, options: tuple[str, ...], full_run: Path, tmp_path: Path
) -> None:
    started = (f"--model.init_args.init_from={full_run}", *options)
    answer = succeed("run", *arguments(row, *started, f"--run_dir={tmp_path / 'run'}"))
    assert "max_epochs" not in answer.error
    found = results(tmp_path / "run")
    assert (found["status"], found["cost"]["tunable_parameters"], found["cost"]["steps"]) == ("finished", 0, 0)
    assert found["fit"] == {
        "steps": 0, "epochs": 0, "monitor": None, "best_value": None, "best_checkpoint": None, "skipped": "nothing trains",
    }  # fmt: skip
    assert recalls(tmp_path / "run") == recalls(full_run)
    assert not list((tmp_path / "run").rglob("*.ckpt"))
    state, parent = lightning_modules.load(tmp_path / "run").network.state_dict(), weights(full_run, "best.ckpt")
    assert all(torch.equal(state[name.removeprefix("network.")], value) for name, value in parent.items())
    answer = crosslight("fit", *arguments(row, *started, f"--run_dir={tmp_path / 'fit'}"))
    assert answer.status == 2
    assert "nothing trains in this model" in answer.error


def test_a_finished_run_is_not_run_again(head_run: Path) -> None:
    before = (head_run / "results.json").read_bytes()
    answer = crosslight("run", *arguments("head", "--trainer.max_epochs=1", f"--run_dir={head_run}"))
    assert answer.status == 2
    assert "finished" in answer.error
    assert (head_run / "results.json").read_bytes() == before
