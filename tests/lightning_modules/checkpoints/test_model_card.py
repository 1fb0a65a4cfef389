"""The card of an export is one that the Hub reads, and says how to load it."""

from __future__ import annotations

from typing import Any

import pytest
from huggingface_hub import ModelCard

from lightning_modules.adapters.tuning import ParameterCounts
from lightning_modules.checkpoints.model_card import FOLDER, Measured, Origins, Task, card

COUNTS = ParameterCounts(total=1000, trainable=30, backbone=980, adapter=20, heads=10)
TASK = Task("image-to-text", ("image-captioning",), 'print(model.caption(["a.jpg"]))')


def config(**changes: Any) -> dict[str, Any]:
    whole = {
        "adapter": {"class_path": "mine.Mine"}, "network": "a.b.Captioner", "trained": ["head"],
        "tensors": {"head": [2, 5], "x": [20]}, "backbone_config": {"model": {}}, "backbone_files": {},
        "backbone": {"architecture": "a" * 64, "weights": "b" * 64, "tensors": {"x": 1}},
    }  # fmt: skip
    return whole | changes


def test_the_hub_reads_task_base_model_data_metrics_and_license() -> None:
    measured = (Measured("coco", "test", "cider", 1.138, (1.05, 1.2224)), Measured("coco", "test", "bleu_4", 0.31))
    origins = Origins("mine", {"command": "`crosslight run`"}, ("coco",), measured, "apache-2.0")
    text = card(config(), COUNTS, 0.1, task=TASK, origins=origins, base_models=["openai-community/gpt2"], notes="More.")
    read = ModelCard(text, ignore_metadata_errors=False)
    found = read.data.to_dict()
    assert {key: found[key] for key in found if key != "model-index"} == {
        "library_name": "crosslight", "pipeline_tag": "image-to-text", "tags": ["image-captioning", "adapter"],
        "base_model": ["openai-community/gpt2"], "datasets": ["coco"], "metrics": ["cider", "bleu_4"], "license": "apache-2.0",
    }  # fmt: skip
    assert [(each.metric_name, each.metric_value, each.dataset_split) for each in read.data.eval_results] == [
        ("cider [1.05, 1.2224]", 1.138, "test"),
        ("bleu_4", 0.31, "test"),
    ]
    for line in (
        "30 trained parameters (3.06 % of Captioner, 0.1 MB): 20 adapter, 10 beside it.",
        "| coco | test | cider | 1.138 | [1.05, 1.2224] |",
        "- command: `crosslight run`",
        "- license: apache-2.0",
        f'model = lightning_modules.load("{FOLDER}")\nprint(model.caption(["a.jpg"]))',
        "More.",
    ):
        assert line in text


@pytest.mark.parametrize(
    ("files", "trust", "line"),
    [
        ({}, [], f'load("{FOLDER}")'),
        ({}, ["mine"], f'load("{FOLDER}", trust=["mine"])  # a file of its author\'s, on PYTHONPATH'),
        ({}, ["a", "b"], f'load("{FOLDER}", trust=["a", "b"])  # files of its author\'s, on PYTHONPATH'),
        ({"w.safetensors": "0f"}, [], f'load("{FOLDER}", backbone="weights")  # a folder that holds the files below'),
        ({"w.safetensors": "0f"}, ["mine"], f'load("{FOLDER}", backbone="weights", trust=["mine"])  # a folder'),
    ],
)
def test_how_to_load_it_says_what_it_needs(files: dict[str, str], trust: list[str], line: str) -> None:
    text = card(config(backbone_files=files), COUNTS, 0.1, task=Task(), origins=Origins(), trust=trust)
    assert f"model = lightning_modules.{line}" in text
    assert "none was given: ask whoever made it" in text
    assert "model-index" not in text
    assert all(f"- {name}: sha256 {digest}" in text for name, digest in files.items())
