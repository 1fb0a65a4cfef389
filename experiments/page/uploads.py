"""What a visitor sends: an image, which lies in a folder of its own while it is looked at, and is gone with the answer."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import UploadFile
from starlette.requests import Request

from datamodules.errors import InputError

MOST_BYTES = 25 << 20


@dataclass(frozen=True)
class Upload:
    """An image that was sent, and the other fields of its form.

    Args:
        file: Where it lies for now.
        name: What the visitor calls it.
        fields: The others.
    """

    file: Path
    name: str
    fields: dict[str, str]


@asynccontextmanager
async def uploaded(request: Request) -> AsyncIterator[Upload]:
    """The form of a request.

    Raises:
        InputError: It has no image, or is too large. What is raised inside says the visitor's name of the file, not where it lay.
    """
    length = request.headers.get("content-length", "")
    if not length.isdecimal() or int(length) > MOST_BYTES:
        raise InputError(f"the image is larger than {MOST_BYTES >> 20} MB; send a smaller one.")
    async with request.form(max_files=1, max_fields=8) as form:
        sent = form.get("image")
        if not isinstance(sent, UploadFile) or not sent.size:
            raise InputError("choose an image file first.")
        name = Path(sent.filename or "image").name[:120]
        fields = {key: value for key, value in form.items() if isinstance(value, str)}
        with tempfile.TemporaryDirectory(prefix="crosslight-page-") as folder:
            file = Path(folder, "upload")
            file.write_bytes(await sent.read())
            try:
                yield Upload(file, name, fields)
            except InputError as error:
                raise InputError(str(error).replace(str(file), name)) from error
