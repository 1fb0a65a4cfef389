"""The runner on quick fake commands."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from datamodules.errors import InputError
from experiments.papers.schema import Cost
from experiments.runs.results import read_results
from experiments.sweep.launches import Launch
from experiments.sweep.outcomes import log_of, why_it_ended
from experiments.sweep.runner import Runner

# A run as the runner sees it: notes its start, waits for `until` to appear, writes how it ended.
FAKE = """
import json, os, signal, sys, time
options = dict(part[2:].split("=", 1) for part in sys.argv[1:])
folder = options["run_dir"]
os.makedirs(folder, exist_ok=True)
def note(status, **more):
    with open(folder + "/results.json.part", "w") as file:
        json.dump({"schema": "crosslight.results/2", "status": status, "seconds": 7.0, "config_hash": "c", "command": "run",
                   "name": "n", "started": "2026-11-21T15:32:55+00:00", **more}, file)
    os.rename(folder + "/results.json.part", folder + "/results.json")
def stopped(*_):
    note("interrupted")
    sys.exit(130)
signal.signal(signal.SIGTERM, stopped if "deaf" not in options else signal.SIG_IGN)
with open(options["notes"], "a") as file:
    file.write(" ".join([options["run"], os.environ.get("CUDA_VISIBLE_DEVICES", "-"), os.environ["OMP_NUM_THREADS"]]) + chr(10))
how = options.get("how", "finished")
if how == "crash":
    sys.exit("no such option")
note("running")
def tested():  # as long as its test: a time would run out where the cores are busy, and it would end too early
    try:
        os.kill(int(options["tests"]), 0)
    except ProcessLookupError:
        return False
    return True
while "until" in options and not os.path.exists(options["until"]) and tested():
    time.sleep(0.005)
if how == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
note(how, error=None if how == "finished" else "it was " + how)
sys.exit(how != "finished")
"""


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")  # nobody has to be asked


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("fake") / "fake.py"
    file.write_text(FAKE)
    return file


@pytest.fixture
def fake(script: Path, tmp_path: Path) -> Callable[..., Launch]:
    def make(name: str, after: tuple[str, ...] = (), gpus: int = 0, **options: object) -> Launch:
        folder = tmp_path / "runs" / name
        given = {"run": name, "notes": tmp_path / "notes", "tests": os.getpid(), **options}
        program = (sys.executable, "-S", "-E", str(script))
        words = tuple(f"--{key}={value}" for key, value in given.items())
        return Launch(name, name, name[0], folder, None, program, options=words, after=after, gpus=gpus)

    return make


def run(launches: list[Launch], root: Path, out: StringIO | None = None, **options: object) -> tuple[int, dict[str, str], str]:
    """Exit status, states, and what was printed."""
    out = out or StringIO()
    given = {"jobs": 2, "every": 0.02, **options}
    runner = Runner(launches, root, console=Console(file=out, width=200), **given)  # type: ignore[arg-type]
    status = runner.run()
    return status, {key: entry.state for key, entry in runner.entries.items()}, out.getvalue()


def started(root: Path) -> list[str]:
    """Names of what was started, in order."""
    notes = root / "notes"
    return [line.split()[0] for line in notes.read_text().splitlines()] if notes.exists() else []


def wait_for(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 600  # a process that imports may wait long for its turn
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.005)


def test_order_failures_and_what_a_second_call_leaves_alone(fake: Callable[..., Launch], tmp_path: Path) -> None:
    launches = [
        fake("a"), fake("b", ("a",)), fake("broken", how="failed"), fake("memory", how="oom"), fake("crash", how="crash"),
        fake("killed", how="killed"), fake("c", ("b", "broken")), fake("d", ("c",)), fake("e"),
    ]  # fmt: skip
    status, states, printed = run(launches, tmp_path)
    assert status == 1
    assert states == {
        "a": "finished", "b": "finished", "broken": "failed", "memory": "oom", "crash": "failed", "killed": "failed",
        "c": "blocked", "d": "blocked", "e": "finished",
    }  # fmt: skip
    first = started(tmp_path)
    assert sorted(first) == ["a", "b", "broken", "crash", "e", "killed", "memory"]
    assert first.index("a") < first.index("b")
    assert "blocked c: starts from broken, which is failed" in printed
    assert "3 finished, 3 failed" not in printed
    assert "3 finished, 1 oom, 3 failed, 2 blocked" in printed
    crashed, killed = (read_results(tmp_path / "runs" / name) for name in ("crash", "killed"))
    assert (crashed.status, killed.status) == ("failed", "failed")
    assert "no such option" in str(crashed.error)
    assert "SIGKILL" in str(killed.error)
    assert read_results(tmp_path / "runs" / "broken").error == "it was failed"

    status, states, printed = run(launches, tmp_path)
    assert status == 1
    assert states["c"] == "blocked"
    assert "failed earlier: crash: ended with exit status 1" in printed
    assert started(tmp_path) == first  # nothing ran again

    again = [replace(launch, options=(*launch.options, "--how=crash")) for launch in launches if launch.key == "broken"]
    assert run(again, tmp_path, retry_failed=True)[1] == {"broken": "failed"}
    assert "no such option" in str(read_results(tmp_path / "runs" / "broken").error)  # the row tells of the last attempt

    mended = [replace(launch, options=tuple(word for word in launch.options if "how=" not in word)) for launch in launches]
    status, states, _ = run(mended, tmp_path, retry_failed=True)
    assert status == 0
    assert set(states.values()) == {"finished"}
    assert sorted(started(tmp_path)[len(first) + 1 :]) == ["broken", "c", "crash", "d", "killed", "memory"]


def test_a_row_tells_of_its_own_attempt(fake: Callable[..., Launch], tmp_path: Path) -> None:
    log = log_of(tmp_path, fake("killed"))
    log.parent.mkdir()
    log.write_text("crosslight: error: no such option\n")  # of an earlier attempt
    assert why_it_ended(log, -9) == "no such option"
    assert run([fake("killed", how="killed")], tmp_path)[1] == {"killed": "failed"}
    assert "signal 9 (SIGKILL)" in str(read_results(tmp_path / "runs" / "killed").error)
    assert "killed by signal 50;" in why_it_ended(log, -50, start=log.stat().st_size)


@pytest.fixture
def heard() -> Iterator[None]:
    """A process that a shell starts in the background ignores Ctrl-C, and so would the tests in it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
def test_ctrl_c_stops_in_order_and_the_next_call_goes_on(fake: Callable[..., Launch], tmp_path: Path) -> None:
    go = tmp_path / "go"
    launches = [fake("a"), fake("b", until=go), fake("deaf", until=go, deaf=1), fake("c")]
    interrupt = threading.Thread(
        target=lambda: (wait_for(lambda: {"b", "deaf"} <= set(started(tmp_path))), os.kill(os.getpid(), signal.SIGINT))
    )
    interrupt.start()
    status, states, printed = run(launches, tmp_path, grace=0.2)
    interrupt.join()
    assert status == 130
    assert states == {"a": "finished", "b": "interrupted", "deaf": "interrupted", "c": "waiting"}
    assert "1 finished, 2 interrupted, 1 waiting" in printed
    assert [read_results(tmp_path / "runs" / name).status for name in ("b", "deaf")] == ["interrupted"] * 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    go.touch()
    assert run(launches, tmp_path)[0] == 0
    assert sorted(started(tmp_path)) == ["a", "b", "b", "c", "deaf", "deaf"]


RUNNER = """
import sys
from pathlib import Path
from experiments.sweep.runner import Runner
from experiments.sweep.launches import Launch
import json
launches = [Launch(key, key, "k", Path(folder), None, tuple(program), options=tuple(options))
            for key, folder, program, options in json.loads(sys.argv[2])]
sys.exit(Runner(launches, Path(sys.argv[1]), jobs=2, every=0.02).run())
"""


def test_a_killed_runner_repeats_nothing_and_two_runners_share_the_work(fake: Callable[..., Launch], tmp_path: Path) -> None:
    go = tmp_path / "go"
    launches = [fake("a"), fake("b", until=go), fake("c", until=go), fake("d", ("b",)), fake("e", ("c",))]
    given = json.dumps([[launch.key, str(launch.folder), launch.program, launch.options] for launch in launches[:3]])
    command = [sys.executable, "-c", RUNNER, str(tmp_path), given]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as first:
        wait_for(lambda: {"b", "c"} <= set(started(tmp_path)))
        first.kill()  # its runs go on
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as second:
        assert second.stderr is not None
        assert any("elsewhere b" in line for line in second.stderr)  # whatever it says before; none if it ends without
        out = StringIO()
        release = threading.Thread(target=lambda: (wait_for(lambda: "elsewhere b" in out.getvalue()), go.touch()))
        release.start()
        status, states, _ = run(launches, tmp_path, out)
        release.join()
        second.stderr.read()  # `with` closes the pipe before it waits, and a runner that still writes then fails
    assert (status, second.returncode) == (0, 0)
    assert set(states.values()) == {"finished"}
    assert sorted(started(tmp_path)) == ["a", "b", "c", "d", "e"]  # each once


def test_devices_threads_and_jobs(fake: Callable[..., Launch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    launches = [fake("one", gpus=1), fake("two", gpus=2), fake("three", ("one", "two"), gpus=3), fake("none")]
    assert run(launches, tmp_path, gpus=["4", "7", "GPU-x"], jobs=None)[0] == 0
    notes = {line.split(" ")[0]: line.split(" ")[1:] for line in (tmp_path / "notes").read_text().splitlines()}
    assert notes["one"] == ["4", "2"]
    assert notes["two"] == ["7,GPU-x", "4"], "threads are of a process, and it has one a GPU"
    assert notes["three"] == ["4,7,GPU-x", "2"]
    assert notes["none"] == ["", "8"]
    with pytest.raises(InputError, match=r"wants 4 GPUs and this machine has 3\. Run it on another one"):
        Runner([fake("four", gpus=4)], tmp_path, gpus=["0", "1", "2"])
    with pytest.raises(InputError, match=r"Give --devices 3 \(the numbers stay the same\), run it on another one"):
        Runner([replace(fake("four", gpus=4), command="run")], tmp_path, gpus=["0", "1", "2"])
    with pytest.raises(InputError, match="--jobs is 0"):
        Runner(launches, tmp_path, jobs=0)


def test_early_stop_and_more(fake: Callable[..., Launch], tmp_path: Path) -> None:
    """A launch that is judged hopeless is stopped and says so; further launches are asked for when there is room."""
    never = tmp_path / "never"
    further = [fake("x"), fake("y")]
    launches = [fake("slow", until=never), fake("fast")]
    status, states, _ = run(
        launches, tmp_path, more=lambda: further.pop(0) if further else None,
        judge=lambda running: {"slow": "hyperband: too slow"} if "slow" in running and "slow" in started(tmp_path) else {},
    )  # fmt: skip
    assert status == 0
    assert states == {"slow": "stopped_early", "fast": "finished", "x": "finished", "y": "finished"}
    row = read_results(tmp_path / "runs" / "slow")
    assert (row.status, row.error) == ("stopped_early", "hyperband: too slow")
    assert run(launches, tmp_path)[1]["slow"] == "stopped_early"
    assert started(tmp_path).count("slow") == 1


def test_launches_import_while_worlds_are_rendered(
    fake: Callable[..., Launch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    monkeypatch.setattr("experiments.sweep.runner.import_everything", lambda: done.append("imports"))
    monkeypatch.setattr("experiments.sweep.runner.write_miniature_world", lambda folder, style: done.append(style))
    program, ours = replace(fake("a"), world="target"), replace(fake("b"), world="source", command="fit")
    Runner([program], tmp_path)._render_worlds()
    assert done == ["target"], "a program imports for itself"
    Runner([program, ours], tmp_path)._render_worlds()
    assert done[1:] == ["imports", "source", "target"]


def test_unreadable_results_are_a_failure_of_their_own_run(fake: Callable[..., Launch], tmp_path: Path) -> None:
    (tmp_path / "runs" / "bad").mkdir(parents=True)
    (tmp_path / "runs" / "bad" / "results.json").write_text("{")
    status, states, printed = run([fake("bad"), fake("good")], tmp_path)
    assert status == 1
    assert states == {"bad": "failed", "good": "finished"}
    assert "is not JSON" in printed


def test_time_left_is_by_kind_then_by_scaled_estimates(fake: Callable[..., Launch], tmp_path: Path) -> None:
    def costs(launch: Launch, kind: str, seconds: float | None) -> Launch:
        return replace(launch, kind=kind, cost=None if seconds is None else Cost(seconds / 3600))

    launches = [costs(fake("a"), "k", 5.0), costs(fake("b"), "k", 5.0), costs(fake("c"), "other", 100.0)]
    runner = Runner(launches, tmp_path, jobs=2)
    assert runner.seconds_left() == pytest.approx((5 + 5 + 100) / 2)
    runner.entries["a"].state, runner.entries["a"].seconds = "finished", 10.0
    assert runner.seconds_left() == pytest.approx((10 + 200) / 2)  # estimates were half of the truth
    bare = Runner([costs(launch, launch.key, None) for launch in launches], tmp_path)
    assert bare.seconds_left() is None
