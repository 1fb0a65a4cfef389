"""W&B sweep files: read as strictly as W&B's schema, and a point's command as its agent starts it."""

from __future__ import annotations

import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from sweeps import BAYES, LR, sweep_of

from datamodules.errors import InputError
from experiments.papers import strict_yaml
from experiments.papers.schema import PAPERS
from experiments.sweep import search
from experiments.sweep.points import points_of
from experiments.sweep.request import Request
from experiments.sweep.search import grid, point_id
from experiments.sweep.sweep_file import command_of, leaves, read_sweep

WANDB_SCHEMA = json.loads((Path(__file__).parents[2] / "recordings" / "wandb_sweep_schema.json").read_text())  # sweeps 0.3.0


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
    ({"model": {"class_path": "x.Y"}}, "bad.yaml: W&B's schema has no key model; there are"),
    ({"trainer": {"max_epochs": 1}}, "It is a configuration: crosslight run -c "),
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


def broken(**entries: Any) -> str:
    return yaml.safe_dump({"method": "random", "run_cap": 5, "command": ["crosslight", "run", "${args}"], **entries})


def of(**parameter: Any) -> str:
    return broken(parameters={"x": parameter})


HEAD = "method: grid\ncommand: [crosslight, run]\n"
BOMB = "".join(f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in itertools.pairwise("abcdefghij"))
HYPERBAND = {"metric": {"name": "m", "goal": "maximize"}, "parameters": X}


BROKEN: dict[str, tuple[str, str]] = {  # by what is wrong: the file, and what is said of it
    "infinite": (of(values=[1.0, math.inf]), r"parameters.x.values\[1\] is inf"),
    "not a number": (of(value=math.nan), "parameters.x.value is nan"),
    "infinite text": (of(values=["-inf"]), "parameters.x has '-inf'"),
    "infinite bound": (of(min=0.0, max=math.inf), "parameters.x.max is inf"),
    "endless draws": (of(min=-1e308, max=1e308), "within 1e[+]100"),
    "huge draws": (of(distribution="log_normal", sigma=1e6), "a log_normal draw is no finite number"),
    "no beta": (of(distribution="beta", a=0, b=0), "so are a and b"),
    "digits": (of(values=[10**400]), "is a number of about 398 digits"),
    "more digits": (f"{HEAD}parameters: {{x: {{value: {'9' * 5000}}}}}", "cannot be read"),
    "nul": (of(value="a\0b"), "which no command line can hold"),
    "reference": (of(value="${envvar:HOME}"), "a variable stands in the command alone"),
    "date": (f"{HEAD}parameters: {{x: {{values: [2020-01-01]}}}}", "write it in quotes"),
    "binary": (f"{HEAD}parameters: {{x: {{value: !!binary aGVsbG8=}}}}", "is a bytes"),
    "set": (f"{HEAD}parameters: {{x: {{value: !!set {{a, b}}}}}}", "is a set"),
    "circle": (f"{HEAD}parameters: &a {{x: *a}}", "contains itself"),
    "circle of values": (f"{HEAD}parameters: {{x: {{values: &v [1, *v]}}}}", "contains itself"),
    "bomb": (f"{HEAD}a: &a [x, x, x]\n{BOMB}parameters: {{x: {{value: *j}}}}", "more than 100,000 values|too many|aliases"),
    "deep": (f"{HEAD}parameters: {'{x: ' * 3000}1{'}' * 3000}", "cannot be read|too deep"),
    "object": (f"{HEAD}parameters: {{x: {{value: !!python/object/apply:os.getpid []}}}}", "could not determine a constructor"),
    "a long range": (of(min=1, max=10**12).replace("random", "grid").replace("run_cap: 5\n", ""), "1,000,000,000,000 points"),
    "fine steps": (of(distribution="q_uniform", min=0.0, max=1.0, q=1e-300), "raise it"),
    "equal steps": (of(distribution="q_uniform", min=1e9, max=1e9 + 1, q=1e-8).replace("random", "grid"), "there twice"),
    "run_cap": (broken(run_cap=10**9, parameters=X), "it is 1 to 10,000"),
    "above": (broken(name="..", parameters=X), "name is '..'"),
    "line": (broken(name="a\nb", parameters=X), "name is"),
    "long": (broken(name="x" * 300, parameters=X), "name is"),
}


@pytest.mark.parametrize("wrong", BROKEN)
def test_what_has_no_end_or_is_no_value_is_named(wrong: str, tmp_path: Path) -> None:
    content, message = BROKEN[wrong]
    (tmp_path / "bad.yaml").write_text(content)
    with pytest.raises(InputError, match=message) as error:
        points_of(read_sweep(tmp_path / "bad.yaml"), None, 0)
    assert "bad.yaml" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_long_grid_is_not_laid_out(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, parameters={"a": {"min": 1, "max": 10**12}, "b": {"values": [1, 2]}})
    assert points_of(sweep, 3, 0) == [{"a": 1, "b": 1}, {"a": 1, "b": 2}, {"a": 2, "b": 1}]
    with pytest.raises(InputError, match="the grid has 2,000,000,000,000 points"):
        points_of(sweep, None, 0)
    with pytest.raises(InputError, match="--count is 10000000"):
        Request("run", "x.yaml", count=10_000_000)
    endless = {"max_iter": 10**12, "s": 10**9}, {"min_iter": 10**12, "eta": 1e30}
    for entry in endless:
        stopping = sweep_of(tmp_path, **HYPERBAND, early_terminate={"type": "hyperband", **entry}).early_terminate
        assert stopping is not None
        assert 0 < len(stopping.bands) < 100


def test_files_are_read_as_wandbs_schema_reads_them(tmp_path: Path) -> None:
    for content in GOOD:
        assert fits(content, WANDB_SCHEMA), content
        assert sweep_of(tmp_path, **content).method == content["method"]
    for content, message in [*BAD, *WORSE]:
        assert fits(content, WANDB_SCHEMA) == ((content, message) in WORSE), content
        (tmp_path / "bad.yaml").write_text(yaml.safe_dump({"command": ["crosslight", "run"], **content}))
        with pytest.raises(InputError, match=re.escape(message)):
            read_sweep(tmp_path / "bad.yaml")
    with pytest.raises(InputError, match=r"none\.yaml does not exist"):
        read_sweep(tmp_path / "none.yaml")


PAPERS_SWEEPS = sorted(file for paper in PAPERS for file in (strict_yaml.HERE / paper / "sweeps").glob("*.yaml"))


def test_sweep_files_of_the_papers_are_wandbs_and_expand() -> None:
    for file in PAPERS_SWEEPS:
        assert fits(yaml.safe_load(file.read_text()), WANDB_SCHEMA), file
        sweep = read_sweep(file)
        points = points_of(sweep, None if sweep.method == "grid" else 3, 0) if sweep.method != "bayes" else []
        for point in points:
            command_of(sweep, point)
        assert points or sweep.method == "bayes"
        assert len({point_id(point) for point in points}) == len(points)


def test_commands_are_those_of_wandbs_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compared with wandb's own expansion, whose last step is a loop in wandb_agent.py."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args  # seconds, of all who collect

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


def test_leaves_are_sorted_on_every_level(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, parameters={"b": {"value": 1}, "a": {"parameters": {"d": {"value": 1}, "c": {"value": 1}}}})
    assert [path for path, _ in leaves(sweep.parameters)] == [("a", "c"), ("a", "d"), ("b",)]
    assert search.point_id({"a": 1.0}) == search.point_id({"a": 1}) != search.point_id({"a": True})
