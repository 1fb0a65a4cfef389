"""Layers of peft in a network of ours: put in, under the backbone's own names, and folded into the weights again.

peft puts a wrapper in a linear layer's place, and the layer's own keys get a `base_layer.` in them. Checkpoints, exports and
fingerprints name the backbone as it is without an adapter, so the wrappers here show and take the unwrapped names: `qkv.weight`
stays `qkv.weight`, and `qkv.lora_A.default.weight` is new. (Only state dicts are renamed: in `named_parameters` it shows.)

What hooks a layer (I-Tuning and MultiWay-Adapter read and complete an FFN so) hooks its wrapper instead: it reads what the layer
is given and adds to what it gives, whatever the method does to inputs, outputs or weights in between.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from datamodules.errors import InputError, some
from lightning_modules.adapters.linear_layers import WRAPPED, LinearLayer

NAME = "default"
"""peft's name of an adapter, which stands in its keys."""


def require_peft(adapter: str) -> None:
    """See that peft is installed.

    Raises:
        InputError: It is not.
    """
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise InputError(f"{adapter} needs peft, which is not installed ({error}): pip install 'crosslight[lora]'") from error


# ------------------------------------------------------------------------------------------------------------- put in


def wrap(network: nn.Module, config: Any, layers: Mapping[str, LinearLayer], adapter: str) -> dict[str, Any]:
    """Put a method of peft around these layers, each on its device. The network is as it was if peft refuses.

    Args:
        network: The network.
        config: A `peft.PeftConfig`; its `target_modules` are set here.
        layers: By their whole names.
        adapter: Its name, for messages.

    Returns:
        The wrappers (`BaseTunerLayer` of peft) by name.

    Raises:
        InputError: peft refuses, or would change weights before anything is learnt.
    """
    from peft import PEFT_TYPE_TO_TUNER_MAPPING

    config.target_modules = list(layers)  # whole names, so that nothing outside matches
    training, there = network.training, set(_wrappers(network))
    before = {name: _sample(layer.module) for name, layer in layers.items()}
    with quiet():
        try:
            # As `peft.inject_adapter_in_model`, which refuses methods with one matrix for all layers (VeRA), since that is lost
            # with the tuner it leaves behind. The layers hold it as well, so here it is not.
            PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type](network, config, NAME)
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, ImportError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            _put_back(network, _wrappers(network, without=there))
            reason = " ".join(str(error).split())
            raise InputError(f"{adapter}: peft refuses ({reason:.300}); set other options or choose other targets") from error
    wrapped = _wrappers(network, without=there)
    if otherwise := sorted(wrapped.keys() ^ layers.keys()):
        _put_back(network, wrapped)
        raise InputError(f"{adapter}: peft does not put it into {some(otherwise)}; choose another method or other targets")
    if changed := [name for name, wrapper in wrapped.items() if _sample(wrapper.get_base_layer()) != before[name]]:
        raise InputError(
            f"{adapter}: this changes weights of the backbone when it is put in ({some(changed)}), so that its files would not "
            "fit the backbone that they name; set another initialization"
        )
    for wrapper in wrapped.values():
        for name, part in wrapper.named_children():
            if name != WRAPPED:
                part.float()  # what learns does so in fp32, also around frozen layers in bf16
        # where both are fp32, bf16 autocast would have peft turn every input into fp32 and back
        wrapper.cast_input_dtype_enabled = wrapper.get_base_layer().weight.dtype != torch.float32
        wrapper.train(training)
        _pass_hooks(wrapper.get_base_layer(), wrapper)
        wrapper.register_state_dict_post_hook(_show_base_names)
        wrapper.register_load_state_dict_pre_hook(_take_base_names)
        wrapper.register_load_state_dict_post_hook(_report_base_names)
    return wrapped


def merge(network: nn.Module, owns: Callable[[str], bool]) -> int:
    """Fold a method into the weights, in place, in fp32: the network computes the same, and has the layers that it had before.

    Args:
        network: The network.
        owns: Whether a name is of the method that is meant.

    Returns:
        How many layers had it.

    Raises:
        InputError: The method is no change of weights.
    """
    own = {name: wrapper for name, wrapper in _wrappers(network).items() if any(map(owns, dict(wrapper.named_modules())))}
    for name, wrapper in own.items():
        wrapper.get_base_layer().float()  # the sum would be rounded away in bf16
        try:
            wrapper.merge()
        except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:
            raise InputError(f"merge: {name} cannot be folded into one weight ({error})") from error
    unwrap(network, own)
    return len(own)


def unwrap(network: nn.Module, wrapped: Mapping[str, Any]) -> None:
    """Put the layers back that `wrap` has put into these, with what hooks them."""
    for wrapper in wrapped.values():
        _pass_hooks(wrapper, wrapper.get_base_layer())
    _put_back(network, wrapped)


def _put_back(network: nn.Module, wrapped: Mapping[str, Any]) -> None:
    for name, wrapper in wrapped.items():
        parent, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(parent), leaf, wrapper.get_base_layer())
    if hasattr(network, "peft_config") and not _wrappers(network):
        del network.peft_config  # peft's note that it was here


def _wrappers(network: nn.Module, without: Collection[str] = ()) -> dict[str, Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {
        name: module for name, module in network.named_modules() if isinstance(module, BaseTunerLayer) and name not in without
    }


def _sample(layer: nn.Module) -> list[float]:
    """Some of a layer's weights: whatever changes them in earnest changes these. None on the meta device."""
    weight = layer.get_parameter("weight").detach().flatten()
    return [] if weight.is_meta else weight[:: max(1, len(weight) // 64)].tolist()


@contextmanager
def quiet() -> Iterator[None]:
    """Without peft's warnings of what is meant here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*fan_in_fan_out.*")  # GPT-2's layers lie the other way; peft turns them
        warnings.filterwarnings("ignore", "Specified to not save")  # random matrices that a seed makes again
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # another method is in other layers
        yield


_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


def _pass_hooks(giver: nn.Module, taker: nn.Module) -> None:
    """The dictionaries themselves: handles that remove a hook know them."""
    for name in _HOOKS:
        hooks = getattr(giver, name)
        setattr(giver, name, getattr(taker, name))
        setattr(taker, name, hooks)


# ------------------------------------------------------------------------------------------------------- what a method is


def identity(wrapped: Mapping[str, Any]) -> bool:
    """Whether layers compute exactly the same with a method as without; False on the meta device, where nothing is computed."""
    with torch.no_grad():
        for wrapper in wrapped.values():
            base, training = wrapper.get_base_layer(), wrapper.training
            if base.weight.is_meta:
                return False
            x = _some_inputs(base).to(base.weight)
            same = torch.equal(wrapper.eval()(x), base(x))
            wrapper.train(training)
            if not same:
                return False
    return True


def require_repeatable(config: Callable[[Mapping[str, LinearLayer]], Any], layer: LinearLayer, adapter: str) -> None:
    """See on copies of a layer that a method's trained parameters are all that there is to it: made anew and given these, it
    computes the same; in training too, where torch draws the same. The random numbers of the process stay as they are.

    Args:
        config: Makes the configuration for layers.
        layer: One that it is meant for.
        adapter: Its name, for messages.

    Raises:
        InputError: There is more to it, or it does not work on a linear layer.
    """
    if layer.module.get_parameter("weight").is_meta:
        return
    x = _some_inputs(layer.module)
    outputs: list[tuple[Tensor, Tensor]] = []
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for seed in (0, 1):
            torch.manual_seed(seed)
            alone = nn.ModuleDict({"layer": copy.deepcopy(layer.module).cpu().float()})
            own = {"layer": LinearLayer(layer.path, alone["layer"])}
            (wrapper,) = wrap(alone, config(own), own, adapter).values()
            for name, parameter in own_parameters(wrapper).items():
                torch.manual_seed(len(name))
                parameter.copy_(torch.randn(parameter.shape) * 0.1)
            try:
                evaluated = [wrapper.eval()(x) for _ in range(1 + seed)][-1]  # the second is called once more
                torch.manual_seed(2)
                outputs.append((evaluated, wrapper.train()(x)))
            except (ValueError, TypeError, RuntimeError, AttributeError) as error:
                reason = " ".join(str(error).split())
                raise InputError(f"{adapter}: it does not work on a linear layer by itself ({reason:.200})") from error
    if not all(map(torch.equal, *outputs)):
        raise InputError(
            f"{adapter}: it draws random numbers that no checkpoint keeps, so it would be another one when it is loaded or goes "
            "on; set the option that seeds them, or choose another method"
        )


def own_parameters(wrapper: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that a method has put around a layer."""
    return {name: value for name, value in wrapper.named_parameters() if not name.startswith(f"{WRAPPED}.")}


def factors(wrapper: nn.Module) -> list[str]:
    """Those of its parameters that start at 1, all of them; none on the meta device."""
    return [name for name, value in own_parameters(wrapper).items() if not value.is_meta and bool((value == 1).all())]


def _some_inputs(layer: nn.Module) -> Tensor:
    width = layer.in_features if isinstance(layer, nn.Linear) else int(layer.get_parameter("weight").shape[0])
    return torch.linspace(-1, 1, 2 * width).reshape(2, width)


# ------------------------------------------------------------------------------- state dicts without `base_layer`
# Functions of the module, not closures: they survive deepcopy.


def _show_base_names(module: nn.Module, state: dict[str, Tensor], prefix: str, _metadata: Any) -> None:
    inner = f"{prefix}{WRAPPED}."
    renamed = {f"{prefix}{name.removeprefix(inner)}" if name.startswith(inner) else name: name for name in state}
    values = [(new, state[old]) for new, old in renamed.items()]
    state.clear()
    state.update(values)  # in the old order


def _take_base_names(module: nn.Module, state: dict[str, Tensor], prefix: str, *_rest: Any) -> None:
    for name, _ in module.get_submodule(WRAPPED).named_parameters():
        if f"{prefix}{name}" in state:
            state[f"{prefix}{WRAPPED}.{name}"] = state.pop(f"{prefix}{name}")


def _report_base_names(_module: nn.Module, incompatible: Any) -> None:
    incompatible.missing_keys[:] = [name.replace(f".{WRAPPED}.", ".") for name in incompatible.missing_keys]
