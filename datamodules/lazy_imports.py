"""What a run may never use is imported when it is used: a start costs little more than `import torch`.

`import lightning.pytorch` takes three times as long as `import torch`, and no run of ours uses most of it: torchmetrics imports
metrics of images, these import torchvision, this imports torch's compiler (torch._dynamo), and this sympy. So each package of
`DOORS` is kept closed: it is in sys.modules, with a `__path__`, but its `__init__` has not run. It runs at the first use of
anything in it that is not to be had at the door: an attribute, a `from` import, or the import of a sub-module. From then on it is
the ordinary module, and the same object; who took a stand-in at the door gets the thing itself. So nothing is missing, it only
comes later: torch.compile, isinstance, pickles and workers of any start method find what they look for.

Where an upgrade has moved what a door lends out, the package is imported as ever: slower, and the tests say so.
`CROSSLIGHT_EAGER_IMPORTS=1` leaves all doors open.

To find what opens a door: a breakpoint in `open_door`. To find what is dear: `python -X importtime`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Door:
    """What of a closed package is to be had without opening it.

    Args:
        rooms: Sub-modules that work without the package's `__init__`, imported with the door, in this order.
        lent: Names at the package that a room has, by room.
        stand_ins: Other names there, until it is opened.
        private: Rooms may import what is private in the package, too.
        opened: Called with the package once it is.
    """

    rooms: tuple[str, ...] = ()
    lent: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    stand_ins: Mapping[str, Any] = field(default_factory=dict)
    private: bool = False
    opened: Callable[[ModuleType], None] = lambda package: None


_LOCK = threading.RLock()


class _Closed(ModuleType):
    """A package whose `__init__` has not run yet."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in ("__all__", "__version__"):  # who looks through sys.modules opens nothing
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        open_door(self.__name__)
        return getattr(self, name)


class _Opening(_Closed):
    """A package whose `__init__` runs now: in this thread an ordinary half-made module, other threads wait for it."""

    def __getattr__(self, name: str) -> Any:
        with _LOCK:
            if name in self.__dict__:
                return self.__dict__[name]
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


def is_closed(name: str) -> bool:
    """Whether the package has been imported and its `__init__` has not run."""
    return type(sys.modules.get(name)) is _Closed


def open_door(name: str) -> None:
    """Run the package's `__init__`, once."""
    with _LOCK:
        parent = name.rpartition(".")[0]
        if is_closed(parent):
            open_door(parent)  # which may well open this one
        package = sys.modules[name]
        if not is_closed(name):
            return
        door = DOORS[name]
        for stand_in in door.stand_ins:
            package.__dict__.pop(stand_in, None)
        package.__class__ = _Opening
        try:
            spec: Any = package.__spec__
            spec.loader.exec_module(package)
        except BaseException:
            package.__dict__.update(door.stand_ins)
            package.__class__ = _Closed  # the next use tries again, as the next import of a module does that failed
            raise
        package.__class__ = ModuleType
        _hand_over(package, door.stand_ins)
        door.opened(package)


def _hand_over(package: ModuleType, stand_ins: Mapping[str, Any]) -> None:
    """Give the modules that took a stand-in under its name the thing itself."""
    for module in list(sys.modules.values()):
        names = getattr(module, "__dict__", {})
        for name, stand_in in stand_ins.items():
            if names.get(name) is stand_in:
                names[name] = getattr(package, name, stand_in)


class _AtTheDoor(Loader):
    """Makes a package and leaves it closed."""

    def __init__(self, ordinary: Loader) -> None:
        self.ordinary = ordinary

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.ordinary.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__loader__ = module.__spec__.loader = self.ordinary
        module.__class__ = _Closed
        door = DOORS[module.__name__]
        try:
            module.__dict__.update(door.stand_ins)
            rooms = {room: importlib.import_module(f"{module.__name__}.{room}") for room in door.rooms}
            for room, names in door.lent.items():
                every = [name for name in vars(rooms[room]) if not name.startswith("_")] if names == ("*",) else names
                module.__dict__.update({name: getattr(rooms[room], name) for name in every})
        except Exception:  # an upgrade has moved something
            open_door(module.__name__)


class _Inside(Loader):
    """Imports a sub-module of a closed package: the package's `__init__` comes first, and may import it itself."""

    def __init__(self, package: str) -> None:
        self.package = package

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        open_door(self.package)
        self.done = spec.name in sys.modules
        if self.done:
            module = sys.modules[spec.name]
            assert module.__spec__ is not None
            self.spec = module.__spec__
            return module
        found = importlib.util.find_spec(spec.name)
        if found is None:
            raise ModuleNotFoundError(f"No module named {spec.name!r}", name=spec.name)
        self.spec = found
        return importlib.util.module_from_spec(found)

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec
        if not self.done:
            assert self.spec.loader is not None
            self.spec.loader.exec_module(module)


class _Doorkeeper(MetaPathFinder):
    """The finder of the packages of `DOORS` and of what is inside of them while they are closed."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname in sys.modules:
            return None  # importlib.reload
        package, _, _ = fullname.rpartition(".")
        while package:
            if is_closed(package) and not _in_rooms(package, fullname):
                return ModuleSpec(fullname, _Inside(package))
            package, _, _ = package.rpartition(".")
        if fullname not in DOORS:
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _AtTheDoor(spec.loader)
        return spec


def _in_rooms(package: str, module: str) -> bool:
    """Whether a sub-module can be had of the closed package."""
    door, inner = DOORS[package], module.removeprefix(f"{package}.")
    return any(f"{inner}.".startswith(f"{room}.") for room in door.rooms) or (door.private and inner.startswith("_"))


def install() -> None:
    """Close the doors from here on; what has been imported already stays as it is."""
    if os.environ.get("CROSSLIGHT_EAGER_IMPORTS") != "1" and not any(isinstance(each, _Doorkeeper) for each in sys.meta_path):
        sys.meta_path.insert(0, _Doorkeeper())


# --------------------------------------------------------------------------------------------------------- stand-ins


class _Later:
    """A class or function of a closed module: naming it opens nothing, calling it, deriving from it or asking it does.

    Args:
        module: Where it is.
        name: What it is called there.
        has_instances: Whether there may be instances of the class before the module is opened: not if it is made there.
    """

    def __init__(self, module: str, name: str, has_instances: bool = False) -> None:
        self._module, self._name, self._has_instances = module, name, has_instances

    def _it(self) -> Any:
        open_door(self._module)
        return getattr(sys.modules[self._module], self._name)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._it()(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._it(), name)

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._it(),)

    def __instancecheck__(self, instance: Any) -> bool:
        return (self._has_instances or not is_closed(self._module)) and isinstance(instance, self._it())

    def __subclasscheck__(self, subclass: type) -> bool:
        return (self._has_instances or not is_closed(self._module)) and issubclass(subclass, self._it())


class _Unraised(Exception):
    """For `except`, where what would be raised cannot be yet."""


_undisabled: list[Any] = []  # functions that torch excepts from compilation, called while there was no compiler
_marked: list[tuple[str, Any]] = []  # functions that are to be marked for it, and as what


def _disable(fn: Any = None, recursive: bool = True, **options: Any) -> Any:
    """torch.compiler.disable, and what torch/_compile.py asks in the first call of a function that is never compiled.

    While there is no compiler, such a function is itself. torch keeps the answer in it, from where `_compiler_is_there` takes it.
    """
    if fn is None:
        return functools.partial(_disable, recursive=recursive, **options)
    if is_closed("torch._dynamo") and inspect.isfunction(fn):
        if options != {"wrapping": False}:  # a decorator, when a module is imported: torch's own that asks in the first call
            return importlib.import_module("torch._compile")._disable_dynamo(fn, recursive)
        _undisabled.append(fn)
        return fn
    open_door("torch._dynamo")
    return sys.modules["torch._dynamo"].disable(fn, recursive, **options)


def _marker(name: str) -> Callable[[Any], Any]:
    """A decorator that tells the compiler something about a function and gives the function back. Told once there is one."""

    def mark(fn: Any) -> Any:
        if is_closed("torch._dynamo") and inspect.isfunction(fn):
            _marked.append((name, fn))
            return fn
        open_door("torch._dynamo")
        return getattr(sys.modules["torch._dynamo"], name)(fn)

    return mark


def _compiler_is_there(dynamo: ModuleType) -> None:
    for function in _undisabled:
        vars(function).pop("__dynamo_disable", None)  # torch asks again in the next call
    for name, function in _marked:
        getattr(dynamo, name)(function)
    _undisabled.clear()
    _marked.clear()


class _Part(_Later):
    """A sub-module of a closed package, some of whose functions are to be had at the door.

    Args:
        package: What is closed.
        name: Of the sub-module.
        functions: What stands for them until the package is opened.
    """

    def __init__(self, package: str, name: str, functions: Mapping[str, Callable[[], Any]]) -> None:
        super().__init__(package, name)
        self.functions = functions

    def __getattr__(self, name: str) -> Any:
        if is_closed(self._module) and name in self.functions:
            return self.functions[name]
        return super().__getattr__(name)


def _graph_break(*arguments: Any, **options: Any) -> None:
    """Nothing, where no graph is made."""
    if not is_closed("torch._dynamo"):
        sys.modules["torch._dynamo"].graph_break(*arguments, **options)


# ------------------------------------------------------------------------------------------------------------- doors

_TRACE = "torch._dynamo._trace_wrapped_higher_order_op"
_SHAPES = "torch.fx.experimental.symbolic_shapes"
_PLOT = "torchmetrics.utilities.plot"
DOORS: dict[str, Door] = {
    # Lightning needs the base classes alone; all else is metrics, and pulls in torchvision, transformers, scipy.
    "torchmetrics": Door(
        rooms=("__about__", "utilities", "metric", "collections"),
        lent={"__about__": ("__version__",), "metric": ("Metric",), "collections": ("MetricCollection",)},
        stand_ins={"_logger": logging.getLogger("torchmetrics")},
    ),
    _PLOT: Door(  # matplotlib
        stand_ins={
            "_AX_TYPE": _Later(_PLOT, "_AX_TYPE", has_instances=True),
            "_PLOT_OUT_TYPE": _Later(_PLOT, "_PLOT_OUT_TYPE", has_instances=True),
            "plot_single_or_multi_val": _Later(_PLOT, "plot_single_or_multi_val"),
        }
    ),
    # torch.compile and sympy. Optimisers ask for the first two, Lightning whether a module is a compiled one.
    "torch._dynamo": Door(
        rooms=("_trace_wrapped_higher_order_op",),
        stand_ins={
            "disable": _disable,
            "graph_break": _graph_break,
            "assume_constant_result": _marker("assume_constant_result"),
            "allow_in_graph": _marker("allow_in_graph"),
            "OptimizedModule": _Later("torch._dynamo", "OptimizedModule"),
            # Each process of DDP asks. There are no caches yet, and the mode is torch's default: who sets another opens the door.
            "trace_rules": _Part("torch._dynamo", "trace_rules", {"clear_lru_cache": lambda: None}),
            "utils": _Part("torch._dynamo", "utils", {"get_optimize_ddp_mode": lambda: "ddp_optimizer"}),
        },
        opened=_compiler_is_there,
    ),
    _TRACE: Door(stand_ins={"TransformGetItemToIndex": _Later(_TRACE, "TransformGetItemToIndex")}),  # for transformers' masks
    _SHAPES: Door(  # sympy, for DTensor, that transformers asks for
        stand_ins={
            "guard_or_false": _Later(_SHAPES, "guard_or_false"),
            "has_free_unbacked_symbols": _Later(_SHAPES, "has_free_unbacked_symbols"),
            "statically_known_true": _Later(_SHAPES, "statically_known_true"),
            "GuardOnDataDependentSymNode": _Unraised,
        }
    ),
    # triton, for Lightning's model summary
    "torch.utils.flop_counter": Door(
        stand_ins={"FlopCounterMode": _Later("torch.utils.flop_counter", "FlopCounterMode")}
    ),
    # Transforms and timm need little of it: not the models, not torch.onnx, not torch._dynamo.
    "torchvision": Door(
        rooms=(
            "extension", "_autograd_registrations", "_meta_registrations", "version", "utils", "ops", "io", "transforms",
            "tv_tensors", "models",
        ),
        lent={"version": ("__version__",)},
        private=True,
    ),
    "torchvision.ops": Door(
        rooms=("boxes", "misc"),
        lent={"boxes": ("box_iou", "batched_nms", "clip_boxes_to_image", "nms", "remove_small_boxes")},
        private=True,
    ),
    "torchvision.models": Door(rooms=("feature_extraction",)),
    "timm.data": Door(
        rooms=("constants", "config"),
        lent={"constants": ("*",), "config": ("resolve_data_config", "resolve_model_data_config")},
    ),
}  # fmt: skip
