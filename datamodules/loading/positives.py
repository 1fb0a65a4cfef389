"""Right answers by id -> rows of a split."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from datamodules.errors import InputError
from datamodules.formats.positives import positive_files, read_positives
from datamodules.records import ImageRecord, Positives

_FEW = 0.01  # answers: ECCV Caption names two captions beyond the five of each image, which not every split file has

log = logging.getLogger("crosslight")


def split_positives(name: str, folder: Path, label: str, records: Sequence[ImageRecord], cut: bool) -> Positives:
    """A set of right answers among the images and captions of a split.

    Args:
        name: Of the set.
        folder: Of its files.
        label: What messages call the split.
        records: The split.
        cut: Whether `limits` cut it: queries and answers that are left out with it are then left out here.

    Raises:
        InputError: A file cannot be read, or the split lacks queries that it names, or more than one in a hundred of its answers.
    """
    ids, files = read_positives(folder, name), positive_files(folder, name)
    images = {record.image_id: row for row, record in enumerate(records)}
    captions = {
        caption.caption_id: row for row, caption in enumerate(caption for record in records for caption in record.captions)
    }
    i2t = _rows(ids.captions_of, images, captions, files[0], label, cut)
    t2i = _rows(ids.images_of, captions, images, files[1], label, cut)
    return Positives(*i2t, *t2i)


def _rows(
    answers: Mapping[str, Sequence[str]],
    queries: Mapping[str, int],
    candidates: Mapping[str, int],
    file: Path,
    label: str,
    cut: bool,
) -> tuple[Tensor, Tensor]:
    strange = [query for query in answers if query not in queries]
    lost = [answer for each in answers.values() for answer in each if answer not in candidates]
    pairs = [
        (queries[query], candidates[answer])
        for query, each in answers.items()
        if query in queries
        for answer in each
        if answer in candidates
    ]
    if cut and not pairs:
        raise InputError(
            f"{file}: none of its queries has a right answer in {label}; raise limits.test, or set positives to null."
        )
    if not cut and (strange or len(lost) > _FEW * (len(pairs) + len(lost))):
        unknown = [*strange, *lost]
        raise InputError(
            f"{file}: {len(set(unknown)):,} ids are not in {label} (first: {unknown[0]}). Give the right answers of this very "
            "split, whose ids are those of its captions file (COCO's: captions karpathy or official), or set positives to null."
        )
    if lost and not cut:
        log.warning("%s: %d right answers are not in %s and left out (first: %s)", file, len(lost), label, lost[0])
    query_P, answer_P = torch.tensor(pairs, dtype=torch.int64).T.contiguous()
    return query_P, answer_P
