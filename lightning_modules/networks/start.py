"""What a part of a network starts from: weights that something brings, or random ones, by will or by oversight.

A part that takes weights keeps two attributes: `weights`, a file that `checkpoints.fill` still has to read (None: none), and
`fresh`, the names of its parameters at a random start that nobody asked for by name. Asking is `weights: random`.
"""

from __future__ import annotations

from torch import nn

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
