"""VisualBERT, BLIP and BridgeTower through the commands: trained, killed, resumed, by two processes, exported, loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from end_to_end import (
    RECALLS,
    ROOT,
    TEST,
    killed_and_resumed,
    metrics,
    recalls,
    results,
    run_by_one_and_by_two,
    scorer,
    scores,
    shape,
    succeed,
    typed,
    weights,
)
from torch import Tensor

import lightning_modules
from datamodules.flickr30k_entities import Flickr30kEntities
from lightning_modules.metrics.rerank import Rerank

DATA = "flickr30k_entities"
SHORT = ("--trainer.max_steps=3", "--model.init_args.optimization.lr=0.005", "--model.init_args.optimization.eps=1e-4")


def test_blip_reranks_and_two_processes_are_as_one(tmp_path: Path) -> None:
    rerank = (
        "--model.init_args.rerank.k_test=4",
        "--data.init_args.eval_batch_size=3",
        "--model.init_args.optimization.fused=false",
    )
    run_by_one_and_by_two(
        lambda folder, *more: scorer("blip", *SHORT, *rerank, f"--run_dir={tmp_path / folder}", *more), tmp_path
    )
    one, both = results(tmp_path / "one"), results(tmp_path / "two")
    assert [run["provenance"]["device"]["world_size"] for run in (one, both)] == [1, 2]
    for run in (one, both):
        assert run["evaluations"][0]["protocol"] == Rerank(4).protocol()
    for column in ("loss", "rank_hard_texts", "rank_hard_images"):
        ours, theirs = (metrics(tmp_path / folder, f"train/{column}") for folder in ("two", "one"))
        assert [step for step, _ in ours] == [0, 1, 2]
        assert [value for _, value in ours] == pytest.approx([value for _, value in theirs], rel=1e-4), column
    state, expected = weights(tmp_path / "two", "last.ckpt"), weights(tmp_path / "one", "last.ckpt")
    assert state.keys() == expected.keys()
    assert not [key for key in state if "_proj." in key]  # of the first stage: ranking does not train them
    for key, tensor in expected.items():
        torch.testing.assert_close(state[key], tensor, rtol=1e-4, atol=5e-5, msg=lambda text, key=key: f"{key}: {text}")
    assert recalls(tmp_path / "two", DATA) == pytest.approx(recalls(tmp_path / "one", DATA), rel=1e-4)
    matrix = scores(tmp_path / "one")
    assert matrix.shape == (TEST, 5 * TEST)
    assert 4 * 5 * TEST <= int(matrix.isfinite().sum()) <= 4 * (TEST + 5 * TEST)  # four images of each caption, and more
    torch.testing.assert_close(scores(tmp_path / "two"), matrix, rtol=1e-3, atol=1e-3)


def test_bridgetower_killed_and_resumed_is_as_if_nothing_had_happened(tmp_path: Path) -> None:
    def command(run: Path) -> list[str]:  # its text side drops a tenth out
        return scorer("bridgetower", *SHORT, "--checkpoint.every_n_steps=1", f"--run_dir={run}")

    whole, cut = killed_and_resumed(command, tmp_path, 2)
    assert torch.equal(scores(cut), scores(whole))


def test_the_page_goes_from_a_table_to_an_export(here: Path) -> None:
    """docs/pair_scorers.md, on the tiny BLIP: two steps, few candidates."""
    few = (*shape("blip"), "--trainer.max_steps=2", "--trainer.val_check_interval=2", "--trainer.accumulate_grad_batches=1",
           "--trainer.precision=32-true", "--data.init_args.num_workers=0", "--data.init_args.ranking.candidates=4",
           "--model.init_args.hard_negatives=3", "--model.init_args.rerank.k_test=4")  # fmt: skip
    small = {"blip_base_coco": "blip_tiny", "trainer/gpu": "trainer/demo"}
    said = {}
    for command, *options in typed(ROOT / "docs" / "pair_scorers.md", small, "On pictures of your own"):
        said[command] = succeed(command, *options, *(few if command == "run" else ())).out
    assert list(said) == ["data", "run", "table", "export"]
    assert all(f"runs/blip/{name}" in said["table"] for name in ("as-it-is", "lora"))
    assert recalls(here / "runs" / "blip" / "lora", "table").keys() >= RECALLS
    assert any("lora_" in name for name in weights(here / "runs" / "blip" / "lora", "best.ckpt"))
    assert lightning_modules.load(here / "my-scorer").rerank == Rerank(4)


@torch.no_grad()
def some_scores(folder: Path, world: Path) -> Tensor:
    """Of pairs of the test split, by the model that a folder gives."""
    from datamodules.loading.region_files import RegionFiles

    model = lightning_modules.load(folder)
    data = Flickr30kEntities(
        str(world / "flickr30k"), num_workers=0, eval_batch_size=99, regions=RegionFiles("img_db/flickr30k", "all")
    )
    data.connect(model.network.inputs)
    images, texts, _ = (next(iter(loader)) for loader in data.evaluation_loaders("test"))
    rows = torch.arange(len(images))
    embedded = model.network.embed_images(images), model.network.embed_texts(texts)
    found = torch.full((TEST, 5 * TEST), torch.nan)
    found[images.index_B, texts.index_B[rows]] = model.network.score_pairs(*embedded, rows, rows)
    return found


def test_visual_bert_learns_by_iais_and_lora_and_its_export_scores_the_same(tmp_path: Path, world: Path) -> None:
    run = tmp_path / "run"
    options = ("--model.init_args.tuning=adapter", "--model.init_args.adapter=lightning_modules.adapters.lora.LoRAAdapter",
               "--model.init_args.adapter.init_args.rank=2")  # fmt: skip
    row = ("-c", "experiments/papers/iais/variants/singular.yaml")
    succeed("run", *scorer("visual_bert", *SHORT, *row, *options, f"--run_dir={run}"))
    values = recalls(run, DATA)
    assert values.keys() >= RECALLS | {"isda", "iais_singular"}
    assert all(value > 0 for _, value in metrics(run, "train/iais_vision_hard_texts"))
    trained = weights(run, "best.ckpt")
    assert {key for key in trained if "lora_" not in key} == {
        f"network.model.cls.seq_relationship.{x}" for x in ("weight", "bias")
    }
    succeed("export", str(run), str(tmp_path / "export"))
    found = some_scores(run, world)
    assert torch.equal(some_scores(tmp_path / "export", world).nan_to_num(), found.nan_to_num())
    there = found.isfinite()
    assert int(there.sum()) == TEST
    np.testing.assert_allclose(found[there], scores(run)[there], atol=1e-5)
