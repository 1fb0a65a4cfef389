"""The base of the image-text data modules: which files and splits a task makes batches of, and the loaders of those batches.

A subclass says how its files are read (`Source`); what a batch holds is the task's (loading/pairs.py, ranking.py, captions.py),
and the network decides which of them it is, its size, normalization and tokenizer: see `ImageTextDataModule.connect`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from datamodules.errors import InputError
from datamodules.files.stand_in import mark_of
from datamodules.inputs import Inputs
from datamodules.loading.captions import Captioning, ImageCaptions
from datamodules.loading.evaluation import EvaluationImages
from datamodules.loading.fingerprint import fingerprint, image_contents, image_fingerprint
from datamodules.loading.images import Augment, Augmentation
from datamodules.loading.loader import BatchLoader, TrainLoader
from datamodules.loading.order import GlobalBatches, mix
from datamodules.loading.pairs import Pairs, TrainUnit
from datamodules.loading.positives import split_positives
from datamodules.loading.pretraining import Pretraining, RegionPretraining
from datamodules.loading.ranking import PixelRanking, Ranking, RegionRanking
from datamodules.loading.region_files import RegionFiles
from datamodules.loading.splits import FileSplits, RegionSplits
from datamodules.loading.task import Batching, Split, Task
from datamodules.loading.whole_split import counts_of
from datamodules.records import ImageRecord, Positives
from datamodules.source import Source

_STAGES: dict[str | None, tuple[str, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
}


@dataclass(frozen=True)
class Limits:
    """Cut the splits for a quick look: only the first images of each. Results carry the cut in the split's name, "test[:100]".

    Args:
        train: Images of the training split; null is all.
        val: Images of the validation split; null is all.
        test: Images of the test split; null is all.
    """

    train: int | None = None
    val: int | None = None
    test: int | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and value < 1:
                raise InputError(f"limits.{name} is {value}; give at least 1, or null for all images.")

    def of(self, split: str) -> int | None:
        return getattr(self, split, None)


BATCH_OPTIONS = (
    "batch_size", "eval_batch_size", "num_workers", "train_unit", "augment", "min_scale", "flip", "limits", "seed",
    "cache_pixels", "ranking", "pretraining", "captioning",
)  # fmt: skip
"""Options of `ImageTextDataModule` that say nothing of its files."""


class ImageTextDataModule(Source, LightningDataModule):
    """Images with captions, for retrieval as pixels and tokens, or region features and tokens, and for captioning.

    A data set says what its files are (`Source`); `tasks` make the batches, and the network chooses among them (`Inputs`): pairs
    of pixels and text (`PairBatch`), positives with candidates (`RankingBatch`) for one that scores pairs, of regions and text if
    it takes regions and no pixels, else of pixels and text, captions for one that writes them (`CaptionBatch`), pairs with
    something hidden for one that learns from that (`MaskedBatch`). Evaluation has two loaders, images once (`ImageBatch`) and
    captions once (`TextBatch`); for a network that writes captions the first alone, with the references in `records`; for one
    that is pre-trained one a task, with all captions.
    Without a Trainer: `module.connect(network.inputs)`, then `module.train_dataloader()`, `module.evaluation_loaders("test")`.

    Args:
        root: Folder of the data set.
        image_dir: Folder of the images, relative to root (or absolute).
        batch_size: Pairs in one training batch over all devices together: the number of candidates that the contrastive loss
            sees. For a network that scores pairs: positives of each side in one batch over all devices. Must divide by the number
            of devices.
        eval_batch_size: Images, or captions, in one evaluation batch of one device.
        num_workers: Processes that decode images, for each loader; 0 decodes in the training process.
        train_unit: "pair" sees each caption once an epoch (the official recipe); "image" sees each image once an epoch with
            one of its captions, drawn anew each epoch.
        augment: "paper" is BEiT-3's and thus MWA's training transform: random crop, resized, and horizontal flip; "none"
            trains on the evaluation transform.
        min_scale: Smallest area of the random crop as a fraction of the image.
        flip: Probability of the horizontal flip.
        limits: Cut the splits for a quick look: first images of each.
        seed: Seed of the order of samples, the caption choice and the augmentation.
        cache_pixels: Keep resized uint8 images in memory (3 * size * size bytes each) after their first use. Applies to
            evaluation, and to training where augment is "none"; a random crop needs the original file.
        regions: The data set's databases of region features, for a network that takes those in place of pixels.
        ranking: For a network that scores pairs: what a training batch consists of.
        pretraining: For a network that is pre-trained on what is hidden of pairs: what that is.
        captioning: For a network that writes captions: which of them it trains on, in what batches.

    Raises:
        InputError: an option is out of range.
    """

    allow_zero_length_dataloader_with_multiple_devices = True  # a split may have fewer images than there are devices

    def __init__(
        self,
        root: str,
        image_dir: str,
        batch_size: int = 64,
        eval_batch_size: int = 128,
        num_workers: int = 2,
        train_unit: TrainUnit = "pair",
        augment: Augment = "paper",
        min_scale: float = 0.5,
        flip: float = 0.5,
        limits: Limits = Limits(),
        seed: int = 0,
        cache_pixels: bool = False,
        regions: RegionFiles | None = None,
        ranking: Ranking = Ranking(),  # noqa: B008 - frozen
        pretraining: Pretraining = Pretraining(),  # noqa: B008 - frozen
        captioning: Captioning = Captioning(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(root, image_dir)
        for option, value, least in (
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("num_workers", num_workers, 0),
        ):
            if value < least:
                raise InputError(f"{option} is {value}; give at least {least}.")
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.train_unit: TrainUnit = train_unit
        self.augmentation = Augmentation(augment, min_scale, flip)
        self.limits = limits
        self.seed = seed
        self.cache_pixels = cache_pixels
        self.ranking = ranking
        self.pretraining = pretraining
        self.captioning = captioning
        self.file_splits = FileSplits(self)
        self.region_splits = RegionSplits(self, regions)
        self.predict_split = "test"  # what `predict` is made of; `crosslight predict --split` sets it
        self._connected: tuple[Task, Batching] | None = None
        self._train_loader: TrainLoader | None = None
        self._position: dict[str, Any] | None = None

    def batch_options(self) -> dict[str, Any]:
        """How batches are made of its files: the options of the constructor that are not those of files, by their names."""
        augmentation = asdict(self.augmentation)
        own = {"augment": augmentation.pop("kind"), **augmentation, **vars(self)}
        return {option: own[option] for option in BATCH_OPTIONS}

    # -------------------------------------------------------------------------------------------------------------- tasks

    def tasks(self) -> tuple[Task, ...]:
        """What networks can be fed from this data set: the first that takes a network's inputs makes its batches."""
        pixels = (self.file_splits, self.augmentation, self.cache_pixels)
        return (
            ImageCaptions(*pixels, self.captioning),
            RegionPretraining(self.region_splits, self.pretraining, self.train_unit),
            RegionRanking(self.region_splits, self.ranking),
            PixelRanking(*pixels, self.ranking),
            Pairs(*pixels, self.train_unit),
        )

    @cached_property
    def _tasks(self) -> tuple[Task, ...]:
        return self.tasks()

    @property
    def task(self) -> Task:
        """What makes the batches. Before `connect` it is that of the Trainer's network, or what the options ask for."""
        if self._connected is not None:
            return self._connected[0]
        inputs = getattr(getattr(getattr(self.trainer, "lightning_module", None), "network", None), "inputs", None)
        return self._task_for(inputs if isinstance(inputs, Inputs) else None)

    def _task_for(self, inputs: Inputs | None) -> Task:
        task = next((task for task in self._tasks if task.takes(inputs)), None)
        if task is None:
            lacking = "images" if inputs is not None and inputs.text is not None else "texts"
            raise InputError(f"the network takes no {lacking}; {type(self).__name__} gives image-text pairs.")
        return task

    def connect(self, inputs: Inputs, rank: int = 0, world_size: int = 1) -> None:
        """Take the transform and tokenizer that the network was built with, and this process's place among all.

        Under a Trainer `setup` does it, from `trainer.lightning_module.network.inputs`.

        Raises:
            InputError: the network takes no images or no texts, or its tokenizer is not there or has too many ids for it; it
                takes regions, and the option `regions` is not set, or its databases are missing or of another feature width.
        """
        task = self._task_for(inputs)
        task.connect(inputs)
        self._connected = task, Batching(self.batch_size, self.eval_batch_size, self.seed, rank, world_size)

    def setup(self, stage: str) -> None:
        """Connect to the Trainer's network, read the annotations, and see that the stage's images are there."""
        trainer = self.trainer
        if trainer is not None:
            if trainer.world_size > 1 and trainer._accelerator_connector.use_distributed_sampler:
                raise InputError(
                    "the data module shards its batches itself (global batch_size, nothing padded): "
                    "set trainer.use_distributed_sampler to false."
                )
            network: Any = getattr(trainer.lightning_module, "network", None)
            if network is None or not isinstance(getattr(network, "inputs", None), Inputs):
                raise InputError(
                    f"{type(trainer.lightning_module).__name__}.network.inputs names no transform and tokenizer; "
                    f"{type(self).__name__} takes them from there."
                )
            self.connect(network.inputs, trainer.global_rank, trainer.world_size)
        for split in (self.predict_split,) if stage == "predict" else _STAGES.get(stage, ()):
            if split != "val" or stage != "fit" or "val" in self.splits():
                self.records(split)
        if stage == "fit":
            self.task.foresee(self._split)
            self.split_positives("test")

    # ------------------------------------------------------------------------------------------------------------- splits

    @property
    def needs_image_files(self) -> bool:
        return self.task.splits.needs_image_files

    @property
    def needs_annotation_files(self) -> bool:
        return self.task.splits.needs_annotation_files

    def splits(self) -> dict[str, int]:
        """The data set's splits and their numbers of images, before limits."""
        return {split: len(records) for split, records in self.task.splits.read().items()}

    def records(self, split: str) -> Sequence[ImageRecord]:
        """The images of a split, after limits; row i of the split is element i.

        Raises:
            InputError: the data set has no such split, or image files are missing.
        """
        return self.task.splits.records(split, self.limits.of(split))

    def split_label(self, split: str) -> str:
        """The split's name in results: "test", or "test[:100]" when `limits` cut it."""
        limit = self.limits.of(split)
        cut = limit is not None and limit < self.splits().get(split, 0)
        return f"{self.split_name(split)}[:{limit}]" if cut else self.split_name(split)

    def _split(self, split: str) -> Split:
        return Split(split, f"{self.name} {self.split_label(split)}", self.records(split))

    def split_positives(self, split: str) -> dict[str, Positives]:
        """Right answers of a split beyond its own captions, by the name of their set (`positives`); of the test split alone.

        Raises:
            InputError: Their files are missing, damaged, or of other images or captions.
        """
        if split != "test" or not self.positives:
            return {}
        label, cut = f"{self.name} {self.split_label(split)}", self.split_label(split) != self.split_name(split)
        records = self.records(split)
        return {name: split_positives(name, folder, label, records, cut) for name, folder in self.positives.items()}

    def fingerprint(self) -> str:
        """What the splits hold, after limits, as 16 hexadecimal digits: see `loading.fingerprint`."""
        return fingerprint(self.task.splits, asdict(self.limits))

    @property
    def stand_in(self) -> bool:
        """Whether its files are stand-ins, of which nothing is a result (datamodules/files/stand_in.py)."""
        return mark_of(self.root) is not None

    def describe(self) -> dict[str, Any]:
        """For results.json: name, options, counts of each split under its label, fingerprint; `stand_in` where it is one."""
        counts = {}
        for split, all_records in self.task.splits.read().items():
            records = all_records[: self.limits.of(split)]
            counts[self.split_label(split)] = {"images": len(records), "captions": int(counts_of(records).sum())}
        told = {"name": self.name, "options": self.task.splits.options(), "splits": counts, "fingerprint": self.fingerprint()}
        told |= {"notes": notes} if (notes := self.notes()) else {}
        return {**told, "stand_in": True} if self.stand_in else told

    def cut_captions(self, splits: Sequence[str]) -> dict[str, int]:
        """Texts that the connected network's max_tokens cuts, by the splits' labels; splits without any are left out.

        Raises:
            InputError: No network is known yet.
        """
        task, batching = self._connection()
        counts = {self.split_label(split): task.cut_captions(self._split(split), batching) for split in splits}
        return {label: count for label, count in counts.items() if count}

    def caption_count(self, split: str) -> int:
        """Captions of a split, after limits.

        Raises:
            InputError: As `records`.
        """
        return int(counts_of(self.records(split)).sum())

    def unknown_words(self, split: str) -> dict[str, int]:
        """Words of a split that the connected network's tokenizer does not know and how often they come, most frequent first.

        Raises:
            InputError: No network is known yet, or the data set has no such split.
        """
        return self._connection()[0].unknown_words(self._split(split))

    # ------------------------------------------------------------------------------------------------------------- loaders

    def train_dataloader(self) -> TrainLoader:
        """The batches that the network trains on; resumes where `load_state_dict` said."""
        task, batching = self._connection()
        samples, order = task.training(self._split("train"), batching)
        loader = TrainLoader(samples, batch_size=None, sampler=order, **self._loading(persistent=True))
        if self._position is not None:
            self._require_same_epoch(self._position, order)
            loader.load_state_dict(self._position)
            self._position = None
        if self.trainer is not None:
            loader.progress = self._trainer_progress
        self._train_loader = loader
        return loader

    def evaluation_loaders(self, split: str) -> list[DataLoader[Any]]:
        """This process's share of a split, each image and each caption once: images first, then what else the task gives."""
        task, batching = self._connection()
        parts = task.evaluation(self._split(split), batching)
        return [BatchLoader(samples, batch_size=None, sampler=rows, **self._loading()) for samples, rows in parts]

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """`evaluation_loaders("val")`."""
        return self.evaluation_loaders("val")

    def test_dataloader(self) -> list[DataLoader[Any]]:
        """`evaluation_loaders("test")`."""
        return self.evaluation_loaders("test")

    def predict_dataloader(self) -> list[DataLoader[Any]]:
        """`evaluation_loaders` of `predict_split`."""
        return self.evaluation_loaders(self.predict_split)

    def _connection(self) -> tuple[Task, Batching]:
        if self._connected is None:
            raise InputError(f"{type(self).__name__} does not know its network yet: call connect(network.inputs) first.")
        return self._connected

    def _loading(self, persistent: bool = False) -> dict[str, Any]:
        strategy = getattr(self.trainer, "strategy", None)
        return {
            "num_workers": self.num_workers,
            # pinning opens the GPU: not for a run on the processor of a machine that has one
            "pin_memory": torch.cuda.is_available() if strategy is None else strategy.root_device.type == "cuda",
            "persistent_workers": persistent and self.num_workers > 0,
            # Otherwise PyTorch draws the workers' seed from the global generator, and dropout would depend on the loaders.
            "generator": torch.Generator().manual_seed(mix(self.seed)),
        }

    # ----------------------------------------------------------------------------------------------------- visual features

    def image_fingerprint(self, split: str) -> str:
        """16 hexadecimal digits over the ids and contents of a split's images, in their order."""
        return image_fingerprint(self.records(split))

    def image_contents(self, split: str) -> list[str]:
        """What each image of a split holds, for comparisons (`loading.fingerprint`); empty where no image files are read."""
        return image_contents(self.records(split)) if self.needs_image_files else []

    def evaluation_images(self, split: str) -> EvaluationImages:
        """A split's images by row, as pixels of the network's evaluation transform; nothing is kept in memory."""
        return self._connection()[0].images(self.records(split))

    def image_loader(self, split: str, batches: Sequence[Sequence[int]]) -> DataLoader[Any]:
        """Batches of `evaluation_images` of these rows, in this order."""
        return BatchLoader(self.evaluation_images(split), batch_size=None, sampler=batches, **self._loading())

    def use_features(self, folders: Mapping[str, Path]) -> None:
        """From now on, until the next `connect`, images of these splits come as visual tokens that were made before.

        Args:
            folders: Of `FeatureFile`, by split. Their rows are those of the split after limits.

        Raises:
            InputError: The network writes no captions, the training images are cropped at random, or the features are of other
                images, of another transform, or not all there.
        """
        self._connection()[0].use_features(folders, self._split)

    def require_fixed_images(self) -> None:
        """Raise `InputError` where training images look different each time, so that no features of them can be kept."""
        self._connection()[0].require_fixed_images()

    # -------------------------------------------------------------------------------------------------------------- resume

    def state_dict(self) -> dict[str, Any]:
        """The position of training in its data: epoch and number of global batches done in it, and what they depend on."""
        if self._train_loader is None:
            return {}
        return {**self._train_loader.state_dict(), **self._order_options(self._train_loader.order)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The next `train_dataloader()` starts at this position."""
        self._position = dict(state_dict) or None

    def _order_options(self, order: GlobalBatches) -> dict[str, Any]:
        task, batching = self._connection()
        common = {"batch_size": batching.size, "seed": batching.seed, "samples": order.samples}
        return task.order_options(batching) | common

    def _require_same_epoch(self, position: Mapping[str, Any], order: GlobalBatches) -> None:
        if position["batch"] == 0:
            return  # an epoch starts anew: other options are the user's choice
        for option, value in self._order_options(order).items():
            if position.get(option) != value:
                raise InputError(
                    f"the checkpoint stopped in mid-epoch (epoch {position['epoch']}, after {position['batch']} batches) with "
                    f"{option} {position.get(option)}, this run has {value}: the rest of the epoch cannot be continued. Set "
                    f"{option} back, or start a new run with init_from."
                )

    def _trainer_progress(self) -> tuple[int, float]:
        assert self.trainer is not None
        current = self.trainer.fit_loop.epoch_loop.batch_progress.current
        return current.ready - current.processed, self.trainer.num_training_batches
