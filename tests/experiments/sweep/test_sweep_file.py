"""W&B sweep files: read as strictly as W&B's schema, expanded to known lists, started as its agent starts them."""

from __future__ import annotations

import json
import math
import re
import sys
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from datamodules.errors import InputError
from experiments.cli.main import run_command
from experiments.papers import catalogue as exhibits
from experiments.papers import strict_yaml
from experiments.papers.schema import Cost
from experiments.runs.metrics_csv import history
from experiments.runs.results import Results, now, write_results
from experiments.sweep import search
from experiments.sweep.launches import PROGRAM
from experiments.sweep.points import point_launch, points_of
from experiments.sweep.runner import Runner
from experiments.sweep.search import Bayes, draws, grid, hopeless, point_id
from experiments.sweep.status import summed_cost
from experiments.sweep.sweep_file import Hyperband, Sweep, command_of, leaves, read_sweep
from experiments.sweep.targets import exhibit_launches

WANDB_SCHEMA = json.loads((Path(__file__).parents[2] / "recordings" / "wandb_sweep_schema.json").read_text())  # sweeps 0.3.0
LR = "model.init_args.optimization.lr"


def sweep_of(folder: Path, **content: Any) -> Sweep:
    """A sweep of parameters, a grid unless said otherwise."""
    file = folder / "lr.yaml"
    file.write_text(yaml.safe_dump({"method": "grid", "command": ["crosslight", "run", "${args}"], **content}))
    return read_sweep(file)


# ----------------------------------------------------------------------------------------------------------------- reading


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """JSON schema, draft 7, as far as W&B's sweep schema uses it."""
    if "$ref" in schema:
        return fits(value, WANDB_SCHEMA["definitions"][schema["$ref"].rpartition("/")[2]])
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    kinds = {
        "object": isinstance(value, dict), "array": isinstance(value, list), "string": isinstance(value, str), "number": number,
        "integer": number and float(value).is_integer(), "boolean": isinstance(value, bool),
    }  # fmt: skip
    formats = {"float": isinstance(value, float), "integer": isinstance(value, int)}
    known = schema.get("properties", {})
    entries = value if isinstance(value, dict) else {}
    tests = [
        "type" not in schema or kinds[schema["type"]],
        "format" not in schema or formats[schema["format"]],
        "enum" not in schema or value in schema["enum"],
        "anyOf" not in schema or any(fits(value, each) for each in schema["anyOf"]),
        "oneOf" not in schema or sum(fits(value, each) for each in schema["oneOf"]) == 1,
        not number or value >= schema.get("minimum", -math.inf),
        not number or value > schema.get("exclusiveMinimum", -math.inf),
        not isinstance(value, list) or len(value) >= schema.get("minItems", 0),
        not isinstance(value, list) or all(fits(each, schema.get("items", {})) for each in value),
        not isinstance(value, dict) or len(value) >= schema.get("minProperties", 0),
        not isinstance(value, dict) or set(schema.get("required", [])) <= value.keys(),
        all(re.search(schema.get("propertyNames", {}).get("pattern", ""), key) for key in entries),
        all(fits(each, known[key]) for key, each in entries.items() if key in known),
        all(
            schema.get("additionalProperties") is not False and fits(each, schema.get("additionalProperties") or {})
            for key, each in entries.items()
            if key not in known
        ),
    ]
    return all(tests)


X = {"x": {"values": [1, 2]}}
BAYES = {"method": "bayes", "metric": {"name": "val/rsum", "goal": "maximize"}, "parameters": {"x": {"min": 0.0, "max": 1.0}}}
GOOD: list[dict[str, Any]] = [
    {"method": "grid", "parameters": X},
    {"method": "grid", "name": "n", "description": "d", "project": "p", "run_cap": 3, "parameters": {"a.b": {"value": "x"}, **X}},
    {"method": "grid", "parameters": {"a": {"parameters": {"b": {"min": 1, "max": 3}, "c": {"parameters": X}}}}},
    {"method": "grid", "parameters": {"a": {"distribution": "q_uniform", "min": 0.0, "max": 1.0, "q": 0.25}}},
    {"method": "random", "parameters": {"a": {"values": ["u", "v"], "probabilities": [0.25, 0.75]}}},
    *(
        {"method": "random", "parameters": {"a": {"distribution": kind, "min": 0.5, "max": 2}}}
        for kind in ("uniform", "q_uniform", "log_uniform_values", "inv_log_uniform_values", "q_log_uniform_values")
    ),
    *(
        {"method": "random", "parameters": {"a": {"distribution": kind}}}
        for kind in ("normal", "log_normal", "q_normal", "q_log_normal", "beta", "q_beta")
    ),
    {"method": "random", "parameters": {"a": {"distribution": "q_normal", "mu": 1, "sigma": 0.5, "q": 0.1}}},
    BAYES,
    {**BAYES, "early_terminate": {"type": "hyperband", "min_iter": 3}},
    {**BAYES, "early_terminate": {"type": "hyperband", "max_iter": 27, "s": 2, "eta": 3, "strict": False}},
    {**BAYES, "metric": {"name": "m", "impute": "best", "target": 3}, "controller": {"type": "local"}, "kind": "sweep"},
]
BAD: list[tuple[dict[str, Any], str]] = [
    ({"parameters": X}, "method is None"),
    ({"method": "grib", "parameters": X}, "method is 'grib'"),
    ({"method": "grid", "parameters": X, "extra": 1}, "no key extra; there are method"),
    ({"method": "grid", "parameters": {}}, "no parameters"),
    ({"method": "grid", "parameters": {"x": 3}}, "parameters.x is 3; write x: {value: 3}"),
    ({"method": "grid", "parameters": {"x": {"values": []}}}, "parameters.x.values"),
    ({"method": "grid", "parameters": {"x": {"values": 3}}}, "parameters.x.values"),
    ({"method": "grid", "parameters": {"x": {"valeus": [1]}}}, "parameters.x: there is no distribution None"),
    ({"method": "grid", "parameters": {"x": {"values": [1], "q": 1}}}, "parameters.x: categorical takes no q"),
    ({"method": "grid", "parameters": {"-x": {"value": 1}}}, "parameters.-x: a parameter's name"),
    ({"method": "random", "parameters": {"x": {"distribution": "uniform", "min": 0.0}}}, "uniform needs max"),
    ({"method": "random", "parameters": {"x": {"min": "1e-5", "max": 1.0}}}, "write 1.0e-4"),
    ({"method": "random", "parameters": {"x": {"distribution": "log_uniform_values", "min": 0, "max": 1}}}, "above 0"),
    ({"method": "random", "parameters": {"x": {"distribution": "q_uniform", "min": 0, "max": 1, "q": 0}}}, "q is above 0"),
    ({"method": "random", "parameters": {"x": {"distribution": "int_uniform", "min": 0.5, "max": 2}}}, "whole numbers"),
    ({"method": "grid", "parameters": X, "run_cap": 0}, "run_cap is 0"),
    ({"method": "grid", "parameters": X, "command": "crosslight run"}, "command is 'crosslight run', which is no list"),
    ({**BAYES, "metric": {"goal": "maximize"}}, "metric needs a name"),
    ({**BAYES, "metric": {"name": "m", "goal": "max"}}, "metric.goal is 'max'"),
    ({**BAYES, "early_terminate": {"type": "hyperband"}}, "needs min_iter, or max_iter and s"),
    ({**BAYES, "early_terminate": {"type": "asha", "min_iter": 3}}, "type is 'asha'"),
    ({**BAYES, "early_terminate": {"type": "hyperband", "min_iter": 3, "eta": 1}}, "eta is above 1"),
]
WORSE: list[tuple[dict[str, Any], str]] = [  # W&B refuses these beside its schema, or its agent cannot pass them on
    ({"method": "random", "parameters": {"x": {"min": 2, "max": 1}}}, "min 2 is not less than max 1"),
    ({"method": "random", "parameters": {"x": {"values": [1, 2], "probabilities": [1, 1]}}}, "do not sum to 1"),
    ({"method": "random", "parameters": {"x": {"distribution": "log_uniform", "min": 1, "max": 2}}}, "use log_uniform_values"),
    ({"method": "grid", "parameters": {"x": {"min": 0.0, "max": 1.0}}}, "a grid takes value, values"),
    ({"method": "grid", "parameters": {"x": {"values": [1, None]}}}, "write 'null' in quotes"),
    ({"method": "bayes", "parameters": {"x": {"min": 0.0, "max": 1.0}}}, "needs a metric"),
    ({"method": "grid", "parameters": X, "scheduler": {"engine": "wandb"}}, "needs W&B's server"),
    ({"method": "grid", "parameters": X, "command": ["${program}"]}, "there is no program"),
]


def test_files_are_read_as_wandbs_schema_reads_them(tmp_path: Path) -> None:
    for content in GOOD:
        assert fits(content, WANDB_SCHEMA), content
        assert sweep_of(tmp_path, **content).method == content["method"]
    for content, message in [*BAD, *WORSE]:
        assert fits(content, WANDB_SCHEMA) == ((content, message) in WORSE), content
        (tmp_path / "bad.yaml").write_text(yaml.safe_dump({"command": ["crosslight", "run"], **content}))
        with pytest.raises(InputError, match=re.escape(message)):
            read_sweep(tmp_path / "bad.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        read_sweep(tmp_path / "none.yaml")


PAPERS_SWEEPS = sorted(file for paper in exhibits.PAPERS for file in (strict_yaml.HERE / paper / "sweeps").glob("*.yaml"))


def test_sweep_files_of_the_papers_are_wandbs_and_expand() -> None:
    for file in PAPERS_SWEEPS:
        assert fits(yaml.safe_load(file.read_text()), WANDB_SCHEMA), file
        sweep = read_sweep(file)
        points = points_of(sweep, None if sweep.method == "grid" else 3, 0) if sweep.method != "bayes" else []
        for point in points:
            command_of(sweep, point)
        assert points or sweep.method == "bayes"
        assert len({point_id(point) for point in points}) == len(points)


# ------------------------------------------------------------------------------------------------------------------ points


def test_a_grid_is_every_combination_once_in_wandbs_order(tmp_path: Path) -> None:
    parameters = {
        "b": {"values": ["x", "y"]}, "a": {"min": 1, "max": 2}, "z": {"value": True},
        "n": {"parameters": {"q": {"distribution": "q_uniform", "min": 0.1, "max": 0.5, "q": 0.2}, "p": {"values": [3, 3.0]}}},
    }  # fmt: skip
    points = list(grid(sweep_of(tmp_path, parameters=parameters)))
    assert points == [
        {"a": a, "b": b, "n": {"p": 3, "q": q}, "z": True} for a in (1, 2) for b in ("x", "y") for q in (0.1, 0.3)
    ]  # 3 and 3.0 are one value; 0.5 is not reached
    assert points_of(sweep_of(tmp_path, parameters=parameters, run_cap=3), None, 0) == points[:3]
    assert points_of(sweep_of(tmp_path, parameters=parameters, run_cap=3), 5, 0) == points[:5]


def test_draws_follow_their_distributions_and_go_on_where_they_ended(tmp_path: Path) -> None:
    between = {"min": 0.01, "max": 100.0}
    parameters = {
        "u": {"min": 2.0, "max": 4.0}, "l": {"distribution": "log_uniform_values", **between},
        "il": {"distribution": "inv_log_uniform_values", **between}, "i": {"min": 1, "max": 3},
        "q": {"distribution": "q_uniform", "min": 0, "max": 1, "q": 0.1}, "w": {"distribution": "q_normal", "q": 2, "mu": 10},
        "n": {"distribution": "normal", "mu": 5, "sigma": 2}, "ln": {"distribution": "log_normal", "mu": 1},
        "b": {"distribution": "beta", "a": 2, "b": 2}, "p": {"values": ["x", "y"], "probabilities": [0.2, 0.8]},
    }  # fmt: skip
    sweep = sweep_of(tmp_path, method="random", parameters=parameters)
    points = list(islice(draws(sweep, 1), 400))
    columns = {name: [point[name] for point in points] for name in parameters}

    def middle(name: str) -> float:
        return sorted(columns[name])[200]

    assert (middle("u"), middle("n"), middle("b")) == pytest.approx((3.0, 5.0, 0.5), abs=0.3)
    assert [math.log10(middle(name)) for name in ("l", "il")] == pytest.approx([0.0, 0.0], abs=0.4)
    assert math.log(middle("ln")) == pytest.approx(1.0, abs=0.2)
    assert all(2 <= value <= 4 for value in columns["u"])
    assert all(0.01 <= value <= 100 for value in columns["l"] + columns["il"])
    assert set(columns["i"]) == {1, 2, 3}
    assert {str(value) for value in columns["q"]} == {str(step / 10) for step in range(11)}  # no 0.30000000000000004
    assert all(isinstance(value, int) and value % 2 == 0 for value in columns["w"])
    assert columns["p"].count("y") == pytest.approx(320, abs=30)
    assert points_of(sweep, 7, 1) == points[:7]  # a larger count goes on
    assert points_of(sweep, 7, 2) != points[:7]
    few = sweep_of(tmp_path, method="random", parameters={"x": {"values": [1, 2]}})
    assert sorted(point["x"] for point in points_of(few, 5, 0)) == [1, 2]  # equal configurations run once
    with pytest.raises(InputError, match="--count"):
        points_of(few, None, 0)


def test_bayes_without_optuna_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match="pip install optuna"):
        Bayes(sweep_of(tmp_path, **BAYES), 0)


def test_hyperband_stops_whom_wandb_stops() -> None:
    """The example in the documentation of sweeps 0.3.0's hyperband_stopping.py, and the same upside down."""
    runs = {"a": [10, 9], "b": [10, 10], "c": [10, 8, 8], "d": [10, 7, 7], "e": [10, 6, 6]}
    bands = Hyperband((1, 2), 2.0, True)
    assert set(hopeless(bands, False, runs, ["b", "c", "d"])) == {"b"}
    assert set(hopeless(bands, True, {run: [-each for each in values] for run, values in runs.items()}, ["b", "c"])) == {"b"}
    assert hopeless(Hyperband((4,), 3.0, True), False, runs, list(runs)) == {}
    assert hopeless(bands, False, {"a": [1.0, math.nan], "b": [2.0]}, ["b"]) == {}
    strict, kind = (Hyperband((2,), 2.0, how) for how in (True, False))
    later = {"a": [5, 5], "b": [5, 5], "c": [3, 9]}
    assert set(hopeless(strict, False, later, ["c"])) == {"c"}
    assert hopeless(kind, False, later, ["c"]) == {}  # its best is below


# ---------------------------------------------------------------------------------------------------------- a point's command


def test_commands_are_those_of_wandbs_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compared with wandb's own expansion, whose last step is a loop in wandb_agent.py."""
    monkeypatch.setenv("TRAINER", "demo")
    parameters = {
        LR: {"values": [1e-05]}, "flag": {"value": True}, "off": {"value": False}, "list": {"value": [1, "a"]},
        "nest": {"parameters": {"x": {"value": 2}}},
    }  # fmt: skip
    macros = (
        "args", "args_no_equals", "args_no_hyphens", "args_no_boolean_flags", "args_append_hydra", "args_override_hydra",
        "args_json",
    )  # fmt: skip
    for macro in macros:
        command = ["${env}", "${interpreter}", "${program}", "-c", "configs/trainer/${envvar:TRAINER}.yaml", f"${{{macro}}}"]
        sweep = sweep_of(tmp_path, parameters=parameters, command=command, program="main.py")
        (point,) = grid(sweep)
        theirs = create_sweep_command_args({"args": {name: {"value": value} for name, value in point.items()}})
        theirs |= {"env": ["/usr/bin/env"], "interpreter": ["python"], "program": ["main.py"]}
        expected = [
            each for part in create_sweep_command(list(command)) for each in (theirs[part[2:-1]] if part[:2] == "${" else [part])
        ]
        assert command_of(sweep, point, "python") == expected
    with pytest.raises(InputError, match=r"command has \$\{arg\}"):
        command_of(sweep_of(tmp_path, parameters=parameters, command=["crosslight", "${arg}"]), point)


def test_points_become_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CROSSLIGHT_WORLD", raising=False)
    row = tmp_path / "row.yaml"
    row.write_text("name: row")
    common = ["${env}", "crosslight", "run", "-c", "configs/data/world.yaml", "-c", str(row), "${args}"]
    parameters = {LR: {"values": [0.1, 0.2]}, "trainer.devices": {"value": 2}}
    sweep = sweep_of(tmp_path, parameters=parameters, command=common, name="rates")
    one, two = (point_launch(sweep, point, tmp_path, 4) for point in grid(sweep))
    arguments = ("run", "-c", "configs/data/world.yaml", "-c", str(row), f"--{LR}=0.1", "--trainer.devices=2")
    assert one.argv == (*PROGRAM, *arguments, f"--run_dir={one.folder}")
    assert one.folder.name == f"rates-{one.key[:8]}"
    assert one.folder != two.folder
    assert one.environment == {"WANDB_RUN_GROUP": "rates", "CROSSLIGHT_WORLD": str(tmp_path / "worlds" / "target")}
    assert (one.gpus, one.world, one.title) == (2, "target", "lr=0.1 devices=2")
    assert point_launch(sweep, next(grid(sweep)), tmp_path, 0).gpus == 0
    row.write_text("name: another")
    assert point_launch(sweep, next(grid(sweep)), tmp_path, 0).key != one.key  # a changed configuration is a new run
    other = sweep_of(tmp_path, parameters=parameters, command=["${interpreter}", "${program}", "${args}"], program="train.py")
    assert point_launch(other, next(grid(other)), tmp_path, 0).argv[1] == "train.py"
    for entry in (["${interpreter}", "-m", "experiments.cli", "fit"], ["${interpreter}", "${program}", "fit"]):
        sweep = sweep_of(tmp_path, parameters=parameters, command=entry, program="experiments/cli/main.py")
        assert point_launch(sweep, {}, tmp_path, 0).argv[:4] == (*PROGRAM, "fit")
    with pytest.raises(InputError, match="leave --run_dir out"):
        point_launch(sweep_of(tmp_path, parameters=parameters, command=["crosslight", "run", "--run_dir=x"]), {}, tmp_path, 0)


def test_history_is_read_while_it_is_written(tmp_path: Path) -> None:
    assert history(tmp_path, "val/rsum") == []
    (tmp_path / "metrics.csv").write_text("step,val/rsum\n0,\n1,3.5\n2,nan\n3,4.5\n4,9")
    assert history(tmp_path, "val/rsum") == [3.5, 4.5]
    assert history(tmp_path, "other") == []


# ----------------------------------------------------------------------------------------------------------------- command


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
    write_results(launches[0].folder, Results("finished", "fit", "start", "c", now(), seconds=65.0))
    assert run_command("sweep", ["run", "mwa", "--dry-run", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"1 +mwa/start s0 +finished +65 s", printed)
    assert re.search(r"2 +mwa/one s0 +waiting +1", printed)
    assert "3 runs" in printed
    assert "1 finished" in printed
    assert not (tmp_path / "logs").exists()
    assert run_command("sweep", ["status", str(tmp_path)]) == 0
    assert re.search(r"mwa-start-s0-\w+ +finished", capsys.readouterr().out)
    (tmp_path / "a-broken").mkdir()
    (tmp_path / "a-broken" / "results.json").write_text("{")
    assert run_command("sweep", ["status", str(tmp_path)]) == 1
    rows = capsys.readouterr().out
    assert re.search(r"a-broken +failed .*is not JSON", rows)
    assert "1 failed, 1 finished" in rows
    full = exhibit_launches("mwa", "full", [0, 1], tmp_path)
    assert summed_cost(full) == (
        "still to run: 4: 1.0 A100-hours, up to 30 GB of memory a device, 20 GB of data and weights, 2 runs without an estimate"
    )
    read = [("coco", "base", 21), ("coco", "large", 23), ("coco_captions", "gpt2", 22), ("flickr30k", "base", 8)]
    launches = [replace(full[0], configs=(f"configs/data/{data}.yaml", f"configs/model/{model}.yaml"), cost=Cost(1, disk_gb=size))
             for data, model, size in read]  # fmt: skip
    assert "31 GB of data and weights" in summed_cost(launches)  # COCO once
    for arguments, message in {
        ("run", "mwa/table9"): "no exhibit, run, paper or sweep file 'mwa/table9'",
        ("run", "none.yaml"): "none.yaml does not exist",
        ("run", "mwa", "--count", "3"): "--count is of sweep files",
        ("run", "mwa/two", "--scale", "full"): "no run at scale full",
        ("start", "mwa"): "invalid choice",
    }.items():
        with pytest.raises(InputError, match=message):
            run_command("sweep", list(arguments))


def test_a_sweep_files_dry_run_lists_its_points(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = sweep_of(tmp_path, parameters={LR: {"values": [0.1, 0.2]}, "seed_everything": {"values": [0, 1]}})
    assert run_command("sweep", ["run", str(sweep.file), "--dry-run", "--count", "3", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert re.findall(r"lr=\S+ seed_everything=\d", printed) == [f"lr={lr} seed_everything={seed}" for lr, seed in
                                                                   ((0.1, 0), (0.1, 1), (0.2, 0))]  # fmt: skip
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="--seeds is of exhibits"):
        run_command("sweep", ["run", str(sweep.file), "--seeds", "0"])


# A run that validates three times, `x` each time, or for ever where x is below 0; its metric is not there where x is 5.
PROGRAM_OF_POINTS = """
import json, os, signal, sys, time
options = dict(part[2:].split("=", 1) for part in sys.argv[1:])
folder, x = options["run_dir"], float(options["x"])
os.makedirs(folder)
def note(status):
    with open(folder + "/results.json", "w") as file:
        json.dump({"schema": "crosslight.results/2", "status": status, "command": "run", "name": "n", "config_hash": "c",
                   "started": "2026-11-21T15:32:55+00:00"}, file)
def stopped(*_):
    note("interrupted")
    sys.exit(130)
signal.signal(signal.SIGTERM, stopped)
with open(folder + "/metrics.csv", "w") as file:
    file.write("step,val/rsum" + chr(10) + "".join("%d,%g" % (step, x) + chr(10) for step in range(3) if x != 5))
while x < 0:
    time.sleep(0.01)
note("finished")
"""


def test_a_search_learns_from_its_points_stops_the_hopeless_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[list[float], list[float | None]]] = []

    class Engine:
        def __init__(self, sweep: Sweep, seed: int) -> None:
            self.seed = seed

        def suggest(self, points: list[dict[str, float]], values: list[float | None]) -> dict[str, float]:
            asked.append(([point["x"] for point in points], values))
            return {"x": [3.0, 5.0, -1.0, 2.0][len(points)]}

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr("experiments.sweep.points.Bayes", Engine)
    monkeypatch.setattr("experiments.sweep.points.Runner", partial(Runner, every=0.02))
    monkeypatch.setattr("experiments.sweep.points.visible_gpus", lambda: ["0"])
    monkeypatch.delenv("CROSSLIGHT_WORLD", raising=False)
    worlds: list[Path] = []
    monkeypatch.setattr("experiments.sweep.runner.write_miniature_world", lambda folder, style: worlds.append(folder))
    (tmp_path / "program.py").write_text(PROGRAM_OF_POINTS)
    content = {
        **BAYES, "run_cap": 3, "early_terminate": {"type": "hyperband", "min_iter": 2}, "program": str(tmp_path / "program.py"),
        "command": ["${interpreter}", "-S", "${program}", "--data=configs/data/world.yaml", "${args}"],
    }  # fmt: skip
    sweep = sweep_of(tmp_path, **content)
    assert run_command("sweep", ["run", str(sweep.file), "--out", str(tmp_path / "out")]) == 0
    assert asked == [([], []), ([3.0], [3.0]), ([3.0, 5.0], [3.0, 3.0])]  # no metric: the worst of all
    assert "2 finished, 1 stopped_early" in capsys.readouterr().err
    assert run_command("sweep", ["run", str(sweep.file), "--out", str(tmp_path / "out"), "--count", "4"]) == 0
    assert set(worlds) == {tmp_path / "out" / "worlds" / "target"}
    assert asked[3:] == [([3.0, 5.0, -1.0], [3.0, -1.0, -1.0])]
    assert "3 finished, 1 stopped_early" in capsys.readouterr().err
    assert run_command("sweep", ["status", str(tmp_path / "out")]) == 0
    assert "3 finished, 1 stopped_early" in capsys.readouterr().out


def test_leaves_are_sorted_on_every_level(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, parameters={"b": {"value": 1}, "a": {"parameters": {"d": {"value": 1}, "c": {"value": 1}}}})
    assert [path for path, _ in leaves(sweep.parameters)] == [("a", "c"), ("a", "d"), ("b",)]
    assert search.point_id({"a": 1.0}) == search.point_id({"a": 1}) != search.point_id({"a": True})
