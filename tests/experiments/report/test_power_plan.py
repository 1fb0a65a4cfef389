"""What would settle the claims of made-up exhibits, and `crosslight sweep plan`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from fake_runs import fill, write_run
from fresh_process import modules_after
from home import write_home

from datamodules.errors import InputError
from experiments.cli.main import run_command
from experiments.papers import strict_yaml
from experiments.papers.plan import plan
from experiments.report.power_plan import ClaimPlan, Hours, Need, needs_words, plan_exhibits, reasons
from experiments.runs.store import RunFolders
from experiments.sweep.targets import exhibit_launches


@pytest.fixture
def papers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The made-up exhibits, without runs; a run costs half an hour of an A100, and at miniature scale a minute of a core."""
    here = write_home(tmp_path)
    for file in here.glob("*/runs.yaml"):
        content = yaml.safe_load(file.read_text())
        for scales in content["runs"].values():
            for scale, recipe in scales.items():
                if scale == "full":
                    recipe["cost"] = {"hours": 0.5, "device": "A100"}
                elif scale == "miniature":
                    recipe["cost"] = {"hours": 1 / 60, "device": "CPU core"}
        file.write_text(yaml.safe_dump(content))
    monkeypatch.setattr(strict_yaml, "HERE", here)
    return tmp_path


def captions_of(root: Path, scale: str, differences_SI: np.ndarray) -> None:
    """Runs of i_tuning/figure1: GPT-2's CIDEr of each image is so much (in hundredths) above ClipCap's."""
    other_I = np.linspace(0.2, 0.8, differences_SI.shape[1])
    for run in plan(["i_tuning/figure1"], scale, range(len(differences_SI))):  # type: ignore[arg-type]
        scores_I = other_I + (0.01 * differences_SI[run.seed] if run.names[0].endswith("base") else 0.0)
        write_run(root / run.folder_name, {"coco": {"cider": scores_I}}, seed=run.seed, scale=scale)


def only(root: Path, scale: str = "miniature", source: str | None = None, most: int = 10) -> ClaimPlan:
    (exhibit,) = plan_exhibits(["i_tuning/figure1"], RunFolders([root]), scale, source or scale, most)  # type: ignore[arg-type]
    return exhibit.claims[0]


def differences(mean: float, seeds: int = 1, images: int = 100, training: float = 0.0) -> np.ndarray:
    """[S, I] of exactly this mean and of standard deviation 10 over images; seeds are so far apart."""
    noise_I = np.random.default_rng(0).normal(0, 1, images)
    noise_I = 10 * (noise_I - noise_I.mean()) / noise_I.std(ddof=1)
    return np.asarray(mean + noise_I + training * np.linspace(-1, 1, seeds)[:, None] if seeds > 1 else (mean + noise_I)[None])


def test_one_seed_with_a_large_difference_needs_the_least(papers: Path) -> None:
    captions_of(papers / "runs", "miniature", differences(10.0))
    found = only(papers / "runs")
    assert found.verdict.outcome == "supported"
    assert not found.settled, "one seed says nothing of another training"
    assert found.sources == ("assumed",)
    assert found.images == {"coco": 100}
    assert found.more is None
    assert found.alone is not None
    assert found.alone.seeds == 3
    assert found.alone.supported > 0.9
    assert found.alone.contradicted == 0
    assert found.alone.hours.by_device == pytest.approx({"CPU core": 4 / 60}), "two runs of two more seeds"
    assert needs_words(found).startswith("3 seeds (")


def test_what_is_too_near_its_bound_is_not_settled_by_seeds_but_by_images(papers: Path) -> None:
    captions_of(papers / "runs", "miniature", differences(1.2))
    found = only(papers / "runs", most=4)
    assert found.alone is None
    assert found.most is not None
    assert found.most.seeds == 4
    assert found.most.probability < 0.8
    assert needs_words(found).startswith("not with 4 seeds (")
    captions_of(papers / "several", "miniature", differences(1.8, 3, training=0.1))
    found = only(papers / "several", most=4)
    assert found.verdict.outcome == "not decided"
    assert found.sources == ("its seeds",)
    assert found.more is not None
    assert found.more.seeds == 3
    assert found.more.images > 1
    assert found.more.hours.by_device == pytest.approx({"CPU core": 6 / 60}), "on other images all of it runs anew"
    assert f", but 3 seeds x {round(100 * found.more.images):,} images (" in needs_words(found)


def test_real_test_sets_do_not_grow(papers: Path) -> None:
    captions_of(papers / "runs", "full", differences(1.2))
    found = only(papers / "runs", "full", most=4)
    assert found.alone is None
    assert found.more is None
    assert found.most is not None
    assert found.most.hours.by_device == pytest.approx({"A100": 3.0}), "six runs, those of one seed excepted: 2 x 3 x 0.5"


def test_three_decided_seeds_need_nothing(papers: Path) -> None:
    captions_of(papers / "runs", "miniature", differences(10.0, 3))
    found = only(papers / "runs")
    assert found.settled
    assert needs_words(found) == "nothing: it is settled"
    (exhibit,) = plan_exhibits(["i_tuning/figure1"], RunFolders([papers / "runs"]), "miniature", "miniature")
    assert exhibit.total is None


def test_a_command_costs_what_it_runs_and_not_only_what_is_open(papers: Path) -> None:
    """The table's head only is in the open claim; the rows `out of luck` and that of the other claims run as well."""
    fill(papers / "runs", ["mwa/table1"], "miniature", [0])
    (exhibit,) = plan_exhibits(["mwa/table1"], RunFolders([papers / "runs"]), "miniature", "miniature")
    seeds = exhibit.command.partition(" --seeds ")[2].split()
    assert len(seeds) > 1
    launches = exhibit_launches("mwa/table1", "miniature", [int(seed) for seed in seeds], papers / "runs")
    there = {folder.name for folder in (papers / "runs").iterdir()}
    to_run = [launch for launch in launches if launch.folder.name not in there]
    assert exhibit.total is not None
    assert exhibit.total.by_device == pytest.approx({"CPU core": len(to_run) / 60})
    assert any("broken" in launch.title for launch in to_run), "of a row that no open claim is about"


def test_what_could_go_either_way_says_both_shares(papers: Path) -> None:
    captions_of(papers / "runs", "miniature", differences(10.0))
    found = only(papers / "runs")
    need = Need(3, 1.0, 0.478, 0.522, Hours({}))
    assert needs_words(replace(found, alone=need)) == "3 seeds (48% supported, 52% contradicted)"
    assert needs_words(replace(found, alone=replace(need, supported=0.9, contradicted=0.001))) == "3 seeds (90% supported)"


def test_another_scale_has_its_own_images_and_hours(papers: Path) -> None:
    captions_of(papers / "runs", "miniature", differences(6.0))
    here, there = only(papers / "runs"), only(papers / "runs", "full", "miniature")
    assert there.images == {"coco": 5000}
    assert there.alone is not None
    assert there.alone.seeds == 3
    assert there.alone.hours.by_device == pytest.approx({"A100": 3.0}), "none of it has run"
    assert there.half_width is not None
    assert here.half_width is not None
    assert there.half_width < here.half_width


def test_what_cannot_be_planned_says_why(papers: Path) -> None:
    fill(papers / "runs", ["mwa/table1", "iais/figure3"], "miniature", [0], skip=["broken"])
    table, figure = plan_exhibits(["mwa/table1", "iais/figure3"], RunFolders([papers / "runs"]), "miniature", "miniature")
    assert [bool(each.why) for each in table.claims] == [False, False, True, True, True]
    assert reasons(table) == [
        "1 claim not planned: counted, not measured: one run says it",
        "1 claim not planned: one seed and no images to resample: run a second seed first",
        "1 claim not planned: nothing is measured of some of its rows: crosslight sweep run mwa/table1 --scale miniature",
    ]
    assert reasons(figure)[0].startswith("1 claim not planned: a correlation")
    (table,) = plan_exhibits(["mwa/table1"], RunFolders([papers / "runs"]), "full", "miniature")
    assert reasons(table)[0] == "2 claims not planned: costs at miniature scale say nothing of those at full scale"


def test_the_command_shows_it(papers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    captions_of(papers / "runs", "miniature", differences(10.0))
    assert run_command("sweep", ["plan", "i_tuning", "--runs", str(papers / "runs")]) == 0
    told = capsys.readouterr().out
    assert "i_tuning/figure1, miniature scale" in told
    assert "3 seeds (" in told
    assert "4 CPU core-minutes" in told
    assert "crosslight sweep run i_tuning/figure1 --scale miniature --seeds 0 1 2" in told
    assert "test images: coco 100" in told
    assert run_command("sweep", ["plan", "all", "--runs", str(papers / "runs"), "--json", "--seeds", "5"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["schema"], data["scale"], data["from_scale"], data["seeds_at_most"]) == (
        "crosslight.plan/1",
        "miniature",
        "miniature",
        5,
    )
    named = {each["name"]: each for each in data["exhibits"]}
    assert named.keys() == {"mwa/table1", "iais/figure3", "i_tuning/figure1"}, "those with a claim that is tested"
    (claim,) = named["i_tuning/figure1"]["claims"]
    assert claim["alone"]["seeds"] == 3
    assert claim["images"] == {"coco": 100}
    assert claim["half_width"] > 0
    assert claim["closest"] == 0
    (compared,) = claim["comparisons"]
    assert compared["mean"] == pytest.approx(10.0)
    assert (compared["seeds"], compared["seeds_vary_by"], compared["variance"]["freedom"]) == (1, "assumed", 4)
    variance = compared["variance"]
    assert variance["images"] + variance["luck"] == pytest.approx(1.0), "10 squared over 100 images"
    assert variance["between_seeds"] == pytest.approx(2.0), "as assumed"
    assert named["mwa/table1"]["claims"] == []
    assert named["mwa/table1"]["command"].startswith("crosslight sweep run mwa/table1")


def test_no_runs_no_claims_and_unknown_targets(papers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(papers)
    for arguments, message in (
        (
            ["mwa/table1"],
            "no finished run of mwa/table1 at miniature scale to plan from. crosslight sweep run mwa/table1 --scale",
        ),
        (["iais/figure6"], "iais/figure6 has no claim that is tested"),
        (["mwa/table9"], "there is no exhibit or paper 'mwa/table9'. Exhibits: mwa/figure2, mwa/table1"),
        (["all", "--seeds", "1"], "'1' is no number from 2"),
        (["all", "--runs", "nowhere"], "--runs nowhere is not a folder"),
    ):
        with pytest.raises(InputError, match=message):
            run_command("sweep", ["plan", *arguments])


def test_it_needs_no_torch(tmp_path: Path) -> None:
    fill(tmp_path / "runs", ["mwa/table3"], "miniature", [0])
    modules = modules_after("sweep", "plan", "mwa/table3", "--runs", tmp_path / "runs", folder=tmp_path)
    assert "experiments.report.power_plan" in modules
    assert not modules & {"torch", "matplotlib"}
