"""NoCaps: domains, files without captions, fetching image by image, the file for EvalAI."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from local_server import Server, server
from tiny_data import write_image

from datamodules.errors import InputError
from datamodules.formats.nocaps import DOMAINS, parse_nocaps, read_addresses, write_submission
from datamodules.image_text import Limits
from datamodules.inputs import Inputs
from datamodules.nocaps import NoCaps
from datamodules.sources.nocaps import fetch_images

__all__ = ["server"]  # the fixture


def content(images: int = 7, domains: bool = True, captions: int | None = 10) -> dict[str, Any]:
    entries = []
    for number in range(images):
        identity = f"{number:016x}"
        entry = {"id": number, "open_images_id": identity, "file_name": f"{identity}.jpg", "width": 40, "height": 30}
        entry["coco_url"] = f"https://s3.amazonaws.com/open-images-dataset/validation/{identity}.jpg"
        entries.append({**entry, "domain": DOMAINS[number % 3]} if domains else entry)
    whole: dict[str, Any] = {"licenses": [], "info": {}, "images": entries}
    if captions is not None:
        pairs = [(number, k) for k in range(captions) for number in range(images)]
        whole["annotations"] = [{"id": i, "image_id": n, "caption": f"a dog {k}"} for i, (n, k) in enumerate(pairs)]
    return whole


def written(path: Path, values: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))
    return path


def nocaps(root: Path, split: str = "val", images: int = 7) -> Path:
    if split == "val":
        written(root / "nocaps_val_4500_captions.json", content(images))
    else:
        written(root / "nocaps_test_image_info.json", content(images, domains=False, captions=None))
    for number in range(images):
        write_image(root / split / f"{number:016x}.jpg", number)
    return root


def test_val_has_captions_and_domains(tmp_path: Path) -> None:
    records = parse_nocaps(written(tmp_path / "val.json", content()), tmp_path / "val").valid()["all"]
    assert [record.image_id for record in records] == [str(number) for number in range(7)]
    assert Counter(record.domain for record in records) == {"in-domain": 3, "near-domain": 2, "out-domain": 2}
    assert [caption.text for caption in records[3].captions] == [f"a dog {k}" for k in range(10)]
    assert [caption.caption_id for caption in records[3].captions] == [str(3 + 7 * k) for k in range(10)]
    assert records[3].path == tmp_path / "val" / "0000000000000003.jpg"


def test_image_info_files_have_neither(tmp_path: Path) -> None:
    info = content(domains=False, captions=None)
    for entry in info["images"]:
        del entry["open_images_id"]  # file_name says the same
    records = parse_nocaps(written(tmp_path / "test.json", info), tmp_path).valid()["all"]
    assert all((record.domain, record.captions) == (None, ()) for record in records)
    assert records[6].path == tmp_path / "0000000000000006.jpg"


def test_problems_are_collected(tmp_path: Path) -> None:
    values = content(6, captions=1)
    values["images"][1]["domain"] = "far-domain"
    del values["images"][2]["domain"]
    values["images"].append(values["images"][0])
    values["annotations"][3]["caption"] = "\n"
    values["annotations"][4]["image_id"] = 88
    values["annotations"][5]["id"] = 0
    parsed = parse_nocaps(written(tmp_path / "val.json", values), tmp_path)
    file = "0000000000000001.jpg"
    assert [(problem.kind, problem.text) for problem in parsed.all_problems()] == [
        ("unreadable annotation", f"image 1 ({file}) has domain 'far-domain', not one of in-domain, near-domain, out-domain"),
        ("duplicated id", "images[6] (0000000000000000.jpg) repeats image id 0"),
        ("unreadable annotation", "1 of 6 images have no domain, first image 2"),
        ("caption without image", "caption 4 names image 88, which images[] does not list"),
        ("duplicated id", "annotations[5] repeats caption id 0"),
        ("image without captions", "image 4 (0000000000000004.jpg)"),
        ("image without captions", "image 5 (0000000000000005.jpg)"),
        ("empty caption", "caption 3 of image 3"),
    ]
    with pytest.raises(InputError, match=r"val\.json has 8 problem\(s\)"):
        parsed.valid()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"id": 1}, r"images\[0\]: has no 'file_name'"),
        ({"id": 1, "file_name": "../1.jpg"}, "'file_name' is '../1.jpg', which names no file inside of its folder"),
        ({"id": 1, "file_name": "a/1.jpg"}, "'a/1.jpg' is no file name"),
        ({"id": 1, "open_images_id": "/etc/x"}, "'open_images_id' is '/etc/x', which names no file"),
        ({"id": 1, "file_name": "1.jpg", "domain": 3}, "'domain' is a JSON number, not a string"),
        ({"file_name": "1.jpg"}, r"images\[0\]: has no 'id'"),
    ],
)
def test_other_layouts_are_refused(tmp_path: Path, entry: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_nocaps(written(tmp_path / "val.json", {"images": [entry]}), tmp_path)


def test_the_data_module_tests_on_the_chosen_split_by_its_name(tmp_path: Path, inputs: Inputs) -> None:
    root = nocaps(nocaps(tmp_path), "test", 5)
    val = NoCaps(str(root), eval_batch_size=4, num_workers=0)
    val.prepare_data()
    assert val.splits() == {"test": 7}
    assert val.describe()["splits"] == {"val": {"images": 7, "captions": 70}}
    assert NoCaps(str(root), limits=Limits(test=2)).split_label("test") == "val[:2]"
    with pytest.raises(InputError, match="nocaps has no split 'train'"):
        val.records("train")
    val.connect(inputs)
    domains = [domain for batch in val.test_dataloader()[0] for domain in batch.domains]
    assert domains == [*DOMAINS, *DOMAINS, DOMAINS[0]]
    test = NoCaps(str(root), split="test")
    assert test.describe()["splits"] == {"test": {"images": 5, "captions": 0}}
    assert test.fingerprint() != val.fingerprint()


def test_what_is_missing_names_its_source(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        NoCaps(str(tmp_path), split="test").prepare_data()
    for part in (
        "NoCaps is not complete",
        "Set download to true",
        "nocaps_test_image_info.json: from https://s3.amazonaws.com/nocaps/nocaps_test_image_info.json",
        f"{tmp_path}/test: from https://s3.amazonaws.com/open-images-dataset/test/ID.jpg of each image",
    ):
        assert part in str(caught.value)
    nocaps(tmp_path)
    (tmp_path / "val" / "0000000000000004.jpg").unlink()
    with pytest.raises(InputError, match="nocaps test: 1 of 7 image files are missing, first image 4"):
        NoCaps(str(tmp_path)).records("test")


# ------------------------------------------------------------------------------------------------------------ download


def test_images_are_fetched_one_by_one_and_only_what_is_missing(tmp_path: Path, server: Server) -> None:
    whole = nocaps(tmp_path / "whole")
    server.files["/nocaps_val_4500_captions.json"] = (whole / "nocaps_val_4500_captions.json").read_bytes()
    for path in (whole / "val").iterdir():
        server.files[f"/validation/{path.name}"] = path.read_bytes()
    root = tmp_path / "fetched"
    write_image(root / "val" / "0000000000000002.jpg", 2)
    data = NoCaps(str(root), download=True, mirror=server.url)
    data.prepare_data()
    assert data.fingerprint() == NoCaps(str(whole)).fingerprint()
    assert sorted(path for path, _ in server.requests) == sorted(set(server.files) - {"/validation/0000000000000002.jpg"})
    data.prepare_data()
    assert len(server.requests) == len(server.files) - 1


def test_broken_connections_continue_and_missing_images_are_told_together(tmp_path: Path, server: Server) -> None:
    whole = nocaps(tmp_path / "whole")
    server.files["/nocaps_val_4500_captions.json"] = (whole / "nocaps_val_4500_captions.json").read_bytes()
    for path in (whole / "val").iterdir():
        server.files[f"/validation/{path.name}"] = path.read_bytes()
    del server.files["/validation/0000000000000001.jpg"], server.files["/validation/0000000000000005.jpg"]
    server.cut["/validation/0000000000000003.jpg"] = [100]
    data = NoCaps(str(tmp_path / "fetched"), download=True, mirror=server.url)
    with pytest.raises(
        InputError, match=r"^2 of 7 images cannot be fetched into .*val, first: http.*jpg: the server answers 404 .*kept\.$"
    ):
        data.prepare_data()
    assert {path.name for path in (tmp_path / "fetched" / "val").iterdir()} == {f"{n:016x}.jpg" for n in (0, 2, 3, 4, 6)}
    for number in (0, 2, 3):
        name = f"val/{number:016x}.jpg"
        assert (tmp_path / "fetched" / name).read_bytes() == (whole / name).read_bytes()
    assert ("/validation/0000000000000003.jpg", "bytes=100-") in server.requests


def test_a_bad_image_is_fetched_anew_and_a_web_page_never_kept(tmp_path: Path, server: Server) -> None:
    whole = nocaps(tmp_path / "whole")
    root = tmp_path / "fetched"
    names = [path.name for path in sorted((whole / "val").iterdir())]
    (root / "val").mkdir(parents=True)
    for name, bad in zip(names, (b"", b"<!doctype html><p>Log in", b"no image"), strict=False):
        (root / "val" / name).write_bytes(bad)
    (root / "nocaps_val_4500_captions.json").write_text("<html>moved</html>")
    server.files["/nocaps_val_4500_captions.json"] = (whole / "nocaps_val_4500_captions.json").read_bytes()
    for name in names:
        server.files[f"/validation/{name}"] = (whole / "val" / name).read_bytes()
    server.files[f"/validation/{names[1]}"] = b"<html><body>Log in</body></html>"
    data = NoCaps(str(root), download=True, mirror=server.url)
    with pytest.raises(InputError, match=rf"1 of 7 images .*{names[1]}: what the server sent .* is a web page"):
        data.prepare_data()
    assert (root / "val" / names[1]).read_bytes().startswith(b"<!doctype")  # what was there before
    server.files[f"/validation/{names[1]}"] = (whole / "val" / names[1]).read_bytes()
    data.prepare_data()
    assert data.fingerprint() == NoCaps(str(whole)).fingerprint()


def test_nothing_to_fetch_asks_nobody(tmp_path: Path) -> None:
    fetch_images({}, tmp_path / "none")
    assert list((tmp_path / "none").iterdir()) == []


def test_addresses_are_the_files_own_or_open_images(tmp_path: Path) -> None:
    values = content(2)
    values["images"][1]["coco_url"] = ""
    assert read_addresses(written(tmp_path / "a.json", values), "test") == {
        "0000000000000000.jpg": "https://s3.amazonaws.com/open-images-dataset/validation/0000000000000000.jpg",
        "0000000000000001.jpg": "https://s3.amazonaws.com/open-images-dataset/test/0000000000000001.jpg",
    }


# ---------------------------------------------------------------------------------------------------------- submission


def test_a_submission_has_every_image_by_number(tmp_path: Path) -> None:
    records = NoCaps(str(nocaps(tmp_path))).records("test")
    captions = {record.image_id: f"a dog\nnumber {record.image_id}" for record in records}
    write_submission(tmp_path / "submission.json", captions, records)
    assert json.loads((tmp_path / "submission.json").read_text()) == [
        {"image_id": number, "caption": f"a dog number {number}"} for number in range(7)
    ]
    with pytest.raises(InputError, match="7 captions are of images that the split has not"):
        write_submission(tmp_path / "s.json", {f"1{i}": "a" for i in range(7)} | captions, records)
    del captions["3"]
    with pytest.raises(InputError, match=r"1 images have no caption \(first: 3\)"):
        write_submission(tmp_path / "s.json", captions, records)
