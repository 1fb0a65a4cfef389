"""What a class of one's own has otherwise than its base class says."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from datamodules.errors import InputError
from lightning_modules.adapters.adapter import Adapter
from lightning_modules.adapters.lora import LoRAAdapter
from lightning_modules.contract import require_signatures
from lightning_modules.networks.dual_encoder import DualEncoder
from lightning_modules.networks.network import RetrievalNetwork
from lightning_modules.objectives.contrastive import ContrastiveLoss
from lightning_modules.objectives.objective import ContrastiveObjective
from lightning_modules.objectives.sigmoid import SigmoidLoss


class Own(Adapter):
    def inject(self, network: nn.Module, deep: bool = False) -> None: ...

    def owns(self, name: str) -> bool:
        return False


class TakesNothing(Own):
    def inject(self) -> None: ...


class OffAsMethod(Own):
    def off(self) -> bool:
        return False


class OffAsAttribute(Own):
    off = True


class OwnsAsText(Own):
    owns = "own_parts"


class TwoArguments(ContrastiveObjective):
    def forward(self, images_BD: Any, texts_BD: Any) -> Any: ...


class Keywords(ContrastiveObjective):
    def forward(self, *vectors: Any, **more: Any) -> Any: ...


@pytest.mark.parametrize(("given", "base", "message"), [
    (TakesNothing(), Adapter, r"\.TakesNothing has inject\(\), and it is called as inject\(network\), as \S+\.Adapter says"),
    (OffAsMethod(), Adapter, r"\.OffAsMethod has off as a method, and it must be a property or an attribute"),
    (OwnsAsText(), Adapter, r"\.OwnsAsText has owns that is no method, and it is called as owns\(parameter_name\)"),
    (TwoArguments(), ContrastiveObjective,
     r"forward\(images_BD, texts_BD\), and it is called as forward\(images_BD, texts_BD, scale, image_index_B\)"),
    (nn.Identity(), ContrastiveObjective, r"Identity does not derive from lightning_modules\.objectives\.objective\.Contrastive"),
])  # fmt: skip
def test_what_differs_is_named_in_one_line(given: object, base: type, message: str) -> None:
    with pytest.raises(InputError, match=rf"^model\.it: .*{message}") as error:
        require_signatures(given, base, "model.it")
    assert "\n" not in str(error.value)


def test_more_arguments_with_defaults_an_attribute_and_ours_are_well(tiny: Any) -> None:
    for adapter in (Own(), OffAsAttribute(), LoRAAdapter(rank=1)):
        require_signatures(adapter, Adapter, "model.adapter")
    for objective in (Keywords(), ContrastiveLoss(), SigmoidLoss()):
        require_signatures(objective, ContrastiveObjective, "model.objective")
    network = tiny.network()
    assert isinstance(network, DualEncoder)
    require_signatures(network, RetrievalNetwork, "model.network")
