"""From pixels to the features of regions: a backbone pooled over given boxes, or a detector that finds its own.

`BackboneRegions` takes any timm or Hugging Face image model: its feature maps (a vision transformer's tokens are one, too) are
averaged over each box with RoIAlign (He et al. 2017, section 3). `DetectorRegions` takes a torchvision Faster R-CNN: its boxes,
their scores, and what its box head says of them (fc7), in place of UNITER's Caffe detector (bottom-up attention).

Both say what they are (`description`, equal for equal features), how a photograph becomes pixels (`sizing`), and how wide their
features are (`feature_width`). Boxes are left, top, right, bottom as fractions of the image.

Legend: B batch, R regions of an image, D feature width, C channels or classes.
"""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights, list_models
from torchvision.ops import batched_nms, clip_boxes_to_image, remove_small_boxes, roi_align
from torchvision.transforms.v2.functional import pil_to_tensor

from datamodules.errors import InputError, some
from lightning_modules.checkpoints.fill import fill
from lightning_modules.checkpoints.weights import misfits, read_weights
from lightning_modules.networks.towers.base import ImageTower
from lightning_modules.networks.towers.hugging_face import HFImageTower
from lightning_modules.networks.towers.timm import TimmImageTower

FINAL = "final"
_RESAMPLING = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
}


@dataclass(frozen=True, slots=True)
class Sizing:
    """How large an image is when it is read.

    The shorter side becomes `shorter` pixels unless the longer one would have more than `longest`; then both are rounded to the
    nearest multiple of `stride`, which changes the aspect ratio by at most half a stride. So images have few different sizes, and
    those of one size make a batch without padding: what is pooled is what the image gives alone.

    Args:
        stride: pixels between two cells of the coarsest feature map.
        shorter: wanted length of the shorter side, in pixels.
        longest: greatest length of the longer side, in pixels.
        square: both sides have this length instead, whatever the aspect ratio (for transformers of one size).
        interpolation: of the resize.
        here: False leaves the resize to the network (a detector's own): an image keeps its pixels, and its size only says with
            which others it can share a batch.
    """

    stride: int
    shorter: int
    longest: int
    square: int | None = None
    interpolation: str = "bicubic"
    here: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.stride <= self.shorter <= self.longest:
            raise InputError(
                f"The shorter side is to have {self.shorter} pixels and the longer at most {self.longest}; expected at least "
                f"{self.stride} (the network's stride), and the longer no less than the shorter."
            )
        if self.square is not None and (self.square < self.stride or self.square % self.stride):
            raise InputError(f"image size {self.square} is not a multiple of the network's stride, {self.stride}.")

    def of(self, width: int, height: int) -> tuple[int, int]:
        """Height and width, in pixels, of what the network sees of an image of this size."""
        if self.square is not None:
            return self.square, self.square
        scale = min(self.shorter / min(width, height), self.longest / max(width, height))
        if not self.here:  # as the detector pads
            sides = [math.ceil(math.floor(side * scale) / self.stride) * self.stride for side in (height, width)]
        else:
            most = self.longest // self.stride * self.stride
            sides = [min(most, max(self.stride, round(side * scale / self.stride) * self.stride)) for side in (height, width)]
        return sides[0], sides[1]

    def pixels(self, image: Image.Image) -> Tensor:
        """uint8 [3, H, W] of an RGB image."""
        if self.here:
            height, width = self.of(*image.size)
            image = image.resize((width, height), _RESAMPLING[self.interpolation])
        return pil_to_tensor(image)


@dataclass(frozen=True, slots=True)
class Extracted:
    """The regions of one image: features [R, D], boxes [R, 4], confidences [R], and a detector's class probabilities [R, C]."""

    features_RD: Tensor
    boxes_R4: Tensor
    confidences_R: Tensor
    classes_RC: Tensor | None = None


def state_hash(module: nn.Module) -> str:
    """SHA-256 of all weights and buffers, by name: equal for equal networks, wherever the weights came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------- a backbone and given boxes


def pool_boxes(map_BCHW: Tensor, boxes: Sequence[Tensor], samples: int) -> Tensor:
    """The mean of a feature map over boxes: RoIAlign with one bin of `samples` x `samples` points (bilinear, half-pixel exact),
    which is the mean over the bins of any finer RoIAlign of the same points.

    Args:
        map_BCHW: feature maps.
        boxes: of each image [R, 4], left, top, right, bottom as fractions of it.
        samples: points a side.

    Returns:
        [sum of R, C], float32.
    """
    height, width = map_BCHW.shape[2:]
    scale_4 = torch.tensor([width, height, width, height], dtype=torch.float32, device=map_BCHW.device)
    cells = [boxes_R4.to(map_BCHW.device, torch.float32) * scale_4 for boxes_R4 in boxes]
    return roi_align(map_BCHW.float(), cells, output_size=1, sampling_ratio=samples, aligned=True).flatten(1)


class BackboneRegions(nn.Module):
    """Any image model, pooled over given boxes.

    Args:
        tower: the image model (`timm_regions` and `hugging_face_regions` make one by name).
        name: of the model, for the description.
        stages: feature maps that are pooled and joined, in this order: "final" is the model's last (after a CNN's head
            convolution, after a transformer's last norm); numbers count timm's feature stages, or Hugging Face's hidden states
            (0 the embeddings), from 0.
        shorter: pixels of the shorter side; None is the model's own size.
        longest: most pixels of the longer side; None is 5/3 of the shorter (as torchvision's detectors).
        square: squash images to a square of this many pixels instead.
        samples: points a side and box at which a map is read.
        options: arguments of the model that its weights do not show, for the description.

    Raises:
        InputError: the model has no such stage or cannot take images of this size.
    """

    mean_311: Tensor
    std_311: Tensor

    def __init__(
        self,
        tower: ImageTower,
        name: str,
        stages: Sequence[str | int] = (FINAL,),
        shorter: int | None = None,
        longest: int | None = None,
        square: int | None = None,
        samples: int = 14,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not stages or samples < 1:
            raise InputError(f"{name}: give at least one stage and one sample, not {list(stages)} and {samples}.")
        self.tower, self.options = tower, options or {}
        self.name, self.stages, self.samples = name, tuple(stages), samples
        spec = tower.image_input
        self._timm = isinstance(tower, TimmImageTower)
        settings: Any = getattr(tower.model, "config", None)
        if self._timm:
            stride = max(int(info["reduction"]) for info in tower.model.feature_info)  # type: ignore[union-attr]
            self._prefix = int(getattr(tower.model, "num_prefix_tokens", 0))
        else:
            hierarchical = hasattr(settings, "depths")  # Swin: the map halves between stages, no class token
            stride = int(settings.patch_size) * (2 ** (len(settings.depths) - 1) if hierarchical else 1)
            registers = int(getattr(settings, "num_register_tokens", 0) or 0)
            self._prefix = 0 if hierarchical else ("siglip" not in settings.model_type) + registers
        shorter = shorter or max(spec.size, stride)
        self.sizing = Sizing(stride, shorter, longest or max(shorter, round(shorter * 5 / 3)), square, spec.interpolation)
        self.register_buffer("mean_311", torch.tensor(spec.mean)[:, None, None], persistent=False)
        self.register_buffer("std_311", torch.tensor(spec.std)[:, None, None], persistent=False)
        self.eval().requires_grad_(False)
        self.feature_width = self._probed_width()

    @property
    def description(self) -> dict[str, Any]:
        """What the features depend on, as JSON."""
        return {
            "backbone": self.name,
            "options": self.options,
            "weights_sha256": state_hash(self.tower.model),
            "stages": list(self.stages),
            "sizing": asdict(self.sizing),
            "mean": list(self.tower.image_input.mean),
            "std": list(self.tower.image_input.std),
            "samples": self.samples,
            "feature_width": self.feature_width,
        }

    def _probed_width(self) -> int:
        """D, from an empty image that is not square unless all are."""
        sides = self.sizing.of(2 * self.sizing.stride + self.sizing.shorter, self.sizing.shorter)
        try:
            with torch.inference_mode():
                return sum(stage.shape[1] for stage in self.maps(torch.zeros(1, 3, *sides)))
        except (AssertionError, ValueError, RuntimeError, TypeError) as error:
            raise InputError(
                f"{self.name} cannot take images of {sides[1]} x {sides[0]} pixels ({str(error).splitlines()[0]}). Squash them "
                f"to its own size with --image-size {self.tower.image_input.size}; a timm ViT also takes --options "
                "'{\"dynamic_img_size\": true}'."
            ) from error

    def maps(self, pixels_B3HW: Tensor) -> list[Tensor]:
        """The chosen feature maps [B, C, H, W] of normalized pixels, each of its own C, H, W."""
        wanted = [stage for stage in self.stages if isinstance(stage, int)]
        found = self._timm_maps(pixels_B3HW, wanted) if self._timm else self._hugging_face_maps(pixels_B3HW, wanted)
        return [found[stage] for stage in self.stages]

    def _timm_maps(self, pixels_B3HW: Tensor, wanted: list[int]) -> dict[str | int, Tensor]:
        model: Any = self.tower.model
        size = pixels_B3HW.shape[2:]
        if not wanted:
            final, found = model.forward_features(pixels_B3HW), []
        elif not hasattr(model, "forward_intermediates"):
            raise InputError(f"{self.name}: timm gives no inner stages of this model; use --stages final.")
        else:
            count = len(model.feature_info)
            outside = [stage for stage in wanted if not 0 <= stage < count]
            if outside:
                raise InputError(f"{self.name} has the stages 0 to {count - 1} and final; there is no {outside[0]}.")
            final, found = model.forward_intermediates(pixels_B3HW, indices=sorted(set(wanted)), output_fmt="NCHW")
        maps: dict[str | int, Tensor] = dict(zip(sorted(set(wanted)), found, strict=True))
        nhwc = str(getattr(model, "output_fmt", "NCHW")).endswith("NHWC")
        return maps | {FINAL: final.permute(0, 3, 1, 2) if nhwc and final.ndim == 4 else self._as_map(final, size)}

    def _hugging_face_maps(self, pixels_B3HW: Tensor, wanted: list[int]) -> dict[str | int, Tensor]:
        model: Any = self.tower.model
        size = pixels_B3HW.shape[2:]
        # Only where it is needed: at its own size a model keeps its position embeddings untouched.
        own = tuple(size) == (self.tower.image_input.size,) * 2
        options = {"interpolate_pos_encoding": True} if not own and self._interpolates else {}
        output = model(pixel_values=pixels_B3HW, output_hidden_states=bool(wanted), **options)
        states = output.hidden_states if wanted else ()
        outside = [stage for stage in wanted if not 0 <= stage < len(states)]
        if outside:
            raise InputError(f"{self.name} has the stages 0 to {len(states) - 1} and final; there is no {outside[0]}.")
        maps: dict[str | int, Tensor] = {stage: self._as_map(states[stage], size) for stage in wanted}
        return maps | {FINAL: self._as_map(output.last_hidden_state, size)}

    @property
    def _interpolates(self) -> bool:
        return "interpolate_pos_encoding" in inspect.signature(self.tower.model.forward).parameters

    def _as_map(self, features: Tensor, size: Sequence[int]) -> Tensor:
        """[B, C, H, W] of a map, or of tokens after the class token and the registers."""
        if features.ndim == 4:
            return features
        tokens_BTC = features[:, self._prefix :]
        stride = self.sizing.stride
        while stride >= 1:
            height, width = size[0] // stride, size[1] // stride
            if height * width == tokens_BTC.shape[1]:
                return tokens_BTC.transpose(1, 2).unflatten(2, (height, width))
            stride //= 2  # an earlier stage of a hierarchical transformer
        raise InputError(f"{self.name}: its {features.shape[1]} tokens are no grid over {size[1]} x {size[0]} pixels.")

    def forward(self, pixels: Sequence[Tensor], boxes: Sequence[Tensor]) -> list[Extracted]:
        """
        Args:
            pixels: uint8 [3, H, W] of each image, all of one size, as `sizing.pixels` makes them.
            boxes: [R, 4] of each image.

        Returns:
            Of each image, float32 with confidence 1.
        """
        device = self.mean_311.device
        pixels_B3HW = torch.stack(list(pixels)).to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)
        pixels_B3HW = pixels_B3HW.float().div_(255).sub_(self.mean_311).div_(self.std_311)
        features = torch.cat([pool_boxes(stage, boxes, self.samples) for stage in self.maps(pixels_B3HW)], dim=1).cpu()
        parts = features.split([len(boxes_R4) for boxes_R4 in boxes])
        return [Extracted(part, boxes_R4.cpu(), torch.ones(len(boxes_R4))) for part, boxes_R4 in zip(parts, boxes, strict=True)]


def timm_regions(name: str, weights: str | None = None, options: dict[str, Any] | None = None, **pooling: Any) -> BackboneRegions:
    """A timm model by name; without a weights file its published weights are fetched. `pooling`: see `BackboneRegions`."""
    tower = TimmImageTower(name, weights=weights, pretrained=weights is None, image_size=pooling.get("square"), options=options)
    return BackboneRegions(fill(tower), f"timm:{name}", options=options, **pooling)


def hugging_face_regions(
    name: str, weights: str | None = None, options: dict[str, Any] | None = None, **pooling: Any
) -> BackboneRegions:
    """A Hugging Face vision model by hub name or folder; or, with `options` (the sizes of its configuration), by model type and
    weights file. `pooling`: see `BackboneRegions`."""
    if options is None and weights is not None:
        raise InputError(
            f"hf:{name} brings its own weights; to load {weights}, name the model type and give its sizes, for example "
            'hf:dinov2 --options \'{"hidden_size": 384, "num_attention_heads": 6}\'.'
        )
    if options is not None and weights is None:
        raise InputError(f"hf:{name} with --options is a model type with sizes of your own, and needs --weights FILE.")
    try:
        tower = HFImageTower(name) if options is None else HFImageTower(config={"model_type": name, **options}, weights=weights)
    except (AttributeError, ValueError) as error:  # no image_size or patch_size, no fused attention
        raise _no_transformer(name, error) from error
    except InputError as error:
        if isinstance(error.__cause__, (AttributeError, ValueError)):  # the library's own refusal, told by the tower
            raise _no_transformer(name, error.__cause__) from error
        raise
    return BackboneRegions(fill(tower), f"hf:{name}", options=options, **pooling)


def _no_transformer(name: str, error: BaseException) -> InputError:
    return InputError(f"hf:{name} is not a vision transformer ({error}); take timm's model of this kind.")


# ------------------------------------------------------------------------------------------------------------ a detector


class DetectorRegions(nn.Module):
    """A torchvision Faster R-CNN: its detections with the features of its box head.

    As UNITER's extractor (bottom-up attention, generate_tsv.py) a region counts once, with its most probable class; of what NMS
    within a class leaves (torchvision's threshold), the `most` most confident are given, whatever their confidence, so that the
    layout can keep at least `min_bb`. Features are those of the final box: its pooled map through the box head (fc7).

    Args:
        model: a torchvision FasterRCNN.
        name: of it, for the description.
        most: regions an image at most.
    """

    model: Any  # FasterRCNN: its parts are called one by one

    def __init__(self, model: nn.Module, name: str, most: int = 100) -> None:
        super().__init__()
        self.name, self.most = name, most
        self.model = model
        transform: Any = model.transform
        shorter, longest = int(transform.min_size[-1]), int(transform.max_size)
        self.sizing = Sizing(int(transform.size_divisible), shorter, longest, here=False)
        self.feature_width = int(self.model.roi_heads.box_predictor.cls_score.in_features)
        self.eval().requires_grad_(False)

    @property
    def description(self) -> dict[str, Any]:
        """What the features depend on, as JSON."""
        heads = self.model.roi_heads
        return {
            "backbone": self.name,
            "weights_sha256": state_hash(self.model),
            "sizing": asdict(self.sizing),
            "nms": float(heads.nms_thresh),
            "most": self.most,
            "feature_width": self.feature_width,
        }

    def forward(self, pixels: Sequence[Tensor]) -> list[Extracted]:
        """
        Args:
            pixels: uint8 [3, H, W] of each image, of any sizes (the model resizes and pads).

        Returns:
            Of each image, float32, by falling confidence; the whole image with confidence 0 where nothing at all was found.
        """
        device = next(self.model.parameters()).device
        batch, _ = self.model.transform([image.to(device).float().div_(255) for image in pixels])
        maps = self.model.backbone(batch.tensors.contiguous(memory_format=torch.channels_last))
        maps = {"0": maps} if isinstance(maps, Tensor) else maps  # a backbone without a pyramid
        # Under autocast torchvision would compute boxes in half precision too: bf16 has steps of 4 pixels at 800.
        with torch.autocast(device.type, enabled=False):
            return self._detect(batch, {level: map_BCHW.float() for level, map_BCHW in maps.items()})

    def _detect(self, batch: Any, maps: dict[str, Tensor]) -> list[Extracted]:
        """Of images as the model's transform gives them and their feature maps by level."""
        model, heads = self.model, self.model.roi_heads
        proposals, _ = model.rpn(batch, maps)
        logits, deltas = heads.box_predictor(heads.box_head(heads.box_roi_pool(maps, proposals, batch.image_sizes)))
        probabilities = logits.softmax(-1)
        decoded = heads.box_coder.decode(deltas, proposals)  # [all proposals, C, 4]
        counts = [len(proposal) for proposal in proposals]
        kept = [
            self._kept(image_probabilities, boxes, size)
            for image_probabilities, boxes, size in zip(
                probabilities.split(counts), decoded.split(counts), batch.image_sizes, strict=True
            )
        ]
        features = heads.box_head(heads.box_roi_pool(maps, [boxes for boxes, _, _ in kept], batch.image_sizes)).cpu()
        found = []
        for part, (boxes, scores, classes), (height, width) in zip(
            features.split([len(boxes) for boxes, _, _ in kept]), kept, batch.image_sizes, strict=True
        ):
            fractions_R4 = (boxes / boxes.new_tensor([width, height, width, height])).clamp(0, 1)
            found.append(Extracted(part, fractions_R4.cpu(), scores.cpu(), classes.cpu()))
        return found

    def _kept(self, probabilities_NC: Tensor, boxes_NC4: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes [R, 4] in pixels of the resized image, scores [R] and class probabilities [R, C] of the regions that stay."""
        if not len(probabilities_NC):
            whole_14 = boxes_NC4.new_tensor([[0, 0, size[1], size[0]]])
            return whole_14, boxes_NC4.new_zeros(1), probabilities_NC.new_zeros(1, probabilities_NC.shape[1])
        scores_N, labels_N = probabilities_NC[:, 1:].max(dim=1)  # class 0 is the background
        rows = torch.arange(len(labels_N), device=labels_N.device)
        boxes_N4 = clip_boxes_to_image(boxes_NC4[rows, labels_N + 1], size)
        large = remove_small_boxes(boxes_N4, min_size=1e-2)
        large = large if len(large) else rows[:1]
        kept = large[batched_nms(boxes_N4[large], scores_N[large], labels_N[large], self.model.roi_heads.nms_thresh)[: self.most]]
        return boxes_N4[kept], scores_N[kept], probabilities_NC[kept]


def detector_regions(
    name: str = "fasterrcnn_resnet50_fpn_v2",
    weights: str | None = None,
    most: int = 100,
    shorter: int | None = None,
    longest: int | None = None,
) -> DetectorRegions:
    """One of torchvision's Faster R-CNNs.

    Args:
        name: torchvision's name.
        weights: a file of its state dict (of any number of classes); None fetches torchvision's best.
        most: regions an image at most.
        shorter: pixels of the shorter side; None is the model's own (800).
        longest: most pixels of the longer side; None is the model's own (1,333).

    Raises:
        InputError: no such model, or weights that cannot be fetched or do not fit.
    """
    known = [model for model in list_models() if model.startswith("fasterrcnn")]
    if name not in known:
        raise InputError(f"torchvision has no Faster R-CNN {name!r}; it has {', '.join(known)}.")
    published = get_model_weights(name).DEFAULT
    if weights is None:
        try:
            state = dict(published.get_state_dict(progress=True, check_hash=True, weights_only=True))
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"the weights of {name} cannot be fetched from {published.url} ({error}); fetch them yourself and give the file "
                "with --weights."
            ) from error
        official = True
    else:
        state = read_weights(weights)
        digest = hashlib.sha256(Path(weights).expanduser().read_bytes()).hexdigest()
        official = digest.startswith(published.url.rpartition("-")[2].removesuffix(".pth"))
    classes = state.get("roi_heads.box_predictor.cls_score.weight")
    if classes is None:
        raise InputError(
            f"weights {weights or published.url} are not of a Faster R-CNN of torchvision: no box predictor in them."
        )
    sizes = {key: side for key, side in (("min_size", shorter), ("max_size", longest)) if side is not None}
    model = get_model(name, weights=None, weights_backbone=None, num_classes=len(classes), **sizes)
    load_detector(model, state, f"{name} of torchvision", weights or published.url)
    if official and not any(key.endswith("num_batches_tracked") for key in state):
        # torchvision's own loader does this to its first-generation weights (overwrite_eps), which were trained so.
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 0.0
    return DetectorRegions(model, f"fasterrcnn:{name}", most)


def load_detector(model: nn.Module, state: dict[str, Tensor], what: str, source: str) -> None:
    """Loads a state dict strictly, but for the counters that frozen batch norms do not have and that inference does not use."""
    wanted = model.state_dict()
    counters = {key: value for key, value in wanted.items() if key.endswith("num_batches_tracked") and key not in state}
    if wrong := misfits(state, wanted):
        raise InputError(f"weights {source} do not fit {what}: {some(wrong)}")
    try:
        model.load_state_dict(counters | state, strict=True)
    except RuntimeError as error:
        raise InputError(f"weights {source} do not fit {what}: {' '.join(str(error).split())[:400]}") from error
