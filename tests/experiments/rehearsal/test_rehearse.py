"""Three runs rehearsed as a user does it, killed and resumed in processes of their own; and what of it others read."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from datamodules.files.locks import locked, take_lock
from datamodules.files.stand_in import MARK, said
from experiments.cli.main import main, run_command
from experiments.papers.plan import plan_runs
from experiments.papers.schema import Cost
from experiments.rehearsal import rehearse
from experiments.rehearsal.changes import Changes, Settings
from experiments.rehearsal.checks import Facts
from experiments.rehearsal.devices import machine_of
from experiments.rehearsal.estimates import planned_peak
from experiments.rehearsal.life import InHand, Life, Place, memory_verdict
from experiments.rehearsal.show import too_many
from experiments.runs.rehearsed import FILE, STAGES, Figures, Rehearsed, Verdict, read_rehearsed, write_rehearsed
from experiments.runs.results import read_results
from experiments.runs.store import RunFolders, read_run
from experiments.sweep.launches import Launch
from experiments.sweep.slurm_script import SlurmOptions, arrays_of, script_of
from experiments.sweep.targets import exhibit_launches

CODE_REVISION = rehearse.code_revision


@pytest.fixture(scope="module", autouse=True)
def revision() -> Iterator[str]:
    """One of the code, whatever is committed while the tests run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rehearse, "code_revision", lambda: "0123456789ab")
        yield "0123456789ab"


@pytest.fixture(scope="module")
def rehearsed(place: Path, revision: str) -> Path:
    """The folder of runs in which all of the paper has been rehearsed, the run folders kept."""
    command = ["rehearse", "tiny", "--scale", "small", "--out", str(place / "runs"), "--on", "2xH100", "--items", "4", "--keep"]
    assert run_command("sweep", command) == 0
    return place / "runs"


def test_each_stage_has_a_verdict(rehearsed: Path, revision: str) -> None:
    runs = {run.title: run for run in read_rehearsed(rehearsed).values()}
    assert runs.keys() == {"tiny/start s0", "tiny/tuned s0"}
    for run in runs.values():
        assert [verdict.stage for verdict in run.verdicts] == list(STAGES)
        assert run.whole
        assert run.revision == revision
    said = {verdict.stage: verdict for verdict in runs["tiny/tuned s0"].verdicts}
    assert (said["devices"].outcome, "no GPU" in said["devices"].said) == ("unknown", True)
    assert said["resume"].said == "at step 3, the same loss"
    assert said["evaluation"].said == "tested on flickr30k test[:4]"
    assert said["memory"].said.startswith("counted") and "H100" in said["memory"].said  # noqa: PT018
    assert said["report"].said == "2 numbers of 1 exhibits"
    found = runs["tiny/tuned s0"].figures
    assert found is not None
    assert found.kind == "cpu"
    assert found.steps == 4 * 2  # epochs of 27 // 8 batches, two of which are a step
    assert found.counted_bytes and found.weight_bytes and found.seconds_per_step and found.disk_bytes  # noqa: PT018
    assert found.counted_bytes > found.weight_bytes
    assert found.cut == ()
    assert "| tiny/tuned s0 | sound; not known here: devices |" in (rehearsed / "rehearsed.md").read_text()


def test_changed_code_is_other_code(tmp_path: Path) -> None:
    file = tmp_path / "datamodules" / "mine.py"
    file.parent.mkdir()
    file.write_text("one = 1\n")

    def git(*words: str) -> None:
        subprocess.run(["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True)

    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "-m", "one")
    found = [CODE_REVISION(tmp_path)]
    for text in ("two = 2\n", "three = 3\n", "two = 2\n", "one = 1\n"):
        file.write_text(text)
        found.append(CODE_REVISION(tmp_path))
    assert found[1] == found[3]
    assert found[0] == found[4] == found[1].partition("+")[0]
    assert len(set(found)) == 3


def test_a_rehearsal_is_no_result(rehearsed: Path) -> None:
    scratch = rehearsed / "rehearsal"
    (folder,) = scratch.glob("tiny-tuned-*[0-9a-f]")
    results = read_results(folder)
    assert results.status == "finished"
    assert results.attempts == 2
    assert results.provenance is not None
    assert results.provenance.rehearsal
    assert "is a rehearsal" in read_run(folder).error
    assert said(folder / MARK).startswith("a rehearsal")  # what starts from it, or is made of it, finds this
    (planned,) = [run for run in plan_runs(["tiny/tuned"], "small", [0]) if run.names == ("tiny/tuned",)]
    assert RunFolders([scratch]).find(planned, "tiny/tuned").status == "unreadable"


def test_what_was_sound_is_not_repeated(rehearsed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = read_rehearsed(rehearsed)
    command = [
        "rehearse",
        "tiny",
        "--scale",
        "small",
        "--out",
        str(rehearsed),
        "--on",
        "2xH100",
        "--items",
        "4",
        "--json",
        "--keep",
    ]
    assert run_command("sweep", command) == 0
    assert json.loads(capsys.readouterr().out).keys() == before.keys()
    assert read_rehearsed(rehearsed) == before


def _life(place: Path, told: list[Verdict], *, gpus: int = 0, free: int = 10**12, on: str | None = None) -> Life:
    launch = exhibit_launches("tiny/tuned", "small", [0], place / "none")[1]
    machine = None if on is None else machine_of(on)
    where = Place(place / "none", place / "none", Settings(3, gpus=gpus), machine, free=lambda _: free)
    return Life(replace(launch, gpus=3 if gpus else 2), where, told.append)


def _facts(batch: int = 8, complete: bool = True, **known: Any) -> Facts:
    config = {"data": {"init_args": {"batch_size": batch}}, "trainer": {"precision": "bf16-mixed"}, "model": {"init_args": {}}}
    return Facts(config, Changes((), ()), complete=complete, **{"tunable": 1, **known})


def test_two_rehearsals_at_once_leave_each_other_alone(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launches = exhibit_launches("tiny", "small", [0], tmp_path / "scratch")
    where = Place(tmp_path, tmp_path / "scratch", Settings(3))
    marks = [launch.folder / "checkpoints" / "best.ckpt" for launch in launches]
    for mark in marks:
        mark.parent.mkdir(parents=True)
        mark.touch()
    with locked(tmp_path / "scratch" / ".locks" / f"{launches[0].key}.life"):
        with pytest.raises(InHand, match="tiny/start s0 is being rehearsed by another process already"):
            rehearse.rehearse(launches, where, lambda *_: None, revision="r")
        assert marks[0].exists()

    def sound(launch: Launch, *_: object) -> Rehearsed:
        return Rehearsed(launch.title, "r", rehearse.settings_of(where), tuple(Verdict(stage, "passed") for stage in STAGES))

    monkeypatch.setattr(rehearse, "_one", sound)
    write_rehearsed(tmp_path, {launch.key: sound(launch) for launch in launches})
    rehearse.rehearse(launches, where, lambda *_: None, revision="r")
    assert all(mark.exists() for mark in marks), "another's"
    write_rehearsed(tmp_path, {launches[0].key: sound(launches[0])})
    rehearse.rehearse(launches, where, lambda *_: None, revision="r")
    assert not any(mark.exists() for mark in marks)


def test_wrong_number_of_gpus(place: Path) -> None:
    life = _life(place, [], gpus=2)
    few = life._devices(_facts(batch=9))
    assert few.outcome == "failed"
    assert "wants 3 x A100 and here are 2: --devices 1 (" in few.said, "9 do not divide among 2 either"
    assert "here are 2: --devices 2 (" in life._devices(_facts(batch=6)).said
    uneven = life._devices(_facts(batch=8))
    assert uneven.outcome == "failed"
    assert uneven.said == "batch_size 8 does not divide among 3 devices: --devices 1 or 2", "of the two that are here"
    elsewhere = _life(place, [], on="3xA100")
    assert elsewhere._devices(_facts(batch=8)).said.endswith("--devices 1 or 2"), "of the three that it is meant for"
    assert _life(place, [], on="9xA100")._devices(_facts(batch=8)).said.endswith("--devices 4 or 8")
    life.launch = replace(life.launch, command="test")
    assert "batch_size" not in life._devices(_facts(batch=8)).said


def test_a_machine_elsewhere_is_not_failed_for_what_this_one_lacks(place: Path) -> None:
    meant = _life(place, [], gpus=1, on="2xA100")
    assert meant._devices(_facts()).outcome == "unknown", "rehearsed on one of two"
    meant = _life(place, [], gpus=2, on="2xA100")
    assert meant._devices(_facts()).outcome == "passed"


def test_without_on_a_run_is_judged_by_the_gpu_that_is_here(place: Path) -> None:
    """Not by the one that its recipe was written for."""
    life = _life(place, [], gpus=3)
    large, old = machine_of("H200").device, machine_of("V100").device
    found = Figures("GPU", "cuda", processes=3, peak_bytes=100 * 10**9)
    for gpu, outcome in ((large, "passed"), (machine_of("A100").device, "failed"), (None, "failed")):
        facts = _facts(batch=9, gpu=gpu)
        assert memory_verdict(found, facts, life.launch, life._device(facts)).outcome == outcome
    assert life._devices(_facts(batch=9, gpu=large)).said == "3 x H200"
    assert "V100 has no bf16" in life._devices(_facts(batch=9, gpu=old)).said


def test_memory_of_another_batch_or_number_of_devices_is_computed(place: Path) -> None:
    facts = replace(_facts(batch=1024), weight_bytes=2 * 10**9, tunable=10**8)
    cut = replace(facts, changes=Changes(("--data.init_args.batch_size=16",), ("batch 16 of 1024",)))
    fixed = 2 * 10**9 + 12 * 10**8
    assert planned_peak(facts, 9 * 10**9, 1, 1) is None, "measured as it will be"
    assert planned_peak(cut, 9 * 10**9, 1, 1) == fixed + (9 * 10**9 - fixed) * 64
    assert planned_peak(facts, 30 * 10**9, 8, 1) == fixed + (30 * 10**9 - fixed) * 8, "one device has the batch of eight"
    assert planned_peak(facts, 30 * 10**9, 1, 8) == fixed + (30 * 10**9 - fixed) / 8
    found = Figures("GPU", "cuda", peak_bytes=9 * 10**9, counted_bytes=300 * 10**9, cut=("batch 16 of 1024",))
    verdict = memory_verdict(found, cut, _life(place, []).launch, machine_of("A100").device)
    assert verdict.outcome == "failed"
    assert "computed from 9.0 GB measured (on 1 devices; batch 16 of 1024): 300.0 GB of A100's 80 GB" in verdict.said


def test_what_a_run_starts_from_stays_while_any_process_needs_it(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches = exhibit_launches("tiny", "small", [0], tmp_path / "scratch")
    where = Place(tmp_path, tmp_path / "scratch", Settings(3))
    mark = launches[0].folder / "checkpoints" / "best.ckpt"

    def lived(launch: Launch, *_: object) -> Rehearsed:
        (launch.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        (launch.folder / "checkpoints" / "best.ckpt").touch()
        return Rehearsed(launch.title, "r", "s", tuple(Verdict(stage, "passed") for stage in STAGES))

    monkeypatch.setattr(rehearse, "_one", lived)
    other = take_lock(tmp_path / "scratch" / ".locks" / f"{launches[0].key}.used", shared=True)
    assert other is not None
    rehearse.rehearse(launches, where, lambda *_: None, revision="r")
    assert mark.exists(), "another rehearsal has a child of it to come"
    assert not launches[1].folder.exists()
    other.close()
    rehearse.rehearse(launches, where, lambda *_: None, revision="r")
    assert not mark.exists()


def test_other_surroundings_are_rehearsed_anew(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launches = exhibit_launches("tiny", "small", [0], tmp_path / "scratch")
    where = Place(tmp_path, tmp_path / "scratch", Settings(3))
    lived: list[str] = []

    def sound(launch: Launch, of: Place, revision: str, settings: str, *_: object) -> Rehearsed:
        lived.append(launch.title)
        record = Rehearsed(launch.title, revision, settings, tuple(Verdict(stage, "passed") for stage in STAGES))
        write_rehearsed(of.root, {**read_rehearsed(of.root), launch.key: record})
        return record

    monkeypatch.setattr(rehearse, "_one", sound)
    for variable, value, expected in (("", "", 2), ("", "", 2), ("CROSSLIGHT_DATA", "/elsewhere", 4), ("HF_HOME", "/hub", 6)):
        if variable:
            monkeypatch.setenv(variable, value)
        rehearse.rehearse(launches, where, lambda *_: None, revision="r")
        assert len(lived) == expected, variable


def test_devices_on_a_processor_are_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `sweep run --devices 2` would start them: two processes of DDP."""
    asked: list[Place] = []

    def noted(launches: list[Launch], place: Place, *_: object, **__: object) -> dict[str, Rehearsed]:
        asked.append(place)
        return {launch.key: Rehearsed(launch.title, "r", "s") for launch in launches}

    monkeypatch.setattr(rehearse, "rehearse", noted)
    command = ["rehearse", "mwa/base-coco-mwa", "--scale", "miniature", "--out", str(tmp_path), "--devices", "2"]
    assert run_command("sweep", command) == 0
    assert [(place.settings.processes, place.settings.devices) for place in asked] == [(2, 2)]


def test_runs_that_fit_alone_and_not_together(place: Path, tmp_path: Path) -> None:
    launches = exhibit_launches("tiny", "small", [0], tmp_path)
    done = {
        launch.key: Rehearsed(launch.title, "r", "s", figures=Figures("GPU", "cuda", disk_bytes=6 * 10**9)) for launch in launches
    }
    where = Place(tmp_path, tmp_path / "scratch", Settings(3), free=lambda _: 10 * 10**9)
    said = too_many(where, launches, done)
    assert said is not None
    assert "take 12.0 GB more and 10.0 GB of" in said
    assert "Free 2.0 GB" in said
    assert too_many(replace(where, free=lambda _: 13 * 10**9), launches, done) is None


def test_too_little_disk(place: Path) -> None:
    told: list[Verdict] = []
    assert not _life(place, told, free=2 * 10**9)._disk(_facts(checkpoint_bytes=5 * 10**9))
    (verdict,) = told
    assert (verdict.stage, verdict.outcome) == ("disk", "failed")
    assert "checkpoints 5.0 GB of 2.0 GB that are free: free 3.0 GB" in verdict.said
    told.clear()
    assert not _life(place, told, free=10**8)._disk(_facts(complete=False))
    assert "data, weights 1.0 GB of 0.1 GB that are free" in told[0].said


def test_too_large_a_batch(place: Path) -> None:
    launch = _life(place, []).launch
    found = Figures("processor", "cpu", counted_bytes=93 * 10**9)
    verdict = memory_verdict(found, _facts(), launch, machine_of("A100").device)
    assert verdict.outcome == "failed"
    assert "counted 93.0 GB of A100's 80 GB: half the batch_size" in verdict.said
    assert memory_verdict(found, _facts(), launch, machine_of("H200").device).outcome == "passed"


def test_what_a_gpu_measured_replaces_the_estimates(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    launches = exhibit_launches("tiny", "small", [0], tmp_path)
    assert [launch.measured for launch in launches] == [False, False]
    figures = Figures("NVIDIA A100", "cuda", processes=2, hours=0.75, peak_bytes=31 * 10**9)
    tuned, ended = launches[1].key, (Verdict("evaluation", "passed"),)
    write_rehearsed(tmp_path, {tuned: Rehearsed("tiny/tuned s0", "r", "s", ended, figures)})
    seeds = exhibit_launches("tiny", "small", [0, 1], tmp_path)
    assert [each.title for each in seeds if each.measured] == ["tiny/tuned s0", "tiny/tuned s1"], "what holds for one seed"
    one = plan_runs(["tiny/tuned"], "small", [1])[-1]
    assert RunFolders([tmp_path]).cost_of(one) == (seeds[-1].cost, True)
    launches = exhibit_launches("tiny", "small", [0], tmp_path)
    assert launches[1].cost == Cost(1.5, devices=2, device="NVIDIA A100", memory_gb=31.0, disk_gb=1.0)
    assert [launch.measured for launch in launches] == [False, True]
    assert RunFolders([tmp_path]).cost_of(plan_runs(["tiny/tuned"], "small", [0])[1]) == (launches[1].cost, True)

    assert run_command("sweep", ["run", "tiny", "--scale", "small", "--out", str(tmp_path), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "1.5 NVIDIA A100-hours, 2 at once, measured" in shown
    assert f"1 of these costs measured by `crosslight sweep rehearse` ({tmp_path / FILE})" in shown
    first, second = (script_of(array, tmp_path, SlurmOptions(), "tiny", None) for array in arrays_of(launches, SlurmOptions()))
    assert "--time" not in first
    assert "#SBATCH --time=1:18:00\n" in second  # 45 minutes and half of that, and ten
    limited = SlurmOptions(time="9:00:00")
    assert "#SBATCH --time=9:00:00\n" in script_of(arrays_of(launches, limited)[1], tmp_path, limited, "tiny", None)

    cut = replace(figures, cut=("batch 4 of 8",))
    half = (Verdict("evaluation", "failed", "out of memory"),)
    for verdicts, measured in ((ended, cut), (half, figures), ((), figures)):
        write_rehearsed(tmp_path, {tuned: Rehearsed("tiny/tuned s0", "r", "s", verdicts, measured)})
        assert not any(launch.measured for launch in exhibit_launches("tiny", "small", [0], tmp_path))


def test_stand_ins_are_of_full_scale_and_told_apart(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", "before")
    with pytest.raises(SystemExit):
        main(["sweep", "rehearse", "mwa/table1", "--scale", "miniature", "--stand-in", "x"])
    assert "--stand-in is of full scale" in capsys.readouterr().err
    assert os.environ["HF_HOME"] == "before"
    assert Settings(3, stand_in=True).words == f"{Settings(3).words}, stand-ins"
