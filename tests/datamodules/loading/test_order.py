"""Order, slices and contents of training and evaluation batches."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities.combined_loader import _shutdown_workers_and_reset_iterator
from tiny_data import write_flickr8k

from datamodules.errors import InputError
from datamodules.flickr8k import Flickr8k
from datamodules.inputs import Inputs, TextInput
from datamodules.loading.order import GlobalBatches, evaluation_batches, mix
from datamodules.loading.pairs import Pairs
from datamodules.loading.tokens import Tokenizer
from datamodules.records import ImageBatch, PairBatch, TextBatch


def connected(root: Path, inputs: Inputs, rank: int = 0, world_size: int = 1, **options: Any) -> Flickr8k:
    data = Flickr8k(str(root), **({"batch_size": 4, "num_workers": 0, "eval_batch_size": 3} | options))
    data.connect(inputs, rank, world_size)
    return data


def epoch_of(data: Flickr8k, epoch: int = 0) -> list[PairBatch]:
    loader = data.train_dataloader()
    loader.order.set_epoch(epoch)
    batches = list(loader)
    _shutdown_workers_and_reset_iterator(loader)  # as Lightning does at the end; persistent workers live until then
    return batches


def test_mix_separates_neighbours_and_is_stable() -> None:
    assert len({mix(seed, epoch, sample) for seed in range(10) for epoch in range(10) for sample in range(50)}) == 5000
    assert mix(0, 1) != mix(1, 0)
    assert 0 <= mix(-1, 2**70) < 2**63
    # Runs of earlier versions must be resumable: a change of this number changes every run.
    assert mix(1, 2, 3) == 7510213797696614745


def test_processes_take_contiguous_slices_of_the_global_batches() -> None:
    whole = list(GlobalBatches(23, 6, seed=1))
    parts = [list(GlobalBatches(23, 6, seed=1, rank=rank, world_size=3)) for rank in range(3)]
    assert len(whole) == 3  # 23 // 6: the last incomplete batch is dropped
    for step, keys in enumerate(whole):
        assert keys.samples == parts[0][step].samples + parts[1][step].samples + parts[2][step].samples
    drawn = [sample for keys in whole for sample in keys.samples]
    assert len(set(drawn)) == 18
    assert set(drawn) <= set(range(23))


def test_order_depends_on_seed_and_epoch() -> None:
    batches = GlobalBatches(20, 5, seed=1)
    first = list(batches)
    assert list(batches) == first
    batches.set_epoch(1)
    assert [keys.samples for keys in batches] != [keys.samples for keys in first]
    assert [keys.samples for keys in GlobalBatches(20, 5, seed=2)] != [keys.samples for keys in first]
    assert sorted(sample for keys in first for sample in keys.samples) == list(range(20))


def test_impossible_batches_are_refused() -> None:
    with pytest.raises(InputError, match=r"batch_size 5 .* does not divide by 2 devices; 4 would"):
        GlobalBatches(20, 5, seed=1, world_size=2)
    with pytest.raises(InputError, match="3 training samples, fewer than one batch of 5"):
        GlobalBatches(3, 5, seed=1)


def test_an_epoch_of_pairs_has_each_caption_once_with_its_own_image(flickr8k_root: Path, inputs: Inputs) -> None:
    data = connected(flickr8k_root, inputs, batch_size=6)
    batches = epoch_of(data)
    owner = {caption.caption_id: (row, record) for row, record in enumerate(data.records("train")) for caption in record.captions}
    seen = [caption for batch in batches for caption in batch.texts.caption_ids]
    assert len(batches) == 6
    assert sorted(seen) == sorted(owner)  # 36 captions
    for batch in batches:
        assert torch.equal(batch.images.index_B, batch.texts.image_index_B)
        for identity, image_id, row in zip(
            batch.texts.caption_ids, batch.images.image_ids, batch.images.index_B.tolist(), strict=True
        ):
            assert owner[identity][0] == row
            assert owner[identity][1].image_id == image_id
        assert batch.images.pixels_B3HW is not None
        assert batch.images.pixels_B3HW.shape == (6, 3, 16, 16)
        assert batch.images.pixels_B3HW.dtype == torch.float32


def test_an_epoch_of_images_has_each_image_once_and_other_captions_later(flickr8k_root: Path, inputs: Inputs) -> None:
    data = connected(flickr8k_root, inputs, batch_size=1, train_unit="image")
    rows = [batch.images.index_B.item() for batch in epoch_of(data)]
    assert sorted(rows) == list(range(13))
    drawn: dict[str, set[str]] = {}
    for epoch in range(20):
        for batch in epoch_of(data, epoch):
            drawn.setdefault(batch.images.image_ids[0], set()).add(batch.texts.caption_ids[0])
    for record in data.records("train"):
        assert drawn[record.image_id] == {caption.caption_id for caption in record.captions}


def test_batches_do_not_depend_on_workers_or_processes(flickr8k_root: Path, inputs: Inputs) -> None:
    for unit in ("pair", "image"):
        one = epoch_of(connected(flickr8k_root, inputs, train_unit=unit), epoch=2)
        workers = epoch_of(connected(flickr8k_root, inputs, train_unit=unit, num_workers=2), epoch=2)
        halves = [epoch_of(connected(flickr8k_root, inputs, rank, 2, train_unit=unit), epoch=2) for rank in range(2)]
        for step, batch in enumerate(one):
            assert batch.images.pixels_B3HW is not None
            for twin in (
                workers[step].images.pixels_B3HW,
                torch.cat([half[step].images.pixels_B3HW for half in halves]),  # type: ignore[misc]
            ):
                assert torch.equal(batch.images.pixels_B3HW, twin)  # type: ignore[arg-type]
            assert batch.texts.caption_ids == workers[step].texts.caption_ids
            assert batch.texts.caption_ids == halves[0][step].texts.caption_ids + halves[1][step].texts.caption_ids


def test_loaders_leave_the_global_generator_alone(flickr8k_root: Path, inputs: Inputs) -> None:
    data = connected(flickr8k_root, inputs)
    before = torch.get_rng_state()
    epoch_of(data)
    assert torch.equal(torch.get_rng_state(), before)


def test_evaluation_sees_each_image_and_each_caption_once(flickr8k_root: Path, inputs: Inputs) -> None:
    for world_size in (1, 2, 3):
        images: list[int] = []
        texts: dict[int, tuple[str, int]] = {}
        steps = set()
        for rank in range(world_size):
            data = connected(flickr8k_root, inputs, rank, world_size)
            image_loader, text_loader = data.evaluation_loaders("train")
            steps.add((len(image_loader), len(text_loader)))
            image_batch: ImageBatch
            for image_batch in image_loader:
                images += image_batch.index_B.tolist()
            text_batch: TextBatch
            for text_batch in text_loader:
                for row, caption, image in zip(
                    text_batch.index_B.tolist(), text_batch.caption_ids, text_batch.image_index_B.tolist(), strict=True
                ):
                    assert row not in texts
                    texts[row] = (caption, image)
        assert len(steps) == 1  # each process makes the same number of steps: DDP's buffers are synchronised in each
        assert sorted(images) == list(range(13))
        expected = [(c.caption_id, image) for image, record in enumerate(data.records("train")) for c in record.captions]
        assert [texts[row] for row in range(36)] == expected


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9, 64, 65])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_batches_are_a_partition_of_equal_counts(rows: int, world_size: int) -> None:
    shares = [evaluation_batches(rows, 4, rank, world_size) for rank in range(world_size)]
    assert sorted(row for share in shares for batch in share for row in batch) == list(range(rows))
    assert all(0 < len(batch) <= 4 for share in shares for batch in share)
    if rows >= 2 * world_size:
        assert len({len(share) for share in shares}) == 1


def test_evaluation_texts_are_sorted_by_length(flickr8k_root: Path, inputs: Inputs) -> None:
    texts: Any = connected(flickr8k_root, inputs).evaluation_loaders("train")[1]
    lengths = [len(text) for batch in texts for text in batch.texts]
    assert all(left <= right for left, right in pairwise(lengths))


def test_cached_pixels_equal_uncached_ones_across_workers(flickr8k_root: Path, inputs: Inputs) -> None:
    plain = connected(flickr8k_root, inputs, augment="none")
    cached = connected(flickr8k_root, inputs, augment="none", cache_pixels=True, num_workers=2)
    for _ in range(2):
        for left, right in zip(epoch_of(plain), epoch_of(cached), strict=True):
            assert torch.equal(left.images.pixels_B3HW, right.images.pixels_B3HW)  # type: ignore[arg-type]
    images: Any = cached.evaluation_loaders("train")[0]
    assert isinstance(cached.task, Pairs)
    kept = cached.task.pixels.evaluation("train", cached.records("train")).cache
    assert kept is not None
    assert (kept._height_N > 0).sum() == 13  # what the training workers decoded is there for evaluation
    assert sum(len(batch) for batch in images) == 13


@pytest.mark.parametrize("workers", [0, 2])
def test_a_truncated_photograph_is_one_message_from_any_process(tmp_path: Path, inputs: Inputs, workers: int) -> None:
    root = write_flickr8k(tmp_path / "f")
    data = connected(root, inputs, num_workers=workers)
    path = data.records("train")[4].path
    path.write_bytes(path.read_bytes()[:-60])
    for loader in (data.train_dataloader(), data.evaluation_loaders("train")[0]):
        with pytest.raises(InputError) as caught:
            list(loader)
        assert str(caught.value).startswith(f"image 1004: {path} cannot be decoded (image file is truncated")
        assert "Traceback" not in str(caught.value)


# ---------------------------------------------------------------------------------------------------------- tokenizer


def test_tokens_are_padded_to_the_longest_and_cut(tokenizer_folder: Path) -> None:
    tokens_BT, mask_BT = Tokenizer(TextInput(str(tokenizer_folder), 6))(
        ["a dog", "the cat sleeps under the tree quickly", "zebra"]
    )
    assert tokens_BT.tolist()[0] == [2, 4, 5, 3, 0, 0]
    assert mask_BT.tolist()[0] == [True, True, True, True, False, False]
    assert tokens_BT.shape == (3, 6)
    assert tokens_BT[1, -1] == 3  # a cut caption keeps its end token
    assert tokens_BT[2, 1] == 1  # unknown word
    assert tokens_BT.dtype == torch.int64
    assert mask_BT.dtype == torch.bool
    assert Tokenizer(TextInput(str(tokenizer_folder), 64))(["a"])[0].shape == (1, 3)
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"


def test_a_missing_tokenizer_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tokenizer folder .*/absent does not exist"):
        Tokenizer(TextInput(str(tmp_path / "absent")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no tokenizer at .*/empty: (?s:.*)tokenizer\.json"):
        Tokenizer(TextInput(str(tmp_path / "empty")))
    with pytest.raises(InputError, match=r"no tokenizer at nobody/nothing: (?s:.*)HF_HUB_OFFLINE is set"):
        Tokenizer(TextInput("nobody/nothing"))
