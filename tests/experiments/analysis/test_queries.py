"""Queries are joined to the captions and images that they are of, or refused where the data are no longer those."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pandas
import pytest
import yaml
from fake_runs import write_run
from PIL import Image

from datamodules.errors import InputError
from datamodules.table import Table
from experiments.analysis.queries import found_instead, records_of, with_data
from experiments.runs import load_runs
from experiments.runs.frames import Runs

CAPTIONS = [["A dog.", "A wet dog runs."], ["Two red cups"], ["The sea.", "Waves on a grey day."]]


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    """A run tested on three images with five captions, of which it keeps the scores."""
    root = tmp_path / "photos"
    root.mkdir()
    with (root / "captions.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "caption", "split"])
        for image, captions in enumerate(CAPTIONS):
            Image.new("RGB", (8, 8), (80 * image, 0, 0)).save(root / f"{image}.png")
            table.writerows([f"{image}.png", caption, "test"] for caption in captions)
    owner_T = np.array([0, 0, 1, 2, 2])
    scores_IT = np.array([[5.0, 1, 0, 2, 0], [4, 3, 2, 0, 0], [0, 2, 1, 1, 3]])
    rank_T = 1 + (scores_IT > scores_IT[owner_T, np.arange(5)]).sum(0)
    arrays = {"i2t_image_index": np.arange(3), "i2t_rank": np.array([1, 3, 1]), "t2i_text_index": np.arange(5),
              "t2i_image_index": owner_T, "t2i_rank": rank_T}  # fmt: skip
    section = {"class_path": "datamodules.table.Table", "init_args": {"root": str(root), "num_workers": 0}}
    folder = write_run(tmp_path / "run", {"table": arrays}, fingerprint=Table(root=str(root), num_workers=0).fingerprint())
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": section}))
    (folder / "scores" / "table-test").mkdir(parents=True)
    np.save(folder / "scores" / "table-test" / "scores.npy", scores_IT)
    return load_runs(folder)


def test_a_query_has_its_caption_and_image(runs: Runs) -> None:
    queries = with_data(runs.per_query(), runs)
    to_image = queries[queries["kind"] == "t2i"]
    assert to_image["caption"].tolist() == [caption for captions in CAPTIONS for caption in captions]
    assert [Path(file).name for file in to_image["file"]] == ["0.png", "0.png", "1.png", "2.png", "2.png"]
    assert to_image["words"].tolist() == [2, 4, 3, 2, 5]
    to_text = queries[queries["kind"] == "i2t"]
    assert to_text["caption"].isna().all(), "the query is an image"
    assert [Path(name).stem for name in to_text["image_id"]] == ["0", "1", "2"]
    part = with_data(runs.per_query().iloc[[6, 4]], runs)
    assert part["caption"].tolist() == ["The sea.", "A wet dog runs."], "in the order that was given"


def test_frames_that_were_put_together_keep_their_rows(runs: Runs) -> None:
    queries = runs.per_query()
    both = with_data(pandas.concat([queries.iloc[:2], queries.iloc[:3]]), runs)
    assert both.index.tolist() == [0, 1, 0, 1, 2]
    assert both["image_id"].tolist() == with_data(queries, runs)["image_id"].iloc[[0, 1, 0, 1, 2]].tolist()


def test_what_was_found_is_by_the_scores_that_the_run_kept(runs: Runs) -> None:
    (run,) = runs
    records, found = found_instead(run, "table", [1, 3], [1], found=2)
    assert [len(record.captions) for record in records] == [2, 1, 2]
    wet_dog, sea = found["to_images"]
    assert (wet_dog.found, wet_dog.rank) == ((1, 2), 3)
    assert (sea.found, sea.right, sea.rank) == ((0, 2), (False, True), 2)
    assert (found["to_texts"][0].found, found["to_texts"][0].rank) == ((0, 1), 3)


def test_data_that_have_changed_or_are_fewer_are_refused(runs: Runs, tmp_path: Path) -> None:
    (run,) = runs
    queries = runs.per_query()
    queries["query"] += 1
    with pytest.raises(InputError, match="its data have 3 images with 5 captions, and its ranks are of more"):
        with_data(queries, runs)
    np.save(tmp_path / "run" / "scores" / "table-test" / "scores.npy", np.zeros((2, 5)))
    with pytest.raises(InputError, match=r"scores.npy has the shape \(2, 5\), and its test 3 images with 5 captions"):
        found_instead(run, "table", [0], [])
    text = (tmp_path / "photos" / "captions.csv").read_text()
    (tmp_path / "photos" / "captions.csv").write_text(text.replace("Two red", "Three red"))
    with pytest.raises(InputError, match="the content of table has changed since the run was tested"):
        with_data(runs.per_query(), runs)
    (tmp_path / "photos" / "captions.csv").unlink()
    with pytest.raises(InputError, match="photos"):
        records_of(run, "table")


def test_data_of_another_test_are_those_that_it_names(runs: Runs, tmp_path: Path) -> None:
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    other = {"class_path": "datamodules.table.Table", "init_args": {"root": str(tmp_path / "nowhere"), "num_workers": 0}}
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump({"data": other, "evaluate": {"table": config["data"]}}))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [each["data"] for each in results["evaluations"]] == ["table"]
    (run,) = runs
    assert len(records_of(run, "table")) == 3
