"""A GPU that is not there: tensors of the processor that say they are on cuda:0 and refuse what CUDA refuses.

    with pretended_gpu() as waits:
        module.to("cuda"); module.training_step(batch.to("cuda"), 0).backward()

An operation on tensors of both devices raises, as does .numpy(); numbers without dimensions may come from the processor, and so
may indices, as on a real GPU. `waits` counts what makes the processor wait for a GPU: .item(), .cpu(), a mask as an index. Not
seen: what happens inside of a backward pass, and everything in which kernels differ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from lightning_modules.networks import attention

GPU = torch.device("cuda:0")
_WAITING = {"item", "tolist", "__bool__", "__int__", "__float__", "__index__", "nonzero", "unique", "bincount", "equal"}
_FROM_BOTH = {"to", "copy_", "__getitem__", "__setitem__", "__set__"}  # the first tensor says where the result is
_BACKWARD = {"backward", "grad"}
_SAYS: dict[Any, Any] = {Tensor.device.__get__: GPU, Tensor.is_cuda.__get__: True, Tensor.is_cpu.__get__: False}  # type: ignore[attr-defined]


class OnGPU(Tensor):
    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})


class ParameterOnGPU(OnGPU, nn.Parameter):
    pass


_waits: Counter[str] = Counter()
_in_backward = False


def _call(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    global _in_backward
    first = args[0] if args and isinstance(args[0], Tensor) else None
    if func in _SAYS and isinstance(first, OnGPU):
        return _SAYS[func]
    name = getattr(func, "__name__", "")
    if name in ("__deepcopy__", "__reduce_ex__") and isinstance(first, OnGPU):
        return _here(_plain(func, (_away(first), *args[1:]), kwargs))
    tensors = [each for each in tree_leaves((args, dict(kwargs))) if isinstance(each, Tensor)]
    on_gpu = any(isinstance(each, OnGPU) for each in tensors)
    places = [each for each in (kwargs.get("device"), *args[1:]) if isinstance(each, (str, torch.device))]
    target = torch.device(places[0]).type if places and (name == "to" or "device" in kwargs) else None
    if name == "to" and target is None and len(args) > 1 and isinstance(args[1], Tensor):
        target = "cuda" if isinstance(args[1], OnGPU) else "cpu"
    if name == "cpu":
        target = "cpu"
    if not _in_backward and on_gpu:
        _check(name, args, tensors)
        if name in _WAITING or (name in ("to", "cpu") and target == "cpu" and isinstance(first, OnGPU)):
            _waits[name] += 1
    if target == "cuda":  # on the processor after all
        args = tuple("cpu" if name == "to" and isinstance(each, (str, torch.device)) else each for each in args)
        kwargs = {**kwargs, "device": "cpu"} if "device" in kwargs else kwargs
    outer = _in_backward
    _in_backward = outer or name in _BACKWARD
    try:
        out = _plain(func, args, kwargs)
    finally:
        _in_backward = outer
    if target is None and name in _FROM_BOTH:
        on_gpu = isinstance(first, OnGPU)
    if target == "cuda" or (target is None and on_gpu):
        return tree_map_only(Tensor, _here, out)
    return tree_map_only(OnGPU, _away, out) if target is not None else out


def _check(name: str, args: tuple[Any, ...], tensors: list[Tensor]) -> None:
    if name in ("numpy", "__array__"):
        raise RuntimeError("can't convert cuda:0 device type tensor to numpy")
    if name in ("__getitem__", "__setitem__"):
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        places = [each for each in index if isinstance(each, Tensor)]
        if not isinstance(args[0], OnGPU) and any(isinstance(each, OnGPU) and each.ndim for each in places):
            raise RuntimeError("indices should be on cpu, as the indexed tensor")
        if any(each.dtype == torch.bool for each in places):
            _waits["mask"] += 1
    elif name not in _FROM_BOTH:
        for each in tensors:
            if not isinstance(each, OnGPU) and _plain(Tensor.dim, (each,), {}):
                raise RuntimeError(f"{name}: expected all tensors to be on the same device, found cuda:0 and cpu")


def _plain(func: Any, args: Any, kwargs: Any) -> Any:
    with torch._C.DisableTorchFunctionSubclass():
        return func(*args, **kwargs)


def _here(tensor: Any) -> Any:
    if not isinstance(tensor, Tensor) or isinstance(tensor, OnGPU):
        return tensor
    if isinstance(tensor, nn.Parameter):
        tensor.__class__ = ParameterOnGPU
        return tensor
    return _plain(Tensor.as_subclass, (tensor, OnGPU), {})


def _away(tensor: OnGPU) -> Tensor:
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(_plain(Tensor.as_subclass, (tensor.detach(), Tensor), {}), tensor.requires_grad)
    return _plain(Tensor.as_subclass, (tensor, Tensor), {})


class _Mode(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})


@contextmanager
def pretended_gpu() -> Iterator[Counter[str]]:
    """Yields the waits, counted since."""
    apply: Callable[..., nn.Module] = nn.Module._apply
    autocast = torch.autocast.__init__

    def to_gpu(module: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        apply(module, fn, recurse)
        if isinstance(fn(torch.empty(1)), OnGPU):
            for parameter in module._parameters.values():
                _here(parameter)
        return module

    def of_processor(self: torch.autocast, device_type: str, *rest: Any, **options: Any) -> None:
        autocast(self, "cpu" if device_type == "cuda" else device_type, *rest, **options)

    _waits.clear()
    with pytest.MonkeyPatch.context() as patch, _Mode():
        patch.setattr(nn.Module, "_apply", to_gpu)
        patch.setattr(torch.autocast, "__init__", of_processor)
        patch.setattr(torch.cuda, "is_available", lambda: True)
        # a checkpointed segment is computed again inside of the backward pass, where its tensors are the processor's
        patch.setattr(attention, "_is_faster_in_products", lambda *_: False)
        yield _waits
