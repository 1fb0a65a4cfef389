"""Which towers of a network an adapter goes to: those that are named, or all that take part in the task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import nn

from datamodules.errors import InputError

Towers = Literal["both", "image", "text"]
SIDES = ("image", "text")


def sides_of(towers: Towers | None) -> tuple[str, ...]:
    """The sides that an option names; None = both, where there are both."""
    return SIDES if towers is None or towers == "both" else (towers,)


def chosen_towers(network: nn.Module, towers: Towers | None, adapter: str) -> dict[str, nn.Module]:
    """The towers by side. A network without towers is one by itself, "" (as long as none was named).

    Args:
        network: A network of ours says in `towers` which of them take part in its task; of others the attributes `image` and
            `text` are towers.
        towers: None = all.
        adapter: Its name, for messages.

    Raises:
        InputError: A tower was named that the network has not, or that takes no part in its task.
    """
    told = getattr(network, "towers", None)
    there = told() if callable(told) else {s: part for s in SIDES if isinstance(part := getattr(network, s, None), nn.Module)}
    if towers is None or (towers == "both" and not there):
        return there or {"": network}
    if lacking := [side for side in sides_of(towers) if side not in there]:
        advice = f"set towers to {next(iter(there))}, or leave it out" if there else "leave towers out"
        raise InputError(
            f"{adapter}: towers is {towers}, but {type(network).__name__} has no {lacking[0]} tower that takes part in its task "
            f"(a captioner looks at images through I-Tuning or ClipCap only); {advice}"
        )
    return {side: there[side] for side in sides_of(towers)}


def require_all_reached(network: nn.Module, reached: Mapping[str, bool], adapter: str, lacks: str) -> None:
    """See that an adapter that is to go to several towers does: in the others alone it would be another method.

    Args:
        network: The network.
        reached: Of the chosen towers, by side, whether the adapter goes there.
        adapter: Its name, for messages.
        lacks: What a tower has not, where it does not.

    Raises:
        InputError: It reaches some of them, but not all; names the one and how to say that this is meant.
    """
    idle = [side for side, there in reached.items() if not there]
    if idle and len(idle) < len(reached):
        other = next(side for side, there in reached.items() if there)
        raise InputError(
            f"{adapter}: the {idle[0]} tower of {type(network).__name__} has {lacks}; to adapt the {other} tower alone, set "
            f"adapter.towers to {other}"
        )
