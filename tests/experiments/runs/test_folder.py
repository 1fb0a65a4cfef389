"""One run, one folder: who may write where, and what survives a crash."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import yaml
from configurations import CONFIG, changed

from datamodules.errors import InputError
from experiments.runs.folder import RunFolder
from experiments.runs.identity import config_hash
from experiments.runs.results import DataDescription, Evaluation, Results, ResultsStatus, read_results
from lightning_modules.checkpoints.run_folder import RESULTS_SCHEMA, Fit

COCO = Evaluation("coco", "test", "test", {"rsum": 300.0}, per_query_file="per_query/coco-test.npz")


def open_run(path: Path | str | None, config: dict[str, Any] = CONFIG, command: str = "run") -> RunFolder:
    return RunFolder.open(path, name="mwa", command=command, config=config)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ------------------------------------------------------------------------------------------------------- new folders


def test_runs_of_one_second_get_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("experiments.runs.folder.datetime", _Clock)
    runs = [open_run(None) for _ in range(3)]
    names = [run.path.name for run in runs]
    digest = config_hash({"command": "run", **CONFIG})[:6]
    assert names == [f"20261121-120000-{digest}", f"20261121-120000-{digest}-2", f"20261121-120000-{digest}-3"]
    assert all(run.path.parent == tmp_path / "runs" / "mwa" for run in runs)
    other = open_run(None, changed(seed_everything=1))
    assert other.path.name not in names


class _Clock:
    """The same second for ever."""

    @staticmethod
    def now(zone: Any = None) -> Any:
        from datetime import datetime

        return datetime(2026, 11, 21, 12, 0, 0, tzinfo=zone)

    @staticmethod
    def fromisoformat(text: str) -> Any:
        from datetime import datetime

        return datetime.fromisoformat(text)


def test_a_new_folder_says_what_it_is_from_the_first_moment(tmp_path: Path) -> None:
    run = open_run(tmp_path / "a" / "b")
    assert run.ours
    assert not run.resumed
    assert run.last_checkpoint is None
    results = read_results(tmp_path / "a" / "b")
    assert results == run.results
    assert json.loads((run.path / "results.json").read_text())["schema"] == RESULTS_SCHEMA == "crosslight.results/2"
    digest = config_hash({"command": "run", **CONFIG})
    assert results == Results("running", "run", "mwa", digest, results.started, wandb_id=f"{digest}-b")
    assert yaml.safe_load((run.path / "config.yaml").read_text()) == CONFIG
    run.update(seed=3)
    run.finish("finished")
    results = read_results(run.path)
    assert results.status == "finished"
    assert results.seed == 3
    assert results.error is None
    assert (results.seconds or 0.0) >= 0
    assert str(results.finished) >= results.started


# ------------------------------------------------------------------------------------------------------------ resuming


@pytest.mark.parametrize("status", ["running", "failed", "interrupted", "oom"])
def test_an_unfinished_run_of_this_configuration_resumes(status: ResultsStatus, tmp_path: Path) -> None:
    first = open_run(tmp_path / "run")
    first.add(COCO, DataDescription("COCO", fingerprint="0862"))
    first.update(fit=Fit(7, 1))
    first.checkpoints.mkdir()
    (first.checkpoints / "last.ckpt").touch()
    first.finish(status, "what went wrong")

    config = changed(trainer__devices=2, wandb__enabled=False)  # neither makes it another run
    run = open_run(tmp_path / "run", config)
    assert run.resumed
    assert run.last_checkpoint == run.path / "checkpoints" / "last.ckpt"
    results = read_results(run.path)
    assert (results.status, results.attempts, results.error) == ("running", 2, None)
    assert results.started == first.results.started
    assert results.fit == Fit(7, 1)
    assert results.evaluations == run.results.evaluations == (COCO,)
    assert results.data == {"coco": DataDescription("COCO", fingerprint="0862")}
    assert yaml.safe_load((run.path / "config.yaml").read_text()) == config


def test_seconds_are_those_of_the_attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 104.0, 5000.0, 5002.5, 9000.0, 9001.0])
    monkeypatch.setattr("experiments.runs.folder.time", SimpleNamespace(monotonic=lambda: next(clock)))
    open_run(tmp_path / "run").finish("interrupted")
    run = open_run(tmp_path / "run")
    run.finish("interrupted")
    assert read_results(run.path).seconds == 6.5  # not the hour between
    run.update(status="running")  # a third attempt that was killed: it began with config.yaml and last wrote its metrics
    (run.path / "metrics.csv").touch()
    for name, written in (("config.yaml", 1e9), ("metrics.csv", 1e9 + 20), ("results.json", 1e9 + 8)):
        os.utime(run.path / name, (written, written))
    open_run(tmp_path / "run").finish("finished")
    assert read_results(run.path).seconds == 27.5


def test_a_killed_run_resumes(tmp_path: Path) -> None:
    first = open_run(tmp_path / "run")
    assert first._lock is not None
    first._lock.close()  # what the kernel does when a process is killed: results.json still says running
    assert open_run(tmp_path / "run").results.attempts == 2


# ------------------------------------------------------------------------------------------------------------ refusals


def refused(path: Path, config: dict[str, Any] = CONFIG, command: str = "run") -> str:
    """The message; nothing in the folder may have changed."""
    before = snapshot(path) if path.is_dir() else None
    with pytest.raises(InputError) as refusal:
        open_run(path, config, command)
    if before is not None:
        assert {name: content for name, content in snapshot(path).items() if name != ".lock"} == {
            name: content for name, content in before.items() if name != ".lock"
        }
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    open_run(tmp_path / "run").finish("finished")
    assert "holds a finished run of these options (of its data as they were then)" in refused(tmp_path / "run")


@pytest.mark.parametrize("status", ["failed", "oom", "interrupted", "running"])
def test_a_first_try_that_kept_nothing_may_be_corrected(status: ResultsStatus, tmp_path: Path) -> None:
    first = open_run(tmp_path / "run")
    first.describe("coco", DataDescription("COCO", fingerprint="0862"))
    for name in ("metrics.csv", "traceback.log"):  # of steps that nobody can go on from
        (first.path / name).write_text("step\n1\n")
    first.checkpoints.mkdir()
    first.finish(status)
    os.utime(first.path / "config.yaml", (1e9, 1e9))  # of an attempt that was killed its files tell how long it was
    corrected = open_run(tmp_path / "run", changed(data__init_args__batch_size=8))
    assert (corrected.results.status, corrected.results.attempts, corrected.results.seconds) == ("running", 2, None)
    assert corrected.results.wandb_id != first.results.wandb_id
    assert sorted(path.name for path in corrected.path.iterdir() if path.is_file()) == [".lock", "config.yaml", "results.json"]
    corrected.describe("coco", DataDescription("COCO", fingerprint="1f3a"))  # the image that was missing is there now


@pytest.mark.parametrize("trained", [False, True])
def test_another_configuration_is_refused_by_the_keys_that_differ(trained: bool, tmp_path: Path) -> None:
    failed = open_run(tmp_path / "run")
    failed.checkpoints.mkdir()
    for name in ("last.ckpt", "best.ckpt")[: 1 + trained]:  # work that a new configuration would overwrite
        (failed.checkpoints / name).touch()
    failed.finish("failed")
    message = refused(tmp_path / "run", changed(model__init_args__optimization__lr=1e-4, data__init_args__batch_size=8))
    assert "it differs in: data.init_args.batch_size, model.init_args.optimization.lr)" in message
    assert "give another --run_dir" in message
    assert (f"--model.init_args.init_from={failed.path} starts new training" in message) == trained
    assert (f"--ckpt_path={failed.path}/checkpoints/last.ckpt goes on" in message) == trained
    assert "the command (run there, fit here)" in refused(tmp_path / "run", command="fit")


@dataclass(frozen=True)
class _Limits:
    val: int = 100
    splits: tuple[str, ...] = ("val",)


class _Later:
    """A data module of a later version, which has two options more."""

    def __init__(self, batch_size: int, prompt: str | None = None, limits: _Limits = _Limits()) -> None: ...


def test_a_run_of_an_earlier_version_goes_on_where_options_are_new(tmp_path: Path) -> None:
    earlier = changed(data__class_path=f"{__name__}._Later")
    first = open_run(tmp_path / "run", earlier)
    first.checkpoints.mkdir()
    (first.checkpoints / "last.ckpt").touch()
    first.finish("interrupted")
    new = {"batch_size": 64, "prompt": None, "limits": {"val": 100, "splits": ["val"]}}
    later = changed(data__class_path=f"{__name__}._Later", data__init_args=new)
    other = changed(data__class_path=f"{__name__}._Later", data__init_args={**new, "prompt": "a photo of {}"})
    assert "it differs in: data.init_args.prompt)" in refused(tmp_path / "run", other)  # it was begun without one
    resumed = open_run(tmp_path / "run", later)
    assert (resumed.resumed, resumed.results.attempts) == (True, 2)
    assert yaml.safe_load((resumed.path / "config.yaml").read_text()) == later


def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("dear reader")
    assert "'thesis.tex'" in refused(tmp_path)
    (tmp_path / "thesis.tex").rename(tmp_path / "error-of-mine.log")
    assert "'error-of-mine.log'" in refused(tmp_path)
    (tmp_path / "file").write_text("")
    assert "is a file" in refused(tmp_path / "file")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ('{"schema": "crosslight.results/0"}', "crosslight.results/0"),
        ('{"schema": "crosslight.results/1"}', "this version reads 'crosslight.results/2': it was written with other names"),
        ('{"schema": "crosslight.results/2"}', "results.json: 'status' is missing"),
    ],
)
def test_results_that_cannot_be_read(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(content)
    assert message in refused(tmp_path)


def test_what_another_process_said_before_the_first_one_began_is_no_stranger(tmp_path: Path) -> None:
    for name in ("error-1.log", "traceback-13.log"):
        (tmp_path / name).write_text("no such GPU\n")
    assert open_run(tmp_path).ours


def test_a_folder_in_use_is_refused_until_its_run_ends(tmp_path: Path) -> None:
    run = open_run(tmp_path / "run")
    assert "in use by a running process" in refused(tmp_path / "run")
    run.finish("interrupted")  # lets go, also within one process
    open_run(tmp_path / "run").finish("failed")

    with open(tmp_path / "run" / ".lock", "a") as other:  # an open file of its own locks like another process
        fcntl.flock(other, fcntl.LOCK_EX)
        assert "in use" in refused(tmp_path / "run")
    assert open_run(tmp_path / "run").results.attempts == 3


def test_a_refusal_does_not_keep_the_folder_locked(tmp_path: Path) -> None:
    failed = open_run(tmp_path / "run")
    failed.checkpoints.mkdir()
    (failed.checkpoints / "last.ckpt").touch()
    failed.finish("failed")
    problems = []
    for _ in range(2):
        try:
            open_run(tmp_path / "run", changed(seed_everything=9))
        except InputError as error:
            problems.append(error)  # keeps the frames, and all they hold, alive
    assert all("another configuration" in str(problem) for problem in problems)
    assert len(problems) == 2
    assert open_run(tmp_path / "run").resumed


# --------------------------------------------------------------------------------------------------------- other ranks


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    run = open_run(tmp_path / "run")
    before = snapshot(run.path)
    other = RunFolder.attach(run.path, name="mwa", command="run", config=CONFIG)
    assert other.results == run.results
    assert not other.ours
    other.update(seed=5)
    other.add(COCO, DataDescription("COCO"))
    other.save()
    other.finish("finished")
    assert snapshot(run.path) == before
    run.finish("failed")  # whose folder it is has not been touched
    assert read_results(run.path).status == "failed"


# ------------------------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("broken", ["replace", "fsync"])
def test_a_full_disk_leaves_the_old_results_whole(broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run(tmp_path / "run")
    before = snapshot(run.path)

    def full(*arguments: Any) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, broken, full)
        with pytest.raises(OSError, match="No space left"):
            run.update(error="x" * 100_000)
    assert snapshot(run.path) == before  # the old file, and no temporary one beside it
    run.update(seed=1)
    assert read_results(run.path).seed == 1


def test_a_finish_that_cannot_be_written_still_frees_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run(tmp_path / "run")

    def full(*arguments: Any) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            run.finish("failed")
    assert open_run(tmp_path / "run").resumed


def test_a_run_killed_in_its_first_writes_begins_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before results.json is there, in the middle of it, and before config.yaml is: the folder is still its own."""

    def killed(*arguments: object) -> NoReturn:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("datamodules.files.atomic.os.replace", killed)
        patch.setattr(Path, "unlink", lambda *arguments, **options: None)  # a killed process removes nothing
        with pytest.raises(KeyboardInterrupt):
            RunFolder.open(tmp_path, name="mwa", command="run", config=CONFIG)
    assert [path.name.split(".")[1] for path in tmp_path.iterdir() if path.name != ".lock"] == ["results"]
    with monkeypatch.context() as patch:
        patch.setattr("experiments.runs.folder.write_atomically", killed)  # config.yaml
        with pytest.raises(KeyboardInterrupt):
            RunFolder.open(tmp_path, name="mwa", command="run", config=CONFIG)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "results.json"]
    run = RunFolder.open(tmp_path, name="mwa", command="run", config=CONFIG)
    run.finish("finished")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "config.yaml", "results.json"]


def test_data_that_change_under_a_run_are_refused_when_it_goes_on_and_said_when_it_is_tested(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = (DataDescription("COCO", fingerprint=fingerprint, options={"restval": True}) for fingerprint in ("0862", "1f3a"))
    with_others = replace(new, options={"restval": False})
    run = open_run(tmp_path / "run")
    run.describe("coco", old)
    run.describe("coco", old)
    with pytest.raises(InputError, match=r"the content of coco has changed since \(fingerprint 0862 then, 1f3a now\)") as refusal:
        run.describe("coco", new)
    assert "crosslight test" not in str(refusal.value)
    best = run.checkpoints / "best.ckpt"
    best.parent.mkdir()
    best.touch()
    with pytest.raises(InputError, match="Its best weights are tested on the data as they are now by") as refusal:
        run.describe("coco", new)
    command = f"crosslight test -c {run.path / 'config.yaml'} --ckpt_path {best} --run_dir NEW"
    assert str(refusal.value).endswith(command)
    for described in (old, with_others):  # of other options it is another split, and no change
        run.add(COCO, described)
        assert capsys.readouterr().err == ""
        run.update(data={"coco": old})
    run.add(COCO, new)
    assert "coco has changed while the run was going on (fingerprint 0862 at its start, 1f3a now)" in capsys.readouterr().err
    assert read_results(run.path).data["coco"].further == {"fingerprint_at_the_start": "0862"}
