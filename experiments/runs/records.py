"""Records of runs: run folders without what only a model needs, in one archive that can be kept with the code.

A report reads no weights, so it can be made again from such an archive, on any machine, to the last digit. Unpacked below the
`--out` of a sweep, the runs in it count as finished there.
"""

from __future__ import annotations

import contextlib
import io
import lzma
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from datamodules.errors import InputError
from datamodules.files.atomic import whole_file

SUFFIX = ".tar.xz"
# Weights, scores of pairs (their ranks are in per_query/), and W&B's own files, which name this machine.
_LEFT_OUT = ("checkpoints", "scores", "wandb", "export")
_ORIGIN = ".records"  # beside the runs of an unpacked archive: its path
_NO_RECORDS = (".ckpt", ".safetensors", ".lock")


def require_records_name(file: Path) -> None:
    """Raises InputError where records cannot have that name."""
    if not file.name.endswith(SUFFIX):
        raise InputError(f"records {file}: name a file that ends in {SUFFIX}.")


def write_records(folders: Iterable[Path], file: Path) -> int:
    """Pack run folders. Equal folders give an equal archive: no times, owners or modes of this machine are in it.

    Args:
        folders: Of runs, each with a name of its own.
        file: To write, NAME.tar.xz.

    Returns:
        How many folders there are in it.

    Raises:
        InputError: The file's name does not end in .tar.xz, or two folders have one name.
    """
    require_records_name(file)
    by_name: dict[str, Path] = {}
    for folder in folders:
        if by_name.setdefault(folder.name, folder).resolve() != folder.resolve():
            raise InputError(f"{by_name[folder.name]} and {folder} have one name: give --runs only one of the two.")
    with whole_file(file) as part, tarfile.open(part, "w:xz", preset=9) as archive:
        for name in sorted(by_name):
            for path in _records_of(by_name[name]):
                _add(archive, path, f"{name}/{path.relative_to(by_name[name]).as_posix()}")
    return len(by_name)


def _records_of(folder: Path) -> list[Path]:
    files = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in _LEFT_OUT and not name.startswith(".")]
        files += [Path(place, name) for name in names if not name.startswith(".") and not name.endswith(_NO_RECORDS)]
    return sorted(files)


def _add(archive: tarfile.TarFile, path: Path, name: str) -> None:
    content = path.read_bytes()
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


@contextlib.contextmanager
def opened(places: Sequence[Path]) -> Iterator[list[Path]]:
    """Folders of runs, and archives of records as folders that are there until the block ends.

    Args:
        places: Folders and .tar.xz files, in any order, which stays.

    Raises:
        InputError: An archive is damaged, or would write outside its folder.
    """
    with contextlib.ExitStack() as stack:
        yield [_unpacked(place, stack) if place.is_file() else place for place in places]


def _unpacked(file: Path, stack: contextlib.ExitStack) -> Path:
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="crosslight-records-"))
    try:
        with tarfile.open(file, "r:xz") as archive:
            for entry in archive:
                _unpack(archive, entry, Path(folder))
    except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
        raise InputError(f"{file} is no whole archive of `crosslight report --records` ({error}).") from None
    (Path(folder) / _ORIGIN).write_text(str(file), encoding="utf-8")
    return Path(folder)


def _unpack(archive: tarfile.TarFile, entry: tarfile.TarInfo, folder: Path) -> None:
    """A file of an archive, inside of the folder. (`extractall` has its `filter` since Python 3.11.4; Debian 12's is 3.11.2.)

    Raises:
        tarfile.TarError: It is no file or folder, or would be outside.
    """
    place = PurePosixPath(entry.name)
    content = archive.extractfile(entry) if entry.isfile() else None
    if place.is_absolute() or ".." in place.parts or not (content or entry.isdir()):
        raise tarfile.TarError(f"{entry.name!r} is no file inside of it")
    if content is not None:
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        with content, (folder / place).open("wb") as file:
            shutil.copyfileobj(content, file)


def root_of(folder: Path) -> str:
    """Where a run was found, as whoever named it would: the folder that it is in, or the archive that was unpacked."""
    origin = folder.parent / _ORIGIN
    return origin.read_text(encoding="utf-8") if origin.is_file() else str(folder.parent)
