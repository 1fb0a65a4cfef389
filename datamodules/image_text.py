"""The base of the image-text data modules: from splits of records to the loaders of training and evaluation.

A subclass says how its files are read (`parse`) and what to do when they are not there (`prepare_data`); everything else is
here. The network decides size, normalization and tokenizer: see `ImageTextDataModule.connect`.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from datamodules.errors import InputError
from datamodules.formats.parsing import Parsed
from datamodules.inputs import ImageInput, Inputs
from datamodules.loading.captions import CaptionBatches, Captioning, CaptionTokenizer, TrainCaptions
from datamodules.loading.features import FeatureFile
from datamodules.loading.fingerprint import file_sizes, require_images
from datamodules.loading.images import Augment, Augmentation, SplitImages
from datamodules.loading.loader import BatchLoader, TrainLoader
from datamodules.loading.order import GlobalBatches, evaluation_batches, mix
from datamodules.loading.pairs import EvaluationImages, EvaluationRegions, EvaluationTexts, TrainPairs, TrainUnit
from datamodules.loading.ranking import Ranking, RankingBatches, TrainRanking
from datamodules.loading.regions import RegionFiles, RegionReader, named, read_text_databases, update_with_texts
from datamodules.loading.tokens import BEIT3_IDS, FileIds, Tokenizer
from datamodules.records import ImageRecord

Split = Literal["train", "val", "test"]
View = Literal["pixels", "regions"]

_STAGES: dict[str | None, tuple[Split, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("test",),
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


@dataclass(slots=True)
class _Connection:
    """What `connect` was given."""

    image: ImageInput | None  # None: the regions view
    tokenizer: Tokenizer
    rank: int
    world_size: int

    @property
    def captions(self) -> CaptionTokenizer | None:
        """The tokenizer of a network that writes captions."""
        return self.tokenizer if isinstance(self.tokenizer, CaptionTokenizer) else None


@dataclass(slots=True)
class _Loaded:
    """A view's splits as read, whose token ids they hold if any, and what is made of each split when it is first asked for: its
    records after limits, with all their images there, and its pixels."""

    splits: dict[str, list[ImageRecord]]
    file_ids: FileIds
    ready: dict[str, list[ImageRecord]] = field(default_factory=dict)
    pixels: dict[tuple[str, bool], SplitImages] = field(default_factory=dict)


class ImageTextDataModule(LightningDataModule):
    """Images with captions, for retrieval as pixels and tokens, or region features and tokens, and for captioning.

    Training yields `PairBatch`, in the regions view `RankingBatch`; evaluation has two loaders, images once (`ImageBatch`) and
    captions once (`TextBatch`). A network that writes captions trains on `CaptionBatch` and is evaluated on images alone, with
    the references in `records`. The network chooses: one that takes regions and no pixels gets regions (`Inputs`).
    Without a Trainer: `module.connect(network.inputs)`, then `module.train_dataloader()`, `module.evaluation_loaders("test")`.

    Args:
        root: Folder of the data set.
        image_dir: Folder of the images, relative to root (or absolute).
        batch_size: Pairs in one training batch over all devices together: the number of candidates that the contrastive loss
            sees. With regions: positives of each side in one batch over all devices. Must divide by the number of devices.
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
        ranking: With regions: what a training batch consists of.
        captioning: For a network that writes captions: which of them it trains on, in what batches.

    Raises:
        InputError: an option is out of range.
    """

    name: ClassVar[str]
    """Of the data set, as results name it."""

    region_prefixes: ClassVar[tuple[str, ...]] = ()
    """Of the data set's image names in UNITER's released databases, such as flickr30k in flickr30k_001000092795.npz."""

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
        captioning: Captioning = Captioning(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__()
        for option, value, least in (
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("num_workers", num_workers, 0),
        ):
            if value < least:
                raise InputError(f"{option} is {value}; give at least {least}.")
        self.root = Path(root).expanduser().absolute()
        self.image_dir = self.root / Path(image_dir).expanduser()
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.train_unit = train_unit
        self.augmentation = Augmentation(augment, min_scale, flip)
        self.limits = limits
        self.seed = seed
        self.cache_pixels = cache_pixels
        self.regions = regions
        self.ranking = ranking
        self.captioning = captioning
        self._connection: _Connection | None = None
        self._loaded: dict[View, _Loaded] = {}
        self._reader: RegionReader | None = None
        self._features: dict[str, FeatureFile] = {}
        self._train_loader: TrainLoader | None = None
        self._position: dict[str, Any] | None = None

    # ------------------------------------------------------------------------------------------------- what a data set says

    @abstractmethod
    def parse(self) -> Parsed:
        """All splits under the names train, val, test (others may be there too), and what is wrong with them."""

    @abstractmethod
    def require_files(self) -> None:
        """Raise `InputError` that says which files are missing and where they come from."""

    @abstractmethod
    def annotation_files(self) -> list[Path]:
        """The files that `parse` reads; their content enters the fingerprint."""

    def options(self) -> dict[str, Any]:
        """The options that change what the splits are (not how they are loaded)."""
        return {}

    # --------------------------------------------------------------------------------------------------------------- view

    @property
    def view(self) -> View:
        """Whether images are pixels or regions: what the network takes. Before there is one, regions if their option is set."""
        if self._connection is not None:
            return "regions" if self._connection.image is None else "pixels"
        module = self.trainer.lightning_module if self.trainer is not None else None
        inputs = getattr(getattr(module, "network", None), "inputs", None)
        if isinstance(inputs, Inputs):
            return _view_of(inputs)
        return "pixels" if self.regions is None else "regions"

    @property
    def needs_image_files(self) -> bool:
        """Pixels come from image files, regions do not."""
        return self.view == "pixels"

    @property
    def needs_annotation_files(self) -> bool:
        """In the regions view, text databases take the place of the data set's own caption files."""
        return self.view == "pixels" or self.regions is None or self.regions.text_db is None

    def region_reader(self) -> RegionReader:
        """The region features of the data set's images.

        Raises:
            InputError: the option `regions` is not set, or a database is missing or damaged.
        """
        if self._reader is None:
            files = self._region_files()
            files.require(self.root)
            self._reader = RegionReader(files.image_paths(self.root), files.layout)
        return self._reader

    def parse_regions(self) -> tuple[Parsed, FileIds]:
        """What `parse` is for pixels, and whose token ids the captions are if they are ids. Records may lack the name of their
        image in the databases: `records` finds it from the file's name.

        Raises:
            InputError: the option `regions` is not set, or files are missing or damaged.
        """
        texts = self._region_files().text_paths(self.root)
        if not texts:
            return self.parse(), BEIT3_IDS
        self._region_files().require(self.root)
        return read_text_databases(texts, self.root)

    def _region_files(self) -> RegionFiles:
        if self.regions is None:
            raise InputError(
                f"the network takes region features in place of pixels, and {type(self).__name__} was not told where they are: "
                "set its option regions, at least {image_db: FOLDER}, or choose a network that takes pixels."
            )
        return self.regions

    # ------------------------------------------------------------------------------------------------------------- splits

    def splits(self) -> dict[str, int]:
        """The data set's splits and their numbers of images, before limits."""
        return {split: len(records) for split, records in self._read().splits.items()}

    def records(self, split: str) -> Sequence[ImageRecord]:
        """The images of a split, after limits; row i of the split is element i.

        Raises:
            InputError: the data set has no such split, or image files are missing.
        """
        loaded = self._read()
        if split not in loaded.splits:
            sources = self.annotation_files() if self.needs_annotation_files else ["regions.text_db"]
            files = ", ".join(map(str, sources))
            raise InputError(f"{self.name} has no split {split!r}: {files} give(s) {_counts(loaded.splits)}.")
        if split not in loaded.ready:
            records = loaded.splits[split][: self.limits.of(split)]
            if self.view == "regions":
                records = named(records, self.region_reader(), self.region_prefixes, f"{self.name} {split}")
            else:
                require_images(self.name, split, records)
            loaded.ready[split] = records
        return loaded.ready[split]

    def split_label(self, split: str) -> str:
        """The split's name in results: "test", or "test[:100]" when `limits` cut it."""
        limit = self.limits.of(split)
        return split if limit is None or limit >= self.splits().get(split, 0) else f"{split}[:{limit}]"

    def fingerprint(self) -> str:
        """16 hexadecimal digits over the annotation files' contents, the options and limits, and each image's id and file size;
        in the regions view over the databases in place of the files that they replace.

        Two data roots with the same fingerprint hold the same splits; the place of the root does not matter.
        """
        digest = hashlib.sha256()
        for path in self.annotation_files() if self.needs_annotation_files else ():
            with path.open("rb") as file:  # up to 700 MB
                digest.update(path.name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
        digest.update(json.dumps([self._view_options(), asdict(self.limits)], sort_keys=True).encode())
        if self.view == "regions":
            self.region_reader().update(digest)
            update_with_texts(digest, self._region_files().text_paths(self.root))
        for split, all_records in sorted(self._read().splits.items()):
            records = all_records[: self.limits.of(split)]
            sizes = file_sizes(records) if self.needs_image_files else {}
            digest.update(f"\n{split} {len(records)}".encode())
            for record in records:
                size = sizes.get(record.path, -1) if record.path is not None else -1
                digest.update(f"\n{record.image_id} {len(record.captions)} {size}".encode())
        return digest.hexdigest()[:16]

    def describe(self) -> dict[str, Any]:
        """For results.json: name, options, counts of each split under its label, fingerprint."""
        counts = {}
        for split, all_records in self._read().splits.items():
            records = all_records[: self.limits.of(split)]
            captions = sum(len(record.captions) for record in records)
            counts[self.split_label(split)] = {"images": len(records), "captions": captions}
        return {"name": self.name, "options": self._view_options(), "splits": counts, "fingerprint": self.fingerprint()}

    def _view_options(self) -> dict[str, Any]:
        if self.view == "pixels":
            return self.options()
        own = self.options() if self.needs_annotation_files else {}
        return {**own, "regions": self._region_files().describe(self.root)}

    def _read(self, view: View | None = None) -> _Loaded:
        view = view or self.view
        if view not in self._loaded:
            parsed, file_ids = self.parse_regions() if view == "regions" else (self.parse(), BEIT3_IDS)
            self._loaded[view] = _Loaded(parsed.valid(), file_ids)
        return self._loaded[view]

    # ---------------------------------------------------------------------------------------------------------- connection

    def connect(self, inputs: Inputs, rank: int = 0, world_size: int = 1) -> None:
        """Take the transform and tokenizer that the network was built with, and this process's place among all.

        Under a Trainer `setup` does it, from `trainer.lightning_module.network.inputs`.

        Raises:
            InputError: the network takes no images or no texts, or its tokenizer is not there or has too many ids for it; it
                takes regions, and the option `regions` is not set, or its databases are missing or of another feature width.
        """
        if inputs.text is None or (inputs.image is None and inputs.regions is None):
            lacking = "texts" if inputs.text is None else "images"
            raise InputError(f"the network takes no {lacking}; {type(self).__name__} gives image-text pairs.")
        file_ids = BEIT3_IDS
        if inputs.captions and inputs.image is None:
            raise InputError("captioning takes pixels: the network writes captions, but its inputs name no image transform.")
        if _view_of(inputs) == "regions":
            assert inputs.regions is not None
            self.region_reader().require_width(inputs.regions.feature_width)
            file_ids = self._read("regions").file_ids
        tokenizer = CaptionTokenizer(inputs.text) if inputs.captions else Tokenizer(inputs.text, file_ids)
        self._connection = _Connection(inputs.image, tokenizer, rank, world_size)
        self._features = {}
        for loaded in self._loaded.values():
            loaded.pixels.clear()

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
        for split in _STAGES.get(stage, ()):
            if split != "val" or stage != "fit" or "val" in self._read().splits:
                self.records(split)

    def _connected(self) -> _Connection:
        if self._connection is None:
            raise InputError(f"{type(self).__name__} does not know its network yet: call connect(network.inputs) first.")
        return self._connection

    # ------------------------------------------------------------------------------------------------------------- loaders

    def train_dataloader(self) -> TrainLoader:
        """Batches of `PairBatch`, in the regions view of `RankingBatch`, for a network that writes captions of `CaptionBatch`;
        resumes where `load_state_dict` said."""
        connection = self._connected()
        records = self.records("train")
        place = (connection.rank, connection.world_size)
        samples: TrainPairs | TrainRanking | TrainCaptions
        if self.view == "regions":
            samples = TrainRanking(records, self.region_reader(), connection.tokenizer, self.ranking, self.seed, *place)
            order: GlobalBatches = RankingBatches(self.ranking.sides, len(samples), self.batch_size, self.seed, *place)
        elif connection.captions is not None:
            shown = self._features.get("train") or self._images("train", records, self.augmentation)
            samples = TrainCaptions(records, shown, connection.captions, self.seed)
            order = CaptionBatches(samples.counts, self.captioning, self.batch_size, self.seed, *place)
        else:
            images = self._images("train", records, self.augmentation)
            samples = TrainPairs(records, images, connection.tokenizer, self.train_unit, self.seed)
            order = GlobalBatches(len(samples), self.batch_size, self.seed, *place)
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
        """Two loaders over this process's share of a split: images (`ImageBatch`; regions by their number), then captions by
        length (`TextBatch`). For a network that writes captions the first alone."""
        connection = self._connected()
        records = self.records(split)
        share = (self.eval_batch_size, connection.rank, connection.world_size)
        if connection.captions is not None:
            shown = EvaluationImages(records, self._features.get(split) or self._images(split, records, None))
            rows = evaluation_batches(len(shown), *share)
            return [BatchLoader(shown, batch_size=None, sampler=rows, **self._loading())]
        texts = EvaluationTexts(records, connection.tokenizer)
        images: EvaluationImages | EvaluationRegions
        if self.view == "regions":
            images = EvaluationRegions(records, self.region_reader())
            image_rows = evaluation_batches(len(images), *share, lengths=images.lengths())
            text_lengths = self._words(split, texts)
        else:
            images = EvaluationImages(records, self._images(split, records, None))
            image_rows = evaluation_batches(len(images), *share)
            text_lengths = texts.lengths()
        text_rows = evaluation_batches(len(texts), *share, lengths=text_lengths)
        return [
            BatchLoader(images, batch_size=None, sampler=image_rows, **self._loading()),
            BatchLoader(texts, batch_size=None, sampler=text_rows, **self._loading()),
        ]

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """`evaluation_loaders("val")`."""
        return self.evaluation_loaders("val")

    def test_dataloader(self) -> list[DataLoader[Any]]:
        """`evaluation_loaders("test")`."""
        return self.evaluation_loaders("test")

    def predict_dataloader(self) -> list[DataLoader[Any]]:
        """`evaluation_loaders("test")`."""
        return self.evaluation_loaders("test")

    def _words(self, split: str, texts: EvaluationTexts) -> list[int]:
        """Tokens of each caption; says so if some are cut, which may change a result."""
        words, most = texts.words(), self._connected().tokenizer.max_tokens
        cut = sum(length + 2 > most for length in words)
        if cut:
            warnings.warn(
                f"{self.name} {self.split_label(split)}: {cut:,} of {len(words):,} captions have more than the network's "
                f"max_tokens {most} and are cut.",
                stacklevel=2,
            )
        return words

    def _images(self, split: str, records: Sequence[ImageRecord], augmentation: Augmentation | None) -> SplitImages:
        # One for each split and transform, kept, so that a cache outlives the loaders that Lightning makes anew.
        plain = augmentation is None or augmentation.kind == "none"
        kept = self._read().pixels
        if (split, plain) not in kept:
            spec = self._connected().image
            assert spec is not None
            kept[split, plain] = SplitImages(records, spec, augmentation, self.cache_pixels)
        return kept[split, plain]

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
        """16 hexadecimal digits over the ids and file sizes of a split's images, in their order."""
        records = self.records(split)
        sizes = file_sizes(records)
        files = [[record.image_id, -1 if record.path is None else sizes.get(record.path, -1)] for record in records]
        return hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]

    def evaluation_images(self, split: str) -> EvaluationImages:
        """A split's images by row, as pixels of the network's evaluation transform; nothing is kept in memory."""
        spec = self._connected().image
        if spec is None:
            raise InputError("the network takes region features; there are no pixels to show it.")
        records = self.records(split)
        return EvaluationImages(records, SplitImages(records, spec))

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
        connection = self._connected()
        if connection.captions is None or connection.image is None:
            raise InputError("visual features in place of pixels are for networks that write captions.")
        if "train" in folders:
            self.require_fixed_images()
        files = {split: FeatureFile(folder) for split, folder in folders.items()}
        for split, file in files.items():
            transform = json.loads(json.dumps(asdict(connection.image)))
            for fact, value in (("photographs", self.image_fingerprint(split)), ("image_input", transform)):
                if file.about.get(fact) != value:
                    raise InputError(f"{file.folder} holds features of other images than {self.name} {split}: {fact} differ(s).")
            if missing := int((~file.done()).sum()):
                raise InputError(f"{file.folder} lacks the features of {missing:,} of {file.shape[0]:,} images.")
        self._features = files

    def require_fixed_images(self) -> None:
        """Raise `InputError` where training images look different each time, so that no features of them can be kept."""
        if self.augmentation.kind != "none":
            raise InputError(
                f"augment is {self.augmentation.kind}, and a random crop has no visual features that could be kept: set the "
                "data's augment to none, or the model's features to null."
            )

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
        options: dict[str, Any] = {"batch_size": self.batch_size, "seed": self.seed, "samples": order.samples}
        if isinstance(order, CaptionBatches):
            return {f"captioning.{name}": value for name, value in asdict(order.captioning).items()} | options
        if not isinstance(order, RankingBatches):
            return options | {"train_unit": self.train_unit}
        options |= {f"ranking.{name}": value for name, value in asdict(self.ranking).items()}
        if self.ranking.caption_pool == "rank":
            options["world_size"] = order.world_size
        return options

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


def _view_of(inputs: Inputs) -> View:
    return "regions" if inputs.image is None and inputs.regions is not None else "pixels"


def _counts(splits: Mapping[str, Sequence[ImageRecord]]) -> str:
    return ", ".join(f"{split} ({len(records):,} images)" for split, records in splits.items()) or "none"
