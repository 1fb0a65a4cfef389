"""Folders of Hugging Face's that bring code of their own, or are damaged: one line, and nothing of them runs."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datamodules.errors import InputError
from datamodules.inputs import TextInput
from datamodules.loading.tokens import Tokenizer
from lightning_modules.checkpoints import uniter
from lightning_modules.networks.language_model import LanguageModel
from lightning_modules.networks.towers.hugging_face import HFImageTower, HFTextTower
from lightning_modules.networks.uniter import UniterRetrieval

GPT2 = {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 48, "vocab_size": 9, "bos_token_id": 1,
        "eos_token_id": 2}  # fmt: skip
READERS: dict[str, Callable[[str], Any]] = {
    "tokenizer": lambda folder: Tokenizer(TextInput(folder)),
    "text tower": HFTextTower,
    "image tower": HFImageTower,
    "language model": LanguageModel,
    "its tokenizer": lambda folder: LanguageModel(config=GPT2, tokenizer=folder).hf_tokenizer,
    "uniter": lambda folder: uniter.load(UniterRetrieval(8, 1, 2, 8, 9, 8, 5, tokenizer=None), folder),
}


@pytest.mark.parametrize("reader", READERS)
def test_code_of_a_folder_is_never_run_whatever_standard_input_says(
    reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\nclass Model: pass\n")
    maps = {"AutoConfig": "theirs.Config", "AutoModel": "theirs.Model", "AutoModelForCausalLM": "theirs.Model"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "theirs", "auto_map": maps}))
    settings = {"tokenizer_class": "Theirs", "auto_map": {"AutoTokenizer": ["theirs.Model", "theirs.Model"]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    with pytest.raises(InputError, match=r"it brings code of its own, which is never run here") as error:
        READERS[reader](str(tmp_path))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", ["", "[]", "{", '{"model_type": 3}', '{"model_type": "bert", "hidden_size": "many"}', "\xff"])
@pytest.mark.parametrize("reader", READERS)
def test_damaged_settings_are_one_line(reader: str, content: str, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer_config.json", "tokenizer.json"):
        (tmp_path / name).write_text(content, encoding="latin1")
    with pytest.raises(InputError) as error:
        READERS[reader](str(tmp_path))
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("reader", ["text tower", "image tower", "language model", "its tokenizer"])
def test_a_path_without_a_folder_is_not_asked_for_on_the_hub(
    reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lightning_modules.networks.quiet_loading.without_waiting", lambda name: pytest.fail(name))
    for name in ("./weights/all-MiniLM-L6-v2", str(tmp_path / "none"), "a/b/c"):
        with pytest.raises(InputError, match=r"\(there is no such folder.*docs/data_and_weights\.md") as error:
            READERS[reader](name)
        assert name in str(error.value)
        assert str(tmp_path) in str(error.value)
