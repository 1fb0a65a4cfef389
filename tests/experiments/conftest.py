from __future__ import annotations

import os
from pathlib import Path

import pytest
from fake_runs import fill
from fake_slurm import Queue
from home import write_home

from experiments.cli.main import run_command
from experiments.papers import catalogue as exhibits
from experiments.papers import strict_yaml


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home and its miniature runs of two seeds; `broken` failed once and ran out of memory once."""
    base = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strict_yaml, "HERE", write_home(base))
        fill(base / "runs", exhibits.exhibit_names(), "miniature", [0, 1], skip=["broken"])
    return base


@pytest.fixture
def home(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The made-up exhibits in the place of the real ones: the folder with `runs`."""
    monkeypatch.setattr(strict_yaml, "HERE", made / "experiments" / "papers")
    return made


@pytest.fixture(scope="session")
def site(made: Path) -> Path:
    """The report of the made-up runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strict_yaml, "HERE", made / "experiments" / "papers")
        assert run_command("report", ["--runs", str(made / "runs"), "--out", str(made / "site")]) == 0
    return made / "site"


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Queue:
    cluster = Queue(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{cluster.folder}:{os.environ['PATH']}")
    monkeypatch.setenv("WANDB_MODE", "offline")
    return cluster
