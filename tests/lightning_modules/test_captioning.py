"""The captioning module: the exact token mean of a step, and captions that are kept while they are made."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_captioner import captioner, images, texts
from torch import Tensor

from datamodules.errors import InputError
from datamodules.records import CaptionBatch, ImageRecord
from lightning_modules.adapters.i_tuning import ITuning
from lightning_modules.captioning import CaptioningModule
from lightning_modules.metrics.captions.store import CaptionStore


def module(parts: int, **options: Any) -> tuple[CaptioningModule, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = CaptioningModule(captioner("gpt2"), ITuning(init_std=0.3), **options)
    logged: dict[str, Tensor] = {}
    model.log_dict = lambda values, **keywords: logged.update(values)  # type: ignore[method-assign,assignment] - no trainer
    model._trainer = SimpleNamespace(accumulate_grad_batches=parts, world_size=1)
    return model.train(), logged


def micro_batches() -> list[CaptionBatch]:
    """Of very different numbers of tokens."""
    batches = []
    for rows, longest in (([0, 0, 1], 4), ([0, 1, 1, 1, 2], 9), ([1, 0], 5)):
        batches.append(CaptionBatch(images(max(rows) + 1), texts(rows, longest), torch.tensor(rows)))
    return batches


def test_a_step_is_the_token_mean_of_all_its_micro_batches() -> None:
    model, logged = module(parts=3)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    for index, batch in enumerate(micro_batches()):
        (model.training_step(batch, index) / 3).backward()  # as Lightning does
        model.on_train_batch_end(None, batch, index)
    model.on_before_optimizer_step(optimizer)
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    model.zero_grad()
    total, tokens = torch.tensor(0.0), 0
    for batch in micro_batches():
        logits = model.network.logits(model.network.encode_images(batch.images), batch.texts, batch.image_row_B)
        for row in range(len(batch)):  # one caption after the other
            length = int(batch.texts.mask_BT[row].sum())
            log = logits[row, :length].log_softmax(-1)
            total = total - log[torch.arange(length), batch.texts.tokens_BT[row, :length]].sum()
            tokens += length
    (total / tokens).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(found[name], parameter.grad, msg=lambda text, name=name: f"{name}: {text}")
    assert logged["train/loss"].item() == pytest.approx((total / tokens).item(), rel=1e-5)
    assert logged["train/tokens"].item() == tokens
    assert not model._losses  # the next step starts anew


def test_frozen_parts_stay_in_eval_mode() -> None:
    model, _ = module(parts=1)
    assert not any(each.training for name, each in model.network.named_modules() if name.startswith(("language", "vision")))
    assert model.network.i_tuning.training


def test_without_an_adapter_the_head_is_the_language_model() -> None:
    model = CaptioningModule(captioner("gpt2"), tuning="head")
    trained = {name for name, parameter in model.network.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.network.named_parameters() if name.startswith("language.")}
    model.network.vision.register_forward_hook(lambda *_: pytest.fail("nobody looks at these images"))
    model.network.vision.model.register_forward_hook(lambda *_: pytest.fail("nobody looks at these images"))
    (batch, *_) = micro_batches()
    loss = model.training_step(batch, 0)
    found = model.network.logits(model.network.no_features(batch.images), batch.texts, batch.image_row_B)[batch.texts.mask_BT]
    expected = torch.nn.functional.cross_entropy(found, batch.texts.tokens_BT[batch.texts.mask_BT], reduction="sum")
    torch.testing.assert_close(1000 * loss, expected)


# ---------------------------------------------------------------------------------------------------------------- store

JOB = {"weights": "a", "decoding": {"num_beams": 5}, "ids": (1, 2)}


def stored(folder: Path, job: dict[str, Any] | None = None, rank: int = 0) -> CaptionStore:
    store = CaptionStore(folder, rank)
    store.prepare(job or JOB)
    store.read()
    return store


def test_finished_batches_are_found_again_by_any_process(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    with stored(folder) as first, stored(folder, rank=1) as second:
        first.add([0, 2], ["a dog", "line\nbreak \u2028 and ü"])
        second.add([1, 3], ["", "b"], [True, False])
        assert first.found([0, 2]) == ["a dog", "line\nbreak \u2028 and ü"]
        assert first.found([1, 3]) is None  # not read yet
    part = folder / "part-00001.jsonl"
    part.write_bytes(part.read_bytes() + b'[[4, "ha')  # killed while writing
    again = stored(folder, rank=1)
    assert again.found([3, 2, 1, 0]) == ["b", "line\nbreak \u2028 and ü", "", "a dog"]
    assert again.found([4]) is None
    assert again.unended == {3}
    assert again.found([0, 4]) is None  # a batch counts as a whole
    again.add([4], ["whole"])
    again.close()
    assert stored(folder).found([4, 1]) == ["whole", ""]
    again.remove()
    assert not folder.exists()


def test_captions_of_another_job_are_refused(tmp_path: Path) -> None:
    with stored(tmp_path / "parts") as store:
        store.add([0], ["x"])
    with pytest.raises(InputError, match=r"another job: decoding was .*; weights was 'a' and is 'b'\. Delete the folder"):
        stored(tmp_path / "parts", {**JOB, "weights": "b", "decoding": {"num_beams": 1}})
    (tmp_path / "parts" / "job.json").write_text("{")
    with pytest.raises(InputError, match=r"job\.json cannot be read"):
        stored(tmp_path / "parts")
    (tmp_path / "parts" / "job.json").unlink()
    with pytest.raises(InputError, match=r"no job\.json"):
        stored(tmp_path / "parts")


def test_captions_of_a_photograph_that_was_replaced_are_another_job(tmp_path: Path) -> None:
    model, _ = module(parts=1)
    model._trainer.precision = "32-true"
    record = ImageRecord("a", tmp_path / "a.jpg", ())
    (tmp_path / "a.jpg").write_bytes(b"one photograph")
    before = model._job([record])
    shutil.copy(tmp_path / "a.jpg", tmp_path / "b.jpg")
    assert model._job([replace(record, path=tmp_path / "b.jpg")]) == before
    (tmp_path / "a.jpg").write_bytes(b"another, equal")
    assert {key for key, value in model._job([record]).items() if value != before[key]} == {"photographs"}
