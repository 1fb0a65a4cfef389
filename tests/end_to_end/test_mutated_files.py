"""Files of run folders and sweeps that were damaged, through whatever reads them: named in one line, never a traceback or a wait,
the other runs as before, and the damaged run either as before or a row that says so."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from configurations import CONFIG
from damaged import ANY, FLIPPED, Mutation, replaced
from fake_runs import captions, ranks, write_beside, write_run

import lightning_modules
from datamodules.errors import InputError
from experiments.analysis.stored_maps import AttentionMaps, WordMaps, store_map, stored
from experiments.cli.main import run_command
from experiments.papers.plan import PlannedRun
from experiments.papers.schema import Recipe
from experiments.report import collect
from experiments.report.table import find_runs, markdown, rows
from experiments.runs.per_query import read_per_query
from experiments.runs.store import Run, RunFolders
from experiments.sweep import points

RUNS = ("mwa-x-s0-01234567", "mwa-x-s1-89abcdef")  # the first one is damaged
PLANNED = [PlannedRun(f"{name[-8:]}0000", ("mwa/x",), "miniature", seed, Recipe([]), (), {}) for seed, name in enumerate(RUNS)]
RESULTS = {
    "a seed": replaced('"seed": 0', '"seed": 1'), "a metric": replaced('"i2t_r1": ', '"i2t_r1": 9'),
    "no metric": replaced('"i2t_r1": ', '"i2t_r1": "x", "y": '), "a path": replaced("per_query/world", "../../etc/world"),
    "columns": replaced('"metrics"', '"notes": {"columns": [1]}, "metrics"'), "a status": replaced("finished", "finnished"),
    "twice": replaced('"attempts": 1', '"attempts": 1, "attempts": 2'), "a huge number": replaced("425.0", "1" * 400),
    "a key": replaced('"command"', '"comand"'), "another version": replaced("results/2", "results/9"),
}  # fmt: skip
METRICS = {
    "a cell more": replaced("\n10,", "\n10,5,"), "no step": replaced("step,", "stop,"), "words": replaced("\n10,", "\nten,"),
    "a quote": replaced("\n10,", '\n"10,'), "a column twice": replaced("step,epoch", "step,step"),
}  # fmt: skip
FILES: dict[str, dict[str, Mutation]] = {
    "results.json": {**ANY, **RESULTS},
    "metrics.csv": {**ANY, **METRICS},
    "config.yaml": {**ANY, "bomb": lambda file: (file.write_text("a: &a [x, x]\nb: &b [*a, *a]\nc: *d\n"), None)[1]},
    "per_query/world-test.npz": {**ANY, **FLIPPED},
    "attention_maps/relations.npz": {**ANY, **FLIPPED},
    "captions/world-test.beside.json": {**ANY, "a caption": replaced('"caption"', '"captoin"')},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    for seed, name in enumerate(RUNS):
        generator = np.random.default_rng(seed)
        arrays = {"world": {**ranks(generator, 0.5), **captions(generator, 0.5)}}
        folder = write_run(root / name, arrays, seed=seed, logged={"val/isda": [0.3, 0.2], "val/rsum": [200, 210]})
        (folder / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "seed_everything": seed}))
        store_map(folder, "relations.npz", AttentionMaps(("a",), np.eye(1), np.eye(2), "a", 1, 0.25, 0.5))
        store_map(
            folder,
            "words.npz",
            WordMaps(("a",), np.ones((1, 2, 2)), np.zeros((4, 6, 3), np.uint8), (0.0, 0.0, 6.0, 4.0), "a", "b"),
        )
        write_beside(folder, "world", generator, root)
    return root


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """A wait is an error of its own."""

    def told(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, told)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def found(root: Path) -> list[Any]:
    """Both runs as an exhibit sees them."""
    folders, problems = RunFolders([root]), dict[Path, str | None]()
    return [collect._sound(folders.find(planned, "mwa/x"), folders, problems) for planned in PLANNED]


def numbers(run: Run) -> str:
    """All arrays that a run has stored."""
    assert run.folder is not None
    per_query = read_per_query(run.folder / "per_query/world-test.npz", {})
    return repr([stored(run.folder), {name: array.tolist() for name, array in per_query.items()}])


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_a_row_that_says_so(name: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for what, mutate in FILES[name].items():
        root = tmp_path / what.replace(" ", "-")
        shutil.copytree(made, root)
        mutate(root / RUNS[0] / name)
        damaged, sound = found(root)
        before, _ = found(made)
        assert sound.status == "finished", what
        if damaged.status != "unreadable":  # a configuration is no number; in an archive some bytes mean nothing
            assert name == "config.yaml" or (what in FLIPPED and numbers(damaged) == numbers(before)), f"{name}, {what}: unsaid"
            assert damaged.results == before.results, what
        else:
            assert str(root / RUNS[0]) in damaged.error, what
            assert "\n" not in damaged.error, what
        table = rows(find_runs([root]))
        markdown(table)
        one = [row for row in table if row["status"] == "finished" and row["problem"] is None]
        assert sum(row["runs"] for row in one) >= 1, what
        if name == "results.json" and what not in ("a seed", "a metric"):
            assert [row["status"] for row in table if row not in one] == ["unreadable"], what
        run_command("sweep", ["status", str(root)])
        run_command("correlate", [str(root)])
        shown = capsys.readouterr().out
        assert RUNS[1] in shown, what
        if name in ("results.json", "config.yaml") and what not in RESULTS:
            with pytest.raises(InputError, match=RUNS[0]):
                lightning_modules.load(root / RUNS[0])


RECORDS: dict[str, dict[str, Mutation]] = {
    "points.json": {
        **ANY,
        "no points": replaced('"points"', '"pionts"'),
        "others": replaced('"x"', '"y"'),
        "nan": replaced("1", "NaN"),
    },
    "slurm/jobs.json": {**ANY, "a job": replaced("41_0", "41; rm"), "a word": replaced('"requeues": 3', '"requeues": "many"')},
}


@pytest.mark.parametrize("name", RECORDS)
def test_records_of_a_sweep_are_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(points, "visible_gpus", list)
    monkeypatch.setenv("PATH", "/bin")  # no Slurm here
    sweep = {
        "method": "random", "run_cap": 2, "command": ["crosslight", "run", "${args}"],
        "parameters": {"x": {"min": 0.0, "max": 1.0}},
    }  # fmt: skip
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(sweep))
    job = {
        "title": "x", "folder": str(tmp_path / "x"), "argv": ["crosslight"], "command": "run", "name": None, "seed": 0,
        "scale": None, "job": "41_0", "requeues": 3, "submitted": "now",
    }  # fmt: skip
    for what, mutate in RECORDS[name].items():
        root = tmp_path / what.replace(" ", "-")
        (root / "slurm").mkdir(parents=True)
        (root / "points.json").write_text(json.dumps({"points": [{"x": 1.0}]}))
        (root / "slurm" / "jobs.json").write_text(json.dumps({"k": job}))
        mutate(root / name)
        with pytest.raises(InputError, match=name.rpartition("/")[2]) as error:
            run_command("sweep", ["status", str(tmp_path / "s.yaml"), "--out", str(root)])
        assert "\n" not in str(error.value), what


def test_damaged_sweep_files_are_named(tmp_path: Path) -> None:
    for what, mutate in ANY.items():
        file = tmp_path / f"{what.replace(' ', '-')}.yaml"
        file.write_text(
            yaml.safe_dump({"method": "grid", "command": ["crosslight", "run"], "parameters": {"x": {"values": [1, 2]}}})
        )
        mutate(file)
        with pytest.raises(InputError, match=file.name) as error:
            run_command("sweep", ["run", str(file), "--dry-run", "--out", str(tmp_path / "out")])
        assert "\n" not in str(error.value), what
