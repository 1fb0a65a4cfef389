"""A tiny BEiT-3 on the same world and the same road: pre-trained, adapted from that run, tested, exported, loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from end_to_end import BEIT3, RECALLS, STEPS, arguments, recalls, results, succeed, weights
from naive_recalls import embed, naive_recalls

import lightning_modules
from lightning_modules.networks.beit3 import BEiT3Retrieval

HEADS = {"network.image_head.weight", "network.text_head.weight", "network.logit_scale"}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("beit3") / "full"
    succeed("fit", *arguments("full", *BEIT3, "--trainer.max_epochs=1", f"--run_dir={run}"))
    return run


@pytest.fixture(scope="module")
def adapted(pretrained: Path) -> Path:
    run = pretrained.with_name("mwa")
    options = (f"--model.init_args.init_from={pretrained}", "--model.init_args.optimization.lr=0.01", f"--run_dir={run}")
    succeed("run", *arguments("mwa", *BEIT3, "--trainer.max_epochs=2", *options))
    return run


def test_the_adapter_alone_trains_on_what_the_run_brought(pretrained: Path, adapted: Path) -> None:
    found = results(adapted)
    assert (found["status"], found["parent"]) == ("finished", str(pretrained))
    assert found["fit"]["steps"] == 2 * STEPS
    parent, trained = weights(pretrained, "best.ckpt"), weights(adapted, "best.ckpt")
    assert parent.keys() >= HEADS
    assert "network.encoder.image_embed.mask_token" not in parent  # it takes no part, so it is neither trained nor kept
    parts = {"knowledge_extractor": ("down", "up"), "alignment_enhancer": ("fc1", "sub_norm", "fc2")}
    assert set(trained) == {
        f"network.encoder.layers.{layer}.multiway.{part}.{side}.{module}.{kind}"
        for layer in range(2)
        for part, modules in parts.items()
        for side in ("image", "text")
        for module in modules
        for kind in ("weight", "bias")
    }
    assert all(trained[key].any() for key in trained if key.endswith(("up.weight", "fc2.weight")))  # zero at the start
    child = lightning_modules.load(adapted).network.state_dict()
    for key, tensor in parent.items():
        assert torch.equal(child[key.removeprefix("network.")], tensor), key


def test_loading_and_exporting_give_the_tested_model(adapted: Path, world: Path, tmp_path: Path) -> None:
    model = lightning_modules.load(adapted)
    embeddings = embed(model, world)
    measured = recalls(adapted)
    assert {key: measured[key] for key in RECALLS} == pytest.approx(naive_recalls(*embeddings), abs=1e-3)
    succeed("export", str(adapted), str(tmp_path / "export"))
    exported = embed(lightning_modules.load(tmp_path / "export"), world)
    for ours, theirs in zip(exported, embeddings, strict=True):
        assert torch.equal(ours, theirs)


def test_official_start_is_the_default_and_scratch_another() -> None:
    official, scratch = (
        BEiT3Retrieval(32, 96, 1, 3, 384, vocab_size=20),
        BEiT3Retrieval(32, 96, 1, 3, 384, vocab_size=20, init="scratch"),
    )
    positions = [network.encoder.text_embed.positions.std().item() for network in (official, scratch)]
    assert positions == pytest.approx([1.0, 0.02], rel=0.05)
    linear = [network.get_submodule("encoder.layers.0.image.fc1").get_parameter("weight") for network in (official, scratch)]
    assert linear[0].abs().max().item() <= 0.02
    assert linear[1].std().item() == pytest.approx((2 / (96 + 384)) ** 0.5, rel=0.05)
