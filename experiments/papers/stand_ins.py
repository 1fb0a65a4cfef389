"""A folder of stand-ins for everything that some runs read, so that they can be rehearsed where the data and weights are not:

DIR/STAND-IN                 the mark: nothing that was computed below it is a result
DIR/data/{coco,...}          CROSSLIGHT_DATA
DIR/weights/FILE             CROSSLIGHT_WEIGHTS
DIR/cache/{beit3,uniter}     CROSSLIGHT_CACHE
DIR/hub                      HF_HOME
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from datamodules.errors import InputError
from datamodules.files.locks import locked
from datamodules.files.stand_in import begin
from datamodules.standin.amounts import require_share
from experiments.papers.reads import Reads

_GB = 1e9
_BESIDE = 0.2 * _GB  # tokenizers, and the folder itself


@dataclass(frozen=True)
class _Part:
    """Something to write.

    Args:
        name: What it is.
        path: Where it is when it is there.
        size: In bytes, as published.
        write: Writes it, and with `half` in numbers of 16 bits; None: its own writer comes later.
        cuttable: Whether numbers of 16 bits make it half as large.
    """

    name: str
    path: Path
    size: float
    write: Callable[..., None] | None
    cuttable: bool = False


def environment_of(folder: Path) -> dict[str, str]:
    """What sends runs to the stand-ins of a folder. To be set before a process imports anything of Hugging Face's, which looks at
    it once."""
    whole = folder.absolute()
    places = {"CROSSLIGHT_DATA": "data", "CROSSLIGHT_WEIGHTS": "weights", "CROSSLIGHT_CACHE": "cache", "HF_HOME": "hub"}
    return {**{variable: str(whole / name) for variable, name in places.items()}, "HF_HUB_OFFLINE": "1"}


def write_stand_ins(
    reads: Reads,
    folder: Path,
    *,
    max_disk_gb: float = 20.0,
    share: float = 1.0,
    tell: Callable[[str], None] = print,
) -> dict[str, str]:
    """Make what is not there yet. It may be stopped at any time: the next call goes on. Another process that writes there is
    waited for.

    Args:
        reads: What the runs read.
        folder: Of the stand-ins; made when missing, and theirs alone.
        max_disk_gb: At most so many gigabytes more. What that cuts is told.
        share: Of each data set.
        tell: Takes a line on each thing that was made, and on each that was cut.

    Returns:
        `environment_of` the folder.

    Raises:
        InputError: There is no stand-in for something, the folder holds something else, or it takes more disk than allowed.
    """
    require_share(share)
    _require_makers(reads)
    for marked in (folder, folder / "weights", folder / "cache"):
        begin(marked, {"of": "what runs read"})
    with _alone(folder, tell):
        _write(reads, folder, max_disk_gb, share, tell)
    return environment_of(folder)


@contextmanager
def _alone(folder: Path, tell: Callable[[str], None]) -> Iterator[None]:
    """One writer at a time: of two that write a folder of pictures or a database the second would end. What may not be written
    to is whole already, or its writer says so."""
    lock = folder / ".lock"
    if not os.access(lock if lock.exists() else folder, os.W_OK):
        yield
        return
    with locked(lock, lambda: tell(f"{folder}: another process writes stand-ins there; waiting for it")):
        yield


def _write(reads: Reads, folder: Path, max_disk_gb: float, share: float, tell: Callable[[str], None]) -> None:
    """What is not there yet, in a marked folder that this process has to itself."""
    parts = [part for part in _parts(reads, folder, share) if not part.path.exists()]
    halved = _halved(parts, min(max_disk_gb * _GB, shutil.disk_usage(folder).free))
    for part in parts:
        if part.write is None:
            continue
        if part.name in halved:
            tell(f"{part.name}: cut to numbers of 16 bits, for the disk")
            part.write(half=True)
        else:
            part.write()
        tell(f"{part.name}: made")
    for data in reads.data:  # complete or not: their writers know
        _writers()[data](folder / "data" / data, share)
        tell(f"{data}: " + ("whole" if share == 1 else f"cut to {share:.2%}"))


def data_sets() -> list[str]:
    """Names of those that there is a stand-in for."""
    return list(_writers())


def _writers() -> Mapping[str, Callable[[Path, float], None]]:
    from datamodules.standin.kinds import WRITERS

    return WRITERS


def lacking(reads: Reads) -> list[str]:
    """What there is no stand-in for."""
    from lightning_modules.checkpoints.standin.hub import hub_names
    from lightning_modules.checkpoints.standin.official import NAMES

    known: dict[str, Iterable[str]] = {"data": _writers(), "weights": NAMES, "releases": NAMES, "hub": hub_names(), "others": ()}
    return [name for kind, names in known.items() for name in getattr(reads, kind) if name not in names]


def _require_makers(reads: Reads) -> None:
    if missing := lacking(reads):
        raise InputError(
            f"there is no stand-in for {', '.join(missing)}: give the real one, or add it (datamodules/standin, "
            "lightning_modules/checkpoints/standin)"
        )


def _parts(reads: Reads, folder: Path, share: float) -> list[_Part]:
    """Weights, and of data sets what they take; those are written by `write_stand_ins` itself."""
    from datamodules.files.releases import UNITER_CHECKPOINTS
    from datamodules.standin.kinds import BYTES
    from lightning_modules.checkpoints.standin import hub
    from lightning_modules.checkpoints.standin.official import official_bytes, write_official

    home = folder / "hub"
    parts = [_Part(f"data {name}", folder / "data" / name, share * BYTES[name], None) for name in reads.data]
    for name in reads.weights:
        path = folder / "weights" / name
        parts.append(_Part(name, path, official_bytes(name), partial(write_official, path), name.endswith(".pth")))
    for name in reads.releases:
        path = folder / "cache" / ("uniter" if name in UNITER_CHECKPOINTS else "beit3") / name
        parts.append(_Part(name, path, official_bytes(name), partial(write_official, path), name.endswith(".pth")))
    parts += [
        _Part(name, hub.place(home, name), hub.hub_bytes(name), partial(hub.write_hub_model, home, name), True)
        for name in reads.hub
    ]
    for name in reads.timm:
        path = hub.place(home, hub.timm_repository(name))
        parts.append(_Part(name, path, hub.timm_bytes(name), partial(hub.write_timm_model, home, name), True))
    for both in reads.open_clip:
        name, _, tag = both.partition(" ")
        path = hub.place(home, hub.open_clip_repository(name, tag))
        parts.append(_Part(both, path, hub.open_clip_bytes(name), partial(hub.write_open_clip_model, home, name, tag), True))
    return parts


def _halved(parts: list[_Part], allowed: float) -> set[str]:
    """Names of the parts that are stored in 16 bits so that all fit, the largest first.

    Raises:
        InputError: They do not fit even so.
    """
    whole = sum(part.size for part in parts) + (_BESIDE if parts else 0)
    halved: set[str] = set()
    for part in sorted((part for part in parts if part.cuttable), key=lambda part: -part.size):
        if whole <= allowed:
            break
        whole -= part.size / 2
        halved.add(part.name)
    if whole > allowed:
        raise InputError(
            f"the stand-ins take {whole / _GB:.1f} GB with weights of 16 bits, and {allowed / _GB:.1f} are allowed or free: "
            "raise --max-disk, free some, or take fewer runs at a time"
        )
    return halved
