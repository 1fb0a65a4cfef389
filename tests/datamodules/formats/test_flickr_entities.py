"""Flickr30k Entities: its files read and written, broken ones named, phrases as word pieces."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from datamodules.errors import InputError
from datamodules.formats.flickr_entities import (
    read_annotation,
    read_entities,
    read_sentences,
    read_unrelated,
    word_pieces,
    write_entities,
)
from datamodules.records import Box, Caption, Phrase

SENTENCES = """\
[/EN#18/people A child] in [/EN#19/clothing a pink dress] is climbing up [/EN#20/other a set of stairs] in [/EN#23/scene a hall] .
[/EN#18/people A girl] leaves [/EN#21/vehicles/scene the old bus] with [/EN#0/notvisual no one] .
"""
ANNOTATION = """\
<annotation>
\t<filename>7.jpg</filename>
\t<size>
\t\t<width>375</width>
\t\t<height>500</height>
\t\t<depth>3</depth>
\t</size>
\t<object>
\t\t<name>18</name>
\t\t<name>19</name>
\t\t<bndbox>
\t\t\t<xmin>1</xmin>
\t\t\t<ymin>152</ymin>
\t\t\t<xmax>108</xmax>
\t\t\t<ymax>500</ymax>
\t\t</bndbox>
\t</object>
\t<object>
\t\t<name>20</name>
\t\t<bndbox>
\t\t\t<xmin>10</xmin>
\t\t\t<ymin>11</ymin>
\t\t\t<xmax>12</xmax>
\t\t\t<ymax>13</ymax>
\t\t</bndbox>
\t</object>
\t<object>
\t\t<name>20</name>
\t\t<bndbox>
\t\t\t<xmin>20</xmin>
\t\t\t<ymin>21</ymin>
\t\t\t<xmax>22</xmax>
\t\t\t<ymax>23</ymax>
\t\t</bndbox>
\t</object>
\t<object>
\t\t<name>21</name>
\t\t\t<scene>1</scene>
\t\t\t<nobndbox>1</nobndbox>
\t</object>
\t<object>
\t\t<name>23</name>
\t\t<scene>0</scene>
\t\t<nobndbox>1</nobndbox>
\t</object>
</annotation>"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder, name, content in (("Sentences", "7.txt", SENTENCES), ("Annotations", "7.xml", ANNOTATION)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(content)
    return tmp_path


def test_captions_phrases_and_boxes(root: Path) -> None:
    image = read_entities(root, "7")
    first, second = image.captions
    assert (first.caption_id, second.caption_id) == ("7#0", "7#1")
    assert first.text == "A child in a pink dress is climbing up a set of stairs in a hall ."
    assert [first.text[p.start : p.end] for p in first.phrases] == ["A child", "a pink dress", "a set of stairs", "a hall"]
    assert [p.chain for p in first.phrases] == ["18", "19", "20", "23"]
    assert [p.category for p in second.phrases] == ["people", "vehicles/scene", "notvisual"]
    assert [second.text[p.start : p.end] for p in second.phrases] == ["A girl", "the old bus", "no one"]
    # pixels from 1 with the last one included -> edges from 0, the right and bottom one exclusive; a box of two names is both's
    shared = Box(0, 151, 108, 500)
    assert [p.boxes for p in first.phrases] == [(shared,), (shared,), (Box(9, 10, 12, 13), Box(19, 20, 22, 23)), ()]
    assert [p.boxes for p in second.phrases] == [(shared,), (), ()]
    annotation = image.annotation
    assert (annotation.width, annotation.height) == (375, 500)
    assert annotation.box_chains == (("18", "19"), ("20",), ("20",))
    assert annotation.scenes == {"21"}
    assert annotation.not_boxed == {"21", "23"}
    np.testing.assert_allclose(annotation.fractions_K4()[0], [0, 151 / 500, 108 / 375, 1], rtol=1e-6)


def test_white_space_as_the_official_reader_joins_it(tmp_path: Path) -> None:
    path = tmp_path / "9.txt"
    path.write_bytes("  Zwei\u2028  [/EN#1/people  Männer\tim Wald] \r\n\n[/EN#2/other x]\n".encode())
    first, second = read_sentences(path)
    assert (first.text, first.phrases) == ("Zwei Männer im Wald", (Phrase(5, 19, "1", "people"),))
    assert (second.caption_id, second.text) == ("9#1", "x")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("[/EN#1/people A man", r"line 2: the phrase '\[/EN#1/people' is not closed"),
        ("[/EN#1/people A [/EN#2/other red] man]", r"line 2: '\[/EN#2/other' begins a phrase inside of '\[/EN#1/people'"),
        ("A man] walks", "line 2: ']' after 'man' closes no phrase"),
        ("[/EN#1/people ] walks", "line 2: ']' stands by itself"),
        ("[/EN#1 A man]", r"line 2: '\[/EN#1' is no mark-up of a phrase"),
        ("[/EN#x/people A man]", r"line 2: '\[/EN#x/people' is no mark-up"),
        ("[/EN#1//people A man]", "is no mark-up"),
        ("[A man]", r"line 2: '\[A' is no mark-up"),
    ],
)
def test_broken_lines_are_named(root: Path, line: str, problem: str) -> None:
    path = root / "Sentences" / "7.txt"
    path.write_text(f"Fine .\n{line}\n")
    with pytest.raises(InputError, match=rf"7\.txt, {problem}" if problem.startswith("line") else problem):
        read_entities(root, "7")


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("</annotation>", "", r"not valid XML \(no element found: line 46.*ends too early"),
        ("<xmax>108</xmax>", "<xmax>376</xmax>", r"object 1 \(18, 19\): the box xmin 1, .* is not in an image of 375 x 500"),
        ("<xmin>10</xmin>", "<xmin>13</xmin>", r"object 2 \(20\): the box xmin 13, .* xmax 12"),
        ("<xmin>1</xmin>", "<xmin>0</xmin>", r"object 1 \(18, 19\): the box xmin 0"),
        ("<ymin>21</ymin>", "<ymin>2.5</ymin>", r"object 3 \(20\): <ymin> is '2.5'; expected a whole number"),
        ("<scene>0</scene>", "", r"object 5 \(23\): <scene> is ''"),
        ("<name>21</name>", "", r"object 4 \(no name\): expected one or more <name>"),
        ("<name>21</name>", "<name>dog</name>", r"object 4 \('dog'\)"),
        ("<height>500</height>", "", "size: <height> is ''"),
        ("<width>375</width>", "<width>0</width>", "the size 0 x 500"),
        ("<annotation>", "<annotation><size/>", "size: <width> is ''"),
        ("<annotation>", '<!DOCTYPE a [<!ENTITY b "c">]><annotation>', "declares a document type or entities"),
        ("<annotation>", "<!DOCTYPE annotation><annotation>", "declares a document type"),
        ("<annotation>", '<?xml version="1.0" encoding="klingon"?><annotation>', "klingon|encoding"),
    ],
)
def test_broken_annotations_are_named(root: Path, old: str, new: str, problem: str) -> None:
    path = root / "Annotations" / "7.xml"
    assert ANNOTATION.count(old) == 1
    path.write_text(ANNOTATION.replace(old, new))
    with pytest.raises(InputError, match=rf"7\.xml.*({problem})"):
        read_annotation(path)


def test_an_external_entity_is_not_read(root: Path) -> None:
    (root / "secret").write_text("18")
    path = root / "Annotations" / "7.xml"
    entity = f'<!DOCTYPE a [<!ENTITY b SYSTEM "file://{root}/secret">]><annotation>'
    path.write_text(ANNOTATION.replace("<annotation>", entity).replace("<name>20</name>", "<name>&b;</name>"))
    with pytest.raises(InputError, match="never do; it is not read"):
        read_annotation(path)


def test_missing_and_foreign_files_are_named(root: Path) -> None:
    with pytest.raises(InputError, match=r"Annotations/8\.xml does not exist"):
        read_entities(root, "8")
    with pytest.raises(InputError, match=r"8\.txt does not exist"):
        read_sentences(root / "Sentences" / "8.txt")
    (root / "Sentences" / "7.txt").write_bytes(b"A man \xff\n")
    with pytest.raises(InputError, match=r"7\.txt is not a text file in UTF-8 \(line 1: invalid start byte at 0xff\)"):
        read_entities(root, "7")
    (root / "Sentences" / "7.txt").write_bytes(b"\n")
    with pytest.raises(InputError, match=r"7\.txt has no captions"):
        read_entities(root, "7")
    (root / "Annotations" / "7.xml").write_text("<page><size/></page>")
    with pytest.raises(InputError, match="it is no annotation"):
        read_entities(root, "7")


def test_unrelated_captions_count_from_one_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "UNRELATED_CAPTIONS"
    path.write_text("# format: <imageID> <sentence number>\n129602216 5\n4671832284 1")
    assert read_unrelated(path) == {("129602216", 4), ("4671832284", 0)}
    path.write_text("# format\n129602216 0\n")
    with pytest.raises(InputError, match="line 2: '129602216 0' is not an image id"):
        read_unrelated(path)


# ------------------------------------------------------------------------------------------------------ writing


def test_what_was_read_is_written_back(root: Path) -> None:
    image = read_entities(root, "7")
    size = (image.annotation.width, image.annotation.height)
    write_entities(root / "copy", "7", size, image.captions, scenes={"21"})
    assert (root / "copy" / "Sentences" / "7.txt").read_text() == SENTENCES
    copy = read_entities(root / "copy", "7")
    assert copy.captions == image.captions
    assert (copy.annotation.boxes, copy.annotation.box_chains) == (image.annotation.boxes, image.annotation.box_chains)
    assert (copy.annotation.scenes, copy.annotation.not_boxed) == ({"21"}, {"23"})
    # in the layout of the released files, tab by tab: all that precedes the flags, which differ for chain 21 only
    before = ANNOTATION.split("\t<object>\n\t\t<name>21")[0]
    assert (root / "copy" / "Annotations" / "7.xml").read_text().startswith(before)


def test_boxes_grow_to_whole_pixels(tmp_path: Path) -> None:
    phrase = Phrase(0, 5, "1", "animals", (Box(3.2, 0.0, 4.1, 7.0),))
    write_entities(tmp_path, "1", (8, 8), [Caption("a", "A dog sits .", (phrase,))])
    assert read_entities(tmp_path, "1").captions[0].phrases[0].boxes == (Box(3, 0, 5, 7),)


@pytest.mark.parametrize(
    ("caption", "problem"),
    [
        (Caption("a", "A  dog ."), "words are set apart by single spaces"),
        (Caption("a", "A [dog] ."), "brackets are mark-up"),
        (
            Caption("a", "A dog.", (Phrase(0, 5, "1", "animals"),)),
            "phrase 0:5 of 'A dog.' overlaps another or is not of whole words",
        ),
        (Caption("a", "A dog .", (Phrase(3, 5, "1", "animals"),)), "phrase 3:5"),
        (Caption("a", "A dog .", (Phrase(0, 5, "1", "animals"), Phrase(2, 5, "2", "other"))), "phrase 2:5"),
        (Caption("a", "A dog .", (Phrase(0, 5, "one", "animals"),)), "chain 'one'"),
        (Caption("a", "A dog .", (Phrase(0, 5, "1", ""),)), "category ''"),
        (Caption("a", "A dog .", (Phrase(0, 5, "1", "big animals"),)), "category 'big animals'"),
        (Caption("a", "A dog .", (Phrase(0, 5, "1", "animals", (Box(0, 0, 9, 1),)),)), r"is not in an image of 8 x 8"),
        (Caption("a", "A dog .", (Phrase(0, 5, "0", "notvisual", (Box(0, 0, 1, 1),)),)), "chain 0 has boxes"),
        (Caption("a", "it it", (Phrase(0, 2, "1", "x", (Box(0, 0, 1, 1),)), Phrase(3, 5, "1", "x"))), "one set of boxes"),
    ],
)
def test_captions_that_the_format_cannot_hold(tmp_path: Path, caption: Caption, problem: str) -> None:
    with pytest.raises(InputError, match=rf"image 1.*{re.escape(problem)}" if "(" not in problem else problem):
        write_entities(tmp_path, "1", (8, 8), [caption])
    assert not (tmp_path / "Sentences").exists()


# ------------------------------------------------------------------------------------------------- word pieces


def tokenize_word(word: str) -> list[int]:
    """Two letters a piece; nothing for a character that a tokenizer drops."""
    return [] if word == "\u200b" else [ord(word[row]) for row in range(0, len(word), 2)]


def test_phrases_as_word_pieces(root: Path) -> None:
    caption = read_sentences(root / "Sentences" / "7.txt")[0]
    found = word_pieces(caption.text, caption.phrases, tokenize_word)
    words = caption.text.split()
    assert list(found.input_ids) == [piece for word in words for piece in tokenize_word(word)]
    # A|ch il d|in|a|pi nk|dr es s ... : one, three (child), one (in), one (a), two (pink), three (dress)
    assert found.phrases[:2] == ((0, 1, 2, 3), (5, 6, 7, 8, 9, 10))
    for phrase, positions in zip(caption.phrases, found.phrases, strict=True):
        expected = [piece for word in caption.text[phrase.start : phrase.end].split() for piece in tokenize_word(word)]
        assert [found.input_ids[position] for position in positions] == expected


def test_dropped_words_repeated_words_and_glued_points() -> None:
    phrases = (Phrase(0, 2, "1", "x"), Phrase(3, 4, "2", "x"), Phrase(8, 11, "3", "x"))
    found = word_pieces("ab \u200b ab dog.", phrases, tokenize_word)
    assert found.input_ids == (ord("a"), ord("a"), ord("d"), ord("g"))
    assert found.phrases == ((0,), (), (2, 3))


def _bert() -> Callable[[str], list[int]]:
    """A WordPiece tokenizer in the way that UNITER uses one."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    pieces = ["[UNK]", "A", "child", "climb", "##ing", "up", "play", "##house", ".", "'", "s"]
    tokenizer = Tokenizer(models.WordPiece({piece: row for row, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return lambda word: tokenizer.encode(word, add_special_tokens=False).ids


def test_word_pieces_of_a_real_tokenizer() -> None:
    text = "A child climbing up child's playhouse ."
    phrases = (Phrase(0, 7, "1", "people"), Phrase(20, 37, "2", "other"))
    found = word_pieces(text, phrases, _bert())
    assert found.input_ids == (1, 2, 3, 4, 5, 2, 9, 10, 6, 7, 8)
    assert found.phrases == ((0, 1), (5, 6, 7, 8, 9))
