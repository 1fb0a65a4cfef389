"""Features on disk: what is written is read, by any process; damage and full disks are found before they cost anything."""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import pickle
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules.errors import InputError
from datamodules.flickr8k import Flickr8k
from datamodules.inputs import Inputs
from datamodules.loading import features
from datamodules.loading.features import FeatureFile

ABOUT: dict[str, Any] = {"data": "tiny", "split": "train", "images": 7, "tokens": 3, "width": 4, "dtype": "float16", "tower": "a"}


def values(rows: int, dtype: str = "float16", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, 3, 4)).astype(dtype)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_is_written_is_read(tmp_path: Path, dtype: str) -> None:
    file = FeatureFile.make(tmp_path, ABOUT | {"dtype": dtype})
    every = values(7, dtype)
    file.write(4, every[4:])
    assert file.done().tolist() == [False] * 4 + [True] * 3
    file.write(0, every[:4])
    assert file.done().all()
    again = FeatureFile.make(tmp_path, ABOUT | {"dtype": dtype})  # keeps what is there
    assert again.done().all()
    rows = [6, 0, 3, 3]
    assert np.array_equal(again.read(rows), every[rows])
    assert again.read(rows).dtype == np.dtype(dtype)
    assert again.read([]).shape == (0, 3, 4)
    assert file.folder.joinpath("tokens.bin").stat().st_size == every.nbytes == file.bytes
    with multiprocessing.get_context("fork").Pool(2) as pool:  # as workers of a loader have it
        for row, found in enumerate(pool.map(file.read, [[row] for row in range(7)])):
            assert np.array_equal(found[0], every[row])
    assert np.array_equal(pickle.loads(pickle.dumps(file)).read(rows), every[rows])


def test_every_fact_has_its_own_folder(tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [{}, {"tower": "b"}, {"dtype": "float32"}, {"images": 8}, {"split": "val"}, {"width": 5}]
    folders = {FeatureFile.make(tmp_path, ABOUT | change).folder for change in changes}
    assert len(folders) == len(changes)
    assert FeatureFile.place(tmp_path, dict(reversed(ABOUT.items()))) in folders  # whatever their order


def test_features_of_photographs_that_were_replaced_are_found(tmp_path: Path) -> None:
    a, b = {"photographs": "a"}, {"photographs": "b"}
    changes: list[dict[str, Any]] = [a, b, b | {"tower": "b"}, {"split": "val"}]
    folders = [FeatureFile.make(tmp_path, ABOUT | change).folder for change in changes]
    (tmp_path / "tiny-train-damaged").mkdir()
    (tmp_path / "tiny-train-damaged" / "about.json").write_text("[]")
    assert FeatureFile.of_other(tmp_path, ABOUT | a, "photographs") == [folders[1]]


def test_features_count_only_when_they_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = FeatureFile.make(tmp_path, ABOUT)

    def fail(handle: int) -> None:
        raise OSError(errno.EIO, "the disk fails")

    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(OSError, match="the disk fails"):
        file.write(0, values(2))
    assert not file.done().any()


def test_damage_is_named(tmp_path: Path) -> None:
    file = FeatureFile.make(tmp_path, ABOUT)
    file.write(0, values(7))
    about, tokens, done = (file.folder / name for name in ("about.json", "tokens.bin", "done.u1"))
    os.truncate(tokens, file.bytes - 1)
    with pytest.raises(InputError, match=r"tokens.bin ends before row 6"):
        file.read([2, 6])
    with pytest.raises(InputError, match=r"tokens.bin has 167 bytes, about.json says 168; delete"):
        FeatureFile.make(tmp_path, ABOUT)
    os.truncate(tokens, file.bytes)
    done.unlink()
    with pytest.raises(InputError, match=r"done.u1 has 0 bytes"):
        FeatureFile(file.folder)
    text = about.read_text()
    about.write_text(text[:30])
    with pytest.raises(InputError, match=r"about\.json is not valid JSON .*delete"):
        FeatureFile(file.folder)
    about.write_text("[]")
    with pytest.raises(InputError, match=r"about.json is damaged"):
        FeatureFile(file.folder)
    done.write_bytes(bytes(7))
    about.write_text(json.dumps(ABOUT | {"tower": "b"}))
    with pytest.raises(InputError, match=r"about.json .*tower was 'b' and is 'a'\. It was changed; delete"):
        FeatureFile.make(tmp_path, ABOUT)
    about.unlink()
    with pytest.raises(InputError, match=r"about.json is missing"):
        FeatureFile(file.folder)


def test_a_full_disk_shows_when_the_folder_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert FeatureFile.room(tmp_path, ABOUT) == 7 * 3 * 4 * 2
    with monkeypatch.context() as full:

        def fail(handle: int, place: int, size: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        full.setattr(features.os, "posix_fallocate", fail)
        with pytest.raises(InputError, match=r"tokens.bin needs 0.00 GB, .*No space left on device"):
            FeatureFile.make(tmp_path, ABOUT)
    with pytest.raises(InputError, match=r"about.json is missing"):
        FeatureFile(FeatureFile.place(tmp_path, ABOUT))
    file = FeatureFile.make(tmp_path, ABOUT)  # there is room again
    assert not file.done().any()
    assert FeatureFile.room(tmp_path, ABOUT) == 0
    assert (file.folder / "tokens.bin").stat().st_blocks > 0  # not sparse


def test_room_is_taken_where_the_file_system_has_no_call_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def emulated(handle: int, place: int, size: int) -> None:
        """As the C library does it (`man posix_fallocate`, notes)."""
        flags = fcntl.fcntl(handle, fcntl.F_GETFL)
        if flags & os.O_APPEND or flags & os.O_ACCMODE == os.O_WRONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        os.truncate(handle, max(size, os.fstat(handle).st_size))

    monkeypatch.setattr(features.os, "posix_fallocate", emulated)
    file = FeatureFile.make(tmp_path, ABOUT)
    file.write(0, np.ones((1, *file.shape[1:]), file.dtype))
    (file.folder / "about.json").unlink()  # of a process that was killed before it had written it
    assert FeatureFile.make(tmp_path, ABOUT).done().tolist() == [True, *[False] * 6]


# --------------------------------------------------------------------------------------------------- the data module


def made(data: Flickr8k, inputs: Inputs, folder: Path, split: str = "train", **changes: Any) -> Path:
    """A folder of this split's features."""
    assert inputs.image is not None
    images = len(data.records(split))
    facts = {"split": split, "images": images, "photographs": data.image_fingerprint(split), "image_input": asdict(inputs.image)}
    file = FeatureFile.make(folder, ABOUT | facts | changes)
    file.write(0, values(images))
    return file.folder


def test_loaders_give_features_in_place_of_pixels(flickr8k_root: Path, inputs: Inputs, tmp_path: Path) -> None:
    inputs = replace(inputs, captions=True)
    data = Flickr8k(str(flickr8k_root), batch_size=6, eval_batch_size=2, num_workers=1, augment="none")
    data.connect(inputs)
    plain = list(data.train_dataloader())
    data.use_features({split: made(data, inputs, tmp_path, split) for split in ("train", "val")})
    for image in (flickr8k_root / "images").iterdir():
        image.unlink()
    every = torch.from_numpy(values(13))
    for batch, before in zip(data.train_dataloader(), plain, strict=True):
        assert batch.images.pixels_B3HW is None
        assert torch.equal(batch.images.tokens_BVD, every[batch.images.index_B])
        assert torch.equal(batch.images.index_B, before.images.index_B)
        assert batch.texts.caption_ids == before.texts.caption_ids
        assert batch.to("cpu").images.tokens_BVD is not None
    (loader,) = data.evaluation_loaders("val")
    assert torch.equal(torch.cat([batch.tokens_BVD for batch in loader]), torch.from_numpy(values(5)))
    data.connect(inputs)  # perhaps another tower
    with pytest.raises(InputError, match="does not exist"):
        next(iter(data.evaluation_loaders("val")[0]))


def test_features_of_anything_else_are_refused(flickr8k_root: Path, inputs: Inputs, tmp_path: Path) -> None:
    data = Flickr8k(str(flickr8k_root), num_workers=0)
    data.connect(inputs)
    with pytest.raises(InputError, match="networks that write captions"):
        data.use_features({})
    inputs = replace(inputs, captions=True)
    data.connect(inputs)
    with pytest.raises(InputError, match="augment is paper, and a random crop has no visual features"):
        data.use_features({"train": made(data, inputs, tmp_path)})
    data = Flickr8k(str(flickr8k_root), num_workers=0, augment="none")
    data.connect(inputs)
    folder = made(data, inputs, tmp_path)
    data.use_features({"train": folder})
    with pytest.raises(InputError, match="holds features of other images than flickr8k val: photographs differ"):
        data.use_features({"val": folder})
    assert inputs.image is not None
    other = asdict(replace(inputs.image, resize="crop"))
    with pytest.raises(InputError, match="image_input differ"):
        data.use_features({"train": made(data, inputs, tmp_path, image_input=other)})
    (folder / "done.u1").write_bytes(b"\1" * 12 + b"\0")
    with pytest.raises(InputError, match="lacks the features of 1 of 13 images"):
        data.use_features({"train": folder})
