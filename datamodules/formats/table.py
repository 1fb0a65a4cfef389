"""Reader of tables: CSV, TSV, JSON lines and Parquet files with a row for each caption, or for each image.

The columns are named by the first line of CSV and TSV files, by the keys of JSON lines, by a Parquet file itself. A row knows its
place ("line 3"), so that every error about it can say where it is. What the values mean is for the caller
(`datamodules/sources/table.py`).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.errors import InputError, shown, some
from datamodules.files.json_file import DECODER, why
from datamodules.files.text import open_bytes, open_text

_ROWS = 256  # of a Parquet file, read at once
EXPECTED = "a table whose rows name an image and its caption"
_FILE_NAME = re.compile(r"\S+\.[A-Za-z0-9]{2,5}")


@dataclass(frozen=True, slots=True)
class Row:
    """A row: `place` is "line 3", or "row 3" of a Parquet file (which has no lines); `values` has the wanted columns, None where
    there is nothing."""

    place: str
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class TableFile:
    """What a table holds: the names of all its columns, and the wanted values of its rows."""

    columns: tuple[str, ...]
    rows: list[Row]


def read_table(path: Path, wanted: Collection[str]) -> TableFile:
    """The rows of a table, with those of the wanted columns that it has.

    Raises:
        InputError: the file is missing, cut short, empty, or of another format than its ending says; names the line.
    """
    read = _READERS.get(path.suffix.lower())
    if read is None:
        raise InputError(f"{path} is no {EXPECTED.removeprefix('a ')}: its name ends in none of {', '.join(ENDINGS)}.")
    table = read(path, wanted)
    if not table.rows:
        raise InputError(f"{path} has no rows; expected {EXPECTED}.")
    return table


def _read_csv(path: Path, wanted: Collection[str]) -> TableFile:
    return _read_separated(path, wanted, ",")


def _read_tsv(path: Path, wanted: Collection[str]) -> TableFile:
    return _read_separated(path, wanted, "\t")


def _read_separated(path: Path, wanted: Collection[str], separator: str) -> TableFile:
    try:
        return _read_quoted(path, wanted, separator)
    except InputError:
        # Programs that quote write tabs within a text so; most files with tabs have no quoting, and a " is a sign like any other.
        if separator == "\t" and (table := _read_unquoted(path, wanted)) is not None:
            return table
        raise


def _read_unquoted(path: Path, wanted: Collection[str]) -> TableFile | None:
    """The rows of a TSV file in which quotes are signs like any other; None where its lines are not all whole rows, or its first
    line has quotes: such a file is quoted, and what is wrong with it is to be said."""
    with open_text(path, EXPECTED, newline="") as file:
        lines = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        columns = tuple(name.strip() for name in next(lines, ()))
        if any('"' in name for name in columns):
            return None
        rows = []
        for fields in lines:
            if fields and len(fields) != len(columns):
                return None
            values = {name: value or None for name, value in zip(columns, fields, strict=False) if name in wanted}
            rows += [Row(f"line {lines.line_num}", values)] if fields else []
    return None if len(set(columns)) < max(2, len(columns)) else TableFile(columns, rows)


class _Noted:
    """Lines that are kept until they are taken."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines, self._kept = iter(lines), list[str]()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self._kept.append(line)
        return line

    def taken(self) -> list[str]:
        kept, self._kept = self._kept, []
        return kept


def _swallowed(lines: Sequence[str], separator: str, columns: int) -> bool:
    """Whether a row of several lines is rather several rows, between two quotes that do not belong together: each line has all
    its cells, and the later ones name a file."""
    pieces = [line.rstrip("\r\n").split(separator) for line in lines]
    return columns > 1 and all(
        len(cells) == columns and (row == 0 or any(_FILE_NAME.fullmatch(cell.strip(' "')) for cell in cells))
        for row, cells in enumerate(pieces)
    )


def _require_whole(path: Path, columns: Sequence[str], odd: Mapping[str, int], separator: str) -> None:
    """Raises InputError where rows (`odd`: their places, and how many fields they have) have not a field for each column."""
    if not odd:
        return
    place, count = next(iter(odd.items()))
    more = separator == "," and count > len(columns)
    quoted = " Put double quotes around a text that holds commas." if more and len(columns) > 1 else ""
    others = list(odd)[1:]
    further = f" {len(others):,} more have another number: {some(others)}." if others else ""
    raise InputError(
        f"{path}: {place} has {count} fields, and the first line names {len(columns)} columns "
        f"({shown(', '.join(columns))}). {otherwise_separated(columns).strip()}".strip()
        + quoted
        + further
    )


def _read_quoted(path: Path, wanted: Collection[str], separator: str) -> TableFile:
    rows = []
    odd: dict[str, int] = {}
    columns: tuple[str, ...] = ()
    with open_text(path, EXPECTED, newline="") as file:
        noted = _Noted(file)
        lines = csv.reader(noted, delimiter=separator, strict=True, skipinitialspace=True)  # 'a.jpg, "Two dogs, running"'
        last = 0
        try:
            columns = tuple(name.strip() for name in next(lines, ()))
            noted.taken()
            if not columns:
                raise InputError(f"{path}: line 1 is empty; it has to name the columns. Remove it.")
            _require_distinct(path, columns)
            last = lines.line_num
            for fields in lines:
                first, last = last + 1, lines.line_num
                place, read = f"line {first}", noted.taken()
                if not fields:
                    continue  # an empty line
                if len(read) > 1 and _swallowed(read, separator, len(columns)):
                    raise InputError(
                        f"{path}: a double quote opens in line {first} and closes in line {last}, though each line there looks "
                        "like a row. A text that holds double quotes stands in double quotes, with each of its own written twice."
                    )
                if len(fields) != len(columns):
                    odd[place] = len(fields)
                    continue
                values = {name: value or None for name, value in zip(columns, fields, strict=True) if name in wanted}
                rows.append(Row(place, values))
        except csv.Error as error:
            _require_whole(path, columns, odd, separator)
            raise InputError(
                f"{path}: what begins at line {last + 1} is not sound CSV ({error}). Most often a double quote is not closed, "
                "or not doubled within a text."
            ) from None
    _require_whole(path, columns, odd, separator)
    return TableFile(columns, rows)


def otherwise_separated(columns: Sequence[str]) -> str:
    """What to do with a table that is one column because something else than its ending says stands between the cells, or because
    its first line names none; empty where it is neither."""
    first = columns[0] if columns else ""
    if len(columns) == 1 and first.lower().startswith("sep="):
        return "Its first line is Excel's sep=: remove it. "
    if len(columns) == 1 and first.startswith("#"):
        return "Its first line is a comment, and has to name the columns: remove it. "
    remedies = {
        ";": "It has ; between its columns: write it with commas, or with tabs as .tsv. ",
        "\t": "It has tabs between its columns: call it .tsv. ",
        "|": "It has | between its columns: write it with commas, or with tabs as .tsv. ",
        ",": "It has commas between its columns: call it .csv. ",
    }
    return next((remedy for each, remedy in remedies.items() if len(columns) == 1 and each in first), "")


def _require_distinct(path: Path, columns: tuple[str, ...]) -> None:
    if twice := [name for name in columns if columns.count(name) > 1]:
        raise InputError(f"{path} has the column {shown(twice[0])} twice; every column needs a name of its own.")


def _read_json_lines(path: Path, wanted: Collection[str]) -> TableFile:
    columns: dict[str, None] = {}
    rows = []
    with open_text(path, EXPECTED) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                value = DECODER.decode(line)
            except (ValueError, RecursionError) as error:
                raise InputError(
                    f"{path}: line {number} is not valid JSON ({why(error)}): {shown(line.strip(), 60)}; expected an object on "
                    'each line, such as {"path": "1.jpg", "caption": "a dog"}.'
                ) from None
            if not isinstance(value, dict):
                raise InputError(
                    f"{path}: line {number} is {shown(value, 60)}, not an object; expected one on each line, such as "
                    '{"path": "1.jpg", "caption": "a dog"}.'
                )
            columns |= dict.fromkeys(value)
            rows.append(Row(f"line {number}", {name: value[name] for name in wanted if name in value}))
    return TableFile(tuple(columns), rows)


def _read_parquet(path: Path, wanted: Collection[str]) -> TableFile:
    columns, rows = parquet_rows(path, wanted)
    return TableFile(columns, list(rows))


def parquet_rows(path: Path, wanted: Collection[str]) -> tuple[tuple[str, ...], Iterator[Row]]:
    """The columns of a Parquet file, and its rows one after the other: those of a file with images do not fit in memory.

    Raises:
        InputError: As `read_table`; of the rows when they are read.
    """
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise InputError(
            f"{path} is a Parquet file, which needs pyarrow ({error}): uv pip install 'crosslight[parquet]', or save it as CSV."
        ) from None
    with open_bytes(path, EXPECTED, archives=True):  # empty files, web pages and the like
        pass

    def damaged(error: Exception) -> InputError:
        reason = " ".join(str(error).split())
        return InputError(f"{path} is not a sound Parquet file ({reason:.200}). Write it again, or save it as CSV.")

    try:
        with ParquetFile(path) as file:
            columns = tuple(file.schema_arrow.names)
    except (ArrowException, OSError) as error:
        raise damaged(error) from None
    _require_distinct(path, columns)

    def rows() -> Iterator[Row]:
        number = 0
        try:
            with ParquetFile(path) as file:
                chosen = [name for name in columns if name in wanted]
                for batch in file.iter_batches(_ROWS, columns=chosen):
                    for values in batch.to_pylist() if chosen else ({} for _ in range(batch.num_rows)):
                        number += 1
                        yield Row(f"row {number}", values)
        except (ArrowException, OSError) as error:
            raise damaged(error) from None

    return columns, rows()


_READERS: dict[str, Callable[[Path, Collection[str]], TableFile]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_json_lines,
    ".parquet": _read_parquet,
}
ENDINGS = tuple(_READERS)
"""Of the files that `read_table` reads."""
