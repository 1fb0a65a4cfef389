"""Flickr30k Entities: captions whose phrases are tied to boxes, read from and written to the released files (v1.0 README and
flickr30k_entities_utils.py of BryanPlummer/flickr30k_entities).

`Sentences/ID.txt` has one caption a line, its phrases as `[/EN#CHAIN/TYPE/TYPE words of the phrase]`; phrases of one image that
name the same thing share a chain, and chain 0 (type notvisual) means none. `Annotations/ID.xml` has the photograph's size and
objects: one or more chains (`name`), and a box or the flags `scene` (the whole picture) and `nobndbox` (not to be seen).
Boxes are in pixels of the original photograph.

Then what relations need: where a phrase's words are among the word pieces.

Legend: K annotated boxes of an image.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree.ElementTree import Element, ElementTree, ParseError, SubElement, indent

import numpy as np
import numpy.typing as npt
from defusedxml import DefusedXmlException  # type: ignore[import-untyped]
from defusedxml.ElementTree import parse as parse_xml  # type: ignore[import-untyped]

from datamodules.errors import InputError, shown
from datamodules.files.text import open_bytes, read_text
from datamodules.formats.uniter.text_database import word_pieces_of
from datamodules.records import Box, Caption, Phrase

_NUMBER = re.compile(r"[0-9]{1,18}")
NOT_VISUAL = "0"  # the chain of phrases that were not annotated


# ------------------------------------------------------------------------------------------------------ reading


@dataclass(frozen=True, slots=True)
class Annotation:
    """The boxes of one image, and the chains that have none.

    `boxes` are in file order, which is the order of region features taken from them; box k shows the chains `box_chains[k]`
    (several where one box was drawn for several things, such as two names of one person). `scenes` are chains of the whole
    picture, `not_boxed` those that are not to be seen in it (a chain can be in both). Width and height in pixels of the original.
    """

    width: int
    height: int
    boxes: tuple[Box, ...]
    box_chains: tuple[tuple[str, ...], ...]
    scenes: frozenset[str] = frozenset()
    not_boxed: frozenset[str] = frozenset()

    def boxes_of(self, chain: str) -> tuple[Box, ...]:
        return tuple(box for box, chains in zip(self.boxes, self.box_chains, strict=True) if chain in chains)

    def fractions_K4(self) -> npt.NDArray[np.float32]:
        """All boxes: left, top, right, bottom as fractions of the image."""
        boxes_K4 = np.array([(box.left, box.top, box.right, box.bottom) for box in self.boxes], np.float64).reshape(-1, 4)
        return (boxes_K4 / np.array([self.width, self.height] * 2, np.float64)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class EntitiesImage:
    """One image of Entities: its captions ("ID#0", "ID#1", ..., in file order) with phrases that carry their chain's boxes (in
    pixels of the original photograph), and the annotation they come from."""

    image_id: str
    captions: tuple[Caption, ...]
    annotation: Annotation


def read_entities(root: Path, image_id: str) -> EntitiesImage:
    """`root/Sentences/ID.txt` and `root/Annotations/ID.xml`.

    Raises:
        InputError: a file is missing or malformed; the message says where in it.
    """
    annotation = read_annotation(root / "Annotations" / f"{image_id}.xml")
    captions = []
    for caption in read_sentences(root / "Sentences" / f"{image_id}.txt"):
        phrases = tuple(replace(phrase, boxes=annotation.boxes_of(phrase.chain)) for phrase in caption.phrases)
        captions.append(replace(caption, phrases=phrases))
    return EntitiesImage(image_id, tuple(captions), annotation)


def read_sentences(path: Path) -> tuple[Caption, ...]:
    """The captions of a Sentences file, their words joined by single spaces, phrases in the order of the words and without boxes.
    A phrase's category is its types joined by "/" (nearly always one).

    Raises:
        InputError: the file is missing, not UTF-8, empty, or a line's mark-up is broken.
    """
    captions: list[Caption] = []
    # Not splitlines(): words may hold characters that it takes for ends of lines.
    for number, line in enumerate(read_text(path, "the captions of an image of Flickr30k Entities").split("\n"), start=1):
        if line.strip():
            captions.append(_caption(line, f"{path.stem}#{len(captions)}", f"{path}, line {number}"))
    if not captions:
        raise InputError(f"{path} has no captions; expected one a line.")
    return tuple(captions)


def _caption(line: str, caption_id: str, place: str) -> Caption:
    words: list[str] = []
    phrases: list[Phrase] = []
    length = 0  # of the text so far, with the space before the next word
    opened: tuple[int, str, str, str] | None = None  # start, chain, category, mark-up of the phrase that is being read

    for token in line.split():
        if token.startswith("["):
            if opened is not None:
                raise InputError(
                    f"{place}: {shown(token)} begins a phrase inside of {shown(opened[3])}; close that with ']' first."
                )
            parts = token.split("/")
            if (
                parts[0] != "["
                or len(parts) < 3
                or not parts[1].startswith("EN#")
                or not _NUMBER.fullmatch(parts[1][3:])
                or not all(parts)
            ):
                raise InputError(
                    f"{place}: {shown(token)} is no mark-up of a phrase; expected [/EN#CHAIN/TYPE words] with a number CHAIN."
                )
            opened = (length, parts[1][3:], "/".join(parts[2:]), token)
            continue
        word = token.removesuffix("]")
        closes = word != token
        if closes and opened is None:
            raise InputError(f"{place}: ']' after {shown(word)} closes no phrase.")
        if closes and not word:
            raise InputError(f"{place}: ']' stands by itself; expected it at the end of the phrase's last word.")
        words.append(word)
        length += len(word) + 1
        if closes and opened is not None:
            start, chain, category, _ = opened
            phrases.append(Phrase(start, length - 1, chain, category))
            opened = None
    if opened is not None:
        raise InputError(f"{place}: the phrase {shown(opened[3])} is not closed by ']'.")
    return Caption(caption_id, " ".join(words), tuple(phrases))


def read_annotation(path: Path) -> Annotation:
    """The objects of an Annotations file.

    Its boxes count pixels from 1 and include the last one: `xmin..xmax` becomes left = xmin - 1 and right = xmax (exclusive). The
    official Python reader subtracts 1 from both (its xmax is the last pixel, inclusive) and looks at an object's first name only;
    the README gives the box to all of them, and so does this reader.

    Raises:
        InputError: the file is missing, no XML, declares entities (never expanded), or an object in it is malformed.
    """
    try:
        with open_bytes(path, "the boxes of an image of Flickr30k Entities") as file:
            root: Element = parse_xml(file, forbid_dtd=True).getroot()
    except ParseError as error:
        raise InputError(f"{path} is not valid XML ({error}); a file that ends too early was not copied completely.") from error
    except DefusedXmlException as error:
        raise InputError(f"{path} declares a document type or entities, which annotations never do; it is not read.") from error
    except (ValueError, LookupError) as error:
        raise InputError(f"{path} is of an encoding that cannot be read ({error}); save it as UTF-8.") from error

    size = root.find("size")
    if root.tag != "annotation" or size is None:
        raise InputError(f"{path} has no <annotation> with a <size>; it is no annotation of Flickr30k Entities.")
    width, height = (_number(size, key, f"{path}: size") for key in ("width", "height"))
    if width < 1 or height < 1:
        raise InputError(f"{path}: the size {width} x {height} is not that of a photograph.")
    boxes: list[Box] = []
    box_chains: list[tuple[str, ...]] = []
    scenes: set[str] = set()
    not_boxed: set[str] = set()
    for position, element in enumerate(root.findall("object"), start=1):
        chains = tuple(dict.fromkeys((name.text or "").strip() for name in element.findall("name")))
        names = ", ".join(chain if _NUMBER.fullmatch(chain) else shown(chain) for chain in chains)
        place = f"{path}: object {position} ({names or 'no name'})"
        if not chains or not all(_NUMBER.fullmatch(chain) for chain in chains):
            raise InputError(f"{place}: expected one or more <name>, each the number of a chain.")
        found = element.findall("bndbox")
        if found:
            for box in found:
                boxes.append(_box(box, width, height, place))
                box_chains.append(chains)
            continue
        if _number(element, "scene", place):
            scenes.update(chains)
        if _number(element, "nobndbox", place):
            not_boxed.update(chains)
    return Annotation(width, height, tuple(boxes), tuple(box_chains), frozenset(scenes), frozenset(not_boxed))


def _number(parent: Element, key: str, place: str) -> int:
    text = (parent.findtext(key) or "").strip()
    if not _NUMBER.fullmatch(text.removeprefix("-")):
        raise InputError(f"{place}: <{key}> is {shown(text)}; expected a whole number.")
    return int(text)


def _box(element: Element, width: int, height: int, place: str) -> Box:
    xmin, ymin, xmax, ymax = (_number(element, key, place) for key in ("xmin", "ymin", "xmax", "ymax"))
    if not (1 <= xmin <= xmax <= width and 1 <= ymin <= ymax <= height):
        raise InputError(
            f"{place}: the box xmin {xmin}, ymin {ymin}, xmax {xmax}, ymax {ymax} is not in an image of {width} x {height} "
            "(pixels count from 1, the last one included)."
        )
    return Box(xmin - 1, ymin - 1, xmax, ymax)


def read_unrelated(path: Path) -> frozenset[tuple[str, int]]:
    """UNRELATED_CAPTIONS: captions that are known not to describe their image, as (image id, place of the caption from 0).

    Raises:
        InputError: the file is missing, or a line is not "ID NUMBER" with a number from 1.
    """
    found = set()
    for number, line in enumerate(read_text(path, "captions that do not describe their image").split("\n"), start=1):
        if line.strip() and not line.startswith("#"):
            fields = line.split()
            if len(fields) != 2 or not _NUMBER.fullmatch(fields[1]) or int(fields[1]) < 1:
                raise InputError(
                    f"{path}, line {number}: {shown(line)} is not an image id and the number (from 1) of one of its captions."
                )
            found.add((fields[0], int(fields[1]) - 1))
    return frozenset(found)


# ------------------------------------------------------------------------------------------------------ writing


def write_entities(
    root: Path, image_id: str, size: tuple[int, int], captions: Sequence[Caption], scenes: Collection[str] = ()
) -> None:
    """Writes `root/Sentences/ID.txt` and `root/Annotations/ID.xml`.

    Args:
        root: folder of the data set; made when missing.
        image_id: file name's stem.
        size: width and height in pixels.
        captions: words set apart by single spaces, punctuation too; phrases of whole words that do not overlap. Chains are
            numbers, "0" for phrases without a thing in the picture; all phrases of a chain carry the same boxes. Boxes become the
            smallest box of whole pixels around them. Boxes that several chains share are written once, with all their names (so
            the boxes of a chain that shares some may be read back in another order).
        scenes: chains that stand for the whole picture; other chains without boxes are written as not to be seen.

    Raises:
        InputError: the captions cannot be written in this format, or contradict each other.
    """
    place = f"{root}: image {image_id}"
    lines = [_marked_up(caption, f"{place}, caption {caption.caption_id}") for caption in captions]
    boxes: dict[str, tuple[Box, ...]] = {}
    for caption in captions:
        for phrase in caption.phrases:
            if boxes.setdefault(phrase.chain, phrase.boxes) != phrase.boxes or (phrase.chain == NOT_VISUAL and phrase.boxes):
                raise InputError(
                    f"{place}, caption {caption.caption_id}: chain {phrase.chain} has boxes {phrase.boxes} and elsewhere "
                    f"{boxes[phrase.chain] if phrase.chain != NOT_VISUAL else ()}; a chain is one thing and has one set of boxes."
                )
    boxes.pop(NOT_VISUAL, None)

    width, height = size
    root_element = Element("annotation")
    SubElement(root_element, "filename").text = f"{image_id}.jpg"
    _add_numbers(SubElement(root_element, "size"), width=width, height=height, depth=3)
    chains_of: dict[Box, list[str]] = {}
    for chain, chain_boxes in boxes.items():
        for box in chain_boxes:
            chains_of.setdefault(box, []).append(chain)
    for box, chains in chains_of.items():
        element = _named_object(root_element, chains)
        xmin, ymin, xmax, ymax = math.floor(box.left) + 1, math.floor(box.top) + 1, math.ceil(box.right), math.ceil(box.bottom)
        _add_numbers(SubElement(element, "bndbox"), xmin=xmin, ymin=ymin, xmax=xmax, ymax=ymax)
        if not (1 <= xmin <= xmax <= width and 1 <= ymin <= ymax <= height):
            raise InputError(f"{place}: {box} of chain {chains[0]} is not in an image of {width} x {height}.")
    for chain, chain_boxes in boxes.items():
        if not chain_boxes:
            _add_numbers(_named_object(root_element, [chain]), scene=int(chain in scenes), nobndbox=int(chain not in scenes))

    for folder in ("Sentences", "Annotations"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "Sentences" / f"{image_id}.txt").write_bytes("".join(f"{line}\n" for line in lines).encode())
    indent(root_element, "\t")
    ElementTree(root_element).write(root / "Annotations" / f"{image_id}.xml", encoding="utf-8")


def _named_object(parent: Element, chains: Iterable[str]) -> Element:
    element = SubElement(parent, "object")
    for chain in chains:
        SubElement(element, "name").text = chain
    return element


def _add_numbers(parent: Element, **numbers: int) -> None:
    for key, number in numbers.items():
        SubElement(parent, key).text = str(number)


def _marked_up(caption: Caption, place: str) -> str:
    text, pieces, position = caption.text, [], 0
    if not text or text != " ".join(text.split()) or "[" in text or "]" in text:
        raise InputError(f"{place}: {text!r} cannot be written; words are set apart by single spaces, and brackets are mark-up.")
    for phrase in sorted(caption.phrases, key=lambda phrase: phrase.start):
        whole = phrase.start == text.rfind(" ", 0, phrase.start) + 1 and f"{text} "[phrase.end : phrase.end + 1] == " "
        if not position <= phrase.start < phrase.end <= len(text) or not whole:
            raise InputError(
                f"{place}: the phrase {phrase.start}:{phrase.end} of {text!r} overlaps another or is not of whole words; "
                "set punctuation apart by spaces."
            )
        if not _NUMBER.fullmatch(phrase.chain) or set("[] ") & set(phrase.category) or not all(phrase.category.split("/")):
            raise InputError(f"{place}: chain {phrase.chain!r} with category {phrase.category!r}; expected a number and types.")
        pieces += [text[position : phrase.start], f"[/EN#{phrase.chain}/{phrase.category} {text[phrase.start : phrase.end]}]"]
        position = phrase.end
    return "".join([*pieces, text[position:]])


# -------------------------------------------------------------------------------------------- phrases as word pieces


@dataclass(frozen=True, slots=True)
class WordPieces:
    """Ids of a text's word pieces without [CLS] and [SEP], and for each phrase the positions of its pieces among them (rising;
    empty where the tokenizer drops all of its characters)."""

    input_ids: tuple[int, ...]
    phrases: tuple[tuple[int, ...], ...]


def word_pieces(text: str, phrases: Sequence[Phrase], tokenize_word: Callable[[str], Iterable[int]]) -> WordPieces:
    """A text as UNITER tokenizes it (word by word) and where each phrase is in it.

    A phrase has the pieces of every word that it touches, so it may end inside of a word ("dog" of "dog." takes the point too).
    """
    spans: list[tuple[int, int]] = []  # characters of a word
    position = 0
    for word in text.split():
        start = text.index(word, position)
        position = start + len(word)
        spans.append((start, position))
    ids: list[int] = []
    positions: list[list[int]] = [[] for _ in phrases]
    for (start, end), pieces in zip(spans, word_pieces_of(text, tokenize_word), strict=True):
        for phrase, its_positions in zip(phrases, positions, strict=True):
            if phrase.start < end and start < phrase.end:
                its_positions += range(len(ids), len(ids) + len(pieces))
        ids += pieces
    return WordPieces(tuple(ids), tuple(map(tuple, positions)))
