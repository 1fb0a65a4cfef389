"""Several adapters as one: a bridge to the image beside LoRA in the language model, or another method for each tower."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from datamodules.errors import InputError
from lightning_modules.adapters.adapter import Adapter


class Combined(Adapter):
    """Adapters that are put in one after the other and train together.

    What is put in first is there for those that follow: once I-Tuning or ClipCap is in, a captioner's vision tower takes part in
    the task, and LoRA may go there.

    Args:
        adapters: Two or more, in the order in which they are put in.

    Raises:
        InputError: There are fewer than two.
    """

    def __init__(self, adapters: list[Adapter]) -> None:
        if len(adapters) < 2:
            raise InputError(f"Combined: adapters has {len(adapters)}, and needs two or more; give one adapter as it is")
        self.adapters = adapters

    @property
    def identity_at_start(self) -> bool:
        """Whether all are."""
        return all(adapter.identity_at_start for adapter in self.adapters)

    @property
    def off(self) -> bool:
        """Whether all are."""
        return all(adapter.off for adapter in self.adapters)

    def inject(self, network: nn.Module) -> None:
        """Put all in, in their order.

        Raises:
            InputError: What one of them says.
        """
        for adapter in self.adapters:
            adapter.inject(network)

    def owns(self, parameter_name: str) -> bool:
        """Whether the name of a parameter, of a state-dict entry or of a module is of one of them."""
        return any(adapter.owns(parameter_name) for adapter in self.adapters)

    def spares(self, parameter_name: str) -> bool:
        """Whether weight decay leaves a parameter alone that is of one of them."""
        return any(adapter.owns(parameter_name) and adapter.spares(parameter_name) for adapter in self.adapters)

    def scaled(self, start: Mapping[str, Tensor], trained: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
        """As each of them has it."""
        state: dict[str, Tensor] = {}
        for adapter in self.adapters:
            own = {name: tensor for name, tensor in trained.items() if name not in state and adapter.owns(name)}
            if own:
                state |= adapter.scaled({name: start[name] for name in own}, own, alpha)
        return state

    def describe(self) -> dict[str, Any]:
        """Constructor arguments to build it again."""
        described = super().describe()
        described["init_args"] = {"adapters": [adapter.describe() for adapter in self.adapters]}
        return described | {"identity_at_start": self.identity_at_start}

    def merge(self, network: nn.Module) -> Adapter | None:
        """Fold those into the weights that can be, from the last to the first.

        Returns:
            The others.

        Raises:
            InputError: None can be.
        """
        left: list[Adapter] = []
        refused: list[InputError] = []
        merged = False
        for adapter in reversed(self.adapters):
            if not any(map(adapter.owns, network.state_dict())):
                continue  # it is off, or was merged with one of the same names
            try:
                rest = adapter.merge(network)
                merged = True
            except InputError as error:
                refused.append(error)
                rest = adapter
            left += [] if rest is None else [rest]
        if refused and not merged:
            raise refused[-1]
        return None if not left else left[0] if len(left) == 1 else Combined(left[::-1])
