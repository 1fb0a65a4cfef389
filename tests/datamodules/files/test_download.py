"""Downloads against a local server: whole, interrupted and resumed, refused; unpacking of hostile archives."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import stat
import zipfile
from pathlib import Path

import pytest
from local_server import Server, server
from tiny_data import karpathy, write_image

from datamodules.coco import COCO
from datamodules.errors import InputError
from datamodules.files.download import Remote, fetch, unpack
from datamodules.sources import coco as source

CONTENT = bytes(range(256)) * 5000

__all__ = ["server"]  # the fixture


def remote(server: Server, **known: object) -> Remote:
    return Remote(f"{server.url}/a.bin", **known)  # type: ignore[arg-type]


def test_whole_download(server: Server, tmp_path: Path) -> None:
    server.files["/a.bin"] = CONTENT
    path = fetch(remote(server, size=len(CONTENT), md5=hashlib.md5(CONTENT).hexdigest()), tmp_path / "new")
    assert path == tmp_path / "new" / "a.bin"
    assert path.read_bytes() == CONTENT
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["a.bin"]
    fetch(remote(server), tmp_path / "new")
    assert len(server.requests) == 1  # it is there already


def test_broken_connections_are_continued(server: Server, tmp_path: Path) -> None:
    server.files["/a.bin"] = CONTENT
    server.cut["/a.bin"] = [100_000, 500_000]
    path = fetch(remote(server, md5=hashlib.md5(CONTENT).hexdigest()), tmp_path, pause=0)
    assert path.read_bytes() == CONTENT
    assert [asked for _, asked in server.requests] == [None, "bytes=100000-", "bytes=500000-"]


def test_an_interrupted_download_is_resumed_by_the_next_run(server: Server, tmp_path: Path) -> None:
    server.files["/a.bin"] = CONTENT
    server.cut["/a.bin"] = [1000] * 4
    with pytest.raises(InputError, match=r"cannot be fetched .*closed after 1,000 of 1,280,000 bytes.*a\.bin\.part"):
        fetch(remote(server), tmp_path, pause=0)
    assert (tmp_path / "a.bin.part").read_bytes() == CONTENT[:1000]
    assert not (tmp_path / "a.bin").exists()
    server.cut.clear()
    assert fetch(remote(server), tmp_path).read_bytes() == CONTENT
    assert server.requests[-1][1] == "bytes=1000-"


def test_a_server_without_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    server.files["/a.bin"] = CONTENT
    server.ranges = False
    (tmp_path / "a.bin.part").write_bytes(b"old beginning")
    assert fetch(remote(server), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("extra", [b"", b"of another file"])
def test_a_part_at_or_past_the_end(server: Server, tmp_path: Path, extra: bytes) -> None:
    server.files["/a.bin"] = CONTENT
    (tmp_path / "a.bin.part").write_bytes(CONTENT + extra)
    assert fetch(remote(server), tmp_path).read_bytes() == CONTENT


def test_wrong_checksum_and_wrong_size(server: Server, tmp_path: Path) -> None:
    server.files["/a.bin"] = CONTENT
    with pytest.raises(InputError, match=r"/a\.bin: MD5 checksum [0-9a-f]{32}, expected 0000.*removed"):
        fetch(remote(server, md5="0" * 32), tmp_path)
    with pytest.raises(InputError, match=r"/a\.bin has 1,280,000 bytes, expected 7"):
        fetch(remote(server, size=7), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_not_found_and_unreachable(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"/a\.bin: the server answers 404"):
        fetch(remote(server), tmp_path)
    with pytest.raises(InputError, match=r"cannot be fetched .*refused"):
        fetch(Remote("http://127.0.0.1:9/a.bin"), tmp_path, pause=0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's always-full disk")
def test_a_full_disk_is_one_message(server: Server, tmp_path: Path) -> None:
    server.files["/a.bin"] = CONTENT
    (tmp_path / "a.bin.part").symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"the disk is full: .*a\.bin\.part .*start again"):
        fetch(remote(server), tmp_path)
    assert (tmp_path / "a.bin.part").is_symlink()
    with pytest.raises(InputError, match=r"GB free, .* still needs 1000000000\.0 GB"):
        fetch(Remote(f"{server.url}/b.bin", size=10**18), tmp_path)


# ---------------------------------------------------------------------------------------------------------- unpacking


def archive(path: Path, entries: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as bundle:
        for name, content in entries.items():
            bundle.writestr(name, content)
        for name, target in (links or {}).items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            bundle.writestr(info, target)
    return path


def test_unpack_adds_to_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "root" / "annotations").mkdir(parents=True)
    (tmp_path / "root" / "annotations" / "old.json").write_text("old")
    unpack(archive(tmp_path / "a.zip", {"annotations/new.json": b"new", "train/": b"", "train/1.jpg": b"x"}), tmp_path / "root")
    files = sorted(str(p.relative_to(tmp_path / "root")) for p in (tmp_path / "root").rglob("*") if p.is_file())
    assert files == ["annotations/new.json", "annotations/old.json", "train/1.jpg"]
    assert not list((tmp_path / "root").glob(".*"))


@pytest.mark.parametrize(
    ("entries", "links", "reason"),
    [
        ({"../evil.txt": b"x"}, {}, 'climbs out with ".."'),
        ({"a/../../evil.txt": b"x"}, {}, 'climbs out with ".."'),
        ({"..\\evil.txt": b"x"}, {}, 'climbs out with ".."'),
        ({"/evil.txt": b"x"}, {}, "is an absolute path"),
        ({"C:\\evil.txt": b"x"}, {}, "is an absolute path"),
        ({}, {"link": "/etc"}, "is a link"),
    ],
)
def test_unsafe_entries_are_refused(tmp_path: Path, entries: dict[str, bytes], links: dict[str, str], reason: str) -> None:
    path = archive(tmp_path / "down" / "a.zip", {"good.txt": b"x"} | entries, links)
    with pytest.raises(InputError, match=re.escape(reason)) as caught:
        unpack(path, tmp_path / "root")
    assert str(path) in str(caught.value)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]


def test_a_broken_zip_is_one_message(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", {"one.txt": b"some content, stored"})
    content = path.read_bytes()
    path.write_bytes(content.replace(b"some content", b"same content"))
    with pytest.raises(InputError, match=r"a\.zip is not a sound zip file .*CRC"):
        unpack(path, tmp_path / "root")
    path.write_bytes(content[:-30])
    with pytest.raises(InputError, match=r"a\.zip is not a sound zip file"):
        unpack(path, tmp_path / "root")


# --------------------------------------------------------------------------------------------------------------- COCO


def zipped(entries: dict[str, bytes]) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as bundle:
        for name, content in entries.items():
            bundle.writestr(name, content)
    return memory.getvalue()


def test_coco_is_fetched_from_a_mirror(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = karpathy({"train": 3, "restval": 1, "val": 1, "test": 1}, folder="val2014")
    for image in content["images"]:
        write_image(tmp_path / "source" / image["filename"], image["imgid"])
    pictures = {f"val2014/{path.name}": path.read_bytes() for path in (tmp_path / "source").iterdir()}
    archives = {
        "karpathy": zipped({"dataset_coco.json": json.dumps(content).encode(), "dataset_flickr8k.json": b"{}"}),
        "train2014": zipped({"train2014/unused.jpg": b""}),
        "val2014": zipped(pictures),
    }
    for name, data in archives.items():
        address, path, _, _ = source._ARCHIVES[name]
        server.files[f"/{path}"] = data
        monkeypatch.setitem(source._ARCHIVES, name, (address, path, len(data), hashlib.md5(data).hexdigest()))

    root = tmp_path / "coco"
    monkeypatch.setenv("CROSSLIGHT_COCO_MIRROR", f"{server.url}/")
    with pytest.raises(InputError, match="Set download to true"):
        COCO(str(root)).prepare_data()
    assert server.requests == []
    data_module = COCO(str(root), download=True)
    data_module.prepare_data()
    assert [len(data_module.records(split)) for split in ("train", "val", "test")] == [4, 1, 1]
    assert sorted(os.listdir(root)) == ["annotations", "train2014", "val2014"]  # the archives are gone
    COCO(str(root), download=True).prepare_data()
    assert len(server.requests) == 3
