"""What is hidden in pre-training, against draws written out by hand: shares, at least one, and nothing but seed and epoch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_regions import VOCABULARY, WIDTH, region_files, region_inputs, write_root

from datamodules.errors import InputError
from datamodules.flickr30k import Flickr30k
from datamodules.formats.uniter.image_writer import ImageDatabaseWriter
from datamodules.inputs import Inputs, RegionInput, TextInput
from datamodules.loading.order import mix
from datamodules.loading.pretraining import MaskedPairs, MaskedTask, Pretraining, PretrainingBatches
from datamodules.loading.tokens import Tokenizer
from datamodules.records import MaskedBatch

CAPTIONS = 33  # of 12 images


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_root(tmp_path_factory.mktemp("pretraining") / "flickr30k")


def inputs(classes: int | None = None, tokenizer: str | None = None) -> Inputs:
    return Inputs(text=TextInput(tokenizer, 64, VOCABULARY.size), regions=RegionInput(WIDTH, classes), masked=True)


def connected(root: Path, pretraining: Pretraining | None = None, rank: int = 0, ranks: int = 1, **options: Any) -> Flickr30k:
    given = {"batch_size": 4, "num_workers": 0, "regions": region_files()} | options
    data = Flickr30k(str(root), pretraining=pretraining or Pretraining(), **given)
    data.connect(inputs(), rank, ranks)
    return data


def samples(data: Flickr30k) -> MaskedPairs:
    found = data.train_dataloader().dataset
    assert isinstance(found, MaskedPairs)
    return found


def epoch_of(data: Flickr30k, epoch: int = 0) -> list[MaskedBatch]:
    loader = data.train_dataloader()
    loader.order.set_epoch(epoch)
    return list(loader)


def test_a_batch_is_of_one_task_and_only_that_is_hidden(root: Path) -> None:
    data = connected(root)
    owner = {caption.caption_id: record for record in data.records("train") for caption in record.captions}
    seen: list[str] = []
    tasks = set()
    for batch in epoch_of(data) + epoch_of(data, 1):
        tasks.add(batch.task)
        seen += batch.texts.caption_ids
        clean = [owner[name] for name in batch.texts.caption_ids]
        images = [record.image_id for record in clean]
        given = {"itm": batch.matched_B, "mlm": batch.labels_BT, "mrfr": batch.hidden_BR}
        assert [name for name, value in given.items() if value is not None] == [batch.task]
        ids = [next(c.token_ids for c in record.captions if c.caption_id == name)
               for record, name in zip(clean, batch.texts.caption_ids, strict=True)]  # fmt: skip
        for row, words in enumerate(ids):
            assert words is not None
            read = batch.texts.tokens_BT[row, : len(words) + 2]
            whole = torch.tensor([VOCABULARY.cls, *words, VOCABULARY.sep])
            if batch.labels_BT is None:
                assert torch.equal(read, whole)
                continue
            label = batch.labels_BT[row]
            assert (label >= 0).any()
            assert (label[[0, len(words) + 1]] == -1).all()
            assert (label[len(words) + 2 :] == -1).all()
            hidden = label[: len(words) + 2] >= 0
            assert torch.equal(whole[hidden], label[: len(words) + 2][hidden])
            assert torch.equal(whole[~hidden], read[~hidden])
        if batch.matched_B is None:
            assert list(batch.images.image_ids) == images
        else:
            assert (torch.tensor([a == b for a, b in zip(batch.images.image_ids, images, strict=True)]) == batch.matched_B).all()
        if batch.hidden_BR is not None:
            assert batch.images.regions is not None
            assert batch.hidden_BR.any(1).all()
            assert not (batch.hidden_BR & ~batch.images.regions.mask_BR).any()
            assert batch.images.regions.features_BRD[batch.hidden_BR].any(1).all()  # the network hides them; here they are told
    assert tasks == {"itm", "mlm", "mrfr"}
    assert len(set(seen[:32])) == 32


def test_words_are_hidden_as_released(root: Path) -> None:
    """A twin of `random_word` (data/mlm.py) on the same draws, and the shares that it gives."""
    data = samples(connected(root, Pretraining({"mlm": MaskedTask("words")})))
    ids = np.array([4, 9, 6, 12, 5, 7, 4, 8], dtype=np.int64)
    kinds: Counter[str] = Counter()
    for sample in range(3000):
        generator = np.random.default_rng(mix(data.seed, 2, 9, sample))
        draws, others = generator.random(8), generator.integers(len(data.tokenizer.word_ids), size=8)
        tokens, labels = [], []
        for token, draw, other in zip(ids.tolist(), draws, others, strict=True):
            labels.append(token if draw < 0.15 else -1)
            if draw < 0.15 * 0.8:
                tokens.append(VOCABULARY.mask)
            elif draw < 0.15 * 0.9:
                tokens.append(VOCABULARY.first_word + int(other))
            else:
                tokens.append(token)
        if all(label == -1 for label in labels):
            labels[0], tokens[0] = int(ids[0]), VOCABULARY.mask
            kinds["forced"] += 1
        else:
            kinds.update("mask" if t == VOCABULARY.mask else "same" if t == label else "other"
                         for t, label in zip(tokens, labels, strict=True) if label != -1)  # fmt: skip
        read, found = data.hide_words(ids, 2, sample)
        assert (read.tolist(), found.tolist()) == (tokens, labels)
    hidden = kinds["mask"] + kinds["same"] + kinds["other"]
    assert hidden / 24000 == pytest.approx(0.15, abs=0.01)
    assert kinds["mask"] / hidden == pytest.approx(0.8, abs=0.03)
    assert kinds["forced"] / 3000 == pytest.approx(0.85**8, abs=0.03)


def test_regions_and_images_are_drawn_at_their_rates(root: Path) -> None:
    data = samples(connected(root, Pretraining(probability=0.3, exchanged=0.25)))
    hidden = np.stack([data.hidden_regions(8, 0, sample) for sample in range(2000)])
    assert hidden.any(1).all()
    forced = 0.7**8 / 8
    assert hidden.mean(0) == pytest.approx(np.full(8, 0.3 + forced), abs=0.04)
    pairs = [data.exchange(4, 1, sample) for sample in range(3000)]
    assert sum(not same for _, same in pairs) / 3000 == pytest.approx(0.25, abs=0.03)
    assert all((image == 4) is same for image, same in pairs)
    others = Counter(image for image, same in pairs if not same)
    assert set(others) == set(range(12)) - {4}


def test_tasks_are_drawn_by_their_ratios_for_several_batches_at_once() -> None:
    mixture = Pretraining({"a": MaskedTask("words", 3), "b": MaskedTask("regions")}, consecutive=2)
    found = [mixture.task_of(0, 0, batch) for batch in range(4000)]
    assert found[::2] == found[1::2]
    assert found.count("a") / 4000 == pytest.approx(0.75, abs=0.03)
    order = PretrainingBatches(mixture, 40, 4, 0, 0, 1)
    assert [keys.task for keys in order] == found[:10]
    order.start = 7
    assert [keys.task for keys in order] == found[7:10]


@pytest.mark.parametrize("unit", ["pair", "image"])
def test_two_processes_have_the_halves_of_one(root: Path, unit: Any) -> None:
    whole = epoch_of(connected(root, train_unit=unit), 3)
    halves = [epoch_of(connected(root, rank=rank, ranks=2, train_unit=unit), 3) for rank in (0, 1)]
    assert len(whole) == len(halves[0]) == (CAPTIONS if unit == "pair" else 12) // 4
    for batch, *parts in zip(whole, *halves, strict=True):
        assert {part.task for part in parts} == {batch.task}
        assert sum((part.texts.caption_ids for part in parts), ()) == batch.texts.caption_ids
        assert sum((part.images.image_ids for part in parts), ()) == batch.images.image_ids
        for name in ("labels_BT", "hidden_BR"):
            if getattr(batch, name) is not None:
                rows = [row[: int((row != -1).nonzero().max()) + 1] if name == "labels_BT" else row.nonzero()
                        for part in (batch, *parts) for row in getattr(part, name)]  # fmt: skip
                assert all(torch.equal(a, b) for a, b in zip(rows[:4], rows[4:], strict=True))


def test_an_image_has_another_caption_in_another_epoch(root: Path) -> None:
    data = samples(connected(root, train_unit="image"))
    drawn = {data.choose(epoch, 4) for epoch in range(60)}
    assert {image for image, _ in drawn} == {4}
    assert len(drawn) == 5  # it has five
    short = samples(connected(root, Pretraining(max_words=4), train_unit="image"))
    words = {row: len(c.token_ids or ()) for row, c in enumerate(c for r in short.records for c in r.captions)}
    for image in range(12):
        rows = range(int(short.captions.first[image]), int(short.captions.first[image + 1]))
        if any(words[row] <= 4 for row in rows):
            assert all(words[short.choose(epoch, image)[1]] <= 4 for epoch in range(10))
    pairs = samples(connected(root, Pretraining(max_words=4)))
    assert len(pairs) == sum(count <= 4 for count in words.values())


def test_an_evaluation_has_every_caption_in_every_task_and_hides_the_same_whatever_the_seed(root: Path) -> None:
    one, other = (connected(root, seed=seed, eval_batch_size=3) for seed in (0, 1))
    loaders = one.evaluation_loaders("val")
    assert len(loaders) == 3
    count = sum(len(record.captions) for record in one.records("val"))
    for loader, same, task in zip(loaders, other.evaluation_loaders("val"), ("itm", "mlm", "mrfr"), strict=True):
        batches = list(loader)
        assert {batch.task for batch in batches} == {task}
        assert len({name for batch in batches for name in batch.texts.caption_ids}) == count
        for batch, again in zip(batches, same, strict=True):
            assert batch.texts.caption_ids == again.texts.caption_ids
            for name in ("labels_BT", "hidden_BR", "matched_B"):
                assert (getattr(batch, name) is None) or torch.equal(getattr(batch, name), getattr(again, name))


def test_class_probabilities_come_where_the_network_wants_them(root: Path, tmp_path: Path) -> None:
    reader: Any = connected(root).task.splits.reader  # type: ignore[attr-defined]
    soft = {}
    with ImageDatabaseWriter(tmp_path / "db", region_files().layout) as writer:
        for seed, name in enumerate(reader.databases[0].names()):
            found = reader.read(name)
            soft[name] = np.random.default_rng(seed).dirichlet(np.ones(5), len(found.confidences_R)).astype(np.float16)
            writer.add(name, found.features_RD, found.boxes_R7[:, :4], found.confidences_R, soft[name])
    regions = region_files(image_db=str(tmp_path / "db"))
    data = connected(root, Pretraining({"mrckl": MaskedTask("regions")}), regions=regions)
    data.connect(inputs(classes=5))
    for batch in epoch_of(data):
        assert batch.images.regions is not None
        classes_BRC = batch.images.regions.classes_BRC
        assert classes_BRC is not None
        for row, record in enumerate(data.records("train")[i] for i in batch.images.index_B.tolist()):
            np.testing.assert_array_equal(classes_BRC[row, : len(soft[record.regions])], soft[record.regions])
    data.connect(inputs(classes=7))
    with pytest.raises(InputError, match=r"soft_labels \(\d, 5\); expected \[\d, 7\]: set region_classes"):
        epoch_of(data)
    data = connected(root, Pretraining({"mrckl": MaskedTask("regions")}))
    data.connect(inputs(classes=5))
    with pytest.raises(InputError, match=r"has no array 'soft_labels', .* leave that task out"):
        epoch_of(data)


def test_bad_options_and_a_tokenizer_without_a_mask(root: Path, tokenizer_folder: Path) -> None:
    for options, says in (
        ({"tasks": {}}, "tasks is empty"), ({"probability": 1.0}, "probability is 1.0"), ({"exchanged": 0}, "exchanged is 0"),
        ({"consecutive": 0}, "consecutive is 0"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=says):
            Pretraining(**options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="ratio 0"):
        MaskedTask("words", 0)
    data = Flickr30k(str(root), regions=region_files(texts=False))
    with pytest.raises(InputError, match=r"has no token for a hidden word \(\[MASK\]\)"):
        data.connect(inputs(tokenizer=str(tokenizer_folder)))
    data = connected(root)
    with pytest.raises(InputError, match="features of width 6, and the network takes 9"):
        data.connect(region_inputs(width=9))


def test_the_words_of_berts_vocabulary_are_those_of_the_released_range(tmp_path: Path) -> None:
    """Ids of [unusedN] stand on both sides of the special ones in bert-base-cased; v_range begins behind them."""
    from transformers import BertTokenizer

    pieces = ["[PAD]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused2]", "!", "dog", "##s"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces))
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    tokenizer = Tokenizer(TextInput(str(tmp_path)))
    assert tokenizer.word_ids.tolist() == [7, 8, 9]
    assert tokenizer.mask_id == 5
