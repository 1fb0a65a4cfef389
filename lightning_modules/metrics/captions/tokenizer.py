"""Words of captions for the metrics: coco-caption's PTB tokenizer (Stanford CoreNLP 3.4.1, an outside Java program), and one
without Java that nearly equals it.

Both lower the case, separate punctuation and contractions as the Penn Treebank does, and drop punctuation. Metrics are compared
with published numbers with "ptb"; "simple" is for machines without Java, for tests and for watching a training run. It gives the
PTB tokenizer's words for 5,004 of the 5,005 references of coco-caption's demo and all 40,000 captions of Flickr8k (its rules were
made on these; on other text expect a caption in a few thousand to differ). Characters that PTB drops (emoji, zero-width ones; see
`ptb_characters`) it drops too: of 20,000 captions with one to three odd characters put in anywhere, 19,925 came out alike.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from lightning_modules.metrics.captions.java import LOCALE, find_java, ptb_jar, run
from lightning_modules.metrics.captions.ptb_characters import SIGN, WORD

Kind = Literal["ptb", "simple"]

# coco-caption's list. The brackets are upper case and the tokens lower case, so "(big)" keeps "-lrb- big -rrb-" there, and here.
PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)  # fmt: skip


_HALF = re.compile("[\ud800-\udfff]")  # of a character beyond the basic plane, which PTB drops


def ptb(sentences: Sequence[str]) -> list[str]:
    """Tokenized sentences, words separated by single spaces.

    White space of any kind becomes a space first: the program reads a sentence a line, and a stray line break (\\r, U+2028) would
    give every later caption its neighbour's words, as it does in coco-caption.

    Raises:
        Unavailable: Java or the jar is missing.
        InputError: The program fails.
    """
    jar, java = ptb_jar(), find_java()
    if not sentences:
        return []
    lines = [" ".join(_HALF.sub(" ", sentence).split()) for sentence in sentences]
    with tempfile.TemporaryDirectory(prefix="crosslight-ptb-") as folder:
        file = Path(folder) / "sentences.txt"
        file.write_bytes("".join(f"{line}\n" for line in lines).encode())
        program: list[str | Path] = [java, *LOCALE, "-cp", jar, "edu.stanford.nlp.process.PTBTokenizer"]
        said = run([*program, "-preserveLines", "-lowerCase", file], "the PTB tokenizer")
    *answer, rest = said.decode("utf-8").split("\n")
    if rest or len(answer) != len(lines):
        raise RuntimeError(f"the PTB tokenizer gave {len(answer)} lines for {len(lines)} sentences")
    return [" ".join(word for word in line.rstrip().split(" ") if word not in PUNCTUATION) for line in answer]


def simple(sentences: Sequence[str]) -> list[str]:
    """Tokenized sentences without Java, words separated by single spaces."""
    return [_simple(sentence) for sentence in sentences]


# Words that keep their full stop, wherever they stand (those with a capital are other words without it: "Dr", "Sun").
_ABBREVIATIONS = (
    "Mr|Mrs|Ms|Dr|Prof|Sr|Jr|St|Inc|Co|Corp|Ltd|Ave|Blvd|Rd|Mt|Ft|Gen|Col|Capt|Sgt|Lt|Gov|Sen|Rep|Rev|"
    "Jan|Feb|Aug|Sept|Oct|Nov|Dec|etc|vs"
)
_W, _HYPHEN = f"[{WORD}]", "[-\u2010\u2011\u058a]"
_TOKEN = re.compile(
    rf"""
    (?i:can(?=not\b)|gon(?=na\b)|got(?=ta\b)|wan(?=na\b)|lem(?=me\b)|gim(?=me\b))     # can not, gon na, ...
  | (?i:https?://|www\.)[^\s,]+ | {_W}+\.(?:com|org|net|edu)\b | {_W}+@{_W}+(?:\.{_W}+)*
  | (?:[A-Za-z]\.){{2,}} | \b[A-Z]\.                                                  # U.S.  J. Smith
  | \b(?:{_ABBREVIATIONS})\.
  | \d+(?:[.,:/]\d+)+ | \d+(?:'s|s|th|st|nd|rd)?(?![{WORD}-])                         # 1,000  10:30  1950s
  | '(?:n'|(?i:s|m|d|re|ve|ll)\b)                                                     # 'n', second halves of contractions
  | (?i:n't)\b | {_W}+(?=(?i:n't)\b)
  | [^\W\d_]{_W}*(?:[.!?][^\W\d_]{_W}*)+(?!')                                            # street.The
  | [\#@][^\W\d]{_W}*                                                                  # #dog  @name
  | {_W}+(?:(?:{_HYPHEN}|/){_W}+)*(?:'(?!(?i:s|m|d|re|ve|ll|t)\b){_W}+)?               # rock-n-roll  o'clock
  | \.\.\.+ | --+ | \S
    """,
    re.VERBOSE,
)
# What becomes of signs: a soft hyphen goes without a trace, dashes part words, currencies and fractions are written in ASCII.
_WRITTEN = str.maketrans(
    {"\u00ad": "", "‘": "'", "’": "'", "“": '"', "”": '"', "–": " -- ", "—": " -- ", "…": " ... ", "‹": " ", "›": " ",
     "«": " ", "»": " ", "€": " $ ", "¤": " $ ", "₠": " $ ", "\x80": " $ ", "£": " # ", "¢": " cents ",
     "¼": " 1/4 ", "½": " 1/2 ", "¾": " 3/4 ", "⅓": " 1/3 ", "⅔": " 2/3 "}
)  # fmt: skip
_UNKNOWN = re.compile(rf"[^{WORD}{SIGN}\s!\"#'(),./:;?@\[\]`{{}}\u2010\u2011\u058a-]+")
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_DROPPED = PUNCTUATION | {'"', "\u2010", "\u2011", "\u058a"}


def _simple(sentence: str) -> str:
    known = _UNKNOWN.sub(" ", sentence.translate(_WRITTEN))
    words = map(str.lower, _TOKEN.findall(known))
    return " ".join(_BRACKETS.get(word, word) for word in words if word not in _DROPPED and not set(word) <= {"-", "."})
