"""W&B sweep configurations: reading them strictly, and the command line that `wandb agent` would start for a point.

The keys, their types and the distributions are those of W&B's JSON schema and of the checks beside it (package sweeps 0.3.0,
config/schema.json and config/cfg.py, MIT licence; a copy of the schema is in tests/recordings and is compared with this reader).
The command is put together as wandb 0.31 does it (wandb/wandb_agent.py, wandb/sdk/launch/sweeps/utils.py).
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from datamodules.errors import InputError, shown
from datamodules.files.atomic import write_atomically
from datamodules.files.references import REFERENCE, look_up
from experiments.papers.strict_yaml import read_yaml

Point = dict[str, Any]  # values by parameter, nested as the file nests them


@dataclass(frozen=True)
class Parameter:
    """A parameter's distribution and what it takes: value, values, probabilities, min, max, q, mu, sigma, a, b."""

    distribution: str
    settings: Mapping[str, Any]


Parameters = dict[str, "Parameter | Parameters"]


@dataclass(frozen=True)
class Hyperband:
    """`early_terminate`: iterations (validations) at which runs are compared, and the share 1/eta that goes on."""

    bands: tuple[int, ...]
    eta: float
    strict: bool


@dataclass(frozen=True)
class Sweep:
    """A sweep file. `metric` is None where it names none; `cap` is `run_cap`."""

    file: Path
    name: str
    method: Literal["grid", "random", "bayes"]
    parameters: Parameters
    command: tuple[str, ...]
    program: str | None
    metric: str | None = None
    goal: Literal["minimize", "maximize"] = "minimize"
    early_terminate: Hyperband | None = None
    cap: int | None = None


_NUMBER, _TEXT, _INTEGER, _LIST = (int, float), (str,), (int,), (list,)
_Q, _NORMAL, _BETA = {"q": 1.0}, {"mu": 0.0, "sigma": 1.0}, {"a": 1, "b": 1}
# distribution -> settings that it needs, and those that it may have with their defaults
_DISTRIBUTIONS: dict[str, tuple[set[str], dict[str, Any]]] = {
    "constant": ({"value"}, {}),
    "categorical": ({"values"}, {}),
    "categorical_w_probabilities": ({"values", "probabilities"}, {}),
    "uniform": ({"min", "max"}, {}),
    "int_uniform": ({"min", "max"}, {}),
    "q_uniform": ({"min", "max"}, _Q),
    "log_uniform_values": ({"min", "max"}, {}),
    "inv_log_uniform_values": ({"min", "max"}, {}),
    "q_log_uniform_values": ({"min", "max"}, _Q),
    "normal": (set(), _NORMAL),
    "log_normal": (set(), _NORMAL),
    "q_normal": (set(), {**_NORMAL, **_Q}),
    "q_log_normal": (set(), {**_NORMAL, **_Q}),
    "beta": (set(), _BETA),
    "q_beta": (set(), {**_BETA, **_Q}),
}
_DEPRECATED = {"log_uniform", "inv_log_uniform", "q_log_uniform"}  # their bounds are exponents of e
_KEYS: dict[str, tuple[type, ...]] = {
    "method": _TEXT, "parameters": (dict,), "metric": (dict,), "early_terminate": (dict,), "command": _LIST, "program": _TEXT,
    "name": _TEXT, "description": _TEXT, "project": _TEXT, "entity": _TEXT, "run_cap": _INTEGER, "controller": (dict,),
    "apiVersion": _TEXT, "kind": _TEXT, "job": _TEXT, "image_uri": _TEXT, "scheduler": (dict,), "metrics": _LIST,
}  # fmt: skip
_METRIC: dict[str, tuple[type, ...]] = {
    "name": _TEXT, "goal": _TEXT, "target": _NUMBER, "impute": _TEXT, "impute_while_running": _TEXT,
}  # fmt: skip
_HYPERBAND: dict[str, tuple[type, ...]] = {
    "type": _TEXT, "min_iter": _INTEGER, "max_iter": _INTEGER, "s": _NUMBER, "eta": _NUMBER, "strict": (bool,),
}  # fmt: skip
_PARAMETER_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
MOST_POINTS = 10_000  # of a sweep; all of them are laid out before the first one starts
_LARGEST = 1e100  # bounds of a range: products and differences of such numbers are finite
_FINEST = 1e9  # steps of a q_uniform
_LONGEST_RUN = 60.0  # the logarithm of more validations than any run has
_LONGEST, _DEEPEST, _MOST_VALUES = 100, 20, 100_000  # characters of a name, mappings in mappings, values of a file
_LARGEST_BITS = 300  # of a whole number
_DEFAULT_COMMAND = ("${env}", "${interpreter}", "${program}", "${args}")


# ----------------------------------------------------------------------------------------------------------------- reading


def read_sweep(file: Path) -> Sweep:
    """A sweep file.

    Raises:
        InputError: It cannot be read, is no valid W&B sweep configuration, or asks for what only W&B's server does.
    """
    content = read_yaml(file)
    _require_plain(file, "", content, (), {})
    _check_keys(file, "", content, _KEYS)
    for served in ("scheduler", "metrics", "job", "image_uri"):
        if served in content:
            raise InputError(f"{file}: {served} needs W&B's server: use `wandb sweep` and `wandb agent`, or leave it out.")
    method = content.get("method")
    if method not in ("grid", "random", "bayes"):
        raise InputError(f"{file}: method is {method!r}; there are grid, random and bayes.")
    if content.get("kind", "sweep") != "sweep":
        raise InputError(f"{file}: kind is {content['kind']!r}; it can only be sweep.")
    if content.get("controller", {"type": "cloud"}).get("type") not in ("local", "cloud"):
        raise InputError(f"{file}: controller.type is local or cloud.")
    command = content.get("command", list(_DEFAULT_COMMAND))
    if "program" not in content and "${program}" in command:
        raise InputError(
            f"{file}: there is no program, and the command asks for it: give one, or a command without ${{program}}."
        )
    if not 1 <= content.get("run_cap", 1) <= MOST_POINTS:
        raise InputError(f"{file}: run_cap is {content['run_cap']}; it is 1 to {MOST_POINTS:,}.")
    if not content.get("parameters"):
        raise InputError(f"{file}: there are no parameters to sweep over.")
    parameters = _parameters(file, "parameters", content["parameters"])
    if method == "grid":
        _require_grid(file, parameters)
    metric = _metric(file, content["metric"]) if "metric" in content else {}
    stopping = _hyperband(file, content["early_terminate"]) if "early_terminate" in content else None
    for asks, wanted in ((method == "bayes", "method: bayes"), (stopping is not None, "early_terminate")):
        if asks and not metric:
            raise InputError(f"{file}: {wanted} needs a metric with its name and goal.")
    name = content.get("name", file.stem)
    if name.strip(". ") == "" or not name.isprintable() or len(name) > _LONGEST:
        raise InputError(f"{file}: name is {shown(name)}; folders are called so: 1 to {_LONGEST} characters that can be printed.")
    return Sweep(
        file=file, name=name, method=method, parameters=parameters, command=tuple(map(str, command)),
        program=content.get("program"), metric=metric.get("name"), goal=metric.get("goal", "minimize"), early_terminate=stopping,
        cap=content.get("run_cap"),
    )  # fmt: skip


def _require_plain(file: Path, where: str, content: Any, above: tuple[int, ...], sizes: dict[int, int]) -> int:
    """Texts, finite numbers, true and false, in lists and mappings: what a command line can say and a folder can note. YAML has
    dates, sets, binary data and circles too, and a few lines of it can stand for billions of values.

    Args:
        file: The sweep file.
        where: Place of the content, for errors.
        content: Of it.
        above: Ids of what it is in.
        sizes: Values in each list and mapping that has been looked at, by id: an alias is looked at once, and counts each time.

    Raises:
        InputError: Something else is in the file.
    """
    place = f"{file}: {where or 'the file'}"
    if isinstance(content, (dict, list)):
        if id(content) in above or len(above) >= _DEEPEST:
            raise InputError(f"{place} contains itself, or is more than {_DEEPEST} levels deep.")
        if id(content) not in sizes:
            size = 1
            for name, each in content.items() if isinstance(content, dict) else enumerate(content):
                if not isinstance(name, (str, int)):
                    raise InputError(f"{place} has the key {shown(name)}, which is no text.")
                below = f"{where}[{name}]" if isinstance(content, list) else f"{where}.{name}" if where else str(name)
                size += _require_plain(file, below, each, (*above, id(content)), sizes)
                if size > _MOST_VALUES:
                    raise InputError(f"{place} stands for more than {_MOST_VALUES:,} values.")
            sizes[id(content)] = size
        return sizes[id(content)]
    if isinstance(content, float):
        if not math.isfinite(content):
            raise InputError(f"{place} is {content}; a point of a sweep is a finite number.")
    elif isinstance(content, int):
        if content.bit_length() > _LARGEST_BITS:
            raise InputError(f"{place} is a number of about {content.bit_length() * 3 // 10} digits.")
    elif isinstance(content, str):
        if "\0" in content or any("\ud800" <= letter <= "\udfff" for letter in content):
            raise InputError(f"{place} is {shown(content)}, which no command line can hold.")
    elif content is not None:
        hint = " (YAML reads 2020-01-01 as a date: write it in quotes)" if hasattr(content, "isoformat") else ""
        raise InputError(f"{place} is a {type(content).__name__}, which is neither a text nor a number{hint}.")
    return 1


def _check_keys(file: Path, where: str, content: Mapping[str, Any], known: Mapping[str, tuple[type, ...]]) -> None:
    for key, value in content.items():
        if key not in known:
            is_of_a_run = not where and key in ("model", "data", "trainer")
            of_a_run = f" It is a configuration: crosslight run -c {file}." if is_of_a_run else ""
            raise InputError(f"{file}: W&B's schema has no key {where}{key}; there are {', '.join(known)}.{of_a_run}")
        right = isinstance(value, known[key]) and not (isinstance(value, bool) and bool not in known[key])
        if not right:
            wanted = " or ".join(kind.__name__ for kind in known[key])
            raise InputError(f"{file}: {where}{key} is {shown(value)}, which is no {wanted}.")


def _metric(file: Path, content: dict[str, Any]) -> dict[str, Any]:
    _check_keys(file, "metric.", content, _METRIC)
    if "name" not in content:
        raise InputError(f"{file}: metric needs a name, such as val/rsum.")
    choices = {
        "goal": ("minimize", "maximize"), "impute": ("latest", "best", "worst"),
        "impute_while_running": ("latest", "best", "worst", "false"),
    }  # fmt: skip
    for key, allowed in choices.items():
        if content.get(key, allowed[0]) not in allowed:
            raise InputError(f"{file}: metric.{key} is {content[key]!r}; there are {', '.join(allowed)}.")
    return content


def _hyperband(file: Path, content: dict[str, Any]) -> Hyperband:
    _check_keys(file, "early_terminate.", content, _HYPERBAND)
    if content.get("type") != "hyperband":
        raise InputError(f"{file}: early_terminate.type is {content.get('type')!r}; there is hyperband.")
    eta = content.get("eta", 3)
    if eta <= 1 or content.get("min_iter", 1) < 1:
        raise InputError(f"{file}: early_terminate: eta is above 1, min_iter at least 1.")
    if "max_iter" in content and "s" in content:
        powers = range(1, 1 + min(int(content["s"]), int(math.log(max(content["max_iter"], 1), eta)) + 1))
        bands = sorted(band for power in powers if (band := int(content["max_iter"] / eta**power)) >= 1)
    elif "min_iter" in content:
        first = content["min_iter"]
        bands = [int(first * eta**power) for power in range(100) if power * math.log(eta) < _LONGEST_RUN]
    else:
        raise InputError(f"{file}: early_terminate needs min_iter, or max_iter and s.")
    if not bands:
        raise InputError(f"{file}: early_terminate has no iteration to compare at: raise max_iter or s, or lower eta.")
    return Hyperband(tuple(bands), eta, content.get("strict", True))


def _parameters(file: Path, where: str, content: Any) -> Parameters:
    if not isinstance(content, dict) or not content:
        raise InputError(f"{file}: {where} is no mapping of parameters.")
    found: Parameters = {}
    for name, entry in content.items():
        place = f"{where}.{name}"
        if not isinstance(name, str) or not _PARAMETER_NAME.fullmatch(name):
            raise InputError(f"{file}: {place}: a parameter's name is made of letters, digits, '_', '.' and '-'.")
        if not isinstance(entry, dict):
            raise InputError(f"{file}: {place} is {shown(entry)}; write {name}: {{value: {shown(entry)}}}.")
        if "parameters" in entry:
            if len(entry) > 1:
                raise InputError(f"{file}: {place} has nested parameters, so it can have nothing else.")
            found[name] = _parameters(file, f"{place}.parameters", entry["parameters"])
        else:
            found[name] = _parameter(file, place, entry)
    return found


def _parameter(file: Path, place: str, entry: dict[str, Any]) -> Parameter:
    kind = entry.get("distribution") or _implied(entry)
    if kind in _DEPRECATED:
        raise InputError(f"{file}: {place}: {kind} is deprecated, its bounds are exponents of e: use {kind}_values.")
    if kind not in _DISTRIBUTIONS:
        raise InputError(f"{file}: {place}: there is no distribution {kind!r}; there are {', '.join(_DISTRIBUTIONS)}.")
    needed, optional = _DISTRIBUTIONS[kind]
    settings = {key: value for key, value in entry.items() if key != "distribution"}
    if missing := needed - settings.keys():
        raise InputError(f"{file}: {place}: {kind} needs {', '.join(sorted(missing))}.")
    if unknown := settings.keys() - needed - optional.keys():
        raise InputError(f"{file}: {place}: {kind} takes no {', '.join(sorted(unknown))}.")
    settings = {**optional, **settings}
    for key in settings.keys() - {"value", "values", "probabilities"}:
        if not isinstance(settings[key], _NUMBER) or isinstance(settings[key], bool):
            hint = " (YAML reads 1e-4 as a text; write 1.0e-4)" if isinstance(settings[key], str) else ""
            raise InputError(f"{file}: {place}.{key} is {settings[key]!r}, which is no number{hint}.")
    _check_settings(file, place, kind, settings)
    return Parameter(kind, settings)


def _implied(entry: Mapping[str, Any]) -> str | None:
    """The distribution of a parameter that names none, as W&B takes it."""
    if "value" in entry:
        return "constant"
    if "values" in entry:
        return "categorical_w_probabilities" if "probabilities" in entry else "categorical"
    if {"min", "max"} <= entry.keys():
        return "int_uniform" if all(_is_whole(entry[key]) for key in ("min", "max")) else "uniform"
    return None


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_settings(file: Path, place: str, kind: str, settings: Mapping[str, Any]) -> None:
    where = f"{file}: {place}"
    values = [settings["value"]] if kind == "constant" else settings.get("values", [None])
    if not isinstance(values, list) or not values:
        raise InputError(f"{where}.values is {values!r}, which is no list of values.")
    for value in values:
        if isinstance(value, str) and value.strip().lower().lstrip("+-.") in ("inf", "infinity", "nan"):
            raise InputError(f"{where} has {value!r}; a point of a sweep is a finite number.")
        if REFERENCE.search(str(value)):
            raise InputError(f"{where} has {shown(value)}: points are written down, and a variable stands in the command alone.")
    if ("value" in settings or "values" in settings) and None in values:
        raise InputError(f"{where}: wandb agent hands null on as None, which no option takes: write 'null' in quotes.")
    if "probabilities" in settings:
        shares = settings["probabilities"]
        if not isinstance(shares, list) or len(shares) != len(values) or not all(isinstance(each, _NUMBER) for each in shares):
            raise InputError(f"{where}.probabilities are not as many numbers as there are values.")
        if min(shares) < 0 or not math.isclose(sum(shares), 1.0, rel_tol=1e-5, abs_tol=1e-8):
            raise InputError(f"{where}.probabilities do not sum to 1.")
    if "min" in settings:
        low, high = settings["min"], settings["max"]
        if low >= high:
            raise InputError(f"{where}: min {low} is not less than max {high}.")
        if abs(low) > _LARGEST or abs(high) > _LARGEST:
            raise InputError(f"{where}: min and max lie within {_LARGEST:g}.")
        if kind.endswith("_values") and low <= 0:
            raise InputError(f"{where}: min of {kind} is above 0.")
        if kind == "int_uniform" and not (_is_whole(low) and _is_whole(high)):
            raise InputError(f"{where}: min and max of int_uniform are whole numbers.")
    if kind == "q_uniform" and (settings["max"] - settings["min"]) / _FINEST > settings["q"] > 0:
        raise InputError(f"{where}: q is {settings['q']}, which makes more than {_FINEST:g} steps: raise it.")
    if settings.get("q", 1) <= 0 or settings.get("sigma", 0) < 0 or min(settings.get(key, 1) for key in ("a", "b")) <= 0:
        raise InputError(f"{where}: q is above 0, so are a and b, and sigma is not negative.")


def _require_grid(file: Path, parameters: Parameters, where: str = "parameters") -> None:
    for name, entry in parameters.items():
        if isinstance(entry, dict):
            _require_grid(file, entry, f"{where}.{name}.parameters")
        elif entry.distribution not in ("constant", "categorical", "int_uniform", "q_uniform"):
            raise InputError(
                f"{file}: {where}.{name}: a grid takes value, values, int_uniform and q_uniform, and not {entry.distribution}; "
                "give values, or method: random."
            )


# ----------------------------------------------------------------------------------------------------------------- a point


def leaves(parameters: Parameters, above: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Parameter]]:
    """All parameters by their path, in W&B's order: sorted by name on every level."""
    found: list[tuple[tuple[str, ...], Parameter]] = []
    for name, entry in sorted(parameters.items()):
        path = (*above, name)
        found += leaves(entry, path) if isinstance(entry, dict) else [(path, entry)]
    return found


def nested(values: Mapping[tuple[str, ...], Any]) -> Point:
    """Values by path as mappings in mappings."""
    point: Point = {}
    for path, value in values.items():
        place = point
        for name in path[:-1]:
            place = place.setdefault(name, {})
        place[path[-1]] = value
    return point


def command_of(
    sweep: Sweep, point: Point, interpreter: str = sys.executable, json_file: Path | None = None, references: bool = False
) -> list[str]:
    """The command line that `wandb agent` starts for a point. It says `python` for the interpreter, which is the right one only
    in an activated environment. `json_file` is the file of ${args_json_file}, which `write_json_file` writes. With `references`
    ${envvar:NAME} stays, for whoever writes it down.

    Raises:
        InputError: An unknown macro, or one whose file has no place.
    """
    given = [f"{name}={value}" for name, value in point.items()]
    macros: dict[str, Callable[[], Sequence[str]]] = {
        "env": lambda: ["/usr/bin/env"],
        "interpreter": lambda: [interpreter],
        "program": lambda: [str(sweep.program)],
        "args": lambda: [f"--{pair}" for pair in given],
        "args_no_equals": lambda: [part for name, value in point.items() for part in (f"--{name}", str(value))],
        "args_no_hyphens": lambda: given,
        "args_no_boolean_flags": lambda: [
            f"--{name}" if value is True else f"--{name}={value}" for name, value in point.items() if value is not False
        ],
        "args_append_hydra": lambda: [f"+{pair}" for pair in given],
        "args_override_hydra": lambda: [f"++{pair}" for pair in given],
        "args_json": lambda: [json.dumps(point)],
        "args_json_file": lambda: [_named(json_file)],
    }
    command: list[str] = []
    for part in sweep.command:
        text = part if references else look_up(part)
        if text.startswith("${") and text.endswith("}") and not REFERENCE.search(text):
            if text[2:-1] not in macros:
                raise InputError(f"{sweep.file}: command has {text}; there are {', '.join(macros)} and envvar:NAME.")
            command += macros[text[2:-1]]()
        else:
            command.append(text)
    return command


def _named(file: Path | None) -> str:
    if file is None:
        raise InputError("the command has ${args_json_file}, and there is no folder for that file here.")
    return str(file)


def write_json_file(sweep: Sweep, point: Point, file: Path) -> None:
    """The file of ${args_json_file}, where the command asks for it."""
    if "${args_json_file}" in sweep.command:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(point))
