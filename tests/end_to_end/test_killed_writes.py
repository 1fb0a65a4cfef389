"""Killed before and after the files that they write, the commands beside training end as if nothing had happened."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from fake_runs import fill
from home import write_home
from killed_writes import contents, kill_at_writes, leftovers

from datamodules.miniworld.write import write_world
from experiments.cli.main import run_command
from experiments.papers import strict_yaml
from experiments.sweep import points


def test_a_report_and_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strict_yaml, "HERE", write_home(tmp_path))
    fill(tmp_path / "runs", ["mwa/table1"], "miniature", [0, 1])

    def act(place: str) -> None:
        run_command("report", ["mwa/table1", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / place)])
        written = [f"--{option}={tmp_path / place / name}" for option, name in (("out", "t.md"), ("csv", "t.csv"))]
        run_command("table", [str(tmp_path / "runs"), *written])

    act("whole")
    assert kill_at_writes(lambda: act("killed"), every=3) > 10
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert not leftovers(tmp_path)


def test_an_export(tmp_path: Path, head_run: Path) -> None:
    def act(place: str) -> None:
        assert run_command("export", [str(head_run), str(tmp_path / place)]) == 0

    act("whole")
    assert kill_at_writes(lambda: act("killed"), every=4) > 4
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert not leftovers(tmp_path)


def test_a_world(tmp_path: Path) -> None:
    def act(place: str) -> None:
        write_world(tmp_path / place, scenes=20, image_size=32, workers=1)

    act("whole")
    assert kill_at_writes(lambda: act("killed"), every=150) > 3
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert not leftovers(tmp_path)


PROGRAM = """
folder=${2#--run_dir=}; mkdir -p "$folder"; echo "$1" >> "$folder/started"
printf '{"schema": "crosslight.results/2", "status": "finished", "command": "r", "name": "n", "config_hash": "c",
 "started": "2026-11-21T15:32:55+00:00"}' > "$folder/.part" && mv "$folder/.part" "$folder/results.json"
"""


def test_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(points, "visible_gpus", list)  # torch takes seconds to ask for them
    (tmp_path / "program.sh").write_text(PROGRAM)
    command = ["/bin/sh", str(tmp_path / "program.sh"), "${args}"]
    sweep = {"method": "grid", "command": command, "parameters": {"x": {"values": [1, 2]}}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(sweep))

    def act(place: str) -> None:
        assert run_command("sweep", ["run", str(tmp_path / "s.yaml"), "--out", str(tmp_path / place)]) == 0

    act("whole")
    assert kill_at_writes(lambda: act("killed"), every=3) > 5
    act("killed")
    whole, killed = (contents(tmp_path / place) for place in ("whole", "killed"))
    assert {name for name in whole if "log" not in name} == {name for name in killed if "log" not in name}
    assert json.loads(whole["points.json"]) == json.loads(killed["points.json"])
    started = [content for name, content in killed.items() if name.endswith("started")]
    assert sorted(started) == [b"--x=1\n", b"--x=2\n"], "each once"
    assert not leftovers(tmp_path)
