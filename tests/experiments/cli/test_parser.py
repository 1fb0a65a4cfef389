"""The parser of every command: what is handed on, what was meant, options made of a record."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from datamodules.errors import InputError
from experiments.cli._parser import (
    Parser,
    add_fields,
    comma_list,
    given_fields,
    number_or,
    refuse_given,
    require_apart,
    require_ours,
    require_picture,
)


@dataclass(frozen=True)
class Wishes:
    """What is wished for.

    Args:
        place: Where to, 100 % sure.
        how_many: How many of
            them.
        loud: Whether it is said aloud.
        kind: Which.
        lines: Further ones.
        rate: Of each.
    """

    place: str | None = None
    how_many: int = 3
    loud: bool = False
    kind: Literal["a", "b"] = "a"
    lines: list[str] = field(default_factory=list)
    rate: float | None = None


def parser_of_wishes() -> Parser:
    parser = Parser(prog="crosslight wish")
    add_fields(parser, Wishes, "--wish.", joint="-")
    return parser


def test_a_record_is_the_schema_of_options() -> None:
    parser = parser_of_wishes()
    assert given_fields(parser.parse_args([]), Wishes, "--wish.") == {}
    words = ["--wish.how-many=5", "--wish.loud", "--wish.lines=[one, 'two: 2']", "--wish.kind", "b", "--wish.rate=0.5"]
    given = given_fields(parser.parse_args(words), Wishes, "--wish.")
    assert given == {"how_many": 5, "loud": True, "lines": ["one", "two: 2"], "kind": "b", "rate": 0.5}
    assert Wishes(**given).place is None
    assert given_fields(parser.parse_args(["--wish.lines", "module load x", "--no-wish.loud"]), Wishes, "--wish.") == {
        "lines": ["module load x"], "loud": False,
    }  # fmt: skip
    text = " ".join(parser.format_help().split())
    assert "How many of them. (default: 3)" in text
    assert "Where to, 100 % sure." in text
    for words in (["--wish.how-many=many"], ["--wish.kind=c"], ["--wish.lines=[{a: 1}]"], ["--wish.lines=[a"]):
        with pytest.raises(InputError, match=rf"argument {words[0].partition('=')[0]}.*See crosslight wish --help"):
            parser.parse_args(words)


def test_what_was_meant() -> None:
    parser = Parser(prog="crosslight x")
    below = parser.add_subparsers(dest="action", prog=parser.prog)
    one, two = below.add_parser("one"), below.add_parser("two")
    one.add_argument("--dry-run", action="store_true")
    two.add_argument("--seeds")
    with pytest.raises(InputError, match=r"--dry-run \(--dry-run is of `crosslight x one`\)"):
        parser.parse_args(["two", "--dry-run"])
    with pytest.raises(InputError, match=r"--seed=3 \(Did you mean --seeds\?\)"):
        parser.parse_args(["two", "--seed=3"])
    with pytest.raises(InputError, match=r"^unrecognized arguments: --quite-another\. See crosslight x --help\.$"):
        parser.parse_args(["two", "--quite-another"])


def test_what_is_not_known_is_handed_on_in_order() -> None:
    parser = Parser(prog="crosslight x")
    parser.add_argument("-c", action="append")
    parser.keep_others("rest")
    options = parser.parse_args(["--a=1", "-c", "f", "--b", "-1", "x y", "--c.d", "z"])
    assert (options.c, options.rest) == (["f"], ["--a=1", "--b", "-1", "x y", "--c.d", "z"])


def test_values() -> None:
    assert comma_list("a, b c") == ["a", "b", "c"]
    assert (number_or("last")("3"), number_or("last")("last")) == (3, "last")
    parser = Parser(prog="crosslight x")
    parser.add_argument("--layer", type=number_or("last", "mean"))
    parser.add_argument("--search-seed", type=int)
    with pytest.raises(InputError, match="'first' is neither a number from 0 nor last or mean"):
        parser.parse_args(["--layer", "first"])
    refuse_given(parser.parse_args([]), ["search_seed"], "is of sweep files.")
    with pytest.raises(InputError, match=r"^--search-seed is of sweep files\.$"):
        refuse_given(parser.parse_args(["--search-seed=0"]), ["search_seed"], "is of sweep files.")


def test_an_empty_path_is_not_the_working_folder() -> None:
    """Of a variable that is not set."""
    parser = Parser(prog="x")
    parser.add_argument("--out", type=Path)
    parser.add_argument_group("more").add_argument("--maps", type=Path)
    assert parser.parse_args(["--out", "."]).out == Path(".")
    for option in ("--out", "--maps"):
        with pytest.raises(InputError, match=f"{option}: is empty: give a path"):
            parser.parse_args([option, ""])


def test_what_is_written_replaces_nothing_that_is_read_or_was_written_by_others(tmp_path: Path) -> None:
    table, link = tmp_path / "captions.csv", tmp_path / "link.csv"
    table.write_text("path,caption\n")
    link.symlink_to(table)
    require_apart(tmp_path / "new.csv", "--csv", [table])
    require_apart(None, "--csv", [table])
    for out in (table, link):
        with pytest.raises(InputError, match=r"which is read: writing would destroy it\. Give another file"):
            require_apart(out, "--csv", [table])
        with pytest.raises(InputError, match=r"is there, and --csv did not write it\. Give another name, or delete it"):
            require_ours(out, "--csv", "run,")
    require_ours(tmp_path / "new.csv", "--csv", "run,")
    table.write_text("run,name\n")
    require_ours(table, "--csv", "run,")
    require_picture(tmp_path / "found.PNG", "--sheet")
    with pytest.raises(InputError, match=r"give a name that ends in \.png, "):
        require_picture(tmp_path / "found.xyz", "--sheet")
