"""Which parameters are at a random start that nobody asked for, and the refusal of a network in which such ones would decide.

Random weights that train are a beginning. Random weights that nothing trains make every number one of chance, whatever the rest
of the network knows. `weights: random` on a part says that they are meant (frozen towers from a seed, on the embedded world).
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import nn

from datamodules.errors import InputError, some
from lightning_modules.adapters.tuning import HasHeads, head_names


def fresh_parameters(network: nn.Module) -> frozenset[str]:
    """State-dict names of the parameters that neither a file nor a library brought, and that nobody asked to be random.

    The parts of ours say it of themselves (`fresh`). Of a network of one's own it is the heads that are not in `loaded_heads`.
    """
    found = {
        f"{prefix}.{name}" if prefix else name for prefix, part in network.named_modules() for name in getattr(part, "fresh", ())
    }
    if not hasattr(network, "fresh") and isinstance(network, HasHeads):
        found |= head_names(network) - network.loaded_heads
    return frozenset(found)


def note_brought(network: nn.Module, names: Set[str]) -> None:
    """Something has filled these state-dict names."""
    for prefix, part in network.named_modules():
        if fresh := getattr(part, "fresh", None):
            untyped: Any = part
            untyped.fresh = frozenset(name for name in fresh if (f"{prefix}.{name}" if prefix else name) not in names)


_later: ContextVar[bool] = ContextVar("_later", default=False)


@contextmanager
def brought_later() -> Iterator[None]:
    """While inside, networks may be built that are not started: whoever builds them fills in what they lack."""
    token = _later.set(True)
    try:
        yield
    finally:
        _later.reset(token)


def require_started(network: nn.Module, tuning: str | None, ignored: Set[str] = frozenset()) -> None:
    """Refuse a network with parameters that are at an unasked random start and do not train. (On the meta device nothing starts.)

    Args:
        network: With everything loaded, and `requires_grad` set; or what holds networks, such as a Lightning module.
        tuning: For the message; None = it is no module of ours, and has no such options.
        ignored: Further parameters that take no part in the task.

    Raises:
        InputError: Names them and says what to do.
    """
    if _later.get():
        return
    own = network.state_dict(keep_vars=True)
    idle = sorted(
        name
        for name in fresh_parameters(network) - _unused(network) - ignored
        if name in own and not own[name].requires_grad and not own[name].is_meta
    )
    if idle and tuning is None:
        raise InputError(
            f"{_told(idle, 'model')} are at their random start and do not train, so every number would be one of chance. Give "
            "weights that have them (`weights` of the network or of that part of it; `random` says that random ones are meant or "
            "that the module brings them itself), or let them train."
        )
    if idle:
        raise InputError(
            f"{_told(idle)} are at their random start and would stay there (tuning {tuning}), so every number would be one of "
            "chance. Give weights that have them (`weights` of the network or of that part of it; `random` says that random ones "
            "are meant), start from a run that has them (model.init_from), or let them train (tuning full or head; beside an "
            "adapter train_heads new)." + _OWN * (not hasattr(network, "fresh"))
        )


def require_weights(network: nn.Module) -> None:
    """Refuse to evaluate a network as it is built where parameters are at an unasked random start, those that would train too.

    Args:
        network: Complete; or what holds networks, such as a Lightning module.

    Raises:
        InputError: Names them and says what to do.
    """
    if random := sorted(fresh_parameters(network) - _unused(network)):
        raise InputError(
            f"{_told(random)} are at their random start: nothing was trained here. Give the checkpoint to evaluate "
            "(--ckpt_path RUN/checkpoints/best.ckpt), or model.init_from."
        )


_OWN = " What the network loads by itself belongs into its `loaded_heads`."


def _unused(network: nn.Module) -> frozenset[str]:
    """What takes no part in the task, as the network says, or where it does not, each network inside."""
    unused: Any = getattr(network, "unused_parameters", None)
    if unused is not None:
        return frozenset(unused())
    return frozenset(f"{name}.{inner}" for name, part in network.named_children() for inner in _unused(part))


def _told(names: list[str], owner: str = "model.network") -> str:
    return f"{len(names)} parameters of {owner} ({some(names)})"
