"""The average of what trains: its values, what is validated and saved under it, what a resumed run goes on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader
from training import retrieval

from datamodules.errors import InputError
from lightning_modules.callbacks.ema import EMA


class Module(pl.LightningModule):
    """A frozen layer, a batch norm and a layer that trains. Validates in its own epoch end, where callbacks have had theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.norm, self.layer = nn.Linear(3, 3).requires_grad_(False), nn.BatchNorm1d(3), nn.Linear(3, 1)
        self.validated: list[dict[str, Tensor]] = []

    def training_step(self, batch: Tensor, i: int) -> Tensor:
        return self.layer(self.norm(self.frozen(batch))).square().mean()

    def validation_step(self, batch: Tensor, i: int) -> None:
        pass

    def on_validation_epoch_end(self) -> None:
        self.validated.append({name: value.clone() for name, value in self.state_dict().items()})

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Watch(Callback):
    """The weights themselves after every step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
        self.steps.append({name: value.clone() for name, value in pl_module.state_dict().items()})


def fit(folder: Path, ema: EMA, epochs: int = 2, resume: Path | None = None) -> tuple[Module, Watch, pl.Trainer]:
    torch.manual_seed(0)
    module, watch = Module(), Watch()
    data = DataLoader(torch.randn(12, 3, generator=torch.Generator().manual_seed(1)), batch_size=4)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, callbacks=[watch, ema], default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, data, data, ckpt_path=resume, weights_only=True)
    return module, watch, trainer


@pytest.mark.parametrize("options", [{}, {"update_starting_at_step": 2}, {"update_every_n_steps": 2}, {"use_buffers": False}])
def test_average(options: dict[str, Any], tmp_path: Path) -> None:
    """Against the formula, by hand; validated with it, and left in the module."""
    module, watch, _ = fit(tmp_path, EMA(decay=0.75, **options))
    average: dict[str, Tensor] | None = None
    at_epoch_ends = []
    for step, weights in enumerate(watch.steps):
        if step >= options.get("update_starting_at_step", 0) and step % options.get("update_every_n_steps", 1) == 0:
            first = average is None
            average = {
                name: value
                if first or not value.is_floating_point() or ("running" in name and not options.get("use_buffers", True))
                else 0.75 * average[name] + 0.25 * value
                for name, value in weights.items()
            }
        if step % 3 == 2:
            at_epoch_ends.append(average or weights)
    for validated, expected in zip([*module.validated, dict(module.state_dict())], [*at_epoch_ends, average], strict=True):
        assert expected is not None
        for name, value in expected.items():
            torch.testing.assert_close(validated[name], value, msg=name)
        assert torch.equal(validated["frozen.weight"], watch.steps[0]["frozen.weight"])  # to the bit
    assert not torch.equal(watch.steps[-1]["layer.weight"], average["layer.weight"])


def test_a_checkpoint_has_the_average_and_goes_on_from_the_weights(tmp_path: Path) -> None:
    whole, watch, _ = fit(tmp_path, EMA(decay=0.75), epochs=3)

    class Save(EMA):
        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            trainer.save_checkpoint(tmp_path / f"{trainer.current_epoch} inside.ckpt", weights_only=False)
            super().on_validation_end(trainer, pl_module)
            trainer.save_checkpoint(tmp_path / f"{trainer.current_epoch}.ckpt", weights_only=False)

    cut, _, _ = fit(tmp_path, Save(decay=0.75), epochs=2)
    for name in ("1.ckpt", "1 inside.ckpt"):
        saved = torch.load(tmp_path / name, weights_only=True)
        assert torch.equal(saved["state_dict"]["layer.weight"], cut.validated[1]["layer.weight"])
        assert torch.equal(saved["current_model_state"]["layer.weight"], watch.steps[5]["layer.weight"])
        assert not any("frozen" in key for key in saved["current_model_state"])
        resumed, again, _ = fit(tmp_path, EMA(decay=0.75), epochs=3, resume=tmp_path / name)
        for key, value in whole.state_dict().items():
            assert torch.equal(resumed.state_dict()[key], value), key
        assert torch.equal(again.steps[-1]["layer.weight"], watch.steps[-1]["layer.weight"])


@pytest.mark.parametrize(
    "options",
    [{"decay": 1.0}, {"decay": 0.0}, {"decay": float("nan")}, {"update_every_n_steps": 0},
     {"update_starting_at_step": 1, "update_starting_at_epoch": 1}, {"device": "gpuu"}, {"device": "xpu"}],
)  # fmt: skip
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="EMA"):
        EMA(**options)


@pytest.mark.parametrize("options", [{"update_starting_at_step": 6}, {"update_starting_at_epoch": 2}])
def test_an_average_that_would_never_begin(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="begin earlier"):
        fit(tmp_path, EMA(**options), epochs=2)
    fit(tmp_path, EMA(**options), epochs=3)


def trained(tiny: Any, callbacks: list[Callback], epochs: int = 1, **options: Any) -> tuple[pl.LightningModule, pl.Trainer]:
    """A retrieval module, trained for epochs of 4 batches in a plain trainer."""
    module, batches = retrieval(tiny)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=callbacks, enable_checkpointing=any(isinstance(each, ModelCheckpoint) for each in callbacks),
    )  # fmt: skip
    trainer.fit(module, DataLoader(batches, batch_size=None), weights_only=True, **options)
    return module, trainer


def test_a_checkpoint_of_weights_alone_has_the_average(tiny: Any, tmp_path: Path) -> None:
    kept: list[dict[str, Tensor]] = []

    class Save(Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            trainer.save_checkpoint(tmp_path / "asked.ckpt", weights_only=True)
            trainer.save_checkpoint(tmp_path / "whole.ckpt", weights_only=False)
            kept.append({name: value.clone() for name, value in pl_module.state_dict().items()})

    alone = ModelCheckpoint(tmp_path, filename="alone", save_weights_only=True)
    trained(tiny, [EMA(decay=0.5), Save(), alone])
    whole = torch.load(tmp_path / "whole.ckpt", weights_only=True)["state_dict"]
    for name in ("asked.ckpt", "alone.ckpt"):
        saved = torch.load(tmp_path / name, weights_only=True)
        assert "current_model_state" not in saved
        assert saved["state_dict"].keys() == whole.keys()
        for key, value in whole.items():
            assert torch.equal(saved["state_dict"][key], value), (name, key)
    assert any(not torch.equal(whole[key], kept[0][key]) for key in whole)


def test_weights_alone_of_a_module_that_does_not_ask_for_the_average_are_refused(tmp_path: Path) -> None:
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[EMA(), ModelCheckpoint(tmp_path, save_weights_only=True)],
    )  # fmt: skip
    with pytest.raises(InputError, match="Set save_weights_only to false"):
        trainer.fit(Module(), DataLoader(torch.randn(4, 3), batch_size=4))


def test_training_does_not_go_on_from_an_average_unawares(tiny: Any, tmp_path: Path) -> None:
    trained(tiny, [EMA(decay=0.5), ModelCheckpoint(tmp_path, filename="last")])
    with pytest.raises(InputError, match=r"last.ckpt holds an average of the weights \(EMA\)"):
        trained(tiny, [], epochs=2, ckpt_path=tmp_path / "last.ckpt")
    trained(tiny, [EMA(decay=0.5)], epochs=2, ckpt_path=tmp_path / "last.ckpt")
