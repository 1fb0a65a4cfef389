"""Any method of peft that changes linear layers, by peft's own configuration: DoRA, (IA)3, VeRA, OFT, LoHa, LoKr and others.

What a method is called, which options it has, and what it computes, is peft's; which layers, which names and which files is as
for every adapter here. `docs/extend/peft.md` lists what goes and what is refused.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NamedTuple

from torch import Tensor, nn

from datamodules.errors import InputError, some
from lightning_modules.adapters.adapter import Adapter
from lightning_modules.adapters.line import times
from lightning_modules.adapters.linear_layers import LinearLayer, Targets, ends_with, find_linear_layers
from lightning_modules.adapters.peft_layers import (
    factors,
    identity,
    merge,
    own_parameters,
    quiet,
    require_peft,
    require_repeatable,
    unwrap,
    wrap,
)
from lightning_modules.adapters.towers import Towers

_SPOKEN: dict[str, tuple[str, dict[str, Any]]] = {  # options of LoRA that are papers of their own
    "DORA": ("LORA", {"use_dora": True}),
    "RSLORA": ("LORA", {"use_rslora": True}),
}
_OURS = {  # options that say where a method goes, or that would train what is not its own
    "target_modules": "targets",
    "exclude_modules": "targets",
    "layers_to_transform": "targets",
    "layers_pattern": "targets",
    "target_parameters": "targets",
    "modules_to_save": "train_heads of the module",
    "trainable_token_indices": "targets",
    "bias": "biases of the backbone stay as they are",
    "fan_in_fan_out": "it is known of each layer",
}
_ELSEWHERE = {  # methods for something else than linear layers, which peft would put there all the same
    "LN_TUNING": "it tunes norms",
    "TRAINABLE_TOKENS": "it tunes embeddings",
}
_INPUTS = "feedforward_modules"  # (IA)3: layers whose inputs, not outputs, are scaled
_SEARCHES = {"OSFConfig"}  # whose patterns may be anywhere in a layer's name; of the others they are what it ends with
_SHARED = "save_projection"  # whether one random matrix of all layers is kept; it is made again from `projection_prng_key`


class PEFTAdapter(Adapter):
    """A method of peft in the linear layers inside the transformer blocks; never in embeddings and heads.

    Args:
        method: peft's name of it, in any case (DoRA, IA3, VeRA, OFT, LoHa, LoKr ...), or its configuration class (IA3Config).
        options: Of that configuration, such as {r: 8, lora_alpha: 16}. `r: 0` = no adapter. (IA)3's feedforward_modules are names
            of layers as they end, and by default all targets that are not attention.
        targets: "attention" (projections), "ffn", "all", or names of linear layers as they end (["qkv", "fc2"]).
        towers: Which towers: of a dual encoder, in BEiT-3 whose experts; "text" is the language model of a captioner. Null = all
            that take part in the task, and each of them must have targets.

    Raises:
        InputError: peft is not installed, has no such method or option, or the method cannot be kept as adapters are kept here.
    """

    def __init__(
        self,
        method: str,
        options: dict[str, Any] | None = None,
        targets: Targets | list[str] = "all",
        towers: Towers | None = None,
    ) -> None:
        if not targets:
            raise InputError(f"{method}: targets is empty; name linear layers, or give all, attention or ffn")
        require_peft(method)
        self.method = method
        self.options = dict(options or {})
        self.targets = targets
        self.towers = towers
        self._identity = False
        self._factors: frozenset[str] = frozenset()  # what (IA)3, BOFT and others call those that start at 1
        self._method, self._given = _method(method, self.options)

    @property
    def identity_at_start(self) -> bool:
        """As it was seen at `inject`; False before."""
        return self.off or self._identity

    @property
    def off(self) -> bool:
        """Whether its rank `r` is 0, for methods to which that means no other thing (OFT's is then given as a block size)."""
        default = next((field.default for field in fields(self._method.config) if field.name == "r"), 0)
        return self._given.get("r") == 0 and default != 0

    def owns(self, parameter_name: str) -> bool:
        """Whether the name of a parameter, of a state-dict entry or of a module is this adapter's."""
        return not self._method.names.isdisjoint(parameter_name.split("."))

    def spares(self, parameter_name: str) -> bool:
        """Whether weight decay leaves a parameter alone: peft keeps (IA)3's factors as matrices [out, 1] or [1, in], and decay
        would draw what they scale towards 0."""
        return not self._factors.isdisjoint(parameter_name.split("."))

    def describe(self) -> dict[str, Any]:
        """Constructor arguments to build it again."""
        return super().describe() | {"identity_at_start": self.identity_at_start}

    def scaled(self, start: Mapping[str, Tensor], trained: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
        """LoRA and RSLoRA as `LoRAAdapter`: B times alpha. DoRA scales the weight that it is added to as well, and what the other
        methods add is peft's: they lie on the line.

        Raises:
            InputError: It is none of these two, and not the identity at its start.
        """
        if self._method.config.__name__ == "LoraConfig" and not self._given.get("use_dora"):
            return times(trained, alpha, lambda name: "lora_B" in name.split("."))
        return super().scaled(start, trained, alpha)

    def inject(self, network: nn.Module) -> None:
        """Wrap every target, on its device; nothing if it is `off`.

        Raises:
            InputError: Nothing matches (also a name in an option that names layers), the layers are wrapped already, or peft
                refuses them.
        """
        if self.off:
            return
        layers = find_linear_layers(network, self.targets, self.towers, self.method)
        self._require_named(layers)
        require_repeatable(self._config, next(iter(layers.values())), self.method)
        wrapped = wrap(network, self._config(layers), layers, self.method)
        try:
            for wrapper in wrapped.values():
                self._require_kept(wrapper)
        except InputError:
            unwrap(network, wrapped)
            raise
        self._identity = identity(wrapped)
        self._factors = frozenset(name.split(".")[0] for wrapper in wrapped.values() for name in factors(wrapper))

    def merge(self, network: nn.Module) -> Adapter | None:
        """Fold it into the weights; nothing is left.

        Raises:
            InputError: It is not there, or is no change of weights.
        """
        if not self.off and not merge(network, self.owns):
            raise InputError(f"merge: {type(network).__name__} has no {self.method} in it")
        return None

    def _config(self, layers: Mapping[str, LinearLayer]) -> Any:
        given = dict(self._given)
        known = {field.name for field in fields(self._method.config)}
        if _INPUTS in known:
            given[_INPUTS] = self._inputs_of(layers, given.get(_INPUTS))
        if _SHARED in known:
            given[_SHARED] = False
        try:
            with quiet():
                return self._method.config(**given)
        except (ValueError, TypeError, ImportError) as error:
            raise InputError(f"{self.method}: peft refuses these options ({' '.join(str(error).split()):.300})") from error

    def _inputs_of(self, layers: Mapping[str, LinearLayer], targets: list[str] | str | None) -> list[str]:
        if targets is None:
            return [name for name, layer in layers.items() if not layer.is_attention]
        ends = [targets] if isinstance(targets, str) else targets
        return [name for name in layers if any(ends_with(name, end) for end in ends)]

    def _require_named(self, layers: Mapping[str, LinearLayer]) -> None:
        """Raises InputError: an option of some layers by name (rank_pattern, feedforward_modules) names none of these; peft would
        say nothing."""
        from peft.utils.other import get_pattern_key

        searches = self._method.config.__name__ in _SEARCHES
        for option, names in self._given.items():
            if option == _INPUTS and names is not None:
                idle = [name for name in ([names] if isinstance(names, str) else names) if not self._inputs_of(layers, [name])]
            elif option.endswith("_pattern") and names:
                idle = [
                    name
                    for name in names
                    if not any(re.search(name, at) if searches else get_pattern_key([name], at) == name for at in layers)
                ]
            else:
                continue
            if idle:
                there = sorted({layer.path.rpartition(".")[2] for layer in layers.values()})
                raise InputError(
                    f"{self.method}: {option} names {some(idle)}, and no layer that it goes into is called so; there are "
                    f"{', '.join(there)}"
                )

    def _require_kept(self, wrapper: Any) -> None:
        """Raises InputError: it has more than trains under its names; files of adapters hold just that."""
        own = own_parameters(wrapper)
        trains = {name for name, parameter in own.items() if parameter.requires_grad and self.owns(name)}
        kept = wrapper.state_dict().keys() - wrapper.get_base_layer().state_dict().keys()
        if strange := sorted((kept | own.keys()) - trains):
            raise InputError(
                f"{self.method}: it has parts of its own that do not train ({some(strange)}), which no checkpoint and no export "
                "holds; choose another method or other options"
            )


class _Method(NamedTuple):
    """A method of peft: its configuration class, and the names that its layers give their parts."""

    config: Any
    names: frozenset[str]


def _methods() -> dict[str, _Method]:
    """Those that go into layers, by peft's names."""
    import peft

    found = {}
    for kind, tuner in peft.PEFT_TYPE_TO_TUNER_MAPPING.items():
        layer: Any = getattr(tuner, "tuner_layer_cls", None)
        names: tuple[str, ...] = getattr(layer, "adapter_layer_names", ())
        if names and kind.name not in _ELSEWHERE:
            stem = f"{names[0].split('_')[0]}_"  # beside what trains: lora_dropout, vera_A; not plain numbers like `r`
            others = [name for name in layer.other_param_names if name.startswith(stem)]
            found[kind.name] = _Method(peft.PEFT_TYPE_TO_CONFIG_MAPPING[kind], frozenset([*names, *others]))
    return found


def _method(name: str, options: Mapping[str, Any]) -> tuple[_Method, dict[str, Any]]:
    """The method, and its options with those that its name implies."""
    methods = _methods()
    peft_name, implied = _SPOKEN.get(name.upper(), (name.upper(), {}))
    by_class = {method.config.__name__.upper(): method for method in methods.values()}
    method = methods.get(peft_name) or by_class.get(peft_name.removeprefix("PEFT."))
    if method is None:
        there = sorted([*methods, *_SPOKEN])
        near = difflib.get_close_matches(peft_name, there, 1, 0.5)
        meant = f"Is {near[0]} meant? " if near and peft_name not in _ELSEWHERE else ""
        why = _ELSEWHERE.get(peft_name, "peft has none of this name that changes layers")
        raise InputError(f"method {name}: {why}. {meant}There are {', '.join(there)}; docs/extend/peft.md says which go.")
    _require_options(name, method.config, options)
    if clash := [option for option in implied if option in options and options[option] != implied[option]]:
        raise InputError(f"{name} is {peft_name} with {clash[0]} {implied[clash[0]]}, and options say {options[clash[0]]}")
    return method, {**options, **implied}


def _require_options(name: str, config: Any, options: Mapping[str, Any]) -> None:
    import peft

    known, base = ({field.name for field in fields(kind)} for kind in (config, peft.PeftConfig))
    free = known - base - _OURS.keys()
    for option in options:
        if option not in known:
            near = difflib.get_close_matches(option, free, 3, 0.5)
            meant = f"is {' or '.join(near)} meant? " if near else ""
            raise InputError(
                f"{name}: {config.__name__} of peft has no option {option!r}; {meant}it has {', '.join(sorted(free))}"
            )
        if option not in free:
            raise InputError(f"{name}: leave out the option {option} of peft ({_OURS.get(option, 'it is set by itself')})")
