"""Kind `eval-transform`: the evaluation transform of images (`build_transform(is_train=False)`)."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from experiments.parity.compare import OUTPUT, GroupCheck, compare, not_checked
from experiments.parity.recordings import Recording
from lightning_modules.networks.beit3 import BEiT3Retrieval

_INPUT, _UINT8 = "inputs/image_", "_hwc_uint8_as_int64"


def check(recording: Recording) -> list[GroupCheck]:
    """Every recorded image through the transform that our BEiT-3 asks the data modules for.

    Raises:
        InputError: A recorded output has no input.
    """
    from datamodules.loading.images import evaluation_transform, normalize

    found, recorded = {}, {}
    for name, expected in sorted(recording.group("outputs").items()):
        number = name.removeprefix("image_")
        pixels_HW3 = recording.tensor(f"{_INPUT}{number}{_UINT8}").numpy().astype(np.uint8)
        size = expected.shape[-1]
        # The network says what it is fed; a tiny one of this image size is asked, so that the two cannot disagree.
        spec = BEiT3Retrieval(size, 8, 1, 1, 8, patch_size=size, vocab_size=8, text_positions=8, max_tokens=4).inputs.image
        assert spec is not None
        found[name] = normalize(evaluation_transform(spec)(Image.fromarray(pixels_HW3))[None], spec)[0]
        recorded[name] = expected.to(torch.float32)
    return [compare("pixels", found, recorded, OUTPUT)] if recorded else [not_checked("pixels", "the file records none")]
