"""docs/clip.md, command by command, on the tiny CLIP; and a SigLIP that is trained, killed and goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from end_to_end import (
    NEEDS_OPEN_CLIP,
    OPEN_CLIP,
    ROOT,
    arguments,
    killed_and_resumed,
    metrics,
    recalls,
    results,
    succeed,
    typed,
    weights,
)

import lightning_modules

PAGE = ROOT / "docs" / "clip.md"
SMALL = {
    "clip_vit_b32": "clip_tiny",
    "trainer/gpu": "trainer/demo",
    "a dog in the snow": "a red square",
}
# one epoch of small batches; nothing else of the page's commands is changed
FEW = ("--trainer.max_epochs=1", "--data.init_args.batch_size=8", "--data.init_args.num_workers=0", "--trainer.precision=32-true")


def test_the_page_goes_from_a_table_to_a_search(here: Path, world: Path) -> None:
    said = {}
    for command, *options in typed(PAGE, SMALL):
        few = FEW if command == "run" else ("--workers=0", "--device=cpu") if command == "index" else ()
        said[command] = succeed(command, *options, *few).out
    names = ["zero-shot", "lora", "mwa"]
    assert all(f"runs/{name}" in said["table"] or name in said["table"] for name in names)
    assert results(here / "runs" / "zero-shot")["fit"] is None or "skipped" in results(here / "runs" / "zero-shot")["fit"]
    assert recalls(here / "runs" / "zero-shot", "table").keys() == recalls(here / "runs" / "lora", "table").keys()
    assert all(
        "lora" in name
        for name in weights(here / "runs" / "lora", "best.ckpt")
        if "projection" not in name and "logit" not in name
    )
    run, export = (lightning_modules.load(here / name) for name in ("runs/lora", "my-clip"))
    texts = json.loads((world / "flickr30k" / "dataset_flickr30k.json").read_text())["images"][0]["sentences"][:2]
    assert torch.equal(*(model.encode_texts([each["raw"] for each in texts]) for model in (run, export)))
    assert said["search"].startswith('"a red square", of ')


SIGLIP = """
model:
  init_args:
    network:
      init_args:
        config:
          model_type: siglip
          text_config: {hidden_size: 24, intermediate_size: 48, num_hidden_layers: 1, num_attention_heads: 2, vocab_size: 320,
                        max_position_embeddings: 32, projection_size: 24}
          vision_config: {hidden_size: 24, intermediate_size: 48, num_hidden_layers: 1, num_attention_heads: 2, image_size: 32,
                          patch_size: 16}
    objective:
      class_path: lightning_modules.objectives.sigmoid.SigmoidLoss
    adapter: {init_args: {towers: text}}
    frozen_tower: image
    frozen_dtype: bfloat16
    optimization: {lr: 0.01}
"""


@NEEDS_OPEN_CLIP
def test_an_open_clip_killed_and_resumed_is_as_if_nothing_had_happened(tmp_path: Path) -> None:
    """With dropout in the adapters of both towers."""
    options = arguments("mwa", *OPEN_CLIP, "--trainer.max_epochs=1", "--checkpoint.every_n_steps=1")
    whole, cut = killed_and_resumed(lambda run: [*options, f"--run_dir={run}"], tmp_path, 2)
    assert metrics(cut, "train/loss") == metrics(whole, "train/loss")
    assert recalls(cut) == recalls(whole)
    adapted = {name.split(".")[1] for name in weights(whole, "last.ckpt") if ".multiway." in name}
    assert adapted == {"image", "text"}


def test_a_siglip_with_a_frozen_tower_in_16_bits_is_trained_killed_and_resumed(tmp_path: Path) -> None:
    (tmp_path / "siglip.yaml").write_text(SIGLIP)
    options = arguments("lora", "-c", str(tmp_path / "siglip.yaml"))
    options[options.index("configs/model/dual_tiny.yaml")] = "configs/model/clip_tiny.yaml"
    few = ("--trainer.max_epochs=1", "--checkpoint.every_n_steps=1")
    whole, cut = killed_and_resumed(lambda run: [*options, *few, f"--run_dir={run}"], tmp_path, 2)
    assert metrics(cut, "train/loss") == metrics(whole, "train/loss")
    assert recalls(cut) == recalls(whole)
    trained = weights(whole, "last.ckpt")
    assert "network.logit_bias" in trained
    assert not any(name.startswith("network.model.vision_model.") for name in trained)
    assert {tensor.dtype for tensor in trained.values()} == {torch.float32}
    bias = trained["network.logit_bias"].item()
    assert bias != -10.0
    assert bias == pytest.approx(-10.0, abs=0.2)  # three steps from where the paper starts it
