"""Karpathy's split as others have it, read as images of his own layout (karpathy.py has that).

    yerevann   Parquet, a row an image: filepath, filename, imgid, split, sentids, sentences, cocoid, url
               (yerevann/coco-karpathy on the Hugging Face Hub; a file a split)
    nlphuji    CSV, a row an image: filename, img_id, split, and JSON lists in the cells raw and sentids
               (flickr_annotations_30k.csv of nlphuji/flickr30k); or Parquet: caption and sentids as lists, image with its bytes
               (what the Hub made of it, refs/convert/parquet)
    lavis      JSON, a list: image (FOLDER/NAME.jpg) and caption, a text (train: a row a caption) or a list (val, test)
               (coco_karpathy_{train,val,test}.json and flickr30k_{train,val,test}.json of Salesforce's BLIP and LAVIS)

What a layout does not say is not made up: LAVIS has neither the ids of captions (they are FILE#NUMBER then) nor which training
images are Karpathy's restval (they are train).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from datamodules.errors import InputError, shown
from datamodules.files.json_file import read_json
from datamodules.formats.parsing import Entry
from datamodules.formats.table import parquet_rows, read_table

LAYOUTS = "Karpathy's split as yerevann/coco-karpathy (Parquet), nlphuji/flickr30k (CSV, Parquet) or LAVIS (JSON) have it"
_SPLITS = {"train": "train", "restval": "restval", "val": "val", "validation": "val", "test": "test"}
_YEREVANN = ("filename", "filepath", "imgid", "cocoid", "split", "sentids", "sentences")
_NLPHUJI = ("filename", "img_id", "split", "sentids", "raw")
_NLPHUJI_PARQUET = ("filename", "img_id", "split", "sentids", "caption")


def read_copy(path: Path, take_image: Callable[[str, bytes], None] | None = None) -> list[dict[str, Any]]:
    """The entries of `images[]` in Karpathy's layout, of one file.

    Args:
        path: The file.
        take_image: Is given the name and content of every image that is in the file; None leaves them there.

    Raises:
        InputError: The file is of none of these layouts, is damaged, or an entry of it lacks something; says where.
    """
    if path.suffix == ".json":
        return list(_of_lavis(path))
    if path.suffix == ".csv":
        table = read_table(path, _NLPHUJI)
        _require(path, table.columns, _NLPHUJI)
        return [_of_nlphuji(row.values, path, row.place, "raw") for row in table.rows]
    if path.suffix == ".parquet":
        return list(_of_parquet(path, take_image))
    raise InputError(f"{path} is no .parquet, .csv or .json file; expected {LAYOUTS}.")


def _of_parquet(path: Path, take_image: Callable[[str, bytes], None] | None) -> Iterator[dict[str, Any]]:
    wanted = {*_YEREVANN, *_NLPHUJI_PARQUET} | ({"image"} if take_image is not None else set())
    columns, rows = parquet_rows(path, wanted)
    of_yerevann = "sentences" in columns
    _require(path, columns, _YEREVANN if of_yerevann else _NLPHUJI_PARQUET)
    for row in rows:
        entry = _of_yerevann(row.values, path, row.place) if of_yerevann else _of_nlphuji(row.values, path, row.place, "caption")
        if take_image is not None and (image := row.values.get("image")) is not None:
            content = image.get("bytes") if isinstance(image, dict) else None
            if not isinstance(content, bytes):
                raise InputError(f"{path}: {row.place}: 'image' holds no bytes; expected {LAYOUTS}.")
            take_image(entry["filename"], content)
        yield entry


def _require(path: Path, columns: tuple[str, ...], needed: tuple[str, ...]) -> None:
    if missing := [name for name in needed if name not in columns]:
        raise InputError(
            f"{path} has the columns {shown(', '.join(columns))} and lacks {', '.join(missing)}; expected {LAYOUTS}."
        )


def _of_yerevann(values: Mapping[str, Any], path: Path, place: str) -> dict[str, Any]:
    row = Entry(values, path, place, LAYOUTS)
    image = _image(row, row.identity("imgid"), row.items("sentids"), row.items("sentences"))
    return image | {"filepath": row.file("filepath"), "cocoid": _number(row.identity("cocoid"))}


def _of_nlphuji(values: Mapping[str, Any], path: Path, place: str, texts: str) -> dict[str, Any]:
    cells = {**values, **{key: _list(values.get(key), path, place, key) for key in ("sentids", texts)}}
    row = Entry(cells, path, place, LAYOUTS)
    return _image(row, row.identity("img_id"), row.items("sentids"), row.items(texts))


def _list(cell: Any, path: Path, place: str, key: str) -> Any:
    """A list, which a cell of a CSV file has as JSON."""
    if not isinstance(cell, str):
        return cell
    try:
        return json.loads(cell)
    except ValueError as error:
        raise InputError(f"{path}: {place}: {key!r} is {shown(cell, 60)}, no JSON list ({error}); expected {LAYOUTS}.") from None


def _image(row: Entry, number: str, ids: list[Any], texts: list[Any]) -> dict[str, Any]:
    if len(ids) != len(texts):
        raise InputError(f"{row.path}: {row.place} has {len(texts)} captions and {len(ids)} sentids; expected {LAYOUTS}.")
    if not all(isinstance(text, str) for text in texts):
        raise InputError(f"{row.path}: {row.place} has a caption that is no text; expected {LAYOUTS}.")
    image = _number(number)
    return {
        "filename": row.file("filename"),
        "imgid": image,
        "split": _split(row.text("split"), row),
        "sentids": [_number(each) for each in ids],
        "sentences": [
            {"raw": text, "sentid": _number(each), "imgid": image} for each, text in zip(ids, texts, strict=True)
        ],
    }  # fmt: skip


def _split(name: str, row: Entry) -> str:
    if name not in _SPLITS:
        raise InputError(f"{row.path}: {row.place}: split is {shown(name)}, not one of {', '.join(_SPLITS)}.")
    return _SPLITS[name]


def _number(value: Any) -> int | str:
    """Karpathy's ids are numbers; others stay as they are."""
    text = str(value)
    return int(text) if text.isascii() and text.isdecimal() else text


def _of_lavis(path: Path) -> Iterator[dict[str, Any]]:
    split = next((_SPLITS[part] for part in reversed(path.stem.split("_")) if part in _SPLITS), None)
    if split is None:
        raise InputError(
            f"{path}: its name says no split; LAVIS calls its files coco_karpathy_train.json, flickr30k_val.json, ..."
        )
    content = read_json(path, LAYOUTS)
    if not isinstance(content, list):
        raise InputError(f"{path} is no list; expected {LAYOUTS}.")
    images: dict[str, dict[str, Any]] = {}
    for number, value in enumerate(content):
        row = Entry(value, path, f"[{number}]", LAYOUTS)
        place = PurePosixPath(row.file("image"))
        folder = place.parent.name
        # LAVIS has "restval" in its train file: what trains there, of COCO's validation.
        own = "restval" if split == "train" and folder.startswith("val20") else split
        image = images.get(str(place))
        if image is None:
            name = f"{split}-{len(images)}"
            image = images[str(place)] = {"filename": place.name, "imgid": name, "split": own, "sentences": []}
            if folder.startswith(("train20", "val20")):  # COCO's: NAME has its id
                image |= {"filepath": folder, "cocoid": _number(place.stem.rpartition("_")[2])}
        for text in [row.text("caption")] if isinstance(value.get("caption"), str) else row.items("caption"):
            if not isinstance(text, str):
                raise InputError(f"{path}: [{number}] has a caption that is no text; expected {LAYOUTS}.")
            image["sentences"].append({"raw": text, "sentid": f"{place.stem}#{len(image['sentences'])}", "imgid": image["imgid"]})
    yield from images.values()
