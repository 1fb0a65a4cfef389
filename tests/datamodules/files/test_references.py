"""${envvar:NAME} is looked up where a process starts, and nothing that is written down has its value."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from datamodules.errors import InputError
from datamodules.files.references import conceal, look_up, reveal, starting, variable
from experiments.cli.main import main, run_command
from experiments.runs.identity import config_hash
from experiments.sweep import points

SECRET = "hunter2-hunter2"


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", SECRET)
    monkeypatch.setenv("SHORT", "demo")


def test_a_value_is_looked_up_and_concealed_again() -> None:
    assert look_up("--key=${envvar:MY_TOKEN}/${envvar:SHORT}") == f"--key={SECRET}/demo"
    with pytest.raises(InputError, match=r"\$\{envvar:NOT_SET\} is named, and there is no such environment variable"):
        look_up("--key=${envvar:MY_TOKEN}/${envvar:NOT_SET}")
    config = {"a": [f"x {SECRET} y", 3], "b": "demo", "class_path": f"{SECRET}.Class"}  # what could not be imported again
    assert conceal(config) == {"a": ["x ${envvar:MY_TOKEN} y", 3], "b": "demo", "class_path": f"{SECRET}.Class"}
    assert reveal(conceal(config)) == config
    assert variable("MY_TOKEN") == SECRET
    with pytest.raises(InputError, match="no such environment variable"):
        variable("NOT_SET")


def test_a_configuration_is_told_by_the_value_and_not_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"model": {"init_args": {"init_from": "${envvar:MY_TOKEN}"}}}
    first = config_hash(config)
    assert first == config_hash({"model": {"init_args": {"init_from": SECRET}}})
    monkeypatch.setenv("MY_TOKEN", "another-value")
    assert config_hash(config) != first


def test_another_program_gets_the_value() -> None:
    assert starting(["a", "b"]) == ["a", "b"]
    command = starting([sys.executable, "-c", "import sys; print(sys.argv[1])", "${envvar:MY_TOKEN}"])
    assert SECRET not in " ".join(command)
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == SECRET


def test_a_sweep_whose_command_names_a_variable_that_is_not_set_starts_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s.yaml").write_text(
        'method: grid\ncommand: [python, program.py, "--key=${envvar:NOT_SET}", "${args}"]\nparameters: {a: {values: [1]}}\n'
    )
    with pytest.raises(SystemExit, match="2"):
        main(["sweep", "run", str(tmp_path / "s.yaml"), "--out", str(tmp_path / "runs"), "--dry-run"])
    assert "${envvar:NOT_SET} is named" in capsys.readouterr().err


def test_a_sweep_writes_no_secret_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program's sweep, run here: it gets the value, and no file that is kept has it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(points, "visible_gpus", list)  # torch takes seconds to ask for them
    (tmp_path / "program.py").write_text(
        "import sys, os, json\n"
        "folder = sys.argv[-1].removeprefix('--run_dir=')\n"
        "os.makedirs(folder)\n"
        "right = sys.argv[1] == '--key=' + os.environ['MY_TOKEN']\n"
        "json.dump({'schema': 'crosslight.results/2', 'status': 'finished' if right else 'failed', 'command': 'r', 'name': 'n',\n"
        "           'config_hash': 'c', 'started': '2026-11-21T15:32:55+00:00'}, open(folder + '/results.json', 'w'))\n"
    )
    command = [sys.executable, "program.py", "--key=${envvar:MY_TOKEN}", "${args}"]
    sweep = {"method": "grid", "command": command, "parameters": {"x": {"values": [1]}}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(sweep))
    assert run_command("sweep", ["run", "s.yaml", "--out", "out"]) == 0
    kept = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert len(kept) >= 3
    assert not [file for file in kept if SECRET.encode() in file.read_bytes()]


def test_slurms_script_and_records_keep_the_reference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = {
        "method": "grid", "parameters": {"x": {"values": ["a\nrm -rf /"]}},
        "command": ["crosslight", "run", "--wandb.project=${envvar:MY_TOKEN}", "${args}"],
    }  # fmt: skip
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(sweep))
    run_command("sweep", ["run", str(tmp_path / "s.yaml"), "--out", str(tmp_path / "o"), "--submit", "slurm", "--dry-run"])
    script = capsys.readouterr().out.partition("#  run")[0]
    assert SECRET not in script
    assert "'--wandb.project=${envvar:MY_TOKEN}'" in script
    assert "0)  # x=a rm -rf /\n" in script
