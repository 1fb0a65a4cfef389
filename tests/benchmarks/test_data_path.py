"""`benchmarks/data_path.py` on a few small photographs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmark_scripts import benchmark
from PIL import Image

data_path = benchmark("data_path")


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 256, (12, 16, 3), np.uint8)
        Image.fromarray(noise).resize((96, 72), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg")
    return folder


def test_all_ways_make_the_same_batch(photographs: Path) -> None:
    """Evaluation has nothing random; training draws in each library's own way, so there only shapes are compared."""
    paths = sorted(photographs.iterdir())
    batches = {name: way() for name, way in data_path.ways(paths, 32, False).items() if name != "decode only"}
    for name in ("torchvision", "Pillow"):
        torch.testing.assert_close(batches[name], batches["ours"])
    torch.testing.assert_close(batches["decode_image"], batches["ours"], atol=3 / 127.5, rtol=0)
    assert (batches["Pillow, draft"] - batches["ours"]).abs().mean() < 0.1
    for name, way in data_path.ways(paths, 32, True).items():
        assert name == "decode only" or way().shape == (3, 3, 32, 32)


def test_the_counts_are_those_of_speed_md() -> None:
    """342 and 240 GFLOP there are torch's counts on the meta device, where attention is not fused."""
    flops = {name: count for name, (_, count) in data_path.CONSUMERS.items()}
    assert flops["BEiT-3 base, full"] == pytest.approx(342e9, rel=0.03)
    assert flops["BEiT-3 base, MWA"] == pytest.approx(240e9, rel=0.03)
    assert flops["BEiT-3 large, full"] == pytest.approx(1222e9, rel=0.03)


def test_workers_are_as_many_as_make_what_the_device_takes() -> None:
    needs = {each["what"]: each for each in data_path.workers({384: 100.0}, "A100", 0.5)}
    assert set(needs) == {name for name, (size, _) in data_path.CONSUMERS.items() if size == 384}
    full = needs["BEiT-3 base, full"]
    assert full["wanted"] == pytest.approx(0.5 * 312e12 / full["flops"])
    assert 100.0 * (full["workers"] - 1) < full["wanted"] <= 100.0 * full["workers"]


def test_a_result_is_written(photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "data_path.json"
    data_path.main([str(photographs), "--sizes", "224", "--longest", "48", "--rounds", "1", "--out", str(out)])
    result = json.loads(out.read_text())
    assert result["images"] == 3
    assert result["megapixels"] == pytest.approx(48 * 36 / 1e6)
    assert {(row["transform"], row["way"]) for row in result["rows"]} >= {("training", "ours"), ("evaluation", "decode only")}
    assert "workers" in capsys.readouterr().out


def test_a_folder_without_photographs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no JPEG in it"):
        data_path.main([str(tmp_path)])
