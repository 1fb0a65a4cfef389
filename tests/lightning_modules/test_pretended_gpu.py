"""Steps, evaluations and generation on a GPU that is not there: nothing is left behind on the processor."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import tiny_ranking
import torch
from pretended_gpu import OnGPU, pretended_gpu
from tiny_beit3 import beit3, beit3_pairs
from tiny_captioner import captioner, images, texts

from datamodules.records import CaptionBatch
from lightning_modules.adapters.i_tuning import ITuning
from lightning_modules.adapters.multiway import MultiWayAdapter
from lightning_modules.captioning import CaptioningModule
from lightning_modules.metrics.full_rank import FullRank
from lightning_modules.metrics.retrieval import RetrievalRecall
from lightning_modules.networks.language_model import Decoding
from lightning_modules.objectives.relation_alignment import IAIS


def logged_on_gpu(model: Any, batch: Any) -> None:
    """A step in bf16 and its backward pass; a tensor of the processor in the logs ends a run on several GPUs."""
    logged: dict[str, Any] = {}
    model.log_dict = lambda values, **keywords: logged.update(values)
    with torch.autocast("cuda", torch.bfloat16):
        loss = model.training_step(batch, 0)
    assert loss.device.type == "cuda"
    loss.backward()
    trained = [parameter for parameter in model.network.parameters() if parameter.requires_grad]
    assert any(parameter.grad is not None and bool(parameter.grad.abs().max() > 0) for parameter in trained)
    assert {value.device.type for value in logged.values()} <= {"cuda"}


def test_it_refuses_what_cuda_refuses() -> None:
    with pretended_gpu() as waits:
        x = torch.arange(6.0, device="cuda").view(2, 3)
        assert isinstance(x.sum(0) * torch.tensor(2.0), OnGPU)
        assert x[torch.tensor([1])].device.type == "cuda"
        for wrong in (
            lambda: x + torch.ones(3),
            lambda: torch.cat([x, torch.ones(1, 3)]),
            lambda: torch.arange(9)[x.long()],
            lambda: torch.nn.Linear(3, 2)(x),
            lambda: x.numpy(),
        ):
            with pytest.raises(RuntimeError):
                wrong()
        assert not waits
        assert x.cpu().numpy().sum() == x.sum().item() == 15
        assert waits == {"cpu": 1, "item": 1}


@pytest.mark.parametrize("chunk", [None, 2])
def test_retrieval(chunk: int | None) -> None:
    options: dict[str, Any] = {} if chunk else {"iais": IAIS("singular")}
    with pretended_gpu():
        model = beit3(adapter=MultiWayAdapter(), tuning="adapter", gradient_cache_chunk=chunk, **options).to("cuda")
        batch = beit3_pairs().to("cuda")
        if chunk:
            model._trainer = SimpleNamespace(current_epoch=0, global_rank=0, world_size=1, accumulate_grad_batches=1)
        logged_on_gpu(model, batch)
        recall = RetrievalRecall().to("cuda")
        with torch.no_grad():
            recall.update_images(model.network.encode_images(batch.images), batch.images.index_B)
            recall.update_texts(model.network.encode_texts(batch.texts), batch.texts.index_B, batch.texts.image_index_B)
        assert {value.device.type for value in recall.compute().values()} == {"cuda"}


def test_ranking_with_mining_and_full_rank() -> None:
    with pretended_gpu():
        model = tiny_ranking.module(iais=IAIS("distributed")).to("cuda")
        data = tiny_ranking.batch().to("cuda")
        logged_on_gpu(model, data)
        model.eval()
        metric = FullRank()
        with torch.no_grad():
            metric.add_images(model.network.embed_images(data.images), data.images.index_B)
            metric.add_texts(model.network.embed_texts(data.texts), data.texts.index_B, data.texts.image_index_B)
            assert {value.device.type for value in metric.compute(model.network).values()} == {"cuda"}


def test_captioning_and_beam_search() -> None:
    with pretended_gpu():
        model = CaptioningModule(captioner("gpt2"), ITuning(init_std=0.3)).train().to("cuda")
        model._trainer = SimpleNamespace(accumulate_grad_batches=1, world_size=1)
        rows = [0, 1, 1]
        logged_on_gpu(model, CaptionBatch(images(2), texts(rows), torch.tensor(rows)).to("cuda"))
        with torch.no_grad():
            found = model.eval().network.generate_ids(
                model.network.encode_images(images(2).to("cuda")), Decoding(num_beams=3, max_new_tokens=4)
            )
    assert len(found) == 2
