"""A run folder as far as `load` needs it: an adapter on two tiny towers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml

from lightning_modules.loading import build

BERT = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
        "vocab_size": 40, "max_position_embeddings": 16}  # fmt: skip


def configuration() -> dict[str, Any]:
    """The `model:` section of a run with an adapter on two tiny towers."""
    towers = "lightning_modules.networks.towers."
    image = {"name": "vit_tiny_patch16_224", "weights": "random", "pooling": "cls",
             "options": {"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 8, "img_size": 16}}  # fmt: skip
    text = {"config": BERT, "weights": "random", "tokenizer": "none", "max_tokens": 8}
    network = {
        "image": {"class_path": towers + "timm.TimmImageTower", "init_args": image},
        "text": {"class_path": towers + "hugging_face.HFTextTower", "init_args": text},
        "embed_dim": 8,
    }
    return {
        "class_path": "lightning_modules.retrieval.RetrievalModule",
        "init_args": {
            "network": {"class_path": "lightning_modules.networks.dual_encoder.DualEncoder", "init_args": network},
            "adapter": {"class_path": "lightning_modules.adapters.multiway.MultiWayAdapter"},
        },
    }


def run_folder(folder: Path, seed: int = 7, section: dict[str, Any] | None = None) -> Any:
    """A run folder as far as `load` needs it, and the model that is in it."""
    section = section or configuration()
    model: Any = build(section, seed)
    with torch.no_grad():
        for name, parameter in model.network.named_parameters():
            if parameter.requires_grad:
                parameter.normal_(generator=torch.Generator().manual_seed(len(name)))
    checkpoint: dict[str, Any] = {}
    model.on_save_checkpoint(checkpoint)
    (folder / "checkpoints").mkdir(parents=True)
    torch.save(checkpoint, folder / "checkpoints" / "best.ckpt")
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed_everything": seed, "model": section}))
    return model


def reading_run(folder: Path, seed: int = 7) -> Path:
    """A run folder of two tiny towers that read the words of the rendered world."""
    from datamodules.miniworld.write import write_tokenizer

    write_tokenizer(folder / "words")
    section = configuration()
    text = section["init_args"]["network"]["init_args"]["text"]["init_args"]
    text |= {"tokenizer": str(folder / "words"), "config": {**BERT, "vocab_size": 320}}
    run_folder(folder, seed, section)
    return folder
