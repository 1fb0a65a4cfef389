"""Captioning: wires a captioner, an adapter (I-Tuning, ClipCap, or LoRA beside one), the token loss, caption metrics and AdamW.

Training minimises -sum log P(token | before, image) over the tokens of an optimizer step, divided by their number: of all its
micro-batches on all devices. The sums are added up as gradients and divided once, before the step, so that a caption's tokens
weigh the same in whatever micro-batch, and on whatever device, they are.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor
from torch.optim import Optimizer

from datamodules.errors import InputError
from datamodules.files.atomic import write_atomically
from datamodules.formats.caption_results import json_text, write_caption_results
from datamodules.loading.fingerprint import image_fingerprint
from datamodules.loading.image_files import read_image_files, require_readable
from datamodules.records import CaptionBatch, ImageBatch, ImageRecord
from lightning_modules import collectives, optimization
from lightning_modules.adapters.adapter import Adapter
from lightning_modules.base import Better, TunedModule, draw_seed
from lightning_modules.checkpoints.fingerprint import backbone_fingerprint
from lightning_modules.checkpoints.model_card import Task
from lightning_modules.extraction.feature_cache import FeatureCache
from lightning_modules.metrics.captions.caption_metric import CaptionMetric, find_metric
from lightning_modules.metrics.captions.evaluation import JAVA_FREE, NAMES, Frequencies
from lightning_modules.metrics.captions.gathered import CaptionScores
from lightning_modules.metrics.captions.java import Unavailable
from lightning_modules.metrics.captions.store import CaptionStore
from lightning_modules.networks.captioner import Captioner, VisualFeatures, Written
from lightning_modules.networks.language_model import Decoding, LanguageModel
from lightning_modules.networks.modes import evaluating

# Losses are sums over tokens; this keeps them, and fp16's scaled gradients, at the size of means until they are divided.
_TOKENS = 1000.0

# Inferred: of AdamW, I-Tuning prints the name.
ADAMW = optimization.Optimization(lr=5e-4, warmup_fraction=0.1, weight_decay=0.01)


@dataclass(frozen=True)
class Scoring:
    """What captions are compared by.

    Args:
        metrics: Of a test: bleu, meteor, rouge_l, cider, spice, or the class path of a `CaptionMetric` of your own, such as
            my_file.MyMetric. One whose program is not installed is left out and named in results.json (`crosslight score
            --install` installs it).
        val_metrics: Of a validation; by default those that need no Java and take seconds.
        further: Of a test as well: metrics with options, each a class path with its init_args, such as
            lightning_modules.clip_score.CLIPScore with its `model`.
        required: Metrics that must be there: before captions are made, not after, a missing program is an error.
        tokenizer: "ptb" = coco-caption's (Java), "simple" = without Java; "auto" = ptb where it is installed.
        domain_frequencies: CIDEr's document frequencies for a domain of NoCaps: of the "whole" set, or of its own "subset".

    Raises:
        InputError: There is no such metric.
    """

    metrics: tuple[str, ...] = NAMES
    val_metrics: tuple[str, ...] = JAVA_FREE
    further: tuple[CaptionMetric, ...] = ()
    required: tuple[str, ...] = ()
    tokenizer: Literal["auto", "ptb", "simple"] = "auto"
    domain_frequencies: Frequencies = "whole"

    def __post_init__(self) -> None:
        for name in (*self.metrics, *self.val_metrics, *self.required):
            find_metric(name)


class CaptioningModule(TunedModule):
    """A captioner, tuned through I-Tuning or ClipCap, with another adapter beside it where `Combined` has both. `tuning: head`
    without an adapter trains the language model alone, on captions without their images.

    Args:
        network: Vision tower and language model. It names the tokenizer and the image transform that the data must use.
        adapter: What connects them; needed for (and only for) `tuning: adapter`. LoRA and others that connect nothing go beside
            I-Tuning or ClipCap (`lightning_modules.adapters.combined.Combined`), or train blind (`captions_alone`).
        tuning: adapter = the adapter (and with ClipCap's tune_language_model the language model); full = everything; head = the
            language model alone; frozen = nothing trains: `crosslight run` then tests the captioner as it is.
        train_heads: With tuning adapter: new = the heads that no checkpoint brought; all; or none.
        optimization: AdamW, warm-up and decay.
        init_from: Start from these weights (a run folder, a checkpoint, or an adapter export): fine-tuning after pre-training on
            Visual Genome. To resume an interrupted run, use --run_dir instead.
        decoding: How captions are made in validation and test.
        scoring: What they are compared by.
        features: Keep the frozen tower's features of the training and validation images on disk and train from there; null
            encodes each image of a batch anew, once for all its captions. Test images are encoded once in any case.
        show: Images whose captions go beside their references into a W&B table at each validation. All captions of a validation
            or test are in the run folder, in captions/.
        eval_frozen: Keep frozen parts in eval mode while training: no dropout in the language model.
        captions_alone: Let an adapter that connects nothing (LoRA by itself) learn from captions without their images: what
            captions score that know the data set and not the picture. Otherwise it is refused.

    Raises:
        InputError: The adapter connects nothing, or features on disk are of no use.
    """

    protocol = "one caption an image, coco-caption's metrics as fractions"

    def __init__(
        self,
        network: Captioner,
        adapter: Adapter | None = None,
        tuning: Literal["full", "adapter", "head", "frozen"] = "adapter",
        train_heads: Literal["new", "all", "none"] = "new",
        optimization: optimization.Optimization = ADAMW,
        init_from: str | None = None,
        decoding: Decoding = Decoding(),  # noqa: B008 - frozen
        scoring: Scoring = Scoring(),
        features: FeatureCache | None = None,
        show: int = 16,
        eval_frozen: bool = True,
        captions_alone: bool = False,
    ) -> None:
        if features is not None and not eval_frozen:
            raise InputError("features on disk are of a tower without dropout: set eval_frozen to true, or features to null")
        if tuning == "head":
            network.tunes_language = True  # the one thing that a captioner without an adapter can learn
        super().__init__(network, adapter, tuning, train_heads, optimization, init_from, eval_frozen)
        if adapter is not None and not adapter.off and network.alone and not captions_alone:
            raise InputError(
                f"model.adapter: {type(adapter).__name__} changes the language model, and nothing shows it an image. Put "
                "I-Tuning or ClipCap before it (lightning_modules.adapters.combined.Combined takes both), or set "
                "model.captions_alone to true, to learn from captions without their images."
            )
        self.captions_alone = captions_alone
        if features is not None and network.alone:
            raise InputError("nothing looks at images here, so features on disk would be for nobody: set model.features to null")
        self.decoding = decoding
        # captions of a test may go to a server that has the references (NoCaps); a validation chooses the best by its scores
        self.needs_captions = frozenset({"val"}) if scoring.val_metrics else frozenset()
        self.scoring = scoring
        self.features = features
        self.show = show
        # Of the optimizer step that is going on:
        self._losses: list[Tensor] = []  # sums over tokens
        self._tokens: list[Tensor] = []
        # Of the evaluation that is going on:
        self._scores: CaptionScores | None = None
        self._records: Sequence[ImageRecord] = ()
        self._store = CaptionStore(None)
        self._tests = False  # of a test, not of a validation: captions then have their log-probability, which takes one more pass

    def setup(self, stage: str) -> None:
        """See that captions can be read, written and scored, before anything takes time.

        Raises:
            InputError: One of `scoring.further` lacks what it needs. (A program that is not installed is told with the scores.)
        """
        _ = self.network.language.hf_tokenizer
        for metric in self.scoring.further:
            with suppress(Unavailable):
                metric.require()

    # ----------------------------------------------------------------------------------------------- training

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.features is not None:
            trainer: Any = self.trainer
            self.features.fill(
                self.network,
                trainer.datamodule,
                ("train", "val"),
                precision=str(trainer.precision),
                context=trainer.precision_plugin.forward_context,
                progress=trainer.progress_bar_callback is not None,
            )

    def training_step(self, batch: CaptionBatch, batch_idx: int) -> Tensor:
        loss = self.network.loss(self._encode(batch.images), batch.texts, batch.image_row_B, tokens=_TOKENS)["loss"]
        self._losses.append(loss.detach() * _TOKENS)
        self._tokens.append(batch.texts.mask_BT.sum())
        return loss

    def _encode(self, images: ImageBatch) -> VisualFeatures:
        network: Captioner = self.network
        return network.no_features(images) if network.alone else network.encode_images(images)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Gradients of the sum over all tokens of the step become those of their mean, before they are clipped."""
        found = torch.stack([torch.stack(self._losses).sum().double(), torch.stack(self._tokens).sum().double()])
        self._losses, self._tokens = [], []
        loss, tokens = collectives.reduced(found)
        # Lightning has divided by the micro-batches of a step, DDP by the devices.
        parts = self.trainer.accumulate_grad_batches * self.trainer.world_size
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        torch._foreach_mul_(gradients, (parts * _TOKENS / tokens).float())
        self.log_dict({"train/loss": (loss / tokens).float(), "train/tokens": tokens.float()}, prog_bar=True)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.network.clear_images()  # their memory is free for what comes between steps

    # ---------------------------------------------------------------------------------------------------- use

    uses = "it writes captions (caption; crosslight caption), and has no space in which images and texts lie"
    task = Task("image-to-text", ("image-captioning",), 'print(model.caption(["a.jpg", "b.jpg"]))')

    def caption(
        self, paths: Sequence[str | Path], batch_size: int = 16, decoding: Decoding | None = None, seed: int = 0
    ) -> list[str]:
        """A caption of each image file in their order, as a test makes them, on the device where the model is.

        Args:
            paths: The files.
            batch_size: Images at once.
            decoding: How; None = as the run has it.
            seed: Of sampling, with each file's name.

        Raises:
            InputError: A file cannot be read, or the model sees no image.
        """
        read = read_image_files(paths, self.network.inputs.image, batch_size)
        return [each.text for batch in read for each in self.write(require_readable(batch), decoding, seed)]

    def write(self, images: ImageBatch, decoding: Decoding | None = None, seed: int = 0) -> list[Written]:
        """A caption of each image of a batch, which may be on any device; see `caption`.

        Raises:
            InputError: The model sees no image.
        """
        network: Captioner = self.network
        if network.alone:
            raise InputError(
                "this is a language model without an adapter, which sees no image; load a run with I-Tuning or ClipCap."
            )
        with evaluating(self), torch.no_grad():
            features = network.encode_images(images.to(next(network.parameters()).device))
            seeds = [draw_seed((seed, Path(name).stem)) for name in images.image_ids]
            return network.write(features, decoding or self.decoding, seeds)

    # --------------------------------------------------------------------------------------------- evaluation

    def on_validation_start(self) -> None:
        self._begin("val")

    def on_test_start(self) -> None:
        self._begin("test")

    def _begin(self, stage: str) -> None:
        """Take the split's references, and what a killed test has written already.

        Raises:
            InputError: A required metric is not installed, or the run folder holds captions of other weights.
        """
        loaders: Any = self.trainer.val_dataloaders if stage == "val" else self.trainer.test_dataloaders
        records = loaders[0].dataset.records
        metrics: Sequence[str | CaptionMetric] = self.scoring.val_metrics
        if stage == "test":
            metrics = (*self.scoring.metrics, *self.scoring.further)
        required = () if stage == "val" else self.scoring.required
        if not any(record.captions for record in records):  # NoCaps' test split: its captions are on the server alone
            metrics = required = ()
        names = {each if isinstance(each, str) else each.name for each in (*metrics, *required)}
        if self._scores is None or self._records is not records or set(self._scores.scorer.metrics) != names:
            references = [[caption.text for caption in record.captions] for record in records]
            domains = [record.domain for record in records]
            files = [record.path for record in records]
            settings = (self.scoring.tokenizer, required, domains, self.scoring.domain_frequencies, files)
            self._scores = CaptionScores(references, metrics, *settings).to(self.device)  # tokenized once for all validations
            self._records = records
        self._scores.reset()
        self._tests = stage == "test"
        if self._tests:
            folder = self._captions_folder / f"{self._evaluated_name}-test.parts"
            self._store = CaptionStore(folder, self.global_rank)
            store = self._store
            collectives.by_first(lambda: store.prepare(self._job(records)))
            store.read()
        else:
            self._store = CaptionStore(None)

    def _job(self, records: Sequence[ImageRecord]) -> dict[str, Any]:
        """What the captions of a split depend on."""
        about = caption_conditions(self.network, self.decoding, _seed())
        images = {"images": len(records), "photographs": image_fingerprint(records)}
        return images | about | {"weights": f"{about['weights']} {self.trainer.precision}"}

    @property
    def validation_metrics(self) -> Mapping[str, Better]:
        found = {name: find_metric(name) for name in self.scoring.val_metrics}
        return {key: "max" if name in NAMES else None for name, metric in found.items() for key in metric.columns()}

    def _evaluation_step(self, batch: ImageBatch) -> None:
        rows = batch.index_B.tolist()
        captions = self._store.found(rows)
        if captions is None:
            seeds = [draw_seed((_seed(), image_id)) for image_id in batch.image_ids]  # whenever, and beside whatever, it comes
            language: LanguageModel = self.network.language
            features = self._encode(batch)
            if self._tests:
                written = self.network.write(features, self.decoding, seeds)
                captions = [each.text for each in written]
                self._store.add(rows, captions, [each.ended for each in written], [each.log_prob for each in written])
            else:
                ids = self.network.generate_ids(features, self.decoding, seeds)
                captions = language.decode(ids)
                self._store.add(rows, captions, [language.has_ended(each, self.decoding) for each in ids])
        assert self._scores is not None
        self._scores.update(captions, batch.index_B)

    def _evaluation_end(self, stage: str) -> None:
        scores = self._scores
        assert scores is not None
        if self.trainer.sanity_checking:
            scores.reset()
            return
        values = scores.compute()
        found = scores.scores
        assert found is not None
        self._queries = scores.per_image()
        self._notes = {"tokenizer": found.tokenizer, "unavailable": found.unavailable, "columns": found.columns}
        self._store.read()  # of all processes
        log_probs = [self._store.log_probs[row] for row in range(len(self._records))] if stage == "test" else None
        remarks = dict(found.remarks)
        if unended := len(set().union(*collectives.told_objects(self._store.unended))):
            remarks["decoding"] = f"{unended:,} captions reached max_new_tokens ({self.decoding.max_new_tokens}) before an end"
        if stage == "test" and self.trainer.is_global_zero:
            for name, advice in found.unavailable.items():
                print(f"crosslight: {name} is unavailable: {advice}")
        self._note_remarks(stage, remarks)
        if self.trainer.is_global_zero:
            self._write(stage, scores.written, log_probs)
        if log_probs is not None:
            self._queries = {**self._queries, "log_prob": torch.tensor(log_probs, dtype=torch.float64)}
        self._store.close()
        collectives.meet()  # every process has let go of the store before it goes
        if stage == "test" and self.trainer.is_global_zero:
            self._store.remove()
        scores.reset()
        logged = {f"{stage}/{name}": value.float() for name, value in values.items()}
        self.log_dict(logged, rank_zero_only=False, sync_dist=False)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Captions are what a test writes.

        Raises:
            InputError: Always; the message says where they are.
        """
        raise InputError(
            "predict writes embeddings, and a captioner has none: `crosslight test` writes a split's captions to captions/ in "
            "the run folder, `crosslight caption RUN IMAGE...` those of any images"
        )

    # ------------------------------------------------------------------------------------------------ written captions

    @property
    def _captions_folder(self) -> Path:
        return Path(self.trainer.default_root_dir) / "captions"

    @property
    def _evaluated_name(self) -> str:
        data: Any = getattr(self.trainer, "datamodule", None)
        return str(getattr(self.trainer, "evaluated_data", None) or getattr(data, "name", "data"))

    def _write(self, stage: str, captions: Sequence[str], log_probs: Sequence[float] | None) -> None:
        """The captions of a split to the run folder, with the log-probability of each, and some of them to W&B."""
        rows: list[dict[str, Any]] = [
            {
                "image_id": record.image_id,
                "file": None if record.path is None else str(record.path),
                "caption": caption,
                **({} if log_probs is None else {"log_prob": round(log_probs[row], 5)}),
                "references": [each.text for each in record.captions],
                "scores": {name: round(float(values[row]), 6) for name, values in self._queries.items()},
            }
            for row, (record, caption) in enumerate(zip(self._records, captions, strict=True))
        ]
        folder = self._captions_folder
        if stage == "test":
            name = f"{self._evaluated_name}-test"
            by_id = {record.image_id: caption for record, caption in zip(self._records, captions, strict=True)}
            write_caption_results(folder / f"{name}.json", by_id, list(by_id))
            self._notes["captions_file"] = f"captions/{name}.json"
            _write_rows(folder / f"{name}.beside.json", rows)
        else:
            _write_rows(folder / f"val-step-{self.global_step:06d}.json", rows)
        shown = [rows[len(rows) * place // self.show] for place in range(self.show)] if len(rows) > self.show else rows
        for logger in self.trainer.loggers:
            if isinstance(logger, WandbLogger) and self.show:
                import wandb

                table = [
                    [each["image_id"], _picture(wandb, each["file"]), each["caption"], "\n".join(each["references"])]
                    for each in shown
                ]
                key = f"test/{self._evaluated_name}/captions" if stage == "test" else "val/captions"
                columns = ["image", "picture", "caption", "references"]
                logger.log_table(key, columns, table, step=self.global_step)


def caption_conditions(network: Captioner, decoding: Decoding, seed: int) -> dict[str, Any]:
    """What a caption depends on beside its image, as JSON."""
    language = network.language
    return {
        "weights": backbone_fingerprint(network, set())["weights"],
        "transform": asdict(network.inputs.image) if network.inputs.image is not None else None,
        "decoding": asdict(decoding) | ({"seed": seed} if decoding.sample else {}),
        "language": {"prompt": list(language.prompt_ids), "bos": language.bos, "eos": language.eos},
    }


def _seed() -> int:
    """Of the run."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


def _picture(wandb: Any, file: str | None) -> Any:
    """An image of at most 256 pixels a side; None where there is none to be read any more (kept features take its place)."""
    if file is None:
        return None
    from datamodules.files.images import read_image

    try:
        small = read_image(Path(file))
    except InputError:
        return None
    small.thumbnail((256, 256))
    return wandb.Image(small)


def _write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "[\n" + ",\n".join(json_text(row) for row in rows) + "\n]\n")
