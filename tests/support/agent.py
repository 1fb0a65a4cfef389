"""W&B's agent without its server: how it starts a point of a sweep, and what the ranks of that point say they were given."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback


class NoteConfig(Callback):
    """Every rank writes what it was configured with.

    Args:
        folder: For rank-R.json.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        noted = {"lr": pl_module.optimization.lr, "seed": os.environ["PL_GLOBAL_SEED"]}
        self.folder.mkdir(exist_ok=True)
        (self.folder / f"rank-{trainer.global_rank}.json").write_text(json.dumps(noted))


def agents_command(sweep: list[str], point: dict[str, Any], run_id: str, patch: pytest.MonkeyPatch) -> list[str]:
    """The command line that W&B's own agent starts for a point of a sweep with this `command`. Its variables are in the
    environment until `patch` is undone, and its file of the point's values in the working folder."""
    from wandb import wandb_agent

    commands: list[list[str]] = []
    patch.setattr(wandb_agent, "AgentProcess", lambda command, **_: commands.append(command) or _Process())
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_DIR"):
        patch.setenv(name, "")  # the agent sets them; undoing the patch takes them away again
        patch.delenv(name)
    patch.setenv("WANDB_SWEEP_ID", "abcdefgh")
    agent = wandb_agent.Agent(api=None, queue=None, sweep_id="abcdefgh")
    agent._sweep_command, agent._forward_signals = list(sweep), False
    arguments = {name: {"value": value} for name, value in point.items()}
    answer = agent._process_command({"type": "run", "id": "1", "run_id": run_id, "program": None, "args": arguments})
    assert "exception" not in answer, answer
    (command,) = commands
    return command


class _Process:
    last_sigterm_time = None


def wandb_records(run: Path) -> list[Any]:
    """The records of the one offline W&B run of a run folder, as `wandb sync` reads them: LevelDB's log format."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = (run / "wandb").glob("offline-run-*/*.wandb")
    data, place, parts, records = file.read_bytes(), 7, [], []  # 7: W&B's own header
    while place + 7 <= len(data):
        room = 32768 - place % 32768
        if room < 7:
            place += room
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        parts.append(data[place + 7 : place + 7 + length])
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = Record()
            record.ParseFromString(b"".join(parts))
            records.append(record)
            parts = []
    return records


def wandb_config(records: list[Any]) -> dict[str, Any]:
    """The configuration that a W&B run logged."""
    updates = [update for record in records for update in (*record.run.config.update, *record.config.update)]
    return {update.key or "/".join(update.nested_key): json.loads(update.value_json) for update in updates}
