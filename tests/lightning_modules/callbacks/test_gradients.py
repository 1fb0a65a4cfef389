"""What trains must have a gradient after the first step, whoever owns it."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_captioner
import tiny_ranking
import torch
from torch import Tensor, nn
from training import LEARN, METHODS, fit, retrieval, trained

from datamodules.errors import InputError
from datamodules.records import CaptionBatch
from lightning_modules.adapters.adapter import Adapter
from lightning_modules.adapters.lora import LoRAAdapter
from lightning_modules.captioning import CaptioningModule
from lightning_modules.objectives.annealing import Annealing
from lightning_modules.objectives.contrastive import ContrastiveLoss
from lightning_modules.objectives.relation_alignment import IAIS
from lightning_modules.objectives.sigmoid import SigmoidLoss
from lightning_modules.retrieval import RetrievalModule


class Forgetful(ContrastiveLoss):
    """An objective that forgets a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.margin = nn.Parameter(torch.zeros(()))


class Cosine(ContrastiveLoss):
    """An objective without a temperature."""

    def forward(
        self, images_BD: Tensor, texts_BD: Tensor, scale: Tensor, image_index_B: Tensor | None = None
    ) -> dict[str, Tensor]:
        return {"loss": (1 - (images_BD * texts_BD).sum(1)).mean()}


class Beside(Adapter):
    """An adapter that nothing calls."""

    def inject(self, network: nn.Module) -> None:
        network.beside = nn.Linear(2, 2)

    def owns(self, parameter_name: str) -> bool:
        return "beside" in parameter_name.split(".")


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tuning": "head", "objective": Forgetful}, r"1 parameter .*first step: objective\.margin\. .*forward of Forgetful"),
        ({"tuning": "head", "objective": Cosine}, r"network\.logit_scale\. .*write `uses_scale = False` into its class"),
        ({"adapter": Beside}, r"2 parameters .*network\.beside\.weight, network\.beside\.bias\. .*Put Beside into parts"),
    ],
)  # fmt: skip
def test_what_takes_no_part_in_the_loss_is_an_error_of_the_first_step(
    tiny: Any, options: dict[str, Any], message: str, parts: int
) -> None:
    _, batches = retrieval(tiny)
    built = {name: value() if callable(value) else value for name, value in options.items()}
    module = RetrievalModule(tiny.network(), optimization=LEARN, gradient_cache_chunk=2, **built)
    before = trained(module)
    with pytest.raises(InputError, match=message):
        fit(module, batches, accumulate_grad_batches=parts)
    assert all(torch.equal(value, before[name]) for name, value in trained(module).items())


def test_a_networks_own_unused_part_is_named_with_its_remedy(tiny: Any) -> None:
    network, (_, batches) = tiny.network(), retrieval(tiny)
    network.pooler = nn.Linear(2, 2)
    with pytest.raises(
        InputError, match=r"network\.pooler\.weight, .*Name what the task does not use in `unused_parameters` of Dual"
    ):
        fit(RetrievalModule(network, None, "full", optimization=LEARN), batches)
    network.unused_parameters = lambda: frozenset({"pooler.weight", "pooler.bias"})
    assert len(fit(RetrievalModule(network, None, "full", optimization=LEARN), batches).before) == 4


def test_an_objective_without_temperature_says_so_and_trains(tiny: Any) -> None:
    class Unscaled(Cosine):
        uses_scale = False

    _, batches = retrieval(tiny)
    module = RetrievalModule(tiny.network(), None, "full", objective=Unscaled(), optimization=LEARN)
    assert not module.network.logit_scale.requires_grad
    assert module.counts.trainable == sum(p.numel() for p in module.parameters() if p.requires_grad)
    fit(module, batches)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(tiny: Any, method: Any) -> None:
    module, batches = method(tiny)
    before = trained(module)
    fit(module, batches)
    assert all(not torch.equal(value, before[name]) for name, value in trained(module).items())


def test_gradients_of_zero_are_gradients(tiny: Any) -> None:
    """IAIS that comes in from 0, a bias far from its work, LoRA whose B is zero."""
    batches = [tiny_ranking.batch()] * 2
    module = tiny_ranking.module(iais=IAIS(annealing=Annealing("linear")), optimization=LEARN)
    del module.log_dict
    fit(module, batches)
    _, pairs = retrieval(tiny)
    fit(RetrievalModule(tiny.network(), LoRAAdapter(rank=1), objective=SigmoidLoss(-1000), optimization=LEARN), pairs)


def test_layers_that_are_dropped_at_random_have_the_first_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """OPT's layerdrop: a layer that the first step leaves out is waited for, and missed at the end of the epoch."""
    monkeypatch.setitem(tiny_captioner.FAMILIES, "dropping", {**tiny_captioner.FAMILIES["opt"], "layerdrop": 0.5})
    rows = [0, 1]
    batch = CaptionBatch(tiny_captioner.images(2), tiny_captioner.texts(rows), torch.tensor(rows))
    module = CaptioningModule(tiny_captioner.captioner("dropping"), None, "head", optimization=LEARN)
    module.setup = lambda stage: None  # it looks for a tokenizer
    occasional = module.network.occasional_parameters()
    assert any(".layers.0." in name for name in occasional)
    draws = iter([0.9] * 3 + [0.1] + [0.9] * 4 + [0.1])  # the fourth layer is left out, then none
    monkeypatch.setattr("transformers.models.opt.modeling_opt.torch.rand", lambda size: torch.tensor(next(draws, 0.9)))
    assert len(fit(module, [batch] * 3).before) == 3
    draws = iter([0.9, 0.9, 0.9, 0.1] * 9)
    with pytest.raises(InputError, match=r"no gradient in the first epoch: network\.language\..*layers\.3\."):
        fit(module, [batch] * 2)
