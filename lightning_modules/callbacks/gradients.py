"""A parameter that trains and takes no part in the loss is an error of the first step, and not a line of a finished run.

An adapter in a tower that nobody looks at, a bias that an objective forgot to add, a pooler behind an unused output: the loss
goes down all the same. Autograd tells, for it leaves no gradient (not even zeros) where it never was. To look costs one walk over
the parameters, at the first optimizer step of a fit, when all of its micro-batches are done and nothing has been updated.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch.optim import Optimizer

from datamodules.errors import AgreedError, some
from lightning_modules import collectives


class EveryParameterLearns(Callback):
    """See the top of the file. `TunedModule` brings it along, the command line for a module of one's own.

    What a network calls `occasional_parameters` (layers that are dropped at random) has the first epoch to get a gradient.
    """

    def __init__(self) -> None:
        self._looked_at: set[int] = set()  # optimizers
        self._awaited: list[str] = []  # occasional parameters that are still without

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._looked_at, self._awaited = set(), []

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer) -> None:
        """Raises AgreedError, on every process alike: a parameter of this optimizer got no gradient."""
        if id(optimizer) in self._looked_at and not self._awaited:
            return
        parameters = dict(pl_module.named_parameters())
        if id(optimizer) in self._looked_at:
            self._awaited = _without_gradient(pl_module, parameters, self._awaited)
            return
        its = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        names = [name for name, parameter in parameters.items() if parameter.requires_grad and id(parameter) in its]
        missing = _without_gradient(pl_module, parameters, names)
        if len(missing) == len(names):  # `training_step` gave no loss: the next step will
            return
        self._looked_at.add(id(optimizer))
        occasional = _occasional(pl_module)
        self._awaited += [name for name in missing if name in occasional]
        if never := [name for name in missing if name not in occasional]:
            raise AgreedError(_message(pl_module, never, "the first step"))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Raises AgreedError: an occasional parameter got no gradient in a whole epoch."""
        awaited, self._awaited = self._awaited, []
        if awaited:
            raise AgreedError(_message(pl_module, awaited, "the first epoch"))


def _without_gradient(module: pl.LightningModule, parameters: dict[str, Any], names: list[str]) -> list[str]:
    """Those that have none on any process."""
    none = torch.tensor([parameters[name].grad is None for name in names], dtype=torch.int32, device=module.device)
    return [name for name, lacks in zip(names, collectives.reduced(none, "min").tolist(), strict=True) if lacks]


def _occasional(module: Any) -> set[str]:
    return {
        f"{part}.{name}" for part, network in module.named_children()
        for name in getattr(network, "occasional_parameters", frozenset)()
    }  # fmt: skip


def _message(module: Any, names: list[str], when: str) -> str:
    remedies = dict.fromkeys(_remedy(module, name) for name in names)
    return (
        f"{len(names)} parameter{'s' * (len(names) > 1)} should train and got no gradient in {when}: {some(names)}. What takes "
        f"no part in the loss learns nothing. {' '.join(remedies)}"
    )


def _remedy(module: Any, name: str) -> str:
    if not (hasattr(module, "network") and hasattr(module, "objective")):  # a module of one's own
        return f"Let training_step of {type(module).__name__} use it, or freeze it in the constructor (requires_grad_(False))."
    kind = type(module.objective if name.startswith("objective.") else module.network).__name__
    if name.startswith("objective."):
        return f"Let forward of {kind} use it, or make it a buffer."
    if getattr(module, "adapter", None) is not None and module.adapter.owns(name.removeprefix("network.")):
        return f"Put {type(module.adapter).__name__} into parts that the loss sees (its towers, layers or targets)."
    if name == "network.logit_scale":
        return f"{type(module.objective).__name__} ignores the temperature: write `uses_scale = False` into its class."
    return (
        f"Name what the task does not use in `unused_parameters` of {kind}, what a step may pass by in `occasional_parameters`."
    )
