"""What `crosslight data get` says and does: the steps to a complete data set, their sizes, and what stays to be done by hand."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datamodules.files.download import Remote
from datamodules.files.steps import Step
from datamodules.prepare.alternatives import ALTERNATIVES, Alternative, alternative, take_alternative
from datamodules.prepare.data_sets import open_source


def get(kind: str, root: Path | None, name: str | None, dry: bool, own: dict[str, Any]) -> int:
    """Fetch what can be fetched of a data set; returns 1 where something has to be done by hand.

    Args:
        kind: The data set.
        root: Its folder; None = $CROSSLIGHT_DATA/KIND.
        name: The alternative to take (prepare/alternatives.py).
        dry: Say it, and fetch nothing.
        own: The data set's options.

    Raises:
        InputError: There is no such data set or alternative, or something cannot be fetched.
    """
    root = root or Path(os.environ.get("CROSSLIGHT_DATA") or "data") / kind
    source = open_source(kind, root, **own)
    other = None if name is None else alternative(kind, name)
    if dry:
        print("\n".join(_planned(kind, root, source.steps(), name, other)))
        return 0
    if name is not None:
        counts = take_alternative(kind, name, root)
        print(f"{source.karpathy_file()}: {', '.join(f'{split} {count:,}' for split, count in counts.items()) or 'was there'}")
    source.fetch_files()
    missing = [step for step in source.steps() if not step.path.exists()]
    for step in missing:
        print(f"{step.path}: {step.by_hand}")
    print(f"{kind} is {'not complete: the rest is by hand' if missing else 'complete'}; {_check(kind, root)}")
    return 1 if missing else 0


def _check(kind: str, root: Path) -> str:
    return f"`crosslight data check {kind} {root}` looks into it"


def _planned(kind: str, root: Path, steps: list[Step], name: str | None, other: Alternative | None) -> Iterator[str]:
    yield f"{kind} into {root.absolute()}; nothing is fetched now"
    archives: dict[str, Remote] = {}
    unknown = 0
    for number, step in enumerate(steps, 1):
        yield f"{number}. {step.path}"
        if step.path.exists() and not step.lacks:
            yield "   is there"
        elif other is not None and _brings(other, step):
            unknown += 1
            if step.path.suffix == ".json":
                yield f"   --from {name}: {other.about}; {other.sizes}, converted"
                yield from (f"   {remote.url}{_sum(remote)}" for remote in other.files)
            elif other.images is not None:
                yield f"   --from {name}: {other.images.name}, {other.images_size}{_sum(other.images)}; unpacked, then removed"
                yield f"   {other.images.url}"
        elif step.remote is None:
            yield f"   {step.by_hand}"
            unknown += 1
        elif step.remote.url in archives:
            yield f"   in {step.remote.name} too"
        else:
            archives[step.remote.url] = step.remote
            unknown += step.remote.size is None
            size = (step.about or "size not published") if step.remote.size is None else _size(step.remote.size)
            where = "" if step.archive is None else f"; unpacked in {step.unpack}, then removed"
            yield f"   {step.remote.name}, {size}{_sum(step.remote)}{where}"
            yield from (f"   {'or ' * (url != step.remote.url)}{url}" for url in (step.remote.url, *step.remote.others))
    known = [remote.size for remote in archives.values() if remote.size is not None]
    most = sum(known) + max(known, default=0)
    parts = [f"{_size(sum(known))}, at most {_size(most)} on disk while an archive is unpacked"] if known else []
    parts += [f"{unknown} of the steps above, whose sizes are not known to the byte"] if unknown else []
    yield f"to fetch: {'; and '.join(parts) or 'nothing'}"
    yield f"free there: {_size(shutil.disk_usage(_existing(root)).free)}"
    for known_name, each in ALTERNATIVES.get(kind, {}).items():
        if known_name != name:
            yield f"or --from {known_name}: {each.about}, {each.sizes}{f' and {each.images_size}' if each.images else ''}"
    yield f"afterwards {_check(kind, root)}"


def _brings(other: Alternative, step: Step) -> bool:
    return step.path.name.startswith("dataset_") or (other.images is not None and step.path.suffix == "")


def _sum(remote: Remote) -> str:
    return f", SHA-256 {remote.sha256}" if remote.sha256 else f", MD5 {remote.md5}" if remote.md5 else ", no checksum is known"


def _size(count: int) -> str:
    """Of a download, as servers count."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _existing(path: Path) -> Path:
    """The nearest folder that is there."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.is_dir())
