"""Features of regions: pooling against a loop, feature maps of every kind of model, the detector against torchvision's own."""

from __future__ import annotations

import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign, roi_align
from torchvision.transforms.v2.functional import to_pil_image

from datamodules.errors import InputError
from datamodules.inputs import ImageInput
from datamodules.miniworld.render import render
from datamodules.miniworld.scenes import sample_scene
from lightning_modules.extraction.extractors import (
    BackboneRegions,
    DetectorRegions,
    Sizing,
    detector_regions,
    hugging_face_regions,
    load_detector,
    pool_boxes,
    state_hash,
    timm_regions,
)
from lightning_modules.networks.towers.base import ImageTower
from lightning_modules.networks.towers.hugging_face import HFImageTower
from lightning_modules.networks.towers.timm import TimmImageTower

BOXES = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.1, 0.3, 0.45, 0.9], [0.62, 0.0, 1.0, 0.2], [0.5, 0.5, 0.5001, 0.5001]])


def photograph(number: int, width: int = 64, height: int = 64) -> Tensor:
    image = render(sample_scene(3, "source", number, image_size=max(width, height)))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[:, :height, :width].contiguous()


def naive_mean(map_CHW: Tensor, box: Tensor, samples: int) -> Tensor:
    """RoIAlign by the paper: bilinear at regular points, a cell's value stands at its centre, no cell beyond the border."""
    _, height, width = map_CHW.shape
    left, top, right, bottom = (box * torch.tensor([width, height, width, height])).tolist()
    total = torch.zeros(map_CHW.shape[0])
    for row in range(samples):
        for column in range(samples):
            y = min(max(top + (bottom - top) * (row + 0.5) / samples - 0.5, 0), height - 1)
            x = min(max(left + (right - left) * (column + 0.5) / samples - 0.5, 0), width - 1)
            y0, x0 = math.floor(y), math.floor(x)
            y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
            v, u = y - y0, x - x0
            total += (1 - v) * (1 - u) * map_CHW[:, y0, x0] + (1 - v) * u * map_CHW[:, y0, x1]
            total += v * (1 - u) * map_CHW[:, y1, x0] + v * u * map_CHW[:, y1, x1]
    return total / samples**2


def test_pooling_is_roi_align() -> None:
    torch.manual_seed(0)
    maps = torch.randn(2, 5, 6, 9)
    boxes = [BOXES, BOXES[1:3]]
    ours = pool_boxes(maps, boxes, 6)
    expected = torch.stack([naive_mean(maps[image], box, 6) for image in (0, 1) for box in boxes[image]])
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    # One bin of 14 x 14 points is the mean of the usual 7 x 7 bins of 2 x 2.
    cells = [one * torch.tensor([9.0, 6.0, 9.0, 6.0]) for one in boxes]
    usual = roi_align(maps, cells, output_size=7, sampling_ratio=2, aligned=True).mean((2, 3))
    torch.testing.assert_close(pool_boxes(maps, boxes, 14), usual, atol=1e-5, rtol=0)


# ------------------------------------------------------------------------------------------------------------ sizing


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (500, 333), (1000, 90), (90, 1000), (20, 20), (224, 224)])
def test_sizing_keeps_the_aspect_ratio_to_half_a_stride(size: tuple[int, int]) -> None:
    sizing = Sizing(stride=32, shorter=224, longest=373)
    height, width = sizing.of(*size)
    assert height % 32 == width % 32 == 0
    assert min(height, width) >= 32
    assert max(height, width) <= 373
    scale = min(224 / min(size), 373 / max(size))
    for got, wanted in ((width, size[0] * scale), (height, size[1] * scale)):
        assert got == 32 if wanted < 32 else abs(got - wanted) <= 16 or (got == 352 and wanted <= 373)
    image = photograph(0)
    assert tuple(sizing.pixels(to_pil_image(image)).shape) == (3, 224, 224)


def test_sizing_squash_and_mistakes() -> None:
    assert Sizing(16, 224, 373, square=160).of(500, 90) == (160, 160)
    with pytest.raises(InputError, match="150 is not a multiple of the network's stride, 16"):
        Sizing(16, 224, 373, square=150)
    with pytest.raises(InputError, match="at least 32"):
        Sizing(32, 16, 300)
    with pytest.raises(InputError, match="no less than the shorter"):
        Sizing(32, 300, 224)


# ------------------------------------------------------------------------------------------------------------ backbones


def randomise(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.3 if parameter.ndim > 1 else 0.1) + 0.1)


def timm_tower(name: str = "test_efficientnet", **options: Any) -> TimmImageTower:
    torch.manual_seed(0)
    return TimmImageTower(name, options=options)


def test_a_cnn_pooled_is_its_feature_map_pooled_and_does_not_depend_on_the_batch() -> None:
    tower = timm_tower()
    extractor = BackboneRegions(tower, "timm:test_efficientnet", stages=(2, "final"), shorter=64)
    images = [photograph(number, 96, 64) for number in range(3)]
    boxes = [BOXES, BOXES[:1], BOXES[1:]]
    with torch.inference_mode():
        found = extractor(images, boxes)
        mean, std = (torch.tensor(value)[:, None, None] for value in (tower.image_input.mean, tower.image_input.std))
        for image, boxes_R4, regions in zip(images, boxes, found, strict=True):
            pixels = ((image / 255 - mean) / std)[None]
            model: Any = tower.model
            stage, final = (
                model.forward_intermediates(pixels, indices=[2], intermediates_only=True)[0],
                model.forward_features(pixels),
            )
            expected = torch.stack([torch.cat([naive_mean(m[0], box, 14) for m in (stage, final)]) for box in boxes_R4])
            assert regions.features_RD.shape == (len(boxes_R4), extractor.feature_width)
            torch.testing.assert_close(regions.features_RD, expected, atol=1e-5, rtol=1e-4)
            assert torch.equal(regions.boxes_R4, boxes_R4)
            assert regions.confidences_R.tolist() == [1.0] * len(boxes_R4)
    assert final.abs().max() > 1e-3


def test_the_normalization_is_the_backbones_own() -> None:
    tower = timm_tower()
    tower.image_input = ImageInput(160, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    seen = []
    tower.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    extractor = BackboneRegions(tower, "x", shorter=64)
    original = extractor.maps
    extractor.maps = lambda pixels: (seen.append(pixels), original(pixels))[1]  # type: ignore[method-assign, func-returns-value]
    extractor([torch.full((3, 64, 64), 255, dtype=torch.uint8)], [BOXES])
    torch.testing.assert_close(seen[-1][0, :, 5, 5], torch.tensor([0.9 / 0.4, 0.8 / 0.5, 0.7 / 0.6]))


_HF: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_HF |= {"image_size": 32, "patch_size": 8}


def tower_of(kind: str) -> ImageTower:
    if kind == "timm_vit":
        sizes = {"embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 8, "img_size": 32, "dynamic_img_size": True}
        return timm_tower("vit_tiny_patch16_224", **sizes)
    if kind == "timm_swin":
        sizes = {
            "embed_dim": 8,
            "depths": (1, 1),
            "num_heads": (1, 2),
            "img_size": 32,
            "window_size": 2,
            "strict_img_size": False,
        }
        return timm_tower("swin_tiny_patch4_window7_224", **sizes)
    if kind == "swin":
        sizes = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2, "image_size": 32, "patch_size": 4}
        return HFImageTower(config={"model_type": "swin", **sizes}, pooling="mean")
    model_type = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}.get(kind, kind)
    sizes = {**_HF, "model_type": model_type}
    if kind.startswith("dinov2"):
        sizes["mlp_ratio"] = sizes.pop("intermediate_size") // 16
    return HFImageTower(config=sizes, pooling="mean")


@pytest.mark.parametrize(
    ("kind", "prefix", "stride"),
    [
        ("timm_vit", 1, 8),
        ("timm_swin", 0, 8),
        ("vit", 1, 8),
        ("dinov2", 1, 8),
        ("dinov2_with_registers", 5, 8),
        ("clip", 1, 8),
        ("siglip", 0, 8),
        ("swin", 0, 8),
    ],
)
def test_every_kind_of_model_gives_a_map(kind: str, prefix: int, stride: int) -> None:
    """Images that are not square; cell (y, x) is the token that stands there."""
    tower = tower_of(kind)
    extractor = BackboneRegions(tower, kind, stages=(1, "final"), shorter=32, longest=64)
    assert extractor.sizing.stride == stride
    pixels = torch.randn(1, 3, 32, 64, generator=torch.Generator().manual_seed(1))
    inner, final = extractor.maps(pixels)
    assert final.shape[2:] == (32 // stride, 64 // stride)
    assert inner.shape[0] == 1
    assert inner.shape[2] * 2 == inner.shape[3]
    model: Any = tower.model
    if kind == "timm_vit":
        tokens = model.forward_features(pixels)
    elif kind == "timm_swin":
        tokens = model.forward_features(pixels).flatten(1, 2)
    else:
        options = {"interpolate_pos_encoding": True} if kind in ("vit", "clip", "siglip", "swin") else {}
        tokens = model(pixel_values=pixels, **options).last_hidden_state
    assert torch.equal(final[0, :, -1, 1], tokens[0, prefix + (32 // stride - 1) * (64 // stride) + 1])
    assert extractor.feature_width == inner.shape[1] + final.shape[1]
    (regions,) = extractor([photograph(2, 64, 32)], [BOXES])
    assert regions.features_RD.shape == (4, extractor.feature_width)
    assert regions.features_RD.isfinite().all()


def test_at_its_own_size_a_model_keeps_its_position_embeddings() -> None:
    tower = tower_of("vit")
    extractor = BackboneRegions(tower, "vit", square=32)
    pixels = torch.randn(1, 3, 32, 32)
    expected = tower.model(pixel_values=pixels).last_hidden_state[0, 1:]
    assert torch.equal(extractor.maps(pixels)[0][0].flatten(1).T, expected)


def test_mistakes_in_a_backbone_are_named(tmp_path: Path) -> None:
    fixed = timm_tower("vit_tiny_patch16_224", embed_dim=16, depth=2, num_heads=2, patch_size=8, img_size=32)
    with pytest.raises(InputError, match=r"cannot take images of 48 x 32 .* --image-size 32; .*dynamic_img_size"):
        BackboneRegions(fixed, "timm:fixed")
    assert BackboneRegions(fixed, "timm:fixed", square=32).feature_width == 16
    with pytest.raises(InputError, match="stages 0 to 4 and final; there is no 9"):
        BackboneRegions(timm_tower(), "timm:x", stages=(9,), shorter=64)
    with pytest.raises(InputError, match="stages 0 to 2 and final; there is no 3"):
        BackboneRegions(tower_of("vit"), "hf:x", stages=(3,))
    with pytest.raises(InputError, match="hf:dinov2 brings its own weights"):
        hugging_face_regions("dinov2", "file.safetensors")
    with pytest.raises(InputError, match="hf:resnet is not a vision transformer"):
        hugging_face_regions("resnet", str(tmp_path / "x.safetensors"), {"depths": [1]})
    with pytest.raises(InputError, match="needs --weights"):
        hugging_face_regions("dinov2", None, {"hidden_size": 16})
    with pytest.raises(InputError, match=r"weights file .*none\.safetensors does not exist"):
        timm_regions("test_efficientnet", str(tmp_path / "none.safetensors"))


def test_by_name_with_a_weights_file(tmp_path: Path) -> None:
    """Classifier and all for timm, by model type and sizes for Hugging Face; the description tells two files apart."""
    import timm

    model = timm.create_model("test_efficientnet")
    save_file(model.state_dict(), tmp_path / "timm.safetensors")
    ours = timm_regions("test_efficientnet", str(tmp_path / "timm.safetensors"), shorter=64)
    model.eval()
    pixels = torch.randn(1, 3, 64, 64)
    assert torch.equal(ours.maps(pixels)[0], model.forward_features(pixels))
    randomise(model)
    save_file(model.state_dict(), tmp_path / "other.safetensors")
    other = timm_regions("test_efficientnet", str(tmp_path / "other.safetensors"), shorter=64)
    same = timm_regions("test_efficientnet", str(tmp_path / "timm.safetensors"), shorter=64)
    assert ours.description == same.description
    assert {key for key in ours.description if ours.description[key] != other.description[key]} == {"weights_sha256"}

    tower = tower_of("vit")
    save_file(tower.model.state_dict(), tmp_path / "hf.safetensors")
    named = hugging_face_regions("vit", str(tmp_path / "hf.safetensors"), dict(_HF), shorter=32)
    assert state_hash(named.tower.model) == state_hash(tower.model)


# ------------------------------------------------------------------------------------------------------------ detector


class _Body(nn.Sequential):
    out_channels = 8


def tiny_detector(classes: int, **options: Any) -> FasterRCNN:
    torch.manual_seed(1)
    body = _Body(nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
    model = FasterRCNN(
        body,
        None,
        min_size=64,
        max_size=96,
        rpn_anchor_generator=AnchorGenerator(((12, 24, 48),), ((0.5, 1.0, 2.0),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], output_size=3, sampling_ratio=2),
        box_head=nn.Sequential(OrderedDict(flat=nn.Flatten(), fc6=nn.Linear(72, 20), act=nn.ReLU(), fc7=nn.Linear(20, 24))),
        box_predictor=FastRCNNPredictor(24, classes),
        rpn_post_nms_top_n_test=60,
        **options,
    )
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.weight.mul_(6)
    return model.eval()


def test_detections_of_one_class_are_torchvisions_own() -> None:
    """Boxes, scores and their order; images of different sizes in one batch."""
    model = tiny_detector(2, box_score_thresh=0.0, box_detections_per_img=12)
    images = [photograph(0, 80, 64), photograph(1, 100, 50), photograph(2, 40, 60)]
    with torch.inference_mode():
        ours = DetectorRegions(model, "tiny", most=12)(images)
        theirs = model([image / 255 for image in images])
    for image, found, expected in zip(images, ours, theirs, strict=True):
        height, width = image.shape[1:]
        assert len(found.features_RD) == len(expected["boxes"]) > 3
        torch.testing.assert_close(found.confidences_R, expected["scores"])
        scale = torch.tensor([width, height, width, height])
        torch.testing.assert_close(found.boxes_R4 * scale, expected["boxes"], atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(found.classes_RC.sum(1), torch.ones(len(expected["scores"])))  # type: ignore[union-attr]


def test_features_are_the_box_head_of_the_final_boxes_and_a_region_counts_once() -> None:
    model = tiny_detector(5)
    image = photograph(3, 64, 64)  # of the detector's own size: its pixels are those of the map
    extractor = DetectorRegions(model, "tiny", most=20)
    assert extractor.feature_width == 24
    with torch.inference_mode():
        (found,) = extractor([image])
        mean, std = (torch.tensor(value)[:, None, None] for value in (model.transform.image_mean, model.transform.image_std))
        map_1CHW = model.backbone(((image / 255 - mean) / std)[None])
        pooled = roi_align(map_1CHW, [found.boxes_R4 * 64], output_size=3, spatial_scale=1 / 8, sampling_ratio=2)
        torch.testing.assert_close(found.features_RD, model.roi_heads.box_head(pooled), atol=1e-4, rtol=1e-4)
    assert found.confidences_R.tolist() == sorted(found.confidences_R.tolist(), reverse=True)
    assert torch.equal(found.classes_RC[:, 1:].max(1).values, found.confidences_R)  # type: ignore[index]
    assert found.boxes_R4.min() >= 0
    assert found.boxes_R4.max() <= 1
    assert found.boxes_R4.unique(dim=0).shape == found.boxes_R4.shape


def test_boxes_are_exact_under_autocast() -> None:
    extractor = DetectorRegions(tiny_detector(3), "tiny", most=20)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        (found,) = extractor([photograph(3)])
    inside = found.boxes_R4[(found.boxes_R4 > 0) & (found.boxes_R4 < 1)]
    assert (inside.bfloat16().float() != inside).float().mean() > 0.9
    assert found.features_RD.dtype == found.boxes_R4.dtype == torch.float32


def test_nothing_found_is_the_whole_image() -> None:
    extractor = DetectorRegions(tiny_detector(3), "tiny")
    boxes, scores, classes = extractor._kept(torch.empty(0, 3), torch.empty(0, 3, 4), (40, 60))
    assert boxes.tolist() == [[0, 0, 60, 40]]
    assert scores.tolist() == [0]
    assert classes.shape == (1, 3)


def test_detectors_by_name_and_their_weights(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no Faster R-CNN 'resnet50'; it has fasterrcnn_"):
        detector_regions("resnet50")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"other\.safetensors are not of a Faster R-CNN"):
        detector_regions(weights=str(tmp_path / "other.safetensors"))
    # Frozen batch norms, as torchvision trains its first generation, have no counters.
    model = tiny_detector(3)
    state = {key: value + 1 for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    load_detector(model, state, "tiny", "file")
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
    del state["backbone.0.weight"]
    with pytest.raises(InputError, match=r"weights file do not fit tiny: .*backbone\.0\.weight"):
        load_detector(model, state, "tiny", "file")
