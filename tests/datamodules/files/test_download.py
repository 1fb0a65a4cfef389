"""Downloads against a local server: whole, interrupted and resumed, refused; unpacking of hostile archives."""

from __future__ import annotations

import email.utils
import hashlib
import io
import json
import os
import re
import stat
import time
import zipfile
from datetime import UTC, datetime, timedelta
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


@pytest.mark.parametrize("conditions", [True, False])
@pytest.mark.parametrize("name", ["ETag", "Last-Modified"])
def test_a_file_that_was_replaced_meanwhile_is_fetched_anew(server: Server, tmp_path: Path, name: str, conditions: bool) -> None:
    """Of the same size and without a known sum: not the beginning of one and the end of the other."""
    server.conditions = conditions
    server.files["/a.bin"], server.headers = CONTENT, {name: '"one"', "X": "y"}
    server.cut["/a.bin"] = [1000] * 4
    with pytest.raises(InputError, match=r"cannot be fetched"):
        fetch(remote(server), tmp_path, pause=0)
    server.cut.clear()
    server.files["/a.bin"], server.headers = CONTENT[::-1], {name: '"two"'}
    assert fetch(remote(server), tmp_path, pause=0).read_bytes() == CONTENT[::-1]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.bin"]


def test_with_a_known_sum_another_server_may_go_on(server: Server, tmp_path: Path) -> None:
    server.files["/a.bin"], server.headers = CONTENT, {"ETag": '"one"'}
    server.cut["/a.bin"] = [1000] * 4
    known = remote(server, md5=hashlib.md5(CONTENT).hexdigest())
    with pytest.raises(InputError, match=r"cannot be fetched"):
        fetch(known, tmp_path, pause=0)
    server.cut.clear()
    server.headers = {"ETag": '"a mirror calls it otherwise"'}
    assert fetch(known, tmp_path, pause=0).read_bytes() == CONTENT
    assert server.requests[-1][1] == "bytes=1000-"


def test_a_page_to_log_in_at_costs_nothing_that_has_arrived(server: Server, tmp_path: Path) -> None:
    server.files["/a.bin"] = CONTENT
    known = remote(server, size=len(CONTENT))
    (tmp_path / "a.bin.part").write_bytes(CONTENT[:1000])
    server.page = b"<html><title>Wi-Fi: log in</title>"
    with pytest.raises(InputError, match=r"sent in place of the file is a web page .*log in"):
        fetch(known, tmp_path, pause=0)
    assert (tmp_path / "a.bin.part").read_bytes() == CONTENT[:1000]
    server.page = None
    assert fetch(known, tmp_path).read_bytes() == CONTENT
    assert server.requests[-1][1] == "bytes=1000-"


def test_a_part_that_is_no_beginning_of_the_file_is_not_gone_on_from(server: Server, tmp_path: Path) -> None:
    server.files["/a.bin"] = CONTENT
    (tmp_path / "a.bin.part").write_bytes(b"<html><title>Wi-Fi: log in</title>")
    assert fetch(remote(server, size=len(CONTENT)), tmp_path).read_bytes() == CONTENT


def test_a_connection_may_break_ever_again_as_long_as_something_arrives(server: Server, tmp_path: Path) -> None:
    server.files["/a.bin"] = CONTENT
    server.cut["/a.bin"] = [100_000 * count for count in range(1, 10)]
    assert fetch(remote(server), tmp_path, pause=0).read_bytes() == CONTENT


def test_a_server_without_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    server.files["/a.bin"] = CONTENT
    server.ranges = False
    (tmp_path / "a.bin.part").write_bytes(b"old beginning")
    assert fetch(remote(server), tmp_path).read_bytes() == CONTENT


def test_a_copy_with_the_same_sum_is_taken_where_the_first_address_gives_nothing(server: Server, tmp_path: Path) -> None:
    server.files |= {"/copy/a.bin": CONTENT, "/false/a.bin": CONTENT[::-1]}
    known = hashlib.sha256(CONTENT).hexdigest()
    others = (f"{server.url}/false/a.bin", f"{server.url}/copy/a.bin")
    path = fetch(Remote(f"{server.url}/gone/a.bin", sha256=known, others=others), tmp_path, pause=0)
    assert path.read_bytes() == CONTENT
    assert [asked for asked, _ in server.requests] == ["/gone/a.bin", "/false/a.bin", "/copy/a.bin"]
    with pytest.raises(
        InputError, match=r"none of 2 addresses gives a.bin:\n.*gone/a.bin.* 404 .*\n.*SHA-256 checksum .*, expected"
    ):
        fetch(Remote(f"{server.url}/gone/a.bin", sha256=known, others=others[:1]), tmp_path / "new", pause=0)
    with pytest.raises(InputError, match=r"^\S+gone/a.bin: the server answers 404"):  # without a sum nobody knows a copy
        fetch(Remote(f"{server.url}/gone/a.bin", others=others), tmp_path / "newer", pause=0)


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


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_busy_server_is_asked_again_when_it_says(
    server: Server, tmp_path: Path, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    server.files["/a.bin"] = CONTENT
    later = email.utils.format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    server.first["/a.bin"] = [(status, {"Retry-After": "7"}), (status, {}), (status, {"Retry-After": later})]
    assert fetch(remote(server), tmp_path, pause=3).read_bytes() == CONTENT
    assert waited[:2] == [7, 6]
    assert 50 < waited[2] <= 60
    server.first["/b.bin"] = [(status, {"Retry-After": "86400"})]
    with pytest.raises(InputError, match=rf"b\.bin: the server answers {status} .* asks to wait for 86,400 s; start again then"):
        fetch(Remote(f"{server.url}/b.bin"), tmp_path)
    assert len(waited) == 3


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.jpg", b"<!DOCTYPE html>\n<title>Log in</title>", r"is a web page \(HTML\)"),
        ("a.bin", b"\n<html>", "is a web page"),
        ("a.tsv", b'<?xml version="1.0"?>\n<!-- <a> -->\n<!DOCTYPE html PUBLIC><html>', "is a web page"),
        ("a.json", b"404: not found", "begins with b'404: not fou'"),
        ("a.jpg", b'{"error": "quota"}', "begins with"),
        ("a.zip", b"AccessDenied", "begins with"),
        ("a.csv", b"", "is empty"),
    ],
)
def test_what_is_no_file_of_its_kind_is_not_kept(server: Server, tmp_path: Path, name: str, content: bytes, why: str) -> None:
    server.files[f"/{name}"] = content
    with pytest.raises(InputError, match=rf"{name}: what the server sent in place of the file {why}.*it is not kept"):
        fetch(Remote(f"{server.url}/{name}"), tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / name).write_bytes(content)  # from a browser, say
    good = {"jpg": b"\xff\xd8\xff\xe0", "json": b"\xef\xbb\xbf [1]", "zip": zipped({"a": b""})}.get(name[2:], b"x")
    server.files[f"/{name}"] = good
    assert fetch(Remote(f"{server.url}/{name}"), tmp_path).read_bytes() == good


def test_a_file_of_another_size_is_left_to_the_user(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"a\.bin has 4 bytes, not 7, so it is not http.* Remove it"):
        fetch(remote(server, size=7), tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == b"mine"
    (tmp_path / "a.bin").write_bytes(b"<html>no file of anybody's")
    server.files["/a.bin"] = b"content"
    assert fetch(remote(server, size=7), tmp_path).read_bytes() == b"content"
    os.mkfifo(tmp_path / "b.bin")
    with pytest.raises(InputError, match=r"b\.bin is no file"):  # and nothing waits for it
        fetch(Remote(f"{server.url}/b.bin"), tmp_path)


def test_what_a_server_cannot_go_on_from_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.bin.part").write_bytes(b"half")
    server.files["/a.bin"] = CONTENT
    server.first["/a.bin"] = [(206, {"Content-Range": f"bytes 0-9/{len(CONTENT)}", "Content-Length": "0"})]
    assert fetch(remote(server), tmp_path).read_bytes() == CONTENT


def test_what_is_not_there_is_not_said_to_be_kept(server: Server, tmp_path: Path) -> None:
    server.first["/a.bin"] = [(500, {})] * 4
    with pytest.raises(InputError, match=r"Check the network and start again\.$"):
        fetch(remote(server), tmp_path, pause=0)


def test_a_piece_that_nobody_asked_for_is_not_the_file(server: Server, tmp_path: Path) -> None:
    server.first["/a.bin"] = [(206, {"Content-Range": "bytes 4-9/20", "Content-Length": "0"})]
    with pytest.raises(InputError, match=r"a\.bin: the server sends 'bytes 4-9/20' of the file"):
        fetch(remote(server), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_beginning_that_nobody_asked_for_is_not_the_whole_file(server: Server, tmp_path: Path) -> None:
    server.files["/a.bin"] = CONTENT
    server.first["/a.bin"] = [(206, {"Content-Range": f"bytes 0-9/{len(CONTENT)}", "Content-Length": "0"})]
    assert fetch(remote(server), tmp_path, pause=0).read_bytes() == CONTENT


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
        ({"./": b""}, {}, "has no name"),
        ({"a//b.txt": b"x", "a/b.txt": b"y"}, {}, "is there twice"),
        ({"a/b.txt": b"x", "a": b"y"}, {}, "is there twice"),
        ({"a": b"x", "a/b.txt": b"y"}, {}, "is a file and a folder"),
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
    flags = bytearray(content)
    flags[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(flags)
    with pytest.raises(InputError, match=r"a\.zip: entry 'one\.txt' is encrypted"):
        unpack(path, tmp_path / "root")
    path.write_bytes(b"PK\x05\x06" + bytes(18))
    with pytest.raises(InputError, match=r"a\.zip is an archive without anything in it"):
        unpack(path, tmp_path / "root")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bundle:
        bundle.writestr("one.txt", bytes(1000))
    packed = path.read_bytes()
    start = 30 + len("one.txt")
    path.write_bytes(packed[:start] + b"\xff\xff" + packed[start + 2 :])
    with pytest.raises(InputError, match=r"a\.zip is not a sound zip file \(Error -3"):
        unpack(path, tmp_path / "root")
    archive(path, {"x" * 300: b"y"})
    with pytest.raises(InputError, match=r"root cannot be written .*name too long"):
        unpack(path, tmp_path / "root")
    archive(path, {"taken/one.txt": b"y"})
    (tmp_path / "root" / "taken").write_text("a file")
    with pytest.raises(InputError, match="root cannot be written"):
        unpack(path, tmp_path / "root")
    assert (tmp_path / "root" / "taken").read_text() == "a file"
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
