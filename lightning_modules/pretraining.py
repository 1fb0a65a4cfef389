"""Pre-training on pairs of captions and regions of which something is hidden, as UNITER's.

A batch is of one task, which the data draw (`datamodules.loading.pretraining`); the objective of that name says what it costs.

Legend: N things that are guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from datamodules.errors import InputError
from datamodules.inputs import Inputs
from datamodules.records import MaskedBatch
from lightning_modules import collectives, optimization
from lightning_modules.base import Better, TunedModule
from lightning_modules.checkpoints.model_card import Task
from lightning_modules.contract import require_signatures
from lightning_modules.networks.network import require_attributes
from lightning_modules.networks.pretraining import PretrainingNetwork
from lightning_modules.objectives.objective import Objective
from lightning_modules.objectives.pretraining import HiddenFeatures, HiddenWords, PairsMatched, PretrainingObjective


class Objectives(Objective):
    """Several objectives by name, so that their parameters are trained and kept like those of one."""

    def __init__(self, objectives: Mapping[str, PretrainingObjective]) -> None:
        super().__init__()
        self.of = nn.ModuleDict(objectives)


class PretrainingModule(TunedModule):
    """Pre-training of UNITER by what is hidden of words, regions and pairs; all of the network learns.

    Nothing is retrieved here: a validation gives each task's loss and share of right guesses, on masks that are always the same.
    The run's best checkpoint is for `weights` of a UNITER that is fine-tuned: RUN/checkpoints/best.ckpt#network.

    Args:
        network: `UniterPretraining`, or another `PretrainingNetwork`.
        objectives: By the names of the data's `pretraining.tasks`. Null: itm (`PairsMatched`), mlm (`HiddenWords`), mrfr
            (`HiddenFeatures`).
        optimization: AdamW and the schedule.
        init_from: Start from these weights (a run folder or a checkpoint). To resume an interrupted run, use --run_dir instead.

    Raises:
        InputError: No objective, or one that the network has no head for.
    """

    protocol = "each caption of the split once in each task, always with the same words, regions or images hidden or exchanged"
    uses = "it has been pre-trained and retrieves nothing yet: fine-tune a UNITER that has its checkpoint as `weights`"
    task = Task(None, ("fill-mask", "image-text-matching"), "print(model.uses)  # it is to be fine-tuned")

    def __init__(
        self,
        network: PretrainingNetwork,
        objectives: dict[str, PretrainingObjective] | None = None,
        optimization: optimization.Optimization = optimization.Optimization(),  # noqa: B008 - a config default, never mutated
        init_from: str | None = None,
    ) -> None:
        require_attributes(network, inputs=Inputs)
        require_signatures(network, PretrainingNetwork, "model.network")
        if objectives is None:
            objectives = {"itm": PairsMatched(), "mlm": HiddenWords(), "mrfr": HiddenFeatures()}
        if not objectives:
            raise InputError("model.objectives is empty; give at least one.")
        for name, objective in objectives.items():
            require_signatures(objective, PretrainingObjective, f"model.objectives.{name}")
        blind = [objective.text_only for objective in objectives.values()]
        images: Literal["never", "sometimes", "always"] = "never" if all(blind) else "sometimes" if any(blind) else "always"
        network.learn(frozenset().union(*(objective.uses for objective in objectives.values())), images)
        super().__init__(network, None, "full", "new", optimization, init_from, True, Objectives(objectives))
        self.objectives = objectives
        self._sums: dict[str, Tensor] = {}

    def setup(self, stage: str) -> None:
        """See that data and objectives are of the same tasks.

        Raises:
            InputError: A task without an objective, an objective that is never drawn, or one that needs something else hidden.
        """
        drawn: Any = getattr(getattr(getattr(self.trainer, "datamodule", None), "pretraining", None), "mixture", None)
        if drawn is None:
            return
        if drawn.keys() != self.objectives.keys():
            raise InputError(
                f"the data draw the tasks {', '.join(drawn)} (data.pretraining.tasks) and the model has objectives for "
                f"{', '.join(self.objectives)} (model.objectives): give both the same names."
            )
        for name, objective in self.objectives.items():
            if (hides := drawn[name].hides) != objective.hides:
                raise InputError(
                    f"task {name}: the data hide {hides}, and {type(objective).__name__} needs {objective.hides} hidden: set "
                    f"data.pretraining.tasks.{name}.hides to {objective.hides}."
                )

    # ----------------------------------------------------------------------------------------------- training

    def on_train_batch_start(self, batch: MaskedBatch, batch_idx: int) -> None:
        """Lightning would log a task's loss again at each step of the other tasks: forget what earlier steps logged."""
        super().on_train_batch_start(batch, batch_idx)
        results: Any = self.trainer._results
        for metric in (results or {}).values():
            metric.reset()

    def training_step(self, batch: MaskedBatch, batch_idx: int) -> Tensor:
        guessed = self._objective_of(batch)(self.network, batch)
        # The mean over what is guessed on all processes: each one's share of it, so that DDP's mean is that of the global batch.
        count = torch.tensor(float(len(guessed.loss_N)), device=guessed.loss_N.device)
        loss = guessed.loss_N.sum() * collectives.world_size() / collectives.reduced(count).clamp_min(1)
        self.log_terms({batch.task: loss, "loss": loss}, len(batch))
        return loss + self._passed_by()

    def _passed_by(self) -> Tensor:
        """Zero, with a gradient of zeros for the heads of other tasks. So DDP misses none, and AdamW decays them at every step,
        as the released code's does (its gradients are set to zero and never to none)."""
        occasional = self.network.occasional_parameters()
        own = [parameter for name, parameter in self.network.named_parameters() if name in occasional]
        own += [parameter for parameter in self.objective.parameters() if parameter.requires_grad]
        zero = torch.zeros((), device=self.device)
        return zero + 0.0 * torch.stack([parameter.reshape(-1)[0] for parameter in own]).sum() if own else zero

    def _objective_of(self, batch: MaskedBatch) -> Any:
        if batch.task not in self.objectives:
            raise InputError(
                f"the data gave a batch of task {batch.task!r}, and the model has objectives for {', '.join(self.objectives)}: "
                "give both the same names (data.pretraining.tasks, model.objectives)."
            )
        return self.objectives[batch.task]

    # --------------------------------------------------------------------------------------------- evaluation

    @property
    def validation_metrics(self) -> Mapping[str, Better]:
        own: dict[str, Better] = {"loss": "min"}
        for name, objective in self.objectives.items():
            own[f"{name}_loss"] = "min"
            if objective.graded:
                own[f"{name}_accuracy"] = "max"
        return own

    def _evaluation_step(self, batch: MaskedBatch) -> None:
        guessed = self._objective_of(batch)(self.network, batch)
        right = guessed.loss_N.new_tensor(float("nan")) if guessed.right_N is None else guessed.right_N.sum()
        found = torch.stack(
            [guessed.loss_N.sum().double(), right.double(), guessed.loss_N.new_tensor(len(guessed.loss_N)).double()]
        )
        self._sums[batch.task] = self._sums.get(batch.task, torch.zeros_like(found)) + found

    def _evaluation_end(self, stage: str) -> None:
        values: dict[str, Tensor] = {}
        for name in self.objectives:
            total = collectives.reduced(self._sums.get(name, torch.zeros(3, dtype=torch.float64, device=self.device)))
            if not total[2]:
                raise InputError(f"task {name} had nothing to guess in the {stage} split; take more images (limits.{stage}).")
            values[f"{name}_loss"] = total[0] / total[2]
            if not total[1].isnan():
                values[f"{name}_accuracy"] = 100 * total[1] / total[2]
        values["loss"] = torch.stack([values[f"{name}_loss"] for name in self.objectives]).sum()
        self._sums = {}
        if not self.trainer.sanity_checking:
            logged = {f"{stage}/{name}": value.float() for name, value in values.items()}
            self.log_dict(logged, rank_zero_only=False, sync_dist=False)
