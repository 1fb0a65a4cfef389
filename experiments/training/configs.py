"""The YAMLs that come with the package, and the files that `-c` names."""

from __future__ import annotations

import difflib
from importlib import resources
from pathlib import Path

_SECTIONS = {"trainer", "data", "model", "checkpoint", "wandb"}
_NO_OPTIONS = (
    "runs.yaml", "numbers.yaml", "inputs.yaml", "miniatures.yaml", "explanations.yaml", "devices.yaml", "known_counts.yaml",
)  # fmt: skip


def packaged_configs() -> list[str]:
    """Names of the YAMLs that come with the package, as `-c` takes them: configs/..., experiments/... (What the papers print,
    their exhibits, runs and sweeps, and what is shipped, are YAMLs too, and no configurations of a run.)"""
    names = []
    for package in ("configs", "experiments"):
        root = Path(str(resources.files(package)))
        files = [path for path in sorted(root.rglob("*.yaml")) if path.name not in _NO_OPTIONS]
        files = [path for path in files if path.parent.name not in ("exhibits", "sweeps")]
        names += [f"{package}/{path.relative_to(root)}" for path in files]
    return names


def packaged(name: str) -> Path | None:
    """The file of this name, configs/... or experiments/..., that comes with the package; None where there is none."""
    package, _, rest = name.partition("/")
    if package not in ("configs", "experiments"):
        return None
    file = Path(str(resources.files(package))) / rest
    return file if file.is_file() else None


def packaged_text(name: str) -> str:
    """What is in a packaged YAML."""
    file = packaged(name)
    assert file is not None
    return file.read_text(encoding="utf-8")


def find_configs(arguments: list[str]) -> list[str]:
    """Replace the file after each -c/--config by the packaged one when there is no such file here.

    The files come first in the result, in their order: an option of the command line wins wherever it stands.

    Raises:
        InputError: Neither exists, or it is no YAML of options: see `read_yaml`.
    """
    from datamodules.errors import InputError

    def find(name: str) -> str:
        if Path(name).exists() or not name.endswith((".yaml", ".yml")):
            _require_options(Path(name))
            return name
        if (file := packaged(name)) is not None:
            return str(file)
        close = difflib.get_close_matches(name, packaged_configs(), 2, 0.5)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        raise InputError(f"-c {name}: there is no such file here, and none of that name is packaged.{hint}")

    files: list[str] = []
    options: list[str] = []
    expect = False
    for argument in arguments:
        if expect:
            files.append(find(argument))
            expect = False
        elif argument in ("-c", "--config"):
            files.append(argument)
            expect = True
        elif argument.startswith("--config="):
            files.append("--config=" + find(argument.removeprefix("--config=")))
        else:
            options.append("--help" if argument == "--help-all" else argument)
    return files + options


def _require_options(file: Path) -> None:
    from datamodules.errors import InputError, shown
    from datamodules.files.text import read_text
    from datamodules.files.yaml_file import parse_yaml

    content = parse_yaml(read_text(file, "options"), f"-c {file}")
    if not isinstance(content, dict):
        raise InputError(f"-c {file}: holds no options. Write `key: value` lines, or leave the file out.")
    for section in _SECTIONS & content.keys():
        if not isinstance(content[section], dict):  # jsonargparse drops what stood there, or all that others say of it
            raise InputError(
                f"-c {file}: {section} is {shown(content[section])}, but has options of its own. Write them below it as "
                "`key: value` lines, or leave it out."
            )
