"""Strategies that work here, those that are refused with one line, and batch norms of several processes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins.environments import KubeflowEnvironment
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    StrategyRegistry,
    XLAStrategy,
)
from strict_nccl import strict_nccl
from torch import nn

from datamodules.errors import AgreedError
from experiments.training.batch_norms import SyncBatchNorms, require_synchronized
from experiments.training.strategies import make_patient, require_supported
from lightning_modules.networks.modes import training_statistics

WORKS = {"ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false"}


class Own(DDPStrategy):
    """A user's."""


def test_every_strategy_of_lightnings_works_or_is_refused() -> None:
    names = set(StrategyRegistry.available_strategies())
    assert names > WORKS
    for name in ("auto", *WORKS, "nobody's"):  # that one is Lightning's to refuse, with its list
        require_supported(name)
    for name in names - WORKS | {"dp", "FSDP"}:
        with pytest.raises(AgreedError, match=r"^trainer\.strategy is ") as refused:
            require_supported(name)
        assert "\n" not in str(refused.value)
        assert "se ddp" in str(refused.value) or "Leave it out" in str(refused.value), refused.value


def test_and_their_classes() -> None:
    for fine in (DDPStrategy(find_unused_parameters=True, static_graph=True), SingleDeviceStrategy("cpu"), Own(), None):
        require_supported(fine)
    for kind, says in (
        (FSDPStrategy, "FSDPStrategy, which divides the weights"), (ModelParallelStrategy, "which divides the weights"),
        (DeepSpeedStrategy, "which divides the weights"), (XLAStrategy, "which is for TPUs"),
    ):  # fmt: skip
        with pytest.raises(AgreedError, match=says):
            require_supported(kind.__new__(kind))  # without what it needs to be built
    with pytest.raises(AgreedError, match=r"DDPStrategy, whose processes do not come .* Leave start_method out"):
        require_supported(DDPStrategy(start_method="spawn"))
    with pytest.raises(AgreedError, match="KubeflowEnvironment: processes are started by torchrun or srun"):
        require_supported("ddp", [KubeflowEnvironment()])


def test_lightnings_barriers_and_broadcasts_wait_without_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    strategy, begun = DDPStrategy(), []
    monkeypatch.setattr(DDPStrategy, "setup_environment", lambda self: begun.append(1))
    make_patient(strategy)
    with strict_nccl() as calls:  # a barrier or a broadcast over NCCL would raise
        strategy.setup_environment()
        strategy.barrier("Trainer.save_checkpoint")
        assert strategy.broadcast("folder", src=0) == "folder"
        assert calls == {"barrier": 1, "broadcast_object_list": 1}
    assert begun == [1]
    make_patient(SingleDeviceStrategy("cpu"))


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.rest = nn.BatchNorm2d(2), nn.Sequential(nn.LayerNorm(3), nn.InstanceNorm2d(2), nn.GroupNorm(1, 2))
        self.running = nn.InstanceNorm1d(2, track_running_stats=True)


def trainer(size: int, device: str = "cpu", synchronizes: bool = False) -> Any:
    layer_sync = SyncBatchNorms() if synchronizes else None
    return SimpleNamespace(world_size=size, strategy=SimpleNamespace(_layer_sync=layer_sync, root_device=torch.device(device)))


def test_batch_norms_of_several_processes_are_refused_or_synchronized() -> None:
    network: Any = Normed()
    assert training_statistics(network) == ["norm", "running"]
    require_synchronized(trainer(1), network)
    with pytest.raises(AgreedError, match=r"2 layers of the network \(norm, running\) .* train in one process"):
        require_synchronized(trainer(2), network)
    with pytest.raises(AgreedError, match=r"set trainer\.sync_batchnorm=true"):
        require_synchronized(trainer(2, "cuda"), network)
    require_synchronized(trainer(2, "cuda", synchronizes=True), network)
    with pytest.raises(AgreedError, match="torch synchronizes batch norms on GPUs alone"):
        require_synchronized(trainer(2, "cpu", synchronizes=True), network)
    require_synchronized(trainer(2), network.eval())  # frozen parts are


def test_synchronized_batch_norms_keep_timms_activation() -> None:
    from timm.layers import BatchNormAct2d

    network = nn.Sequential(nn.Conv2d(3, 4, 1), BatchNormAct2d(4), nn.BatchNorm2d(4)).eval()
    pixels = torch.randn(2, 3, 4, 4)
    before, keys = network(pixels), set(network.state_dict())
    converted = SyncBatchNorms().apply(network)
    assert [type(layer).__name__ for layer in converted.children()] == ["Conv2d", "SyncBatchNormAct", "SyncBatchNorm"]
    assert torch.equal(converted(pixels), before)
    assert set(converted.state_dict()) == keys
    lost = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(BatchNormAct2d(4)).eval())
    assert (lost(torch.randn(2, 4, 3, 3)) < 0).any()  # as torch converts it, which Lightning would call
    assert SyncBatchNorms().revert(converted) is converted
