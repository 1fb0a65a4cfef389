"""Full rank: every pair once and right, whatever the mini-batches, the number of processes, and how often it is killed."""

from __future__ import annotations

import json
import signal
from collections import Counter
from pathlib import Path

import full_rank_worker
import numpy as np
import pytest
import torch
from forks import two_ranks
from full_rank_worker import IMAGES, TEXTS, UNIT_TOKENS, Recorder, TwoStage, filled, items, owners
from torch import Tensor
from uniter_recording import Recorded, recorded

from datamodules.errors import InputError
from datamodules.formats.uniter.image_database import ImageDatabase
from datamodules.formats.uniter.layout import Layout
from datamodules.formats.uniter.text_database import TextDatabase
from lightning_modules.metrics.full_rank import FullRank
from lightning_modules.metrics.pair_batches import Plan, score_pairs_by_length
from lightning_modules.metrics.ranks import score_ranks
from lightning_modules.metrics.recalls import recalls, score_fold_recalls
from lightning_modules.metrics.rerank import Rerank
from lightning_modules.metrics.score_store import ScoreStore
from lightning_modules.networks.pair_scorer import Ragged

ROOT = Path(__file__).resolve().parents[3]
TOY = ROOT / "tests" / "recordings" / "uniter_db"


@pytest.fixture(scope="module")
def uniter() -> Recorded:
    torch.set_num_threads(1)
    return recorded()


@pytest.fixture(scope="module")
def whole() -> Tensor:
    metric = filled()
    metric.compute(Recorder())
    return metric.scores()


def some(uniter: Recorded, images: int = 7, texts: int = 12) -> tuple[Ragged, Ragged]:
    """Random items through the recorded network's embeddings, of 1 to 8 regions and 3 to 10 words."""
    draw = torch.Generator().manual_seed(3)
    regions, words = torch.randint(1, 9, (images,), generator=draw), torch.randint(3, 11, (texts,), generator=draw)
    features, boxes = torch.randn(images, 8, 32, generator=draw), torch.rand(images, 8, 7, generator=draw)
    tokens = torch.randint(106, 150, (texts, 10), generator=draw)
    encoder = uniter.network.encoder
    with torch.no_grad():
        return (
            encoder.embed_regions(features, boxes, torch.arange(8)[None] < regions[:, None]),
            encoder.embed_texts(tokens, torch.arange(10)[None] < words[:, None]),
        )


def one_by_one(uniter: Recorded, images: Ragged, texts: Ragged) -> Tensor:
    """[I, T], the naive way."""
    with torch.no_grad():
        rows = [
            [uniter.network.score_pairs(images, texts, torch.tensor([i]), torch.tensor([t])) for t in range(len(texts))]
            for i in range(len(images))
        ]
    return torch.stack([torch.cat(row) for row in rows])


# ------------------------------------------------------------------------------------------------------------ the engine


def test_scores_are_those_of_single_pairs_in_the_order_given(uniter: Recorded) -> None:
    images, texts = some(uniter)
    expected = one_by_one(uniter, images, texts)
    draw = torch.Generator().manual_seed(4)
    image_P, text_P = torch.randint(7, (100,), generator=draw), torch.randint(12, (100,), generator=draw)
    for tokens, padding in ((1, 0.0), (40, 0.0), (40, 0.3), (10**6, 0.0), (10**6, 1.0), (None, 0.1)):
        with torch.no_grad():
            found = score_pairs_by_length(uniter.network, images, texts, image_P, text_P, tokens=tokens, padding=padding)
        torch.testing.assert_close(found, expected[image_P, text_P], atol=1e-5, rtol=0)
    assert expected.std() > 0.1  # scores differ by far more than the tolerance
    nothing = torch.zeros(0, dtype=torch.int64)
    assert score_pairs_by_length(uniter.network, images, texts, nothing, nothing).shape == (0,)


def test_mini_batches_keep_to_their_tokens_and_padding() -> None:
    images, texts = items(IMAGES, 9, 1), items(TEXTS, 5, 2)
    image_P, text_P = torch.arange(IMAGES).repeat_interleave(TEXTS), torch.arange(TEXTS).repeat(IMAGES)
    used = {}
    for padding in (0.0, 0.2, 1.0):
        scorer = Recorder()
        score_pairs_by_length(scorer, images, texts, image_P, text_P, tokens=60, padding=padding)
        assert Counter(scorer.pairs) == Counter(zip(image_P.tolist(), text_P.tolist(), strict=True))
        used[padding] = len(scorer.totals)
        if padding == 0:
            assert all(len(totals) == 1 for totals in scorer.totals)
            lengths = (images.lengths_B[image_P] + texts.lengths_B[text_P]).tolist()
            counts = Counter(lengths)
            assert len(scorer.totals) == sum(-(-count // (60 // length)) for length, count in counts.items())
        elif padding == 0.2:
            assert any(len(totals) > 1 for totals in scorer.totals)
            assert all(min(totals) > 0.5 * max(totals) for totals in scorer.totals)
    assert used[0.0] > used[0.2] >= used[1.0]


def test_gradients_flow_through_the_engine(uniter: Recorded) -> None:
    images, texts = some(uniter, 3, 3)
    states = images.states_ND.clone().requires_grad_()
    rows = torch.arange(3)
    score_pairs_by_length(uniter.network, Ragged(states, images.lengths_B), texts, rows, rows).sum().backward()
    assert states.grad is not None
    assert (states.grad.abs().sum(1) > 0).all()


# ----------------------------------------------------------------------------------------------------- places and shares


@pytest.mark.parametrize("unit_tokens", [1, 30, 10**6])
def test_every_pair_has_one_place_in_a_unit_of_its_length(unit_tokens: int) -> None:
    draw = np.random.default_rng(0)
    images, texts = draw.integers(1, 6, 9), draw.integers(2, 5, 13)
    plan = Plan(images, texts, unit_tokens)
    image_P, text_P = plan.rows(0, plan.pairs)
    assert sorted(zip(image_P.tolist(), text_P.tolist(), strict=True)) == [(i, t) for i in range(9) for t in range(13)]
    assert (plan.edges[0], plan.edges[-1]) == (0, 117)
    for unit, length in enumerate(plan.unit_total.tolist()):
        start, stop = plan.edges[unit], plan.edges[unit + 1]
        assert stop > start
        assert set((images[image_P[start:stop]] + texts[text_P[start:stop]]).tolist()) == {length}
        assert stop - start <= max(unit_tokens // length, 1)
    assert sorted(plan.unit_total.tolist(), reverse=True) == plan.unit_total.tolist()
    assert plan.unit_tokens().sum() == (images[image_P] + texts[text_P]).sum()


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_shares_are_equal_in_tokens(world: int) -> None:
    plan = Plan(np.arange(1, 40), np.arange(3, 30), 100)
    todo = np.delete(np.arange(len(plan.unit_total)), [3, 50, 51])
    shares = [plan.share(todo, rank, world) for rank in range(world)]
    assert np.concatenate(shares).tolist() == todo.tolist()
    loads = [plan.unit_tokens()[share].sum() for share in shares]
    assert max(loads) - min(loads) <= 2 * 100
    nothing = plan.share(np.zeros(0, np.int64), world - 1, world)
    assert len(nothing) == 0


# -------------------------------------------------------------------------------------------------------------- recalls


def test_full_rank_is_that_of_the_naive_scores(uniter: Recorded) -> None:
    images, texts = some(uniter)
    index = torch.tensor([0, 0, 1, 2, 2, 2, 3, 4, 5, 6, 6, 1])
    expected = one_by_one(uniter, images, texts)
    ranks = score_ranks(expected, index)
    for tokens in (20, 10**6):
        metric = FullRank(7, 12, progress=False)
        metric.add_images(images, torch.arange(7))
        metric.add_texts(texts, torch.arange(12), index)
        assert metric.compute(uniter.network, tokens=tokens) == recalls(ranks)
        torch.testing.assert_close(metric.scores(), expected, atol=1e-5, rtol=0)
        found = metric.query_ranks()
        assert found["i2t_rank"].tolist() == ranks.i2t_Q.tolist()
        assert found["i2t_image_index"].tolist() == ranks.i2t_image_Q.tolist()
        assert found["t2i_rank"].tolist() == ranks.t2i_T.tolist()
        assert found["t2i_image_index"].tolist() == index.tolist()
        assert found["t2i_text_index"].tolist() == list(range(12))


def test_official_full_rank_of_the_toy_database(uniter: Recorded) -> None:
    """The databases that the released code wrote, its scores of all pairs, and its recalls of them."""
    order = uniter.meta["eval_db"]
    image_db = ImageDatabase(TOY / "img_db" / "toy", Layout(conf_th=0.2, max_bb=8, min_bb=3))
    text_db = TextDatabase(TOY / "txt_db" / "itm_toy.db")
    entries = [text_db.read(name) for name in order["txt_ids"]]
    encoder, metric = uniter.network.encoder, FullRank(24, 120, progress=False)
    with torch.no_grad():
        for row, name in enumerate(order["img_ids"]):
            regions = image_db.read(name)
            features, boxes = torch.from_numpy(regions.features_RD)[None], torch.from_numpy(regions.boxes_R7)[None]
            embedded = encoder.embed_regions(features, boxes, torch.ones(boxes.shape[:2], dtype=torch.bool))
            metric.add_images(embedded, torch.tensor([row]))
        for row, entry in enumerate(entries):
            tokens = torch.tensor([[text_db.vocabulary.cls, *entry.input_ids, text_db.vocabulary.sep]])
            owner = torch.tensor([order["img_ids"].index(entry.image_name)])
            metric.add_texts(encoder.embed_texts(tokens, tokens > 0), torch.tensor([row]), owner)
    metric.compute(uniter.network)
    official = uniter.tensors["outputs/eval_db/score_matrix_fp32"].T
    torch.testing.assert_close(metric.scores(), official, atol=1e-5, rtol=0)
    halves = metric.scores().half().float() - uniter.tensors["outputs/eval_db/score_matrix_fp16"].T.float()
    assert halves.abs().max() <= 1e-3  # one step of a half at these sizes
    check(order["official"], metric.recalls(compat=True))


def check(official: dict[str, float], found: dict[str, Tensor]) -> None:
    for k in (1, 5, 10):
        assert float(found[f"i2t_r{k}"]) == pytest.approx(100 * official[f"txt_r{k}"])
        assert float(found[f"t2i_r{k}"]) == pytest.approx(100 * official[f"img_r{k}"])
    assert float(found["mean_recall"]) == pytest.approx(100 * official["r_mean"])


def test_released_count_and_its_correction(uniter: Recorded) -> None:
    scores, index = (uniter.tensors[f"inputs/itm_eval/{name}"] for name in ("score_matrix_img_by_txt", "txt_to_img"))
    expected = uniter.meta["itm_eval"]
    ranks = score_ranks(scores, index)
    check(expected["corrected"], recalls(ranks))
    check(expected["official"], recalls(ranks, compat=True))
    assert float(recalls(ranks, compat=True)["rsum"]) == pytest.approx(expected["meta_sum_official"])
    assert float(recalls(ranks)["rsum"]) == pytest.approx(expected["meta_sum_corrected"])


def test_folds_from_scores(whole: Tensor) -> None:
    scores, index = torch.rand(12, 30, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 12
    for compat in (False, True):
        parts = []
        for start in (0, 4, 8):
            own = [text for text, owner in enumerate(index.tolist()) if start <= owner < start + 4]
            parts.append(recalls(score_ranks(scores[start : start + 4][:, own], index[own] - start), compat=compat))
        found = score_fold_recalls(scores, index, folds=3, compat=compat)
        assert {name: float(value) for name, value in found.items()} == pytest.approx(
            {name: sum(float(part[name]) for part in parts) / 3 for name in parts[0]}
        )
    with pytest.raises(InputError, match="folds is 5, and 12 images do not divide"):
        score_fold_recalls(scores, index)
    metric = filled()
    metric.compute(Recorder())
    assert metric.recalls(folds=1) == metric.recalls()
    assert metric.recalls(folds=11)["t2i_r1"] == 100


# ------------------------------------------------------------------------------------------------------- kill and resume


@pytest.mark.parametrize("calls", [0, 1, 7, 20])
def test_resumes_without_scoring_a_pair_twice(tmp_path: Path, whole: Tensor, calls: int) -> None:
    """Stopped in the middle of a unit (mini-batches are a third of one), once more, and then to the end."""
    scored: Counter[tuple[int, int]] = Counter()
    for limit in (calls, 5):
        scorer = Recorder(calls=limit)
        with pytest.raises(KeyboardInterrupt):
            filled().compute(scorer, tmp_path / "store", tokens=10)
        scored.update(scorer.pairs)
    assert not (tmp_path / "store" / "scores.npy").exists()
    metric, scorer = filled(), Recorder()
    metric.compute(scorer, tmp_path / "store", tokens=10)
    scored.update(scorer.pairs)
    assert torch.equal(metric.scores(), whole)
    assert len(scored) == IMAGES * TEXTS
    # at most one unit in flight at each of the two stops
    assert sum(scored.values()) - len(scored) <= 2 * (UNIT_TOKENS // 2)
    assert len(scorer.pairs) == metric.scored < IMAGES * TEXTS or calls < 7


def test_finished_scores_are_kept_and_only_read(tmp_path: Path, whole: Tensor) -> None:
    first = filled()
    values = first.compute(Recorder(), tmp_path, weights="a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["items.npy", "job.json", "lock", "scores.npy"]
    np.testing.assert_array_equal(np.load(tmp_path / "scores.npy"), whole.numpy())
    job = json.loads((tmp_path / "job.json").read_text())
    assert job["image_ids"] == [f"image {row}" for row in range(IMAGES)]
    assert job["caption_ids"][22] == "caption 22"
    (tmp_path / "part-00000.f32").write_bytes(bytes(4))  # killed when the scores were in place, before its parts were deleted
    again, scorer = filled(), Recorder()
    assert again.compute(scorer, tmp_path, weights="a") == values
    assert scorer.pairs == []
    assert again.scored == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["items.npy", "job.json", "lock", "scores.npy"]
    # embeddings that differ by rounding are the same embeddings
    near = filled(changed=1e-5)
    near.compute(Recorder(calls=0), tmp_path, weights="a")


def test_scores_of_zero_are_done(tmp_path: Path) -> None:
    class Zero(Recorder):
        def score_pairs(self, *arguments: Ragged | Tensor) -> Tensor:
            return 0 * super().score_pairs(*arguments)  # type: ignore[arg-type]

    with pytest.raises(KeyboardInterrupt):
        filled().compute(Zero(calls=12), tmp_path)
    metric, scorer = filled(), Zero()
    metric.compute(scorer, tmp_path)
    assert (metric.scores() == 0).all()
    assert len(scorer.pairs) < IMAGES * TEXTS


def test_a_job_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        filled().compute(Recorder(calls=3), tmp_path, weights="a")
    with pytest.raises(InputError, match=r"another job: weights was 'a' and is 'b'\. Choose another folder, or delete"):
        filled().compute(Recorder(), tmp_path, weights="b")
    with pytest.raises(InputError, match="their embeddings differ"):
        filled(changed=0.2).compute(Recorder(), tmp_path, weights="a")
    fewer = FullRank(progress=False)
    fewer.add_images(items(3, 9, 1), torch.arange(3))
    fewer.add_texts(items(3, 5, 2), torch.arange(3), torch.arange(3))
    with pytest.raises(InputError, match=r"another job: .*images was 11 and is 3"):
        fewer.compute(Recorder(), tmp_path, weights="a")
    (tmp_path / "job.json").write_text("{")
    with pytest.raises(InputError, match=r"job\.json cannot be read .*delete"):
        filled().compute(Recorder(), tmp_path, weights="a")
    (tmp_path / "job.json").unlink()
    with pytest.raises(InputError, match=r"no job\.json to say whose it is \('part-00000\.f32' is there\)"):
        filled().compute(Recorder(), tmp_path, weights="a")


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    class Nested(Recorder):
        def score_pairs(self, *arguments: Ragged | Tensor) -> Tensor:
            with pytest.raises(InputError, match="another run is writing scores there"):
                filled().compute(Recorder(), tmp_path)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        filled().compute(Nested(), tmp_path)
    filled().compute(Recorder(), tmp_path)


@pytest.mark.parametrize("block", [1, 3, 100])
def test_store_merges_what_other_ranks_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr("lightning_modules.metrics.score_store.BLOCK", block)
    for rank, start in ((0, 0), (3, 4)):
        with ScoreStore(tmp_path, 10, rank) as store:
            store.write(start, np.array([1, 0, -2], np.float32))
    (tmp_path / "part-00007.f32").touch()  # killed before it had its size
    with ScoreStore(tmp_path, 10, 0) as store:
        assert store.read(0, 10).tolist() == [1, 0, -2, 0, 1, 0, -2, 0, 0, 0]
        assert store.done([0, 2, 3, 4, 6, 8, 10]).tolist() == [True, True, False, True, False, False]


def test_progress_says_pairs_a_second(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metric = filled()
    metric.progress = True
    metric.compute(Recorder(), tmp_path)
    said = capsys.readouterr().err
    assert "100%" in said
    assert "pairs/s" in said
    metric.compute(Recorder(), tmp_path)  # nothing left to do
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_equals_cpu(uniter: Recorded) -> None:
    images, texts = some(uniter)
    expected = one_by_one(uniter, images, texts)
    metric = FullRank(progress=False)
    metric.add_images(Ragged(images.states_ND.cuda(), images.lengths_B.cuda()), torch.arange(7).cuda())
    metric.add_texts(Ragged(texts.states_ND.cuda(), texts.lengths_B.cuda()), torch.arange(12).cuda(), torch.arange(12).cuda() % 7)
    try:
        metric.compute(uniter.network.cuda())
    finally:
        uniter.network.cpu()
    torch.testing.assert_close(metric.scores(), expected, atol=1e-4, rtol=0)


# ----------------------------------------------------------------------------------------------------------- bad input


def test_bad_input_is_named() -> None:
    images, texts = items(3, 9, 1), items(4, 5, 2)

    def metric(image_rows: list[int], text_rows: list[int], image_index: list[int]) -> FullRank:
        made = FullRank(progress=False)
        if image_rows:
            made.add_images(images.take(torch.tensor(image_rows) % 3), torch.tensor(image_rows))
        made.add_texts(texts.take(torch.tensor(text_rows)), torch.tensor(text_rows), torch.tensor(image_index))
        return made

    with pytest.raises(InputError, match=r"of 3 image rows 1 missing \(first: 2\) and 1 there more than once \(first: 0\)"):
        metric([0, 0, 1], [0], [0]).compute(Recorder())
    with pytest.raises(InputError, match="caption row 3 is outside"):
        metric([0, 1], [0, 3], [0, 1]).compute(Recorder())
    with pytest.raises(InputError, match="caption row 1 points at image row 2, but there are 2 images"):
        metric([0, 1], [0, 1], [0, 2]).compute(Recorder())
    with pytest.raises(InputError, match="got no image"):
        metric([], [0], [0]).compute(Recorder())
    with pytest.raises(InputError, match="one index each"):
        FullRank().add_images(images, torch.arange(2))
    with pytest.raises(InputError, match="one image index each"):
        FullRank().add_texts(texts, torch.arange(4), torch.arange(3))
    with pytest.raises(RuntimeError, match="compute"):
        FullRank().scores()

    class Diverged(Recorder):
        def score_pairs(self, *arguments: Ragged | Tensor) -> Tensor:
            return super().score_pairs(*arguments) * torch.nan  # type: ignore[arg-type]

    with pytest.raises(InputError, match=r"image row \d+ and caption row \d+ is NaN"):
        filled().compute(Diverged())
    scorer = Recorder()
    scorer.training = True
    with pytest.raises(RuntimeError, match="training mode"):
        filled().compute(scorer)


# --------------------------------------------------------------------------------------------------------- two processes


def test_two_processes_equal_one_and_one_goes_on_where_they_were_killed(tmp_path: Path, whole: Tensor) -> None:
    ends = two_ranks(full_rank_worker.main, tmp_path)
    assert [status for status, _ in ends] == [-signal.SIGKILL] * 2, ends
    expected = recalls(score_ranks(whole, owners()))
    answers = [torch.load(tmp_path / f"answers-{rank}.pt", weights_only=True) for rank in range(2)]
    for name in ("memory", "store"):
        for answer in answers:
            assert torch.equal(answer[name]["scores"], whole), name
            assert answer[name]["values"] == expected
            assert answer[name]["ranks"]["t2i_rank"].tolist() == score_ranks(whole, owners()).t2i_T.tolist()
        pairs = [set(answer[name]["pairs"]) for answer in answers]
        assert not pairs[0] & pairs[1]
        assert len(pairs[0] | pairs[1]) == IMAGES * TEXTS
        regions, words = items(IMAGES, 9, 1).lengths_B, items(TEXTS, 5, 2).lengths_B
        loads = [sum(int(regions[image] + words[text]) for image, text in part) for part in pairs]
        assert abs(loads[0] - loads[1]) <= 2 * UNIT_TOKENS
    alone = filled()
    reranked = alone.compute(TwoStage(), rerank=Rerank(3))
    for answer in answers:
        assert torch.equal(answer["reranked"]["scores"], alone.scores())
        assert answer["reranked"]["values"] == reranked
    pairs = [set(answer["reranked"]["pairs"]) for answer in answers]
    assert len(pairs[0] | pairs[1]) == sum(map(len, pairs)) == int(alone.scores().isfinite().sum())
    assert min(map(len, pairs)) > 0
    for answer in answers:
        assert torch.equal(answer["one-sided"]["scores"], whole)
        assert "there more than once" in answer["repeat"]["error"]
        assert "weights was 'a' and is 'b'" in answer["weights"]["error"]

    # both were killed in the middle of the job: one process finishes it
    store = tmp_path / "killed"
    assert sorted(path.name for path in store.glob("part-*")) == ["part-00000.f32", "part-00001.f32"]
    scored: Counter[tuple[int, ...]] = Counter()
    for rank in range(2):
        for pair in (tmp_path / f"log-{rank}").read_text().split():
            scored[tuple(map(int, pair.split(",")))] += 1
    before = len(scored)
    scorer, metric = Recorder(), filled()
    assert metric.compute(scorer, store, weights="a", tokens=10) == expected
    scored.update(scorer.pairs)
    assert torch.equal(metric.scores(), whole)
    assert len(scored) == IMAGES * TEXTS
    assert len(scorer.pairs) < IMAGES * TEXTS
    assert before + len(scorer.pairs) - IMAGES * TEXTS <= 2 * (UNIT_TOKENS // 2)
    assert sorted(path.name for path in store.iterdir()) == ["items.npy", "job.json", "lock", "scores.npy"]
