"""Region features as tensors: from image names to `Regions`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from datamodules.loading.region_files import RegionReader
from datamodules.records import Regions


def padded(reader: RegionReader, names: Sequence[str], classes: int | None = None) -> Regions:
    """The regions of these images, padded with zeros to the longest. Features are fp16 where they are stored so. With `classes`
    also the probabilities of so many classes.

    Raises:
        InputError: no database has one of them, its value is damaged, or it has no such probabilities.
    """
    most, longest = max(map(reader.most_regions, names)), 0
    boxes_BR7, confidences_BR = torch.zeros(len(names), most, 7), torch.zeros(len(names), most)
    counts_B = torch.zeros(len(names), dtype=torch.int64)
    classes_BRC = None if classes is None else torch.zeros(len(names), most, classes)
    features_BRD = _allocate((len(names), most, reader.feature_width), torch.float16)
    for row, name in enumerate(names):
        found = reader.read(name) if classes is None else reader.read(name, classes)
        count = len(found.confidences_R)
        if found.features_RD.dtype != np.float16 and features_BRD.dtype == torch.float16:
            features_BRD = features_BRD.float()  # what was read so far is exact in it
        features_BRD.numpy()[row, :count] = found.features_RD  # the only copy
        features_BRD[row, count:] = 0
        boxes_BR7[row, :count] = torch.from_numpy(found.boxes_R7)
        confidences_BR[row, :count] = torch.from_numpy(found.confidences_R)
        if classes_BRC is not None and found.classes_RC is not None:
            classes_BRC[row, :count] = torch.from_numpy(found.classes_RC)
        counts_B[row], longest = count, max(longest, count)
    if longest < most:
        features_BRD, boxes_BR7 = features_BRD[:, :longest].contiguous(), boxes_BR7[:, :longest].contiguous()
        confidences_BR = confidences_BR[:, :longest].contiguous()
        classes_BRC = None if classes_BRC is None else classes_BRC[:, :longest].contiguous()
    return Regions(features_BRD, boxes_BR7, confidences_BR, torch.arange(longest) < counts_B[:, None], classes_BRC)


def _allocate(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An uninitialized tensor; in a data worker in shared memory from the start, so that it is not copied there on its way out
    (as PyTorch's own collate function does it)."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=dtype)
    bytes_ = int(np.prod(shape)) * dtype.itemsize
    return torch.empty(0, dtype=dtype).set_(torch.UntypedStorage._new_shared(bytes_), 0, shape)  # type: ignore[call-overload]
