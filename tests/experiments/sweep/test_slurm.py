"""What is submitted to Slurm, what is said of it, and how a job settles, with a queue of our own in place of Slurm's."""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from fake_slurm import Queue, ended, launch
from killed_writes import kill_at_writes
from rich.console import Console

from datamodules.errors import InputError
from datamodules.files.locks import take_lock
from experiments.cli.main import run_command
from experiments.runs.results import read_results
from experiments.sweep import slurm
from experiments.sweep.launches import Launch
from experiments.sweep.request import Request
from experiments.sweep.slurm import settle
from experiments.sweep.slurm_script import SlurmOptions
from experiments.sweep.status import show_launches


def submit(launches: list[Launch], root: Path, options: SlurmOptions | None = None, **more: bool) -> tuple[int, str]:
    out = StringIO()
    request = Request("run", "mwa/x", submit=options or SlurmOptions(), **more)
    status = slurm.submit(launches, root, request, Console(file=out, width=200))
    return status, out.getvalue()


def test_nothing_is_submitted_twice_and_children_wait_for_their_parents_element(queue: Queue, tmp_path: Path) -> None:
    root = tmp_path / "root"
    launches = [
        launch(root, "done"), launch(root, "start"), launch(root, "other"), launch(root, "child", ("start",)),
        launch(root, "both", ("start", "other")), launch(root, "free", ("done",)), launch(root, "failed"),
        launch(root, "blocked", ("failed",)), launch(root, "local"),
    ]  # fmt: skip
    ended(launches[0], "finished")
    ended(launches[6], "failed")
    lock = take_lock(root / ".locks" / "local")
    status, said = submit(launches, root, dry_run=True)
    assert "--dependency=afterok:JOB1_0" in said
    assert not (root / "slurm").exists()
    status, said = submit(launches, root)
    assert status == 1  # something failed earlier
    assert len(queue.called("sbatch")) == 4
    scripts = [Path(line.split()[-1]).read_text() for line in queue.called("sbatch")]
    dependencies = [re.findall("--dependency=(.*)", script) for script in scripts]
    assert dependencies == [[], ["afterok:11_0"], ["afterok:11_1:11_0"], []]
    assert "1 running outside of Slurm" in said
    assert "1 failed earlier" in said
    assert "1 blocked" in said
    jobs = json.loads((root / "slurm" / "jobs.json").read_text())
    assert {key: job["job"] for key, job in jobs.items()} == {
        "start": "11_0", "other": "11_1", "child": "12_0", "both": "13_0", "free": "14_0"
    }  # fmt: skip
    assert jobs["child"]["argv"] == list(launches[3].argv)
    assert "nothing to submit" in submit(launches, root)[1]
    assert len(queue.called("sbatch")) == 4

    queue.becomes(j11_0="COMPLETED", j12_0="FAILED", j11_1="RUNNING")  # a node went down: nothing was recorded
    ended(launches[1], "finished")
    assert lock is not None
    lock.close()
    submit([*launches, launch(root, "late", ("other",))], root, retry_failed=True)
    last = Path(queue.called("sbatch")[-1].split()[-1]).read_text()
    assert "afterok:11_1" in last  # of a parent that runs since the first submission
    jobs = json.loads((root / "slurm" / "jobs.json").read_text())
    assert {key for key, job in jobs.items() if int(job["job"].split("_")[0]) > 14} == {
        "child", "failed", "blocked", "local", "late"
    }  # fmt: skip


def test_a_killed_submission_submits_nothing_twice(queue: Queue, tmp_path: Path) -> None:
    launches = [launch(tmp_path, "a"), launch(tmp_path, "b", ("a",))]
    assert kill_at_writes(lambda: submit(launches, tmp_path)) > 10
    assert len(queue.called("sbatch")) == 2
    jobs = json.loads((tmp_path / "slurm" / "jobs.json").read_text())
    assert {key: job["job"] for key, job in jobs.items()} == {"a": "11_0", "b": "12_0"}
    assert sorted(file.suffix for file in (tmp_path / "slurm").iterdir()) == [".json", ".sh", ".sh"]
    other = launch(tmp_path, "c")
    (tmp_path / "slurm" / "mwa-x-c.sh").write_text("another script")
    (tmp_path / "slurm" / "mwa-x-c.job").write_text("77;cluster\n")
    with pytest.raises(InputError, match=r"was submitted as job 77 by a call that was killed.*scancel 77"):
        submit([other], tmp_path)


def test_status_and_cancel(queue: Queue, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    launches = [launch(tmp_path, "a"), launch(tmp_path, "b", ("a",)), launch(tmp_path, "c"), launch(tmp_path, "d", ("c",))]
    submit(launches, tmp_path)
    queue.becomes(j11_0="RUNNING", j11_1="FAILED", j13_0="CANCELLED")
    ended(launches[2], "failed", error="no such option")
    out = StringIO()
    show_launches(Console(file=out, width=160), launches, tmp_path, slurm.queue_words(tmp_path))
    rows = out.getvalue().splitlines()
    assert "11_0 RUNNING" in rows[1]
    assert "12_0 PENDING Dependency" in rows[2]
    assert re.search(r"failed .*11_1 FAILED +no such option", rows[3])
    assert re.search(r"blocked .*13_0 CANCELLED +starts from 3, which is failed", rows[4])
    assert run_command("sweep", ["status", str(tmp_path)]) == 1
    rows = capsys.readouterr().out.splitlines()
    assert re.search(r"^c +failed", rows[1])
    assert re.search(r"^b +submitted +12_0 PENDING Dependency", rows[3])
    assert rows[-1] == "1 failed, 3 submitted"
    out = StringIO()
    assert slurm.cancel(launches, tmp_path, Console(file=out, width=160)) == 0
    assert queue.called("scancel") == ["scancel 11_0 12_0"]
    assert "cancelling 11_0 (running): a" in out.getvalue()
    assert slurm.cancel(launches, tmp_path, Console(file=StringIO())) == 0
    assert len(queue.called("scancel")) == 1
    with pytest.raises(InputError, match="has no jobs of these runs"):
        slurm.cancel(launches, tmp_path / "elsewhere", Console())


def test_a_script_as_slurm_runs_it(queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves alone what a runner has in hand or has finished, and settles what srun has started."""
    written: list[str] = []
    monkeypatch.setattr(slurm, "write_miniature_world", lambda folder, style: written.append(f"{folder.name} {style}"))
    launches = [replace(launch(tmp_path, name), world="target") for name in ("held", "done", "broken")]
    submit(launches, tmp_path)
    assert written == ["target target"]
    queue.becomes(j11_2="RUNNING")
    ended(launches[1], "finished")
    lock = take_lock(tmp_path / ".locks" / "held")
    script = queue.called("sbatch")[0].split()[-1]
    for index, code in enumerate((1, 0, 3)):
        given = {"SLURM_ARRAY_JOB_ID": "11", "SLURM_ARRAY_TASK_ID": str(index), "SLURM_JOB_NODELIST": "n1"}
        assert subprocess.run(["bash", script], env={**os.environ, **given}, check=False).returncode == code
    assert lock is not None
    lock.close()
    (started,) = queue.called("srun")
    assert started.endswith(f"crosslight {' '.join(launches[2].argv)}")
    assert "held is running elsewhere" in (tmp_path / "logs" / "held.log").read_text()
    assert "Slurm job 11_2 on n1, requeued 0 times" in (tmp_path / "logs" / "broken.log").read_text()
    assert "ended with exit status 3" in str(read_results(launches[2].folder).error)


@pytest.mark.parametrize(
    ("code", "state", "status", "exits", "requeued", "recorded"),
    [
        (0, "RUNNING", "finished", 0, False, "finished"),
        (75, "RUNNING", "interrupted", 75, True, "interrupted"),
        (75, "COMPLETING", "interrupted", 75, False, "interrupted"),  # Slurm queues it again, or it was cancelled
        (143, "RUNNING", "preempted", 143, True, "interrupted"),  # one rank was killed on its way out
        (143, "RUNNING", "interrupted", 143, False, "failed"),
        (75, "COMPLETING|TimeLimit", "interrupted", 75, True, "interrupted"),
        (137, "COMPLETING|TimeLimit", "running", 137, True, "running"),  # there was no time to save
        (137, "RUNNING", "running", 137, False, "failed"),
        (1, "RUNNING", "failed", 1, False, "failed"),
        (2, "RUNNING", None, 2, False, "failed"),
        (255, "RUNNING", None, 255, False, "failed"),
        (0, "RUNNING", None, 1, False, "failed"),  # whoever starts from it must not start
    ],
)
def test_a_job_settles(
    queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    code: int, state: str, status: str | None, exits: int, requeued: bool, recorded: str,
) -> None:  # fmt: skip
    each = launch(tmp_path, "a")
    submit([each], tmp_path, SlurmOptions(requeues=3))
    queue.becomes(j11_0=state)
    if status is not None:
        ended(each, "interrupted" if status == "preempted" else status, error=f"{status} after step 3")
    (tmp_path / "logs" / "a.log").write_text("crosslight: error: of old\n2026 Slurm job 11_0 on n1, requeued 2 times: x\n")
    for name, value in (("ARRAY_JOB_ID", "11"), ("ARRAY_TASK_ID", "0"), ("RESTART_COUNT", "2")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert settle(tmp_path, "a", code) == exits
    assert queue.called("scontrol requeue") == (["scontrol requeue 11_0"] if requeued else [])
    assert read_results(each.folder).status == recorded
    if recorded == "failed" and status != "failed":
        how = {143: "killed by signal 15 (SIGTERM)", 137: "killed by signal 9 (SIGKILL)"}.get(
            code, f"ended with exit status {code}"
        )
        assert str(read_results(each.folder).error).startswith(f"{how}; last line of")
    if requeued:
        monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
        queue.becomes(j11_0=state)
        settle(tmp_path, "a", code)
        assert len(queue.called("scontrol requeue")) == 1
        assert "queued again 3 times" in str(read_results(each.folder).error)
