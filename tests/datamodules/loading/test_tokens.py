"""BEiT-3's tokenizer from a sentencepiece file: ids, cutting, padding, and files that are another one.

CROSSLIGHT_BEIT3_SPM=/path/beit3.spm adds the comparison with what the official tokenizer gave.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from tiny_data import caption
from tiny_spm import train_spm
from transformers import AutoTokenizer, BertTokenizer, CLIPTokenizer, GPT2Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from datamodules.errors import InputError
from datamodules.flickr8k import Flickr8k
from datamodules.formats.record_table import RecordTable
from datamodules.image_text import Limits
from datamodules.inputs import ImageInput, Inputs, TextInput, TextTokenizer
from datamodules.loading.captions import CaptionTokenizer
from datamodules.loading.collate import cut_of, words_of
from datamodules.loading.split_captions import SplitCaptions
from datamodules.loading.task import Split
from datamodules.loading.tokens import Tokenizer
from datamodules.miniworld.write import write_tokenizer
from datamodules.records import Caption, ImageRecord

RECORDED = json.loads((Path(__file__).parents[2] / "recordings" / "mwa" / "tokenizer.json").read_text())
TEXTS = [
    "a dog runs", "the red cat 漢字 sleeps", " Two  young\tmales. ", "a</s>b </s> <pad> <s><unk>", "a <mask>",
    *(caption(seed) for seed in range(20)),
]  # fmt: skip


@pytest.fixture(scope="module")
def spm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_spm(tmp_path_factory.mktemp("spm") / "tiny.spm")


def official_text_segment(ids: list[int], length: int) -> tuple[list[int], list[bool]]:
    """unilm/beit3/datasets.py `_get_text_segment`, with our mask (True = real)."""
    tokens = [0, *ids[: length - 2], 2]
    padding = length - len(tokens)
    return tokens + [1] * padding, [True] * len(tokens) + [False] * padding


def test_ids_are_sentencepieces_plus_one(spm: Path) -> None:
    tokenizer = Tokenizer(TextInput(str(spm)))
    raw = sentencepiece.SentencePieceProcessor(str(spm))
    expected = [[piece + 1 if piece else 3 for piece in raw.encode(text)] for text in TEXTS]
    assert tokenizer.ids(TEXTS) == expected
    assert 3 in expected[1]
    assert tokenizer.vocabulary_size == len(raw) + 2  # a row for padding, one for the mask


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokenizers of BERT's, GPT-2's and CLIP's kind."""
    folder = tmp_path_factory.mktemp("tokenizers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "[", "]", "sep"]
    bert = BertTokenizer(vocab={word: row for row, word in enumerate(words)})
    bert.model_max_length = 16
    letters = [*bytes_to_unicode().values()]
    gpt2 = GPT2Tokenizer(vocab={word: row for row, word in enumerate([*letters, "<|endoftext|>"])}, merges=[])
    ends = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    clip = CLIPTokenizer(vocab={word: row for row, word in enumerate(ends)}, merges=[])
    for name, tokenizer in {"bert": bert, "gpt2": gpt2, "clip": clip}.items():
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize(
    ("kind", "spelled"), [("bert", "a [SEP] dog"), ("gpt2", "a<|endoftext|> dog"), ("clip", "a <|startoftext|>dog<|endoftext|>")]
)
def test_control_tokens_in_a_caption_are_its_letters(
    folders: Path, kind: str, spelled: str, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = Tokenizer(TextInput(str(folders / kind), max_tokens=40))
    official = AutoTokenizer.from_pretrained(folders / kind)
    control = set(official.all_special_ids)
    assert control & set(official(spelled, add_special_tokens=False)["input_ids"])
    assert not control & set(tokenizer.ids([spelled])[0])
    assert "".join(tokenizer._tokenizer.decode(tokenizer.ids([spelled])[0]).split()) == "".join(spelled.lower().split())
    around = (tokenizer(["a dog"])[0] >= 0).sum() - len(tokenizer.ids(["a dog"])[0])
    assert sum(int(each) in control for each in tokenizer([spelled])[0][0]) == around
    ordinary = ["a dog", "dog", "a dog " * 30]
    assert tokenizer.ids(ordinary) == official(ordinary, add_special_tokens=False, verbose=False)["input_ids"]
    assert not caplog.records  # nothing that warns of long captions, which are cut where they are used


def test_captions_are_cut_and_padded_as_the_official_code_does(spm: Path) -> None:
    tokenizer = Tokenizer(TextInput(str(spm), max_tokens=9))
    tokens_BT, mask_BT = tokenizer(TEXTS)
    assert tokens_BT.shape == (len(TEXTS), 9)
    for row, ids in enumerate(tokenizer.ids(TEXTS)):
        assert (tokens_BT[row].tolist(), mask_BT[row].tolist()) == official_text_segment(ids, 9)
    assert tokenizer(["a"])[0].tolist() == [[0, *tokenizer.ids(["a"])[0], 2]]  # padded to the longest, not to 9


@pytest.mark.parametrize("most", [3, 9, 64])
def test_ids_become_the_batch_that_their_texts_become(spm: Path, most: int) -> None:
    tokenizer = Tokenizer(TextInput(str(spm), max_tokens=most))
    for expected, found in zip(tokenizer(TEXTS), tokenizer.from_ids(tokenizer.ids(TEXTS)), strict=True):
        assert torch.equal(found, expected)
        assert found.dtype == expected.dtype


def test_recorded_ids_become_the_official_batch(spm: Path) -> None:
    tokens_BT, mask_BT = Tokenizer(TextInput(str(spm), max_tokens=64)).from_ids([row["ids"] for row in RECORDED["rows"]])
    assert tokens_BT.tolist() == [row["language_tokens_64"] for row in RECORDED["rows"]]  # one of them is longer than 64
    assert (~mask_BT).int().tolist() == [row["padding_mask_64"] for row in RECORDED["rows"]]


def test_beit3_spm_gives_the_recorded_ids() -> None:
    path = os.environ.get("CROSSLIGHT_BEIT3_SPM")
    if not path:
        pytest.skip("CROSSLIGHT_BEIT3_SPM does not name beit3.spm (1.3 MB, not in the repository)")
    tokenizer = Tokenizer(TextInput(path, max_tokens=64, vocabulary=64010))
    assert tokenizer.vocabulary_size == RECORDED["special"]["len"]
    rows = [row for row in RECORDED["rows"] if "<unk>" not in row["text"] and "</s>" not in row["text"]]
    assert len(rows) == len(RECORDED["rows"]) - 2  # two spell control tokens, which the official code takes for these
    texts = [row["text"] for row in rows]
    assert tokenizer.ids(texts) == [row["ids"] for row in rows]
    tokens_BT, mask_BT = tokenizer(texts)
    assert tokens_BT.tolist() == [row["language_tokens_64"] for row in rows]
    assert (~mask_BT).int().tolist() == [row["padding_mask_64"] for row in rows]


@pytest.mark.parametrize("most", [6, 64])
def test_captions_that_are_cut_are_counted(spm: Path, folders: Path, flickr8k_root: Path, most: int) -> None:
    half = (0.5, 0.5, 0.5)
    for folder, special in ((spm, 2), (folders / "gpt2", 0)):
        data = Flickr8k(str(flickr8k_root), batch_size=4, num_workers=0, limits=Limits(train=9))
        data.connect(Inputs(ImageInput(16, half, half), TextInput(str(folder), most)))
        tokenizer = Tokenizer(TextInput(str(folder)))
        texts = [caption.text for record in data.records("train") for caption in record.captions]
        long = [len(ids) + special > most for ids in tokenizer.ids(texts)]
        found = data.cut_captions(("train",))
        assert found == ({"train[:9]": sum(long)} if any(long) else {})
        assert any(long) == (most == 6)


def test_words_that_the_vocabulary_lacks_are_named_by_how_often_they_come(spm: Path, folders: Path, flickr8k_root: Path) -> None:
    texts = ["a 漢字 runs", "漢字 and 文 sleep", "a dog", ""]
    assert Tokenizer(TextInput(str(spm))).unknown_words(texts) == {"漢字": 2, "文": 1}
    assert list(Tokenizer(TextInput(str(spm))).unknown_words(texts)) == ["漢字", "文"]
    assert Tokenizer(TextInput(str(folders / "gpt2"))).unknown_words(texts) == {}, "bytes know every word"
    half = (0.5, 0.5, 0.5)
    data = Flickr8k(str(flickr8k_root), batch_size=4, num_workers=0)
    data.connect(Inputs(ImageInput(16, half, half), TextInput(str(spm), 64)))
    assert data.unknown_words("test") == {}
    record = data.records("test")[0]
    strange = replace(record, captions=(*record.captions, Caption("x", "a 漢字 runs"), Caption("y", "known by its ids", (3, 4))))
    assert data.task.unknown_words(Split("test", "flickr8k test", [strange])) == {"漢字": 1}


def _load(path: str) -> tuple[list[list[int]], list[str]]:
    return Tokenizer(TextInput(path)).ids(TEXTS), os.listdir(tempfile.gettempdir())


def test_processes_load_one_file_at_once_and_leave_nothing(spm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    beside = sorted(path.name for path in spm.parent.iterdir())
    tokenizer = Tokenizer(TextInput(str(spm)))
    with multiprocessing.get_context("fork").Pool(3) as pool:
        assert all(ids == tokenizer.ids(TEXTS) for ids, _ in pool.map(_load, [str(spm)] * 6, chunksize=1))
    assert list(tmp_path.iterdir()) == []
    assert sorted(path.name for path in spm.parent.iterdir()) == beside
    copy: Tokenizer = pickle.loads(pickle.dumps(tokenizer))  # what a spawned data worker gets
    assert torch.equal(copy(TEXTS)[0], tokenizer(TEXTS)[0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"tokenizer .*other\.spm: there is no such file"),
        (b"", r"other\.spm is not a sentencepiece file, or is cut short \("),
        (b"<html>404</html>", r"other\.spm is not a sentencepiece file, or is cut short \("),
        (-1000, r"other\.spm is not a sentencepiece file, or is cut short \("),
        ({"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}, r"not a unigram model whose first pieces are <unk>, <s>, </s>"),
        ({"model_type": "bpe"}, r"not a unigram model"),
    ],
    ids=["missing", "empty", "page", "cut", "T5's layout", "BPE"],
)
def test_another_file_is_refused_with_the_right_ones_address(spm: Path, tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "other.spm"
    if isinstance(content, dict):
        train_spm(path, **content)
    elif content is not None:
        path.write_bytes(spm.read_bytes()[:content] if isinstance(content, int) else content)
    with pytest.raises(InputError, match=message) as caught:
        Tokenizer(TextInput(str(path)))
    assert "beit3.spm" in str(caught.value)


def test_a_tokenizer_with_more_ids_than_the_network_is_refused(spm: Path, flickr8k_root: Path) -> None:
    size = Tokenizer(TextInput(str(spm))).vocabulary_size
    half = (0.5, 0.5, 0.5)
    data = Flickr8k(str(flickr8k_root), batch_size=4, num_workers=0)
    data.connect(Inputs(ImageInput(16, half, half), TextInput(str(spm), vocabulary=size)))
    assert next(iter(data.train_dataloader())).texts.tokens_BT.max() < size
    with pytest.raises(InputError, match=rf"tiny\.spm has {size} ids, the network's token table {size - 1} rows"):
        data.connect(Inputs(ImageInput(16, half, half), TextInput(str(spm), vocabulary=size - 1)))


@pytest.mark.parametrize("kind", [Tokenizer, CaptionTokenizer])
def test_half_a_character_is_named(tokenizer_folder: Path, kind: type[Tokenizer]) -> None:
    tokenizer = kind(TextInput(str(tokenizer_folder)))
    for call in (tokenizer, tokenizer.ids):
        with pytest.raises(InputError, match=r"the text 'a dog \\ud83d' has half a character"):
            call(["a dog", "a dog \ud83d"])


def test_a_prompt_goes_around_every_text(folders: Path) -> None:
    plain, prompted = (Tokenizer(TextInput(str(folders / "bert"), max_tokens=8, prompt=prompt)) for prompt in ("{}", "a {} [a"))
    texts = ["dog", "dog dog dog"]
    whole = [f"a {text} [a" for text in texts]
    assert prompted.ids(texts) == plain.ids(whole)
    assert [each.tolist() for each in prompted(texts)] == [each.tolist() for each in plain(whole)]
    captions = [Caption(str(row), text) for row, text in enumerate(texts)]
    assert words_of(captions, prompted).tolist() == [len(ids) for ids in plain.ids(whole)]
    assert (cut_of(captions, plain), cut_of(captions, prompted)) == (0, 0)
    assert cut_of([Caption("", "dog dog dog dog")], prompted) == 1
    assert prompted.unknown_words(["a cat", "cat a"]) == {"cat": 2}
    assert Tokenizer(TextInput(str(folders / "bert"), prompt="photo {}")).unknown_words(["a dog", "dog"]) == {"photo": 2}


def test_what_is_counted_of_a_table_is_what_is_counted_of_its_records(tokenizer_folder: Path) -> None:
    texts = ["a dog runs", "漢字 dog", "", "red " * 9, "blue  cat\non the grass"]
    pairs = [(Caption(f"{row}a", text), Caption(f"{row}b", text[::-1])) for row, text in enumerate(texts)]
    words = [ImageRecord(str(row), None, captions) for row, captions in enumerate(pairs)]
    ids = [ImageRecord("0", None, tuple(Caption(str(row), "x", token_ids=(3,) * row) for row in range(12)))]
    for prompt in ("{}", "photo {}"):
        tokenizer = Tokenizer(TextInput(str(tokenizer_folder), 8, prompt=prompt))
        for records in (words, ids):
            table = RecordTable.of(records)
            assert table is not None
            captions = [caption for record in records for caption in record.captions]
            naive = [len(c.token_ids) if c.token_ids is not None else len(tokenizer.ids([c.text])[0]) for c in captions]
            for given in (SplitCaptions(table), SplitCaptions(records), captions):
                assert words_of(given, tokenizer).tolist() == naive
                assert cut_of(given, tokenizer) == sum(length > tokenizer.room for length in naive)
            sizes = [25 if records is ids else len(tokenizer.as_read(caption.text).encode()) for caption in captions]
            quick = [size if size < 25 else length for size, length in zip(sizes, naive, strict=True)]
            assert words_of(SplitCaptions(table), tokenizer, enough=24).tolist() == quick, "what is short is not looked at"


def test_token_ids_cannot_be_put_into_a_prompt(spm: Path) -> None:
    with pytest.raises(InputError, match=r"token ids of .* cannot be put into the prompt 'a \{\}'.*model.prompt to null"):
        Tokenizer(TextInput(str(spm), prompt="a {}")).require_ids(5)


class Letters(TextTokenizer):
    """A network's own: a letter is a token, 1 begins and 2 ends a text."""

    name, vocabulary_size, special, unknown = "letters", 40, 2, 3

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [[ord(letter) - 93 if "a" <= letter <= "z" else 3 for letter in text] for text in texts]

    def rows(self, texts: Sequence[str], most: int) -> list[list[int]]:
        return [[1, *ids[: most - 2], 2] for ids in self.ids(texts)]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [chr(number + 93) for number in ids]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.pieces(ids))


def test_a_network_may_bring_its_own_tokenizer() -> None:
    tokenizer = Tokenizer(TextInput(Letters(), max_tokens=5, vocabulary=40))
    tokens_BT, mask_BT = tokenizer(["ab", "abcd"])
    assert tokens_BT.tolist() == [[1, 4, 5, 2, 0], [1, 4, 5, 6, 2]]
    assert mask_BT.tolist() == [[True] * 4 + [False], [True] * 5]
    assert (tokenizer.room, tokenizer.name, tokenizer.pieces([4])) == (3, "letters", ["a"])
    assert tokenizer.ids(["abcd"]) == [[4, 5, 6, 7]]
    assert cut_of([Caption("", "abc"), Caption("", "abcd")], tokenizer) == 1
    assert tokenizer.unknown_words(["a 1", "1"]) == {"1": 2}
    assert tokenizer.remarks(["abcd", "a!", "ab"]) == [
        "'abcd': longer than the 5 tokens of the model, which reads 'abc'",
        "'a!': the model does not know all of its words, and reads 'a`'",
    ]
    tokenizer.require_tokenizer()
    with pytest.raises(InputError, match="but the network's tokenizer is letters"):
        tokenizer.require_ids(5)
    with pytest.raises(InputError, match="letters has 40 ids, the network's token table 30 rows"):
        Tokenizer(TextInput(Letters(), vocabulary=30))


def test_threads_that_share_a_tokenizer_get_their_own_way(tmp_path: Path) -> None:
    """Cutting and padding are settings of the Rust tokenizer, which a call makes before it encodes: of whole texts and cut ones
    at once, one in thirty got the other's."""
    write_tokenizer(tmp_path / "words")
    tokenizer = Tokenizer(TextInput(str(tmp_path / "words"), 8, 320))
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def asked(number: int) -> tuple[int, ...]:
        texts = ["a red hat " * (1 + number % 7), "a dog"]
        return tuple(tokenizer(texts)[0].shape) if number % 2 else (len(tokenizer.ids(texts)[0]),)

    try:
        with ThreadPoolExecutor(8) as threads:
            found = list(threads.map(asked, range(2000)))
    finally:
        sys.setswitchinterval(before)
    lengths = [3 * (1 + number % 7) for number in range(2000)]
    assert found == [(2, min(8, 2 + length)) if number % 2 else (length,) for number, length in enumerate(lengths)]


class OneAtATime(Letters):
    """As a library's own that keeps how it cuts in itself while it reads."""

    def __init__(self) -> None:
        self.inside, self.most = 0, 0

    def _counted(self, found: list[list[int]]) -> list[list[int]]:
        self.inside += 1
        time.sleep(0.001)
        self.most, self.inside = max(self.most, self.inside), self.inside - 1
        return found

    def rows(self, texts: Sequence[str], most: int) -> list[list[int]]:
        return self._counted(super().rows(texts, most))

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        return self._counted(super().ids(texts))


def test_threads_take_turns_at_a_networks_own_tokenizer_too() -> None:
    own = OneAtATime()
    tokenizer = Tokenizer(TextInput(own, 8, 40))
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: tokenizer(["abc"]) if number % 2 else tokenizer.ids(["abc"]), range(64)))
    assert own.most == 1
