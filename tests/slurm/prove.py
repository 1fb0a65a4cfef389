"""Proof on a real Slurm that what `--submit slurm` promises holds: `make slurm-proof`, `python tests/slurm/prove.py [--install]`.

Starts a Slurm of two nodes on this machine (`cluster.py`), submits tiny runs, takes their nodes away from them in the middle, and
compares what comes out with runs that nobody disturbed. Exit status 1 where anything is not as it should be.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"

import torch
import yaml
from cluster import PROGRAMS, Cluster

import experiments
from datamodules.errors import InputError
from experiments.cli.main import run_command
from experiments.papers import strict_yaml
from experiments.sweep.slurm import read_jobs

HERE = Path(__file__).parent
# Fake nodes have names that do not resolve; real ones need neither line.
SLURM = ("--submit", "slurm", "--slurm.setup=[export MASTER_ADDR=127.0.0.1, export GLOO_SOCKET_IFNAME=lo]")
CONFIGS = ["configs/trainer/demo.yaml", "configs/model/dual_tiny.yaml", "configs/data/world.yaml"]
# 27 images in batches of 4: 6 steps an epoch, and a validation after each epoch.
EPOCHS, EPOCH = 4, 6
OPTIONS = {
    "data.init_args.batch_size": 4, "data.init_args.eval_batch_size": 4, "trainer.log_every_n_steps": 1,
    "trainer.max_epochs": EPOCHS, "model.init_args.optimization.lr": 0.01,
}  # fmt: skip
MWA = {"configs": [*CONFIGS, "experiments/papers/mwa/variants/mwa.yaml"], "start": "start"}
EXHIBIT = ("two_ranks", "two_nodes", "broken", "after_broken")

failures: list[str] = []
began = time.monotonic()


def check(what: str, holds: bool) -> None:
    print(f"{'PASS' if holds else 'FAIL'}  {time.monotonic() - began:4.0f} s  {what}", flush=True)
    if not holds:
        failures.append(what)


def sweep(*arguments: object) -> tuple[int, str]:
    """`crosslight sweep ...`: exit status and what it printed, which is shown."""
    given = [str(each) for each in arguments]
    print("$ crosslight sweep " + " ".join(each if each != SLURM[2] else "..." for each in given))
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            status = run_command("sweep", given)
        except InputError as error:
            status = 2
            out.write(f"crosslight: error: {error}\n")
    text = out.getvalue()
    shown = [line.rstrip() for line in text.splitlines() if line.strip()]
    print("".join(f"    {line[:150]}\n" for line in shown[:16]) + ("    ...\n" if len(shown) > 16 else ""), end="", flush=True)
    return status, text


def slurm(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def wait(what: str, condition: Callable[[], Any], seconds: float = 300) -> Any:
    limit = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > limit:
            raise SystemExit(f"FAIL  {what} did not happen within {seconds:.0f} s")
        time.sleep(0.3)
    return value


def folder(root: Path, name: str) -> Path | None:
    """The run folder of a paper's run or of a sweep's one point."""
    return next((run for kind in (f"mwa-{name}-s0-*", f"{name}-*") for run in root.glob(kind)), None)


def results(run: Path | None) -> dict[str, Any]:
    file = run / "results.json" if run is not None else None
    return json.loads(file.read_text()) if file is not None and file.exists() else {}


def status_of(root: Path, name: str) -> str:
    return str(results(folder(root, name)).get("status", ""))


def steps(run: Path | None) -> list[int]:
    """Steps whose loss is in metrics.csv."""
    file = run / "metrics.csv" if run is not None else None
    if file is None or not file.exists():
        return []
    with open(file, newline="") as rows:
        return [int(row["step"]) for row in csv.DictReader(rows) if row.get("train/loss")]


def job(root: Path, name: str) -> str:
    return next(each["job"] for each in read_jobs(root).values() if name in each["title"])


def field(number: str, name: str) -> str:
    """Of `scontrol show job`."""
    words = slurm("scontrol", "-o", "show", "job", number).split()
    return next((word.partition("=")[2] for word in words if word.startswith(f"{name}=")), "")


def equal(one: Path | None, two: Path | None) -> bool:
    """Weights, metrics and evaluations of two runs, bit for bit."""
    assert one is not None
    assert two is not None
    for name in ("last.ckpt", "best.ckpt"):
        ours, theirs = (torch.load(run / "checkpoints" / name, weights_only=True)["state_dict"] for run in (one, two))
        if ours.keys() != theirs.keys() or not all(torch.equal(ours[key], theirs[key]) for key in ours):
            return False
    measured = [[each["metrics"] for each in results(run)["evaluations"]] for run in (one, two)]
    rows = [[(row["step"], row.get("train/loss"), row.get("val/rsum")) for row in _rows(run)] for run in (one, two)]
    return measured[0] == measured[1] and rows[0] == rows[1]


def _rows(run: Path) -> list[dict[str, str]]:
    with open(run / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def prepare(work: Path) -> None:
    """A tiny world, and a paper of five runs in place of the real ones."""
    from datamodules.miniworld.write import Splits, write_world

    splits = Splits(coco=0.25, flickr_train=0.6, flickr_val=0.15)
    os.environ["CROSSLIGHT_WORLD"] = str(write_world(work / "world", scenes=60, image_size=32, splits=splits, workers=1))
    os.environ["PYTHONPATH"] = str(HERE)
    os.environ.pop("WANDB_SERVICE", None)
    held = {**OPTIONS, **hold(work, 8, 15)}
    runs: dict[str, dict[str, Any]] = {
        "start": {
            "configs": [*CONFIGS, "experiments/papers/mwa/variants/full.yaml"],
            "options": {**OPTIONS, "trainer.max_epochs": 1},
        },
        "two_ranks": {**MWA, "options": {**held, "trainer.devices": 2}},
        "two_nodes": {**MWA, "options": {**held, "trainer.devices": 1, "trainer.num_nodes": 2}},
        "broken": {**MWA, "options": {**OPTIONS, "model.init_args.optimization.lr": "high"}},
        "after_broken": {**MWA, "options": OPTIONS, "start": "broken"},
    }
    package = work / "package" / "experiments" / "papers"
    (package / "mwa" / "exhibits").mkdir(parents=True)
    original = Path(experiments.__file__ or "").parent
    (package / "mwa" / "variants").symlink_to(original / "papers" / "mwa" / "variants")
    (package.parent.parent / "configs").symlink_to(original.parent / "configs")
    (package / "numbers.yaml").write_text("{}")
    book = {name: {"miniature": {**recipe, "command": "fit" if name == "start" else "run"}} for name, recipe in runs.items()}
    (package / "mwa" / "runs.yaml").write_text(yaml.safe_dump({"runs": book}))
    variants = [{"label": name, "runs": {"run": name}} for name in EXHIBIT]
    column = {"name": "rsum", "label": "rsum", "metric": "rsum"}
    exhibit = {"title": "The proof's runs", "kind": "table", "variants": variants, "columns": [column]}
    (package / "mwa" / "exhibits" / "proof.yaml").write_text(yaml.safe_dump(exhibit))
    strict_yaml.HERE = package


def hold(work: Path, *steps: int) -> dict[str, Any]:
    """Options that make a run wait after these steps until it is told to leave, or WORK/go is there."""
    return {"trainer.callbacks": "hold.Hold", "trainer.callbacks.steps": list(steps), "trainer.callbacks.until": str(work / "go")}


def sweep_file(work: Path, name: str, rates: Sequence[object], **options: object) -> Path:
    """A W&B sweep file over the learning rate."""
    pairs = [part for config in MWA["configs"] for part in ("-c", config)]
    given = [f"--{key}={value}" for key, value in {**OPTIONS, **options}.items() if "optimization" not in key]
    content = {
        "name": name, "method": "grid", "parameters": {"model.init_args.optimization.lr": {"values": list(rates)}},
        "command": ["crosslight", "run", *pairs, *given, "${args}"],
    }  # fmt: skip
    file = work / f"{name}.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


# ------------------------------------------------------------------------------------------------------------- what is proved


def prove(work: Path) -> None:
    undisturbed, disturbed, go = work / "undisturbed", work / "disturbed", work / "go"
    _, text = sweep("run", "mwa/proof", "--out", disturbed, *SLURM, "--dry-run")
    check("dry run: scripts and costs, nothing submitted", "#SBATCH --array" in text and not disturbed.exists())

    go.touch()
    for name in ("two_ranks", "two_nodes"):
        sweep("run", f"mwa/{name}", "--out", undisturbed, *SLURM)
    wait("undisturbed runs", lambda: all(status_of(undisturbed, name) == "finished" for name in EXHIBIT[:2]))
    go.unlink()

    sweep("run", "mwa/proof", "--out", disturbed, *SLURM)
    _, text = sweep("run", "mwa/proof", "--out", disturbed, *SLURM)
    check("submitted twice: all five queued already, none a second time", "5 queued or running already" in text)
    wait("dependencies", lambda: slurm("squeue", "-h", "-r", "-o", "%r").count("Dependency") == 4, 60)
    _, text = sweep("status", "mwa/proof", "--out", disturbed)
    check("what starts from another run waits for it", text.count("Dependency") == 4)

    told_by_a_signal(disturbed)
    preempted_by_priority(disturbed)
    go.touch()
    for name in EXHIBIT[:2]:
        wait(f"{name} finished", lambda name=name: status_of(disturbed, name) == "finished")
        run, whole = folder(disturbed, name), folder(undisturbed, name)
        told, once = results(run), steps(run) == list(range(EPOCHS * EPOCH))
        ranks, attempts = told["provenance"]["device"]["world_size"], told["attempts"]
        check(
            f"{name}: {ranks} ranks, finished at attempt {attempts}, every step once", (ranks, once) == (2, True) and attempts > 1
        )
        check(f"{name}: weights, losses, recalls equal the undisturbed run's bit for bit", equal(run, whole))

    failures_stay_where_they_are(work, disturbed)
    go.unlink()
    without_grace_and_at_limits(work)


def preempted_by_priority(root: Path) -> None:
    """A job of a higher partition takes the node of the run with two ranks, and with it one of the other run's two."""
    held(root, "two_ranks", 8)
    number = job(root, "two_ranks")
    node = slurm("squeue", "-h", "-r", "-j", number, "-o", "%N")
    print(f"a job of higher priority wants {node}, where {number} is")
    slurm("sbatch", "-p", "high", "-w", node, "--exclusive", "-o", "/dev/null", "--wrap", "sleep 3")
    wait("preemption", lambda: field(number, "Restarts") == "1")
    left = results(folder(root, "two_ranks"))
    check(f"preempted: {left.get('error', '')[:23]}, in the queue again", left.get("error", "").startswith("preempted after"))


def told_by_a_signal(root: Path) -> None:
    """SIGUSR1 in the middle of the run on two nodes, and in the first moment of its second start."""
    held(root, "two_nodes", 8)
    number = job(root, "two_nodes")
    slurm("scancel", "--signal=USR1", number)
    wait("requeue", lambda: field(number, "Restarts") == "1")
    left = results(folder(root, "two_nodes"))
    check(f"told by USR1: {left.get('error', '')[:23]}, in the queue again", left.get("error", "").startswith("preempted after"))
    wait("the second start", lambda: field(number, "JobState") == "RUNNING")
    slurm("scancel", "--signal=USR1", number)
    held(root, "two_nodes", 15)
    check("told by USR1 before Python listens: not killed, it goes on", field(number, "JobState") == "RUNNING")


def failures_stay_where_they_are(work: Path, root: Path) -> None:
    wait("the end of what starts from the failed run", lambda: field(job(root, "after_broken"), "JobState") == "CANCELLED")
    error = results(folder(root, "broken")).get("error", "")
    check(f"a run that fails before it opens its folder is recorded: {error[:60]}...", "lr" in error)
    _, text = sweep("status", "mwa/proof", "--out", root)
    check("what starts from it is cancelled by Slurm and shown as blocked", "blocked" in text and "CANCELLED" in text)
    status, text = sweep("run", "mwa/proof", "--out", root, *SLURM)
    check(
        "submitted again: nothing to submit, exit status 1", "nothing to submit" in text and "3 finished" in text and status == 1
    )
    points, out = sweep_file(work, "points", [0.01, "low"], **{"trainer.max_epochs": 1}), work / "points"
    sweep("run", points, "--out", out, *SLURM)
    wait("both points", lambda: sorted(results(run).get("status", "") for run in out.glob("points-*")) == ["failed", "finished"])
    check("a failing point of a sweep leaves the other alone", True)


def without_grace_and_at_limits(work: Path) -> None:
    """Three runs held in their middle: one's node is taken without grace, one is told a minute before its time limit, one (whose
    signal is a harmless one) only by the SIGTERM at it. Slurm looks at limits every half minute, so something else is proved
    meanwhile.
    """
    kinds = {
        "brute": ["--slurm.partition=brute", "--slurm.extra=[--nodelist=n1]"],
        "told": ["--slurm.time=30", "--slurm.notice=60", "--slurm.extra=[--nodelist=n2]"],
        "at_limit": ["--slurm.time=30", "--slurm.extra=[--nodelist=n2, --signal=CONT@1]"],
    }
    jobs: dict[str, str] = {}
    for kind, given in kinds.items():
        sweep("run", sweep_file(work, kind, [0.01], **hold(work, 8)), "--out", work / kind, *SLURM, *given)
        jobs[kind] = next(iter(read_jobs(work / kind).values()))["job"]
    for kind, minutes in (("told", 2), ("at_limit", 1)):  # from now: how long a start takes depends on the machine
        held(work / kind, kind, 8)
        hours, spent, _ = field(jobs[kind], "RunTime").split(":")
        slurm("scontrol", "update", f"JobId={jobs[kind]}", f"TimeLimit={60 * int(hours) + int(spent) + minutes}")
    held(work / "brute", "brute", 8)
    slurm("sbatch", "-p", "high", "-w", "n1", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1")
    wait("preemption", lambda: field(jobs["brute"], "Restarts") == "1")
    cancelled(work)
    for kind, number in jobs.items():
        run = wait(f"{kind}'s end", lambda kind=kind: finished(work / kind, kind))
        restarts, once = int(field(number, "Restarts")), steps(run) == list(range(EPOCHS * EPOCH))
        what = {"brute": "preempted without grace", "told": "told before its limit", "at_limit": "at its limit"}[kind]
        check(f"{what}: queued again {restarts} times, finished, every step once", restarts > 0 and once)


def finished(root: Path, name: str) -> Path | None:
    return next((run for run in root.glob(f"{name}-*") if results(run).get("status") == "finished"), None)


def cancelled(work: Path) -> None:
    file, out = sweep_file(work, "endless", [0.01, 0.02], **hold(work, 8)), work / "endless"
    sweep("run", file, "--out", out, *SLURM, "--slurm.at_once=1")
    run = wait("one held", lambda: next((each for each in out.glob("endless-*") if len(steps(each)) == 8), None))
    sweep("status", file, "--out", out)
    _, text = sweep("cancel", file, "--out", out)
    check("cancel says what it cancels: one running, one queued", "(running)" in text and "(pending)" in text)
    wait("both gone", lambda: all(field(each["job"], "JobState") == "CANCELLED" for each in read_jobs(out).values()))
    wait("its last word", lambda: results(run).get("status") == "interrupted")
    check("the running one has saved, and nothing is queued again", "preempted after step" in results(run)["error"])


def held(root: Path, name: str, step: int) -> None:
    """Wait until a run is held after this step."""
    wait(f"{name} after step {step}", lambda: len(steps(folder(root, name))) == step and status_of(root, name) == "running")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--install", action="store_true", help="apt-get install Slurm first (Debian, root)")
    parser.add_argument("--keep", type=Path, help="folder to work in and to leave behind (default: a temporary one)")
    options = parser.parse_args()
    if options.install and any(shutil.which(name) is None for name in PROGRAMS):
        packages = ("slurm-wlm", "slurmctld", "slurmd", "slurm-client")
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages], check=True)
    os.nice(5)  # the jobs inherit it: a proof has time
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the cluster is stopped in any case
    with contextlib.ExitStack() as stack:
        work = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="crosslight-slurm-")))
        work.mkdir(parents=True, exist_ok=True)
        prepare(work)
        stack.enter_context(Cluster(work / "cluster"))
        print(f"Slurm {slurm('sinfo', '--version').split()[-1]}, two nodes on this machine, in {work}")
        prove(work)
    print(f"{'FAILED: ' + '; '.join(failures) if failures else 'all as it should be'} ({time.monotonic() - began:.0f} s)")
    sys.exit(bool(failures))
