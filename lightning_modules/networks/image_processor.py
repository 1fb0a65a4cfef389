"""A library's image processor as the image transform that data modules know (`ImageInput`), or a refusal that says why not."""

from __future__ import annotations

import math
from typing import Any, Literal

from datamodules.errors import InputError, some
from datamodules.inputs import ImageInput
from lightning_modules.networks.quiet_loading import hugging_face

_STEPS = {"do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"}  # what is read below
_INTERPOLATIONS: dict[int, Literal["nearest", "bilinear", "bicubic"]] = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # PIL's


def read_processor(where: str, name: str | None, settings: Any) -> Any:
    """The image processor of a folder or hub name, or else the library's own for this kind of model.

    Args:
        where: What is built, for messages.
        name: Hub name or folder; one without a preprocessor_config.json has the library's.
        settings: The model's configuration object.

    Raises:
        InputError: The library has none, or the file is damaged.
    """
    from transformers.image_processing_base import ImageProcessingMixin
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING, AutoImageProcessor

    remedy = "give a folder with preprocessor_config.json, or another model"
    with hugging_face(f"{where}: no usable image processor", remedy, name):
        if name is not None:
            try:
                ImageProcessingMixin.get_image_processor_dict(name)
            except OSError:  # the file is optional: folders made by save_pretrained of a model alone have none
                pass
            else:
                return AutoImageProcessor.from_pretrained(name, backend="pil", trust_remote_code=False)
        classes = IMAGE_PROCESSOR_MAPPING.get(type(settings), None)
        if classes is None:
            raise InputError(f"{where}: transformers has no image processor for {type(settings).__name__}; {remedy}")
        return (classes["pil"] if isinstance(classes, dict) else classes)()


def image_input(where: str, processor: Any, size: int | None = None) -> ImageInput:
    """What an image processor does, in the terms of data modules. The values are the processor's, pixel for pixel up to the
    rounding of the resize (its torchvision form interpolates a little otherwise than PIL, which data modules use).

    Args:
        where: What is built, for messages.
        processor: The library's.
        size: Side of the square that a network is fed; None = the processor's. A crop keeps its part of the image.

    Raises:
        InputError: It does something that `ImageInput` has no word for.
    """

    def refuse(what: str) -> InputError:
        return InputError(
            f"{where}: its image processor ({type(processor).__name__}) {what}, which data modules cannot do; write a network of "
            "your own around it (docs/extend/backbone.md)"
        )

    interpolation = _INTERPOLATIONS.get(int(processor.resample))
    if interpolation is None:
        raise refuse(f"resizes by interpolation {processor.resample}")
    mean, std = _normalization(processor)
    if getattr(processor, "max_num_patches", None) is not None:
        if size is not None:
            return ImageInput(size, mean, std, "squash", 1.0, interpolation)
        raise InputError(
            f"{where}: its images keep their aspect ratio in up to {processor.max_num_patches} patches (NaFlex), and data "
            "modules make squares; set image_size, a multiple of the patch size: both sides are then resized to it"
        )
    asked = {step for step, value in vars(processor).items() if step.startswith("do_") and value}
    extra = sorted(asked - _STEPS)
    if extra or not processor.do_resize:
        raise refuse(f"has {some(extra)}" if extra else "does not resize")
    sides, crop = _sides(processor.size), _sides(getattr(processor, "crop_size", None))
    shorter, both = sides.get("shortest_edge"), (sides.get("height"), sides.get("width"))
    crops = bool(getattr(processor, "do_center_crop", False))
    if (shorter is None) == (both[0] is None) or both[0] != both[1] or (crops and crop.get("height") != crop.get("width")):
        raise refuse(f"makes no squares (size {sides}{f', crop {crop}' if crops else ''})")
    if shorter is not None and not crops:
        raise refuse(f"keeps the aspect ratio (size {sides}) and crops nothing")
    resized = int(shorter or both[0] or 0)
    if not crops:
        return ImageInput(size or resized, mean, std, "squash", 1.0, interpolation)
    own = int(crop["height"])
    fraction = _fraction(own, resized)
    return ImageInput(size or own, mean, std, "squash_crop" if shorter is None else "crop", fraction, interpolation)


def _sides(size: Any) -> dict[str, int]:
    return {side: value for side, value in dict(size or {}).items() if value is not None}


def _fraction(size: int, resized: int) -> float:
    """The `crop_fraction` at which an image is resized to exactly `resized`: the division may lack the last bit."""
    fraction = size / resized
    while math.floor(size / fraction) < resized:
        fraction = math.nextafter(fraction, 0.0)
    return fraction


def _normalization(processor: Any) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of RGB in [0, 1] that give the processor's values of pixels in 0 .. 255."""
    factor = processor.rescale_factor * 255 if processor.do_rescale else 255.0
    offset = 1.0 if processor.do_rescale and getattr(processor, "rescale_offset", False) else 0.0  # EfficientNet's, of ALIGN
    stored_mean, stored_std = _three(processor.image_mean), _three(processor.image_std)
    mean = stored_mean if processor.do_normalize else (0.0,) * 3
    std = stored_std if processor.do_normalize else (1.0,) * 3
    again = stored_std if getattr(processor, "include_top", False) else (1.0,) * 3  # EfficientNet may divide by it once more
    found = [((m + offset) / factor, s * a / factor) for m, s, a in zip(mean, std, again, strict=True)]
    return (found[0][0], found[1][0], found[2][0]), (found[0][1], found[1][1], found[2][1])


def _three(values: Any) -> tuple[float, ...]:
    return (float(values),) * 3 if isinstance(values, (int, float)) else tuple(float(value) for value in values)
