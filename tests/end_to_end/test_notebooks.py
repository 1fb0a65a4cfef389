"""The notebooks run on tiny runs, show what they say, and are kept without outputs."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import yaml
from executed_notebooks import FOLDER, NAMES, execute
from fake_runs import fill, ranks, write_run

OWN = Path(__file__).parent / "own"


@pytest.fixture(autouse=True)
def left_as_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """What notebooks set in their process is theirs alone."""
    monkeypatch.setenv("CROSSLIGHT_WORLD", os.environ["CROSSLIGHT_WORLD"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(FOLDER)
    known = set(sys.modules)
    yield
    for name in {file.stem for file in OWN.glob("*.py")} & (sys.modules.keys() - known):
        del sys.modules[name]
    import pandas

    pandas.reset_option("display.max_colwidth")


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory, uniter_run: Path, i_tuning_run: Path) -> Path:
    """Rows of exhibits with made-up numbers, but for those whose maps a model draws: these are the tiny runs."""
    root = tmp_path_factory.mktemp("notebooks") / "papers"
    root.mkdir()
    names = ["mwa/table3", "mwa/figure2", "iais/figure3", "iais/figure7", "i_tuning/figure3"]
    planned = {run.names[0]: root / run.folder_name for run in fill(root, names, "miniature", [0])}
    for row in ("iais/base-flickr30k-distributed", "i_tuning/coco-large-vlp", "i_tuning/coco-large-half"):
        shutil.rmtree(planned[row])
    for run, row in ((uniter_run, "iais/base-flickr30k-baseline"), (uniter_run, "iais/base-flickr30k-singular"),
                     (i_tuning_run, "i_tuning/coco-large")):  # fmt: skip
        shutil.rmtree(planned[row])
        copied(run, planned[row])
    (planned["mwa/base-coco-mwa"] / "metrics.csv").write_text("step,epoch,train/loss\n0,0,3.0\n10,1,2.0\n")
    return root


def copied(run: Path, folder: Path, **changes: Any) -> None:
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("wandb", "last.ckpt"))
    results = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps(results | {"seed": 0, "scale": "miniature"} | changes))


def shown(cells: Any) -> tuple[str, str]:
    """What a notebook printed, and the HTML of what it showed."""
    return "\n".join(printed for _, printed, _ in cells), "\n".join(
        str(data.get("text/html", "")) for _, _, outputs in cells for data in outputs
    )


def test_a_paper_is_remade_from_its_runs_and_says_what_is_missing(papers: Path) -> None:
    printed, html = shown(execute("mwa", papers))
    assert "mwa/table1: " in printed
    assert "crosslight sweep run mwa/table1 --scale miniature" in printed
    assert html.count("<figure") == 4, "costs, quality, mid dimensions, loss"
    assert "the start (frozen)" in html
    assert "61.40" in html, "the paper's number"


def test_maps_before_and_after_are_drawn_by_the_models(papers: Path) -> None:
    printed, html = shown(execute("iais", papers, PAIR=1))
    assert "iais/figure9: " in printed
    assert html.count("intra-modal self-attention of layer") >= 2
    assert "ISDa" in html


def test_a_captioner_is_followed_word_by_word(papers: Path) -> None:
    printed, html = shown(execute("i_tuning", papers, IMAGE=1))
    assert "i_tuning/figure3: 1 of 3 rows are here" in printed
    assert html.count("which it wrote; its peak") == 2, "of the first image and another"
    assert "as a person wrote it" in html
    assert "spread evenly: none is chosen by its captions" in html


def test_errors_are_found_by_category_length_and_domain(tmp_path: Path, uniter_run: Path, i_tuning_run: Path) -> None:
    for name in ("iais-one", "iais-other"):
        copied(uniter_run, tmp_path / "runs" / name, name=name)
    copied(i_tuning_run, tmp_path / "runs" / "i_tuning-one")
    _, html = shown(execute("error_analysis", tmp_path / "runs", RETRIEVAL=["iais-*"], CAPTIONERS=["i_tuning-*"]))
    assert html.count("<figure") == 6
    assert "R@1, % by categories" in html
    assert "CIDEr by domain. " in html
    assert "Correlation of the logarithms 1.00" in html, "of a run and itself"


def test_a_sweep_is_looked_through_and_points_are_proposed(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for number, lr in enumerate(10 ** generator.uniform(-4, -2, 8)):
        folder = write_run(
            tmp_path / f"point-{number}", {"coco": ranks(generator, 0.3)}, logged={"val/rsum": [1.0, 2.0 + number]}
        )
        options = {"optimization": {"lr": float(lr), "weight_decay": [0.0, 0.05][number % 2]}}
        config = {"seed_everything": 0, "model": {"class_path": "M", "init_args": options}, "checkpoint": {"monitor": "val/rsum"}}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        results = json.loads((folder / "results.json").read_text())
        results["fit"] |= {"monitor": "val/rsum", "best_value": 400.0 - 50 * (np.log10(lr) + 3) ** 2}
        (folder / "results.json").write_text(json.dumps(results))
    _, html = shown(execute("sweeps", tmp_path, WHICH="point-*", METRIC="val/rsum"))
    assert html.count("<figure") == 3
    assert "--model.init_args.optimization.lr=0.0" in html, "as the command takes it"


def test_ones_own_parts_train_in_a_notebook(tmp_path: Path, world: Path) -> None:
    (tmp_path / "runs" / "worlds").mkdir(parents=True)
    (tmp_path / "runs" / "worlds" / "target").symlink_to(world)
    printed, html = shown(execute("your_own", tmp_path / "runs", STEPS=2))
    assert "no problems found" in printed
    assert "own_network.OwnNetwork" in html
    assert "own_adapter.OwnAdapter" in html


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_kept_clean(name: str) -> None:
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.keys() == {"kernelspec", "language_info"}
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code), "strip the outputs"
    assert all(cell.metadata.keys() <= {"tags"} for cell in notebook.cells)
    assert code[0].metadata["tags"] == ["parameters"]
    assert code[0].source.startswith('RUNS = "../runs/papers"')
    first = notebook.cells[0].source
    assert "**Which runs.**" in first
    assert "`crosslight " in first
    for cell in code:
        first_line, _, text = cell.source.partition("\n")
        if first_line.startswith("%%writefile {own}/"):
            assert text + "\n" == (OWN / first_line.rpartition("/")[2]).read_text(), "that file is tested, so show that"
        else:
            assert cell.source.count("\n") < 24, "longer code belongs into the packages"


def test_every_notebook_is_executed_here() -> None:
    assert {file.stem for file in FOLDER.glob("*.ipynb")} == set(NAMES)
