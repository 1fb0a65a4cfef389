"""The dial of a trained run: the same network with alpha of what it learnt, from its start (0) to its end (1).

    an adapter          its own scale (`Adapter.scaled`): what it adds, times alpha
    all other weights   the straight line between the start's and the trained ones (WiSE-FT, Wortsman et al., arXiv 2109.01903)
    new heads           as trained, at every alpha: no file brought them, so there is nothing that they were before

So at 0 the network is what the run started from, where its heads were not new. No forward changes: an export of a state is an
export like any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field

from torch import Tensor, nn

from datamodules.errors import InputError, some
from lightning_modules.adapters.adapter import Adapter
from lightning_modules.adapters.line import line


@dataclass(frozen=True)
class Dialled:
    """Where the weights of an export are, between the start of their training (0) and its end (1).

    Args:
        alpha: The place.
        picked: By what rule it was picked; None where it was given.
    """

    alpha: float
    picked: str | None = None


@dataclass(frozen=True)
class Dial:
    """What a run trained, and what that was before.

    Args:
        adapter: Of the run; None where it has none.
        start: Tensors that trained, when the training began.
        trained: When it was over, by the same names.
        kept: Names of those that have no before: heads that no file brought.
    """

    adapter: Adapter | None
    start: Mapping[str, Tensor] = field(repr=False)  # all weights of a fully tuned model: nobody's screen wants them
    trained: Mapping[str, Tensor] = field(repr=False)
    kept: tuple[str, ...]

    @classmethod
    def of(cls, adapter: Adapter | None, start: Mapping[str, Tensor], trained: Mapping[str, Tensor], fresh: Set[str]) -> Dial:
        """The dial of a training.

        Args:
            adapter: Of the run.
            start: At least the tensors that trained, before.
            trained: What the run's checkpoint holds of the network.
            fresh: Names of parameters at a random start that nobody asked for.

        Raises:
            InputError: Everything that trained began at random, or the adapter does not say what less of it is.
        """
        own = {name for name in trained if adapter is not None and adapter.owns(name)}
        kept = tuple(sorted(name for name in trained if name in fresh and name not in own))
        if len(kept) == len(trained):
            raise InputError(
                f"all that trained here ({some(list(kept))}) began at random, so there is nothing to go back to: the dial is for "
                "runs that start from trained weights."
            )
        dial = cls(adapter, {name: start[name] for name in trained}, dict(trained), kept)
        dial.state(0.0)  # an adapter that refuses does it now
        return dial

    @property
    def turned(self) -> str:
        """What it turns, in words."""
        owned = any(self._owned(name) for name in self.trained)
        rest = any(not self._owned(name) and name not in self.kept for name in self.trained)
        parts = [f"the output of {type(self.adapter).__name__}"] * owned + ["the line between start and trained weights"] * rest
        return " and ".join(parts)

    def state(self, alpha: float) -> dict[str, Tensor]:
        """All that trained, at alpha. At 1 it is what was trained, to the last bit.

        Raises:
            InputError: alpha is not from 0 to 1.
        """
        if not 0 <= alpha <= 1:
            raise InputError(f"alpha is {alpha:g}; give a number from 0 (the start) to 1 (the trained weights).")
        if alpha == 1:
            return dict(self.trained)
        own = {name: tensor for name, tensor in self.trained.items() if self._owned(name)}
        rest = {name: tensor for name, tensor in self.trained.items() if name not in own and name not in self.kept}
        state = {**self.trained, **line(self.start, rest, alpha)}
        if self.adapter is not None and own:
            state |= self.adapter.scaled({name: self.start[name] for name in own}, own, alpha)
        return state

    def turn(self, network: nn.Module, alpha: float) -> None:
        """Put the state at alpha into the network."""
        network.load_state_dict(self.state(alpha), strict=False)

    def _owned(self, name: str) -> bool:
        return self.adapter is not None and self.adapter.owns(name)
