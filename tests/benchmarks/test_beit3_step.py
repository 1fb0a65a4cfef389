"""BEiT-3's benchmarks at toy sizes: counts against the recorded ones of the official code, and what each script promises.

Times are never asserted. The official encoder is not installed here; what it needs is tested where it is (`make bench-beit3`).
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from benchmark_scripts import benchmark


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    return benchmark("beit3_reference")


@pytest.fixture(scope="module")
def step() -> ModuleType:
    return benchmark("beit3_step")


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    return benchmark("beit3_gpu")


@pytest.fixture(scope="module")
def checkpoint() -> ModuleType:
    return benchmark("official_checkpoint")


# ----------------------------------------------------------------------------------------------------------------- FLOPs


@pytest.mark.parametrize(
    ("size", "image_size", "gflops"),
    [  # GF a pair, counted by torch on the official code at 64 text tokens: full, KE 64, KE 64 + AE 128, released
        ("base", 384, [365.3, 249.1, 258.1, 466.8]),
        ("base", 224, [138.2, 91.5, 95.2, 180.2]),
        ("large", 384, [1262.7, 867.7, 891.9, 1642.0]),
    ],
)
def test_textbook_count_is_the_one_recorded_from_the_official_code(
    step: ModuleType, gpu: ModuleType, size: str, image_size: int, gflops: list[float]
) -> None:
    sizes = replace(gpu.SIZES[size], image_size=image_size, batch=1)
    modes = ("full", "ke", "mwa", "released")
    counted = [step.closed_form(sizes, step.adapter_widths(mode, sizes, 64, 128)) / 1e9 for mode in modes]
    assert counted == pytest.approx(gflops, abs=0.06)


@pytest.mark.parametrize("mode", ["full", "mwa", "ke", "released"])
def test_counted_flops_are_those_of_the_formula(step: ModuleType, mode: str) -> None:
    sizes = step.SIZES["tiny"]
    ours = step.Ours(mode, sizes)
    mids = step.adapter_widths(mode, sizes)
    cut = replace(sizes, text_tokens=sizes.real_tokens)  # columns that are padding in every caption are not computed
    assert ours.flops() == ours.flops("longest") == step.closed_form(cut, mids, pooled=True, fused=True)


# ---------------------------------------------------------------------------------------------------- ours and the official


def test_batch_is_padded_as_the_official_data_set_pads(reference: ModuleType, step: ModuleType) -> None:
    sizes = step.SIZES["tiny"]
    _, tokens, mask = reference.random_batch(sizes)
    assert tokens.shape == mask.shape == (sizes.batch, sizes.text_tokens)
    assert (tokens[:, 0] == 0).all()
    assert (tokens[:, sizes.real_tokens - 1] == 2).all()
    assert ((tokens == 1) == ~mask).all()
    assert tokens.max() < sizes.vocabulary
    ours = step.Ours("full", sizes)
    assert ours.batches["longest"].texts.mask_BT.all()
    with torch.no_grad():  # padding changes nothing, so the shorter batch is the same work done faster
        ours.module.eval()
        padded, longest = (ours.module.training_step(ours.batches[name], 0) for name in ("padded", "longest"))
    torch.testing.assert_close(padded, longest)


def test_check_writes_official_names_and_differences_finds_what_differs(step: ModuleType, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights, first, second = (str(tmp_path / name) for name in ("w", "a", "b"))
    step.Ours("full", step.SIZES["tiny"]).check(weights, first)
    assert "beit3.encoder.layers.0.self_attn.q_proj.A.weight" in load_file(weights)
    gradients = load_file(first)
    assert "beit3.vision_embed.mask_token" not in gradients
    assert step.differences(Path(first), Path(first))["largest_relative"] == 0
    name = "beit3.encoder.layers.1.ffn.B.fc1.weight"
    save_file({**gradients, name: gradients[name] * 1.01}, second)
    found = step.differences(Path(first), Path(second))
    assert found["of"] == name
    assert found["largest_relative"] == pytest.approx(0.01, rel=0.05)
    del gradients[name]
    save_file(gradients, second)
    with pytest.raises(SystemExit, match=r"layers\.1\.ffn\.B\.fc1"):
        step.differences(Path(first), Path(second))


def test_modes_run_and_report(step: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "modes.json"
    threads = torch.get_num_threads()
    result = step.main(["modes", "--size", "tiny", "--rounds", "2", "--out", str(out)])
    torch.set_num_threads(threads)
    rows = {row["name"]: row for row in result["rows"]}
    assert list(rows) == ["full", "mwa", "ke", "released"]
    assert all(row["flops"] == row["flops_formula"] for row in rows.values())
    assert rows["ke"]["textbook_ratio"] < rows["mwa"]["textbook_ratio"] < 1
    assert rows["ke"]["tunable_parameters"] < rows["mwa"]["tunable_parameters"] < rows["full"]["tunable_parameters"]
    assert json.loads(out.read_text())["steps"] == result["steps"]
    assert capsys.readouterr().out.count("| released (AE as wide as the FFN) |") == 1


def test_packages_without_torchscale_are_refused(step: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no torchscale"):
        step.torchscale_folder(tmp_path)
    (tmp_path / "torchscale").mkdir()
    assert step.torchscale_folder(tmp_path) == tmp_path


# --------------------------------------------------------------------------------------------------------------------- GPU


def test_gpu_benchmark_runs_on_a_processor_at_toy_size(
    gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("peft")
    out = tmp_path / "gpu.json"
    ways = ["plain", "checkpoint", "cache"]  # compiling takes minutes on a processor
    arguments = ["--device", "cpu", "--tiny", "--rounds", "1", "--steps", "1", "--warm", "1", "--ways", *ways, "--out", str(out)]
    result = gpu.main(arguments)
    rows = {(row["mode"], row["way"]): row for row in result["rows"]}
    assert set(rows) == {(mode, way) for mode in gpu.MODES for way in ways}
    for way in ways:
        assert rows["full", way]["time_ratio"] == rows["full", way]["memory_ratio"] == 1
        assert rows["ke", way]["needed_flops"] < rows["mwa", way]["needed_flops"] < rows["full", way]["needed_flops"]
        assert rows["mwa", way]["mfu"] is None  # a processor has no entry
    for mode in gpu.MODES:
        assert rows[mode, "checkpoint"]["needed_flops"] == rows[mode, "plain"]["needed_flops"]  # recomputation is not needed work
        assert rows[mode, "cache"]["batch"] == 2 * rows[mode, "plain"]["batch"]
        assert rows[mode, "checkpoint"]["peak_bytes"] < rows[mode, "plain"]["peak_bytes"]
    stored = json.loads(out.read_text())
    assert stored["device"]["kind"] == "cpu"
    assert stored["device"]["name"]
    assert len(stored["visits"]) == 12
    assert capsys.readouterr().out.count("| lora, checkpoint |") == 1


def test_needed_flops_are_the_formula_with_separate_attention(gpu: ModuleType, step: ModuleType) -> None:
    row = gpu.Row("mwa", "plain", 6)
    sizes = replace(gpu.TINY, batch=6)
    assert gpu.needed_flops(row, gpu.TINY) == step.closed_form(sizes, (4, 8), pooled=True)


@pytest.mark.parametrize("limit", [8, 9, 31, 32, 100, 5000])
def test_largest_batch_is_found(gpu: ModuleType, limit: int) -> None:
    assert gpu.largest_batch(lambda batch: batch <= limit, most=4096) == min(limit // 8 * 8, 4096)


def test_what_cannot_run_is_refused(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="does not fit"):
        gpu.largest_batch(lambda batch: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device here"):
        gpu.main([])
    with pytest.raises(SystemExit, match="--tiny"):
        gpu.main(["--device", "cpu"])


def test_out_of_memory_is_a_line_and_not_the_end(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB\nmore")

    monkeypatch.setattr(gpu, "Visit", full)
    row = gpu.Row("full", "plain", 4)
    found = gpu.visit(row, gpu.TINY, "cpu", 1, 1)
    assert found["out_of_memory"] == "CUDA out of memory. Tried to allocate 1 GiB"
    (line,) = gpu.summarise([found], [row], gpu.TINY, None)
    assert "step_s" not in line


# ------------------------------------------------------------------------------------------------------ official checkpoint


def test_stage_is_measured_and_a_failure_ends_the_run(checkpoint: ModuleType) -> None:
    row = checkpoint.stage("big", [sys.executable, "-c", "x = b'x' * (200 << 20)"], {})
    # no upper bound: the kernel's peak starts at the size of the process that forks, here pytest with torch
    assert row["peak_rss_bytes"] > 200 << 20
    with pytest.raises(SystemExit, match="stage bad ended with status 3"):
        checkpoint.stage("bad", [sys.executable, "-c", "raise SystemExit(3)"], {})


def test_problems_name_what_did_not_hold(checkpoint: ModuleType, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    tuned = {side: draw.standard_normal((3, 4)) for side in ("images", "texts")}
    np.savez(tmp_path / "tuned.npz", **tuned)
    np.savez(tmp_path / "reloaded.npz", **tuned)
    np.savez(tmp_path / "frozen.npz", images=tuned["images"] + 0.1, texts=tuned["texts"])
    result = {"embeddings": checkpoint.compare(tmp_path), "stages": [{"stage": "run", "peak_rss_bytes": 9 * 2**30}]}
    first, second = checkpoint.problems(result)
    assert first == "stage run took 9.00 GiB, more than 8"
    assert second.startswith("embeddings of texts did not change")
    np.savez(tmp_path / "reloaded.npz", images=tuned["images"] + 1e-3, texts=tuned["texts"])
    assert "embeddings of images differ by 1.0e-03 after the reload" in checkpoint.problems(
        {"embeddings": checkpoint.compare(tmp_path), "stages": []}
    )


def test_tokenizer_and_data_are_asked_for(checkpoint: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CROSSLIGHT_DATA", raising=False)
    with pytest.raises(SystemExit, match="CROSSLIGHT_BEIT3_SPM"):
        checkpoint.main(["--spm", str(tmp_path / "none.spm")])
    (tmp_path / "beit3.spm").touch()
    with pytest.raises(SystemExit, match="CROSSLIGHT_DATA"):
        checkpoint.main(["--spm", str(tmp_path / "beit3.spm")])
    assert isinstance(checkpoint.parser(), argparse.ArgumentParser)
