"""What an adapter owes, whichever method it is: a new one derives from `Adapter` and edits nothing else."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from datamodules.errors import InputError
from lightning_modules.adapters.line import line


class Adapter(ABC):
    """A typed configuration that puts trainable modules into a network and knows them again afterwards."""

    @abstractmethod
    def inject(self, network: nn.Module) -> None:
        """Put the modules in, in place, without changing any existing key.

        Raises:
            InputError: Nothing in the network matches, or an adapter is there already.
        """

    @abstractmethod
    def owns(self, parameter_name: str) -> bool:
        """Whether the name of a parameter, of a state-dict entry or of a module is this adapter's."""

    def spares(self, parameter_name: str) -> bool:
        """Whether weight decay leaves a parameter of this adapter alone that is no vector by its shape: a factor that means
        nothing at 1 and switches off what it is multiplied with at 0."""
        return False

    @property
    def identity_at_start(self) -> bool:
        """Whether the network computes exactly the same right after `inject`."""
        return False

    @property
    def off(self) -> bool:
        """Whether its sizes leave nothing of it (mid dimension or rank 0, the origin of a sweep): `inject` then does nothing."""
        return False

    def scaled(self, start: Mapping[str, Tensor], trained: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
        """Its tensors where it counts alpha of what it learnt: for `crosslight dial`, between a network without it and the run.

        By default they lie on the straight line between the two states, for an adapter that is the identity at its start: at 0
        the network is then as if it had none. An adapter whose output has a factor puts alpha there.

        Args:
            start: Its tensors when the training began, by their names in the network.
            trained: When it was over, by the same names.
            alpha: From 0 to 1; 1 must give `trained` to the last bit.

        Raises:
            InputError: It is not the identity at its start, and does not say what less of it is.
        """
        if not self.identity_at_start:
            raise InputError(
                f"{type(self).__name__} is not the identity at its start and has no method `scaled`, so nothing says what less "
                "of it is: write that method, or set identity_at_start where it starts without effect."
            )
        return line(start, trained, alpha)

    def merge(self, network: nn.Module) -> Adapter | None:
        """Fold it into the network's weights, in place, where that is possible: the network computes the same without it.

        Returns:
            What is left of it and still has to be kept; None = nothing.

        Raises:
            InputError: It is no change of weights (the default), or not in the network.
        """
        raise InputError(f"{type(self).__name__} is no change of the network's weights, so it cannot be merged into them.")

    def describe(self) -> dict[str, Any]:
        """`{"class_path", "init_args", ...}`: enough to build the adapter again, and readable; goes into the export.

        By default every argument of the constructor, from the attribute of its name.
        """
        names = list(inspect.signature(type(self)).parameters)
        lacking = [name for name in names if not hasattr(self, name)]
        if lacking:
            raise InputError(
                f"{type(self).__name__} keeps no attribute {lacking[0]!r} of the argument of that name, so it cannot be "
                "described: set it in the constructor, or write `describe`."
            )
        path = f"{type(self).__module__}.{type(self).__qualname__}"
        return {"class_path": path, "init_args": {name: getattr(self, name) for name in names}}
