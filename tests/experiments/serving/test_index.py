"""An index of a folder: built once, brought up to date, stopped anywhere, refused to others; its search against a naive one."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_data import write_image
from tiny_run import reading_run

import lightning_modules
from datamodules.errors import InputError
from datamodules.files.locks import take_lock
from experiments.serving import indexing, neighbors
from experiments.serving.index import SCHEMA, ImageIndex, best
from experiments.serving.indexing import Encoding, Update, update_index

OFTEN = Encoding(batch_size=2, part_seconds=0)  # every batch is a part


def bring_up(index: Path, photos: Path, model: Any, run: Path, **options: Any) -> Update:
    return update_index(index, photos, model, run, how=OFTEN, **options)


def content(index: Path) -> dict[str, bytes]:
    folder = ImageIndex(index).generation
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix == ".npy"}


def counts(update: Update) -> tuple[int, int, int, int]:
    return update.images, update.encoded, update.kept, update.gone


def test_vectors_are_the_models_in_the_order_of_the_names(photos: Path, model: Any, run: Path, tmp_path: Path) -> None:
    done = bring_up(tmp_path / "index", photos, model, run)
    assert counts(done) == (9, 8, 0, 0)  # two files of one content
    index = ImageIndex(tmp_path / "index")
    names = sorted(str(path.relative_to(photos)) for path in photos.rglob("*.jpg"))
    assert [index.name(row) for row in range(len(index))] == names
    own = model.encode_images([photos / name for name in names], batch_size=9)
    np.testing.assert_allclose(index.vectors_ND, own, atol=1e-6)
    assert isinstance(index.vectors_ND, np.memmap)
    assert not (tmp_path / "index" / "parts").exists()


def test_an_index_of_what_is_no_result_says_so_for_good(
    photos: Path, model: Any, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(model, "no_result", "a run on stand-ins", raising=False)
        bring_up(tmp_path / "index", photos, model, run)
    bring_up(tmp_path / "index", photos, model, run)  # the same model, copied without its mark
    assert ImageIndex(tmp_path / "index").label.no_result == "a run on stand-ins"
    bring_up(tmp_path / "other", photos, model, run)
    assert ImageIndex(tmp_path / "other").label.no_result is None


def test_an_update_encodes_what_is_new_and_ends_as_one_build_would(photos: Path, model: Any, run: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    bring_up(index, photos, model, run)
    write_image(photos / "a" / "1.jpg", 77)  # another content under the same name
    write_image(photos / "new" / "0.JPG", 78)
    (photos / "b" / "3.jpg").unlink()
    (photos / "b" / "0.jpg").rename(photos / "c" / "renamed.jpg")
    assert counts(bring_up(index, photos, model, run)) == (9, 2, 7, 2)
    bring_up(tmp_path / "once", photos, model, run)
    old, new = content(index), content(tmp_path / "once")
    assert {name: old[name] for name in ("names.npy", "name_ends.npy", "digests.npy")} == {
        name: new[name] for name in ("names.npy", "name_ends.npy", "digests.npy")
    }
    np.testing.assert_allclose(ImageIndex(index).vectors_ND, ImageIndex(tmp_path / "once").vectors_ND, atol=1e-6)
    before = ImageIndex(index).label
    assert counts(bring_up(index, photos, model, run)) == (9, 0, 9, 0)
    assert ImageIndex(index).label == before
    assert [folder.name for folder in index.glob("generation-*")] == ["generation-000002"]


def test_a_folder_is_the_same_by_whatever_path(
    photos: Path, model: Any, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring_up(tmp_path / "index", photos, model, run)
    (tmp_path / "link").symlink_to(photos)
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    for same in (tmp_path / "link", Path("../photos")):
        assert counts(bring_up(tmp_path / "index", same, model, run)) == (9, 0, 9, 0)
        index = ImageIndex(tmp_path / "index")
        assert index.path(0).samefile(photos / index.name(0))
    shutil.copytree(photos, tmp_path / "copy")
    with pytest.raises(InputError, match="is of the images in"):
        bring_up(tmp_path / "index", tmp_path / "copy", model, run)


def test_an_old_generation_that_cannot_be_removed_is_in_nobodys_way(
    photos: Path, model: Any, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "index"
    bring_up(index, photos, model, run)
    (index / "generation-000000").mkdir()
    remove = os.rmdir

    def busy(path: Any, *arguments: Any, **options: Any) -> None:  # as NFS keeps a file that another process has open
        if str(path).endswith("generation-000000"):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)
        remove(path, *arguments, **options)

    monkeypatch.setattr(os, "rmdir", busy)
    write_image(photos / "a" / "new.jpg", 78)
    assert counts(bring_up(index, photos, model, run)) == (10, 1, 9, 0)


class Stopped(KeyboardInterrupt):
    pass


@pytest.mark.parametrize("after", [1, 2, 3])
def test_stopped_anywhere_it_goes_on(
    photos: Path, model: Any, run: Path, tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, batches = tmp_path / "index", []
    encode = type(model).encode_batch

    def stopping(self: Any, batch: Any) -> torch.Tensor:
        batches.extend([batch] if batch.image_ids != ("probe",) else [])
        if len(batches) > after:
            raise Stopped
        return encode(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(type(model), "encode_batch", stopping)
        with pytest.raises(Stopped):
            bring_up(index, photos, model, run)
    with pytest.raises(InputError, match="is not finished: run `crosslight index"):
        ImageIndex(index)
    (index / "generation-000001").mkdir()  # as a kill between its files leaves one
    (index / "generation-000001" / "vectors.npy").write_bytes(b"half")
    assert counts(bring_up(index, photos, model, run)) == (
        9,
        8 - 2 * after,
        2 * after + (after > 1),
        0,
    )  # a/7.jpg is c/8.jpg, too
    bring_up(tmp_path / "once", photos, model, run)
    assert content(index) == content(tmp_path / "once")


def test_an_update_that_is_stopped_leaves_what_was_there_to_search(
    photos: Path, model: Any, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "index"
    bring_up(index, photos, model, run)
    before = content(index)
    write_image(photos / "new.jpg", 80)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(indexing, "_write_label", full)
        with pytest.raises(InputError, match=r"cannot be written .No space left on device.; what was encoded stays"):
            bring_up(index, photos, model, run)
    assert content(index) == before
    assert counts(bring_up(index, photos, model, run)) == (10, 0, 10, 0)


def test_broken_images_are_named_and_the_rest_is_indexed(photos: Path, model: Any, run: Path, tmp_path: Path) -> None:
    (photos / "cut.jpg").write_bytes((photos / "a" / "1.jpg").read_bytes()[:-300])
    shutil.copy(photos / "cut.jpg", photos / "same.jpg")
    (photos / "words.png").write_text("no image")
    (photos / "words.txt").write_text("no image")
    (photos / ".hidden.jpg").write_text("no image")
    (photos / "gone.jpg").symlink_to("nowhere.jpg")
    done = bring_up(tmp_path / "index", photos, model, run)
    assert counts(done) == (9, 8, 0, 0)
    assert sorted(line.partition(" ")[0].rpartition("/")[2] for line in done.broken) == [
        "cut.jpg",
        "gone.jpg",
        "same.jpg:",
        "words.png",
    ]
    assert done.others == [".hidden.jpg", "words.txt"]
    (photos / "cut.jpg").unlink()
    write_image(photos / "words.png", 90)
    done = bring_up(tmp_path / "index", photos, model, run)
    assert counts(done) == (10, 1, 9, 0)
    assert len(done.broken) == 2


def test_an_image_that_changes_while_it_is_read_is_no_vector_of_either_content(
    photos: Path, model: Any, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, file = tmp_path / "index", photos / "a" / "1.jpg"
    before = file.read_bytes()
    read = indexing.read_image_files

    def replacing(*arguments: Any) -> Any:
        write_image(file, 99)
        return read(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(indexing, "read_image_files", replacing)
        done = bring_up(index, photos, model, run)
    assert counts(done) == (8, 7, 0, 0)
    assert done.broken == [f"{file} changed while it was read: index the folder again."]
    file.write_bytes(before)  # the content that its digest was of
    assert counts(bring_up(index, photos, model, run)) == (9, 1, 8, 0)
    np.testing.assert_allclose(ImageIndex(index).vectors_ND[0], model.encode_images([file])[0], atol=1e-6)


def test_links_to_folders_are_named(photos: Path, model: Any, run: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (photos / "linked").symlink_to(tmp_path / "elsewhere")
    (photos / "linked.jpg").symlink_to(tmp_path / "elsewhere")
    assert bring_up(tmp_path / "index", photos, model, run).others == ["linked", "linked.jpg"]


def test_where_no_image_can_be_read_the_index_stays(photos: Path, model: Any, run: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    bring_up(index, photos, model, run)
    before = content(index)
    for number, file in enumerate(photos.rglob("*.jpg")):
        file.write_text(f"no image {number}")
    with pytest.raises(
        InputError, match=rf"no image of {photos} can be read, so {index} stays as it is. The first: {photos}/a/1"
    ):
        bring_up(index, photos, model, run)
    assert content(index) == before


def test_a_search_meanwhile_has_one_whole_generation(
    photos: Path, model: Any, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, load, loads = tmp_path / "index", np.load, []
    bring_up(index, photos, model, run, ann=True)
    query = model.encode_images([photos / "a" / "1.jpg"])

    def updating(*arguments: Any) -> Any:
        loads.append(arguments)
        if len(loads) == 2:  # between two files of the generation that it opens
            write_image(photos / "new.jpg", 82)
            bring_up(index, photos, model, run)
        return load(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(np, "load", updating)
        opened = ImageIndex(index)
    assert len(opened) == 10
    (photos / "new.jpg").unlink()
    bring_up(index, photos, model, run)
    assert not opened.generation.exists()
    assert opened.name(int(opened.search(query, 1, ann=True)[0][0, 0])) == "a/1.jpg"  # what it has opened stays


def test_too_few_candidates_are_no_end(
    photos: Path, model: Any, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring_up(tmp_path / "index", photos, model, run, ann=True)
    index, query = ImageIndex(tmp_path / "index"), model.encode_texts(["a cat"])
    whole = index.search(query, 5, ann=False)
    monkeypatch.setattr(neighbors.Neighbors, "candidates", lambda self, queries_QD, top: [np.array([4, 2])] * len(queries_QD))
    for found, expected in zip(index.search(query, 5, ann=True), whole, strict=True):
        assert found.tolist() == expected.tolist()


def test_another_model_folder_or_process_is_refused_in_one_line(photos: Path, model: Any, run: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    bring_up(index, photos, model, run)
    before = content(index)
    other = lightning_modules.load(reading_run(tmp_path / "other", seed=8))
    with pytest.raises(InputError, match=f"{index} was made with another model .{run}. than {tmp_path / 'other'}: ") as refused:
        bring_up(index, photos, other, tmp_path / "other")
    assert "\n" not in str(refused.value)
    with pytest.raises(InputError, match="another model"):
        ImageIndex(index).require_model(other, tmp_path / "other")
    write_image(tmp_path / "elsewhere" / "a.jpg", 1)
    with pytest.raises(InputError, match=f"is of the images in {photos}. Give another --index for {tmp_path / 'elsewhere'}"):
        bring_up(index, tmp_path / "elsewhere", model, run)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"has no images below it, so .* stays as it is"):
        bring_up(index, tmp_path / "empty", model, run)
    lock = take_lock(index / "lock")
    assert lock is not None
    with lock, pytest.raises(InputError, match="is being updated by another process"):
        bring_up(index, photos, model, run)
    with pytest.raises(InputError, match=r"elsewhere is not empty and no index \('a.jpg' is there\)"):
        bring_up(tmp_path / "elsewhere", photos, model, run)
    assert content(index) == before
    ImageIndex(index).require_model(model, run)


def test_a_model_of_the_same_weights_that_pools_otherwise_is_another(photos: Path, run: Path, model: Any, tmp_path: Path) -> None:
    bring_up(tmp_path / "index", photos, model, run)
    other = lightning_modules.load(run)
    other.network.image.pooling = "mean"
    with pytest.raises(InputError, match="was made with another model"):
        ImageIndex(tmp_path / "index").require_model(other, run)
    again = lightning_modules.load(run).double().float()
    ImageIndex(tmp_path / "index").require_model(again, run)


def test_a_folder_and_an_index_that_moved(photos: Path, model: Any, run: Path, tmp_path: Path) -> None:
    bring_up(tmp_path / "index", photos, model, run)
    moved = photos.rename(tmp_path / "moved")
    index = (tmp_path / "index").rename(tmp_path / "new index")
    assert counts(bring_up(index, moved, model, run)) == (9, 0, 9, 0)
    assert ImageIndex(index).path(0) == moved / "a" / "1.jpg"


def test_a_damaged_index_is_named(photos: Path, model: Any, run: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    with pytest.raises(InputError, match=r"is no index: it has no index.json"):
        ImageIndex(index)
    bring_up(index, photos, model, run)
    file = ImageIndex(index).generation / "vectors.npy"
    for damaged in (file.read_bytes()[:-8], b""):
        file.unlink()
        file.write_bytes(damaged)
        with pytest.raises(InputError, match=f"generation-000001 is damaged .*Delete {index} and index again"):
            ImageIndex(index)
    label = index / "index.json"
    label.write_text(label.read_text().replace(SCHEMA, "crosslight.index/1"))
    with pytest.raises(InputError, match="is not of this version"):
        ImageIndex(index)


# ---------------------------------------------------------------------------------------------------------------- search


def naive(vectors_ND: Any, query_D: Any, top: int) -> list[int]:
    """All scores, sorted; equal ones as they come."""
    scores = [float(np.dot(vector, query_D)) for vector in vectors_ND]
    return sorted(range(len(scores)), key=lambda row: -scores[row])[:top]


@pytest.mark.parametrize("top", [1, 4, 9, 50])
def test_the_order_is_that_of_a_naive_search(photos: Path, model: Any, run: Path, tmp_path: Path, top: int) -> None:
    bring_up(tmp_path / "index", photos, model, run, ann=True)
    index = ImageIndex(tmp_path / "index")
    queries = model.encode_texts(["a cat", "the red boat"]), model.encode_images([photos / "a" / "4.jpg"])
    queries_QD = torch.cat(queries).numpy()
    for ann in (False, True, None):
        rows_QK, scores_QK = index.search(queries_QD, top, ann=ann)
        assert rows_QK.shape == scores_QK.shape == (3, min(top, 9))
        for rows, scores, query_D in zip(rows_QK, scores_QK, queries_QD, strict=True):
            assert rows.tolist() == naive(index.vectors_ND, query_D, top)
            np.testing.assert_allclose(scores, index.vectors_ND[rows] @ query_D, atol=1e-6)
    assert index.name(rows_QK[2, 0]) == "a/4.jpg"
    assert scores_QK[2, 0] == pytest.approx(1)


def test_equal_scores_come_in_the_order_of_their_rows() -> None:
    scores = np.array([0.5, 0.1, 0.5, 0.9, 0.5, 0.5], np.float32)
    for top in range(1, 7):
        rows, found = best(scores[:, None], np.ones(1, np.float32), top)
        assert rows.tolist() == [3, 0, 2, 4, 5, 1][:top]
        assert found.tolist() == scores[rows].tolist()


def test_copies_have_one_score_wherever_they_stand_and_whoever_is_compared() -> None:
    draw = np.random.default_rng(0)
    vectors_ND = draw.normal(size=(1003, 96)).astype(np.float32)
    vectors_ND[::7] = vectors_ND[0]
    vectors_ND /= np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    copies = np.arange(0, 1003, 7)
    for _ in range(5):
        query_D = vectors_ND[0] + draw.normal(size=96).astype(np.float32) / 20
        query_D /= np.linalg.norm(query_D)
        rows, scores = best(vectors_ND, query_D, 20)
        assert rows.tolist() == copies[:20].tolist()
        assert len(set(scores.tolist())) == 1
        few = best(vectors_ND, query_D, 3, np.array([700, 5, 7, 14, 8]))
        assert (few[0].tolist(), few[1].tolist()) == ([7, 14, 700], scores[:3].tolist())


def test_approximate_search_is_kept_up_to_date(photos: Path, model: Any, run: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    bring_up(index, photos, model, run)
    with pytest.raises(InputError, match="has no approximate search: `crosslight index --index"):
        ImageIndex(index).search(np.zeros((1, 8), np.float32), ann=True)
    assert counts(bring_up(index, photos, model, run, ann=True)) == (9, 0, 9, 0)
    write_image(photos / "new.jpg", 81)
    (photos / "a" / "1.jpg").unlink()
    bring_up(index, photos, model, run)  # it stays, though nobody asked
    there = ImageIndex(index)
    (rows,), _ = there.search(model.encode_images([photos / "new.jpg"]), 20, ann=True)
    assert sorted(rows.tolist()) == list(range(9))
    assert there.name(rows[0]) == "new.jpg"
