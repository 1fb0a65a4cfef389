"""The caption metrics' benchmark at toy size, with a stand-in for pycocoevalcap (its scorers are recorded in the fixtures, not
copied here). No times are asserted."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
from benchmark_scripts import benchmark

ROOT = Path(__file__).resolve().parents[2]

# Speaks pycocoevalcap's interface with our own functions: scores are equal, so the run goes through; with WRONG they are not.
STAND_IN = """\
import sys
sys.path.insert(0, {root!r})
import numpy as np
from benchmarks.caption_metrics import ours

class {name}:
    def __init__(self, *arguments):
        pass

    def compute_score(self, references, candidates):
        whole, each = ours({metric!r}, list(references.values()), [caption for (caption,) in candidates.values()])
        each = np.asarray(each) + {wrong}
        return (whole, each.T) if {metric!r} == "bleu" else (np.float64(whole), each)
"""


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return benchmark("caption_metrics")


def stand_in(folder: Path, wrong: float = 0.0) -> Path:
    for metric, name in (("cider", "Cider"), ("bleu", "Bleu"), ("rouge_l", "Rouge")):
        module = folder / "pycocoevalcap" / name.lower() / f"{name.lower()}.py"
        module.parent.mkdir(parents=True)
        module.write_text(STAND_IN.format(root=str(ROOT), name=name, metric=metric, wrong=wrong))
    return folder


def test_measures_all_ways(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "result.json"
    sizes = ["--images", "30", "--captions", "3", "--rounds", "2"]
    result = script.main([*sizes, "--packages", str(stand_in(tmp_path / "p")), "--out", str(out)])
    names = [f"{metric}: {way}" for metric in ("cider", "bleu") for way in ("pycocoevalcap", "ours", "ours, kept")]
    assert [row["name"] for row in result["rows"]] == [*names, "rouge_l: pycocoevalcap", "rouge_l: ours"]
    assert result["images"] == 30
    assert result["references"] == 90
    assert all(check["difference"] == 0 for check in result["checks"].values())
    assert len(result["steps"]) == 2 * len(result["rows"])
    for row in result["rows"]:
        assert row["cpu_ratio"]["low"] <= row["cpu_ratio"]["median"] <= row["cpu_ratio"]["high"]
        if row["name"].endswith("pycocoevalcap"):
            assert row["cpu_ratio"] == {"median": 1, "low": 1, "high": 1}
    assert json.loads(out.read_text())["versions"]["numpy"]
    assert "CIDEr-D: the goal is 5 times" in capsys.readouterr().out


def test_refuses_to_compare_different_scores(script: ModuleType, tmp_path: Path) -> None:
    data = script.made_up(10, 2)
    with pytest.raises(SystemExit, match="do not give the same cider"):
        script.compare(*data, stand_in(tmp_path, wrong=1e-8), 1)


def test_made_up_captions_are_like_captions(script: ModuleType) -> None:
    references, candidates = script.made_up(400, 5)
    lengths = [len(sentence.split()) for own in references for sentence in own]
    assert sum(lengths) / len(lengths) == pytest.approx(10.8, abs=0.3)
    assert (references, candidates) == script.made_up(400, 5)
    _, each = script.ours("cider", references, candidates)
    assert 0.5 < each.mean() < 9
    assert len({len(candidate.split()) for candidate in candidates}) > 5


def test_files_in_coco_form(script: ModuleType, tmp_path: Path) -> None:
    images = [{"id": n, "file_name": f"{n}.jpg"} for n in range(3)]
    captions = [{"id": n, "image_id": n, "caption": f"A dog, number {n}."} for n in range(3)]
    (tmp_path / "references.json").write_text(json.dumps({"images": images, "annotations": captions}))
    (tmp_path / "results.json").write_text(json.dumps([{"image_id": 2, "caption": "Dogs!"}, {"image_id": 0, "caption": "a"}]))
    found = script.from_files(tmp_path / "references.json", tmp_path / "results.json")
    assert found == ([["a dog number 0"], ["a dog number 2"]], ["a", "dogs"])
    with pytest.raises(SystemExit, match="there is no pycocoevalcap in it"):
        script.package_folder(tmp_path)
