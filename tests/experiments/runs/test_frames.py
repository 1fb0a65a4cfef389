"""Runs as frames have what their folders say, and hide none."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from fake_runs import captions, ranks, write_run

from datamodules.errors import InputError
from experiments.runs import load_runs
from experiments.runs.wandb_runs import read_project

LR = "model.optimization.lr"


def configuration(lr: float, adapter: str | None = "MultiWayAdapter", seed: int = 0) -> dict[str, Any]:
    named = None if adapter is None else {"class_path": adapter, "init_args": {"mid": 64, "towers": ["image", "text"]}}
    return {
        "seed_everything": seed, "scale": "miniature", "data": {"class_path": "COCO", "init_args": {"root": f"/data/{seed}"}},
        "model": {"class_path": "Module", "init_args": {"optimization": {"lr": lr, "eps": 1e-8}, "adapter": named}},
        "checkpoint": {"monitor": "val/rsum"},
    }  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two rates of one adapter, a full tuning, and a captioner; beside them a folder of logs."""
    generator = np.random.default_rng(0)
    kinds = {"mwa-a": (1e-3, "MultiWayAdapter"), "mwa-b": (3e-3, "MultiWayAdapter"), "mwa-full": (1e-3, None)}
    for number, (name, (lr, adapter)) in enumerate(kinds.items()):
        folder = write_run(
            tmp_path / "runs" / name, {"coco": ranks(generator, 0.5)}, seed=number, name=name,
            cost={"tunable_parameters": 7}, logged={"val/rsum": [1.0, 2.0], "train/loss": [3.0, float("nan")]},
        )  # fmt: skip
        (folder / "config.yaml").write_text(yaml.safe_dump(configuration(lr, adapter, number)))
    captioner = write_run(tmp_path / "runs" / "captioner", {"nocaps": captions(generator, 0.5, 3)}, name="captioner")
    beside = [{"image_id": f"{at}", "caption": f"caption {at}", "file": f"{at}.jpg", "references": ["A", "B"]} for at in range(3)]
    (captioner / "captions").mkdir()
    (captioner / "captions" / "nocaps-test.beside.json").write_text(json.dumps(beside))
    (tmp_path / "runs" / "logs").mkdir()
    return tmp_path / "runs"


@pytest.fixture
def broken(root: Path) -> Path:
    (root / "cut-off").mkdir()
    (root / "cut-off" / "config.yaml").write_text("a: 1\n")
    (root / "foreign").mkdir()
    (root / "foreign" / "results.json").write_text('{"all_results": {"acc": 1}}')
    return root


def test_a_row_has_the_options_that_differ_and_the_numbers_of_results_json(root: Path) -> None:
    runs = load_runs(root)
    assert [path.name for path in runs.without] == ["logs"]
    assert "4 runs: 4 finished" in repr(runs)
    assert "no run in: " in repr(runs)
    frame = load_runs(root / "mwa-a", root / "mwa-b", root / "mwa-full").frame().set_index("run")
    assert list(frame[LR]) == [1e-3, 3e-3, 1e-3]
    assert list(frame["model.adapter"])[:2] == ["MultiWayAdapter"] * 2
    assert frame["model.adapter"].isna()["mwa-full"]
    assert "model.optimization.eps" not in frame, "equal in all"
    assert not {"model.adapter.mid", "model.adapter.towers"} & set(frame), "equal in all that have it"
    assert "data.root" not in frame, "a place decides nothing"
    results = json.loads((root / "mwa-a" / "results.json").read_text())
    for metric, value in results["evaluations"][0]["metrics"].items():
        assert frame[f"coco/test/{metric}"]["mwa-a"] == value
    told = ["status", "seconds", "device", "revision", "tunable_parameters", "seed"]
    assert list(frame.loc["mwa-b", told]) == ["finished", 425.0, "AMD EPYC", "148bf7a000", 7, 1]


def test_what_cannot_be_read_has_a_row_and_a_warning(broken: Path) -> None:
    with pytest.warns(UserWarning, match="2 of 6 runs cannot be read") as caught:
        runs = load_runs(broken)
    assert caught[0].filename == __file__, "it points at the caller"
    frame = runs.frame().set_index("run")
    assert frame["status"][["foreign", "cut-off"]].tolist() == ["unreadable"] * 2
    assert "schema" in frame["error"]["foreign"]
    assert "has no results.json" in frame["error"]["cut-off"]
    assert f"unreadable: {broken / 'cut-off'}" in repr(runs)
    assert len(runs.finished) == 4
    assert frame["seed"].isna()["foreign"], "none is made up"


def test_a_pattern_has_the_runs_that_its_folder_has(broken: Path) -> None:
    with pytest.warns(UserWarning, match="2 of 6 runs cannot be read"):
        runs = load_runs(f"{broken}/*")
    assert runs.frame().set_index("run")["status"]["cut-off"] == "unreadable"
    assert [path.name for path in runs.without] == ["logs"]


def test_places_are_folders_runs_patterns_and_each_run_comes_once(root: Path) -> None:
    assert [run.name for run in load_runs(f"{root}/mwa-?")] == ["mwa-a", "mwa-b"]
    assert len(load_runs(root, root / "mwa-a", str(root / "mwa-*"))) == 4
    assert [run.name for run in load_runs(root).named("mwa-*").named("*-full")] == ["mwa-full"]
    (root.parent / "others").mkdir()
    (root / "mwa-a").rename(root.parent / "others" / "mwa-b")
    assert sorted(load_runs(root.parent).frame()["run"])[:2] == [str(root.parent / "others" / "mwa-b"), str(root / "mwa-b")]


@pytest.mark.parametrize(
    ("place", "error"),
    [("nothing", "is not a folder"), ("no-*", "no folder is named"), ("logs", "there is no run in it")],
)
def test_a_place_without_runs_is_an_error(root: Path, place: str, error: str) -> None:
    with pytest.raises(InputError, match=error):
        load_runs(root / place)
    with pytest.raises(InputError, match="was given no folder"):
        load_runs()


def test_queries_are_those_of_the_files_with_captions_beside_them(root: Path) -> None:
    queries = load_runs(root).per_query()
    with np.load(root / "mwa-b" / "per_query" / "coco-test.npz") as arrays:
        ours = queries[(queries["run"] == "mwa-b") & (queries["kind"] == "t2i")]
        np.testing.assert_array_equal(ours["rank"], arrays["t2i_rank"])
        np.testing.assert_array_equal(ours["image"], arrays["t2i_image_index"])
        np.testing.assert_array_equal(ours["query"], arrays["t2i_text_index"])
    written = queries[queries["kind"] == "caption"]
    assert written["caption"].tolist() == ["caption 0", "caption 1", "caption 2"]
    assert written["references"].tolist() == [("A", "B")] * 3
    assert written["rank"].isna().all()
    with np.load(root / "captioner" / "per_query" / "nocaps-test.npz") as arrays:
        np.testing.assert_array_equal(written["cider"], arrays["cider"])


def test_damaged_queries_are_left_out_aloud(root: Path) -> None:
    (root / "mwa-a" / "per_query" / "coco-test.npz").write_bytes(b"no zip")
    with pytest.warns(UserWarning, match=r"mwa-a: left out of the queries: .*coco-test\.npz"):
        queries = load_runs(root).per_query()
    assert "mwa-a" not in set(queries["run"])
    assert "mwa-b" in set(queries["run"])


def test_history_is_long_or_wide(root: Path) -> None:
    long = load_runs(root).history()
    ours = long[long["run"] == "mwa-a"]
    told = ours[["step", "metric", "value"]].values.tolist()
    assert told == [[0, "train/loss", 3.0], [0, "val/rsum", 1.0], [10, "val/rsum", 2.0]], "nan is no value"
    wide = load_runs(root).history(wide=True)
    assert wide.columns.tolist() == ["run", "name", "seed", "step", "epoch", "train/loss", "val/rsum"]
    assert len(wide) == 6
    (root / "mwa-a" / "metrics.csv").write_text("step,epoch,a\n1,0,x\n")
    with pytest.warns(UserWarning, match="mwa-a: left out of the history"):
        assert "mwa-a" not in set(load_runs(root).history()["run"])


def test_without_pandas_the_extra_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = load_runs(root)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match=r"crosslight\[notebooks\]"):
        runs.frame()


class Project:
    """As much of `wandb.Api` as is used: two runs of ours and a foreign one, from its attributes as of wandb 0.31."""

    def __init__(self, root: Path) -> None:
        self.asked: tuple[Any, ...] = ()
        self._ours = []
        for number, lr in enumerate((1e-3, 3e-3)):
            results = json.loads((root / f"mwa-{'ab'[number]}" / "results.json").read_text())
            metrics = results["evaluations"][0]["metrics"]
            summary = {f"final/coco/test/{name}": value for name, value in metrics.items()} | {"_runtime": 12.5, "_wandb": {}}
            self._ours.append(self._run(f"id{number}", "finished" if number else "crashed", configuration(lr, seed=number),
                                        summary | {"val/rsum": 2.0, "trainer/global_step": 10}))  # fmt: skip
        self._ours.append(self._run("other", "running", {"lr": 1}, {"acc": 0.5}))

    def _run(self, name: str, state: str, config: dict[str, Any], summary: dict[str, Any]) -> Any:
        return SimpleNamespace(
            id=name, name=f"name {name}", state=state, config=config, summary_metrics=summary, commit="148bf7a",
            created_at="2026-11-21T15:32:55Z", url=f"https://wandb.ai/e/p/runs/{name}",
        )  # fmt: skip

    def runs(self, path: str, filters: dict[str, Any], lazy: bool) -> list[Any]:
        self.asked = (path, filters, lazy)
        if path != "entity/project":
            raise ValueError("Could not find project")
        return self._ours


def test_a_project_of_wandb_has_the_columns_of_run_folders(root: Path) -> None:
    api = Project(root)
    with pytest.warns(UserWarning, match=r"1 of 3 runs of entity/project have no model"):
        there = read_project("entity/project", {"group": "g"}, api)
    assert api.asked == ("entity/project", {"group": "g"}, False), "one request for many runs"
    here = load_runs(root / "mwa-a", root / "mwa-b").frame()
    shared = [column for column in here if "/" in column or column in (LR, "seed")]
    np.testing.assert_allclose(there.loc[:1, shared].astype(float), here[shared].astype(float))
    assert there["status"].tolist() == ["interrupted", "finished", "running"]
    assert there["seconds"].tolist()[:2] == [12.5, 12.5]
    assert set(there) <= {*here, "val/rsum"}, "no column of another name"


@pytest.mark.parametrize(("project", "error"), [("project", "as entity/project"), ("entity/other", "wandb login")])
def test_a_project_that_is_not_there_is_an_error(root: Path, project: str, error: str) -> None:
    with pytest.raises(InputError, match=error):
        read_project(project, api=Project(root))
