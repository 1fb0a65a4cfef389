"""The one reader of photographs: upright, 8 bits, opaque; whatever is wrong with a file names it."""

from __future__ import annotations

import errno
import os
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from datamodules.errors import InputError
from datamodules.files.images import image_files_below, image_size, is_stored_sideways, open_image, read_and_judge, read_image
from datamodules.records import ImageRecord

TURNS = [  # what a camera does to a picture whose orientation is 1, 2, ...: the inverse of what the orientation asks for
    None,
    Image.Transpose.FLIP_LEFT_RIGHT,
    Image.Transpose.ROTATE_180,
    Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_90,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_270,
]


def picture(mode: str = "RGB") -> Image.Image:
    """96 x 64, different in all corners."""
    image = Image.new("RGB", (96, 64), (90, 110, 140))
    ImageDraw.Draw(image).ellipse((10, 6, 40, 36), fill=(240, 230, 20))
    return image.convert(mode)


def grey() -> np.ndarray:
    return np.asarray(picture("L"))


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = value
    return exif


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "avif", "tif"])
@pytest.mark.parametrize("value", range(1, 9))
def test_photographs_are_upright(tmp_path: Path, value: int, ending: str) -> None:
    path, turn = tmp_path / f"a.{ending}", TURNS[value - 1]
    stored = picture() if turn is None else picture().transpose(turn)
    options: dict[str, Any] = {"lossless": True} if ending == "webp" else {} if ending in ("png", "tif") else {"quality": 95}
    stored.save(path, exif=orientation(value), **options)
    found = read_image(path)
    assert (found.mode, found.size, found.info) == ("RGB", (96, 64), {})
    assert np.abs(np.asarray(found).astype(int) - np.asarray(picture())).mean() < 6
    assert image_size(path) == (96, 64)
    assert is_stored_sideways(path) == (value >= 5)
    np.testing.assert_array_equal(np.asarray(open_image(ImageRecord("a", path, ()))), np.asarray(found))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("16.png", grey().astype(np.uint16) * 257),
        ("16.tif", grey().astype(np.uint16) * 257),
        ("big-endian.tif", (grey().astype(np.uint16) * 257).astype(">u2")),
        ("16.pgm", grey().astype(np.int32) * 257),
        ("32.tif", grey().astype(np.int32) * 257),
        ("32-of-8.tif", grey().astype(np.int32)),
        ("float-of-1.tif", grey().astype(np.float32) / 255),
        ("float-of-255.tif", grey().astype(np.float32)),
        ("8.png", grey()),
    ],
)
def test_every_depth_is_the_same_grey(tmp_path: Path, name: str, values: np.ndarray) -> None:
    Image.fromarray(values).save(tmp_path / name)
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / name)), np.repeat(grey()[..., None], 3, axis=2))


def test_16_bits_in_which_0_is_white(tmp_path: Path) -> None:
    Image.fromarray(grey().astype(np.uint16) * 257).save(tmp_path / "a.tif", tiffinfo={262: 0})
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.tif"))[..., 0], 255 - grey())


def test_16_bits_of_color_and_dark_pictures(tmp_path: Path) -> None:
    """By the file's range and not by what is in it: a dark photograph stays dark."""
    raw = (np.asarray(picture()).astype(">u2") * 257).tobytes()
    rows = b"".join(b"\0" + raw[place : place + 96 * 6] for place in range(0, len(raw), 96 * 6))
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", 96, 64, 16, 2, 0, 0, 0), b"IDAT" + zlib.compress(rows), b"IEND")
    png = b"".join(struct.pack(">I", len(each) - 4) + each + struct.pack(">I", zlib.crc32(each)) for each in chunks)
    (tmp_path / "rgb16.png").write_bytes(b"\x89PNG\r\n\x1a\n" + png)
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "rgb16.png")), np.asarray(picture()))
    for name in ("dark.png", "dark.pgm"):
        values = grey().astype(np.uint16 if name.endswith("png") else np.int32)
        Image.fromarray(values).save(tmp_path / name)
        assert np.asarray(read_image(tmp_path / name)).max() == 0


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (np.full((4, 4), 70_000, np.int32), "integers of 70000 to 70000, not 0 to 65535"),
        (np.full((4, 4), -1, np.int32), "integers of -1 to -1"),
        (np.full((4, 4), 300, np.float32), "floats of 300 to 300, not 0 to 1 or 0 to 255"),
        (np.full((4, 4), np.nan, np.float32), "floats of nan to nan"),
    ],
)
def test_values_without_a_range_are_refused(tmp_path: Path, values: np.ndarray, says: str) -> None:
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match=rf"a.tif cannot be decoded \({says}"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif", "a.gif", "a.avif", "la.png", "p.png", "rgb.png", "16.png"])
def test_transparency_is_white(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    alpha = Image.new("L", (96, 64))
    ImageDraw.Draw(alpha).ellipse((10, 6, 40, 36), fill=255)
    if name == "p.png":
        palette = picture("P")
        palette.save(path, transparency=palette.getpixel((0, 0)))
    elif name == "rgb.png":
        picture().save(path, transparency=(90, 110, 140))
    elif name == "16.png":
        Image.fromarray(grey().astype(np.uint16) * 257).save(path, transparency=int(grey()[0, 0]) * 257)
    else:
        shown = picture("L" if name == "la.png" else "RGB")
        shown.putalpha(alpha)
        shown.save(path)
    found = read_image(path)
    assert found.getpixel((0, 0)) == (255, 255, 255)
    assert max(np.abs(np.subtract(found.getpixel((25, 20)), read_image(_opaque(tmp_path, name)).getpixel((25, 20))))) < 40


def _opaque(folder: Path, name: str) -> Path:
    picture("L" if name in ("la.png", "16.png") else "RGB").save(folder / "opaque.png")
    return folder / "opaque.png"


@pytest.mark.parametrize("ending", ["gif", "png", "webp", "tif"])
def test_the_first_frame_is_taken(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    picture().save(path, save_all=True, append_images=[Image.new("RGB", (96, 64), "red")])
    assert np.abs(np.asarray(read_image(path)).astype(int) - np.asarray(picture())).mean() < 6


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB", "1", "P"])
def test_other_modes_are_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.png" if mode in "1P" else "a.tif")
    picture(mode).save(path)
    assert np.abs(np.asarray(read_image(path)).astype(int) - np.asarray(picture(mode).convert("RGB"))).mean() < 2


def lying(folder: Path, ending: str) -> tuple[bytes, int, int]:
    """A lying photograph, and where its EXIF data begin and end."""
    exif = orientation(6)
    exif[282] = 1.0
    exif[271] = "Maker"
    exif.get_ifd(0x8769)[0x9003] = "2020:01:01 00:00:00"
    picture().save(folder / f"lying.{ending}", exif=exif)
    data = (folder / f"lying.{ending}").read_bytes()
    start = max(data.find(b"II*\0"), data.find(b"MM\0*"))
    return data, start, start + len(exif.tobytes()) - 6


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("ending", ["jpg", "webp", "avif"])
def test_damaged_exif_hides_no_sound_pixels(tmp_path: Path, ending: str) -> None:
    data, start, end = lying(tmp_path, ending)
    path, source = tmp_path / f"a.{ending}", random.Random(0)
    path.write_bytes(data)
    upright = np.asarray(read_image(path))
    assert upright.shape == (96, 64, 3)
    sizes = set()
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(source.choice((1, 2, 5))):
            damaged[source.randrange(start, end)] = source.randrange(256)
        path.write_bytes(damaged)
        image = read_image(path)
        assert image_size(path) == image.size
        if image.size == (96, 64):  # as it is stored
            np.testing.assert_array_equal(np.asarray(image), np.rot90(upright))
        sizes.add(image.size)
    assert sizes == ({(64, 96)} if ending == "avif" else {(64, 96), (96, 64)})  # AVIF says it outside of EXIF, too
    path.write_bytes(data[:start] + b"XX" + data[start + 2 :])
    image, has_damaged_exif = read_and_judge(path)
    assert (image.size, has_damaged_exif) == ((64, 96) if ending == "avif" else (96, 64), True)


def test_another_damaged_tag_leaves_the_orientation(tmp_path: Path) -> None:
    data, start, _ = lying(tmp_path, "jpg")
    damaged, entry = bytearray(data), data.find(b"\x01\x1a", start)
    damaged[entry + 2 : entry + 4] = struct.pack(">H", 10)  # a signed rational, of ...
    value = start + struct.unpack(">I", data[entry + 8 : entry + 12])[0]
    damaged[value : value + 8] = struct.pack(">ii", -1, 0)
    (tmp_path / "a.jpg").write_bytes(damaged)
    image, has_damaged_exif = read_and_judge(tmp_path / "a.jpg")
    assert (image.size, has_damaged_exif) == ((64, 96), False)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "avif", "gif", "bmp", "tif", "jp2", "ppm"])
def test_every_decoder_s_errors_name_the_file(tmp_path: Path, ending: str, capfd: pytest.CaptureFixture[str]) -> None:
    path, source = tmp_path / f"a.{ending}", random.Random(1)
    picture().save(path)
    data = path.read_bytes()
    refused = []
    for number in range(60):
        damaged = bytearray(data)
        for _ in range(number % 4):
            damaged[source.randrange(min(len(data), 400))] = source.randrange(256)
        path.write_bytes(damaged[: source.randrange(len(data))] if number % 3 == 0 else damaged)
        for read in (read_image, image_size):
            try:
                read(path)
            except InputError as error:
                refused.append(str(error))
    assert len(refused) > 10
    assert all(text.startswith(str(path)) and "\n" not in text for text in refused)
    capfd.readouterr()  # libtiff speaks for itself


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "does not exist"),
        (Path.mkdir, "is not a file"),
        (os.mkfifo, "is not a file"),
        (lambda path: path.symlink_to(path), "cannot be decoded .*symbolic links"),
        (lambda path: path.write_bytes(b""), "is not an image"),
        (lambda path: path.write_text("<html>404</html>"), "is not an image"),
        (lambda path: path.write_bytes(b"P6 30000 30000 255\n"), "cannot be decoded .*decompression bomb"),
    ],
)
def test_what_is_no_photograph(tmp_path: Path, make: Callable[[Path], object], says: str) -> None:
    path = tmp_path / "a.png"
    make(path)
    with pytest.raises(InputError, match=f"^image 7: {path} {says}.*Replace the file"):
        open_image(ImageRecord("7", path, ()))


def test_no_memory_is_not_the_file_s_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    picture().save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(MemoryError):
        read_image(tmp_path / "a.png")


def test_a_folder_below_that_cannot_be_read_is_named_and_one_that_goes_meanwhile_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "lost", "z"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").touch()
    listed, number = os.scandir, [errno.EACCES]

    def scandir(path: Any) -> Any:
        if str(path).endswith("lost"):
            raise OSError(number[0], os.strerror(number[0]), path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(InputError, match=r"lost cannot be read \(Permission denied\)\. Have it made readable"):
        image_files_below(tmp_path)
    number[0] = errno.ENOENT
    assert image_files_below(tmp_path) == (["a/1.jpg", "z/1.jpg"], [])
