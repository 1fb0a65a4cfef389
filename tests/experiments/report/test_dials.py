"""Dials of runs in a report: intervals and paired differences are the bootstrap's, seeds are one curve, tests pick nothing."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from configurations import changed
from fake_runs import ranks, recalls, write_run

from experiments.cli.main import run_command
from experiments.papers.schema import Figure
from experiments.report import figures
from experiments.report.bootstrap import interval, per_image, seed_weights
from experiments.report.collect import collect
from experiments.report.dials import Curve, curve_of, dial_csv, dial_picture, dial_rows
from experiments.runs.dial import Dialling, per_query_file, read_dial, with_evaluation, write_dial
from experiments.runs.results import DataDescription, Evaluation, read_results, write_results
from experiments.runs.store import RunFolders, read_run

ALPHAS = (0.0, 0.5, 1.0)
QUALITY = {"coco": (0.2, 0.6, 0.62), "web": (0.6, 0.58, 0.1)}


def dial(folder: Path, seed: int, retention: tuple[str, ...] = ("web",)) -> Path:
    """Dial a made-up run: the target is gained at once, and what is retained is lost at the end."""
    found = Dialling("ab", "the output of Made", ("logit_scale",), "rsum", "max", "coco", retention=retention)
    found = replace(found, rule="mean" if retention else "target")
    for number, alpha in enumerate(ALPHAS):
        for data in ("coco", *retention):
            for stage in ("val", "test"):
                arrays = ranks(np.random.default_rng([seed, number, len(data), len(stage)]), QUALITY[data][number])
                file = per_query_file(alpha, data, stage)  # type: ignore[arg-type]
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                np.savez(folder / file, **arrays)
                evaluation = Evaluation(data, stage, stage, recalls(arrays), per_query_file=file)  # type: ignore[arg-type]
                found = with_evaluation(found, alpha, evaluation)
    write_dial(folder, replace(found, picked=found.pick()))
    return folder


def made(folder: Path, seed: int, retention: tuple[str, ...] = ("web",)) -> Path:
    write_run(folder, {"coco": ranks(np.random.default_rng(seed), 0.6)}, seed=seed)
    (folder / "config.yaml").write_text(yaml.safe_dump(changed(seed_everything=seed)))
    write_results(folder, replace(read_results(folder), fit=None))
    return dial(folder, seed, retention)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("dials")
    return [made(root / f"seed{seed}", seed) for seed in (0, 1)]


def curve(folders: list[Path]) -> Curve:
    found = curve_of("made", [read_run(folder) for folder in folders])
    assert found is not None
    return found


def resampled(folders: list[Path], alpha: float, data: str) -> np.ndarray:
    """[B] means over seeds, straight from the per-query files."""
    columns = []
    for folder in folders:
        with np.load(folder / per_query_file(alpha, data, "test")) as file:
            arrays = dict(file)
        part = per_image("rsum", arrays, recalls(arrays)["rsum"])
        assert part is not None
        columns.append(part.resamples())
    return (np.stack(columns, 1) * seed_weights(len(folders))).sum(1)


def test_intervals_are_of_resampled_images_and_seeds_and_differences_are_paired(seeds: list[Path]) -> None:
    for folders in (seeds[:1], seeds):
        found = curve(folders)
        assert [place.alpha for place in found.places] == [0.0, 0.5, 1.0]
        last = found.places[-1]
        for place in found.places:
            assert place.retained is not None
            for data, number in (("coco", place.target), ("web", place.retained)):
                drawn = resampled(folders, place.alpha, data)
                np.testing.assert_allclose(number.band, interval(drawn))
                assert number.mean == pytest.approx(drawn.mean(), rel=0.05)
        lost = found.places[0].target.minus(last.target)
        np.testing.assert_allclose(lost.band, interval(resampled(folders, 0.0, "coco") - resampled(folders, 1.0, "coco")))


def test_the_table_has_the_ends_and_the_picked_place(seeds: list[Path]) -> None:
    found = curve(seeds)
    assert found.picked == 0.5
    assert dict(found.by_seed) == {0: 0.5, 1: 0.5}
    rows = dial_rows([found])
    assert [row[1] for row in rows] == ["0 (start)", "0.5 (picked)", "1 (as trained)"]
    assert rows[0][3].startswith("−")
    assert rows[0][5].startswith("+"), "what the training forgot"
    assert rows[-1][3] == rows[-1][5] == "", "nothing differs from itself"
    lines = list(csv.DictReader(dial_csv([found]).splitlines()))
    assert [(line["alpha"], line["picked"]) for line in lines] == [("0", "0"), ("0.5", "1"), ("1", "0")]
    assert float(lines[1]["target"]) == pytest.approx(found.places[1].target.mean, rel=1e-5)


def test_the_picture_has_a_ring_where_it_was_picked_and_bars_both_ways(seeds: list[Path]) -> None:
    found = curve(seeds)
    picture = dial_picture([found, replace(found, label="other run", target="other")], "dial")
    assert picture is not None
    axes = picture.drawing.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("retained: rsum of web", "target: rsum of coco")
    rings = [line for line in axes.lines if line.get_markersize() == 11]
    place = found.places[1]
    assert place.retained is not None
    assert [(*line.get_xdata(), *line.get_ydata()) for line in rings] == [(place.retained.mean, place.target.mean)]  # type: ignore[misc]
    assert len(axes.collections) == 2 * len(ALPHAS)
    assert "picked 0.5" in picture.text
    assert "Left out, because of another target or other data: other run." in picture.text


def test_without_anything_to_retain_it_is_over_alpha(tmp_path: Path) -> None:
    found = curve([made(tmp_path / "alone", 3, ())])
    picture = dial_picture([found], "dial")
    assert picture is not None
    assert picture.drawing.axes[0].get_xlabel() == "alpha"
    assert dial_rows([found])[0][4:] == ["", ""]
    assert curve_of("none", [read_run(write_run(tmp_path / "none", {}))]) is None


def rewritten(folder: Path, copy: Path, **changes: Any) -> Path:
    shutil.copytree(folder, copy)
    found = read_dial(copy)
    assert found is not None
    write_dial(copy, replace(found, **changes))
    return copy


def test_seeds_and_alphas_that_are_not_in_it_are_said(seeds: list[Path], tmp_path: Path) -> None:
    first, second = (read_dial(folder) for folder in seeds)
    assert first is not None
    assert second is not None
    elsewhere = replace(first.points[1], alpha=0.25)
    begun = replace(first.points[0], evaluations=first.points[0].evaluations[:1])
    others = [
        (made(tmp_path / "alone", 2, ()), "it is dialled for rsum of coco, the others for rsum of coco, retaining web"),
        (
            rewritten(seeds[0], tmp_path / "metric", metric="i2t_r1"),
            "it is dialled for i2t_r1 of coco, retaining web, the others",
        ),
        (rewritten(seeds[0], tmp_path / "begun", points=(begun,)), "it is dialled in part, and at no alpha on all of its data"),
        (rewritten(seeds[0], tmp_path / "elsewhere", points=(elsewhere,)), "it has no alpha that the others have"),
        (
            rewritten(seeds[0], tmp_path / "stand-in", no_result="the data web are stand-ins"),
            "its dial is no result (the data web",
        ),
        (write_run(tmp_path / "none", {}), "it is not dialled"),
    ]
    less = rewritten(seeds[1], tmp_path / "less", points=second.points[1:])
    found = curve([seeds[0], *(folder for folder, _ in others), less])
    assert [place.alpha for place in found.places] == [0.5, 1.0]
    assert found.places[0].target.mean == curve([seeds[0], less]).places[0].target.mean
    *told, alphas = found.remarks
    assert alphas == "left out, because not all seeds have it: alpha 0"
    for remark, (_, why) in zip(told, others, strict=True):
        assert " is left out: " in remark
        assert why in remark
    picture = dial_picture([found], "dial")
    assert picture is not None
    assert all(remark in picture.text for remark in found.remarks)
    assert curve(seeds).remarks == ()


def test_seeds_on_other_data_or_by_other_code_are_not_averaged_unsaid(seeds: list[Path], tmp_path: Path) -> None:
    copies = [
        rewritten(folder, tmp_path / folder.name, data={"web": DataDescription("T", fingerprint=f"{seed}f")})
        for seed, folder in enumerate(seeds)
    ]
    assert curve(copies).remarks == ("its seeds differ in 2 versions of the data web (0f, 1f)",)


def test_a_report_of_runs_shows_it(seeds: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "site"
    assert run_command("report", [str(seeds[0].parent), "--out", str(out)]) == 0
    page = (out / "index.html").read_text()
    assert '<h2 id="dial">Dial</h2>' in page
    assert page.count("<figure>") == 1
    assert "0.5 (picked)" in page
    assert "seeds by themselves picked 0.5 (seed 0), 0.5 (seed 1)" in page
    assert "because they were new: logit_scale.</li>" in page
    assert (out / "dial.csv").exists()


def test_an_exhibit_of_dials(home: Path) -> None:
    (view,) = collect(["mwa/figure2"], "miniature", RunFolders([home / "runs"]))
    view = replace(view, exhibit=replace(view.exhibit, figure=Figure("dial")))
    assert figures.draw(view) == [], "nothing is dialled"
    runs = [run for variant in view.variants[1:2] for of_role in variant.runs.values() for run in of_role]
    try:
        for run in runs:
            assert run.folder is not None
            dial(run.folder, run.seed)
        (picture,) = figures.draw(view)
        assert picture.text.count("alpha 0.5") == 1, "a variant's seeds are one curve"
        assert picture.scale == "Miniature scale"
    finally:
        for run in runs:
            assert run.folder is not None
            (run.folder / "dial.json").unlink(missing_ok=True)
            shutil.rmtree(run.folder / "dial", ignore_errors=True)
