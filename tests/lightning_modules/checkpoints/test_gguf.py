"""`crosslight convert` on a GGUF file written here: the folder has its weights and its words, and nothing half done stays."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from datamodules.errors import InputError
from datamodules.loading.captions import CaptionTokenizer
from lightning_modules.checkpoints import gguf as convert
from lightning_modules.networks.language_model import Decoding, LanguageModel

gguf = pytest.importorskip("gguf")

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LETTERS = [*"ACadgnopt:.", "Ġ"]
MERGES = ["Ġ A", "d o", "do g", "Ġ dog"]
WORDS = [*SPECIAL, *LETTERS, *(merge.replace(" ", "") for merge in MERGES)]
CONFIG: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 48, "vocab_size": len(WORDS), "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 2, "tie_word_embeddings": True,
}  # fmt: skip
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**CONFIG)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def write_gguf(path: Path, model: LlamaForCausalLM, factor: float = 1.0) -> Path:
    """As llama.cpp writes a Llama: its names, and rotated halves of queries and keys next to each other."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(CONFIG["max_position_embeddings"])
    writer.add_block_count(CONFIG["num_hidden_layers"])
    writer.add_embedding_length(CONFIG["hidden_size"])
    writer.add_feed_forward_length(CONFIG["intermediate_size"])
    writer.add_head_count(CONFIG["num_attention_heads"])
    writer.add_head_count_kv(CONFIG["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(CONFIG["rms_norm_eps"])
    writer.add_rope_dimension_count(CONFIG["hidden_size"] // CONFIG["num_attention_heads"])
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_types([gguf.TokenType.CONTROL if word in SPECIAL else gguf.TokenType.NORMAL for word in WORDS])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    for name, tensor in model.state_dict().items():
        values = tensor.numpy().astype(np.float32) * factor
        if name == "lm_head.weight":  # tied
            continue
        if name == "model.embed_tokens.weight":
            own = "token_embd.weight"
        elif name == "model.norm.weight":
            own = "output_norm.weight"
        else:
            _, _, layer, rest = name.split(".", 3)
            own = f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"
            if "q_proj" in rest or "k_proj" in rest:
                heads = CONFIG["num_attention_heads" if "q_proj" in rest else "num_key_value_heads"]
                halves = values.reshape(heads, 2, values.shape[0] // heads // 2, values.shape[1])
                values = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))
        writer.add_tensor(own, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def wheel(path: Path, *files: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("package/__init__.py", "")
        for file in files:
            archive.write(file, f"package/{file.name}")
    return path


@pytest.mark.parametrize("packed", [False, True])
def test_the_folder_is_the_model_of_the_file(tmp_path: Path, packed: bool) -> None:
    model = llama()
    source = write_gguf(tmp_path / "tiny.F32.gguf", model)
    if packed:
        source = wheel(tmp_path / "tiny-1.0-py3-none-any.whl", source)
    made = convert.convert_gguf(source, tmp_path / "out" / "tiny")
    assert (made.kind, made.bos, made.eos) == ("LlamaForCausalLM", 1, 2)
    assert made.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert made.size == sum(path.stat().st_size for path in made.folder.iterdir())
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["tiny"]

    language = LanguageModel(name=str(made.folder), bos=0, prompt="Ca:", max_tokens=12).eval()
    assert {parameter.dtype for parameter in language.parameters()} == {torch.float32}
    expected = {name: tensor.half().float() for name, tensor in model.state_dict().items()}
    found = language.model.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, msg=name)
    model.load_state_dict(expected)
    ids = torch.arange(len(WORDS)).reshape(1, -1)
    torch.testing.assert_close(language.logits(language.states(input_ids=ids)), model(ids).logits, rtol=1e-4, atol=1e-4)

    # what a caption is: a leading space after the prompt, and the end token that the model is taught to stop at
    tokens_BT, mask_BT = CaptionTokenizer(language.text_input)(["A dog.", "A"])
    said = [WORDS.index(word) for word in ("ĠA", "Ġdog", ".", "<|im_end|>")]
    assert tokens_BT.tolist() == [said, [said[0], 2, 2, 2]]
    assert mask_BT.sum(1).tolist() == [4, 2]
    assert language.prompt_ids == tuple(WORDS.index(letter) for letter in "Ca:")
    assert language.decode([said[:3]]) == ["A dog."]
    assert len(language.generate(Decoding(num_beams=1, max_new_tokens=3), input_ids=ids[:, :4])) == 1


def no_file(folder: Path) -> Path:
    return folder / "none.gguf"


def other_file(folder: Path) -> Path:
    (folder / "x.gguf").write_bytes(b"PK\x03\x04 and more")
    return folder / "x.gguf"


def cut_file(folder: Path) -> Path:
    whole = write_gguf(folder / "whole.gguf", llama())
    (folder / "cut.gguf").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    return folder / "cut.gguf"


def huge_values(folder: Path) -> Path:
    return write_gguf(folder / "huge.gguf", llama(), factor=1e6)


def empty_wheel(folder: Path) -> Path:
    return wheel(folder / "empty.whl")


def broken_wheel(folder: Path) -> Path:
    (folder / "broken.whl").write_bytes(b"PK\x03\x04 and more")
    return folder / "broken.whl"


@pytest.mark.parametrize(("make", "words"), [
    (no_file, "does not exist; give a GGUF file, or a wheel"),
    (other_file, "is no GGUF file"),
    (cut_file, "transformers cannot read this GGUF file"),
    (huge_values, "has values that fp16 cannot hold"),
    (empty_wheel, "should hold one GGUF file, it holds none"),
    (broken_wheel, "is no sound archive"),
])  # fmt: skip
def test_what_cannot_be_converted(tmp_path: Path, make: Callable[[Path], Path], words: str) -> None:
    (tmp_path / "files").mkdir()
    source = make(tmp_path / "files")
    with pytest.raises(InputError, match=words) as caught:
        convert.convert_gguf(source, tmp_path / "out")
    assert str(source) in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["files"]


def test_a_folder_with_something_in_it_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(InputError, match="is there already"):
        convert.convert_gguf(tmp_path / "x.gguf", tmp_path)
    assert (tmp_path / "note.txt").read_text() == "mine"


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "find_spec", lambda name: None if name == "gguf" else object())
    with pytest.raises(InputError, match=r"convert needs gguf to read GGUF: .*crosslight\[gguf\]"):
        convert.convert_gguf(tmp_path / "x.gguf", tmp_path / "out")
