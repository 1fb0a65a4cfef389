"""From run folders to cells: seeds, roots, failures, data sets, units."""

from __future__ import annotations

import fcntl
import json
import shutil
import statistics
from pathlib import Path

import pytest

from datamodules.errors import InputError
from experiments.report.collect import View, collect
from experiments.report.exports import mean_text, summary_json, to_csv, to_latex, to_markdown
from experiments.report.verdicts import scope_of
from experiments.runs.store import RunFolders


def table(home: Path, *roots: Path) -> View:
    (view,) = collect(["mwa/table1"], "miniature", RunFolders(roots or [home / "runs"]))
    return view


def folder(home: Path, run: str, seed: int) -> Path:
    (found,) = (home / "runs").glob(f"mwa-{run}-s{seed}-*")
    return found


def results(path: Path) -> dict:
    return json.loads((path / "results.json").read_text())


def test_a_cell_is_the_mean_over_seeds_in_the_published_unit(home: Path) -> None:
    view = table(home)
    runs = [results(folder(home, "full", seed)) for seed in (0, 1)]
    cell = view.cell("full fine-tuning", "coco_ir1")
    values = [each["evaluations"][0]["metrics"]["t2i_r1"] for each in runs]
    assert cell.n == 2
    assert cell.mean == pytest.approx(statistics.mean(values))
    assert cell.deviation == pytest.approx(statistics.stdev(values))
    assert cell.published == 61.4
    assert cell.difference == pytest.approx(statistics.mean(values) - 61.4)
    assert cell.interval is not None
    assert cell.interval[0] < cell.mean < cell.interval[1]
    minutes = view.cell("full fine-tuning", "minutes")
    assert minutes.mean == pytest.approx(statistics.mean(each["cost"]["seconds_per_epoch"] for each in runs) / 60)
    assert minutes.interval is None
    assert {each.conditions for each in minutes.measured} == {"AMD EPYC, 1 process"}
    assert {each.conditions for each in view.cell("full fine-tuning", "tunable_m").measured} == {None}
    assert view.cell("head only", "coco_ir1").published is None


def test_seeds_of_other_data_or_code_are_not_averaged_unsaid(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "runs", tmp_path / "runs")
    file = folder(tmp_path, "full", 1) / "results.json"
    content = json.loads(file.read_text())
    content["provenance"]["git"] = {"revision": "f" * 40, "dirty": True}
    next(iter(content["data"].values()))["fingerprint"] = "0123"
    file.write_text(json.dumps(content))
    view = table(home, tmp_path / "runs")
    row = next(variant for variant in view.variants if variant.label == "full fine-tuning")
    code = "2 code revisions (148bf7a000, ffffffffff with uncommitted changes)"
    data = "2 versions of the data world (0123, 0862bb3fdcec0032)"
    assert row.told == f"finished; {code}; {data}"
    assert scope_of(view, [row.cells["coco_ir1"]]) == f"at miniature scale, embedded world, 2 seeds, {code}, {data}"
    file = folder(tmp_path, "head", 1) / "results.json"
    content = json.loads(file.read_text())
    content["provenance"]["git"] = {"revision": "e" * 40, "dirty": False}
    file.write_text(json.dumps(content))
    both = [each.cells["coco_ir1"] for each in table(home, tmp_path / "runs").variants]
    codes = "3 code revisions (148bf7a000, eeeeeeeeee, ffffffffff with uncommitted changes)"
    assert f"2 seeds, {codes}, {data}" in scope_of(view, both), "of all cells, each revision once"
    for text in (to_markdown(view, ()), to_csv(view), to_latex(view)):
        assert code in text
    assert row.told in json.loads(summary_json([(view, (), ())], []))["exhibits"][0]["rows"][0]["status"]


def test_a_number_that_not_all_seeds_have_says_of_how_many_it_is(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "runs", tmp_path / "runs")
    file = folder(tmp_path, "full", 1) / "results.json"
    content = json.loads(file.read_text())
    del content["evaluations"][0]["metrics"]["t2i_r1"]
    file.write_text(json.dumps(content))
    cells = table(home, tmp_path / "runs").variants[0].cells
    assert (cells["coco_ir1"].partly, cells["coco_tr1"].partly) == ("1 of 2", "")
    assert mean_text(cells["coco_ir1"]).endswith(" (1 of 2)")
    assert " (1 of 2)" in to_markdown(table(home, tmp_path / "runs"), ())
    assert "(" not in mean_text(cells["coco_tr1"])


def test_what_a_rows_tests_remark_stands_under_the_table(home: Path, tmp_path: Path) -> None:
    assert table(home).remarks == []
    shutil.copytree(home / "runs", tmp_path / "runs")
    for seed, told in ((0, "attention is even"), (1, "attention is even, too")):
        file = folder(tmp_path, "full", seed) / "results.json"
        content = json.loads(file.read_text())
        content["evaluations"][0]["notes"] = {"remarks": {"ISDa": told}}
        file.write_text(json.dumps(content))
    found = table(home, tmp_path / "runs")
    data = content["evaluations"][0]["data"]
    assert found.remarks == [f"full fine-tuning, ISDa, {data} (2 of 2 runs; the first says): attention is even"]
    assert f"- *{found.remarks[0]}*" in to_markdown(found, ())
    assert json.loads(summary_json([(found, (), ())], []))["exhibits"][0]["remarks"] == found.remarks
    content["evaluations"][0]["notes"] = {"remarks": ["no mapping"]}
    file.write_text(json.dumps(content))
    (row,) = (row for row in table(home, tmp_path / "runs").variants if row.label == "full fine-tuning")
    assert "unreadable" in row.status


def test_a_column_of_other_data_reads_that_evaluation(home: Path) -> None:
    by_data = {each["data"]: each["metrics"]["t2i_r1"] for each in results(folder(home, "mwa", 0))["evaluations"]}
    assert len(by_data) == 2
    cell = table(home).cell("MWA_64 (KE & AE)", "flickr_ir1")
    assert [each.value for each in cell.measured if each.seed == 0] == [by_data["flickr30k"]]


def test_failed_missing_and_absent_rows_say_so(home: Path) -> None:
    status = {variant.label: variant.status for variant in table(home).variants}
    assert status["full fine-tuning"] == "finished"
    assert set(status["out of luck"].split(", ")) <= {"oom", "failed", "missing"}
    assert status["full scale only"] == "not at this scale"
    assert table(home).command == "crosslight sweep run mwa/table1 --scale miniature --seeds 0 1"


def test_roots_merge_and_a_finished_run_wins(home: Path, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    for seed, root in ((0, here), (1, there)):
        original = folder(home, "full", seed)
        shutil.copytree(original, root / original.name.replace("mwa-full", "another-name"))  # found by its key
    assert table(home, here).cell("full fine-tuning", "coco_ir1").n == 1
    assert table(home, here, there).cell("full fine-tuning", "coco_ir1").n == 2
    again = table(home, here, there, home / "runs").variants[0]
    assert again.cells["coco_ir1"].n == 2
    assert again.told == "finished; 2 more folders of the same run, finished and left out"
    (tmp_path / "link").symlink_to(here)
    assert table(home, here, tmp_path / "link").variants[0].told == table(home, here).variants[0].told
    failed = results(folder(home, "full", 1)) | {"status": "failed", "error": "no"}
    broken = here / folder(home, "full", 1).name
    broken.mkdir()
    (broken / "results.json").write_text(json.dumps(failed))
    variant = table(home, here, there).variants[0]
    assert (variant.status, variant.finished) == ("finished", 2)
    variant = table(home, here).variants[0]
    assert (variant.status, variant.finished) == ("failed", 1)


def test_a_killed_run_is_no_running_one_and_broken_files_are_told(home: Path, tmp_path: Path) -> None:
    original = folder(home, "full", 0)
    copy = tmp_path / original.name
    copy.mkdir()
    (copy / "results.json").write_text(json.dumps(results(original) | {"status": "running"}))
    (copy / ".lock").touch()
    assert table(home, tmp_path).variants[0].status == "interrupted"
    with (copy / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert table(home, tmp_path).variants[0].status == "running"
    broken = {
        "{": "is not JSON", "[]": "holds no mapping", '{"schema": "crosslight.results/2"}': "'status' is missing",
        '{"schema": "crosslight.results/1"}': "this version reads 'crosslight.results/2'",
        json.dumps(results(original) | {"sead": 1}): "unknown key 'sead'",
        json.dumps(results(original) | {"seed": "1"}): "seed is '1'; it must be",
    }  # fmt: skip
    for content, told in broken.items():
        (copy / "results.json").write_text(content)
        view = table(home, tmp_path)
        assert view.variants[0].status == "unreadable"
        assert told in view.runs[0].error
        assert str(copy / "results.json") in view.runs[0].error
    (copy / "results.json").unlink()
    assert table(home, tmp_path).variants[0].status == "interrupted"
    with pytest.raises(InputError, match="is not a folder"):
        RunFolders([tmp_path / "none"])


def test_a_run_on_other_data_is_not_averaged_query_by_query(home: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        original = folder(home, "full", seed)
        shutil.copytree(original, tmp_path / original.name)
        file = tmp_path / original.name / "results.json"
        content = results(original)
        content["data"]["world"]["fingerprint"] = f"world {seed}"
        file.write_text(json.dumps(content))
    cell = table(home, tmp_path).cell("full fine-tuning", "coco_ir1")
    assert cell.n == 2
    assert cell.interval is None


def test_captions_have_intervals_in_points(home: Path) -> None:
    (view,) = collect(["i_tuning/figure1"], "miniature", RunFolders([home / "runs"]))
    cell = view.cell("GPT-2", "coco_cider")
    assert cell.mean is not None
    assert cell.mean > 5, "points, not fractions"
    assert cell.interval is not None
    assert cell.interval[0] < cell.mean < cell.interval[1]
    assert view.cell("GPT-2", "coco_spice").interval is None, "no scores of images"
    assert dict(view.quoted)["xgpt"]["coco_cider"] == 120.1


def test_a_real_exhibit_without_any_run_is_all_missing() -> None:
    (view,) = collect(["mwa/table3"], "miniature", RunFolders([]))
    assert {variant.status for variant in view.variants} == {"missing"}
    assert view.command == "crosslight sweep run mwa/table3 --scale miniature"


def test_a_column_that_sums_others_has_their_images_and_their_printed_sum(home: Path) -> None:
    """What a run's own sum is, where there is one: value, interval, and what the paper's parts add up to."""
    from dataclasses import replace

    from experiments.papers.schema import Column
    from experiments.report.collect import _summed

    view = table(home)
    names = [name for name, cell in view.variants[0].cells.items() if cell.column.metric is not None][:2]
    parts = [view.variants[0].cells[name] for name in names]
    column = Column("both", "both", sum_of=tuple(names))
    found = _summed(view.variants[0].declared, column, parts)
    assert found.mean == pytest.approx(sum(part.mean or 0 for part in parts))
    assert found.published == pytest.approx(sum(part.published or 0 for part in parts))
    assert found.resamples is not None
    assert found.resamples == pytest.approx(sum(part.resamples for part in parts if part.resamples is not None))
    fewer = [parts[0], replace(parts[1], measured=parts[1].measured[:1])]
    assert [each.seed for each in _summed(view.variants[0].declared, column, fewer).measured] == [parts[1].measured[0].seed]
    assert _summed(view.variants[0].declared, column, [parts[0], replace(parts[1], published=None)]).published is None
