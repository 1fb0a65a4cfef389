"""Image files, decoded."""

from __future__ import annotations

from PIL import Image, UnidentifiedImageError

from datamodules.errors import InputError
from datamodules.records import ImageRecord


def open_image(record: ImageRecord) -> Image.Image:
    """The image fully decoded, as RGB.

    Raises:
        InputError: the file is missing, not an image, or truncated; names the file and the image id. Or there is no file.
    """
    if record.path is None:
        raise InputError(f"image {record.image_id} has no file: its data set was read from databases of region features.")
    try:
        with Image.open(record.path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        reason = "does not exist"
    except UnidentifiedImageError:
        reason = "is not an image that PIL can read"
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, Image.DecompressionBombError) as error:
        # PIL's decoders raise all of these on damaged files; its own text says what ("image file is truncated ...").
        reason = f"cannot be decoded ({error})"
    raise InputError(
        f"image {record.image_id}: {record.path} {reason}. Replace the file or remove the image from the annotations; "
        "`crosslight data check` lists every such image."
    )
