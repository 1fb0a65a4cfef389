"""Keeps what a frozen vision tower makes of the images on disk, so that training encodes an image once and not once an epoch.

Images are encoded in fixed blocks of rows, and a block is done whole: the bytes do not depend on how many processes share the
work, or on where an earlier run was killed. What is kept belongs to the tower's weights and settings, the transform, the
images and the precision: each such set has a folder of its own (`datamodules.loading.features`).

Legend: I images of a block, V visual tokens, D visual width.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from datamodules.errors import InputError
from datamodules.image_text import ImageTextDataModule
from datamodules.loading.features import FeatureFile, Precision
from datamodules.records import ImageBatch
from lightning_modules import collectives
from lightning_modules.checkpoints.fingerprint import backbone_fingerprint
from lightning_modules.extraction.progress import progress_bar
from lightning_modules.networks.captioner import Captioner
from lightning_modules.networks.modes import evaluating

VERSION = 2  # of what is kept, and of how photographs are read
# Two ways of computing the same features differ by 1e-6 (fp32) to 1e-2 (bf16; other batches or devices) of their norm; another
# activation function or number of heads by a tenth and more.
_TOLERANCE = 0.05
_VOLATILE = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures"}  # of a configuration

_Blocks = list[list[int]]
_Encode = Callable[[ImageBatch], Tensor]


@dataclass(frozen=True)
class FeatureCache:
    """Visual features of the training and validation images on disk, made when training first needs them.

    Args:
        folder: Where to; every data set, split and tower has a folder of its own in it, which later runs share. Only a local
            disk, or one as fast, is worth it: features are larger than the image files (303 kB an image of ViT-B/16 as float16).
        dtype: How they are stored. float16 rounds a feature by 1/2048 of its value at most and takes half the room.
        batch_size: Images encoded at a time.

    Raises:
        InputError: batch_size is less than 1.
    """

    folder: str
    dtype: Precision = "float16"
    batch_size: int = 64

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"features.batch_size is {self.batch_size}; give at least 1.")

    def fill(
        self,
        network: Captioner,
        datamodule: ImageTextDataModule,
        splits: Sequence[str] = ("train", "val"),
        *,
        precision: str = "32-true",
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
        progress: bool = True,
    ) -> None:
        """Make what is missing, each process its share, and have the data module read it from then on.

        Args:
            network: On its device.
            datamodule: Connected to the network.
            splits: Those that the data set does not have are left out.
            precision: Name of the precision that `context` brings: other precisions have other features.
            context: Mixed precision to encode in.
            progress: Show a bar (first process only).

        Raises:
            InputError: The tower is not frozen, training images are augmented, the disk has too little room, an image cannot be
                read, or kept features are damaged or not this tower's.
        """
        if trained := [name for name, parameter in network.vision.named_parameters() if parameter.requires_grad]:
            raise InputError(
                f"features: the vision tower trains ({len(trained)} parameters, first vision.{trained[0]}), so what it makes of "
                "an image changes; set features to null, or freeze the tower (tuning: adapter or head)."
            )
        if "train" in splits:
            datamodule.require_fixed_images()
        world, rank = collectives.world_size(), collectives.rank()
        console = Console(stderr=True, quiet=rank > 0)
        device = next(network.vision.parameters()).device

        def encode(images: ImageBatch) -> Tensor:
            with torch.no_grad(), context():
                return network.encode_images(images.to(device, non_blocking=True)).tokens_IVD

        def begin() -> dict[str, tuple[Path, _Blocks]]:
            wanted = [split for split in splits if split in datamodule.splits()]
            try:
                return self._begin(encode, _tower(network, precision), datamodule, wanted, console)
            except OSError as error:
                raise InputError(str(error)) from error

        with evaluating(network.vision):
            begun = collectives.by_first(begin)  # reads every photograph, to know its content
            missing = any(blocks for _, blocks in begun.values())
            with progress_bar(progress and rank == 0 and missing, console) as bar:
                for split, (folder, blocks) in begun.items():
                    self._encode(encode, datamodule, split, FeatureFile(folder), blocks[rank::world], bar)
        collectives.meet()
        datamodule.use_features({split: folder for split, (folder, _) in begun.items()})

    # --------------------------------------------------------------------------------------------------------- beginning

    def _begin(
        self, encode: _Encode, tower: dict[str, Any], datamodule: ImageTextDataModule, splits: Sequence[str], console: Console
    ) -> dict[str, tuple[Path, _Blocks]]:
        """By split, its folder and what is missing there; says how much that is, and takes the room for it."""
        root = Path(self.folder).expanduser().absolute()
        root.mkdir(parents=True, exist_ok=True)
        first = {split: encode(datamodule.evaluation_images(split).make([0])) for split in splits}
        abouts = {}
        for split, tokens_IVD in first.items():
            abouts[split] = {
                "version": VERSION,
                "data": datamodule.name,
                "split": split,
                "images": len(datamodule.records(split)),
                "photographs": datamodule.image_fingerprint(split),
                **tower,
                "dtype": self.dtype,
                "tokens": tokens_IVD.shape[1],
                "width": tokens_IVD.shape[2],
            }
        needed, free = sum(FeatureFile.room(root, about) for about in abouts.values()), shutil.disk_usage(root).free
        if needed > free:
            images = sum(about["images"] for about in abouts.values())
            raise InputError(
                f"features.folder {root}: the visual features of {images:,} images need {_size(needed)} more, and the disk has "
                f"{_size(free)} free. Free some space (folders of other towers there may be deleted), choose another folder, or "
                "set features to null."
            )
        begun = {}
        for split, about in abouts.items():
            for other in FeatureFile.of_other(root, about, "photographs"):
                console.print(
                    f"visual features of {split} images: {other} is of other photographs than are there now, and stays as it is",
                    markup=False,
                    highlight=False,
                    soft_wrap=True,
                )
            file = FeatureFile.make(root, about)
            done = file.done()
            if done[0]:
                _require_equal(file, first[split])
            count = len(done)
            rows = [list(range(start, min(start + self.batch_size, count))) for start in range(0, count, self.batch_size)]
            begun[split] = (file.folder, [block for block in rows if not done[block].all()])
            left = f"{count - int(done.sum()):,} to make" if begun[split][1] else "all there"
            console.print(
                f"visual features of {count:,} {split} images: {_size(file.bytes)} in {file.folder} ({_size(free)} free), {left}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
        return begun

    # ---------------------------------------------------------------------------------------------------------- encoding

    def _encode(
        self, encode: _Encode, datamodule: ImageTextDataModule, split: str, file: FeatureFile, blocks: _Blocks, bar: Progress
    ) -> None:
        if not blocks:
            return
        task = bar.add_task(f"visual features, {split}", total=sum(map(len, blocks)))
        for batch in datamodule.image_loader(split, blocks):
            tokens_IVD = encode(batch)
            kept_IVD = tokens_IVD.to(getattr(torch, self.dtype))
            if not bool(kept_IVD.isfinite().all()):
                place = int((~kept_IVD.isfinite()).flatten(1).any(1).nonzero()[0])
                fits = bool(tokens_IVD[place].isfinite().all())
                reason = (
                    "beyond float16's 65,504: set features.dtype to float32" if fits else "not finite as the tower makes them"
                )
                raise InputError(f"visual features of image {batch.image_ids[place]} are {reason}.")
            file.write(int(batch.index_B[0]), kept_IVD.cpu().numpy())
            bar.advance(task, len(batch))


def _tower(network: Captioner, precision: str) -> dict[str, Any]:
    """What features depend on beside the images, as JSON. Settings that neither weights nor configuration show, such as the
    number of heads of a model of timm, are left to `_require_equal`."""
    vision: Any = network.vision
    config = getattr(vision.model, "config", None)
    if config is not None:
        settings = json.loads(config.to_json_string(use_diff=True))
    else:  # timm
        settings = {"architecture": getattr(vision.model, "pretrained_cfg", {}).get("architecture")}
    about = {
        "tower": f"{type(vision).__name__} {type(vision.model).__name__}",
        "weights": backbone_fingerprint(vision, set())["weights"],
        "config": {name: value for name, value in settings.items() if name not in _VOLATILE},
        "image_input": asdict(vision.image_input),
        "visual": network.visual,
        "pooling": getattr(vision, "pooling", None) if network.visual == "pooled" else None,
        "visual_norm": "tower" if network._norm else "none",
        "precision": precision,
    }
    as_json: dict[str, Any] = json.loads(json.dumps(about))
    return as_json


def _require_equal(file: FeatureFile, tokens_IVD: Tensor) -> None:
    """The kept features of the first image are those that the tower makes now."""
    kept_IVD = torch.from_numpy(file.read([0])).float()
    tokens_IVD = tokens_IVD.float().cpu()
    apart = float((kept_IVD - tokens_IVD).norm() / tokens_IVD.norm())
    if not apart <= _TOLERANCE:
        raise InputError(
            f"{file.folder} holds other features than the tower makes of the split's first image now ({apart:.0%} apart), though "
            "its weights and settings are the same; delete the folder to make them anew."
        )


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
