"""What an adapter promises, whichever method it is."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class Adapter(Protocol):
    """A typed configuration that puts trainable modules into a network and knows them again afterwards."""

    @property
    def identity_at_start(self) -> bool:
        """Whether the network computes exactly the same right after `inject`."""
        ...

    @property
    def off(self) -> bool:
        """Whether its sizes leave nothing of it (mid dimension or rank 0, the origin of a sweep): `inject` then does nothing."""
        ...

    def inject(self, network: nn.Module) -> None:
        """Put the modules in, in place, without changing any existing key.

        Raises:
            InputError: Nothing in the network matches, or an adapter is there already.
        """
        ...

    def owns(self, parameter_name: str) -> bool:
        """Whether the name of a parameter, of a state-dict entry or of a module is this adapter's."""
        ...

    def describe(self) -> dict[str, Any]:
        """`{"class_path", "init_args", ...}`: enough to build the adapter again, and readable; goes into the export."""
        ...
