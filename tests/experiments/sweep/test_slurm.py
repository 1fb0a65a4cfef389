"""What is submitted to Slurm, what is said of it, and how a job settles, with a queue of our own in place of Slurm's."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import distributed

from datamodules.errors import InputError
from datamodules.files.locks import take_lock
from experiments.cli.main import run_command
from experiments.runs.results import Results, ResultsStatus, now, read_results, write_results
from experiments.sweep import slurm, slurm_script
from experiments.sweep.launches import Launch
from experiments.sweep.request import Request
from experiments.sweep.slurm import settle
from experiments.sweep.slurm_script import SlurmOptions, arrays_of, script_of
from experiments.sweep.status import show_launches
from experiments.training import preemption

# sbatch, squeue, scontrol and scancel over a file of lines JOB_ELEMENT|STATE|REASON; what is called is noted.
QUEUE = """\
import os, re, sys
from pathlib import Path
folder, name = Path(__file__).parent, Path(sys.argv[0]).name
queue = folder / "queue"
rows = [line.split("|") for line in queue.read_text().splitlines()] if queue.exists() else []
with open(folder / "called", "a") as called:
    called.write(" ".join([name, *sys.argv[1:]]) + chr(10))
if name == "sbatch":
    script = Path(sys.argv[-1]).read_text()
    job = max([10, *(int(row[0].split("_")[0]) for row in rows)]) + 1
    reason = "Dependency" if "--dependency" in script else "Priority"
    for index in range(int(re.search("array=0-([0-9]+)", script)[1]) + 1):
        rows.append([f"{job}_{index}", "PENDING", reason])
    print(f"{job};cluster")
elif name == "squeue":
    print("".join("|".join(row) + chr(10) for row in rows), end="")
elif name == "scontrol":
    if sys.argv[1] == "requeue":
        rows = [[row[0], "PENDING", "BeginTime"] if row[0] == sys.argv[2] else row for row in rows]
    else:
        state, reason = next(row[1:] for row in rows if row[0] == sys.argv[-1])
        print(f"JobId=11 ArrayJobId=11 JobState={state} Reason={reason} Dependency=(null)")
elif name == "srun":
    sys.exit(3)
elif name == "scancel":
    rows = [[row[0], "CANCELLED", "None"] if row[0] in sys.argv[1:] else row for row in rows]
else:
    sys.exit("Slurm accounting storage is disabled")
queue.write_text("".join("|".join(row) + chr(10) for row in rows))
"""


class Queue:
    """The fake cluster."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "queue.py").write_text(QUEUE)
        for name in ("sbatch", "squeue", "scontrol", "scancel", "sacct", "srun"):
            program = folder / name
            program.write_text(f"#!{sys.executable} -SE\n{QUEUE}")
            program.chmod(0o755)

    def becomes(self, **states: str) -> None:
        """State of elements, as j11_0="RUNNING"."""
        rows = dict(line.split("|", 1) for line in (self.folder / "queue").read_text().splitlines())
        rows |= {job[1:]: state if "|" in state else f"{state}|None" for job, state in states.items()}
        (self.folder / "queue").write_text("".join(f"{job}|{row}\n" for job, row in rows.items()))

    def called(self, name: str) -> list[str]:
        file = self.folder / "called"
        return [line for line in file.read_text().splitlines() if line.startswith(name)] if file.exists() else []


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Queue:
    cluster = Queue(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{cluster.folder}:{os.environ['PATH']}")
    monkeypatch.setenv("WANDB_MODE", "offline")
    return cluster


def launch(root: Path, name: str, after: tuple[str, ...] = (), gpus: int = 0, **more: Any) -> Launch:
    environment = {"CROSSLIGHT_WORLD": "a b"}
    return Launch(name, name, "k", root / name, "run", environment=environment, after=after, gpus=gpus, **more)


def ended(each: Launch, status: ResultsStatus, error: str | None = None) -> None:
    each.folder.mkdir(parents=True, exist_ok=True)
    write_results(each.folder, Results(status, "run", each.title, "c", now(), error=error))


def submit(launches: list[Launch], root: Path, options: SlurmOptions | None = None, **more: bool) -> tuple[int, str]:
    out = StringIO()
    request = Request("run", "mwa/x", submit=options or SlurmOptions(), **more)
    status = slurm.submit(launches, root, request, Console(file=out, width=200))
    return status, out.getvalue()


def test_arrays_are_tasks_of_one_shape_and_one_start(tmp_path: Path) -> None:
    launches = [
        launch(tmp_path, "start"), launch(tmp_path, "a", ("start",)), launch(tmp_path, "b", ("start",)),
        launch(tmp_path, "ranks", ("start",), devices="2", nodes=3), launch(tmp_path, "gpu", (), 4),
        launch(tmp_path, "last", ("a", "b")),
    ]  # fmt: skip
    arrays = arrays_of(launches, SlurmOptions(nodes=2, gpus_per_node=8))
    assert [[each.title for each in array.launches] for array in arrays] == [["start"], ["a", "b"], ["ranks"], ["gpu"], ["last"]]
    shapes = [(array.shape.nodes, array.shape.processes, array.shape.gpus) for array in arrays]
    assert shapes == [(1, 1, 0), (1, 1, 0), (3, 2, 0), (2, 8, 8), (1, 1, 0)]
    assert arrays[3].launches[0].argv[-3:-1] == ("--trainer.devices=8", "--trainer.num_nodes=2")  # Lightning is told
    assert arrays[1].launches[0].argv == launches[1].argv
    many = arrays_of([launch(tmp_path, str(number)) for number in range(slurm_script.MOST + 1)], SlurmOptions())
    assert [len(array.launches) for array in many] == [slurm_script.MOST, 1]


def test_a_script_says_what_it_runs(tmp_path: Path) -> None:
    options = SlurmOptions(
        partition="gpu", account="me", time="8:00:00", cpus_per_task=4, mem="64G", at_once=2, constraint="a100", qos="low",
        setup=["module load cuda"], extra=["--mail-type=END"], gpus_per_node=2,
    )  # fmt: skip
    (array,) = arrays_of([launch(tmp_path / "its own", "one", (), 2), launch(tmp_path / "its own", "two", (), 2)], options)
    script = script_of(array, tmp_path / "its own", options, "mwa/table1", "afterok:7_1")
    header = re.findall("^#SBATCH (.*)$", script, re.MULTILINE)
    assert header == [
        "--job-name=mwa-table1", "--array=0-1%2", "--dependency=afterok:7_1", "--kill-on-invalid-dep=yes", "--nodes=1",
        "--ntasks-per-node=2", "--gpus-per-node=2", "--cpus-per-task=4", "--mem=64G", "--partition=gpu", "--account=me",
        "--qos=low", "--constraint=a100", "--time=8:00:00", "--signal=USR1@120", "--requeue", "--open-mode=append",
        f"--output='{tmp_path}/its own/slurm/%A_%a.out'", "--mail-type=END",
    ]  # fmt: skip
    assert "\nmodule load cuda\n" in script
    assert "srun --ntasks-per-node=2 --cpus-per-task=4 --kill-on-bad-exit=1" in script
    # the script up to its end of the case says the right command to the right element
    (tmp_path / "its own").mkdir()
    upper = script[: script.index("\nexec >>")].replace("module load cuda", "")
    shown = subprocess.run(
        ["bash", "-c", upper + '\nprintf "%s\\n" "$key" "$folder" "$CROSSLIGHT_WORLD" "$@"'],
        env={"SLURM_ARRAY_TASK_ID": "1", "PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    assert shown == ["two", f"{tmp_path}/its own/two", "a b", *array.launches[1].argv]
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    for wrong, message in (({"nodes": 0}, "--slurm.nodes is 0"), ({"extra": ["x"]}, "'x', which is no option of sbatch")):
        with pytest.raises(InputError, match=message):
            SlurmOptions(**wrong)


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


def test_options_and_refusals(queue: Queue, tmp_path: Path) -> None:
    file = tmp_path / "slurm.yaml"
    file.write_text("partition: gpu\ntime: '1:00:00'\nsetup: [module load cuda]\n")
    sweep = tmp_path / "bayes.yaml"
    sweep.write_text(
        "{method: bayes, run_cap: 2, metric: {name: val/rsum}, command: [crosslight], parameters: {x: {min: 0.0, max: 1.0}}}"
    )
    out = ["--out", str(tmp_path / "out"), "--dry-run"]
    for arguments, message in {
        ("mwa/table1", "--slurm.partition=gpu"): "--slurm.partition=gpu is of jobs: add --submit slurm",
        ("mwa/table1", "--submit", "slurm", "--slurm.partitoin=gpu"): "Did you mean --slurm.partition?",
        ("mwa/table1", "--submit", "slurm", "--slurm.nodes=many"): "--slurm.nodes: invalid int value: 'many'",
        ("mwa/table1", "--submit", "slurm", "--jobs", "2"): "--slurm.at_once",
        (str(sweep), "--submit", "slurm"): "method: bayes looks at other runs' results",
    }.items():
        with pytest.raises(InputError, match=re.escape(message)):
            run_command("sweep", ["run", *arguments, *out])
    for action in ("cancel", "status"):
        for wrong in (["--dry-run"], ["--retry-failed"], ["--submit", "slurm"], ["--jobs", "2"], ["--slurm.nodes=2"]):
            with pytest.raises(InputError, match=rf"{wrong[0].partition('=')[0]} is of `crosslight sweep run`"):
                run_command("sweep", [action, "mwa/table1", *wrong])
    assert queue.called("scancel") == []
    with pytest.raises(InputError, match="--seeds is of exhibits; status .* shows all runs of that folder"):
        run_command("sweep", ["status", str(tmp_path), "--seeds", "1"])
    with pytest.raises(InputError, match="has no jobs of these runs"):
        run_command("sweep", ["cancel", "mwa/table1", "--out", str(tmp_path / "out")])


def test_options_from_a_file_reach_the_script(queue: Queue, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, sweep = tmp_path / "slurm.yaml", tmp_path / "rates.yaml"
    file.write_text("partition: gpu\nat_once: 3\nsetup: [module load cuda]\n")
    sweep.write_text("{method: grid, command: [crosslight, run, '${args}'], parameters: {x: {values: [1, 2]}}}")
    given = ["--submit", "slurm", "--slurm", str(file), "--slurm.time", "1:00:00", "--out", str(tmp_path / "out")]
    assert run_command("sweep", ["run", *given, str(sweep)]) == 0
    (call,) = queue.called("sbatch")
    script = Path(call.split()[-1]).read_text()
    for line in ("--partition=gpu", "--time=1:00:00", "--array=0-1%3", "--gpus-per-node=1"):  # a cluster has GPUs
        assert f"#SBATCH {line}\n" in script
    assert "module load cuda" in script
    assert "job 11: 2 runs (x=1, x=2)" in capsys.readouterr().out
    assert run_command("sweep", ["status", str(sweep), "--out", str(tmp_path / "out")]) == 0
    assert "11_1 PENDING Priority" in capsys.readouterr().out


def test_status_and_cancel_of_draws_are_of_those_submitted(
    queue: Queue, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep, out = tmp_path / "draws.yaml", ["--out", str(tmp_path / "out")]
    sweep.write_text("{method: random, command: [x, '${args_json_file}'], parameters: {x: {min: 0.0, max: 1.0}}}")
    with pytest.raises(InputError, match="--count"):
        run_command("sweep", ["status", str(sweep), *out])
    assert run_command("sweep", ["run", str(sweep), *out, "--count", "2", "--dry-run"]) == 0
    assert not (tmp_path / "out").exists()
    for given in (["--count", "3"], ["--count", "1", "--search-seed", "7"]):
        assert run_command("sweep", ["run", str(sweep), *out, *given, "--submit", "slurm"]) == 0
    assert len(list((tmp_path / "out" / "points").glob("*.json"))) == 4
    for job in json.loads((tmp_path / "out" / "slurm" / "jobs.json").read_text()).values():
        ended(Launch("k", "n", "k", Path(job["folder"]), None), "failed", error="e")
    capsys.readouterr()
    assert run_command("sweep", ["status", str(sweep), *out]) == 1
    assert "4 runs in" in capsys.readouterr().out
    assert run_command("sweep", ["cancel", str(sweep), *out]) == 0
    assert queue.called("scancel") == ["scancel 11_0 11_1 11_2 12_0"]


# -------------------------------------------------------------------------------------------------------------- preemption


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process is one that Slurm started."""
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM)}
    monkeypatch.setattr(preemption, "_Notice", type("Notice", (preemption._Notice,), {}))
    for name in ("SLURM_JOB_ID", "SLURM_PROCID"):
        monkeypatch.setenv(name, "0")
    preemption.listen()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_is_noted_and_acted_on_where_nothing_is_lost(job: None) -> None:
    assert preemption.told() is None
    os.kill(os.getpid(), signal.SIGUSR1)
    assert preemption.told() == signal.SIGUSR1
    os.kill(os.getpid(), signal.SIGTERM)
    assert preemption.told() == signal.SIGUSR1
    with preemption.leaving_at_once(False):
        pass
    with pytest.raises(preemption.Preempted, match="SIGUSR1"), preemption.leaving_at_once(True):
        raise AssertionError("told before")
    preemption.listen()
    with pytest.raises(preemption.Preempted, match="SIGTERM"), preemption.leaving_at_once(True):
        signal.raise_signal(signal.SIGTERM)


def test_outside_of_slurm_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    before = signal.getsignal(signal.SIGUSR1)
    preemption.listen()
    assert signal.getsignal(signal.SIGUSR1) == before
    assert not preemption.listening()


def _step_by_step(rank: int, folder: Path, answers: Any) -> None:
    preemption.listen()
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2)
    agreement, found = preemption.Agreement(), []
    for step in range(6):
        if (rank, step) in ((1, 2), (0, 4)):
            signal.raise_signal(signal.SIGUSR1)
        found.append(agreement(torch.device("cpu")))
    answers.put((rank, found))
    distributed.destroy_process_group()


def test_ranks_agree_at_one_step(job: None, tmp_path: Path) -> None:
    """One is told before its third step, the other two steps later."""
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    processes = [context.Process(target=_step_by_step, args=(rank, tmp_path, answers), daemon=True) for rank in (0, 1)]
    for process in processes:
        process.start()
    found = dict(answers.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(30)
    assert found[0] == found[1] == [False, False, False, True, True, True]  # a step later than it could be known
