"""Downloads against a local server: whole, interrupted and resumed, refused; unpacking of hostile archives."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import stat
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tiny_data import karpathy, write_image

from datamodules import coco
from datamodules.coco import COCO
from datamodules.download import Remote, fetch, unpack
from datamodules.errors import InputError


class Server:
    """Serves `files` with Range; `cut[path]` closes the first connections to a path after so many bytes."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut: dict[str, list[int]] = {}
        self.ranges = True
        self.requests: list[tuple[str, str | None]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = self.headers.get("Range")
                outer.requests.append((self.path, asked))
                content = outer.files.get(self.path)
                if content is None:
                    self.send_error(404)
                    return
                start = 0
                if asked and outer.ranges:
                    start = int(re.fullmatch(r"bytes=(\d+)-", asked).group(1))  # type: ignore[union-attr]
                    if start >= len(content):
                        self.send_response(416)
                        self.send_header("Content-Range", f"bytes */{len(content)}")
                        self.send_header("Content-Length", "0")
                        self.end_headers()
                        return
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                else:
                    self.send_response(200)
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                cuts = outer.cut.get(self.path, [])
                self.wfile.write(content[start : cuts.pop(0)] if cuts else content[start:])
                self.close_connection = True

            def log_message(self, format: str, *arguments: object) -> None:
                return

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


CONTENT = bytes(range(256)) * 5000


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
        address, path, _, _ = coco._ARCHIVES[name]
        server.files[f"/{path}"] = data
        monkeypatch.setitem(coco._ARCHIVES, name, (address, path, len(data), hashlib.md5(data).hexdigest()))

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
