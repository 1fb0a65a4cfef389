"""The one door to torch.distributed: nothing that NCCL refuses goes through it, and nobody goes past it."""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_ranking
import torch
from pretended_gpu import OnGPU, pretended_gpu
from strict_nccl import SIZE, strict_nccl
from tiny_beit3 import beit3, beit3_pairs
from tiny_captioner import captioner, images, texts

from datamodules.errors import AgreedError, InputError
from datamodules.records import CaptionBatch
from experiments.training.preemption import Agreement
from lightning_modules import collectives
from lightning_modules.adapters.i_tuning import ITuning
from lightning_modules.adapters.multiway import MultiWayAdapter
from lightning_modules.callbacks.gradients import EveryParameterLearns
from lightning_modules.captioning import CaptioningModule
from lightning_modules.metrics.captions.gathered import CaptionScores
from lightning_modules.metrics.full_rank import FullRank
from lightning_modules.metrics.gather import gather_rows, gather_values
from lightning_modules.metrics.relation_distance import RelationDistance
from lightning_modules.metrics.retrieval import RetrievalRecall
from lightning_modules.objectives.relation_alignment import IAIS

ROOT = Path(__file__).resolve().parents[2]
DOOR = "lightning_modules/collectives.py"
OFFICIAL = "experiments/parity/beit3/gather_process.py"  # two processes of its own, beside the official code's


def goes_past(source: str) -> bool:
    """Whether a file imports torch.distributed, or takes it from torch."""
    if "distributed" not in source:  # most files: to parse five hundred takes seconds
        return False
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import) and any(name.name.startswith("torch.distributed") for name in node.names):
            return True
        if isinstance(node, ast.ImportFrom) and (
            (node.module or "").startswith("torch.distributed")
            or (node.module == "torch" and any(name.name == "distributed" for name in node.names))
        ):
            return True
        if isinstance(node, ast.Attribute) and node.attr == "distributed" and getattr(node.value, "id", "") == "torch":
            return True
    return False


def test_nobody_goes_past_the_door() -> None:
    files = [file for room in ("experiments", "lightning_modules", "datamodules") for file in (ROOT / room).rglob("*.py")]
    past = {str(file.relative_to(ROOT)) for file in files if goes_past(file.read_text())}
    assert past == {DOOR, OFFICIAL}
    for line in ("import torch.distributed as dist", "from torch import distributed", "torch.distributed.barrier()"):
        assert goes_past(line)


def test_alone_nothing_is_said() -> None:
    tensor = torch.ones(2)
    assert (collectives.several(), collectives.rank(), collectives.world_size()) == (False, 0, 1)
    assert collectives.reduced(tensor) is not tensor  # the caller may change it
    assert torch.equal(collectives.reduced(tensor, "max"), tensor)
    assert collectives.gathered(tensor) == [tensor]
    assert collectives.gathered_with_gradient(tensor) is tensor
    assert collectives.told_objects("a") == ["a"]
    assert collectives.by_first(lambda: 3) == collectives.told_by(3) == 3
    collectives.meet()


def test_tensors_of_the_processor_go_by_the_gpu_and_come_back() -> None:
    with pretended_gpu(), strict_nccl(rank=1) as calls:
        here, there = torch.ones(2), torch.ones(2, device="cuda")
        assert collectives.reduced(here).tolist() == [2, 2]
        assert not isinstance(collectives.reduced(here), OnGPU)
        assert here.tolist() == [1, 1]
        assert collectives.reduced(there, "min").is_cuda
        assert collectives.reduced_later(here, "max")().tolist() == [1, 1]
        assert [part.device.type for part in collectives.gathered(here)] == ["cpu"] * SIZE
        assert [len(part) for part in gather_rows(torch.empty(0, 3))] == [0, 0]
        assert len(torch.cat(gather_values(torch.ones(1, dtype=torch.float64)))) == 2
        rows = torch.arange(6.0).view(3, 2).requires_grad_()
        (collectives.gathered_with_gradient(rows) * torch.arange(12.0).view(6, 2)).sum().backward()
        assert rows.grad is not None
        assert rows.grad.tolist() == [[12, 14], [16, 18], [20, 22]]  # what both did with the rows of rank 1
        assert Agreement()(torch.device("cpu")) is False
        assert calls["all_reduce"] == 6
        for wrong in (lambda: collectives.dist.all_reduce(here), lambda: collectives.dist.barrier()):
            with pytest.raises(RuntimeError):
                wrong()


def test_errors_of_the_first_are_everybodys() -> None:
    def refuse() -> None:
        raise InputError("no such file")

    with strict_nccl() as calls:
        assert collectives.by_first(lambda: [1]) == [1]
        with pytest.raises(AgreedError, match="no such file"):
            collectives.by_first(refuse)
        with pytest.raises(ZeroDivisionError):
            collectives.by_first(lambda: 1 // 0)
        assert calls == {"broadcast_object_list": 3}


def logged_step(model: Any, batch: Any) -> None:
    model.log_dict = lambda values, **keywords: None
    model.training_step(batch, 0).backward()


@pytest.mark.parametrize("chunk", [None, 2])
def test_a_step_of_retrieval(chunk: int | None) -> None:
    with pretended_gpu(), strict_nccl() as calls:
        options: dict[str, Any] = {} if chunk else {"iais": IAIS("singular")}
        model = beit3(adapter=MultiWayAdapter(), tuning="adapter", gradient_cache_chunk=chunk, **options).to("cuda")
        if chunk:
            model._trainer = SimpleNamespace(current_epoch=0, global_rank=0, world_size=2, accumulate_grad_batches=1)
        logged_step(model, beit3_pairs().to("cuda"))
        assert calls["all_gather"] >= 2
        assert calls["all_reduce"] >= 2


def test_a_step_of_ranking_and_its_scores() -> None:
    with pretended_gpu(), strict_nccl(empty=True) as calls:
        model = tiny_ranking.module(iais=IAIS("distributed")).to("cuda")
        data = tiny_ranking.batch().to("cuda")
        logged_step(model, data)
        model.eval()
        metric = FullRank(progress=False)
        with torch.no_grad():
            metric.add_images(model.network.embed_images(data.images), data.images.index_B)
            metric.add_texts(model.network.embed_texts(data.texts), data.texts.index_B, data.texts.image_index_B)
            metric.compute(model.network)
        assert (
            calls["all_gather"] == 2 * 7
        )  # counts and rows, of states, lengths and places of both sides and of captions' images
        assert calls["all_gather_object"] == 2
        assert calls["all_reduce"] == 2  # the terms of the step, the scores


def test_steps_of_captioning_and_of_callbacks() -> None:
    with pretended_gpu(), strict_nccl() as calls:
        model = CaptioningModule(captioner("gpt2"), ITuning(init_std=0.3)).train().to("cuda")
        model._trainer = SimpleNamespace(accumulate_grad_batches=1, world_size=2)
        rows = [0, 1, 1]
        logged_step(model, CaptionBatch(images(2), texts(rows), torch.tensor(rows)).to("cuda"))
        trained = [parameter for parameter in model.network.parameters() if parameter.requires_grad]
        before = trained[0].grad.clone()
        optimizer = torch.optim.SGD(trained)
        model.on_before_optimizer_step(optimizer)
        assert not torch.equal(trained[0].grad, before)
        EveryParameterLearns().on_before_optimizer_step(SimpleNamespace(), model, optimizer)
        assert calls == {"all_reduce": 2}


def synchronized(metric: Any) -> Any:
    """Its `compute` asks the other process, too."""
    metric.distributed_available_fn = lambda: True
    return metric


@pytest.mark.filterwarnings("ignore:.*called before the")
def test_metrics_of_a_process_with_items_and_of_one_without() -> None:
    with pretended_gpu(), strict_nccl(empty=True) as calls:
        recall = synchronized(RetrievalRecall().to("cuda"))
        vectors = torch.eye(4, device="cuda")
        recall.update_images(vectors[:2], torch.arange(2, device="cuda"))
        recall.update_texts(vectors, torch.arange(4, device="cuda"), torch.tensor([0, 1, 0, 1], device="cuda"))
        assert recall.compute()["rsum"].is_cuda
        scores = synchronized(CaptionScores([["a dog"], ["a cat"]], ["cider"], "simple").to("cuda"))
        scores.update(["a dog", "a cow"], torch.arange(2, device="cuda"))
        assert scores.compute()["cider"] > 0
        assert calls["all_gather"] == 2 * 5 + 2 * 3
        assert calls["broadcast_object_list"] == 1
    with pretended_gpu(), strict_nccl(empty=True) as calls:
        for metric in (RetrievalRecall(), CaptionScores([["a dog"]], ["cider"], "simple")):
            with pytest.raises(InputError, match=r"missing|needs images and captions"):  # nobody has any
                synchronized(metric.to("cuda")).compute()
        distance = synchronized(RelationDistance().to("cuda"))
        assert distance.compute()["isda_pairs"] == 0
        assert calls["all_gather"] > 0
