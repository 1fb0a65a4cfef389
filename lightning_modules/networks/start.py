"""What a part of a network starts from: weights that something brings, or random ones, by will or by oversight.

A part that takes weights keeps two attributes: `weights`, a file that `checkpoints.fill` still has to read (None: none), and
`fresh`, the names of its parameters at a random start that nobody asked for by name. Asking is `weights: random`. Until the file
is read, the part refuses to compute: random weights in the place of those that were named would go unnoticed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from datamodules.errors import InputError

RANDOM = "random"


def to_read(weights: str | None) -> str | None:
    """The file among the values that an option `weights` takes: a file, "random", or None."""
    return None if weights == RANDOM else weights


def fresh_names(part: nn.Module, weights: str | None, brought: bool = False) -> frozenset[str]:
    """Names of the parameters at a random start that nobody asked for, when a part is built.

    Args:
        part: The part, complete.
        weights: Its option.
        brought: Whether a library has loaded it.
    """
    if brought or weights == RANDOM:
        return frozenset()
    return frozenset(name for name, _ in part.named_parameters())


def refuse_until_read(part: nn.Module) -> None:
    """Let nothing of a part compute until its `weights` are read, where it names some. (On the meta device nothing is computed.)

    Args:
        part: The part, complete. Whichever of its methods is asked, it calls one of its modules.
    """
    if part.weights is not None:
        untyped: Any = part
        hook = _Unread(type(part).__name__, part.weights)
        untyped.unread = [module.register_forward_pre_hook(hook, with_kwargs=True) for module in part.modules()]


def note_read(part: nn.Module) -> None:
    """The weights of a part have been read: it may compute."""
    for handle in part.__dict__.pop("unread", ()):
        handle.remove()


class _Unread:
    """A hook of its own class, and no inner function: networks are copied and pickled."""

    def __init__(self, part: str, weights: Any) -> None:
        self.part, self.weights = part, weights

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        given = [*inputs, *named.values()]
        if torch.get_default_device().type == "meta" or any(isinstance(x, Tensor) and x.is_meta for x in given):
            return
        raise InputError(
            f"{self.part} has not read its weights ({self.weights}) yet: after building a network, call "
            "lightning_modules.checkpoints.fill.fill(network). The modules of lightning_modules and the command line do it."
        )
