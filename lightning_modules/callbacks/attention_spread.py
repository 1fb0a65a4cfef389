"""How spread I-Tuning's attention is while it learns: whether words look at things, or all of them at one patch.

At each step that is logged (`trainer.log_every_n_steps`), before the step, the training batch goes through the captioner once
more, without gradients and with maps. Three numbers are logged, of each layer with a module and (without a layer) of their mean:

    attention/tokens    exp of the mean entropy of the maps: so many visual tokens share an even map of that entropy
    attention/peak      mean over maps of their largest weight
    attention/same      part of the maps whose largest weight is on the token where most have it: 1 is collapse onto one patch

Maps are those of caption tokens that are scored, heads apart.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from datamodules.errors import InputError
from datamodules.records import CaptionBatch


class AttentionSpread(Callback):
    """See the top of the file."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Raises InputError: nothing here attends to images."""
        if getattr(getattr(pl_module, "network", None), "i_tuning", None) is None:
            raise InputError("AttentionSpread measures I-Tuning's attention, and this model has none: take the callback out.")

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: CaptionBatch, batch_idx: int
    ) -> None:
        if (trainer.global_step + 1) % trainer.log_every_n_steps:
            return
        network: Any = pl_module.network
        with torch.no_grad():
            maps = network.attention(network.encode_images(batch.images), batch.texts.tokens_BT, batch.image_row_B)
        mask_BT = batch.texts.mask_BT
        of_layers = {layer: spread(found_BHTV, mask_BT[:, : found_BHTV.shape[2]]) for layer, found_BHTV in maps.items()}
        logged = {f"attention/{name}_layer{layer}": value for layer, found in of_layers.items() for name, value in found.items()}
        for name in next(iter(of_layers.values())):
            logged[f"attention/{name}"] = torch.stack([found[name] for found in of_layers.values()]).mean()
        pl_module.log_dict(logged, on_step=True, on_epoch=False)


def spread(maps_BHTV: Tensor, mask_BT: Tensor) -> dict[str, Tensor]:
    """The three numbers (scalars, fp32) of maps over V visual tokens.

    Args:
        maps_BHTV: Every row sums to 1.
        mask_BT: bool, True = a token that is scored.
    """
    maps_XV = maps_BHTV.transpose(1, 2)[mask_BT].flatten(0, 1)
    entropy_X = torch.special.entr(maps_XV).sum(-1)
    peak_X, token_X = maps_XV.max(-1)
    same = token_X.bincount(minlength=maps_XV.shape[-1]).max() / len(token_X)
    return {"tokens": entropy_X.mean().exp(), "peak": peak_X.mean(), "same": same}
