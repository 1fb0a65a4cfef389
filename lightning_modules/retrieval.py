"""Image-text retrieval: wires a network, an adapter, the contrastive objective, recalls and AdamW. Nothing else lives here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Parameter

from datamodules.errors import AgreedError, InputError, some
from datamodules.inputs import Inputs
from datamodules.loading.image_files import read_image_files, require_files, require_readable
from datamodules.loading.text_lists import read_text_list
from datamodules.records import ImageBatch, PairBatch, TextBatch
from lightning_modules import optimization
from lightning_modules.adapters.adapter import Adapter
from lightning_modules.base import Better, TunedModule
from lightning_modules.checkpoints.model_card import Task
from lightning_modules.contract import require_signatures
from lightning_modules.metrics.recalls import BETTER, require_folds
from lightning_modules.metrics.retrieval import RetrievalRecall
from lightning_modules.networks.modes import evaluating, training_statistics
from lightning_modules.networks.network import HasRelations, RetrievalNetwork, require_attributes
from lightning_modules.objectives.contrastive import ContrastiveLoss
from lightning_modules.objectives.gradient_cache import encode_in_chunks
from lightning_modules.objectives.objective import ContrastiveObjective
from lightning_modules.objectives.relation_alignment import IAIS


def _bias_of(network: RetrievalNetwork) -> Parameter | None:
    return getattr(network, "logit_bias", None)


class RetrievalModule(TunedModule):
    """Contrastive image-text retrieval with two encoders, tuned fully, through adapters, at its heads only, or not at all.

    Args:
        network: The two encoders. It names the tokenizer and the image transform that the data must use.
        adapter: What is put into the network; needed for (and only for) `tuning: adapter`.
        tuning: full = everything learns; adapter = the adapter and heads that are new; head = the heads (projections,
            temperature); frozen = nothing trains: `crosslight run` then tests the network as it is.
        train_heads: With tuning adapter: new = the heads that neither the network's own weights nor init_from brought; all; or
            none.
        objective: A `ContrastiveObjective`; null is `ContrastiveLoss`. Its parameters train unless `tuning` is frozen.
        optimization: AdamW, layer decay, warm-up and cosine.
        init_from: Start from these weights (a run folder, a checkpoint, or an adapter export). What the file does not bring,
            such as a new adapter, starts fresh and is listed. To resume an interrupted run, use --run_dir instead.
        gradient_cache_chunk: Encode this many pairs at a time and recompute them in the backward pass: exact gradients of
            a large contrastive batch in the memory of a chunk, the pass of `iais` included (null: the whole batch at once).
        iais: IAIS on the batch's pairs, which then also go through the network together, image and caption in one sequence
            (BEiT-3 only; no paper has tried it). Every pair is a positive: `positives` does not matter here.
        eval_frozen: Keep frozen parts in eval mode while training, so that their dropout does not blur the features.
        compile: torch.compile both encoders.
        folds: Also give recalls over this many galleries of equal size, averaged, in tests (COCO's 1K protocol: 5): `folds_...`.
        prompt: What the text encoder reads in place of every text, with the text at {}: "a photo of {}", as CLIP's authors test
            on Flickr30k. It holds for training, tests, searches and exports alike. Null: the text as it is.
        frozen_tower: image or text: this encoder does not train whatever else does, nor does its projection ("LiT" freezes the
            image tower and trains the text tower: tuning full). Null = both as `tuning` says.
        frozen_dtype: bfloat16 = keep frozen weights of linear layers, embeddings and convolutions in 16 bits: half of their
            memory, and the same outputs up to that rounding. What trains, and the computation, stay as they are. Null = fp32.
    """

    protocol = "every image against every caption of the split, pessimistic ties"

    def __init__(
        self,
        network: RetrievalNetwork,
        adapter: Adapter | None = None,
        tuning: Literal["full", "adapter", "head", "frozen"] = "adapter",
        train_heads: Literal["new", "all", "none"] = "new",
        objective: ContrastiveObjective | None = None,
        optimization: optimization.Optimization = optimization.Optimization(),  # noqa: B008 - a config default, never mutated
        init_from: str | None = None,
        gradient_cache_chunk: int | None = None,
        iais: IAIS | None = None,
        eval_frozen: bool = True,
        compile: bool = False,
        folds: int | None = None,
        prompt: str | None = None,
        frozen_tower: Literal["image", "text"] | None = None,
        frozen_dtype: Literal["bfloat16"] | None = None,
    ) -> None:
        require_attributes(network, inputs=Inputs, logit_scale=Parameter)
        if prompt is not None:
            _read_in(network, prompt)
        require_signatures(network, RetrievalNetwork, "model.network")
        if gradient_cache_chunk is not None and gradient_cache_chunk < 1:
            raise InputError(f"gradient_cache_chunk is {gradient_cache_chunk}; give at least 1, or null for the whole batch.")
        objective = objective or ContrastiveLoss()
        require_signatures(objective, ContrastiveObjective, "model.objective")
        if _bias_of(network) is not None and objective.uses_bias:
            objective.leave_bias()
        super().__init__(
            network, adapter, tuning, train_heads, optimization, init_from, eval_frozen, objective, frozen_tower, frozen_dtype
        )
        self._start_temperature(objective.init_temperature)
        self._start_bias(objective.init_bias if objective.uses_bias else None)
        self.iais = iais
        self.aligned_layers: list[int] = []
        if iais is not None:
            if not isinstance(network, HasRelations):
                raise InputError(
                    f"iais needs a network with one sequence of words and regions, such as BEiT-3; {type(network).__name__} "
                    "encodes images and texts apart. Set model.iais to null."
                )
            self.aligned_layers = iais.of_network(network.num_layers)
        self.gradient_cache_chunk = gradient_cache_chunk
        self.folds = folds
        self.prompt = prompt
        self.recall = RetrievalRecall()
        if compile:
            network.compile_encoders()

    def _start_temperature(self, temperature: float | None) -> None:
        """Where the objective wants it, as long as it trains, nothing has brought it, and the network was not given another."""
        network, scale = self.network, self.network.logit_scale
        given = getattr(network, "init_temperature", None) is not None or "logit_scale" in network.loaded_heads
        if temperature is not None and scale.requires_grad and not given:
            with torch.no_grad():
                scale.fill_(-math.log(temperature))

    def _start_bias(self, bias: float | None) -> None:
        """Likewise."""
        own = _bias_of(self.network)
        if own is not None and bias is not None and own.requires_grad and "logit_bias" not in self.network.loaded_heads:
            with torch.no_grad():
                own.fill_(bias)

    # ----------------------------------------------------------------------------------------------- training

    def on_fit_start(self) -> None:
        """As of all modules.

        Raises:
            AgreedError: Chunks of a batch would have statistics of their own, or a batch has nothing to tell a pair from.
        """
        super().on_fit_start()
        batch_size = getattr(getattr(self.trainer, "datamodule", None), "batch_size", None)
        if batch_size == 1 and isinstance(self.objective, ContrastiveLoss):
            raise AgreedError(
                "data.batch_size is 1: a contrastive loss tells a pair from the others of its batch, and is 0 without any: give "
                "2 or more."
            )
        if self.gradient_cache_chunk is not None and (names := training_statistics(self.network)):
            raise AgreedError(
                f"model.gradient_cache_chunk is {self.gradient_cache_chunk}, but {some(names)} would normalize by each chunk and "
                "not by the batch: set it to null, or freeze what these layers belong to."
            )

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        chunk = self.gradient_cache_chunk
        images_BD = encode_in_chunks(self.network.encode_images, batch.images, chunk)
        texts_BD = encode_in_chunks(self.network.encode_texts, batch.texts, chunk)
        bias = {"bias": own} if self.objective.uses_bias and (own := _bias_of(self.network)) is not None else {}
        terms = self.objective(images_BD, texts_BD, self.network.logit_scale.exp(), batch.texts.image_index_B, **bias)
        if self.iais is not None:
            terms = self._aligned(self.iais, terms, batch)
        self.log_terms(terms, len(batch))
        return terms["loss"]

    def _aligned(self, iais: IAIS, terms: dict[str, Tensor], batch: PairBatch) -> dict[str, Tensor]:
        """The objective's terms with IAIS of the batch's pairs, from a pass over image and caption together."""

        def losses(pairs: PairBatch) -> Tensor:
            """[B, anchors]: each pair's own, so that chunks of a batch give what the batch gives."""
            return torch.stack(list(iais(self.network.relations(pairs, self.aligned_layers)).values()), dim=1)

        losses_AB = encode_in_chunks(losses, batch, self.gradient_cache_chunk).T.contiguous()
        weight = iais.annealing(self.global_step, int(self.trainer.estimated_stepping_batches))
        found = {f"iais_{anchor}": loss_B.mean() for anchor, loss_B in zip(iais.anchors, losses_AB, strict=True)}
        added = weight * iais.factor(hard_negatives=False) * torch.stack(list(found.values())).sum()
        loss = terms["loss"]
        # on the device: NCCL averages no tensor of the CPU
        return terms | found | {"iais_weight": loss.new_full((), weight), "loss": loss + added}

    # ---------------------------------------------------------------------------------------------------- use

    uses = "it has an encoder of images and one of texts (encode_images, encode_texts; crosslight index and search)"
    task = Task(
        "feature-extraction",
        ("image-text-retrieval",),
        'images_ND = model.encode_images(["a.jpg", "b.jpg"])  # unit vectors\n'
        'texts_QD = model.encode_texts(["a dog in the snow"])\n'
        "print((texts_QD @ images_ND.T).argmax(1))  # the best image of each text",
    )

    def encode_images(self, paths: Sequence[str | Path], batch_size: int = 32) -> Tensor:
        """Unit vectors [N, D] (fp32, on the CPU) of image files in their order, as a validation makes them, on the device where
        the model is.

        Args:
            paths: The files.
            batch_size: Images at once.

        Raises:
            InputError: A file cannot be read, there is none, or the network takes no pixels.
        """
        if not (paths := require_files(paths)):
            raise InputError("there are no images to encode; give at least one.")
        read = read_image_files(paths, self.image_input, batch_size)
        return torch.cat([self.encode_batch(require_readable(each)) for each in read])

    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Unit vectors [N, D] (fp32, on the CPU) of texts in their order. What the model cannot read of them, words that its
        tokenizer does not know and the end of long texts, it says in a `TextWarning`; of many texts it names the first few.

        Args:
            texts: The texts.
            batch_size: Texts at once.

        Raises:
            InputError: The network names no tokenizer, there is no text, or the batch size is out of range.
        """
        return torch.cat([self.encode_batch(batch) for batch in read_text_list(texts, self.tokenizer, batch_size)])

    def encode_batch(self, batch: ImageBatch | TextBatch) -> Tensor:
        """Unit vectors [B, D] (fp32, on the CPU) of a batch, which may be on any device."""
        with evaluating(self), torch.no_grad():
            there = batch.to(self.network.logit_scale.device)
            encode = self.network.encode_images if isinstance(there, ImageBatch) else self.network.encode_texts
            return encode(there).float().cpu()

    # --------------------------------------------------------------------------------------------- evaluation

    @property
    def validation_metrics(self) -> Mapping[str, Better]:
        return BETTER

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
        self.recall.folds = self.folds if stage == "test" else None
        self._note_folds(self.recall.folds, self.recall.expected_images)
        if self.prompt is not None:
            self._notes = {**self._notes, "prompt": self.prompt}
            self.protocol = f"{self.protocol}; each text read as {self.prompt!r}"
        self.recall.positives = self._positives if stage == "test" else {}
        if stage == "test":
            self._note_positives()
        values = self.recall.compute()
        self._queries = self.recall.query_ranks()
        self._note_certain_recalls(stage, self.recall.expected_images)
        self.recall.reset()
        self.log_dict({f"{stage}/{name}": value for name, value in values.items()}, rank_zero_only=False, sync_dist=False)

    def on_test_start(self) -> None:
        """Before all images are encoded.

        Raises:
            InputError: The images do not divide into `folds`, or further right answers cannot be read.
        """
        if self.folds is not None:
            require_folds(self.folds, len(self.trainer.test_dataloaders[0].dataset))
        self._take_positives()

    def predict_step(self, batch: ImageBatch | TextBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Embeddings with their ids: of images from the first loader, of captions from the second."""
        if isinstance(batch, ImageBatch):
            return {"ids": batch.image_ids, "index": batch.index_B, "embeddings": self.network.encode_images(batch)}
        return {"ids": batch.caption_ids, "index": batch.index_B, "embeddings": self.network.encode_texts(batch)}


def _read_in(network: RetrievalNetwork, prompt: str) -> None:
    """From now on the network's texts are read in this prompt.

    Raises:
        InputError: It has no place for a text, or the network takes no texts.
    """
    if network.inputs.text is None:
        raise InputError(f"model.prompt: {type(network).__name__} takes no texts; set it to null.")
    network.inputs = replace(network.inputs, text=replace(network.inputs.text, prompt=prompt))
