"""The feature cache: training sees what it would have seen without it, each image is encoded once, kills cost a block."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tiny_captioner import CLIP, captioner
from tiny_data import WORDS, write_flickr8k
from torch import Tensor

from datamodules.errors import InputError
from datamodules.flickr8k import Flickr8k
from datamodules.inputs import TextInput
from datamodules.loading.features import FeatureFile
from lightning_modules.adapters.clipcap import ClipCap
from lightning_modules.adapters.i_tuning import ITuning
from lightning_modules.adapters.tuning import set_tuning
from lightning_modules.extraction.feature_cache import FeatureCache
from lightning_modules.networks.captioner import Captioner
from lightning_modules.networks.towers.hugging_face import HFImageTower


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_flickr8k(tmp_path / "flickr8k")  # 13 + 5 + 3 images


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> str:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: row for row, word in enumerate(["[end]", "[unk]", *WORDS])}, unk_token="[unk]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path_factory.mktemp("words")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="[end]", pad_token="[end]").save_pretrained(folder)
    return str(folder)


def tuned(kind: str = "i_tuning", **options: Any) -> Captioner:
    network = captioner(visual="pooled" if kind == "clipcap" else options.pop("visual", "tokens"), **options)
    adapter: Any = ITuning(init_std=0.5) if kind == "i_tuning" else ClipCap(prefix_length=3, clip_length=2, layers=1, num_heads=2)
    adapter.inject(network)
    set_tuning(network, adapter, "adapter")
    return network


def connected(root: Path, network: Captioner, words: str, **options: Any) -> Flickr8k:
    data = Flickr8k(str(root), **{"batch_size": 6, "eval_batch_size": 3, "num_workers": 0, "augment": "none"} | options)
    data.connect(replace(network.inputs, text=TextInput(words, max_tokens=8), captions=True))
    return data


def losses(network: Captioner, data: Flickr8k) -> Tensor:
    with torch.no_grad():
        return torch.stack(
            [
                network.loss(network.encode_images(batch.images), batch.texts, batch.image_row_B)["loss"]
                for batch in data.train_dataloader()
            ]
        )


def files(folder: Path) -> dict[str, bytes]:
    """Contents of a cache's folders without their hashes."""
    return {f"{path.parent.name.rsplit('-', 1)[0]}/{path.name}": path.read_bytes() for path in folder.glob("*/*")}


# ----------------------------------------------------------------------------------------------------- what training sees


@pytest.mark.parametrize(
    ("kind", "dtype", "rtol"), [("i_tuning", "float32", 1e-6), ("i_tuning", "float16", 2e-3), ("clipcap", "float16", 2e-3)]
)
def test_training_sees_what_it_would_have_seen(
    root: Path, words: str, tmp_path: Path, kind: str, dtype: Any, rtol: float, capfd: pytest.CaptureFixture[str]
) -> None:
    network = tuned(kind)
    data = connected(root, network, words)
    before = losses(network, data)
    shown = [network.encode_images(batch).tokens_IVD for batch in data.evaluation_loaders("val")[0]]
    blocks = [network.encode_images(data.evaluation_images("train").make(rows)).tokens_IVD for rows in (range(8), range(8, 13))]
    FeatureCache(str(tmp_path / "cache"), dtype, batch_size=8).fill(network, data)
    assert "13 train images: 0.0 MB in " in (said := capfd.readouterr().err)
    assert "5 to make" in said
    shutil.rmtree(root / "images")
    for batch in data.train_dataloader():
        assert torch.equal(batch.images.tokens_BVD, torch.cat(blocks)[batch.images.index_B].to(batch.images.tokens_BVD.dtype))
        assert network.encode_images(batch.images).tokens_IVD.dtype == torch.float32
    torch.testing.assert_close(losses(network, data), before, rtol=rtol, atol=0)
    for batch, tokens in zip(data.evaluation_loaders("val")[0], shown, strict=True):
        torch.testing.assert_close(network.encode_images(batch).tokens_IVD, tokens, rtol=rtol, atol=rtol / 100)


def test_the_tower_is_in_eval_mode_and_mixed_precision_only_while_it_encodes(root: Path, words: str, tmp_path: Path) -> None:
    network = tuned().train()
    modes = []
    network.vision.model.register_forward_hook(
        lambda module, inputs, output: modes.append((module.training, torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()))
    )

    def mixed() -> Any:
        return torch.autocast("cpu", torch.bfloat16)

    FeatureCache(str(tmp_path)).fill(network, connected(root, network, words), precision="bf16-mixed", context=mixed)
    assert set(modes) == {(False, True, False)}
    assert len(modes) == 4  # of both splits the first image and one block
    assert all(module.training for module in network.modules())


# ------------------------------------------------------------------------------------------------- kills and processes


def test_a_killed_run_goes_on_to_the_same_bytes(root: Path, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = tuned()
    FeatureCache(str(tmp_path / "whole"), batch_size=3).fill(network, connected(root, network, words))
    cut = FeatureCache(str(tmp_path / "cut"), batch_size=3)
    write, written = FeatureFile.write, []

    def write_or_die(self: FeatureFile, first: int, features: Any) -> None:
        if len(written) == 2:
            with open(self.folder / "tokens.bin", "r+b") as file:  # half of the block
                file.seek(first * features[0].nbytes)
                file.write(features[:1].tobytes())
            written.append(-1)
            raise KeyboardInterrupt
        written.append(first)
        write(self, first, features)

    monkeypatch.setattr(FeatureFile, "write", write_or_die)
    with pytest.raises(KeyboardInterrupt):
        cut.fill(network, connected(root, network, words))
    assert files(tmp_path / "cut")["flickr8k-train/done.u1"] == b"\1" * 6 + b"\0" * 7
    cut.fill(network, connected(root, network, words))
    assert written == [0, 3, -1, 6, 9, 12, 0, 3]  # train, then val
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    cut.fill(network, connected(root, network, words))
    assert len(written) == 8  # nothing left to do


def _rank(rank: int, root: Path, words: str, folder: Path, results: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2)
    network = tuned()
    data = connected(root, network, words)
    shown: list[tuple[str, ...]] = []
    encode = network.encode_images
    network.encode_images = lambda images: shown.append(images.image_ids) or encode(images)  # type: ignore[func-returns-value,assignment,method-assign]
    cache = FeatureCache(str(folder / "cache"), batch_size=3)
    cache.fill(network, data)
    batches = [batch.images.tokens_BVD.sum().item() for batch in data.train_dataloader()]
    dist.barrier()  # the other one has read its batches, too
    next((folder / "cache").glob("*/about.json")).write_text("{}")
    dist.barrier()
    try:
        cache.fill(network, connected(root, network, words))
        refused = ""
    except InputError as error:
        refused = str(error)
    results.put((rank, [ids for ids in shown if len(ids) > 1], batches, refused))
    dist.destroy_process_group()


def test_two_processes_share_the_work_and_refuse_together(root: Path, words: str, tmp_path: Path) -> None:
    network = tuned()
    FeatureCache(str(tmp_path / "one"), batch_size=3).fill(network, data := connected(root, network, words))
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    arguments = (root, words, tmp_path, results)
    processes = [context.Process(target=_rank, args=(rank, *arguments), daemon=True) for rank in range(2)]
    for process in processes:
        process.start()
    first, second = sorted(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(30)
    # Blocks of more than one image, each in one process: of train 0, 2 (and 4, of one) and 1, 3, of val 0 and 1.
    starts = [[int(ids[0]) - 1000 for ids in blocks] for blocks in (first[1], second[1])]
    assert starts == [[0, 6, 13], [3, 9, 16]]
    assert first[2] == second[2] == [batch.images.tokens_BVD.sum().item() for batch in data.train_dataloader()]
    assert "about.json is damaged" in first[3]
    assert first[3] == second[3]
    one, two = (files(tmp_path / name) for name in ("one", "cache"))
    assert {name: found for name, found in one.items() if "about" not in name}.items() <= two.items()


# ----------------------------------------------------------------------------------------- what features belong to


def test_whatever_features_depend_on_has_its_own_folder(
    root: Path, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fill(network: Captioner, dtype: Any = "float16", **options: Any) -> None:
        FeatureCache(str(tmp_path / "cache"), dtype).fill(network, connected(root, network, words), ("train",), **options)

    def folders() -> int:
        return len(list((tmp_path / "cache").iterdir()))

    fill(tuned())
    fill(tuned())
    beside = tuned(family="llama")  # another language model
    beside.vision.load_state_dict(tuned().vision.state_dict())
    fill(beside)
    assert folders() == 1
    fill(tuned(visual="patches"))
    fill(tuned(visual_norm="tower"))
    fill(pooled := tuned("clipcap"))
    assert isinstance(pooled.vision, HFImageTower)
    pooled.vision.pooling = "mean"
    fill(pooled)
    fill(tuned(), dtype="float32")
    fill(tuned(), precision="bf16-mixed")
    assert folders() == 7
    other = tuned()
    with torch.no_grad():
        next(other.vision.parameters()).mul_(1.01)
    fill(other)
    squashed = tuned()
    squashed.vision.image_input = replace(squashed.vision.image_input, resize="squash")
    squashed.inputs = replace(squashed.inputs, image=squashed.vision.image_input)
    fill(squashed)
    assert folders() == 9
    assert "of other photographs" not in capsys.readouterr().err
    path = root / "images" / "1003.jpg"
    status, content = path.stat(), bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)  # another photograph of the same size and time
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    fill(tuned())
    assert folders() == 10
    assert "is of other photographs than are there now" in capsys.readouterr().err
    assert CLIP["hidden_size"] == 12  # of all of them: 13 images, 5 tokens
    assert len({path.stat().st_size for path in (tmp_path / "cache").glob("*/tokens.bin")}) == 4


def test_equal_facts_with_other_features_are_refused(root: Path, words: str, tmp_path: Path) -> None:
    network = tuned()
    cache = FeatureCache(str(tmp_path))
    cache.fill(network, connected(root, network, words))
    network.vision.model.register_forward_pre_hook(
        lambda module, inputs, keywords: (inputs, {"pixel_values": -keywords["pixel_values"]}), with_kwargs=True
    )
    with pytest.raises(InputError, match=r"flickr8k-train-\w{12} holds other features .* delete the folder"):
        cache.fill(network, connected(root, network, words))


def test_what_cannot_be_kept_is_refused(root: Path, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = tuned()
    cache = FeatureCache(str(tmp_path / "cache"))
    with pytest.raises(InputError, match="augment is paper"):
        cache.fill(network, connected(root, network, words, augment="paper"))
    network.vision.requires_grad_(True)
    with pytest.raises(InputError, match=r"the vision tower trains \(\d+ parameters, first vision\.model"):
        cache.fill(network, connected(root, network, words))
    network.vision.requires_grad_(False)
    with monkeypatch.context() as full:
        usage = namedtuple("usage", "total used free")
        full.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
        with pytest.raises(InputError, match=r"of 18 images need 0\.0 MB more, and the disk has 0\.0 MB free"):
            cache.fill(network, connected(root, network, words))
    assert not list((tmp_path / "cache").iterdir())
    (root / "images" / "1009.jpg").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"1009.jpg is not an image"):
        cache.fill(network, connected(root, network, words))
    with torch.no_grad():
        network.vision.model.encoder.layers[-1].mlp.fc2.bias.fill_(1e5)
    with pytest.raises(InputError, match=r"of image \d+ are beyond float16's 65,504: set features.dtype to float32"):
        cache.fill(network, connected(root, network, words), ("val",))
    with pytest.raises(InputError, match=r"batch_size is 0"):
        FeatureCache("x", batch_size=0)
