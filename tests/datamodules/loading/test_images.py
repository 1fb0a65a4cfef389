"""Transforms against the official recording, determinism, the cache, damaged files."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.data.transforms import RandomResizedCropAndInterpolation
from tiny_data import write_image
from torchvision.transforms import InterpolationMode, v2

from datamodules.errors import InputError
from datamodules.inputs import ImageInput
from datamodules.loading.images import (
    Augmentation,
    SplitImages,
    evaluation_transform,
    normalize,
    training_transform,
)
from datamodules.records import Caption, ImageRecord

HALF = (0.5, 0.5, 0.5)
RECORDING = Path(__file__).parents[2] / "recordings" / "mwa" / "eval_transform"


def records(folder: Path, count: int) -> list[ImageRecord]:
    result = []
    for number in range(count):
        path = folder / f"{number}.jpg"
        write_image(path, number)
        result.append(ImageRecord(str(number), path, (Caption(str(number), "a dog"),)))
    return result


def test_squash_equals_the_official_evaluation_transform() -> None:
    # Recorded from MWA's build_transform(is_train=False): Resize((S, S), bicubic), ToTensor, Normalize(0.5, 0.5).
    recorded = load_file(RECORDING.with_suffix(".safetensors"))
    for number, size in enumerate(json.loads(RECORDING.with_suffix(".json").read_text())["sizes"]):
        pixels = recorded[f"inputs/image_{number}_hwc_uint8_as_int64"].numpy().astype(np.uint8)
        spec = ImageInput(size, HALF, HALF, resize="squash")
        found_3HW = normalize(evaluation_transform(spec)(Image.fromarray(pixels))[None], spec)[0]
        assert torch.equal(found_3HW, recorded[f"outputs/image_{number}"])


def test_training_transform_is_the_official_crop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # unilm/beit3/datasets.py build_transform(is_train=True): timm's crop with scale (0.5, 1.0), bicubic; flip at 0.5.
    official = RandomResizedCropAndInterpolation(24, scale=(0.5, 1.0), interpolation="bicubic")
    crop, flip, _ = training_transform(ImageInput(24, HALF, HALF), Augmentation()).transforms
    assert flip.p == 0.5
    write_image(tmp_path / "wide.jpg", 3, (120, 70))
    image = Image.open(tmp_path / "wide.jpg")

    random.seed(1)
    torch.manual_seed(1)
    ours = [crop.make_params([image]) for _ in range(4000)]
    theirs = [official.get_params(image, official.scale, official.ratio) for _ in range(4000)]
    boxes = [torch.tensor([[p["top"], p["left"], p["height"], p["width"]] for p in ours]), torch.tensor(theirs)]
    top, left, height, width = torch.stack(boxes).double().unbind(-1)
    both = torch.stack([height * width / (120 * 70), (width / height).log(), top / 70, left / 120], -1)  # [2, 4000, 4]
    for quantile in (0.0, 0.25, 0.5, 0.75, 1.0):
        torch.testing.assert_close(both[0].quantile(quantile, 0), both[1].quantile(quantile, 0), atol=0.02, rtol=0)
    # The same box gives the same pixels.
    top, left, height, width = box = official.get_params(image, official.scale, official.ratio)
    monkeypatch.setattr(official, "get_params", lambda *_: box)
    monkeypatch.setattr(crop, "make_params", lambda _: {"top": top, "left": left, "height": height, "width": width})
    assert np.array_equal(np.asarray(crop(image)), np.asarray(official(image)))


def test_crop_resizes_the_shorter_side_and_takes_the_centre() -> None:
    image = Image.new("RGB", (80, 40), "red")
    image.paste("blue", (20, 0, 60, 40))  # the middle square
    spec = ImageInput(20, HALF, HALF, resize="crop", interpolation="nearest")
    assert evaluation_transform(spec)(image).flatten(1).float().mean(1).tolist() == [0, 0, 255]
    # With a fraction of 0.5 the shorter side becomes 40 and the centre 20 x 20 is half of it.
    image = Image.new("RGB", (40, 40), "red")
    image.paste("blue", (10, 10, 30, 30))
    spec = ImageInput(20, HALF, HALF, resize="crop", crop_fraction=0.5, interpolation="nearest")
    assert evaluation_transform(spec)(image).flatten(1).float().mean(1).tolist() == [0, 0, 255]


@pytest.mark.parametrize("size", [(16, 2000), (2000, 16)])
def test_of_a_strip_only_the_middle_is_resized(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole, one of 1 x 8,000 pixels would be 224 x 1,792,000 of them."""
    image = Image.effect_noise(size, 80).convert("RGB")
    spec = ImageInput(32, HALF, HALF, resize="crop")
    resized: list[tuple[int, int]] = []
    whole = v2.Resize(32, InterpolationMode.BICUBIC, antialias=True)(image)
    expected = v2.PILToTensor()(v2.CenterCrop(32)(whole))
    kept = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, *given, **more: resized.append(self.size) or kept(self, *given, **more)
    )
    assert torch.equal(evaluation_transform(spec)(image), expected)
    assert [max(each) for each in resized] == [320]


VILT = ImageInput(64, HALF, HALF, resize="keep", longest=106, patch=16)


@pytest.mark.parametrize("size", [(100, 80), (80, 100), (90, 90), (300, 60), (61, 200), (50, 333), (97, 64), (40, 30)])
def test_an_image_that_keeps_its_aspect_ratio_is_as_the_library_makes_it(size: tuple[int, int]) -> None:
    from transformers.models.vilt.image_processing_pil_vilt import ViltImageProcessorPil

    pixels = np.random.default_rng(size[0]).integers(0, 256, (size[1] // 9 + 1, size[0] // 9 + 1, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    processor = ViltImageProcessorPil(size={"shortest_edge": 64}, size_divisor=16, image_mean=HALF, image_std=HALF)
    expected = torch.as_tensor(np.asarray(processor(image)["pixel_values"][0]))
    found = normalize(evaluation_transform(VILT)(image)[None], VILT)[0]
    assert found.shape == expected.shape
    assert not any(side % 16 for side in found.shape[1:])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("cache", [False, True])
def test_images_of_several_sizes_share_a_batch(tmp_path: Path, cache: bool) -> None:
    rows = records(tmp_path, 3)
    for row, size in enumerate([(100, 64), (64, 100), (64, 64)]):
        write_image(rows[row].path, row, size)
    images = SplitImages(rows, VILT, cache=cache)
    pixels, sizes = images.batch([0, 1, 2], [0, 0, 0])
    assert sizes is not None
    assert sizes.tolist() == [[64, 96], [96, 64], [64, 64]]
    assert pixels.shape == (3, 3, 96, 96)
    for row, (height, width) in enumerate(sizes.tolist()):
        alone, none = images.batch([row], [0])
        assert none is None
        assert torch.equal(pixels[row, :, :height, :width], alone[0])
        assert pixels[row].count_nonzero() <= 3 * height * width  # the rest is 0
    if cache:  # then the files are not needed again
        for record in rows:
            record.path.unlink()
    assert torch.equal(images.batch([0, 1, 2], [0, 0, 0])[0], pixels)


def test_a_transform_that_cannot_keep_the_ratio_says_so() -> None:
    with pytest.raises(InputError, match="needs a patch"):
        ImageInput(64, HALF, HALF, resize="keep", longest=106)
    with pytest.raises(InputError, match=r"a longest side \(60\)"):
        ImageInput(64, HALF, HALF, resize="keep", longest=60, patch=16)


def test_augmentation_depends_on_the_seed_alone_and_leaves_the_global_generator(tmp_path: Path) -> None:
    spec = ImageInput(12, HALF, HALF)
    images = SplitImages(records(tmp_path, 3), spec, Augmentation())
    torch.manual_seed(5)
    expected_draw = torch.rand(3)
    torch.manual_seed(5)
    first = images.pixels([0, 1, 2], [11, 12, 13])
    assert torch.equal(torch.rand(3), expected_draw)
    assert torch.equal(images.pixels([2, 0], [13, 11]), first[[2, 0]])
    assert not torch.equal(images.pixels([0], [99]), first[:1])


def test_flip_and_scale_are_options(tmp_path: Path) -> None:
    spec = ImageInput(12, HALF, HALF, resize="squash")
    always = SplitImages(records(tmp_path, 1), spec, Augmentation(min_scale=1.0, flip=1.0))
    never = SplitImages(records(tmp_path, 1), spec, Augmentation(min_scale=1.0, flip=0.0))
    assert torch.equal(always.pixels([0], [4]), never.pixels([0], [4]).flip(-1))
    plain = SplitImages(records(tmp_path, 1), spec, Augmentation(kind="none"))
    assert torch.equal(plain.pixels([0], [4]), SplitImages(records(tmp_path, 1), spec).pixels([0], [0]))
    with pytest.raises(InputError, match="min_scale"):
        Augmentation(min_scale=0.0)
    with pytest.raises(InputError, match="flip"):
        Augmentation(flip=2.0)


def test_cache_gives_the_same_pixels_without_the_file(tmp_path: Path) -> None:
    rows = records(tmp_path, 2)
    images = SplitImages(rows, ImageInput(12, HALF, HALF), cache=True)
    before = images.pixels([0, 1], [0, 0])
    rows[0].path.unlink()
    assert torch.equal(images.pixels([0, 1], [0, 0]), before)
    # A random crop needs the original, so it is not cached.
    assert SplitImages(rows, ImageInput(12, HALF, HALF), Augmentation(), cache=True).cache is None


def test_palette_and_grey_images_become_rgb(tmp_path: Path) -> None:
    Image.new("L", (9, 9), 128).save(tmp_path / "grey.png")
    record = ImageRecord("grey", tmp_path / "grey.png", ())
    assert SplitImages([record], ImageInput(4, HALF, HALF)).pixels([0], [0]).shape == (1, 3, 4, 4)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-60]), "truncated"),
        (lambda path: path.write_text("<html>404</html>"), "not an image"),
        (lambda path: path.write_bytes(b""), "not an image"),
        (lambda path: path.unlink(), "does not exist"),
    ],
)
def test_damaged_images_name_file_and_id(tmp_path: Path, damage: object, message: str) -> None:
    (record,) = records(tmp_path, 1)
    damage(record.path)  # type: ignore[operator]
    with pytest.raises(InputError, match=message) as caught:
        SplitImages([record], ImageInput(12, HALF, HALF)).pixels([0], [0])
    assert str(caught.value).startswith(f"image 0: {record.path}")
