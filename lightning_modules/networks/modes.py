"""Evaluation mode for a while, and what training mode means for layers that normalize by the batch."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

_LOCKS: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_LOOKING = threading.Lock()


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Without dropout, inside. Every part has its own mode again afterwards: frozen ones may be in another than the rest.

    Of the threads that use a module one is inside, and others wait: adapters keep in their modules what they hand on from one
    hook to the next, so that of two images at once each would get a part of the other's.
    """
    with _LOOKING:
        lock = _LOCKS.setdefault(module, threading.RLock())
    with lock:
        modes = [(each, each.training) for each in module.modules()]
        module.eval()
        try:
            yield
        finally:
            for each, training in modes:
                each.training = training


def training_statistics(module: nn.Module) -> list[str]:
    """Names of the layers that normalize by the batch while the module trains: batch norms in training mode, and others that keep
    running statistics."""
    return [
        name for name, layer in module.named_modules()
        if isinstance(layer, _NormBase) and layer.training and (isinstance(layer, _BatchNorm) or layer.track_running_stats)
    ]  # fmt: skip
