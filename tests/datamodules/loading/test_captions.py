"""Batches of captions: the order against a naive twin, slices of processes, contents, tokens."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_data import write_flickr8k
from torch import Tensor, nn

from datamodules.errors import InputError
from datamodules.flickr8k import Flickr8k
from datamodules.formats.karpathy import read_karpathy
from datamodules.inputs import Inputs, RegionInput, TextInput
from datamodules.loading.captions import (
    CaptionBatches,
    Captioning,
    CaptionKeys,
    CaptionTokenizer,
    TrainCaptions,
    joined,
)
from datamodules.loading.images import Augmentation, SplitImages
from datamodules.loading.loader import TrainLoader
from datamodules.records import Caption, CaptionBatch, ImageBatch, ImageRecord

COUNTS = [3, 0, 1, 7, 5, 2, 12]


def naive_texts(batches: CaptionBatches, counts: list[int], captioning: Captioning, epoch: int) -> list[tuple[int, ...]]:
    """The same order with lists: the permutations are the batches' own, what is made of them is not."""
    owner = [image for image, count in enumerate(counts) for _ in range(count)]
    of_image: dict[int, list[int]] = defaultdict(list)
    for row in batches._permutation(len(owner), epoch, 6).tolist():
        of_image[owner[row]].append(row)
    texts: dict[int, list[tuple[int, ...]]] = {}
    for image in range(len(counts)):
        rows = of_image[image]
        if captioning.captions_per_image is not None:
            rows = rows[: captioning.captions_per_image * captioning.join]
        texts[image] = [tuple(rows[first : first + captioning.join]) for first in range(0, len(rows), captioning.join)]
    if captioning.group == "image":
        return [text for image in batches._permutation(len(counts), epoch, 5).tolist() for text in texts[image]]
    every = [text for image in range(len(counts)) for text in texts[image]]
    return [every[place] for place in batches._permutation(len(every), epoch, 5).tolist()]


@pytest.mark.parametrize("group", ["image", "none"])
@pytest.mark.parametrize("join", [1, 3])
@pytest.mark.parametrize("most", [None, 1, 4])
def test_the_order_is_that_of_a_naive_twin(most: int | None, join: int, group: Any) -> None:
    captioning = Captioning(most, join, group)
    batches = CaptionBatches(COUNTS, captioning, batch_size=1, seed=5)
    for epoch in range(4):
        batches.set_epoch(epoch)
        found = [keys.texts[0] for keys in batches]
        assert found == naive_texts(batches, COUNTS, captioning, epoch)
        assert len(found) == len(batches) == batches.samples


def test_an_epoch_has_every_caption_once_with_those_of_an_image_together() -> None:
    batches = CaptionBatches(COUNTS, Captioning(), batch_size=1, seed=0)
    owner = [image for image, count in enumerate(COUNTS) for _ in range(count)]
    orders = []
    for epoch in range(5):
        batches.set_epoch(epoch)
        rows = [keys.texts[0][0] for keys in batches]
        assert sorted(rows) == list(range(sum(COUNTS)))
        images = [owner[row] for row in rows]
        changes = 1 + sum(one != other for one, other in pairwise(images))
        assert changes == len(set(images))
        orders.append((tuple(rows), tuple(dict.fromkeys(images))))
    assert len({rows for rows, _ in orders}) == 5
    assert len({images for _, images in orders}) > 1


def test_a_draw_reaches_every_caption_in_time() -> None:
    batches = CaptionBatches(COUNTS, Captioning(captions_per_image=2), batch_size=1, seed=0)
    assert batches.samples == 2 + 0 + 1 + 2 + 2 + 2 + 2
    seen: set[int] = set()
    for epoch in range(30):
        batches.set_epoch(epoch)
        drawn = [keys.texts[0][0] for keys in batches]
        assert len(set(drawn)) == len(drawn)
        seen.update(drawn)
    assert seen == set(range(sum(COUNTS)))


@pytest.mark.parametrize("group", ["image", "none"])
def test_processes_share_the_batches_of_one(group: Any) -> None:
    captioning = Captioning(3, 1, group)
    whole = list(CaptionBatches(COUNTS, captioning, 6, seed=2))
    parts = [list(CaptionBatches(COUNTS, captioning, 6, 2, rank, 3)) for rank in range(3)]
    assert len(whole) == 15 // 6
    for step, keys in enumerate(whole):
        assert keys.texts == parts[0][step].texts + parts[1][step].texts + parts[2][step].texts
    with pytest.raises(InputError, match="does not divide by 4 devices"):
        CaptionBatches(COUNTS, captioning, 6, 2, 0, 4)
    with pytest.raises(InputError, match="15 training samples, fewer than one batch of 16"):
        CaptionBatches(COUNTS, captioning, 16, 2)


def test_options_out_of_range() -> None:
    with pytest.raises(InputError, match=r"captioning\.join is 0"):
        Captioning(join=0)
    with pytest.raises(InputError, match=r"captioning\.captions_per_image is 0"):
        Captioning(captions_per_image=0)


# ------------------------------------------------------------------------------------------------------------- batches


@pytest.fixture
def records(tmp_path: Path) -> list[ImageRecord]:
    """13 images with 1 to 5 captions."""
    root = write_flickr8k(tmp_path / "flickr8k")
    return read_karpathy(root / "dataset_flickr8k.json", root / "images")["train"]


def loader(
    records: list[ImageRecord],
    inputs: Inputs,
    *place: int,
    workers: int = 0,
    captioning: Captioning = Captioning(),  # noqa: B008 - frozen
    kind: Any = "paper",
    batch_size: int = 6,
) -> TrainLoader:
    assert inputs.image is not None
    assert inputs.text is not None
    images = SplitImages(records, inputs.image, Augmentation(kind))
    samples = TrainCaptions(records, images, CaptionTokenizer(inputs.text), seed=7)
    order = CaptionBatches(samples.counts, captioning, batch_size, 7, *place)
    return TrainLoader(samples, batch_size=None, sampler=order, num_workers=workers)


def test_each_image_is_in_a_batch_once_and_describes_its_captions(records: list[ImageRecord], inputs: Inputs) -> None:
    owner = {caption.caption_id: (row, record) for row, record in enumerate(records) for caption in record.captions}
    rows = {caption.caption_id: row for row, caption in enumerate(c for record in records for c in record.captions)}
    train = loader(records, inputs)
    encoded, seen = 0, []
    for batch in train:
        assert isinstance(batch, CaptionBatch)
        assert len(batch) == len(batch.texts) == len(batch.image_row_B) == 6
        assert len(set(batch.images.image_ids)) == len(batch.images)
        assert batch.images.pixels_B3HW is not None
        assert batch.images.pixels_B3HW.shape == (len(batch.images), 3, 16, 16)
        assert torch.equal(batch.images.index_B[batch.image_row_B], batch.texts.image_index_B)
        assert set(batch.image_row_B.tolist()) == set(range(len(batch.images)))
        for place, caption_id in enumerate(batch.texts.caption_ids):
            row, record = owner[caption_id]
            assert batch.images.image_ids[batch.image_row_B[place]] == record.image_id
            assert batch.texts.image_index_B[place] == row
            assert batch.texts.index_B[place] == rows[caption_id]
            assert batch.texts.texts[place] in {caption.text for caption in record.captions}
        encoded += len(batch.images)
        seen += batch.texts.caption_ids
    assert sorted(seen) == sorted(owner)  # 36 captions, 6 batches
    # An image is encoded again only where a batch ends within it: 13 images, at most 5 such ends.
    assert 13 <= encoded <= 18
    moved = batch.to("cpu")
    assert torch.equal(moved.image_row_B, batch.image_row_B)


def test_batches_do_not_depend_on_workers_or_processes(records: list[ImageRecord], inputs: Inputs) -> None:
    one = list(loader(records, inputs))
    workers = list(loader(records, inputs, workers=2))
    halves = [list(loader(records, inputs, rank, 2)) for rank in range(2)]
    for step, batch in enumerate(one):
        assert batch.texts.caption_ids == workers[step].texts.caption_ids
        assert torch.equal(batch.images.pixels_B3HW, workers[step].images.pixels_B3HW)
        pairs = [half[step] for half in halves]
        assert batch.texts.caption_ids == pairs[0].texts.caption_ids + pairs[1].texts.caption_ids
        # Pixels of each caption, in the order of captions: an image on both processes looks the same on both.
        mine = batch.images.pixels_B3HW[batch.image_row_B]
        theirs = torch.cat([pair.images.pixels_B3HW[pair.image_row_B] for pair in pairs])
        assert torch.equal(mine, theirs)


def test_augmentation_is_drawn_once_an_image_and_epoch(records: list[ImageRecord], inputs: Inputs) -> None:
    train = loader(records, inputs, captioning=Captioning(group="none"), batch_size=1)
    looks: dict[str, dict[int, list[torch.Tensor]]] = defaultdict(lambda: defaultdict(list))
    for epoch in range(2):
        train.order.set_epoch(epoch)
        for batch in train:
            looks[batch.images.image_ids[0]][epoch].append(batch.images.pixels_B3HW)
    for of_image in looks.values():
        assert all(torch.equal(pixels, of_image[0][0]) for pixels in of_image[0])
    assert sum(not torch.equal(of_image[0][0], of_image[1][0]) for of_image in looks.values()) > 6


def test_a_run_continues_within_an_epoch(records: list[ImageRecord], inputs: Inputs) -> None:
    train = loader(records, inputs, captioning=Captioning(captions_per_image=3))
    train.order.set_epoch(2)
    whole = list(train)
    begun = loader(records, inputs, captioning=Captioning(captions_per_image=3))
    begun.order.set_epoch(2)
    batches = iter(begun)
    next(batches), next(batches)
    state = begun.state_dict()
    assert state == {"epoch": 2, "batch": 2}
    resumed = loader(records, inputs, captioning=Captioning(captions_per_image=3))
    resumed.load_state_dict(state)
    rest = list(resumed)
    assert len(rest) == len(whole) - 2
    for batch, same in zip(rest, whole[2:], strict=True):
        assert batch.texts.caption_ids == same.texts.caption_ids
        assert torch.equal(batch.images.pixels_B3HW, same.images.pixels_B3HW)


def test_images_without_captions_are_never_drawn(records: list[ImageRecord], inputs: Inputs) -> None:
    assert inputs.text is not None
    bare = [ImageRecord("bare", None, ()), *records[:4], ImageRecord("bare too", None, ())]
    samples = TrainCaptions(bare, None, CaptionTokenizer(inputs.text), 0)
    batches = [samples.make(keys) for keys in CaptionBatches(samples.counts, Captioning(), 2, 0)]
    assert {image_id for batch in batches for image_id in batch.images.image_ids} == {record.image_id for record in records[:4]}
    assert batches[0].images.pixels_B3HW is None  # features come from elsewhere
    assert batches[0].to("cpu").images.pixels_B3HW is None


# ------------------------------------------------------------------------------------------------------- tokens and texts


def test_tokens_end_in_the_end_token_and_have_no_begin(tokenizer_folder: Path) -> None:
    tokenizer = CaptionTokenizer(TextInput(str(tokenizer_folder), max_tokens=5))
    texts = ["a dog runs", "a dog runs on the red grass", "dog"]
    tokens_BT, mask_BT = tokenizer(texts)
    assert tokens_BT.dtype == torch.int64
    assert mask_BT.dtype == torch.bool
    for text, tokens_T, mask_T in zip(texts, tokens_BT, mask_BT, strict=True):
        words = tokenizer.ids([text])[0][:4]
        assert tokens_T[mask_T].tolist() == [*words, 3]  # [sep] stands in for the end token that this tokenizer lacks
        assert mask_T.tolist() == sorted(mask_T.tolist(), reverse=True)
        assert (tokens_T[~mask_T] == 0).all()
    assert tokens_BT.shape == (3, 5)


def test_gpt2s_end_token_is_learned_and_pads(tmp_path: Path) -> None:
    """The same id ends and pads there: the mask alone tells them apart."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({"<|endoftext|>": 0, "a": 1, "dog": 2}, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>"
    ).save_pretrained(tmp_path / "gpt2")
    tokens_BT, mask_BT = CaptionTokenizer(TextInput(str(tmp_path / "gpt2")))(["a dog", "a"])
    assert tokens_BT.tolist() == [[1, 2, 0], [1, 0, 0]]
    assert mask_BT.tolist() == [[True, True, True], [True, True, False]]
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|endoftext|>").save_pretrained(tmp_path / "endless")
    with pytest.raises(InputError, match="endless has no end token"):
        CaptionTokenizer(TextInput(str(tmp_path / "endless")))


def test_texts_that_are_cut_are_counted(flickr8k_root: Path, inputs: Inputs) -> None:
    assert inputs.text is not None
    short = replace(inputs, captions=True, text=replace(inputs.text, max_tokens=9, before="a "))
    for join in (1, 2):
        data = Flickr8k(str(flickr8k_root), batch_size=1, num_workers=0, captioning=Captioning(join=join))
        data.connect(short)
        texts = [f"a {text}" for batch in data.train_dataloader() for text in batch.texts.texts]
        long = [len(data.task.tokenizer.ids([text])[0]) > 8 for text in texts]
        assert 0 < sum(long) < len(long)
        assert data.cut_captions(("train", "val")) == {"train": sum(long)}  # references are not read


def test_tokenizers_that_cannot_serve(tokenizer_folder: Path, inputs: Inputs) -> None:
    with pytest.raises(InputError, match="names no tokenizer"):
        CaptionTokenizer(TextInput(None))
    with pytest.raises(InputError, match="max_tokens is 1"):
        CaptionTokenizer(TextInput(str(tokenizer_folder), max_tokens=1))
    assert inputs.text is not None
    ids = [ImageRecord("7", None, (Caption("12", "", token_ids=(5, 6)),))]
    with pytest.raises(InputError, match="caption 12 is token ids of another tokenizer"):
        TrainCaptions(ids, None, CaptionTokenizer(inputs.text), 0)


def test_joined_phrases_are_sentences() -> None:
    assert joined([Caption("1", " a  dog\u2028runs. ")]) == Caption("1", "a dog runs.")
    two = joined([Caption("1", "a dog."), Caption("2", "the\tred grass")])
    assert (two.caption_id, two.text) == ("1+2", "a dog. the red grass")


def test_joined_texts_name_their_captions(records: list[ImageRecord], inputs: Inputs) -> None:
    assert inputs.text is not None
    samples = TrainCaptions(records, None, CaptionTokenizer(inputs.text), 0)
    row = samples.captions.first[4]  # the image with five captions
    batch = samples.make(CaptionKeys(0, ((int(row) + 1, int(row) + 3), (int(row) + 2,))))
    captions = records[4].captions
    assert batch.texts.caption_ids == (f"{captions[1].caption_id}+{captions[3].caption_id}", captions[2].caption_id)
    assert batch.texts.texts == (f"{captions[1].text}. {captions[3].text}", captions[2].text)
    assert batch.texts.index_B.tolist() == [row + 1, row + 2]
    assert batch.image_row_B.tolist() == [0, 0]
    assert len(batch.images) == 1


# -------------------------------------------------------------------------------------------------- of a data module


class Network(nn.Module):
    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        self.inputs = inputs
        self.weight = nn.Parameter(torch.zeros(3))


class Recorder(LightningModule):
    def __init__(self, inputs: Inputs, fail_at: int | None = None) -> None:
        super().__init__()
        self.network = Network(inputs)
        self.fail_at = fail_at
        self.seen: list[tuple[int, tuple[str, ...], float]] = []

    def training_step(self, batch: CaptionBatch, batch_idx: int) -> Tensor:
        if self.global_step == self.fail_at:
            raise KeyboardInterrupt
        assert batch.images.pixels_B3HW is not None
        self.seen.append((self.current_epoch, batch.texts.caption_ids, batch.images.pixels_B3HW.sum().item()))
        return (self.network.weight * batch.images.pixels_B3HW.mean((0, 2, 3))).sum()

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> None:
        assert isinstance(batch, ImageBatch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(
    root: Path, inputs: Inputs, folder: Path, fail_at: int | None = None, ckpt: Path | None = None, **options: Any
) -> Recorder:
    module = Recorder(inputs, fail_at)
    data = Flickr8k(str(root), batch_size=4, num_workers=0, seed=3, **options)
    callback = ModelCheckpoint(folder, save_last=True, every_n_train_steps=1, save_on_train_epoch_end=False)
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        callbacks=[callback],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        use_distributed_sampler=False,
    )
    try:
        trainer.fit(module, data, ckpt_path=ckpt)
    except (KeyboardInterrupt, SystemExit):
        assert fail_at is not None
    return module


def test_the_network_chooses(flickr8k_root: Path, inputs: Inputs) -> None:
    data = Flickr8k(str(flickr8k_root), batch_size=6, eval_batch_size=3, num_workers=0)
    data.connect(replace(inputs, captions=True))
    batches = list(data.train_dataloader())
    assert len(batches) == 6
    assert all(isinstance(batch, CaptionBatch) for batch in batches)
    assert sum(len(batch.images) for batch in batches) <= 18
    (loader,) = data.evaluation_loaders("val")
    assert [row for batch in loader for row in batch.index_B.tolist()] == list(range(5))
    data.connect(inputs)
    assert len(data.evaluation_loaders("val")) == 2
    with pytest.raises(InputError, match="captioning takes pixels"):
        data.connect(Inputs(None, inputs.text, RegionInput(4), captions=True))


def test_processes_evaluate_disjoint_images(flickr8k_root: Path, inputs: Inputs) -> None:
    rows = []
    for rank in range(2):
        data = Flickr8k(str(flickr8k_root), num_workers=0)
        data.connect(replace(inputs, captions=True), rank, 2)
        rows += [row for batch in data.evaluation_loaders("train")[0] for row in batch.index_B.tolist()]
    assert sorted(rows) == list(range(13))


def test_a_run_stopped_in_mid_epoch_sees_the_batches_it_would_have_seen(
    flickr8k_root: Path, inputs: Inputs, tmp_path: Path
) -> None:
    inputs = replace(inputs, captions=True)
    captioning = Captioning(captions_per_image=3)
    whole = fit(flickr8k_root, inputs, tmp_path / "whole", captioning=captioning)
    assert len(whole.seen) == 3 * (30 // 4)  # 13 images with 1, 2, 3, 3, 3, 1, ... captions
    begun = fit(flickr8k_root, inputs, tmp_path / "cut", fail_at=10, captioning=captioning)
    rest = fit(flickr8k_root, inputs, tmp_path / "cut", ckpt=tmp_path / "cut" / "last.ckpt", captioning=captioning)
    assert begun.seen + rest.seen == whole.seen
    with pytest.raises(InputError, match=r"with captioning\.captions_per_image 3, this run has None"):
        fit(flickr8k_root, inputs, tmp_path / "other", ckpt=mid(flickr8k_root, inputs, tmp_path, captioning))


def mid(root: Path, inputs: Inputs, folder: Path, captioning: Captioning) -> Path:
    fit(root, inputs, folder / "mid", fail_at=2, captioning=captioning)
    return folder / "mid" / "last.ckpt"
