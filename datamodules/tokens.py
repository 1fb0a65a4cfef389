"""From captions to padded token ids, with the tokeniser that the network names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from datamodules.errors import InputError
from datamodules.inputs import TextInput
from datamodules.official import RELEASE, TOKENISER, tokeniser_file

_SENTENCEPIECE = (".spm", ".model")
_BEIT3_SPECIAL = [0, 1, 2, 3]  # begin, padding, end, unknown


class Tokeniser:
    """A Hugging Face tokeniser, by hub name or local folder, or BEiT-3's sentencepiece file; cuts and pads as `TextInput` says.

    Raises:
        InputError: the folder, file or hub name gives no tokeniser, or one with more ids than the network has.
    """

    def __init__(self, spec: TextInput) -> None:
        # Tokenising happens in data workers, one batch each: the Rust threads would only fight with them, and after a fork
        # they print a warning. A user's own setting stays.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self.name = os.path.expanduser(spec.tokeniser)
        self.max_tokens = spec.max_tokens
        if self.name.endswith(_SENTENCEPIECE) and not Path(self.name).is_dir():
            self._tokenizer = _from_sentencepiece(tokeniser_file(self.name))
        else:
            self._tokenizer = _from_hugging_face(self.name)
        self._tokenizer.padding_side = "right"
        if spec.vocabulary is not None and self.vocabulary_size > spec.vocabulary:
            raise InputError(
                f"tokeniser {self.name} has {self.vocabulary_size:,} ids, the network's token table {spec.vocabulary:,} rows; "
                "give the tokeniser that the network was trained with (or, without weights, set its vocab_size)."
            )

    @property
    def vocabulary_size(self) -> int:
        """Number of ids, special tokens included (64,002 for beit3.spm)."""
        return len(self._tokenizer)

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids (int64) and mask (bool, True = real token), both [B, T], T the longest of the batch."""
        encoded = self._tokenizer(
            list(texts), padding="longest", truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        return encoded["input_ids"].to(torch.int64), encoded["attention_mask"].to(torch.bool)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """All ids of each text, without special tokens."""
        return self._tokenizer(list(texts), add_special_tokens=False)["input_ids"]

    def from_ids(self, ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """What `__call__` gives for the texts that have these `ids()`: with begin and end token, cut and padded.

        Official: `_get_text_segment` of unilm/beit3/datasets.py.
        """
        begin, padding, end, _ = _BEIT3_SPECIAL
        rows = [[begin, *some[: self.max_tokens - 2], end] for some in ids]
        longest = max(map(len, rows))
        tokens_BT = torch.tensor([row + [padding] * (longest - len(row)) for row in rows], dtype=torch.int64)
        return tokens_BT, torch.arange(longest) < torch.tensor([[len(row)] for row in rows])

    def require_ids(self, largest: int) -> None:
        """See that ids made by BEiT-3's tokeniser, up to this one, are this tokeniser's.

        Raises:
            InputError: the network's tokeniser is another one.
        """
        its = self._tokenizer
        special = [its.bos_token_id, its.pad_token_id, its.eos_token_id, its.unk_token_id]
        if special != _BEIT3_SPECIAL or largest >= self.vocabulary_size:
            raise InputError(
                f"the captions are token ids of BEiT-3's tokeniser (up to {largest}), but the network's tokeniser {self.name} "
                f"has {self.vocabulary_size:,} ids, and begin, padding, end, unknown at {special} (BEiT-3's: {_BEIT3_SPECIAL}). "
                "Use a network with BEiT-3's tokeniser, or read the captions as text (captions: karpathy)."
            )


def _from_sentencepiece(path: Path) -> Any:
    """BEiT-3's tokeniser from its sentencepiece file: <s> 0, <pad> 1, </s> 2, <unk> 3, then piece i has id i + 1.

    It equals `XLMRobertaTokenizer("beit3.spm")` of transformers 4, which unilm/beit3/utils.py makes.
    """
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2
    from transformers import XLMRobertaTokenizer

    remedy = f"give BEiT-3's file, {RELEASE}/{TOKENISER}"
    try:
        content = path.read_bytes()
        sentencepiece.SentencePieceProcessor().LoadFromSerializedProto(content)
    except OSError as error:
        raise InputError(f"sentencepiece file {path} cannot be read ({error.strerror}); {remedy}.") from error
    except RuntimeError as error:
        raise InputError(f"{path} is not a sentencepiece file, or is cut short ({error}); {remedy}.") from error
    generated: Any = sentencepiece_model_pb2  # protobuf's classes are made at run time
    model = generated.ModelProto.FromString(content)
    # transformers takes any model and would give one that is laid out in another way wrong ids without a word.
    first = [piece.piece for piece in model.pieces[:3]]
    if first != ["<unk>", "<s>", "</s>"] or model.trainer_spec.model_type != model.trainer_spec.UNIGRAM:
        raise InputError(f"{path} is not a unigram model whose first pieces are <unk>, <s>, </s>, as BEiT-3's are; {remedy}.")
    # transformers 5 wants a folder that holds the file under this name. A folder of this process alone, gone at once.
    with TemporaryDirectory(prefix="crosslight-tokeniser-") as folder:
        (Path(folder) / "sentencepiece.bpe.model").write_bytes(content)
        return XLMRobertaTokenizer.from_pretrained(folder)


def _from_hugging_face(name: str) -> Any:
    from transformers import AutoTokenizer  # seconds of import, only needed here

    looks_local = name.startswith((".", os.sep)) or Path(name).exists()
    if looks_local and not Path(name).is_dir():
        raise InputError(
            f"tokeniser folder {name} does not exist; give a folder with tokenizer.json, a Hugging Face name, or BEiT-3's "
            "sentencepiece file (.spm)."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, use_fast=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        first_line = str(error).strip().partition("\n")[0]
        remedy = (
            "it should hold tokenizer.json and tokenizer_config.json"
            if looks_local
            else "check the name, or download it once on a connected machine (`hf download NAME --local-dir FOLDER`) and "
            "give that folder instead (HF_HUB_OFFLINE is set)"
            if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
            else "check the name and the network, or give a local folder with the tokeniser's files"
        )
        raise InputError(f"no tokeniser at {name}: {first_line}. Remedy: {remedy}.") from error
    if tokenizer.pad_token is None:
        # GPT-2's has none. Which id pads does not matter where the mask is False.
        if tokenizer.eos_token is None:
            raise InputError(f"tokeniser {name} has neither a padding nor an end token; it cannot pad a batch.")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
