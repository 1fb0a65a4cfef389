"""From an image file to the pixels a network wants: the papers' transforms, an optional cache.

Geometry happens on uint8 (PIL, as the official code does it); scaling to [0, 1] and normalization happen once for the whole
batch, element by element the same arithmetic as torchvision's ToTensor and Normalize.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from datamodules.errors import InputError
from datamodules.files.images import open_image
from datamodules.inputs import ImageInput
from datamodules.records import Box, ImageRecord

if TYPE_CHECKING:
    from PIL import Image

Transform = Callable[["Image.Image"], Tensor]
Augment = Literal["paper", "none"]


@dataclass(frozen=True)
class Augmentation:
    """How training images are varied.

    Args:
        kind: "paper" is BEiT-3's and thus MWA's recipe: a random crop of part of the image, resized to the network's size, and
            a random horizontal flip. "none" is the evaluation transform.
        min_scale: Smallest area of the random crop as a fraction of the image (the official recipe: 0.5).
        flip: Probability of the horizontal flip (the official recipe: 0.5).
    """

    kind: Augment = "paper"
    min_scale: float = 0.5
    flip: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.min_scale <= 1:
            raise InputError(f"augmentation.min_scale is {self.min_scale}; give a fraction of the image's area in (0, 1].")
        if not 0 <= self.flip <= 1:
            raise InputError(f"augmentation.flip is {self.flip}; give a probability in [0, 1].")


def kept_size(spec: ImageInput, width: int, height: int) -> tuple[int, int]:
    """Height and width that an image of this width and height gets by "keep".

    ViLT's own arithmetic (dandelin/ViLT `vilt/transforms/utils.py`, MinMaxResize; transformers' `ViltImageProcessor` has it too).
    """
    assert spec.patch is not None
    assert spec.longest is not None
    scale = spec.size / min(width, height)
    # the same order of operations as there: the sides are rounded, so the last bit may count
    new = [height * scale, spec.size] if height >= width else [spec.size, width * scale]
    if max(new) > spec.longest:
        scale = spec.longest / max(new)
        new = [side * scale for side in new]
    height, width = (max(int(side + 0.5) // spec.patch, 1) * spec.patch for side in new)
    return height, width


class _Keep:
    """PIL image to uint8 [3, height, width] of its own size, see `kept_size`."""

    def __init__(self, spec: ImageInput) -> None:
        self.spec = spec

    def __call__(self, image: Image.Image) -> Tensor:
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.v2 import functional

        size = kept_size(self.spec, *image.size)
        resized = functional.resize(image, list(size), InterpolationMode(self.spec.interpolation), antialias=True)
        return functional.pil_to_tensor(resized)


_LONG = 20  # of a side, in the other one


def _middle(image: Image.Image) -> Image.Image:
    """The middle of an image that is a mere strip: all that a crop of the centre looks at. Resized whole, a line of 8,000 pixels
    takes gigabytes."""
    width, height = image.size
    most = _LONG * min(image.size)
    if max(image.size) <= most:
        return image
    left, top = max(0, (width - most) // 2), max(0, (height - most) // 2)
    return image.crop((left, top, min(width, left + most), min(height, top + most)))


def evaluation_transform(spec: ImageInput) -> Transform:
    """PIL image to uint8 [3, H, W]: "squash" is Resize((S, S)), "crop" resizes the shorter side and crops the centre,
    "squash_crop" resizes both sides and crops the centre, "keep" keeps the aspect ratio."""
    from torchvision.transforms import InterpolationMode, v2

    interpolation = InterpolationMode(spec.interpolation)
    if spec.resize == "keep":
        return _Keep(spec)
    if spec.resize == "squash":
        steps: list[Any] = [v2.Resize((spec.size, spec.size), interpolation, antialias=True)]
    else:
        shorter = math.floor(spec.size / spec.crop_fraction)  # timm's rounding
        before: Any = shorter if spec.resize == "crop" else (shorter, shorter)
        steps = [v2.Resize(before, interpolation, antialias=True), v2.CenterCrop(spec.size)]
        steps = [_middle, *steps] if spec.resize == "crop" else steps
    return v2.Compose([*steps, v2.PILToTensor()])


def training_transform(spec: ImageInput, augmentation: Augmentation) -> Transform:
    """PIL image to uint8 [3, size, size]; random unless `augmentation.kind` is "none", which is the evaluation transform.

    Official recipe (unilm/beit3/datasets.py build_transform): timm's RandomResizedCropAndInterpolation(size, scale=(0.5, 1.0),
    ratio 3/4..4/3, bicubic) and RandomHorizontalFlip; RandomAugment is off in both of MWA's recipes.
    """
    if augmentation.kind == "none":
        return evaluation_transform(spec)
    from torchvision.transforms import InterpolationMode, v2

    crop = v2.RandomResizedCrop(
        spec.size,
        scale=(augmentation.min_scale, 1.0),
        ratio=(3 / 4, 4 / 3),
        interpolation=InterpolationMode(spec.interpolation),
        antialias=True,
    )
    return v2.Compose([crop, v2.RandomHorizontalFlip(augmentation.flip), v2.PILToTensor()])


def normalize(pixels_B3HW: Tensor, spec: ImageInput) -> Tensor:
    """uint8 to float32 with the network's mean and standard deviation."""
    mean_311 = torch.tensor(spec.mean)[:, None, None]
    std_311 = torch.tensor(spec.std)[:, None, None]
    return pixels_B3HW.float().div_(255).sub_(mean_311).div_(std_311)


def stacked(pixels: Sequence[Tensor], spec: ImageInput) -> tuple[Tensor, Tensor | None]:
    """uint8 images [3, h, w] as one normalized batch [B, 3, H, W], and their sizes [B, 2] where not all are equal: smaller ones
    are top left, and the rest is 0."""
    if len({each.shape for each in pixels}) == 1:
        return normalize(torch.stack(list(pixels)), spec), None
    sizes_B2 = torch.tensor([each.shape[1:] for each in pixels])
    height, width = sizes_B2.amax(0).tolist()
    batch_B3HW = torch.zeros(len(pixels), 3, height, width)
    for row, each in enumerate(pixels):
        batch_B3HW[row, :, : each.shape[1], : each.shape[2]] = normalize(each, spec)
    return batch_B3HW, sizes_B2


def covered_area(spec: ImageInput, width: int, height: int) -> Box:
    """The part of an image (pixels) that the network sees: the middle with "crop" and "squash_crop", else everything.

    The arithmetic is that of torchvision's Resize and CenterCrop, their rounding included. With a `crop_fraction` over 1, where
    the crop is larger than the resized image, it reaches beyond the image.

    Args:
        spec: The network's transform.
        width: Of the image as it is stored.
        height: Likewise.
    """
    if spec.resize not in ("crop", "squash_crop"):
        return Box(0.0, 0.0, float(width), float(height))
    shorter = math.floor(spec.size / spec.crop_fraction)
    longer = int(shorter * max(width, height) / min(width, height))
    new_width, new_height = (shorter, longer) if width <= height else (longer, shorter)
    if spec.resize == "squash_crop":
        new_width = new_height = shorter

    def middle(new: int, old: int) -> tuple[float, float]:
        start = round((new - spec.size) / 2) if new >= spec.size else -((spec.size - new) // 2)
        return start * old / new, (start + spec.size) * old / new

    (left, right), (top, bottom) = middle(new_width, width), middle(new_height, height)
    return Box(left, top, right, bottom)


class SplitImages:
    """The images of one split as pixels.

    Args:
        records: The split.
        spec: What the network wants.
        augmentation: None for evaluation.
        cache: Keep resized uint8 images in memory, shared with forked workers. Ignored where a random crop needs the original.
    """

    def __init__(
        self, records: Sequence[ImageRecord], spec: ImageInput, augmentation: Augmentation | None = None, cache: bool = False
    ) -> None:
        self.records = records
        self.spec = spec
        self.random = augmentation is not None and augmentation.kind != "none"
        self.transform = evaluation_transform(spec) if augmentation is None else training_transform(spec, augmentation)
        # an image that keeps its aspect ratio has no more pixels than the shorter and the longest side make
        largest = spec.size * (spec.size if spec.longest is None else spec.longest)
        self.cache = _Cache(len(records), largest) if cache and not self.random else None

    def pixels(self, rows: Sequence[int], seeds: Sequence[int]) -> Tensor:
        """float32 [B, 3, H, W] of these rows; `seeds` (one a row) fix the random crop and flip."""
        return self.batch(rows, seeds)[0]

    def batch(self, rows: Sequence[int], seeds: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """As `pixels`, and the images' sizes: see `stacked`."""
        return stacked([self._row(row, seed) for row, seed in zip(rows, seeds, strict=True)], self.spec)

    def _row(self, row: int, seed: int) -> Tensor:
        if self.cache is not None and (kept := self.cache.get(row)) is not None:
            return kept
        image = open_image(self.records[row])
        if self.random:
            # torchvision draws from the default CPU generator: give it this sample's seed and put its state back.
            # Not torch.manual_seed, which would also reseed the accelerator and with it the training's dropout.
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                pixels_3HW = self.transform(image)
        else:
            pixels_3HW = self.transform(image)
        if self.cache is not None:
            self.cache.put(row, pixels_3HW)
        return pixels_3HW


class Pixels:
    """A data set's images by the transform of one network. Of each split and transform there is one `SplitImages`, kept, so that
    a cache outlives the loaders that Lightning makes anew.

    Args:
        spec: What the network wants.
        augmentation: Of training images.
        cache: See `SplitImages`.
    """

    def __init__(self, spec: ImageInput, augmentation: Augmentation, cache: bool) -> None:
        self.spec, self.augmentation, self.cache = spec, augmentation, cache
        self._kept: dict[tuple[str, bool], SplitImages] = {}

    def training(self, split: str, records: Sequence[ImageRecord]) -> SplitImages:
        """The images of a split as training sees them."""
        if self.augmentation.kind == "none":
            return self.evaluation(split, records)
        return self._keep((split, True), records, self.augmentation)

    def evaluation(self, split: str, records: Sequence[ImageRecord]) -> SplitImages:
        """The images of a split as evaluation sees them."""
        return self._keep((split, False), records, None)

    def _keep(self, key: tuple[str, bool], records: Sequence[ImageRecord], augmentation: Augmentation | None) -> SplitImages:
        if key not in self._kept:
            self._kept[key] = SplitImages(records, self.spec, augmentation, self.cache)
        return self._kept[key]


class _Cache:
    """uint8 [N, 3 x largest] in anonymous shared memory: what one forked worker decodes, all see; no use of /dev/shm, which is
    small in containers. Pages are only taken when written. A spawned worker starts an empty one of its own.

    Args:
        images: N.
        largest: Pixels of an image, at most.
    """

    def __init__(self, images: int, largest: int) -> None:
        self.shape = (images, 3 * largest)
        self._map()

    def _map(self) -> None:
        pixels = max(1, math.prod(self.shape))
        self._pixels_NX = np.frombuffer(mmap.mmap(-1, pixels), np.uint8, math.prod(self.shape)).reshape(self.shape)
        self._height_N, self._width_N = (
            np.frombuffer(mmap.mmap(-1, max(1, 4 * self.shape[0])), np.int32, self.shape[0]) for _ in range(2)
        )

    def get(self, row: int) -> Tensor | None:
        height, width = int(self._height_N[row]), int(self._width_N[row])
        if not height:
            return None
        return torch.from_numpy(self._pixels_NX[row, : 3 * height * width].copy()).view(3, height, width)

    def put(self, row: int, pixels_3HW: Tensor) -> None:
        self._pixels_NX[row, : pixels_3HW.numel()] = pixels_3HW.flatten().numpy()
        self._width_N[row] = pixels_3HW.shape[2]
        self._height_N[row] = pixels_3HW.shape[1]  # last, so that no process reads a half-written image

    def __getstate__(self) -> dict[str, Any]:
        return {"shape": self.shape}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.shape = state["shape"]
        self._map()
