"""Ranks and recalls against naive argsort twins, torchmetrics, the official evaluation, and two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torchmetrics.retrieval import RetrievalHitRate

from datamodules.errors import InputError
from lightning_modules.metrics.ranks import Ties, embedding_ranks, score_ranks
from lightning_modules.metrics.recalls import fold_recalls, recalls
from lightning_modules.metrics.retrieval import RetrievalRecall

ROOT = Path(__file__).resolve().parents[3]
RECORDING = ROOT / "tests" / "recordings" / "mwa" / "retrieval_eval"


def naive_ranks(scores: Tensor, image_index: list[int], ties: Ties) -> tuple[list[int], list[int]]:
    """Sort every query's candidates and look where its target stands. Pessimistic = candidates sorted with targets last
    among equals."""

    def place(values: list[float], positives: set[int]) -> int:
        def key(item: int) -> tuple[float, bool, int]:
            return (-values[item], ties == "pessimistic" and item in positives, item)

        ranking = sorted(range(len(values)), key=key)
        return 1 + next(position for position, item in enumerate(ranking) if item in positives)

    i2t = []
    for image in range(len(scores)):
        positives = {text for text, owner in enumerate(image_index) if owner == image}
        if positives:
            i2t.append(place(scores[image].tolist(), positives))
    t2i = [place(scores[:, text].tolist(), {owner}) for text, owner in enumerate(image_index)]
    return i2t, t2i


def world(seed: int, images: int, texts: int, levels: int, width: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Integer-valued embeddings (dot products are exact, whatever the order of summation; few levels = many ties), any
    number of captions an image, in shuffled order."""
    draw = torch.Generator().manual_seed(seed)
    image_index = torch.randint(images, (texts,), generator=draw)
    image_part = torch.randint(-levels, levels + 1, (images, width), generator=draw).float()
    noise = torch.randint(-levels, levels + 1, (texts, width), generator=draw).float()
    return image_part, image_part[image_index] + noise, image_index


@pytest.mark.parametrize("ties", ["pessimistic", "index"])
@pytest.mark.parametrize(
    ("seed", "images", "texts", "levels"), [(0, 7, 31, 1), (1, 23, 40, 2), (2, 12, 60, 50), (3, 1, 3, 1), (4, 9, 1, 1)]
)
@pytest.mark.parametrize(("block_rows", "keep_bytes"), [(4, 2**30), (4, 0), (1, 0), (1000, 2**30)])
def test_equal_to_naive_argsort(
    ties: Ties, seed: int, images: int, texts: int, levels: int, block_rows: int, keep_bytes: int
) -> None:
    images_ID, texts_TD, image_index = world(seed, images, texts, levels)
    scores = images_ID @ texts_TD.T
    i2t, t2i = naive_ranks(scores, image_index.tolist(), ties)
    from_embeddings = embedding_ranks(images_ID, texts_TD, image_index, ties=ties, block_rows=block_rows, keep_bytes=keep_bytes)
    from_scores = score_ranks(scores, image_index, ties=ties, block_rows=block_rows)
    for ranks in (from_embeddings, from_scores):
        assert ranks.i2t_Q.tolist() == i2t
        assert ranks.t2i_T.tolist() == t2i
        assert ranks.i2t_image_Q.tolist() == sorted(set(image_index.tolist()))


def test_real_valued_embeddings_equal_to_naive() -> None:
    draw = torch.Generator().manual_seed(5)
    image_index = torch.arange(300).repeat_interleave(5)[torch.randperm(1500, generator=draw)]
    images_ID = torch.nn.functional.normalize(torch.randn(300, 64, generator=draw, dtype=torch.float64), dim=1)
    texts_TD = images_ID[image_index] + 0.3 * torch.randn(1500, 64, generator=draw, dtype=torch.float64)
    ranks = embedding_ranks(images_ID, texts_TD, image_index, block_rows=7)
    scores = images_ID @ texts_TD.T
    t2i = (scores.argsort(0, descending=True) == image_index).nonzero()
    assert ranks.t2i_T[t2i[:, 1]].tolist() == (t2i[:, 0] + 1).tolist()
    own_in_order = image_index[scores.argsort(1, descending=True)] == torch.arange(300)[:, None]
    assert ranks.i2t_Q.tolist() == (own_in_order.int().argmax(1) + 1).tolist()
    assert 10 < float(recalls(ranks)["t2i_r1"]) < 99  # neither hopeless nor solved, or the comparison would show little


def test_targets_never_lose_against_themselves() -> None:
    """Every image its own best: with any rounding of the matmul a rank below or above 1 would show."""
    draw = torch.Generator().manual_seed(6)
    images_ID = torch.nn.functional.normalize(torch.randn(513, 96, generator=draw), dim=1)
    for keep_bytes in (0, 2**30):
        ranks = embedding_ranks(images_ID, images_ID, torch.arange(513), keep_bytes=keep_bytes, block_rows=100)
        assert ranks.i2t_Q.unique().tolist() == [1]
        assert ranks.t2i_T.unique().tolist() == [1]


def test_constant_scores_get_no_hits() -> None:
    image_index = torch.arange(20).repeat_interleave(5)
    ranks = score_ranks(torch.zeros(20, 100), image_index)
    assert ranks.i2t_Q.unique().tolist() == [96]  # behind the 95 captions of others
    assert ranks.t2i_T.unique().tolist() == [20]
    assert float(recalls(ranks)["rsum"]) == 0
    by_index = score_ranks(torch.zeros(20, 100), image_index, ties="index")
    assert by_index.i2t_Q.tolist() == list(range(1, 100, 5))
    assert by_index.t2i_T.tolist() == (image_index + 1).tolist()


def test_images_without_captions_are_candidates_but_no_queries() -> None:
    scores = torch.tensor([[0.9, 0.1], [0.95, 0.0], [0.2, 0.8]])
    ranks = score_ranks(scores, torch.tensor([0, 2]))
    assert ranks.i2t_image_Q.tolist() == [0, 2]
    assert ranks.i2t_Q.tolist() == [1, 1]
    assert ranks.t2i_T.tolist() == [2, 1]  # image 1 has no caption and still beats image 0 for caption 0


def test_equal_to_torchmetrics_hit_rate() -> None:
    draw = torch.Generator().manual_seed(7)
    image_index = torch.arange(40).repeat_interleave(5)
    scores = torch.randn(40, 200, generator=draw) + 1.5 * (image_index == torch.arange(40)[:, None])
    ours = recalls(score_ranks(scores, image_index))
    target = image_index == torch.arange(40)[:, None]
    for k in (1, 5, 10):
        images, texts = torch.meshgrid(torch.arange(40), torch.arange(200), indexing="ij")
        for name, query in (("i2t", images), ("t2i", texts)):
            hit_rate = RetrievalHitRate(top_k=k)(scores.flatten(), target.flatten(), query.flatten())
            assert float(ours[f"{name}_r{k}"]) == pytest.approx(100 * float(hit_rate), abs=1e-4)


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


def test_recalls_by_hand() -> None:
    scores = torch.eye(12).repeat_interleave(2, 1) + torch.linspace(0, 0.1, 24)
    scores[0, :2] = -1  # image 0: its captions come last, behind 22 others; and captions 0, 1 rank image 0 last of 12
    values = recalls(score_ranks(scores, torch.arange(12).repeat_interleave(2)))
    assert {name: round(float(value), 4) for name, value in values.items()} == {
        "i2t_r1": 91.6667, "i2t_r5": 91.6667, "i2t_r10": 91.6667, "t2i_r1": 91.6667, "t2i_r5": 91.6667, "t2i_r10": 91.6667,
        "rsum": 550.0, "mean_recall": 91.6667, "i2t_medr": 1.0, "t2i_medr": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize(("ranks", "median"), [([3, 1, 4], 3), ([1, 2], 1), ([5, 2, 8, 4], 4), ([1, 4], 2)])
def test_median_rank_of_an_even_count_is_rounded_down(ranks: list[int], median: int) -> None:
    # A score row per image: `rank - 1` others score higher than its own caption, one caption an image, 12 images.
    scores = torch.zeros(12, 12)
    for image, rank in enumerate(ranks):
        others = [text for text in range(12) if text != image]
        scores[image, others[: rank - 1]] = 2
        scores[image, image] = 1
    index = torch.arange(12)
    i2t = score_ranks(scores, index).i2t_Q[: len(ranks)]
    assert i2t.tolist() == ranks
    from lightning_modules.metrics.ranks import Ranks

    assert float(recalls(Ranks(i2t, index[: len(ranks)], i2t))["i2t_medr"]) == median


def test_fold_recalls_is_the_mean_over_galleries() -> None:
    images_ID, texts_TD, image_index = world(8, 30, 150, 3)
    folded = fold_recalls(images_ID, texts_TD, image_index, folds=3)
    parts = []
    for start in (0, 10, 20):
        rows = [text for text, owner in enumerate(image_index.tolist()) if start <= owner < start + 10]
        owners = [owner - start for owner in image_index[rows].tolist()]
        parts.append(naive_ranks(images_ID[start : start + 10] @ texts_TD[rows].T, owners, "pessimistic"))
    for k in (1, 5, 10):
        for name, which in (("i2t", 0), ("t2i", 1)):
            expected = sum(100 * sum(rank <= k for rank in part[which]) / len(part[which]) for part in parts) / 3
            assert float(folded[f"{name}_r{k}"]) == pytest.approx(expected)
    assert float(folded["t2i_r1"]) > float(recalls(embedding_ranks(images_ID, texts_TD, image_index))["t2i_r1"])
    with pytest.raises(InputError, match="30 images do not divide into 7 folds"):
        fold_recalls(images_ID, texts_TD, image_index, folds=7)


@pytest.mark.parametrize("precision", ["bf16 autocast", "medium"])
def test_precision_around_the_call_does_not_matter(precision: str) -> None:
    draw = torch.Generator().manual_seed(9)
    images_ID, texts_TD = torch.randn(200, 32, generator=draw), torch.randn(200, 32, generator=draw)
    expected = embedding_ranks(images_ID, texts_TD, torch.arange(200))
    torch.set_float32_matmul_precision("medium" if precision == "medium" else "highest")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16 autocast"):
            ranks = embedding_ranks(images_ID, texts_TD, torch.arange(200))
        assert torch.get_float32_matmul_precision() == ("medium" if precision == "medium" else "highest")
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(ranks.t2i_T, expected.t2i_T)
    assert torch.equal(ranks.i2t_Q, expected.i2t_Q)


def test_bad_input_is_named() -> None:
    good, index = torch.eye(4), torch.arange(4)
    broken = good.clone()
    broken[2, 1] = torch.nan
    with pytest.raises(InputError, match="image row 2 and caption row 1 is NaN"):
        score_ranks(broken, index)
    with pytest.raises(InputError, match="image embeddings hold NaN"):
        embedding_ranks(broken, good, index)
    with pytest.raises(InputError, match="caption embeddings hold NaN"):
        embedding_ranks(good, broken, index)
    with pytest.raises(InputError, match="overflowing"):
        embedding_ranks(good * 1e25, good * 1e25, index)
    with pytest.raises(InputError, match="caption row 3 points at image row 4"):
        score_ranks(good, torch.tensor([0, 1, 2, 4]))
    with pytest.raises(InputError, match="nothing to rank"):
        score_ranks(torch.empty(0, 4), index)
    with pytest.raises(InputError, match="do not match"):
        embedding_ranks(good, torch.eye(5), torch.arange(5))
    with pytest.raises(InputError, match="one int64 image row"):
        score_ranks(good, torch.arange(3))
    with pytest.raises(InputError, match="ties='random'"):
        score_ranks(good, index, ties="random")  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------- the metric


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
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, str(ROOT / "tests" / "support" / "ddp_worker.py")]
    processes = [
        subprocess.Popen([*command, str(rank), "2", str(tmp_path)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
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
