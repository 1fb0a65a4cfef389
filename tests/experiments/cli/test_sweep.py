"""`crosslight sweep`: targets, what is shown without running, options that are refused or reach Slurm."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from fake_slurm import Queue, ended
from fresh_process import modules_after
from sweeps import LR, sweep_of

from datamodules.errors import InputError
from experiments.cli.main import run_command
from experiments.papers import strict_yaml
from experiments.papers.schema import Cost
from experiments.runs.results import Results, now, write_results
from experiments.sweep import targets
from experiments.sweep.launches import Launch
from experiments.sweep.status import summed_cost
from experiments.sweep.targets import exhibit_launches, on_devices
from lightning_modules.checkpoints.run_folder import Fit


@pytest.fixture
def paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A paper of two exhibits whose runs start from one."""
    here = tmp_path / "package" / "experiments" / "papers"
    (here / "mwa" / "exhibits").mkdir(parents=True)
    (here / "c.yaml").write_text("a: 1")
    for entry in ("numbers.yaml", "mwa/runs.yaml"):
        (here / entry).write_text("{}")
    cost = {"hours": 0.5, "device": "A100", "devices": 4, "memory_gb": 30, "disk_gb": 20}
    runs = {
        "start": {
            "miniature": {"configs": ["experiments/papers/c.yaml"], "command": "fit"},
            "full": {"configs": [], "cost": cost},
        },
        "one": {
            "miniature": {"configs": ["experiments/papers/c.yaml"], "start": "start"},
            "full": {"configs": [], "start": "start"},
        },
        "two": {"miniature": {"configs": [], "start": "start"}},
    }
    (here / "mwa" / "runs.yaml").write_text(yaml.safe_dump({"runs": runs}))
    for name, used in (("table1", ["one"]), ("table2", ["two", "one"])):
        variants = [{"label": run, "runs": {"run": run}} for run in used]
        content = {
            "title": name,
            "kind": "table",
            "variants": variants,
            "columns": [{"name": "r", "label": "r", "metric": "rsum"}],
        }
        (here / "mwa" / "exhibits" / f"{name}.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.setattr(strict_yaml, "HERE", here)


def test_targets_and_dry_run(paper: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for target, names in {"mwa/table1": ["start", "one"], "all": ["start", "one", "two"], "mwa/two": ["start", "two"]}.items():
        assert [launch.title for launch in exhibit_launches(target, "miniature", [3], tmp_path)] == [
            f"mwa/{name} s3" for name in names
        ]
    launches = exhibit_launches("mwa", "miniature", [0], tmp_path)
    groups = [launch.environment.get("WANDB_RUN_GROUP") for launch in launches]
    assert groups[1:] == ["mwa/table1", "mwa/table2"]
    launches[0].folder.mkdir()
    fit = Fit(20, 2, "val/cider", 0.7525)
    write_results(launches[0].folder, Results("finished", "fit", "start", "c", now(), seconds=65.0, fit=fit))
    assert run_command("sweep", ["run", "mwa", "--dry-run", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"1 +mwa/start s0 +finished +CIDEr 75.2 +65 s", printed), "its best validation"
    assert re.search(r"2 +mwa/one s0 +waiting +1", printed)
    assert "3 runs" in printed
    assert "1 finished" in printed
    assert not (tmp_path / "logs").exists()
    assert run_command("sweep", ["status", str(tmp_path)]) == 0
    assert re.search(r"mwa-start-s0-\w+ +finished +CIDEr 75.2 +65 s", capsys.readouterr().out)
    (tmp_path / "a-broken").mkdir()
    (tmp_path / "a-broken" / "results.json").write_text("{")
    assert run_command("sweep", ["status", str(tmp_path)]) == 1
    rows = capsys.readouterr().out
    assert re.search(r"a-broken +failed .*is not JSON", rows)
    assert "1 failed, 1 finished" in rows
    full = exhibit_launches("mwa", "full", [0, 1], tmp_path)
    assert summed_cost(full) == (
        "still to run: 4; 1.0 A100-hours, up to 30 GB of memory a device, 20 GB of data and weights, "
        "2 runs without an estimate (mwa/one s0, mwa/one s1: write `cost` into the recipe)"
    )
    read = [("coco", "base", 21), ("coco", "large", 23), ("coco_captions", "gpt2", 22), ("flickr30k", "base", 8)]
    launches = [replace(full[0], configs=(f"configs/data/{data}.yaml", f"configs/model/{model}.yaml"), cost=Cost(1, disk_gb=size))
             for data, model, size in read]  # fmt: skip
    assert "31 GB of data and weights" in summed_cost(launches)  # COCO once
    for arguments, message in {
        ("run", "mwa/table9"): "no exhibit, run, paper or sweep file 'mwa/table9'",
        ("run", "none.yaml"): "none.yaml does not exist",
        (
            "run",
            "configs/trainer/cpu.yaml",
        ): "no key trainer; .* It is a configuration: crosslight run -c ",
        ("run", "mwa", "--count", "3"): "--count is of sweep files",
        ("run", "mwa/two", "--scale", "full"): "no run at scale full",
        ("start", "mwa"): "invalid choice",
    }.items():
        with pytest.raises(InputError, match=message):
            run_command("sweep", list(arguments))


@pytest.mark.parametrize("action", ["run", "status", "cancel"])
def test_a_formula_points_to_the_report(action: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="iais/figure6 is a formula and needs no run: `crosslight report iais/figure6` draws it"):
        run_command("sweep", [action, "iais/figure6", "--out", str(tmp_path)])


def test_devices_of_exhibits(
    paper: None, queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One, several or all GPUs instead of the estimate's four: the same folders, and the command line says how many."""
    out = ["--out", str(tmp_path / "out"), "--dry-run"]
    planned = exhibit_launches("all", "full", [0], tmp_path)
    assert [launch.gpus for launch in planned] == [4, 1]
    monkeypatch.setattr(targets, "visible_gpus", lambda: ["0", "1", "2"])
    for devices, count in ((1, 1), (2, 2), ("all", 3)):
        given = on_devices(planned, devices)  # type: ignore[arg-type]
        assert [(each.gpus, each.devices, each.folder) for each in given] == [
            (count, str(count), each.folder) for each in planned
        ]
        assert f"--trainer.devices={count}" in given[0].argv
        assert given[0].cost is not None
        assert given[0].cost.seconds == 1800 / count
    assert run_command("sweep", ["run", "mwa/table1", "--scale", "full", "--devices", "all", *out]) == 0
    assert "30.0 A100-minutes, 3 at once" in capsys.readouterr().out
    small = exhibit_launches("mwa/table1", "miniature", [0], tmp_path)
    assert [(each.gpus, each.devices, each.is_forked) for each in on_devices(small, 1)] == [(0, None, True)] * 2
    assert [(each.gpus, each.devices, each.processes) for each in on_devices(small, 2)] == [(0, "2", 2)] * 2
    submitted = ["run", "mwa/table1", "--scale", "full", "--submit", "slurm", "--devices", "2", *out]
    assert run_command("sweep", submitted) == 0
    printed = capsys.readouterr().out
    assert printed.count("#SBATCH --gpus-per-node=2\n") == 2
    assert "--gpus-per-node=4" not in printed
    sweep = tmp_path / "rates.yaml"
    sweep.write_text("{method: grid, command: [crosslight, run, '${args}'], parameters: {x: {values: [1, 2]}}}")
    for words, message in {
        (str(sweep), "--devices", "2"): "the command of .*rates.yaml says it itself: --trainer.devices=N",
        ("mwa/table1", "--devices", "0"): "'0' is neither a number from 1 nor all",
        ("mwa/table1", "--devices", "some"): "'some' is neither a number from 1 nor all",
        ("mwa/table1", "--devices", "all"): "these runs are on the processor",
        ("mwa/table1", "--devices", "2", "--submit", "slurm", "--slurm.gpus_per_node=1"): "say the same: give one of them",
        ("mwa/table1", "--devices", "all", "--submit", "slurm"): "of a cluster's give a number",
    }.items():
        with pytest.raises(InputError, match=message):
            run_command("sweep", ["run", *words, *out])


def test_a_sweep_files_dry_run_lists_its_points(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = sweep_of(tmp_path, parameters={LR: {"values": [0.1, 0.2]}, "seed_everything": {"values": [0, 1]}})
    assert run_command("sweep", ["run", str(sweep.file), "--dry-run", "--count", "3", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert re.findall(r"lr=\S+ seed_everything=\d", printed) == [f"lr={lr} seed_everything={seed}" for lr, seed in
                                                                   ((0.1, 0), (0.1, 1), (0.2, 0))]  # fmt: skip
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="--seeds is of exhibits"):
        run_command("sweep", ["run", str(sweep.file), "--seeds", "0"])


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
        for wrong in (["--dry-run"], ["--retry-failed"], ["--submit", "slurm"], ["--jobs", "2"], ["--devices", "2"],
                      ["--slurm.nodes=2"]):  # fmt: skip
            with pytest.raises(InputError, match=rf"{wrong[0].partition('=')[0]} is of `crosslight sweep run`"):
                run_command("sweep", [action, "mwa/table1", *wrong])
    assert queue.called("scancel") == []
    with pytest.raises(InputError, match=r"--seeds is of exhibits; status .* shows all runs of that folder"):
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


@pytest.mark.parametrize(
    "words",
    [["run", "all", "--scale", "full", "--dry-run"], ["run", "mwa/table1", "--dry-run", "--submit", "slurm"], ["status", "iais"],
     ["run", "experiments/papers/mwa/sweeps/table1.yaml", "--dry-run"], ["status", "."]],
    ids=" ".join,
)  # fmt: skip
def test_what_starts_nothing_imports_no_torch(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    write_results(tmp_path / "one", Results("finished", "fit", "start", "c", now(), seconds=65.0))
    modules = modules_after("sweep", *words, folder=tmp_path)
    assert not {"torch", "lightning", "transformers", "jsonargparse"} & modules


def test_what_an_earlier_version_submitted_is_refused(tmp_path: Path) -> None:
    (tmp_path / "slurm").mkdir()
    old = {"k": {"name": "mwa/x s0", "folder": str(tmp_path / "x"), "command": ["python"], "job": "7_0", "requeues": 3}}
    (tmp_path / "slurm" / "jobs.json").write_text(json.dumps(old))
    with pytest.raises(InputError, match=r"jobs\.json was written by an earlier version: cancel its jobs"):
        run_command("sweep", ["status", str(tmp_path)])
