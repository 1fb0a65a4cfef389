"""The IAIS benchmark: its plain loop and its writing of the released code's way are our block, and the script does what it says.

Times are never asserted.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from benchmark_scripts import benchmark

from lightning_modules.objectives.relation_alignment import RelationAlignment

KINDS = ("singular", "distributed")


@pytest.fixture(scope="module")
def iais() -> ModuleType:
    return benchmark("iais_loss")


def test_the_ragged_batch_is_ragged_and_the_even_one_is_not(iais: ModuleType) -> None:
    sizes = iais.SIZES["facts"]
    ragged, even = iais.block(sizes, True, "cpu"), iais.block(sizes, False, "cpu")
    for items, most in ((ragged.words, 30), (ragged.regions, 50)):
        lengths = items.mask_BN.sum(1)
        assert lengths.max() == most
        assert len(lengths.unique()) > 3
    assert even.words.mask_BN.all()
    assert even.regions.mask_BN.all()
    assert even.hidden_BSW.shape == (8, 82, 768)
    last = even.regions.place_BN[:, -1]
    assert (last == 81).all()


@pytest.mark.parametrize("anchor", ["language", "vision", "both"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_plain_loop_is_our_block(iais: ModuleType, kind: Any, anchor: Any) -> None:
    """Values and gradients on ragged input."""
    given = iais.block(iais.Sizes(5, 7, 9, 24, 2, 3, 48, 50, 16), True, "cpu")
    attended = given.leaves(torch.float32)
    leaves = [attended.queries_BHQD, attended.keys_BHKD]
    anchors = ("language", "vision") if anchor == "both" else (anchor,)
    loop = iais.plain_loop(kind, attended, given.words, given.regions, anchors)
    terms = RelationAlignment(kind)(attended, given.words, given.regions, anchors)
    block = torch.stack([each.mean() for each in terms.values()]).sum()
    torch.testing.assert_close(block, loop, rtol=1e-5, atol=1e-7)
    assert loop > 1e-3
    for mine, theirs in zip(torch.autograd.grad(block, leaves), torch.autograd.grad(loop, leaves), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5 * theirs.abs().max().item())
        assert theirs.abs().max() > 1e-4


def test_a_block_that_computes_something_else_is_not_timed(iais: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    given = iais.block(iais.SIZES["tiny"], True, "cpu")
    assert set(iais.differences("singular", given, torch.float32)) == {"loop", "released"}
    assert set(iais.differences("distributed", given, torch.bfloat16)) == {"loop"}
    monkeypatch.setattr(iais, "EPS", 1e-2)
    with pytest.raises(SystemExit, match=r"distributed: these do not compute.*loop.*released"):
        iais.differences("distributed", given, torch.float32)


def test_the_steps_losses_differ_by_the_alignment_only(iais: ModuleType) -> None:
    step = iais.Step(iais.SIZES["tiny"], "cpu", torch.float32)
    step.network.eval()  # no dropout
    plain = step(None)
    assert step.network.encoder.layers[-1].qkv.weight.grad.any()
    assert step(None) == plain
    for kind in KINDS:
        assert step(iais.IAIS(kind)) > plain + 1e-6


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_runs_and_writes_what_it_printed(
    iais: ModuleType, precision: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    threads, out = torch.get_num_threads(), tmp_path / "new" / "iais.json"
    try:
        result = iais.main(
            ["--size", "tiny", "--rounds", "1", "--calls", "2", "--threads", "1", "--precision", precision, "--out", str(out)]
        )
    finally:
        torch.set_num_threads(threads)
    stored = json.loads(out.read_text())
    assert stored == json.loads(json.dumps(result))
    assert [(row["case"], row["kind"]) for row in stored["rows"]] == [(c, k) for c in ("even", "ragged") for k in KINDS]
    assert [row["name"] for row in stored["of_steps"]] == ["without", *KINDS]
    assert len(stored["steps"]) == 2 * 2 * 3 + 3
    for row in stored["rows"]:
        for way in ("loop", "released"):  # of one round, the ratio is that of the two times
            assert row[f"{way}_over_ours"]["median"] == pytest.approx(row[f"{way}_s"] / row["ours_s"])
    assert stored["goals"] == {"loop_over_ours": 10.0, "share_of_step": 0.01}
    assert stored["git"]["revision"]
    assert stored["device"]["name"]
    printed = capsys.readouterr().out
    assert printed.count("| ragged | distributed |") == 1
    assert "MALLOC_*" in printed


def test_a_missing_gpu_is_told(iais: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device here"):
        iais.main(["--device", "cuda"])
