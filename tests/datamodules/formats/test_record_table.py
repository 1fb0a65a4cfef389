"""Records in arrays, and in a file of them: they give what the records gave that they were made of."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from datamodules.errors import InputError
from datamodules.formats.record_file import open_records, write_records
from datamodules.formats.record_table import CaptionBlock, CaptionRows, ChainedTables, RecordTable
from datamodules.loading.split_captions import SplitCaptions
from datamodules.loading.whole_split import counts_of, files_of, ids_of
from datamodules.records import Box, Caption, ImageRecord, Phrase

TEXTS = ["a dog", "", "Zürich", "漢字 und mehr", "half \udcff of a character", "two  spaces\nand a line"]


def boxes(rng: random.Random, kind: type) -> tuple[Box, ...]:
    return tuple(Box(*(kind(rng.randrange(99)) for _ in range(4))) for _ in range(rng.randrange(3)))


def phrases(rng: random.Random, kind: type) -> tuple[Phrase, ...]:
    chains, categories = ["0", "17", "283585"], ["people", "people/vehicles", "notvisual"]
    return tuple(
        Phrase(rng.randrange(5), 9, rng.choice(chains), rng.choice(categories), boxes(rng, kind)) for _ in range(rng.randrange(3))
    )


def words(rng: random.Random, ids: str = "{}#{}") -> list[ImageRecord]:
    """Captions as text, images in several folders, with a domain or without."""
    return [
        ImageRecord(
            str(1000 + number),
            Path(f"/data/{rng.choice(['a', 'b', 'é'])}/{number}.jpg"),
            tuple(Caption(ids.format(number, place), rng.choice(TEXTS)) for place in range(rng.randrange(4))),
            rng.choice([None, "in-domain", "out-domain"]),
        )
        for number in range(40)
    ]


def entities(rng: random.Random, kind: type = int) -> list[ImageRecord]:
    """With phrases and boxes; whole numbers stay whole."""
    records = words(rng)
    return [replace(r, captions=tuple(replace(c, phrases=phrases(rng, kind)) for c in r.captions)) for r in records]


def tokens(rng: random.Random) -> list[ImageRecord]:
    """As text databases give them: no files, a name among the regions, captions as ids, some of them none at all."""
    records = words(rng)
    return [
        replace(
            record, path=None, domain=None, regions=f"coco_train2014_{record.image_id}.npz",
            captions=tuple(replace(c, token_ids=tuple(rng.choices(range(30_000), k=rng.randrange(4)))) for c in record.captions),
        )
        for record in records
    ]  # fmt: skip


def mixed(rng: random.Random) -> list[ImageRecord]:
    """Some with a file, some with a name among the regions; ids that look like numbers and are none, or are too large."""
    return [
        replace(record, image_id=f"{row:02}", path=rng.choice([record.path, None]), regions=rng.choice([None, "x.npz"]))
        for row, record in enumerate(words(rng, ids="9{:020}{}"))
    ]


KINDS: dict[str, Callable[[random.Random], list[ImageRecord]]] = {
    "words": words,
    "numbers": lambda rng: words(rng, ids="{}{:03}"),
    "entities": entities,
    "float boxes": lambda rng: entities(rng, float),
    "tokens": tokens,
    "large tokens": lambda rng: [ImageRecord("1", None, (Caption("1", "", token_ids=(2**40, 1)),))],
    "mixed": mixed,
    "none": lambda rng: [],
}


@pytest.fixture(params=KINDS)
def records(request: pytest.FixtureRequest) -> list[ImageRecord]:
    return KINDS[request.param](random.Random(0))


def table_of(records: Sequence[ImageRecord]) -> RecordTable:
    table = RecordTable.of(records)
    assert table is not None
    return table


def in_file(path: Path, records: Sequence[ImageRecord]) -> RecordTable:
    write_records(path, {"train": table_of(records)}, {"counts": 7})
    return open_records(path)[0]["train"]


@pytest.mark.parametrize("kept", [False, True])
def test_a_table_gives_its_records(records: list[ImageRecord], kept: bool, tmp_path: Path) -> None:
    table = in_file(tmp_path / "kept.safetensors", records) if kept else table_of(records)
    assert list(table) == records
    assert repr(list(table)) == repr(records), "numbers of the same type, too"
    assert [table[row] for row in range(-len(records), len(records))] == [*records, *records]
    with pytest.raises(IndexError):
        table[len(records)]
    for piece in (slice(3), slice(5, 9), slice(9, 5), slice(-7, None), slice(2, 30, 7), slice(None, None, -1)):
        assert table[piece] == records[piece]
        assert len(table[piece]) == len(records[piece])
    assert table[5:20][3:9] == records[5:20][3:9]


def test_what_is_had_of_all_at_once_equals_a_loop(records: list[ImageRecord]) -> None:
    table, third = table_of(records), len(records) // 3
    for view, naive in ((table, records), (table[third:-third], records[third:-third])):
        assert list(ids_of(view)) == list(ids_of(naive)) == [record.image_id for record in naive]
        assert counts_of(view).tolist() == counts_of(naive).tolist() == [len(record.captions) for record in naive]
        assert list(files_of(view)) == list(files_of(naive))
        assert [None if file is None else Path(*file) for file in files_of(view)] == [record.path for record in naive]
        captions = [caption for record in naive for caption in record.captions]
        for rows in (SplitCaptions(view), SplitCaptions(naive)):
            assert list(rows) == captions
            assert [rows[row] for row in range(len(rows))] == captions
            assert [text for texts in rows.texts() for text in texts] == [caption.text for caption in captions]
            counts = [len(caption.token_ids) for caption in captions if caption.token_ids is not None]
            found = rows.token_counts()
            assert ([] if found is None else found.tolist()) == counts
            assert rows.largest_token() == max((token for c in captions for token in c.token_ids or ()), default=None)
            owners = [image for image, record in enumerate(naive) for _ in record.captions]
            assert rows.images().tolist() == owners == [rows.image_of(row) for row in range(len(rows))]


def test_captions_are_a_tuple_to_whoever_looks(tmp_path: Path) -> None:
    record = words(random.Random(1))[3]
    (found,) = table_of([record])
    assert found == record
    assert record == found
    assert hash(found) == hash(record)
    assert repr(found) == repr(record)
    assert found.captions[1:] == record.captions[1:]
    assert found != replace(record, captions=record.captions[:1])
    again = pickle.loads(pickle.dumps(found))
    assert again == record
    assert isinstance(again.captions, tuple), "one record does not take its whole table along"


@pytest.mark.parametrize("kept", [False, True])
def test_tables_travel_to_other_processes(records: list[ImageRecord], kept: bool, tmp_path: Path) -> None:
    table = in_file(tmp_path / "kept.safetensors", records) if kept else table_of(records)
    names = [f"{row}.npz" for row in range(len(records[4:]))]
    named = [replace(record, regions=name) for record, name in zip(records[4:], names, strict=True)]
    both = [replace(record, image_id=f"part/{record.image_id}", regions=f"part/{record.regions}") for record in named]
    later = table[4:]
    assert isinstance(later, RecordTable)
    views = {
        "whole": (table, records),
        "rows": (later, records[4:]),
        "prefix": (table.with_prefix("part/"), [replace(record, image_id=f"part/{record.image_id}") for record in records]),
        "regions": (later.with_regions(names), named),
        "both": (later.with_regions(names).with_prefix("part/", regions=True), both),
    }
    for name, (view, expected) in views.items():
        assert view == expected, name
        assert pickle.loads(pickle.dumps(view)) == expected, name
    if kept:
        assert len(pickle.dumps(table)) < 500, "the file is opened there"


def test_chained_tables() -> None:
    parts = [words(random.Random(seed)) for seed in range(3)]
    parts[1] = []
    records = [record for part in parts for record in part]
    chain = ChainedTables([table_of(part) for part in parts])
    assert list(chain) == records
    assert [chain[row] for row in range(-len(records), len(records))] == [*records, *records]
    for piece in (slice(0, 50), slice(45, 60), slice(38, 41), slice(9, 5), slice(None, None, 7)):
        assert list(chain[piece]) == records[piece]
        rows = SplitCaptions(chain[piece])
        assert list(rows) == [caption for record in records[piece] for caption in record.captions]
        assert [text for texts in rows.texts() for text in texts] == [caption.text for caption in rows]
        assert list(ids_of(chain[piece])) == [record.image_id for record in records[piece]]
        assert list(files_of(chain[piece])) == list(files_of(records[piece]))
        assert rows.token_counts() is rows.largest_token() is None
    ids = ChainedTables([table_of(tokens(random.Random(seed))) for seed in range(2)])
    assert SplitCaptions(ids).largest_token() == max(
        token for record in ids for c in record.captions for token in c.token_ids or ()
    )
    assert pickle.loads(pickle.dumps(chain)) == chain


def test_a_block_of_captions_becomes_columns_as_it_is() -> None:
    block, records = CaptionBlock(), []
    for number in range(5):
        start = len(block)
        for place in range(number % 3):
            block.add(10 * number + place, f"phrase é {number}")
        records.append(ImageRecord(str(number), None, CaptionRows(block, start, len(block))))
    table = table_of(records)
    assert list(table) == records
    assert np.shares_memory(table.arrays["texts.bytes"], block.arrays()["texts.bytes"])
    others = CaptionBlock()
    others.add(1, "x")
    strange = ImageRecord("9", None, CaptionRows(others, 0, 1))
    for lacking in (
        records[:2],
        records[1:3][::-1],
        [*records, strange],
        [*records, ImageRecord("9", None, (Caption("1", "x"),))],
    ):
        assert RecordTable.of(lacking) is None
    assert len(table_of([ImageRecord("1", None, CaptionRows(CaptionBlock(), 0, 0))])) == 1
    with pytest.raises(UnicodeEncodeError):
        others.add(2, "\ud800")
    assert [others.caption(row) for row in range(len(others))] == [Caption("1", "x")]


@dataclass(frozen=True)
class Own(ImageRecord):
    """With more than columns know."""

    score: float = 0.0


@dataclass(frozen=True)
class OwnCaption(Caption):
    """Likewise."""


def test_records_that_arrays_would_lose_something_of_are_no_table() -> None:
    assert RecordTable.of([Own("1", None, ())]) is None
    assert RecordTable.of([ImageRecord("1", None, (OwnCaption("1", "x"),))]) is None
    assert RecordTable.of([ImageRecord("1", None, (Caption("1", "x"), Caption("2", "", token_ids=(1,))))]) is None


# ------------------------------------------------------------------------------------------------------------ the file


def test_a_file_gives_its_splits_and_facts_back(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    splits = {"train": words(random.Random(0)), "a/b": tokens(random.Random(1)), "val": []}
    write_records(path, {split: table_of(records) for split, records in splits.items()}, {"counts": {"x": [1, None]}})
    found, facts = open_records(path)
    assert list(found) == list(splits)
    assert found == splits
    assert facts == {"counts": {"x": [1, None]}}
    with pytest.raises(ValueError, match="read-only"):
        found["train"].arrays["texts.bytes"][0] = 0
    (tmp_path / "a.safetensors").unlink()
    assert found == splits, "who has opened it may go on"


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda raw: raw[:-1],
    "cut in the header": lambda raw: raw[:50],
    "empty": lambda raw: b"",
    "longer": lambda raw: raw + b"\0",
    "a byte changed": lambda raw: raw[:-3] + bytes([raw[-3] ^ 1]) + raw[-2:],
    "a fact changed": lambda raw: raw.replace(b'\\"counts\\": 7', b'\\"counts\\": 8'),
    "another kind of numbers": lambda raw: raw.replace(b'"U32"', b'"I32"'),
    "a text": lambda raw: b"records\n" * 1000,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_seen(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    in_file(path, words(random.Random(0)))
    sound = path.read_bytes()
    path.write_bytes(DAMAGES[damage](sound))
    assert path.read_bytes() != sound
    with pytest.raises(InputError, match=r"a\.safetensors is damaged, or of another kind"):
        open_records(path)


def test_other_safetensors_are_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"weight": np.zeros(3, np.float32)}, path)
    with pytest.raises(InputError, match="of another kind"):
        open_records(path)


def test_the_library_reads_the_file(tmp_path: Path) -> None:
    table = in_file(tmp_path / "a.safetensors", words(random.Random(0)))
    found = load_file(tmp_path / "a.safetensors")
    assert {name: column.tolist() for name, column in found.items()} == {
        f"0/{name}": column.tolist() for name, column in table.arrays.items()
    }
