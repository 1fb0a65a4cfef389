"""Image-text retrieval: wires a network, an adapter, the contrastive objective, recalls and AdamW. Nothing else lives here."""

from __future__ import annotations

import hashlib
import os
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor

from datamodules.records import ImageBatch, PairBatch, TextBatch
from lightning_modules import optimisation
from lightning_modules.adapters.adapter import Adapter
from lightning_modules.adapters.tuning import set_mode, set_tuning
from lightning_modules.checkpoints.adapter_export import load_trainable, trainable_state_dict
from lightning_modules.checkpoints.init_from import require_backbone, short_fingerprint, start_from
from lightning_modules.metrics.retrieval import RetrievalRecall
from lightning_modules.networks.beit3 import BEiT3Retrieval
from lightning_modules.networks.dual_encoder import DualEncoder
from lightning_modules.objectives.contrastive import ContrastiveLoss
from lightning_modules.objectives.gradient_cache import encode_in_chunks


class RetrievalModule(pl.LightningModule):
    """Contrastive image-text retrieval with two encoders, tuned fully, through adapters, at its heads only, or not at all.

    Args:
        network: The two encoders. It names the tokeniser and the image transform that the data must use.
        adapter: What is put into the network; needed for (and only for) `tuning: adapter`.
        tuning: full = everything learns; adapter = the adapter and heads that are new; head = the heads (projections,
            temperature); none = nothing: `crosslight run` then tests the network as it is.
        train_heads: With tuning adapter: new = the heads that neither the network's own weights nor init_from brought; all; or
            none.
        objective: The contrastive loss.
        optimisation: AdamW, layer decay, warm-up and cosine.
        init_from: Start from these weights (a run folder, a checkpoint, or an adapter export). What the file does not bring,
            such as a new adapter, starts fresh and is listed. To resume an interrupted run, use --run_dir instead.
        gradient_cache_chunk: Encode this many pairs at a time and recompute them in the backward pass: exact gradients of
            a large contrastive batch in the memory of a chunk (null: the whole batch at once).
        eval_frozen: Keep frozen parts in eval mode while training, so that their dropout does not blur the features.
        compile: torch.compile both encoders.
    """

    protocol = "every image against every caption of the split, pessimistic ties"

    def __init__(
        self,
        network: DualEncoder | BEiT3Retrieval,
        adapter: Adapter | None = None,
        tuning: Literal["full", "adapter", "head", "none"] = "adapter",
        train_heads: Literal["new", "all", "none"] = "new",
        objective: ContrastiveLoss | None = None,
        optimisation: optimisation.Optimisation = optimisation.Optimisation(),  # noqa: B008 - a config default, never mutated
        init_from: str | None = None,
        gradient_cache_chunk: int | None = None,
        eval_frozen: bool = True,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.adapter = adapter
        self.tuning = tuning
        self.train_heads = train_heads
        self.objective = objective or ContrastiveLoss()
        self.optimisation = optimisation
        self.init_from = init_from
        self.gradient_cache_chunk = gradient_cache_chunk
        self.eval_frozen = eval_frozen
        if adapter is not None:
            adapter.inject(network)
        if init_from is not None:
            start_from(network, adapter, init_from)
        self.counts = set_tuning(network, adapter, tuning, train_heads)
        self.recall = RetrievalRecall()
        self.strict_loading = False  # checkpoints hold what is trained; on_load_checkpoint checks that nothing else is missing
        if compile:
            network.compile_encoders()

    # ----------------------------------------------------------------------------------------------- training

    def train(self, mode: bool = True) -> RetrievalModule:
        super().train(mode)
        if mode and self.eval_frozen and self.tuning != "full":
            set_mode(self.network, True, self.adapter)
        return self

    def on_train_batch_start(self, batch: PairBatch, batch_idx: int) -> None:
        # Dropout is a function of (seed, epoch, batch, rank), so a run resumed after SIGKILL draws what it would have drawn.
        seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
        where = (seed, self.trainer.current_epoch, batch_idx, self.trainer.global_rank)
        torch.manual_seed(int.from_bytes(hashlib.blake2b(repr(where).encode(), digest_size=7).digest()))

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        chunk = self.gradient_cache_chunk
        images_BD = encode_in_chunks(self.network.encode_images, batch.images, chunk)
        texts_BD = encode_in_chunks(self.network.encode_texts, batch.texts, chunk)
        terms = self.objective(images_BD, texts_BD, self.network.logit_scale.exp(), batch.texts.image_index_B)
        logged = {f"train/{name}": value.detach() for name, value in terms.items()}
        self.log_dict(logged, batch_size=len(batch), prog_bar=True, sync_dist=True)  # a rank's own loss is of its rows only
        return terms["loss"]

    def configure_optimizers(self) -> dict[str, Any]:
        total = int(self.trainer.estimated_stepping_batches)
        optimizer, schedule = optimisation.build(self.network, self.optimisation, total, self.owns)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def owns(self, name: str) -> bool:
        """Whether a parameter of the network belongs to the adapter."""
        return self.adapter is not None and self.adapter.owns(name)

    # --------------------------------------------------------------------------------------------- evaluation

    def _evaluation_step(self, batch: ImageBatch | TextBatch) -> None:
        if isinstance(batch, ImageBatch):
            self.recall.update_images(self.network.encode_images(batch), batch.index_B)
        else:
            self.recall.update_texts(self.network.encode_texts(batch), batch.index_B, batch.image_index_B)

    def _evaluation_end(self, stage: str) -> None:
        if self.trainer.sanity_checking:
            self.recall.reset()
            return
        loaders = self.trainer.val_dataloaders if stage == "val" else self.trainer.test_dataloaders
        self.recall.expected_images, self.recall.expected_texts = (len(loader.dataset) for loader in loaders)
        values = self.recall.compute()
        self._queries = self.recall.query_ranks()
        self.recall.reset()
        self.log_dict({f"{stage}/{name}": value for name, value in values.items()}, rank_zero_only=False, sync_dist=False)

    def query_ranks(self) -> dict[str, Any]:
        """Per-query ranks of the last evaluation as arrays, under the names of `RetrievalRecall.query_ranks`."""
        return {name: ranks.cpu().numpy() for name, ranks in self._queries.items()}

    def validation_step(self, batch: ImageBatch | TextBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluation_step(batch)

    def on_validation_epoch_end(self) -> None:
        self._evaluation_end("val")

    def test_step(self, batch: ImageBatch | TextBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluation_step(batch)

    def on_test_epoch_end(self) -> None:
        self._evaluation_end("test")

    def predict_step(self, batch: ImageBatch | TextBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Embeddings with their ids: of images from the first loader, of captions from the second."""
        if isinstance(batch, ImageBatch):
            return {"ids": batch.image_ids, "index": batch.index_B, "embeddings": self.network.encode_images(batch)}
        return {"ids": batch.caption_ids, "index": batch.index_B, "embeddings": self.network.encode_texts(batch)}

    # -------------------------------------------------------------------------------------------- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what was trained, and what identifies the backbone it was trained on."""
        checkpoint["state_dict"] = {f"network.{k}": v for k, v in trainable_state_dict(self.network).items()}
        checkpoint["crosslight_backbone"] = short_fingerprint(self.network)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = {k.removeprefix("network."): v for k, v in checkpoint["state_dict"].items()}
        path = getattr(self._trainer, "ckpt_path", None)  # no trainer when `lightning_modules.load` reads it
        source = f"checkpoint {path}" if path else "the checkpoint"
        require_backbone(self.network, checkpoint.get("crosslight_backbone"), state, source)
        load_trainable(self.network, state, source)
