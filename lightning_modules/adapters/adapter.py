"""What an adapter owes, whichever method it is: a new one derives from `Adapter` and edits nothing else."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from typing import Any

from torch import nn

from datamodules.errors import InputError


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

    @property
    def identity_at_start(self) -> bool:
        """Whether the network computes exactly the same right after `inject`."""
        return False

    @property
    def off(self) -> bool:
        """Whether its sizes leave nothing of it (mid dimension or rank 0, the origin of a sweep): `inject` then does nothing."""
        return False

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
