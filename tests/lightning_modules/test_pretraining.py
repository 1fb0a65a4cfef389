"""The module of pre-training: what trains, what is refused before it, what a validation says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_pretraining import batch, module, network, objectives

from datamodules.errors import InputError
from datamodules.loading.pretraining import MaskedTask, Pretraining
from lightning_modules.objectives.pretraining import HiddenFeatures, HiddenWords, PairsMatched
from lightning_modules.pretraining import PretrainingModule


def trained(model: PretrainingModule) -> set[str]:
    return {name for name, parameter in model.network.named_parameters() if parameter.requires_grad}


def test_only_what_an_objective_uses_trains() -> None:
    everything = {name for name, _ in network().named_parameters()}
    assert everything - trained(module()) == {"rank.weight", "rank.bias"}
    words = trained(module(objectives={"mlm": HiddenWords(text_only=True)}))
    assert {name.split(".")[0] for name in words} == {"encoder", "words"}
    assert not [name for name in words if "region_embed" in name or "pooler" in name]
    both = module(objectives={"mlm": HiddenWords(), "text": HiddenWords(text_only=True)})
    assert "encoder.region_embed.features.weight" in trained(both) & both.network.occasional_parameters()
    assert "encoder.region_embed.mask_feature.weight" not in trained(both)


@pytest.mark.parametrize("task", list(objectives()))
def test_every_step_leaves_a_gradient_for_all_that_trains(task: str) -> None:
    """Of zeros for other tasks' heads: DDP waits for each of them."""
    model = module()
    model.training_step(batch(task), 0).backward()
    names = {name for name, parameter in model.network.named_parameters() if parameter.requires_grad and parameter.grad is None}
    assert not names
    other = {"itm": "words.dense.weight", "mlm": "itm.weight", "mrfr": "itm.weight", "mrckl": "features.dense.weight"}[task]
    assert not model.network.get_parameter(other).grad.any()


def test_nothing_but_the_loss_is_added_for_the_other_heads() -> None:
    model, data = module(), batch("mlm")
    logged: dict[str, Any] = {}
    model.log_dict = lambda values, **keywords: logged.update(values)  # type: ignore[method-assign,assignment]
    loss = model.training_step(data, 0)
    assert logged.keys() == {"train/mlm", "train/loss"}
    torch.testing.assert_close(loss, model.objectives["mlm"](model.network, data).loss_N.mean())


def test_data_and_objectives_are_of_the_same_tasks() -> None:
    model = module()
    tasks = {
        "itm": MaskedTask("images"),
        "mlm": MaskedTask("words"),
        "mrfr": MaskedTask("regions"),
        "mrckl": MaskedTask("regions"),
    }

    def told(**changes: Any) -> None:
        model._trainer = SimpleNamespace(datamodule=SimpleNamespace(pretraining=Pretraining({**tasks, **changes})))
        model.setup("fit")

    told()
    with pytest.raises(InputError, match=r"the data draw the tasks itm, mlm, mrfr, mrckl, more .* objectives for itm, mlm"):
        told(more=MaskedTask("words"))
    with pytest.raises(InputError, match="task mlm: the data hide regions, and HiddenWords needs words hidden"):
        told(mlm=MaskedTask("regions"))
    with pytest.raises(InputError, match="a batch of task 'other'"):
        model.training_step(batch("mlm").replaced(task="other"), 0)


def test_what_no_network_has_a_head_for_is_refused() -> None:
    with pytest.raises(InputError, match="set region_classes of the network"):
        module(network=network(region_classes=None))
    with pytest.raises(InputError, match="objectives is empty"):
        PretrainingModule(network(), {})
    with pytest.raises(InputError, match=r"does not derive from .*PretrainingObjective"):
        PretrainingModule(network(), {"mlm": torch.nn.Identity()})  # type: ignore[dict-item]


def test_a_validation_is_the_mean_over_all_that_is_guessed() -> None:
    parts = {"itm": PairsMatched(), "mlm": HiddenWords(), "mrfr": HiddenFeatures()}
    model = module(objectives=parts).eval()
    logged: dict[str, Any] = {}
    model.log_dict = lambda values, **keywords: logged.update(values)  # type: ignore[method-assign,assignment]
    model._trainer = SimpleNamespace(sanity_checking=False)
    assert set(model.validation_metrics) == {"loss", "itm_loss", "itm_accuracy", "mlm_loss", "mlm_accuracy", "mrfr_loss"}
    with torch.no_grad():
        for task in parts:
            for data in (batch(task), batch(task)):
                model.validation_step(data, 0)
        model.on_validation_epoch_end()
        losses = {task: objective(model.network, batch(task)) for task, objective in parts.items()}
    for task, found in losses.items():
        assert logged[f"val/{task}_loss"].item() == pytest.approx(found.loss_N.mean().item(), rel=1e-5)
        if found.right_N is None:
            assert f"val/{task}_accuracy" not in logged
        else:
            assert logged[f"val/{task}_accuracy"].item() == pytest.approx(100 * found.right_N.float().mean().item())
    assert logged["val/loss"].item() == pytest.approx(sum(found.loss_N.mean().item() for found in losses.values()), rel=1e-5)
    with pytest.raises(InputError, match="had nothing to guess in the val split"):
        model.on_validation_epoch_end()
