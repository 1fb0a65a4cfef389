"""Run folders side by side, with numbers worked out by hand."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import yaml
from configurations import changed
from fresh_process import modules_after

from datamodules.errors import InputError
from experiments.cli import main as cli
from experiments.report.table import find_runs, markdown, rows, sort, to_csv
from experiments.runs.headings import RECALLS
from experiments.runs.results import Evaluation, Results, ResultsStatus, now, write_results
from lightning_modules.callbacks.cost_record import Cost
from lightning_modules.checkpoints.run_folder import Fit
from lightning_modules.metrics.recalls import fold_notes


def write_run(folder: Path, name: str, status: ResultsStatus = "finished", **entries: Any) -> Path:
    folder.mkdir(parents=True)
    write_results(folder, Results(status, "run", name, "c", now(), scale="reduced", **entries))
    return folder


def evaluation(
    rsum: float, data: str = "flickr8k", split: str = "test", stage: Literal["val", "test"] = "test", **more: float
) -> Evaluation:
    return Evaluation(data, split, stage, {**dict.fromkeys(RECALLS, rsum / 6), "rsum": rsum, **more})


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two seeds of mwa, one head, and three that went wrong or were not tested."""
    for seed, (rsum, seconds) in enumerate([(200.0, 10.0), (206.0, 14.0)]):
        write_run(
            tmp_path / f"mwa-{seed}", "mwa", seed=seed, fit=Fit(186, 2),
            cost=Cost(tunable_parameters=1_234_567, tunable_percent=2.5, peak_memory_bytes=2**29, seconds_per_epoch=seconds),
            evaluations=(evaluation(rsum), evaluation(rsum / 2, "coco"), evaluation(999.0, split="val", stage="val")),
        )  # fmt: skip
    write_run(tmp_path / "deeper" / "head-0", "head", seed=0, evaluations=(evaluation(120.0),))
    write_run(tmp_path / "big", "full", "oom", error="out of memory")
    write_run(tmp_path / "bad", "ae_only", "failed", error="x")
    write_run(tmp_path / "pretrain", "pretrain")
    return tmp_path


def test_mean_and_deviation_over_seeds(runs: Path) -> None:
    table = rows(find_runs([runs]))
    mwa = next(row for row in table if row["name"] == "mwa" and row["data"] == "flickr8k")
    assert mwa["seeds"] == 2
    assert mwa["rsum"] == 203.0
    assert mwa["rsum_sd"] == pytest.approx(18**0.5)  # sample deviation: sqrt((9 + 9) / 1)
    assert mwa["i2t_r1"] == pytest.approx(203 / 6)
    assert (mwa["steps"], mwa["tunable_parameters"], mwa["seconds_per_epoch"]) == (186, 1_234_567, 12.0)
    assert mwa["pairs_per_second"] is None
    head = next(row for row in table if row["name"] == "head")
    assert (head["seeds"], head["rsum"], head["rsum_sd"]) == (1, 120.0, None)
    coco = next(row for row in table if row.get("data") == "coco")
    assert (coco["rsum"], coco["rsum_sd"]) == (101.5, pytest.approx(4.5**0.5))


def test_costs_and_validations_that_not_all_seeds_have_say_of_how_many_they_are(tmp_path: Path) -> None:
    for seed in (0, 1):
        cost = None if seed else Cost(tunable_parameters=5, tunable_percent=1, peak_memory_bytes=2**29, seconds_per_epoch=3.0)
        best = None if seed else 60.0
        write_run(
            tmp_path / f"{seed}", "mwa", seed=seed, fit=Fit(1, 1, "val/rsum", best), cost=cost, evaluations=(evaluation(200.0),)
        )
    line = markdown(rows(find_runs([tmp_path]))).splitlines()[2]
    assert "≈" not in line
    for text in ("60.0 (1 of 2)", "3.0 (1 of 2)", "512.0 MiB (1 of 2)", "200.0 ±0.0 |"):
        assert text in line


def test_a_time_that_is_extrapolated_to_an_epoch_says_so(tmp_path: Path) -> None:
    for name, epochs in (("part", 0.3), ("whole", 1.0)):
        cost = Cost(tunable_parameters=5, tunable_percent=1, peak_memory_bytes=2**29, seconds_per_epoch=3.0, epochs=epochs)
        write_run(tmp_path / name, name, fit=Fit(1, 1), cost=cost, evaluations=(evaluation(200.0),))
    part, whole = sorted(markdown(rows(find_runs([tmp_path]))).splitlines()[2:])
    assert "| ≈3.0 |" in part
    assert "| 3.0 |" in whole


def test_what_went_wrong_keeps_its_row(runs: Path) -> None:
    table = rows(find_runs([runs]))
    assert {row["name"]: row["status"] for row in table if row["status"] != "finished"} == {
        "full": "oom", "ae_only": "failed", "pretrain": "not tested",
    }  # fmt: skip
    assert len(table) == 6  # mwa twice (two data sets), head, and these three


def test_markdown_and_csv(runs: Path) -> None:
    table = rows(find_runs([runs]))
    lines = markdown(table).splitlines()
    assert len(lines) == 2 + 6
    assert len({line.count("|") for line in lines}) == 1
    text = "\n".join(lines)
    assert "| mwa | flickr8k | 2 | 33.8 ±0.7 | " in text
    assert f"| 203.0 ±4.2 | 186 | 1,234,567 | 2.50 | 512.0 MiB | 12.0 | – | {runs / 'mwa-0'} and 1 more |" in text
    assert "| head | flickr8k | 1 | 20.0 | " in text
    assert "| full | oom |" in text
    assert "| ae_only | failed |" in text
    read = {row["run"]: row for row in csv.DictReader(io.StringIO(to_csv(find_runs([runs]))))}
    assert set(read) == {"mwa-0", "mwa-1", "head-0", "big", "bad", "pretrain"}, "a row a run"
    assert (read["mwa-1"]["seed"], read["mwa-1"]["flickr8k/test/rsum"], read["mwa-1"]["coco/test/rsum"]) == (
        "1",
        "206.0",
        "103.0",
    )
    assert (read["big"]["status"], read["big"]["flickr8k/test/rsum"]) == ("oom", "")
    only = csv.DictReader(io.StringIO(to_csv(find_runs([runs]), "coco"))).fieldnames or ()
    assert "coco/test/rsum" in only
    assert not [name for name in only if name.startswith("flickr8k/")]


def test_relation_distances_have_columns_where_a_run_measured_them(runs: Path) -> None:
    assert "ISDa" not in markdown(rows(find_runs([runs])))
    for seed, (isda, singular, distributed) in enumerate([(0.2, 0.5, 0.3), (0.4, 0.6, 0.3)]):
        entry = evaluation(300.0, isda=isda, iais_singular=singular, iais_distributed=distributed, isda_pairs=9.0)
        write_run(runs / f"iais-{seed}", "iais", seed=seed, evaluations=(entry,))
    write_run(runs / "iais-2", "iais", seed=2, evaluations=(evaluation(300.0),))
    write_run(runs / "iais-3", "iais", seed=3, evaluations=(evaluation(300.0, isda=float("nan")),))
    write_run(runs / "few", "few", evaluations=(evaluation(60.0, isda=0.125),))
    table = rows(find_runs([runs]))
    row = next(row for row in table if row["name"] == "iais")
    assert (row["isda"], row["isda_sd"]) == (pytest.approx(0.3), pytest.approx(0.02**0.5))
    assert (row["iais_singular"], row["iais_distributed"], row["iais_distributed_sd"]) == (pytest.approx(0.55), 0.3, 0.0)
    assert "isda_pairs" not in row
    lines = markdown(table).splitlines()
    header = [cell.strip() for cell in lines[0].split("|")]
    cells = {
        line.split("|")[1].strip(): dict(zip(header, (c.strip() for c in line.split("|")), strict=True)) for line in lines[2:]
    }
    assert header.index("rsum") + 1 == header.index("ISDa")
    found = {name: [cells[name][column] for column in ("rsum", "ISDa", "L(s)", "L(d)", "seeds")] for name in cells}
    assert found["iais"] == ["300.0 ±0.0", "0.300 ±0.141 (2 of 4)", "0.550 ±0.071 (2 of 4)", "0.300 ±0.000 (2 of 4)", "4"]
    assert found["few"] == ["60.0", "0.125", "–", "–", "1"]
    assert found["head"][1:4] == ["–", "–", "–"]


def test_a_row_is_a_configuration_without_its_seed(tmp_path: Path) -> None:
    """Two learning rates of one sweep are two rows; the same seed twice is one seed; a copy of a folder is no run more."""
    for name, seed, lr, rsum in (("a", 0, 1e-3, 200.0), ("b", 1, 1e-3, 206.0), ("c", 0, 2e-3, 100.0), ("d", 0, 2e-3, 104.0)):
        folder = write_run(tmp_path / name, "lr", seed=seed, evaluations=(evaluation(rsum),))
        config = changed(seed_everything=seed, model__init_args__optimization__lr=lr)
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "link").symlink_to(tmp_path / "a")
    found = find_runs([tmp_path, f"{tmp_path}/../{tmp_path.name}/a"])
    table = rows(found)
    assert len(found) == 4
    assert [(row["options"], row["seeds"], row["runs"], row["rsum"], row["rsum_sd"]) for row in table] == [
        ({"model.optimization.lr": 0.001}, 2, 2, 203.0, pytest.approx(18**0.5)),
        ({"model.optimization.lr": 0.002}, 1, 2, 102.0, None),
    ]
    text = markdown(table)
    assert re.search(r"\| lr \([ab]\) \| 0\.001 \| flickr8k \| 2 \| ", text)
    assert "| lr (c) | 0.002 | flickr8k | 1 (2 runs) | " in text


@pytest.fixture
def rates(tmp_path: Path) -> Path:
    """Four learning rates, one of which failed; the best validation is not the best test."""
    validated = {1e-3: (250.0, 260.0), 2e-3: (280.0, 200.0), 4e-3: (270.0, 240.0)}
    for lr in (1e-3, 2e-3, 4e-3, 8e-3):
        val, test = validated.get(lr, (0.0, 0.0))
        fit = Fit(20, 2, "val/rsum", val) if val else None
        tests = (evaluation(test),) if val else ()
        folder = write_run(tmp_path / f"{lr}", "lr", "finished" if val else "failed", seed=0, fit=fit, evaluations=tests)
        (folder / "config.yaml").write_text(yaml.safe_dump(changed(model__init_args__optimization__lr=lr)))
        curve = f"step,train/loss,val/i2t_r1,val/rsum\n9,1,10,{val - 20}\n19,1,12,{val}\n"
        (folder / "metrics.csv").write_text(curve)
    return tmp_path


def column(text: str, name: str) -> list[str]:
    """Of a Markdown table."""
    header, _, *lines = ([cell.strip() for cell in line.split("|")] for line in text.splitlines() if line.startswith("|"))
    return [line[header.index(name)] for line in lines]


def test_the_best_validation_is_first_and_the_test_chooses_nothing(rates: Path) -> None:
    table = rows(find_runs([rates]))
    text = markdown(table)
    assert column(text, "lr") == ["0.002", "0.004", "0.001", "0.008"]
    assert column(text, "val rsum") == ["280.0", "270.0", "250.0", ""]
    assert column(text, "rsum") == ["200.0", "240.0", "260.0", ""]
    assert column(text, "test data")[-1] == "failed"
    assert column(text, "folder")[0] == str(rates / "0.002")
    for folder in rates.iterdir():  # of a loss less is better
        config = yaml.safe_load((folder / "config.yaml").read_text())
        (folder / "config.yaml").write_text(yaml.safe_dump({**config, "checkpoint": {"monitor": "val/rsum", "mode": "min"}}))
    assert column(markdown(rows(find_runs([rates]))), "val rsum") == ["250.0", "270.0", "280.0", ""]
    read = {row["run"]: row for row in csv.DictReader(io.StringIO(to_csv(find_runs([rates]))))}
    assert (read["0.002"]["val/rsum"], read["0.002"]["val/i2t_r1"]) == ("280.0", "12.0")
    assert (read["0.002"]["model.optimization.lr"], read["0.008"]["model.optimization.lr"]) == ("0.002", "0.008")


@pytest.mark.parametrize(
    ("by", "first"), [("rsum", "0.001"), ("val rsum", "0.002"), ("val/rsum", "0.002"), ("lr", "0.001"), ("folder", "0.001")]
)
def test_sorted_by_a_column(rates: Path, by: str, first: str) -> None:
    table = sort(rows(find_runs([rates])), by)
    assert column(markdown(table), "lr")[0] == first
    assert table[-1]["status"] == "failed"


def test_each_validation_is_sorted_by_its_own_direction(tmp_path: Path) -> None:
    """The best first: of a loss the lowest, also where another run watches a recall."""
    for name, monitor, mode, best in (
        ("a", "val/rsum", "max", 300.0), ("b", "val/loss", "min", 0.5),
        ("c", "val/loss", "min", 0.1), ("d", "val/rsum", "max", 310.0),
    ):  # fmt: skip
        write_run(tmp_path / name, name, fit=Fit(10, 1, monitor, best), evaluations=(evaluation(100.0),))
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump({"checkpoint": {"monitor": monitor, "mode": mode}}))
    table = rows(find_runs([tmp_path]))
    assert [row["name"] for row in sort(table, "val loss")][:2] == ["c", "b"]
    assert [row["name"] for row in sort(table, "val rsum")][:2] == ["d", "a"]


def test_a_column_that_is_not_there_is_told_with_those_that_are(rates: Path) -> None:
    table = rows(find_runs([rates]))
    with pytest.raises(InputError, match=r"--sort lrr: the table has no such column\. Did you mean 'lr'\? It has: name, "):
        sort(table, "lrr")
    with pytest.raises(InputError, match=r"--sort R@5: 2 columns have that heading; they are i2t_r5 and t2i_r5"):
        sort(table, "R@5")


def test_a_validation_alone_is_a_row(tmp_path: Path) -> None:
    """What `fit` and `validate` write."""
    write_run(tmp_path / "fit", "fit", fit=Fit(20, 2, "val/loss", 0.125))
    write_run(tmp_path / "val", "val", evaluations=(evaluation(60.0, split="val[:9]", stage="val"),))
    text = markdown(rows(find_runs([tmp_path])))
    assert column(text, "test data") == ["not tested", "flickr8k val\\[:9\\]"]
    assert column(text, "val loss") == ["0.125", "–"]
    assert column(text, "rsum") == ["–", "60.0"]


def test_a_class_of_ours_is_shown_by_its_name_and_anothers_by_its_path(tmp_path: Path) -> None:
    for path in ("lightning_modules.networks.beit3.BEiT3Retrieval", "my_file.Network"):
        folder = write_run(tmp_path / path, path[:3], seed=0, evaluations=(evaluation(60.0),))
        (folder / "config.yaml").write_text(yaml.safe_dump(changed(model__init_args__network={"class_path": path})))
    assert column(markdown(rows(find_runs([tmp_path]))), "network") == ["BEiT3Retrieval", "my_file.Network"]


def test_options_without_room_are_named(tmp_path: Path) -> None:
    """Two models differ in all of their options; what differs within a name is shown before them."""
    for name, lr, sizes in (("a", 1e-3, 1), ("a", 2e-3, 1), ("b", 1e-3, 2)):
        folder = write_run(tmp_path / f"{name}-{lr}", name, seed=0, evaluations=(evaluation(60.0),))
        network = {f"size_{number}": sizes for number in range(9)}
        config = changed(model__init_args__optimization__lr=lr, model__init_args__network=network)
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    text = markdown(rows(find_runs([tmp_path])))
    assert column(text, "lr") == ["0.001", "0.002", "0.001"]
    assert text.splitlines()[-1] == (
        "They differ in 9 more options, which --csv has: model.network.size_0, model.network.size_1, model.network.size_2, "
        "model.network.size_3 and 5 more."
    )


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    """As a sweep's are, which are all called by their variant; where the folders have one name too, by those above."""
    for place, lr in (("one/mwa-s0-0a", 1e-3), ("one/mwa-s0-0b", 2e-3), ("one/x", 3e-3), ("two/x", 4e-3)):
        folder = write_run(tmp_path / place, "mwa", seed=0, evaluations=(evaluation(1e5 * lr),))
        (folder / "config.yaml").write_text(yaml.safe_dump(changed(model__init_args__optimization__lr=lr)))
    write_run(tmp_path / "other", "head", evaluations=(evaluation(120.0),))
    told = {row["label"] for row in rows(find_runs([tmp_path]))}
    assert told == {"head", "one/mwa-s0-0a", "one/mwa-s0-0b", "mwa (one/x)", "mwa (two/x)"}
    told = {row["label"] for row in rows(find_runs([tmp_path / "one" / "mwa-s0-0a", tmp_path / "one" / "mwa-s0-0b"]))}
    assert told == {"mwa-s0-0a", "mwa-s0-0b"}
    printed = markdown(rows(find_runs([tmp_path / "one"])))
    assert [line.split(" | ")[0] for line in printed.splitlines()[2:]] == ["| mwa-s0-0a", "| mwa-s0-0b", "| mwa (x)"]


def test_one_data_set_and_cut_splits(runs: Path) -> None:
    write_run(runs / "quick", "quick", evaluations=(evaluation(60.0, split="test[:100]"),))
    table = rows(find_runs([runs]), data="coco")
    assert [row["name"] for row in table if row["status"] == "finished"] == ["mwa"]
    table = rows(find_runs([runs]))
    assert next(row for row in table if row["name"] == "quick")["data"] == "flickr8k[:100]"  # never beside the whole split


def test_folders_without_runs_are_named(tmp_path: Path, runs: Path) -> None:
    (runs / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty holds no results\.json"):
        find_runs([runs / "mwa-0", runs / "empty"])
    with pytest.raises(InputError, match="nowhere is not a folder"):
        find_runs([runs / "nowhere"])
    assert list(find_runs([runs / "mwa-0"])) == [runs / "mwa-0"]


def test_the_command_prints_and_writes(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["table", str(runs), "--data", "flickr8k", "--out", str(tmp_path / "t.md"), "--csv", str(tmp_path / "t.csv")])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "t.md").read_text()
    assert "coco" not in printed
    assert "flickr8k" in (tmp_path / "t.csv").read_text()


def test_numbers_that_the_per_query_files_do_not_give_are_told(tmp_path: Path) -> None:
    """As a report does, of which a table is the short form."""
    rank_Q = np.array([1, 1, 3, 9])
    for name, i2t_r1 in (("sound", 50.0), ("changed", 75.0)):
        tested = Evaluation("coco", "test", "test", {"i2t_r1": i2t_r1}, per_query_file="per_query/coco-test.npz")
        folder = write_run(tmp_path / name, name, evaluations=(tested,))
        (folder / "per_query").mkdir()
        np.savez(folder / "per_query" / "coco-test.npz", i2t_rank=rank_Q, i2t_image_index=np.arange(4))
    changed, sound = sorted(rows(find_runs([tmp_path])), key=lambda row: row["name"])
    assert sound["i2t_r1"] == 50.0
    assert changed["status"] == "unreadable"
    assert "i2t_r1 is 50 by its ranks, and 75 in results.json" in changed["error"]


def test_a_table_needs_no_torch_and_no_numpy(runs: Path) -> None:
    modules = modules_after("table", runs, folder=runs)
    assert "experiments.report.table" in modules
    assert not modules & {"torch", "numpy", "matplotlib"}


def test_recalls_over_folds_have_columns_of_their_own(tmp_path: Path) -> None:
    """In percent, under a heading that names the gallery, and only where a run has them."""
    tested = evaluation(300.0, "coco", folds_i2t_r1=63.1)
    write_run(tmp_path / "one", "one", evaluations=(replace(tested, notes=fold_notes(5, 5000)),))
    header, _, row = markdown(rows(find_runs([tmp_path]))).splitlines()
    cells = dict(zip(header.split(" | "), row.split(" | "), strict=True))
    assert cells["1000 i2t R@1"] == "63.1"
    assert [name for name in cells if name.startswith("1000")] == ["1000 i2t R@1"]
