"""One process of the two-process test of CaptionScores (see test_gathered.py)."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.distributed as dist

from datamodules.errors import InputError
from lightning_modules.metrics.captions.gathered import CaptionScores


def main(rank: int, world: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=world)
    data = json.loads((folder / "data.json").read_text())
    answers = {}
    for name, case in data["cases"].items():
        metric = CaptionScores(data["references"], case["metrics"], "none")
        for rows in case["shards"][rank]:
            metric.update([data["candidates"][row] for row in rows], torch.tensor(rows, dtype=torch.int64))
        try:
            values = {key: float(value) for key, value in metric.compute().items()}
            answers[name] = {"values": values, "cider": metric.per_image()["cider"].tolist(), "left_out": metric.unavailable}
        except InputError as error:
            answers[name] = {"error": str(error)}
    (folder / f"answers-{rank}.json").write_text(json.dumps(answers))
    dist.destroy_process_group()
