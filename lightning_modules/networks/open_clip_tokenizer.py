"""The tokenizers of open_clip's models, with their own cleaning of texts, as data modules read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datamodules.files.hub import without_waiting
from datamodules.inputs import TextTokenizer
from datamodules.loading.tokens import take_text_as_text
from lightning_modules.networks.quiet_loading import hugging_face


class OpenCLIPTokenizer(TextTokenizer):
    """What `open_clip.get_tokenizer` gives for a model: CLIP's byte pairs (they lie in the package) or one of Hugging Face's. It
    is made when a text is read first. Control tokens that are spelled in a text are letters.

    Args:
        name: The model's name in open_clip, "hf-hub:OWNER/NAME" or "local-dir:FOLDER"; or
        text_config: the `text_cfg` of a model's configuration.
        context_length: Tokens of a text with the special ones, to which the library pads all texts.
    """

    def __init__(self, name: str | None, text_config: dict[str, Any] | None, context_length: int) -> None:
        self.name = f"of open_clip's {name or 'model of this configuration'}"
        self._model, self._config, self._context = name, dict(text_config or {}), context_length
        self._made: Any = None

    @property
    def library(self) -> Any:
        """The library's own.

        Raises:
            InputError: Its files are not there.
        """
        if self._made is None:
            import open_clip

            hub = self._config.get("hf_tokenizer_name") or ((self._model or "").removeprefix("hf-hub:") if self._named else None)
            remedy = "download it once on a connected machine, or give local-dir:FOLDER"
            with hugging_face(f"tokenizer {self.name} cannot be loaded", remedy):
                if hub:
                    without_waiting(hub)
                if self._model is not None:
                    self._made = open_clip.get_tokenizer(self._model, context_length=self._context)
                elif hub:
                    self._made = open_clip.tokenizer.HFTokenizer(
                        hub,
                        context_length=self._context,
                        tokenizer_mode=self._config.get("tokenizer_mode"),
                        **(self._config.get("tokenizer_kwargs") or {}),
                    )
                else:
                    self._made = open_clip.SimpleTokenizer(
                        context_length=self._context, **(self._config.get("tokenizer_kwargs") or {})
                    )
            self._take_text_as_text()
        return self._made

    @property
    def _named(self) -> bool:
        return (self._model or "").startswith("hf-hub:")

    @property
    def _hugging_face(self) -> Any:
        """The tokenizer of Hugging Face inside; None for CLIP's byte pairs."""
        return getattr(self.library, "tokenizer", None)

    def _take_text_as_text(self) -> None:
        if (inside := self._hugging_face) is not None:
            take_text_as_text(inside)
            return
        import regex

        special = "|".join(self._made.decoder[number] for number in self._made.all_special_ids)
        self._made.pat = regex.compile(self._made.pat.pattern.removeprefix(f"{special}|"), regex.IGNORECASE)

    @property
    def vocabulary_size(self) -> int:
        return self.library.vocab_size if self._hugging_face is None else len(self._hugging_face)

    @property
    def special(self) -> int:
        if self._hugging_face is None:
            return 2
        return 3 if self._appends_class else self._hugging_face.num_special_tokens_to_add()

    @property
    def unknown(self) -> int | None:
        return None if self._hugging_face is None else self._hugging_face.unk_token_id

    @property
    def padding(self) -> int:
        """The id behind a text, up to the context's length, by which the library's text encoders know where it ends."""
        return 0 if self._hugging_face is None else self._hugging_face.pad_token_id

    @property
    def _appends_class(self) -> bool:
        """CLIPS puts a class token behind the padding: its rows are never shorter than the context."""
        return getattr(self.library, "tokenizer_mode", "") == "clips"

    def rows(self, texts: Sequence[str], most: int) -> list[list[int]]:
        rows: list[list[int]] = self.library(list(texts), context_length=most).tolist()
        if not self._appends_class:
            for row in rows:
                while len(row) > 1 and row[-1] == self.padding:
                    row.pop()
        return rows

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        if self._hugging_face is None:
            return [self.library.encode(text) for text in texts]
        clean = [self._cleaned(text) for text in texts]
        return self._hugging_face(clean, add_special_tokens=False, verbose=False)["input_ids"]

    def _cleaned(self, text: str) -> str:
        import open_clip

        clean = getattr(self.library, "clean_fn", None) or open_clip.tokenizer.get_clean_fn("canonicalize")  # SigLIP's has none
        return clean(text)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        if self._hugging_face is None:
            return [self.library.decoder[number] for number in ids]
        return self._hugging_face.convert_ids_to_tokens(list(ids))

    def decode(self, ids: Sequence[int]) -> str:
        inside = self.library if self._hugging_face is None else self._hugging_face
        return inside.decode(list(ids)).strip()
