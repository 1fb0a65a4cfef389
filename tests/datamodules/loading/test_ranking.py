"""Positives with candidates: which they are, that no candidate is a positive, and that nothing but seed and epoch decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.combined_loader import _shutdown_workers_and_reset_iterator
from tiny_regions import region_files, region_inputs, region_values, write_root
from torch import Tensor, nn

from datamodules.errors import InputError
from datamodules.flickr30k import Flickr30k
from datamodules.image_text import Limits
from datamodules.loading.order import GlobalBatches, mix
from datamodules.loading.ranking import Ranking, RankingBatches, TrainRanking
from datamodules.records import Candidates, RankingBatch

# 12 images have 1, 2, 3, 4, 5, 1, ... captions: 33.
CAPTIONS = 33


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_root(tmp_path_factory.mktemp("ranking") / "flickr30k")


def connected(root: Path, ranking: Ranking, rank: int = 0, world_size: int = 1, **options: Any) -> Flickr30k:
    data = Flickr30k(str(root), regions=region_files(), ranking=ranking, **({"batch_size": 4, "num_workers": 0} | options))
    data.connect(region_inputs(), rank, world_size)
    return data


def epoch_of(data: Flickr30k, epoch: int = 0) -> list[RankingBatch]:
    loader = data.train_dataloader()
    loader.order.set_epoch(epoch)
    batches = list(loader)
    _shutdown_workers_and_reset_iterator(loader)
    return batches


def dataset(data: Flickr30k) -> TrainRanking:
    found = data.train_dataloader().dataset
    assert isinstance(found, TrainRanking)
    return found


Side = list[list[tuple[str, str]]]  # for each positive, the (image, caption) of column 0 and of its candidates


def pairs(batch: RankingBatch, side: Candidates) -> Side:
    rows = zip(side.image_PX.tolist(), side.text_PX.tolist(), strict=True)
    return [
        [(batch.images.image_ids[i], batch.texts.caption_ids[t]) for i, t in zip(images, texts, strict=True)]
        for images, texts in rows
    ]


def content(batch: RankingBatch) -> tuple[Side | None, Side | None]:
    sides = (batch.hard_texts, batch.hard_images)
    texts, images = (None if side is None else pairs(batch, side) for side in sides)
    return texts, images


def test_a_batch_is_positives_with_candidates_of_both_sides(root: Path) -> None:
    data = connected(root, Ranking(7))
    owner = {caption.caption_id: record.image_id for record in data.records("train") for caption in record.captions}
    records = data.records("train")
    seen: tuple[list[str], list[str]] = ([], [])
    batches = epoch_of(data)
    assert len(batches) == CAPTIONS // 4
    for batch in batches:
        assert len(batch) == 8
        assert batch.hard_texts is not None
        assert batch.hard_images is not None
        for side in (batch.hard_texts, batch.hard_images):
            assert side.image_PX.shape == side.text_PX.shape == (4, 8)
            assert side.image_PX.dtype == side.text_PX.dtype == torch.int64
        texts, images = content(batch)
        assert texts is not None
        assert images is not None
        for positive, *candidates in texts:
            assert owner[positive[1]] == positive[0]
            assert {image for image, _ in candidates} == {positive[0]}
            assert len({caption for _, caption in candidates}) == 7
            assert all(owner[caption] != positive[0] for _, caption in candidates)
            seen[0].append(positive[1])
        for positive, *candidates in images:
            assert owner[positive[1]] == positive[0]
            assert {caption for _, caption in candidates} == {positive[1]}
            assert len({image for image, _ in candidates} - {positive[0]}) == 7
            seen[1].append(positive[1])
        # Each image and each caption once, and only those that are used; rows of the split.
        used_images = {pair[0] for side in (texts, images) for row in side for pair in row}
        used_captions = {pair[1] for side in (texts, images) for row in side for pair in row}
        assert sorted(batch.images.image_ids) == sorted(used_images)
        assert sorted(batch.texts.caption_ids) == sorted(used_captions)
        assert batch.images.image_ids == tuple(records[row].image_id for row in batch.images.index_B.tolist())
        owners = [records[row].image_id for row in batch.texts.image_index_B.tolist()]
        assert owners == [owner[caption] for caption in batch.texts.caption_ids]
        assert batch.images.regions is not None
        for row, image_id in enumerate(batch.images.image_ids):
            features = region_values(int(image_id[-4:]) - 1000)[0]
            np.testing.assert_array_equal(batch.images.regions.features_BRD[row, : len(features)].numpy(), features)
    for captions in seen:
        assert len(set(captions)) == len(captions) == 32
    assert seen[0] != seen[1]  # independent orders
    assert seen[0][:4] != seen[1][:4]


def test_candidates_are_never_positives_and_any_other_equally_often(root: Path) -> None:
    samples = dataset(connected(root, Ranking(5)))
    for caption in (0, 12, 32):  # the first, one of an image with five, the last
        image = int(samples.image_of_caption[caption])
        captions, images = np.zeros(CAPTIONS), np.zeros(12)
        for epoch in range(2000):
            drawn = samples.other_captions(epoch, caption)
            assert len(set(drawn.tolist())) == 5
            captions[drawn] += 1
            drawn = samples.other_images(epoch, caption)
            assert len(set(drawn.tolist())) == 5
            images[drawn] += 1
        own = samples.image_of_caption == image
        assert not captions[own].any()
        assert images[image] == 0
        for counts in (captions[~own], np.delete(images, image)):
            expected = 2000 * 5 / len(counts)
            assert abs(counts / expected - 1).max() < 0.25  # five or more standard deviations


def test_all_candidates_there_are_can_be_asked_for(root: Path) -> None:
    samples = dataset(connected(root, Ranking(11, sides="hard_images")))
    assert sorted(samples.other_images(0, 0).tolist()) == list(range(1, 12))
    samples = dataset(connected(root, Ranking(28, sides="hard_texts")))
    assert len(set(samples.other_captions(3, 12).tolist())) == 28


def test_epochs_and_seeds_differ(root: Path) -> None:
    found = [content(epoch_of(connected(root, Ranking(4), seed=seed), epoch)[0]) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert found[0] == content(epoch_of(connected(root, Ranking(4)))[0])
    for a, b in ((0, 1), (0, 2), (1, 2)):
        for side in range(2):
            assert found[a][side] != found[b][side]
    samples = dataset(connected(root, Ranking(4)))
    assert samples.other_captions(0, 7).tolist() != samples.other_captions(1, 7).tolist()


def test_batches_do_not_depend_on_workers_or_processes(root: Path) -> None:
    ranking = Ranking(6)
    one = epoch_of(connected(root, ranking), epoch=2)
    workers = epoch_of(connected(root, ranking, num_workers=2), epoch=2)
    halves = [epoch_of(connected(root, ranking, rank, 2), epoch=2) for rank in range(2)]
    assert len(one) == len(workers) == len(halves[0]) == 8
    for step, batch in enumerate(one):
        assert content(workers[step]) == content(batch)
        regions, twin = batch.images.regions, workers[step].images.regions
        assert regions is not None
        assert twin is not None
        assert torch.equal(regions.features_BRD, twin.features_BRD)
        assert torch.equal(regions.mask_BR, twin.mask_BR)
        assert torch.equal(batch.texts.tokens_BT, workers[step].texts.tokens_BT)
        for side in range(2):
            parts = [content(half[step])[side] for half in halves]
            assert [len(part or []) for part in parts] == [2, 2]
            assert (parts[0] or []) + (parts[1] or []) == content(batch)[side]


@pytest.mark.parametrize("sides", ["hard_texts", "hard_images"])
def test_one_side_alone_is_the_same_as_in_both(root: Path, sides: Any) -> None:
    which = ["hard_texts", "hard_images"].index(sides)
    for both, alone in zip(epoch_of(connected(root, Ranking(5))), epoch_of(connected(root, Ranking(5, sides))), strict=True):
        assert len(alone) == 4
        assert content(alone)[which] == content(both)[which]
        assert content(alone)[1 - which] is None
        if sides == "hard_texts":
            assert len(alone.images) <= 4
        else:
            assert len(alone.texts) == 4


def test_a_rank_draws_captions_of_its_own_shard(root: Path) -> None:
    ranking = Ranking(5, caption_pool="rank", max_words=9)
    everything = dataset(connected(root, Ranking(5, max_words=9)))
    shards = []
    for rank in range(2):
        samples = dataset(connected(root, ranking, rank, 2))
        shards.append(samples.pool.tolist())
        assert samples.pool.tolist() == everything.kept[rank::2].tolist()  # released: ids[rank::size]
        assert samples.kept.tolist() == everything.kept.tolist()
        for caption in samples.kept.tolist():
            drawn = samples.other_captions(0, caption)
            assert set(drawn.tolist()) <= set(shards[rank])
            assert not (samples.image_of_caption[drawn] == samples.image_of_caption[caption]).any()
        assert set(samples.other_images(0, 0).tolist()) <= set(range(1, 12))
    assert sorted(shards[0] + shards[1]) == everything.kept.tolist()


def test_long_captions_are_left_out_of_training_only(root: Path, tokenizer_folder: Path) -> None:
    lengths = [len(c.token_ids or ()) for record in connected(root, Ranking()).records("train") for c in record.captions]
    assert min(lengths) <= 7 < max(lengths)
    short = [row for row, length in enumerate(lengths) if length <= 7]
    by_database = connected(root, Ranking(5, max_words=7))
    by_file = Flickr30k(
        str(root), regions=region_files(texts=False), ranking=Ranking(5, max_words=7), batch_size=4, num_workers=0
    )
    by_file.connect(region_inputs(tokenizer_folder))
    for data in (by_database, by_file):
        samples = dataset(data)
        assert samples.kept.tolist() == short
        for batch in epoch_of(data):
            assert set(batch.texts.index_B.tolist()) <= set(short)
        texts: Any = data.evaluation_loaders("train")[1]
        assert sum(len(batch) for batch in texts) == CAPTIONS
    assert len(dataset(connected(root, Ranking(5, max_words=None)))) == CAPTIONS


def test_orders_leave_those_of_pairs_as_they_were() -> None:
    """Runs of earlier versions must be resumable."""
    before = torch.randperm(10, generator=torch.Generator().manual_seed(mix(1, 3, 1)))
    assert torch.equal(GlobalBatches(10, 2, seed=1).order(3), before)
    ranking = RankingBatches("both", 10, 2, seed=1)
    assert ranking.order(3, 0).tolist() != ranking.order(3, 1).tolist() != ranking.order(3).tolist()


@pytest.mark.parametrize(
    ("ranking", "limits", "message"),
    [
        # 5 of 33 captions are of one image
        (Ranking(29), Limits(), r"candidates is 29, .* only 28 candidate captions \(a pool of 33, up to 5 of one image\)"),
        (Ranking(12, sides="hard_images"), Limits(), r"candidates is 12, .* only 11 candidate other images: set .* at most 11"),
        (Ranking(4), Limits(train=4), r"ranking\.candidates is 4, .* only 3 candidate other images"),
        (Ranking(4, max_words=1), Limits(), r"ranking\.candidates is 4, .* only 0 candidate captions"),
    ],
)  # fmt: skip
def test_too_small_pools_are_refused(root: Path, ranking: Ranking, limits: Limits, message: str) -> None:
    with pytest.raises(InputError, match=message):
        connected(root, ranking, limits=limits).train_dataloader()


def test_impossible_options_are_refused(root: Path) -> None:
    with pytest.raises(InputError, match=r"ranking\.candidates is 0"):
        Ranking(0)
    with pytest.raises(InputError, match=r"ranking\.max_words is 0"):
        Ranking(max_words=0)
    with pytest.raises(InputError, match=r"batch_size 4 .* does not divide by 3"):
        connected(root, Ranking(4), 0, 3).train_dataloader()


# ----------------------------------------------------------------------------------------------------------- resume


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inputs = region_inputs()
        self.weight = nn.Parameter(torch.zeros(6))


class Recorder(LightningModule):
    """Records every batch; is interrupted before step `fail_at`."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        self.network = Network()
        self.fail_at = fail_at
        self.seen: list[tuple[Side | None, Side | None]] = []

    def training_step(self, batch: RankingBatch, batch_idx: int) -> Tensor:
        if self.global_step == self.fail_at:
            raise KeyboardInterrupt
        self.seen.append(content(batch))
        assert batch.images.regions is not None
        return (self.network.weight * batch.images.regions.features_BRD.float().mean((0, 1))).sum()

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        return None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(
    root: Path, folder: Path, ranking: Ranking, workers: int = 0, fail_at: int | None = None, resume: bool = False
) -> Recorder:
    module = Recorder(fail_at)
    data = Flickr30k(str(root), regions=region_files(), ranking=ranking, batch_size=4, num_workers=workers, seed=3)
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        callbacks=[ModelCheckpoint(folder, save_last=True, every_n_train_steps=1, save_on_train_epoch_end=False)],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    try:
        trainer.fit(module, datamodule=data, ckpt_path=folder / "last.ckpt" if resume else None, weights_only=False)
    except SystemExit:  # Lightning's answer to a KeyboardInterrupt
        assert fail_at is not None
    return module


def test_resumed_batches_are_those_of_the_uninterrupted_run(root: Path, tmp_path: Path) -> None:
    ranking = Ranking(6)
    whole = fit(root, tmp_path / "whole", ranking)
    assert len(whole.seen) == 16
    for stop, workers in ((3, 2), (11, 0)):
        before = fit(root, tmp_path / str(stop), ranking, workers, fail_at=stop)
        with pytest.raises(InputError, match=r"mid-epoch .*batches.* ranking\.candidates 6, this run has 5"):
            fit(root, tmp_path / str(stop), Ranking(5), resume=True)
        after = fit(root, tmp_path / str(stop), ranking, workers, resume=True)
        assert before.seen + after.seen == whole.seen
        assert torch.equal(after.network.weight, whole.network.weight)


def test_only_a_pool_of_the_rank_binds_a_resumed_run_to_its_processes(root: Path) -> None:
    for pool, refused in (("all", False), ("rank", True)):
        first = connected(root, Ranking(3, caption_pool=pool))  # type: ignore[arg-type]
        batches = iter(first.train_dataloader())
        next(batches)
        state = first.state_dict()
        second = connected(root, Ranking(3, caption_pool=pool), 0, 2)  # type: ignore[arg-type]
        second.load_state_dict(state)
        if refused:
            with pytest.raises(InputError, match="world_size 1, this run has 2"):
                second.train_dataloader()
        else:
            part, whole = content(next(iter(second.train_dataloader())))[0], content(next(batches))[0]
            assert part is not None
            assert whole is not None
            assert part == whole[:2]
