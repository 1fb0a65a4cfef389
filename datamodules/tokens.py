"""From captions to padded token ids, with the tokeniser that the network names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from datamodules.errors import InputError
from datamodules.inputs import TextInput


class Tokeniser:
    """A Hugging Face tokeniser, by hub name or local folder, cutting and padding as `TextInput` says.

    Raises:
        InputError: the folder or hub name gives no tokeniser.
    """

    def __init__(self, spec: TextInput) -> None:
        # Tokenising happens in data workers, one batch each: the Rust threads would only fight with them, and after a fork
        # they print a warning. A user's own setting stays.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        from transformers import AutoTokenizer  # seconds of import, only needed here

        name = os.path.expanduser(spec.tokeniser)
        looks_local = name.startswith((".", os.sep)) or Path(name).exists()
        if looks_local and not Path(name).is_dir():
            raise InputError(f"tokeniser folder {name} does not exist; give a folder with tokenizer.json or a Hugging Face name.")
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(name, use_fast=True)
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
        if self._tokenizer.pad_token is None:
            # GPT-2's has none. Which id pads does not matter where the mask is False.
            if self._tokenizer.eos_token is None:
                raise InputError(f"tokeniser {name} has neither a padding nor an end token; it cannot pad a batch.")
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._tokenizer.padding_side = "right"
        self.max_tokens = spec.max_tokens

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids (int64) and mask (bool, True = real token), both [B, T], T the longest of the batch."""
        encoded = self._tokenizer(
            list(texts), padding="longest", truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        return encoded["input_ids"].to(torch.int64), encoded["attention_mask"].to(torch.bool)
