"""Which of Lightning's strategies a run may have, and what is done to it: no process waits in it longer than a collective may."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.plugins.environments import ClusterEnvironment
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy

from datamodules.errors import AgreedError
from lightning_modules import collectives

_WORKS = ("auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false")
_SHARDS = (
    "which divides the weights among the GPUs, where checkpoints, adapters and exports hold them whole. Use ddp; memory is saved "
    "by trainer.precision=bf16-mixed, model.frozen_dtype=bfloat16, checkpoint_activations or model.gradient_cache_chunk."
)
_STARTS = "whose processes do not come by the command line, so that the run folder never hears of their results. Use ddp."
_TPU = "which is for TPUs. Use ddp, on GPUs or processors."
_REFUSED = {
    "fsdp": _SHARDS, "deepspeed": _SHARDS, "modelparallel": _SHARDS, "ddp_spawn": _STARTS, "ddp_fork": _STARTS,
    "ddp_notebook": _STARTS, "xla": _TPU, "single_xla": _TPU, "single_tpu": _TPU, "singletpu": _TPU, "singledevicexla": _TPU,
    "single_device": "which auto takes by itself, where there is one. Leave it out.",
    "dp": "which Lightning has no more. Use ddp.",
}  # fmt: skip


def require_supported(strategy: Any, plugins: Any = None) -> None:
    """Refuse what would fail, or lose the results, when the training has begun.

    Args:
        strategy: As the Trainer takes it: a name, or the object.
        plugins: Likewise.

    Raises:
        AgreedError: It does not work here; with the reason, and what does.
    """
    reason = _reason(strategy)
    if reason is not None:
        name = repr(strategy) if isinstance(strategy, str) else type(strategy).__name__
        raise AgreedError(f"trainer.strategy is {name}, {reason}")
    given = plugins if isinstance(plugins, (list, tuple)) else [plugins]
    if cluster := next((type(each).__name__ for each in given if isinstance(each, ClusterEnvironment)), None):
        raise AgreedError(f"trainer.plugins has {cluster}: processes are started by torchrun or srun, which are known without.")


def _reason(strategy: Any) -> str | None:
    """Why it is refused; None where it is not, or where it is for Lightning to say."""
    if isinstance(strategy, str):
        name = strategy.lower()
        return None if name in _WORKS else next((_REFUSED[each] for each in _REFUSED if f"{name}_".startswith(f"{each}_")), None)
    kind = type(strategy)
    if not isinstance(strategy, Strategy) or kind is SingleDeviceStrategy:
        return None
    if isinstance(strategy, DDPStrategy) and (kind is DDPStrategy or not kind.__module__.startswith("lightning.")):
        return None if strategy._start_method == "popen" else _STARTS.replace("Use ddp", "Leave start_method out")
    name = kind.__name__.lower()
    return next((_REFUSED[each] for each in _REFUSED if name.startswith(each)), "which has not been tried here. Use ddp.")


def make_patient(strategy: Strategy) -> None:
    """Lightning's barriers and broadcasts stand behind what the first process does alone (a checkpoint, the start of W&B): let
    them wait without limit, over the group that is for it."""
    if not isinstance(strategy, DDPStrategy):
        return
    begin = strategy.setup_environment

    def setup_environment() -> None:
        begin()
        collectives.connect()

    def barrier(*arguments: Any, **options: Any) -> None:
        collectives.meet()

    def broadcast(obj: Any, src: int = 0) -> Any:
        return collectives.told_by(obj, src)

    strategy.setup_environment, strategy.barrier, strategy.broadcast = setup_environment, barrier, broadcast
