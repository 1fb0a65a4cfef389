"""Weight files: whole, and a part of one."""

from __future__ import annotations

import pickle
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from datamodules.errors import InputError
from lightning_modules.checkpoints.fill import fill
from lightning_modules.checkpoints.trainable import load_objective, load_trainable
from lightning_modules.checkpoints.weights import load_weights, read_weights, require_finite, write_torch, write_weights
from lightning_modules.networks.towers.hugging_face import HFTextTower


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "best.ckpt"
    names = ("network.image.model.a", "network.image.model.b.c", "network.images.a", "logit_scale")
    torch.save({"state_dict": {name: torch.full((2,), float(at)) for at, name in enumerate(names)}, "epoch": 3}, path)
    return path


def test_a_part_is_what_begins_with_the_prefix(file: Path) -> None:
    part = read_weights(f"{file}#network.image.model.")
    assert {name: tensor.tolist() for name, tensor in part.items()} == {"a": [0.0, 0.0], "b.c": [1.0, 1.0]}
    assert len(read_weights(file)) == 4


def test_a_part_that_is_not_there_says_what_is(file: Path) -> None:
    with pytest.raises(InputError, match=r"no tensor whose name begins with 'network\.text\.' \(it has logit_scale, network"):
        read_weights(f"{file}#network.text.")
    with pytest.raises(InputError, match=r"none\.ckpt does not exist"):
        read_weights(f"{file.parent / 'none.ckpt'}#network.")


def test_a_file_may_have_the_mark_in_its_name(file: Path) -> None:
    named = file.rename(file.with_name("run#1.ckpt"))
    assert len(read_weights(named)) == 4
    assert list(read_weights(f"{named}#network.images.")) == ["a"]


# -------------------------------------------------------------------------------------------------------------- damage


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ (1 << at % 8)]) + content[at + 1 :]


def state() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {"a": torch.randn(30, 4, generator=draw), "b": torch.arange(9), "c": torch.randn(7, generator=draw).half()}


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_no_flipped_bit_changes_a_weight_unsaid(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if path.suffix == ".pt":
        torch.save(state(), path)
    else:
        write_weights(state(), path)
    content = path.read_bytes()
    refused = 0
    for at in range(0, len(content), 7):
        path.write_bytes(flipped(content, at))
        try:
            found = read_weights(path)
        except InputError:
            refused += 1
        else:  # in padding, or in what says nothing
            assert found.keys() == state().keys(), at
            assert all(torch.equal(found[key], value) for key, value in state().items()), at
    assert refused > len(state()["a"].numpy().tobytes()) // 7


@pytest.mark.parametrize("write", [write_torch, write_weights])
@pytest.mark.parametrize("room", [1000, 30_000, 40_500])
def test_a_full_disk_is_named(tmp_path: Path, write: Callable[..., None], room: int) -> None:
    """At the first of it, in mid-tensor, and with the table at the end of torch's."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as error:
            write({"a": torch.zeros(10_000), "b": torch.zeros(300)}, tmp_path / "weights")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert error.value.filename == str(tmp_path / "weights")
    assert not list(tmp_path.iterdir())


def test_files_without_a_checksum_are_read(tmp_path: Path) -> None:
    save_file(state(), tmp_path / "theirs.safetensors")
    torch.save(state(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state(), tmp_path / "unchecked.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    for name in ("theirs.safetensors", "old.pt", "unchecked.pt"):
        found = read_weights(tmp_path / name)
        assert all(torch.equal(found[key], value) for key, value in state().items()), name


@pytest.mark.parametrize(("content", "words"), [
    (b"", "is empty"), (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"), (b"<!doctype html><p>", "web page"),
    (b"these are no weights", "cannot be read"), (pickle.dumps([1, 2]), "cannot be read"), ("zip", "cannot be read"),
])  # fmt: skip
@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_other_files_are_named_in_one_line(tmp_path: Path, name: str, content: bytes | str, words: str) -> None:
    path = tmp_path / name
    if isinstance(content, str):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("readme.txt", "hello")
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match=words) as error:
        read_weights(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert "weights_only" not in str(error.value)  # torch's own advice would run what is in the file


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.complex64])
def test_values_that_are_not_finite_are_no_weights(value: float, dtype: torch.dtype) -> None:
    wrong = torch.zeros(5)
    wrong[3] = value
    wrong = wrong.to(dtype)
    sound = torch.full((5,), 6e4).to(dtype)  # whose sum is beyond fp16
    require_finite({"sound": sound, "whole": torch.arange(3)}, "it")
    with pytest.raises(InputError, match=r"it: 1 of 2 tensors have values that are NaN or infinite \(wrong\)"):
        require_finite({"sound": sound, "wrong": wrong}, "it")


def test_whole_numbers_are_not_cast_into_weights(tmp_path: Path) -> None:
    layer = torch.nn.BatchNorm1d(3)
    good = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    torch.save(good, tmp_path / "good.pt")
    load_weights(layer, tmp_path / "good.pt", what="it")
    ones = torch.ones(3)
    wrong = [
        ("weight", ones.long()),
        ("bias", ones.bool()),
        ("weight", ones.cfloat()),
        ("num_batches_tracked", torch.tensor(0.5)),
    ]
    for name, value in wrong:
        torch.save({**good, name: value}, tmp_path / "bad.pt")
        with pytest.raises(InputError, match=rf"{name} (whole|complex numbers|fractions).* instead of"):
            load_weights(layer, tmp_path / "bad.pt", what="it")
        with pytest.raises(InputError, match=rf"{name} .* instead of"):
            load_trainable(layer, {**good, name: value})
        with pytest.raises(InputError, match=rf"another objective: they differ in {name}"):
            load_objective(layer, {**good, name: value}, "it")
    assert all(torch.equal(tensor, good[name]) for name, tensor in layer.state_dict().items())


def test_a_folder_that_transformers_reads_is_checked_like_a_file(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    sizes = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertModel(BertConfig(**sizes, max_position_embeddings=8)).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"

    def tower() -> HFTextTower:
        return fill(HFTextTower(str(tmp_path), tokenizer="none", max_tokens=8))

    good = load_file(file)
    tower()
    name = "encoder.layer.0.output.dense.bias"
    for value, words in ((torch.full((8,), float("nan")), rf"weights of {tmp_path}: 1 of .* \({name}\)"),
                         (torch.ones(8, dtype=torch.int64), rf"whole numbers for weights \({name}\)")):  # fmt: skip
        save_file({**good, name: value}, file, metadata={"format": "pt"})
        with pytest.raises(InputError, match=words):
            tower()
    write_weights(good, file, format="pt")  # as convert does
    tower()
    file.write_bytes(file.read_bytes()[:-1] + b"\x07")
    with pytest.raises(InputError, match="its checksum does not fit"):
        tower()
    for content in (b"", b"version https://git-lfs.github.com/spec/v1\n", file.read_bytes()[:-200]):
        file.write_bytes(content)
        with pytest.raises(InputError, match="weights cannot be loaded") as error:
            tower()
        assert "\n" not in str(error.value)
