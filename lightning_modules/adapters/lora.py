"""LoRA (Hu et al., arXiv 2106.09685) through peft: the baseline for MultiWay-Adapter at the same number of parameters.

    y = W x + (alpha / rank) * B A dropout(x)          A [rank, in] random, B [out, rank] zero at the start

`PEFTAdapter` has LoRA too, with all options of peft; this one finds its rank for a number of parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from datamodules.errors import InputError
from lightning_modules.adapters import peft_layers
from lightning_modules.adapters.adapter import Adapter
from lightning_modules.adapters.line import times
from lightning_modules.adapters.linear_layers import LinearLayer, Targets, find_linear_layers
from lightning_modules.adapters.towers import Towers

_OWN = frozenset({"lora_A", "lora_B", "lora_dropout"})


class LoRAAdapter(Adapter):
    """Low-rank updates of the linear layers inside the transformer blocks; never of embeddings and heads.

    Args:
        rank: Rank of every update; 0 = no adapter.
        budget: Parameters to stay within instead: the largest rank that fits. MultiWay-Adapter's count on the same network gives
            the baseline of equal size (7,125,504 on BEiT-3 base: rank 24, 7,077,888 parameters). Exactly one of the two.
        alpha: Numerator of the scale alpha / rank; None = the rank (scale 1).
        dropout: Dropout on the input of A.
        targets: "attention" (projections), "ffn", "all", or names of linear layers as they end (["qkv", "fc1"]).
        towers: Which towers: of a dual encoder, in BEiT-3 whose experts; "text" is the language model of a captioner. Null = all
            that take part in the task, and each of them must have targets.

    Raises:
        InputError: Not exactly one of rank and budget, or a value out of range.
    """

    def __init__(
        self,
        rank: int | None = None,
        budget: int | None = None,
        alpha: float | None = None,
        dropout: float = 0.0,
        targets: Targets | list[str] = "all",
        towers: Towers | None = None,
    ) -> None:
        if (rank is None) == (budget is None):
            raise InputError(f"LoRA: give exactly one of rank (got {rank}) and budget (got {budget})")
        if (rank or 0) < 0 or not 0 <= dropout < 1 or (alpha is not None and alpha <= 0) or not targets:
            raise InputError(
                f"LoRA: rank must be 0 or more, dropout in [0, 1), alpha positive and targets named; got rank {rank}, dropout "
                f"{dropout}, alpha {alpha}, targets {targets}"
            )
        self.rank = rank
        self.budget = budget
        self.alpha = alpha
        self.dropout = dropout
        self.targets = targets
        self.towers = towers

    @property
    def identity_at_start(self) -> bool:
        """Always: B is zero."""
        return True

    @property
    def off(self) -> bool:
        """Whether the rank is 0."""
        return self.rank == 0

    def owns(self, parameter_name: str) -> bool:
        """Whether the name of a parameter, of a state-dict entry or of a module is this adapter's."""
        return not _OWN.isdisjoint(parameter_name.split("."))

    def describe(self) -> dict[str, Any]:
        """Constructor arguments to build it again."""
        return {
            "class_path": f"{type(self).__module__}.{type(self).__qualname__}",
            "init_args": {
                "rank": self.rank,
                "budget": self.budget,
                "alpha": self.alpha,
                "dropout": self.dropout,
                "targets": self.targets,
                "towers": self.towers,
            },
            "identity_at_start": self.identity_at_start,
        }

    def scaled(self, start: Mapping[str, Tensor], trained: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
        """The scale alpha / rank times this alpha: on B, so that exports and merged weights have it too."""
        return times(trained, alpha, lambda name: "lora_B" in name.split("."))

    def size(self, network: nn.Module) -> tuple[int, int]:
        """Rank in this network, and parameters that it adds; needs neither peft nor real tensors.

        Raises:
            InputError: Nothing matches, or the budget does not allow rank 1.
        """
        return self._size(self._find(network))

    def inject(self, network: nn.Module) -> None:
        """Wrap every target, on its device; nothing if it is `off`.

        Raises:
            InputError: peft is not installed, nothing matches, or the network has LoRA already.
        """
        if self.off:
            return
        layers = self._find(network)
        rank, _ = self._size(layers)
        peft_layers.require_peft("LoRA")
        from peft import LoraConfig

        alpha: Any = rank if self.alpha is None else self.alpha  # peft says int and divides
        peft_layers.wrap(network, LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=self.dropout), layers, "LoRA")

    def merge(self, network: nn.Module) -> Adapter | None:
        """Fold it into the weights; nothing is left.

        Raises:
            InputError: It is not there.
        """
        if not self.off:
            merge(network)
        return None

    def _find(self, network: nn.Module) -> dict[str, LinearLayer]:
        return find_linear_layers(network, self.targets, self.towers, "LoRA")

    def _size(self, layers: Mapping[str, LinearLayer]) -> tuple[int, int]:
        each = sum(layer.features for layer in layers.values())
        rank = self.rank if self.rank is not None else (self.budget or 0) // each
        if rank == 0 and self.budget is not None:
            raise InputError(
                f"LoRA: a budget of {self.budget:,} parameters does not allow rank 1 on {len(layers)} layers ({each:,} "
                "parameters a rank); raise budget, or choose fewer targets"
            )
        return rank, rank * each


def merge(network: nn.Module) -> None:
    """Fold LoRA into the weights, in place: the network is then as if it had never had any, and computes the same.

    Raises:
        InputError: There is no LoRA in it.
    """
    if not peft_layers.merge(network, lambda name: not _OWN.isdisjoint(name.split("."))):
        raise InputError(f"merge: {type(network).__name__} has no LoRA in it")
