"""Recalls as a metric: the official evaluation's, any order of batches, and two processes."""

from __future__ import annotations

import json
from pathlib import Path

import ddp_worker
import numpy as np
import pytest
import torch
from forks import two_ranks
from naive_ranks import world
from safetensors.torch import load_file
from torch import Tensor

from datamodules.errors import InputError
from lightning_modules.metrics.ranks import Ties, embedding_ranks
from lightning_modules.metrics.recalls import recalls
from lightning_modules.metrics.retrieval import RetrievalRecall

ROOT = Path(__file__).resolve().parents[3]


RECORDING = ROOT / "tests" / "recordings" / "mwa" / "retrieval_eval"


@pytest.mark.parametrize("ties", ["pessimistic", "index"])
def test_official_recalls(ties: Ties) -> None:
    """The recalls that BEiT-3's RetrievalHandler (in MWA's repository) gives on recorded features."""
    tensors = load_file(RECORDING.with_suffix(".safetensors"))
    official = json.loads(RECORDING.with_suffix(".json").read_text())["metrics"]
    ids = tensors["inputs/pair_image_ids"]
    image_ids, image_index = ids.unique(return_inverse=True)
    first = torch.stack([(ids == image_id).nonzero()[0, 0] for image_id in image_ids])
    metric = RetrievalRecall(expected_images=len(image_ids), expected_texts=len(ids), ties=ties)
    metric.update_images(tensors["inputs/pair_image_feats"][first], torch.arange(len(first)))
    metric.update_texts(tensors["inputs/pair_text_feats"], torch.arange(len(ids)), image_index)
    ours = metric.compute()
    for k in (1, 5, 10):
        assert float(ours[f"i2t_r{k}"]) == pytest.approx(official[f"tr_r{k}"], abs=1e-4)
        assert float(ours[f"t2i_r{k}"]) == pytest.approx(official[f"ir_r{k}"], abs=1e-4)
    assert float(ours["mean_recall"]) == pytest.approx(official["average_score"], abs=1e-4)


def filled(images: list[int], texts: list[int], **expected: int) -> RetrievalRecall:
    """A metric that got these rows of a perfect model with two captions an image, one row a batch, in this order."""
    metric = RetrievalRecall(**expected)  # type: ignore[arg-type]
    for row in images:
        metric.update_images(torch.eye(16)[[row]], torch.tensor([row]))
    for row in texts:
        metric.update_texts(torch.eye(16)[[row // 2]], torch.tensor([row]), torch.tensor([row // 2]))
    return metric


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_metric_does_not_mind_the_order_and_keeps_query_ranks() -> None:
    images_ID, texts_TD, image_index = world(10, 15, 47, 2)
    metric = RetrievalRecall()
    for rows in torch.randperm(47).split(10):
        metric.update_texts(texts_TD[rows], rows, image_index[rows])
    for rows in torch.randperm(15).split(4):
        metric.update_images(images_ID[rows].bfloat16(), rows)  # exact: small integers
    ranks = embedding_ranks(images_ID, texts_TD, image_index)
    assert metric.compute() == recalls(ranks)
    queries = metric.query_ranks()
    assert torch.equal(queries["i2t_rank"], ranks.i2t_Q)
    assert torch.equal(queries["i2t_image_index"], ranks.i2t_image_Q)
    assert torch.equal(queries["t2i_rank"], ranks.t2i_T)
    assert torch.equal(queries["t2i_image_index"], image_index)
    assert torch.equal(queries["t2i_text_index"], torch.arange(47))
    metric.reset()
    with pytest.raises(RuntimeError, match="needs compute"):
        metric.query_ranks()
    with pytest.raises(InputError, match="got 0 and 0"):
        metric.compute()


def vse_fold5(images_ID: Tensor, texts_TD: Tensor, fold_images: int) -> dict[str, float]:
    """VSE++'s `evalrank(fold5=True)`, query by query: five captions an image in the split's order, a row of results a fold, and
    the mean of each column. Its ranks are from 0, of a descending sort."""
    rows = []
    for start in range(0, len(images_ID), fold_images):
        images = images_ID[start : start + fold_images].numpy()
        captions = texts_TD[5 * start : 5 * (start + fold_images)].numpy()
        i2t = [min(int(np.where(np.argsort(captions @ image)[::-1] == own)[0][0]) for own in range(5 * i, 5 * i + 5))
               for i, image in enumerate(images)]  # fmt: skip
        t2i = [int(np.where(np.argsort(images @ caption)[::-1] == t // 5)[0][0]) for t, caption in enumerate(captions)]
        row = [100.0 * float(np.mean(np.array(ranks) < k)) for ranks in (i2t, t2i) for k in (1, 5, 10)]
        rows.append([*row, sum(row), *(float(np.floor(np.median(ranks)) + 1) for ranks in (i2t, t2i))])
    names = [f"{side}_r{k}" for side in ("i2t", "t2i") for k in (1, 5, 10)] + ["rsum", "i2t_medr", "t2i_medr"]
    return dict(zip(names, np.mean(rows, axis=0).tolist(), strict=True))


def test_folds_are_those_of_the_official_1k_protocol() -> None:
    """Whatever the order of batches: galleries follow the split. The whole gallery's recalls are untouched by it."""
    draw = torch.Generator().manual_seed(3)
    images_ID = torch.randn(100, 12, generator=draw)
    texts_TD = images_ID.repeat_interleave(5, 0) + 1.5 * torch.randn(500, 12, generator=draw)
    metric, plain = RetrievalRecall(folds=5), RetrievalRecall()
    for each in (metric, plain):
        for rows in torch.randperm(100, generator=draw).split(30):
            each.update_images(images_ID[rows], rows)
        for rows in torch.randperm(500, generator=draw).split(90):
            each.update_texts(texts_TD[rows], rows, rows // 5)
    found, whole = metric.compute(), plain.compute()
    assert {name: found[name] for name in whole} == whole
    assert found.keys() == whole.keys() | {f"folds_{name}" for name in whole}
    for name, value in vse_fold5(images_ID, texts_TD, 20).items():
        assert float(found[f"folds_{name}"]) == pytest.approx(value), name
    assert float(found["folds_t2i_r1"]) > float(found["t2i_r1"])


def test_metric_computes_anew_after_an_update() -> None:
    metric = filled([0, 1, 2], [0, 1, 2, 3, 4])
    assert float(metric.compute()["t2i_r1"]) == 100
    metric.update_texts(torch.eye(16)[[9]], torch.tensor([5]), torch.tensor([2]))
    assert float(metric.compute()["t2i_r1"]) == pytest.approx(100 * 5 / 6)


@pytest.mark.parametrize(
    ("images", "texts", "expected", "message"),
    [
        ([0, 1, 2, 2], [0, 1], {"expected_images": 3}, r"of 3 image rows 1 there more than once \(first: 2\)"),
        ([0, 2], [0, 1], {"expected_images": 3}, r"of 3 image rows 1 missing \(first: 1\)"),
        ([0, 1, 1], [0], {}, r"of 3 image rows 1 missing \(first: 2\) and 1 there more than once \(first: 1\)"),
        ([0, 1, 3], [0], {}, r"image row 3 is outside 0\.\.2: 3 were evaluated, so rows are missing"),
        ([0, 1], [0, 1, 3], {"expected_texts": 4}, r"of 4 caption rows 1 missing \(first: 2\)"),
        ([0, 1], [0, 1, 2], {"expected_texts": 2}, r"caption row 2 is outside 0\.\.1: 2 were expected"),
        ([0, 1], [], {}, "got 2 and 0"),
        ([0, 1], [0, 7], {"expected_texts": 8}, "6 missing"),
        ([0, 1], [0, 1, 2, 3, 4], {}, "caption row 4 points at image row 2, but there are 2 images"),
    ],
)  # fmt: skip
def test_metric_refuses_holes_and_repeats(images: list[int], texts: list[int], expected: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        filled(images, texts, **expected).compute()


def test_metric_refuses_mismatched_updates() -> None:
    metric = RetrievalRecall()
    with pytest.raises(InputError, match="one index each"):
        metric.update_images(torch.eye(3), torch.arange(2))
    with pytest.raises(InputError, match="one index each"):
        metric.update_texts(torch.eye(3), torch.arange(3), torch.arange(4))


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Uneven shards, a process without any sample, repeats over processes (refused in both), no samples at all."""
    images_ID, texts_TD, image_index = world(11, 13, 41, 2)
    rows_I, rows_T = torch.arange(13), torch.arange(41)
    cases = {
        "uneven": {
            "images": [rows_I[:9].split(2), rows_I[9:].split(3)],
            "texts": [rows_T[1::2].split(7), rows_T[::2].split(1)],
        },
        "empty first": {"images": [[], [rows_I]], "texts": [[], [rows_T]]},
        "crossed": {"images": [[rows_I], []], "texts": [[], rows_T.split(5)]},
        "repeated": {"images": [[rows_I], [rows_I[-1:]]], "texts": [[rows_T], []]},
        "nothing": {"images": [[], []], "texts": [[], []]},
    }  # fmt: skip
    cases = {name: {kind: [list(part) for part in parts] for kind, parts in case.items()} for name, case in cases.items()}
    torch.save({"images": images_ID, "texts": texts_TD, "image_index": image_index, "cases": cases}, tmp_path / "data.pt")
    ends = two_ranks(ddp_worker.main, tmp_path)
    assert [status for status, _ in ends] == [0, 0], ends
    ranks = embedding_ranks(images_ID, texts_TD, image_index)
    for rank in range(2):
        answers = torch.load(tmp_path / f"answers-{rank}.pt", weights_only=True)
        for name in ("uneven", "empty first", "crossed"):
            assert answers[name]["values"] == recalls(ranks), name
            assert torch.equal(answers[name]["ranks"]["t2i_rank"], ranks.t2i_T), name
            assert torch.equal(answers[name]["ranks"]["i2t_rank"], ranks.i2t_Q), name
        assert "1 there more than once (first: 12)" in answers["repeated"]["error"]
        assert "got 0 and 0" in answers["nothing"]["error"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_equals_cpu() -> None:
    images_ID, texts_TD, image_index = world(12, 50, 260, 3)
    ranks = embedding_ranks(images_ID.cuda(), texts_TD.cuda(), image_index)
    expected = embedding_ranks(images_ID, texts_TD, image_index)
    assert torch.equal(ranks.t2i_T.cpu(), expected.t2i_T)
    assert torch.equal(ranks.i2t_Q.cpu(), expected.i2t_Q)
