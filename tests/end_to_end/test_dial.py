"""`crosslight dial` of trained runs: its ends are the start and the run, a kill loses nothing, and an export keeps alpha."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from end_to_end import crosslight, recalls, succeed

import lightning_modules
from experiments.analysis import dial as analysis
from experiments.runs.dial import Dialling, read_dial
from lightning_modules.checkpoints.model_card import CARD_FILE

ALPHAS = "--alphas=0,0.4,1"


def copied(run: Path, copy: Path) -> Path:
    shutil.copytree(run, copy)
    return copy


@pytest.fixture(scope="module")
def dialled(mwa_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The MWA run, dialled: what is retained is the second data set that it was tested on."""
    run = copied(mwa_run, tmp_path_factory.mktemp("dial") / "mwa")
    answer = succeed("dial", "--run", str(run), "--evaluate", "other", ALPHAS)
    assert "rsum; alpha is the output of MultiWayAdapter\n" in answer.out
    assert "<- picked" in answer.out
    assert answer.error.count("alpha 0.4, ") == 4, "a validation and a test of each data set"
    return run


def read(run: Path) -> Dialling:
    found = read_dial(run)
    assert found is not None
    return found


def measured(found: Dialling, alpha: float, data: str) -> tuple[dict[str, float], str]:
    point = found.point(alpha)
    evaluation = None if point is None else point.of(data, "test")
    assert evaluation is not None
    return evaluation.metrics, str(evaluation.per_query_file)


def test_at_1_it_is_the_run_and_at_0_what_it_started_from(dialled: Path, full_run: Path) -> None:
    found = read(dialled)
    assert (found.target, found.retention, found.rule, found.kept) == ("flickr30k", ("other",), "mean", ())
    for data in ("flickr30k", "other"):
        metrics, file = measured(found, 1.0, data)
        assert metrics == recalls(dialled, data)
        for name, array in np.load(dialled / f"per_query/{data}-test.npz").items():
            assert np.array_equal(np.load(dialled / file)[name], array), name
    assert measured(found, 0.0, "flickr30k")[0] == recalls(full_run)
    assert measured(found, 0.4, "flickr30k")[0] not in (recalls(full_run), recalls(dialled))
    assert found.picked == found.pick()


def test_killed_and_gone_on_with_it_is_the_same(
    dialled: Path, mwa_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copied(mwa_run, tmp_path / "mwa")
    real, done = analysis._measured, []

    def killed(*given: Any) -> Any:
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(given[3:6])
        return real(*given)

    monkeypatch.setattr(analysis, "_measured", killed)
    command = ("dial", "--run", str(run), "--evaluate", "other", ALPHAS)
    assert crosslight(*command).status == 130
    assert sum(len(point.evaluations) for point in read(run).points) == 5
    assert read(run).picked is None
    assert crosslight("export", str(run), str(tmp_path / "out"), "--alpha", "picked").status == 2
    done.clear()
    monkeypatch.setattr(analysis, "_measured", lambda *given: done.append(given[3:6]) or real(*given))  # type: ignore[func-returns-value]
    succeed(*command)
    assert len(done) == 12 - 5, "nothing twice"
    assert (run / "dial.json").read_bytes() == (dialled / "dial.json").read_bytes()
    done.clear()
    succeed(*command)
    assert not done
    (run / "checkpoints" / "best.ckpt").write_bytes((mwa_run / "checkpoints" / "last.ckpt").read_bytes())
    answer = crosslight(*command)
    assert answer.status == 2
    assert "is of other weights" in answer.error


def test_an_export_at_the_picked_alpha(dialled: Path, world: Path, tmp_path: Path) -> None:
    picked = read(dialled).picked
    answer = succeed("export", str(dialled), str(tmp_path / "out"), "--alpha", "picked")
    assert answer.out.startswith(f"alpha {picked:g}, picked by the best mean of the target and of what is to be retained (rsum ")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["dial"]["alpha"] == picked
    succeed("export", str(dialled), str(tmp_path / "less"), "--alpha", "0.4")
    card = (tmp_path / "less" / CARD_FILE).read_text()
    assert "- alpha: 0.4 of what was learnt, from 0 (the start) to 1 (as trained), given" in card
    metrics, _ = measured(read(dialled), 0.4, "flickr30k")
    assert f"| flickr30k (miniature) | test | rsum | {metrics['rsum']:.5g} |" in card, "measured there, and not at 1"
    images = sorted((world / "flickr30k" / "flickr30k-images").iterdir())[:2]
    less, whole = (lightning_modules.load(place).encode_images(images) for place in (tmp_path / "less", dialled))
    assert not np.allclose(less, whole, atol=1e-4)
    answer = succeed("export", str(dialled), str(tmp_path / "elsewhere"), "--alpha", "0.7")
    assert "nothing was measured there" in (tmp_path / "elsewhere" / CARD_FILE).read_text()


def test_captioners_are_dialled_by_cider(i_tuning_run: Path, tmp_path: Path) -> None:
    run = copied(i_tuning_run, tmp_path / "i_tuning")
    answer = succeed("dial", "--run", str(run), "--alphas=0.5,1")
    assert "; alpha is the output of ITuning\n" in answer.out
    found = read(run)
    metrics, _ = measured(found, 1.0, found.target)
    assert metrics == recalls(run, found.target)
    assert found.rule == "target"


def test_scorers_of_pairs_are_dialled_and_keep_ranks_but_no_scores(uniter_run: Path, tmp_path: Path) -> None:
    run = copied(uniter_run, tmp_path / "uniter")
    succeed("dial", "--run", str(run), "--alphas=1")
    assert measured(read(run), 1.0, "flickr30k_entities")[0] == recalls(run, "flickr30k_entities")
    kept = sorted(file.name for file in (run / "dial" / "1").iterdir())
    assert kept == ["flickr30k_entities-test.npz", "flickr30k_entities-val.npz"]


@pytest.mark.parametrize(("options", "words"), [
    (("--alphas=0,2",), "'0,2' is no list of numbers from 0 to 1"),
    (("--pick=mean",), "name that with --evaluate, or pick target"),
    (("--evaluate=nowhere",), "give a YAML file with a section `data`, or the name of data that the run was tested on"),
    (("--evaluate=configs/model/dual_tiny.yaml",), "it holds no section `data`"),
    (("--evaluate=configs/data/world.yaml",), "there is data of the name flickr30k already.*--evaluate flickr30k_2=configs"),
])  # fmt: skip
def test_mistakes_are_told_before_anything_is_measured(options: tuple[str, ...], words: str, dialled: Path) -> None:
    before = (dialled / "dial.json").read_bytes()
    answer = crosslight("dial", "--run", str(dialled), *options)
    assert answer.status == 2
    assert re.search(words, answer.error), answer.error
    assert answer.error.count("\n") == 1
    assert (dialled / "dial.json").read_bytes() == before


def test_data_without_captions_is_refused_before_anything_is_measured(dialled: Path, world: Path, tmp_path: Path) -> None:
    blind = tmp_path / "blind.yaml"
    arguments = {"root": str(world / "nocaps"), "split": "test", "num_workers": 0}
    blind.write_text(json.dumps({"data": {"class_path": "datamodules.nocaps.NoCaps", "init_args": arguments}}))
    run = copied(dialled, tmp_path / "run")
    answer = crosslight("dial", "--run", str(run), "--evaluate", str(blind), "--pick=target", "--alphas=0.7")
    assert answer.status == 2
    assert "nocaps test has images and no captions, without which RetrievalModule measures nothing" in answer.error
    assert read(run).point(0.7) is None, "the run's own data has not been measured either"


def test_a_run_that_only_tested_has_no_dial(dialled: Path, tmp_path: Path) -> None:
    assert "is no run folder" in crosslight("dial", "--run", str(tmp_path)).error
