"""Pictures beside captions: as everything else sees them, and none where there is none."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image

from experiments.report.captions import thumbnail


def test_pictures_of_a_report_are_upright_over_white_and_never_in_its_way(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGBA", (40, 20)).save(tmp_path / "lying.png", exif=exif)
    found = thumbnail(tmp_path / "lying.png", side=10)
    assert found is not None
    with Image.open(io.BytesIO(base64.b64decode(found.partition(",")[2]))) as picture:
        assert (picture.size, picture.getpixel((2, 5))) == ((5, 10), (255, 255, 255))
    (tmp_path / "damaged.png").write_bytes((tmp_path / "lying.png").read_bytes()[:60])
    assert [thumbnail(file) for file in (tmp_path / "damaged.png", tmp_path / "gone.png", tmp_path, None)] == [None] * 4
