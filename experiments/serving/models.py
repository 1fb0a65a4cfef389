"""A trained model that is to be used, and what it is known by."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from datamodules.errors import InputError
from datamodules.loading.images import evaluation_transform, normalize
from datamodules.records import ImageBatch
from lightning_modules.base import TunedModule
from lightning_modules.checkpoints.fingerprint import backbone_fingerprint
from lightning_modules.retrieval import RetrievalModule


def find_device(name: str) -> torch.device:
    """A device by name; auto = a GPU where there is one.

    Raises:
        InputError: There is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros((), device=name).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name} cannot be used ({str(error).splitlines()[0]}); give cpu, cuda or cuda:N.") from error


def two_encoders(model: Any, run: str | Path) -> RetrievalModule:
    """The loaded model of a run, which must give images and texts vectors.

    Raises:
        InputError: It does not; says what it is good for.
    """
    if isinstance(model, RetrievalModule):
        return model
    if isinstance(model, TunedModule):
        model.encode_images([])
    raise InputError(f"{run} is of {type(model).__name__}, which has no encoders; give a run of a RetrievalModule.")


def model_key(model: RetrievalModule) -> str:
    """32 hexadecimal digits over a model's weights and transform. How these are put together (a pooling, a scale) is not in them:
    see `probe`."""
    network = backbone_fingerprint(model.network, set())
    about = [network["architecture"], network["weights"], asdict(model.image_input)]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]


def probe(model: RetrievalModule) -> tuple[float, ...]:
    """The unit vector [D] of one image that is the same everywhere, by which models of equal weights are told apart."""
    spec = model.image_input
    side = np.arange(256, dtype=np.uint8)
    across, down = np.meshgrid(side, side)
    image = Image.fromarray(np.stack([across, down, across ^ down], axis=-1))
    pixels = normalize(evaluation_transform(spec)(image)[None], spec)
    return tuple(model.encode_batch(ImageBatch(("probe",), torch.tensor([0]), pixels))[0].tolist())
