"""Two stages: each query's candidates by the cosine, their order by the score, against a loop over queries."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from full_rank_worker import IMAGES, TEXTS, Recorder, TwoStage, filled, items, owners
from torch import Tensor

from datamodules.errors import InputError
from datamodules.records import Positives
from lightning_modules.metrics import full_rank
from lightning_modules.metrics.ranks import score_ranks
from lightning_modules.metrics.rerank import Rerank


def naive(rerank: Rerank) -> tuple[list[int], list[int], set[tuple[int, int]]]:
    """Ranks of images and of captions, and the pairs that were scored, one query after the other."""
    scorer, images, texts = TwoStage(), items(IMAGES, 9, 1), items(TEXTS, 5, 2)
    cosines = scorer.image_vectors(images) @ scorer.text_vectors(texts).T
    own: list[int] = owners().tolist()

    def rank(cosines_C: Tensor, right: set[int], score: Callable[[int], Tensor]) -> int:
        candidates = cosines_C.argsort(descending=True)[: rerank.k_test].tolist()
        values = {at: float(score(at)) + rerank.add_similarity * float(cosines_C[at]) for at in candidates}
        found = [at for at in sorted(values, key=lambda at: -values[at]) if at in right]
        order = sorted(values, key=lambda at: -values[at])
        # what is not among the candidates comes behind everything, other right answers excepted
        return order.index(found[0]) + 1 if found else len(cosines_C) - len(right) + 1

    def one(image: int, text: int) -> Tensor:
        return scorer.score_pairs(images, texts, torch.tensor([image]), torch.tensor([text]))[0]

    of_images = [
        rank(cosines[i], {t for t in range(TEXTS) if own[t] == i}, lambda t, i=i: one(i, t)) for i in range(IMAGES)
    ]  # fmt: skip
    of_captions = [rank(cosines[:, t], {own[t]}, lambda i, t=t: one(i, t)) for t in range(TEXTS)]
    return of_images, of_captions, set(scorer.pairs)


@pytest.mark.parametrize("add_similarity", [True, False])
@pytest.mark.parametrize("k_test", [1, 4, 100])
def test_ranks_are_those_of_a_loop_over_queries(k_test: int, add_similarity: bool) -> None:
    rerank, scorer, metric = Rerank(k_test, add_similarity), TwoStage(), filled()
    metric.compute(scorer, rerank=rerank)
    of_images, of_captions, pairs = naive(rerank)
    found = metric.query_ranks()
    assert found["i2t_rank"].tolist() == of_images
    assert found["t2i_rank"].tolist() == of_captions
    assert set(scorer.pairs) == pairs
    assert len(scorer.pairs) == len(pairs) == metric.scored <= rerank.most(IMAGES, TEXTS)  # none twice
    scores = metric.scores()
    assert {(i, t) for i, t in scores.isfinite().nonzero().tolist()} == pairs
    assert (scores[~scores.isfinite()] == -torch.inf).all()
    hits = sum(rank <= 5 for rank in of_captions)
    assert float(metric.recalls()["t2i_r5"]) == pytest.approx(100 * hits / TEXTS)


def test_further_right_answers_are_looked_for_among_a_querys_candidates() -> None:
    metric = filled()
    metric.compute(TwoStage(), rerank=Rerank(3))
    pairs_P, captions_T = torch.arange(TEXTS), owners()
    karpathy = Positives(captions_T, pairs_P, pairs_P, captions_T)
    found, recalls = metric.positives({"own": karpathy}), metric.recalls()
    for side in ("i2t", "t2i"):
        for k in (1, 5, 10):
            assert float(found[f"own_{side}_r{k}"]) == pytest.approx(float(recalls[f"{side}_r{k}"]))
    assert set(found) == {
        f"own_{side}_{name}" for side in ("i2t", "t2i") for name in ("map_at_r", "rprecision", "r1", "r5", "r10")
    }


def test_with_all_candidates_and_no_cosine_it_is_full_rank() -> None:
    metric, whole = filled(), filled()
    assert metric.compute(TwoStage(), rerank=Rerank(TEXTS, False)) == whole.compute(Recorder())
    assert torch.equal(metric.scores(), whole.scores())
    few = filled()
    few.compute(TwoStage(), rerank=Rerank(2, False))
    assert few.query_ranks()["t2i_rank"].tolist() != score_ranks(whole.scores(), owners()).t2i_T.tolist()


def test_a_killed_job_goes_on_and_a_finished_one_is_read(tmp_path: Path) -> None:
    rerank, expected = Rerank(3), filled()
    values = expected.compute(TwoStage(), rerank=rerank)
    scorers = [TwoStage(calls=4), TwoStage(), TwoStage(calls=0)]
    with pytest.raises(KeyboardInterrupt):
        filled().compute(scorers[0], tmp_path, rerank=rerank, tokens=10)
    for scorer in scorers[1:]:
        metric = filled()
        assert metric.compute(scorer, tmp_path, rerank=rerank, tokens=10) == values
        assert torch.equal(metric.scores(), expected.scores())
    assert 0 < len(scorers[1].pairs) < expected.scored + len(scorers[0].pairs)
    assert set(scorers[0].pairs) | set(scorers[1].pairs) == {tuple(p) for p in expected.scores().isfinite().nonzero().tolist()}
    for other in (Rerank(5), None):
        with pytest.raises(InputError, match="another job"):
            filled().compute(TwoStage(), tmp_path, rerank=other)


def test_kept_scores_that_lack_a_chosen_pair_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another device may round the vectors so that another pair is chosen."""
    filled().compute(TwoStage(), tmp_path, rerank=Rerank(3))

    class Other(TwoStage):
        text_vectors = lambda self, texts: TwoStage.image_vectors(self, texts).flip(1)  # noqa: E731

    with pytest.raises(InputError, match="lack pairs that the first stage chooses now"):
        filled().compute(Other(), tmp_path, rerank=Rerank(3))


def test_units_of_work_stay_as_large(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    monkeypatch.setattr(full_rank, "Plan", lambda *given: sizes.append(given[2]) or Plan(*given))
    from lightning_modules.metrics.pair_batches import Plan

    filled().compute(TwoStage(), rerank=Rerank(1))
    filled().compute(TwoStage())
    assert sizes == [30 * IMAGES * TEXTS // (IMAGES + TEXTS), 30]


def test_what_cannot_be_asked_is_said() -> None:
    with pytest.raises(InputError, match="k_test is 0"):
        Rerank(0)
    metric = filled()
    metric.compute(TwoStage(), rerank=Rerank(3))
    with pytest.raises(InputError, match="chosen from the whole gallery"):
        metric.recalls(folds=11)
    assert Rerank().refused(TwoStage()) is None
    assert "Recorder has no vectors of its own" in str(Rerank().refused(Recorder()))
    assert "first 256 of each query ordered anew by their score plus the cosine" in Rerank(256).protocol()
