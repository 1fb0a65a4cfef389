"""A loss that is not finite: the run ends at its step, the message names what was in it, and the weights are those of before."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from pretended_gpu import pretended_gpu
from training import LEARN, METHODS, Weights, fit, retrieval, trained

from datamodules.errors import InputError
from lightning_modules.callbacks.finite_loss import FiniteLoss


def poisoned(batch: Any, row: int = 1) -> Any:
    """With one number of one image that is none; its ids tell it from the others."""
    images = replace(batch.images, image_ids=tuple(f"photo {i}" for i in range(len(batch.images))))
    texts = replace(batch.texts, caption_ids=tuple(f"said {i}" for i in range(len(batch.texts))))
    if images.pixels_B3HW is not None:
        pixels = images.pixels_B3HW.clone()
        pixels[row, 0, 0, 0] = torch.nan
        images = replace(images, pixels_B3HW=pixels)
    else:
        features = images.regions.features_BRD.clone()
        features[row, 0, 0] = torch.inf
        images = replace(images, regions=replace(images.regions, features_BRD=features))
    return replace(batch, images=images, texts=texts)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_the_step_ends_the_run_and_leaves_the_weights(tiny: Any, method: Any, parts: int) -> None:
    module, batches = method(tiny)
    batches[2] = poisoned(batches[2])
    seen = []
    with pytest.raises(InputError) as error:
        fit(module, batches, accumulate_grad_batches=parts, callbacks=[keep(seen)])
    message = str(error.value)
    assert f"not finite at step {2 // parts} " in message
    assert "batch 2 of epoch 0" in message
    assert "images photo 0, photo 1" in message
    assert "captions said 0, said 1, said 2" in message
    assert "loss nan" in message
    assert (parts == 1) == ("values that are not finite came with images photo 1." in message)
    assert "Nothing of this step entered the weights" in message
    assert "\n" not in message
    now = trained(module)
    assert all(torch.equal(now[name], value) for name, value in seen[2].items())
    assert any(not torch.equal(now[name], value) for name, value in seen[0].items())  # two batches were learnt from


def keep(seen: list[Any]) -> Any:
    weights = Weights()
    weights.before = seen
    return weights


def test_the_terms_tell_which_was_not_finite(tiny: Any) -> None:
    module, batches = retrieval(tiny)
    whole = module.objective.forward
    module.objective.forward = lambda *inputs: (
        (terms := whole(*inputs))
        | {
            "margin": terms["loss"] / 0,
            "loss": terms["loss"] + terms["loss"] / 0,
        }
    )
    with pytest.raises(InputError, match=r"step 0 .*\(loss inf, image_to_text \d.*, text_to_image \d.*, margin inf\)"):
        fit(module, batches)


def test_a_term_beside_the_loss_may_be_what_it_is(tiny: Any) -> None:
    module, batches = retrieval(tiny)
    whole = module.objective.forward
    module.objective.forward = lambda *inputs: (terms := whole(*inputs)) | {"ratio": terms["loss"].detach() / 0}
    assert len(fit(module, batches).before) == 4


def fp16(scale: float) -> MixedPrecision:
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))


def test_fp16_skips_gradients_that_overflow_and_not_losses(tiny: Any) -> None:
    """The scaler's own steps are skipped until its scale fits; a loss that is none ends the run there too."""
    unfused = replace(LEARN, fused=False)
    module, batches = retrieval(tiny)
    module.optimization = unfused
    before = fit(module, batches, plugins=fp16(2.0**60)).before
    assert all(torch.equal(before[0][name], value) for name, value in before[1].items())  # skipped
    module, batches = retrieval(tiny)
    module.optimization = unfused
    batches[1] = poisoned(batches[1])
    with pytest.raises(InputError, match=r"not finite at step 1 .* photo 1"):
        fit(module, batches, plugins=fp16(1.0))


def test_weights_that_were_lost_before_are_said_and_never_saved(tiny: Any) -> None:
    module, batches = retrieval(tiny)
    with torch.no_grad():
        module.network.image_projection.weight[0, 0] = torch.nan
    with pytest.raises(InputError, match=r"weights were not finite before this step \(network\.image_projection\.weight\)"):
        fit(module, batches)
    with pytest.raises(
        InputError, match=r"trained tensors are not finite \(network\.image_projection\.weight\), so this checkpoint"
    ):
        module.on_save_checkpoint({})


def test_a_gpu_is_asked_before_the_backward_pass_and_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer is copied without waiting, and an event behind the forward pass says when it is there."""
    order: list[str] = []
    event = SimpleNamespace(record=lambda: order.append("record"), synchronize=lambda: order.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "Event", lambda: event)
    trainer: Any = SimpleNamespace(fit_loop=SimpleNamespace(_should_accumulate=lambda: False))
    module: Any = torch.nn.Linear(1, 1)
    with pretended_gpu() as waits:
        watch = FiniteLoss()
        watch.on_before_backward(trainer, module, torch.ones((), device="cuda"))
        assert (order, dict(waits)) == (["record"], {"to": 1})
        watch.on_before_optimizer_step(trainer, module, torch.optim.SGD(module.parameters()))
        assert (order, dict(waits)) == (["record", "synchronize"], {"to": 1})


def test_a_step_whose_last_micro_batch_gave_no_loss_is_asked_too(tiny: Any) -> None:
    module, batches = retrieval(tiny)
    step = module.training_step
    module.training_step = lambda batch, batch_idx: None if batch_idx % 2 else step(batch, batch_idx)
    assert len(fit(module, batches, accumulate_grad_batches=2).before) == 4
    batches[2] = poisoned(batches[2])
    with pytest.raises(InputError, match=r"not finite at step 1 .*batch 2 of epoch 0"):
        fit(module, batches, accumulate_grad_batches=2)
