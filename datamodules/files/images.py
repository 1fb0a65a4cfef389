"""Image files, decoded: the one reader through which training, extraction, checks, captions and reports see photographs.

What it gives is RGB, 8 bits a channel, by one rule:

- upright: turned as the EXIF orientation says, so width, height and boxes are those of the picture that browsers
  and OpenCV show. Where EXIF data are damaged and the pixels sound, it is as it is stored;
- more than 8 bits are scaled: 16 bits (and 12, where a TIFF says so) by their full range. Integers of 32 bits are taken for
  8 bits where none is above 255, else for 16; floats for 0..1, or 0..255 where one is above 1. Other values are refused;
- transparency is composed over white;
- the first frame of an animation, the first page of a document; palettes, grey, CMYK, YCbCr and LAB as PIL converts them. Color
  profiles are not applied, as in the official code.
"""

from __future__ import annotations

import io
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

from datamodules.errors import InputError
from datamodules.records import ImageRecord

# Of what PIL reads, the formats that photographs come in; whoever lists a folder takes these.
ENDINGS = (
    ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip

# Of a large photograph PIL warns without its name; one that is too large it refuses, and that is told with the name.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)  # width and height change places
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # tags of a TIFF
_WHITE_IS_ZERO = 0


def image_files_below(folder: Path) -> tuple[list[str], list[str]]:
    """The images in a folder and all folders below it, by their endings, and what else is there: other files, what is
    hidden, and links to folders, which are not followed. Names below the folder, in the order of their bytes.

    Raises:
        InputError: It is no folder, or one that cannot be read.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; expected one of images.")
    images: list[str] = []
    others: list[str] = []
    for path, folders, files in os.walk(folder, onerror=_refuse_folder):
        left = {name for name in folders if name.startswith(".") or os.path.islink(os.path.join(path, name))}
        folders[:] = [name for name in folders if name not in left]
        below = os.path.relpath(path, folder)
        for name in (*files, *left):
            whole = name if below == "." else f"{below}/{name}"
            is_image = not name.startswith(".") and os.path.splitext(name)[1].lower() in ENDINGS and name not in left
            (images if is_image else others).append(whole)
    return sorted(images, key=os.fsencode), sorted(others, key=os.fsencode)


def _refuse_folder(error: OSError) -> None:
    if isinstance(error, FileNotFoundError):  # gone since it was listed
        return
    raise InputError(
        f"folder {error.filename} cannot be read ({error.strerror}). Have it made readable, or give a folder without it."
    )


def open_image(record: ImageRecord) -> Image.Image:
    """`read_image` of a record's file.

    Raises:
        InputError: the file is missing, not an image, or damaged; names the file and the image id. Or there is no file.
    """
    if record.path is None:
        raise InputError(f"image {record.image_id} has no file: its data set was read from databases of region features.")
    try:
        return read_image(record.path)
    except InputError as error:
        raise InputError(
            f"image {record.image_id}: {error} Replace the file or remove the image from the annotations; "
            "`crosslight data check` lists every such image."
        ) from error


def read_image(path: Path) -> Image.Image:
    """A photograph fully decoded, by the rule above.

    Raises:
        InputError: the file is missing, not an image, damaged, or of values whose range cannot be told; names the file.
    """
    return read_and_judge(path)[0]


def read_and_judge(path: Path) -> tuple[Image.Image, bool]:
    """As `read_image`, and whether its EXIF data are damaged: then it is as it is stored, which may not be upright.

    Raises:
        InputError: as `read_image`.
    """
    with _naming(path), _decoded(path) as image:
        orientation = _orientation(image)
        damaged = orientation is None or not getattr(image, "filename", "")  # it could not be decoded with them
        pixels = _rgb(image)
    pixels.info.clear()  # it is upright and opaque now, and must not say otherwise
    turn = _TURNS.get(orientation or 1)
    return (pixels if turn is None else pixels.transpose(turn)), damaged


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of what `read_image` gives, where possible from the file's header.

    Raises:
        InputError: as `read_image`, as far as the header tells.
    """
    with _naming(path):
        try:
            with Image.open(path) as image:
                width, height = image.size
                # PIL turns a TIFF by itself: its size is that of the picture upright.
                sideways = image.format != "TIFF" and _orientation(image) in _SIDEWAYS
        except Exception:  # what is wrong with it says
            return read_image(path).size
    return (height, width) if sideways else (width, height)


def is_stored_sideways(path: Path) -> bool:
    """Whether a photograph is turned by a quarter when it is read.

    Raises:
        InputError: as `read_image`, as far as the header tells.
    """
    with _naming(path), Image.open(path) as image:
        return _orientation(image) in _SIDEWAYS


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Whatever PIL and its decoders raise about a file as an `InputError` that names it."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # PIL would wait for a pipe's end
            raise InputError(f"{path} is not a file.")
        yield
    except (InputError, MemoryError):  # no memory is not the file's fault: nothing may be skipped for it
        raise
    except FileNotFoundError:
        raise InputError(f"{path} does not exist.") from None
    except UnidentifiedImageError:
        raise InputError(f"{path} is not an image that PIL can read.") from None
    except Exception as error:
        # Each decoder has errors of its own for damaged files (OSError, SyntaxError, struct.error, ZeroDivisionError, ...).
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{path} cannot be decoded ({reason}).") from error


def _decoded(path: Path) -> Image.Image:
    image = None
    try:
        image = Image.open(path)
        image.load()
        return image
    except Exception:
        if image is not None:
            image.close()
        data = path.read_bytes()
        if b"Exif" not in data:
            raise
        try:  # some decoders refuse sound pixels for damaged EXIF data: once more without those
            image = Image.open(io.BytesIO(data.replace(b"Exif", b"none", 1)))
            image.load()
            return image
        except Exception:
            pass
        raise


def _orientation(image: Image.Image) -> int | None:
    """The EXIF orientation, 1 to 8, 1 where there is none; None where the EXIF data cannot be read."""
    try:
        exif = image.getexif()
        found = exif.get(ExifTags.Base.Orientation, 1)
        if not exif and image.info.get("exif"):  # of a JPEG, PIL has tried before and says nothing now
            return None
    except Exception:  # damaged EXIF data have as many errors as damaged pixels, and say nothing about those
        return None
    return found if isinstance(found, int) else None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        image = _eight_bits(image)
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")  # `convert` would copy
    if image.mode == "La":
        image = image.convert("LA")
    shown = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown).convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """One channel of more than 8 bits as L, or LA where one of its values is transparent."""
    values_HW = np.asarray(image)
    scaled_HW = _scaled(image, values_HW).astype(np.uint8)
    if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # which PIL obeys for 8 bits and fewer only
        scaled_HW = 255 - scaled_HW
    scaled = Image.fromarray(scaled_HW)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        scaled.putalpha(Image.fromarray(np.where(values_HW == transparent, 0, 255).astype(np.uint8)))
    return scaled


def _scaled(image: Image.Image, values_HW: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """An image's values, brought to 0..255."""
    lowest, highest = float(values_HW.min()), float(values_HW.max())
    if image.mode == "F":
        if not 0 <= lowest <= highest <= 255:  # nor is nan
            raise ValueError(f"floats of {lowest:g} to {highest:g}, not 0 to 1 or 0 to 255: scale them")
        return np.rint(values_HW if highest > 1 else values_HW * 255)
    if image.mode == "I" and image.format != "PPM":
        if not 0 <= lowest <= highest <= 65535:
            raise ValueError(f"integers of {lowest:.0f} to {highest:.0f}, not 0 to 65535: save it with 8 or 16 bits")
        return values_HW if highest <= 255 else values_HW >> 8
    bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))[0]
    return values_HW >> max(bits - 8, 0)  # the high byte, as PIL itself reads 16 bits of color
