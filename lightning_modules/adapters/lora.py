"""LoRA (Hu et al., arXiv 2106.09685) through peft: the baseline for MultiWay-Adapter at the same number of parameters.

    y = W x + (alpha / rank) * B A dropout(x)          A [rank, in] random, B [out, rank] zero at the start

peft puts a wrapper in a linear layer's place, and the layer's own keys get a `base_layer.` in them. Checkpoints, exports and
fingerprints name the backbone as it is without an adapter, so the wrappers here show and take the unwrapped names: `qkv.weight`
stays `qkv.weight`, and `qkv.lora_A.default.weight` is new. (Only state dicts are renamed: in `named_parameters` it shows.)
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from torch import Tensor, nn

from datamodules.errors import InputError
from lightning_modules.adapters import multiway
from lightning_modules.adapters.adapter import Adapter
from lightning_modules.adapters.line import times
from lightning_modules.adapters.towers import Towers, chosen_towers, sides_of
from lightning_modules.networks import beit3
from lightning_modules.networks.towers.base import find_blocks

Targets = Literal["all", "attention", "ffn"]

_BASE = "base_layer"
_OWN = frozenset({"lora_A", "lora_B", "lora_dropout"})
_OTHER = frozenset({"lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector", multiway.NAME})  # never targets


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
            that take part in the task.

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
        found = self._find(network)
        rank, _ = self._size(found)
        try:
            from peft import LoraConfig, inject_adapter_in_model
            from peft.tuners.lora import Linear
        except ImportError as error:
            raise InputError(f"LoRA needs peft, which is not installed ({error}): pip install 'crosslight[lora]'") from error
        alpha: Any = rank if self.alpha is None else self.alpha  # peft says int and divides
        # whole names, so that nothing outside `found` matches
        config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=self.dropout, target_modules=list(found))
        training = network.training
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "fan_in_fan_out is set to")  # GPT-2's layers lie the other way; peft turns them
            inject_adapter_in_model(config, network)
        wrapped = {name: module for name, module in network.named_modules() if isinstance(module, Linear)}
        if wrapped.keys() != found.keys():
            raise AssertionError(f"peft wrapped {sorted(wrapped.keys() ^ found.keys())[:5]} otherwise than asked")
        for module in wrapped.values():
            module.cast_input_dtype_enabled = False  # under bf16 autocast peft would turn every input into fp32 and back
            module.train(training)
            module.register_state_dict_post_hook(_show_base_names)
            module.register_load_state_dict_pre_hook(_take_base_names)
            module.register_load_state_dict_post_hook(_report_base_names)

    def _size(self, found: dict[str, nn.Module]) -> tuple[int, int]:
        each = sum(sum(linear.get_parameter("weight").shape) for linear in found.values())
        rank = self.rank if self.rank is not None else (self.budget or 0) // each
        if rank == 0 and self.budget is not None:
            raise InputError(
                f"LoRA: a budget of {self.budget:,} parameters does not allow rank 1 on {len(found)} layers ({each:,} parameters "
                "a rank); raise budget, or choose fewer targets"
            )
        return rank, rank * each

    def _find(self, network: nn.Module) -> dict[str, nn.Module]:
        """The targets by their whole names."""
        if any(self.owns(name) for name, _ in network.named_modules()):
            raise InputError("LoRA: this network has LoRA already; inject only once")
        inside = {name: (path, linear) for name, path, linear in self._linears(network)}
        if not inside:
            raise InputError(
                f"LoRA: {type(network).__name__} has no linear layer inside a block of the {self.towers or 'both'} tower(s); "
                "choose towers with transformer blocks"
            )
        if isinstance(self.targets, str):
            chosen = {
                name: linear
                for name, (path, linear) in inside.items()
                if self.targets == "all" or (self.targets == "attention") == _is_attention(path)
            }
        else:
            chosen = {}
            for target in self.targets:
                matches = {name: each[1] for name, each in inside.items() if f".{name}".endswith(f".{target}")}
                if not matches:
                    there = sorted({path.rpartition(".")[2] for path, _ in inside.values()})
                    raise InputError(f"LoRA: no linear layer of a block is called {target!r}; there are {', '.join(there)}")
                chosen |= matches
            chosen = {name: linear for name, (_, linear) in inside.items() if name in chosen}  # in the network's order
        if not chosen:
            raise InputError(f"LoRA: no linear layer of a block belongs to the {self.targets} part; name the layers in targets")
        return chosen

    def _linears(self, network: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
        """Name in the network, path in the block, and layer, of every linear layer inside a block of the chosen towers."""
        sides = sides_of(self.towers)
        for prefix, block in _blocks(network, self.towers):
            for path, module in block.named_modules():
                if not _is_linear(module) or not _OTHER.isdisjoint(path.split(".")):
                    continue
                if isinstance(block, beit3.Layer) and path.split(".")[0] not in sides:
                    continue
                yield f"{prefix}.{path}" if prefix else path, path, module


def _is_linear(module: nn.Module) -> bool:
    """A plain linear layer, or GPT-2's own, whose weight lies the other way."""
    kind = type(module)
    return kind is nn.Linear or (kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils")


def _blocks(network: nn.Module, towers: Towers | None) -> Iterator[tuple[str, nn.Module]]:
    """Transformer blocks by name: BEiT-3's layers, those that a tower of ours lists, or of another part those that are known, or
    what stands in its list of blocks."""
    names = {module: name for name, module in network.named_modules()}
    blocks: list[nn.Module] = [module for module in names if isinstance(module, beit3.Layer)]
    for part in [] if blocks else chosen_towers(network, towers, "LoRA").values():
        listed = getattr(part, "blocks", None)
        blocks += listed if isinstance(listed, list) and listed else _known_blocks(part) or _listed_blocks(part)
    for block in blocks:
        yield names[block], block


def _known_blocks(part: nn.Module) -> list[nn.Module]:
    return [module for module in part.modules() if multiway.site_of(module) is not None]


def _listed_blocks(part: nn.Module) -> list[nn.Module]:
    return list(part.get_submodule(path).children()) if (path := find_blocks(part)) else []


def _is_attention(path: str) -> bool:
    """Whether a linear layer of a block belongs to the attention. BEiT-3's experts hold theirs as `qkv` and `out`."""
    return any(part in ("qkv", "out") or "attn" in part or "attention" in part for part in path.split("."))


def merge(network: nn.Module) -> None:
    """Fold LoRA into the weights, in place: the network is then as if it had never had any, and computes the same.

    Raises:
        InputError: There is no LoRA in it.
    """
    wrapped = [(name, module) for name, module in network.named_modules() if hasattr(module, _BASE) and hasattr(module, "lora_A")]
    if not wrapped:
        raise InputError(f"merge: {type(network).__name__} has no LoRA in it")
    for name, module in wrapped:
        module.merge()
        parent, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(parent), leaf, module.get_base_layer())
    del network.peft_config  # peft's note that it was here


# ------------------------------------------------------------------------------- state dicts without `base_layer`
# Functions of the module, not closures: they survive deepcopy.


def _show_base_names(module: nn.Module, state: dict[str, Tensor], prefix: str, _metadata: Any) -> None:
    inner = f"{prefix}{_BASE}."
    renamed = {f"{prefix}{name.removeprefix(inner)}" if name.startswith(inner) else name: name for name in state}
    values = [(new, state[old]) for new, old in renamed.items()]
    state.clear()
    state.update(values)  # in the old order


def _take_base_names(module: nn.Module, state: dict[str, Tensor], prefix: str, *_rest: Any) -> None:
    for name, _ in module.get_submodule(_BASE).named_parameters():
        if f"{prefix}{name}" in state:
            state[f"{prefix}{_BASE}.{name}"] = state.pop(f"{prefix}{name}")


def _report_base_names(_module: nn.Module, incompatible: Any) -> None:
    incompatible.missing_keys[:] = [name.replace(f".{_BASE}.", ".") for name in incompatible.missing_keys]
