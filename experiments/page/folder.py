"""A folder of images as a page shows it: by the names that it had when the page was opened, and decoded, never as files."""

from __future__ import annotations

import base64
import io
from functools import lru_cache
from pathlib import Path

from PIL import Image

from datamodules.errors import InputError, printable
from datamodules.files.images import image_files_below, read_image
from datamodules.formats.problems import is_sound

_KEPT = 2_000  # small pictures in memory, of some 15 kB


class ImageFolder:
    """The images in a folder and all folders below it. Nothing but these can be asked for. A name that is no UTF-8, which no
    address can hold, is shown with escapes.

    Args:
        root: The folder.

    Raises:
        InputError: It is no folder, or has no images.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        files, _ = image_files_below(root)
        if not files:
            raise InputError(f"{root} has no images below it; give a folder of images.")
        self._files = {file if is_sound(file) else printable(file): file for file in files}
        self._shown = {file: name for name, file in self._files.items()}
        self.names = list(self._files)

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def shown(self, file: str) -> str | None:
        """What a file below the folder is shown as; None where it is none of these."""
        return self._shown.get(file)

    def path(self, name: str) -> Path:
        """Of an image.

        Raises:
            InputError: It is none of this folder's.
        """
        if name not in self._files:
            raise InputError("there is no such image in this folder.")
        return self.root / self._files[name]

    def picture(self, name: str, side: int) -> bytes:
        """An image as a JPEG, no side longer than that (pixels).

        Raises:
            InputError: It is none of this folder's, or cannot be read.
        """
        path = self.path(name)
        try:
            changed = path.stat().st_mtime_ns
        except OSError:
            raise InputError("this image is gone.") from None
        return _picture(path, changed, side)


@lru_cache(_KEPT)
def _picture(path: Path, changed: int, side: int) -> bytes:
    return jpeg(read_image(path), side)


def jpeg(image: Image.Image, side: int) -> bytes:
    """An image as a JPEG, no side longer than that (pixels)."""
    small = image.copy()
    small.thumbnail((side, side))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=85)
    return stream.getvalue()


def data_uri(content: bytes, kind: str = "jpeg") -> str:
    """A picture inside of a page."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
