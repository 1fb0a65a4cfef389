"""A run folder of a captioner as far as `load` needs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from lightning_modules.checkpoints.run_folder import RESULTS_SCHEMA

_TOWER = "lightning_modules.networks.towers.hugging_face.HFImageTower"
_CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 12,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
_GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 48, "vocab_size": 320}
ADAPTERS: dict[str, Any] = {
    "i_tuning": {
        "class_path": "lightning_modules.adapters.i_tuning.ITuning",
        "init_args": {"reading": "multihead", "num_heads": 2, "drop_first": 1, "init_std": 0.5},
    },
    "clipcap": {"class_path": "lightning_modules.adapters.clipcap.ClipCap", "init_args": {"mapping": "mlp", "prefix_length": 2}},
    "none": None,
}


def captioning_run(folder: Path, tokenizer: Path, adapter: str = "i_tuning") -> Path:
    """A run of a captioner that trained nothing: its configuration is the model."""
    language = {"config": {**_GPT2, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}, "weights": "random"}
    language["tokenizer"] = str(tokenizer)
    network = {
        "vision": {"class_path": _TOWER, "init_args": {"config": _CLIP, "weights": "random"}},
        "language": {"class_path": "lightning_modules.networks.language_model.LanguageModel", "init_args": language},
        "visual": "pooled" if adapter == "clipcap" else "tokens",
    }
    arguments = {
        "network": {"class_path": "lightning_modules.networks.captioner.Captioner", "init_args": network},
        "adapter": ADAPTERS[adapter],
        "tuning": "frozen" if adapter == "none" else "adapter",
        "decoding": {"num_beams": 2, "max_new_tokens": 6, "min_new_tokens": 2},
    }
    model = {"class_path": "lightning_modules.captioning.CaptioningModule", "init_args": arguments}
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed_everything": 3, "model": model}))
    fit = {"steps": 0, "epochs": 0, "skipped": "tuning is none"}
    (folder / "results.json").write_text(json.dumps({"schema": RESULTS_SCHEMA, "fit": fit}))
    return folder
