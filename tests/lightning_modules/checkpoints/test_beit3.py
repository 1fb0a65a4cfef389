"""The official BEiT-3 layout: every key, exact round trips, and a clear account; official files fetched by name."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from datamodules.errors import InputError
from datamodules.files import download
from datamodules.files import releases as official
from lightning_modules.adapters.multiway import MultiWayAdapter, Reading
from lightning_modules.checkpoints.beit3 import interpolate_positions, load_official, official_names, to_official, write_official
from lightning_modules.checkpoints.fill import fill
from lightning_modules.checkpoints.weights import read_weights
from lightning_modules.networks import beit3
from lightning_modules.networks.beit3 import BEiT3Retrieval

KEYS = json.loads((Path(__file__).parents[2] / "recordings" / "beit3_keys.json").read_text())
SIZES: dict[str, dict[str, int]] = {
    "base": {},
    "large": {"width": 1024, "num_layers": 24, "num_heads": 16, "ffn_width": 4096},
}
READINGS: tuple[Reading, ...] = ("printed", "released", "text")


def build(
    seed: int = 0, image_size: int = 16, layers: int = 2, width: int = 8, heads: int = 2, weights: str | None = None
) -> BEiT3Retrieval:
    torch.manual_seed(seed)
    network = fill(BEiT3Retrieval(image_size, width, layers, heads, 12, 4, 30, 10, "none", 8, weights=weights))
    if weights is None:
        randomise(network)
    return network


def randomise(network: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape))


def tensors(network: BEiT3Retrieval) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def listed(group: str) -> dict[str, list[int]]:
    """The fixture keeps one layer; here are all."""
    keys = KEYS[group]
    layers = {f"beit3.encoder.layers.{i}.{name}": shape for i in range(keys["layers"]) for name, shape in keys["layer"].items()}
    return keys["outside"] | layers


# ------------------------------------------------------------------------------------------------------------------- keys


@pytest.mark.parametrize(("size", "count"), [("base", 494), ("large", 974)])
def test_keys_and_shapes_are_the_official_ones(size: str, count: int) -> None:
    with torch.device("meta"):
        network = BEiT3Retrieval(384, **SIZES[size])
    plain = {name: list(tensor.shape) for name, tensor in to_official(network.state_dict()).items()}
    assert len(plain) == count
    assert plain == listed(f"{size}_384_retrieval")
    MultiWayAdapter("released").inject(network)
    adapted = {name: list(tensor.shape) for name, tensor in to_official(network.state_dict()).items()}
    assert {name: adapted[name] for name in adapted.keys() - plain.keys()} == listed(f"{size}_384_mwa_code_extra")


def test_adapter_keys_of_every_option() -> None:
    """Names are swapped in the released code: `adaptmlp_text` serves the image tokens."""
    layer = "encoder.layers.1.multiway"
    at = "beit3.encoder.layers.1"
    assert official_names(f"{layer}.knowledge_extractor.image.down.weight") == (f"{at}.adaptmlp_text.down_proj.weight",)
    assert official_names(f"{layer}.knowledge_extractor.text.up.bias") == (f"{at}.adaptmlp_vision.up_proj.bias",)
    assert official_names(f"{layer}.knowledge_extractor.text.norm.bias") == (
        f"{at}.adaptmlp_vision.adapter_layer_norm_before.bias",
    )
    assert official_names(f"{layer}.knowledge_extractor.image.scale") == (f"{at}.adaptmlp_text.scale",)
    assert official_names(f"{layer}.alignment_enhancer.shared.sub_norm.weight") == (f"{at}.enhancemlp.ffn_layernorm.weight",)
    assert official_names(f"{layer}.alignment_enhancer.text.fc1.weight") == (f"{at}.enhancemlp.B.fc1.weight",)
    for stranger in ("encoder.layers.0.image.qkv.lora_A.weight", "encoder.layers.0.image.other.weight", "other"):
        with pytest.raises(InputError, match="has no place in the official BEiT-3 layout"):
            official_names(stranger)


# ------------------------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("reading", [None, *READINGS])
def test_round_trip_is_exact(reading: Reading | None, suffix: str, tmp_path: Path) -> None:
    networks = [build(seed) for seed in (1, 2)]
    for network in networks:
        if reading:
            MultiWayAdapter(reading, knowledge_extractor_mid=3, alignment_enhancer_mid=4).inject(network)
        randomise(network)
    path = write_official(networks[0], tmp_path / f"weights{suffix}")
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    account = load_official(networks[1], path)
    assert equal(tensors(networks[1]), tensors(networks[0]))
    assert account.loaded == tuple(networks[0].state_dict())
    assert (account.fresh, account.unexpected, account.interpolated) == ((), (), None)
    with pytest.raises(InputError, match="exists already"):
        write_official(networks[0], path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_file_holds_each_value_once(suffix: str, tmp_path: Path) -> None:
    """The packed qkv is three names in the file, and its numbers once."""
    network = build(width=96, heads=4)  # FFN and tables are small beside the qkv
    path = write_official(network, tmp_path / f"weights{suffix}")
    held = 4 * sum(parameter.numel() for parameter in network.parameters())
    names, one_qkv = 600 * len(to_official(network.state_dict())), 4 * 3 * 96 * 96
    assert names < one_qkv  # so that a second copy of any of them would show
    assert held < path.stat().st_size < held + names


def test_constructor_takes_weights_without_drawing_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = build(1)
    path = write_official(source, tmp_path / "weights.pth")
    drawn, draw = [], beit3.draw_weight
    monkeypatch.setattr(beit3, "draw_weight", lambda weight: (drawn.append(weight.device.type), draw(weight)))
    network = build(3, weights=str(path))
    assert drawn.count("cpu") == 2  # both heads: files may lack them
    monkeypatch.undo()
    assert equal(tensors(network), tensors(source))
    assert network.loaded_heads == {"image_head.weight", "text_head.weight", "logit_scale"}
    assert all(parameter.device.type == "cpu" and parameter.requires_grad for parameter in network.parameters())


def test_fresh_heads_start_as_without_a_file(tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in to_official(build(1).state_dict()).items() if "head" not in name}
    torch.save({"model": state}, tmp_path / "weights.pth")
    network = build(3, weights=str(tmp_path / "weights.pth"))
    for head in (network.image_head, network.text_head):
        assert 0 < head.weight.abs().max() <= 0.02
    assert network.loaded_heads == {"logit_scale"}


# ------------------------------------------------------------------------------------------------------------- the account


def test_pretraining_checkpoint_leaves_the_heads_fresh(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source, network = build(1), build(2)
    state = to_official(source.state_dict())
    for name in ("logit_scale", "vision_head.weight", "language_head.weight"):
        del state[name]
    state |= {"mlm_head.weight": torch.zeros(3, 8), "mim_head.bias": torch.zeros(3)}
    torch.save({"model": state}, tmp_path / "base.pth")
    before = tensors(network)
    with caplog.at_level(logging.INFO, "crosslight"):
        account = load_official(network, tmp_path / "base.pth")
    heads = {"image_head.weight", "text_head.weight", "logit_scale"}
    assert set(account.fresh) == heads
    assert account.unexpected == ("mim_head.bias", "mlm_head.weight")
    assert network.loaded_heads == frozenset()
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name] if name in heads else source.state_dict()[name]), name
    assert "3 not in it start fresh (logit_scale, image_head.weight, text_head.weight)" in caplog.text
    assert "2 of it have no place here (mim_head.bias, mlm_head.weight)" in caplog.text


def test_adapter_only_on_one_side_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    adapted, plain = build(1), build(2)
    MultiWayAdapter(knowledge_extractor_mid=3, alignment_enhancer_mid=4).inject(adapted)
    randomise(adapted)
    with_adapter = write_official(adapted, tmp_path / "adapted.pth")
    without = write_official(plain, tmp_path / "plain.pth")
    account = load_official(plain, with_adapter)
    assert len(account.unexpected) == sum(".multiway." in name for name in adapted.state_dict())
    assert f"{len(account.unexpected)} adapter tensors have no place here" in caplog.text
    before = tensors(adapted)
    account = load_official(adapted, without)
    assert set(account.fresh) == {name for name in before if ".multiway." in name}
    assert all(torch.equal(adapted.state_dict()[name], before[name]) for name in account.fresh)


@pytest.mark.parametrize(("old", "new"), [(16, 24), (24, 16)])
def test_positions_are_interpolated_both_ways(old: int, new: int, tmp_path: Path) -> None:
    source = build(1, old)
    path = write_official(source, tmp_path / "weights.pth")
    network = build(2, new, weights=str(path))
    found, table = network.encoder.image_embed.positions, source.encoder.image_embed.positions
    assert torch.equal(found[:3], table[:3])
    grid = table[3:].detach().T.reshape(1, 8, old // 4, old // 4)
    resized = torch.nn.functional.interpolate(grid, size=(new // 4,) * 2, mode="bicubic")[0].flatten(1).T
    torch.testing.assert_close(found[3:].detach(), resized)
    assert load_official(network, path).interpolated == (old // 4, new // 4)
    same, want = tensors(network), source.state_dict()
    assert all(torch.equal(same[name], want[name]) for name in same if name != "encoder.image_embed.positions")


def test_interpolation_keeps_flat_tables_and_the_order_of_rows() -> None:
    assert torch.allclose(interpolate_positions(torch.ones(3 + 16, 2), 7), torch.ones(3 + 49, 2))
    table = torch.randn(3 + 16, 2)
    assert interpolate_positions(table, 4) is table
    rising = torch.cat([torch.zeros(3, 2), torch.arange(16.0).div(4).floor()[:, None].expand(-1, 2)])  # the row of the patch
    grid = interpolate_positions(rising, 8)[3:].reshape(8, 8, 2)
    assert torch.allclose(grid, grid[:, :1].expand_as(grid), atol=1e-6)
    assert (grid[1:, 0, 0] > grid[:-1, 0, 0])[1:-1].all()


def test_half_precision_files_fill_a_full_precision_network(tmp_path: Path) -> None:
    source = build(1)
    half = {name: tensor.half() for name, tensor in to_official(source.state_dict()).items()}
    torch.save({"module": half}, tmp_path / "half.pth")
    network = build(2, 24)
    load_official(network, tmp_path / "half.pth")
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert torch.equal(network.encoder.layers[0].text.qkv.weight, source.encoder.layers[0].text.qkv.weight.half().float())


def test_wrong_files_leave_the_network_as_it_was(tmp_path: Path) -> None:
    small, network = build(1), build(2, layers=3)
    before = tensors(network)
    path = write_official(small, tmp_path / "small.pth")
    with pytest.raises(InputError, match=r"lacks \d+ tensors of this BEiT-3 \(beit3.encoder.layers.2.*check num_layers"):
        load_official(network, path)
    wide = write_official(build(1, width=16, layers=3), tmp_path / "wide.pth")
    with pytest.raises(
        InputError, match=r"other shapes than this BEiT-3: .*\[1, 1, 16\] instead of \[1, 1, 8\].* set width, num_heads"
    ):
        load_official(network, wide)
    content = path.read_bytes()
    (tmp_path / "cut.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"cut.pth \([\d,]+ bytes\) cannot be read: .*truncated"):
        load_official(network, tmp_path / "cut.pth")
    state = to_official(build(1, layers=3).state_dict())
    state["beit3.encoder.embed_positions.A.weight"] = torch.zeros(3 + 15, 8)
    torch.save(state, tmp_path / "grid.pth")
    with pytest.raises(InputError, match="its 18 image positions are no square grid behind 3 extra rows"):
        load_official(network, tmp_path / "grid.pth")
    assert equal(tensors(network), before)
    with pytest.raises(InputError, match="lacks"):  # a constructor never hands out a half-filled network
        build(layers=3, weights=str(path))


# ------------------------------------------------------------------------------------------------------------ torch files


def test_fine_tuned_checkpoint_with_training_state(tmp_path: Path) -> None:
    """unilm saves its command line beside the weights; nothing but a plain namespace is let through."""
    weights = {"w": torch.arange(3.0)}
    extra = {"optimizer": {"state": {0: {"step": 3}}}, "epoch": 4, "scaler": {"scale": 2.0}}
    torch.save({"model": weights, **extra, "args": argparse.Namespace(lr=1e-4, task="coco")}, tmp_path / "tuned.pth")
    assert torch.equal(read_weights(tmp_path / "tuned.pth")["w"], weights["w"])
    assert argparse.Namespace not in torch.serialization.get_safe_globals()  # allowed for that reading alone


class Harm:
    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["HARM"],)


@pytest.mark.parametrize("new_format", [True, False])
def test_nothing_else_is_unpickled(new_format: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARM", str(tmp_path / "harm"))
    for name, content in {"harm": {"model": {}, "args": Harm()}, "inside": {"args": argparse.Namespace(x=Harm())}}.items():
        torch.save(content, tmp_path / f"{name}.pth", _use_new_zipfile_serialization=new_format)
        with pytest.raises(InputError, match="cannot be read"):
            read_weights(tmp_path / f"{name}.pth")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("new_format", [True, False])
def test_nesting(new_format: bool, tmp_path: Path) -> None:
    one, two, three = ({"w": torch.full((1,), value)} for value in (1.0, 2.0, 3.0))
    cases = [
        ({"module": two, "state_dict": three, "model": one}, 1.0),
        ({"state_dict": three, "module": two}, 2.0),
        ({"state_dict": three, "epoch": 1}, 3.0),
        (two, 2.0),
    ]
    for i, (content, value) in enumerate(cases):
        torch.save(content, tmp_path / f"{i}.pth", _use_new_zipfile_serialization=new_format)
        assert read_weights(tmp_path / f"{i}.pth")["w"].item() == value
    torch.save({"model": {"w": 1}}, tmp_path / "none.pth")
    with pytest.raises(InputError, match="holds no plain dictionary of tensors"):
        read_weights(tmp_path / "none.pth")


def test_ddp_prefix_is_taken_off(tmp_path: Path) -> None:
    source, network = build(1), build(2)
    state = {f"module.{name}": tensor for name, tensor in to_official(source.state_dict()).items()}
    torch.save({"model": state}, tmp_path / "ddp.pth")
    assert not load_official(network, tmp_path / "ddp.pth").unexpected
    assert equal(tensors(network), tensors(source))


# ---------------------------------------------------------------------------------------------------------- official files


class Mirror:
    """A folder served over HTTP, and what was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder, asked = folder, []
        folder.mkdir()

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                super().do_GET()

            def log_message(self, format: str, *arguments: object) -> None:
                return

        self.asked = asked
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    mirror = Mirror(tmp_path / "mirror")
    monkeypatch.setenv(official.URL_VARIABLE, f"http://127.0.0.1:{mirror.http.server_port}/")
    monkeypatch.setenv(official.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield mirror
    mirror.http.shutdown()
    mirror.http.server_close()


NAME = "beit3_base_itc_patch16_224"


def test_checkpoint_by_name_is_fetched_once(mirror: Mirror, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = build(1)
    write_official(source, mirror.folder / f"{NAME}.pth")
    assert equal(tensors(build(2, weights=NAME)), tensors(source))
    cached = tmp_path / "cache" / "beit3" / f"{NAME}.pth"
    record = json.loads(cached.with_name(f"{NAME}.pth.json").read_text())
    assert record["sha256"] == hashlib.sha256(cached.read_bytes()).hexdigest()
    assert record["verified"] is False
    assert f"SHA-256 {record['sha256']}, not verified (the release publishes no sums)" in caplog.text
    caplog.clear()
    assert official.checkpoint_file(f"{NAME}.pth") == cached
    assert mirror.asked == [f"/{NAME}.pth"]
    assert not caplog.records


def test_a_changed_file_is_noticed(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    (mirror.folder / f"{NAME}.pth").write_bytes(b"weights" * 1000)
    cached = official.checkpoint_file(NAME)
    os.utime(cached, (1, 1))  # touched, but the same: examined once, then known again
    assert official.checkpoint_file(NAME) == cached
    monkeypatch.setattr(official, "_sha256", lambda path: pytest.fail("gigabytes were read to look something up"))
    assert official.checkpoint_file(NAME) == cached
    monkeypatch.undo()
    monkeypatch.setenv(official.CACHE_VARIABLE, str(cached.parents[1]))
    cached.write_bytes(b"another")
    with pytest.raises(InputError, match=r"has SHA-256 \w{64}, but \w{64} was recorded when it came: .* remove it and .*\.json"):
        official.checkpoint_file(NAME)


def test_the_tokenizer_has_a_known_sum(mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert official.SHA256["beit3.spm"].startswith("6f5e2fef")
    (mirror.folder / "beit3.spm").write_bytes(b"pieces")
    with pytest.raises(InputError, match=r"beit3.spm has SHA-256 .* but 6f5e2fef.* is known for it"):
        official.tokenizer_file("beit3.spm")
    monkeypatch.setitem(official.SHA256, "beit3.spm", hashlib.sha256(b"pieces").hexdigest())
    assert official.tokenizer_file("beit3.spm").read_bytes() == b"pieces"
    assert json.loads((tmp_path / "cache/beit3/beit3.spm.json").read_text())["verified"] is True


def test_processes_that_ask_at_once_fetch_once(mirror: Mirror) -> None:
    (mirror.folder / f"{NAME}.pth").write_bytes(os.urandom(1 << 20))
    children = []
    for _ in range(4):
        if not (child := os.fork()):  # flock tells processes apart, so threads would do as well; ranks are processes
            code = 1
            try:
                fetched = official.checkpoint_file(NAME)
                code = int(fetched.read_bytes() != (mirror.folder / f"{NAME}.pth").read_bytes())
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4
    assert mirror.asked == [f"/{NAME}.pth"]


def test_a_file_put_into_the_cache_by_hand_is_taken(mirror: Mirror, tmp_path: Path) -> None:
    cached = tmp_path / "cache" / "beit3" / f"{NAME}.pth"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"by hand")
    assert official.checkpoint_file(NAME) == cached
    assert mirror.asked == []


def test_a_local_file_comes_before_a_name(mirror: Mirror) -> None:
    Path(NAME).write_bytes(b"mine")
    assert official.checkpoint_file(NAME) == Path(NAME)
    assert mirror.asked == []


def test_what_cannot_be_fetched_says_where_to_put_it(mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_hand = rf"fetch http://127.0.0.1:\d+/{NAME}.pth on another machine and put it at {tmp_path}/cache/beit3/{NAME}.pth"
    with pytest.raises(InputError, match=f"the server answers 404.*{by_hand}"):
        official.checkpoint_file(NAME)
    monkeypatch.setenv(official.URL_VARIABLE, "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"cannot be fetched .*refused.*Without a network: .* and put it at"):
        official.checkpoint_file(NAME)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("beit3_base_itc_patch16_22", "did you mean beit3_base_itc_patch16_224"),
        ("runs/beit3_large_patch16_384_coco_retrival.pth", "did you mean beit3_large_patch16_384_coco_retrieval.pth"),
        ("vit", "there is no such file in .*official names: beit3_base_patch16_224.pth, "),
        (".", "is a folder; give the file"),
        ("beit3.spm", "no official BEiT-3 file"),
    ],
)
def test_neither_a_file_nor_a_name(source: str, message: str, mirror: Mirror) -> None:
    with pytest.raises(InputError, match=f"weights {source}: .*{message}"):
        official.checkpoint_file(source)
    assert mirror.asked == []


def test_official_names() -> None:
    wanted = {f"beit3_{size}_{kind}patch16_224.pth" for size in ("base", "large") for kind in ("", "itc_")}
    wanted |= {f"beit3_{size}_patch16_384_{data}_retrieval.pth" for size in ("base", "large") for data in ("coco", "f30k")}
    assert set(official.CHECKPOINTS) == wanted
    assert official.RELEASE == "https://github.com/addf400/files/releases/download/beit3"


def test_safetensors_is_flat_and_official(tmp_path: Path) -> None:
    network = build(1)
    assert equal(load_file(write_official(network, tmp_path / "w.safetensors")), to_official(network.state_dict()))
