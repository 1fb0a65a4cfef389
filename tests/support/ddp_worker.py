"""One process of the two-process test of RetrievalRecall (see test_retrieval.py of the metrics)."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist

from datamodules.errors import InputError
from lightning_modules.metrics.retrieval import RetrievalRecall


def main(rank: int, world: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=world)
    data = torch.load(folder / "data.pt", weights_only=True)
    answers = {}
    for name, shards in data["cases"].items():
        metric = RetrievalRecall(expected_images=len(data["images"]), expected_texts=len(data["texts"]))
        # One sample a batch for some, everything at once for others: the shard is what counts.
        for rows in shards["images"][rank]:
            metric.update_images(data["images"][rows], rows)
        for rows in shards["texts"][rank]:
            metric.update_texts(data["texts"][rows], rows, data["image_index"][rows])
        try:
            answers[name] = {"values": metric.compute(), "ranks": metric.query_ranks()}
        except InputError as error:
            answers[name] = {"error": str(error)}
    torch.save(answers, folder / f"answers-{rank}.pt")
    dist.destroy_process_group()
