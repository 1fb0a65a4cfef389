"""The checker of recorded caption metrics, on the recording and on recordings that were tampered with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from edited_recordings import edited, off, verdicts
from torch import Tensor

from datamodules.errors import InputError
from experiments.parity.captioning.metrics import check
from experiments.parity.recordings import read_recording

RECORDED = Path(__file__).parents[3] / "recordings" / "captioning" / "caption_metrics_small.json"


def test_recording_passes() -> None:
    rows = check(read_recording(RECORDED))
    assert verdicts(rows) == {"corpus": "ok", "image by image": "ok"}
    assert [row.count for row in rows] == [6, 3 * 12]


@pytest.mark.parametrize(
    ("group", "place"),
    [
        ("corpus", ("computed", "CIDEr")),
        ("corpus", ("computed", "Bleu_3")),
        ("corpus", ("computed", "ROUGE_L")),
        ("image by image", ("per_image", "237669", "CIDEr")),
        ("image by image", ("per_image", "237669", "ROUGE_L")),
    ],
)
def test_a_changed_score_is_off(tmp_path: Path, group: str, place: tuple[str, ...]) -> None:
    def change(about: dict[str, Any], _: dict[str, Tensor]) -> None:
        *above, last = place
        for key in above:
            about = about[key]
        about[last] *= 1 + 1e-7

    rows = check(read_recording(edited(RECORDED, tmp_path, change)))
    assert off(rows) == {group}
    assert any(place[-1] in row.note for row in rows)


def test_a_changed_caption_is_off(tmp_path: Path) -> None:
    def change(about: dict[str, Any], _: dict[str, Tensor]) -> None:
        about["candidates"]["237669"] += " bat"

    assert off(check(read_recording(edited(RECORDED, tmp_path, change)))) == {"corpus", "image by image"}


def test_fewer_images_and_other_metrics(tmp_path: Path) -> None:
    def change(about: dict[str, Any], _: dict[str, Tensor]) -> None:
        about["computed"] = {"METEOR": 0.2}
        about["per_image"] = {}

    found = verdicts(check(read_recording(edited(RECORDED, tmp_path, change))))
    assert found == {"corpus": "not checked", "image by image": "not checked", "other metrics": "not checked"}

    def lose(about: dict[str, Any], _: dict[str, Tensor]) -> None:
        del about["candidates"]["237669"]

    with pytest.raises(InputError, match="image 237669 has references or a candidate, not both"):
        check(read_recording(edited(RECORDED, tmp_path, lose)))
