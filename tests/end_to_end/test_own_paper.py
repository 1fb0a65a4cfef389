"""A paper of one's own in a folder outside the package: planned, run, and reported beside what it prints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from end_to_end import crosslight, succeed

from experiments.sweep.targets import exhibit_launches

OWN = Path(__file__).parent / "own"
PAPER = OWN / "own_paper"


@pytest.fixture(autouse=True)
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(OWN))
    monkeypatch.setenv("CROSSLIGHT_PAPERS", str(PAPER))


def test_it_takes_forty_lines() -> None:
    assert sum(len(file.read_text().splitlines()) for file in PAPER.rglob("*.yaml")) <= 40


def test_it_is_planned_run_and_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # its files are found from any folder
    planned = succeed("sweep", "run", "own_paper/table1", "--out", "runs", "--dry-run").out
    assert "own_paper/heads s0" in planned
    assert "own_paper/low_rank s0" in planned
    for launch in exhibit_launches("own_paper", "miniature", [0], tmp_path / "runs"):
        succeed(launch.command or "", *launch.arguments, "--data.init_args.batch_size=8")  # the tests' world is small
    assert "2 of 2 rows measured" in succeed("report", "own_paper", "--runs", "runs", "--out", "report").out
    (exhibit,) = json.loads(Path("report/summary.json").read_text())["exhibits"]
    rows = {row["label"]: row for row in exhibit["rows"]}
    assert {label: row["cells"]["flickr_tr1"]["published"] for label, row in rows.items()} == {"heads": 55.2, "low rank": 63.9}
    tunable = {label: row["cells"]["tunable_m"]["mean"] for label, row in rows.items()}
    assert tunable["low rank"] - tunable["heads"] == pytest.approx(3 * 4 * (96 + 288) / 1e6)  # rank 4 in three blocks' qkv
    (claim,) = exhibit["claims"]
    assert claim["comparisons"][0]["what"] == "low rank minus heads, Flickr30k TR@1"
    assert '<h2 id="own-paper">own_paper</h2>' in Path("report/index.html").read_text()


@pytest.mark.parametrize(
    ("name", "named", "words"),
    [
        ("own_paper", "own_paper/exhibits", "has no runs.yaml. Name the folder of a paper itself"),
        ("iais", "iais", "papers/iais is called 'iais' too. Rename the folder"),
        ("My-Paper", "My-Paper", "a paper's name is its folder's, of small letters"),
    ],
)
def test_a_folder_that_cannot_be_one_is_refused(
    name: str, named: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(PAPER, tmp_path / name)
    monkeypatch.setenv("CROSSLIGHT_PAPERS", str(tmp_path / named))
    answer = crosslight("sweep", "run", "all", "--dry-run")
    assert answer.status == 2
    assert f"CROSSLIGHT_PAPERS names {tmp_path / named}" in answer.error
    assert words in answer.error
