"""A pair scorer around a model of Hugging Face: how it is built, what its matching head says, what an adapter run starts from.

The library's model is `model`, under its own keys. A hub name or folder brings weights with the library's own
`from_pretrained`; a file of `weights` is read by `checkpoints.fill`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from datamodules.errors import InputError, some
from datamodules.inputs import ImageInput, TextInput
from lightning_modules.networks.library_model import read_settings, require_one
from lightning_modules.networks.network import RankingNetwork
from lightning_modules.networks.quiet_loading import hugging_face
from lightning_modules.networks.start import fresh_names, refuse_until_read, to_read
from lightning_modules.networks.towers.base import NORMALIZATIONS
from lightning_modules.networks.towers.hugging_face import expanded, stored_normalization

Score = Literal["logit", "log_odds"]


class HuggingFaceScorer(RankingNetwork):
    """What the scorers share. Their constructors call `_build` first."""

    model: nn.Module
    heads: tuple[str, ...]
    """Beginnings of the names (in the model) of what scores a pair: the matching head."""
    without: tuple[str, ...] = ()
    """Parts of the library's model that no score needs (heads of other tasks): they are left out."""
    matched: int
    """Row of the matching head's two outputs that says "this caption belongs to this image"."""
    loaded_from: str | None = None  # a folder or hub name of Hugging Face's, whose weights are in the model already

    def _build(self, kind: Any, name: str | None, config: dict[str, Any] | None, weights: str | None, score: Score) -> Any:
        """Make `model`, and give its configuration.

        Args:
            kind: The library's class of the model.
            name: Hub name or folder, weights included.
            config: Instead: sizes, as the class's configuration names them. Random weights.
            weights: With `config`: a file with the model's keys, or "random".
            score: How the matching head's two outputs become a score.

        Raises:
            InputError: Not exactly one of name and config, options that the configuration does not know, or weights that lack
                more than the matching head.
        """
        where = f"{type(self).__name__} {name or 'by config'}"
        require_one(where, name, config, weights, described="sizes")
        settings = read_settings(where, name, config, kind.config_class)
        missing: frozenset[str] = frozenset()
        remedy = f"give a folder or hub name of a {kind.config_class.model_type}"
        with hugging_face(f"{where}: no usable {kind.__name__}", remedy, name):
            if name is None or torch.get_default_device().type == "meta":  # only to count: weights stay unread
                self.model = kind(settings).float()
            else:
                self.model, report = kind.from_pretrained(
                    name, config=settings, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
                )
                missing = frozenset(key for key in report["missing_keys"] if not key.startswith(self.without))
        if lacking := sorted(key for key in missing if not key.startswith(self.heads)):
            raise InputError(
                f"{where}: its weights do not fill {kind.__name__} (missing: {some(lacking)}); {remedy} whose weights have them"
            )
        for path in self.without:
            parent, _, leaf = path.rpartition(".")
            part = self.model.get_submodule(parent)
            if hasattr(part, leaf):  # some configurations have it, others not
                delattr(part, leaf)
        self.score = score
        self.weights, self.loaded_from = to_read(weights), name
        own = frozenset(f"model.{key}" for key in missing)
        self.fresh = own if name is not None else fresh_names(self, weights)
        heads = frozenset(head for head, _ in self.head_parameters())
        self.loaded_heads = frozenset() if name is None else heads - own
        refuse_until_read(self)
        return self.model.config

    def _text_input(self, name: str | None, tokenizer: str | None, max_tokens: int, positions: int, vocabulary: int) -> TextInput:
        """What texts must be, with the tokenizer that a name brings unless another is given.

        Raises:
            InputError: There is no tokenizer, or more tokens are asked for than there are positions.
        """
        kind = type(self).__name__
        if max_tokens > positions:
            raise InputError(f"{kind}: max_tokens {max_tokens} exceeds its {positions} text positions")
        if name is None and tokenizer is None:
            raise InputError(f"{kind}: tokenizer is missing (a Hugging Face name or folder); it is needed with config")
        return TextInput(str(tokenizer or expanded(name)), max_tokens, vocabulary)

    def head_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """The matching head, with its names."""
        heads = tuple(f"model.{head}" for head in self.heads)
        return ((name, parameter) for name, parameter in self.named_parameters() if name.startswith(heads))

    def _matching_score(self, head: nn.Module, pooled_PD: Tensor) -> Tensor:
        """Scores [P], in fp32 whatever autocast says: eight bits of a bf16 score leave a gallery full of ties, which count as
        misses."""
        with torch.autocast(pooled_PD.device.type, enabled=False):
            logits_P2: Tensor = head(pooled_PD.to(next(head.parameters()).dtype)).float()
        matched_P, other_P = logits_P2[:, self.matched], logits_P2[:, 1 - self.matched]
        return matched_P if self.score == "logit" else matched_P - other_P


def clip_image_input(name: str | None, size: int, resize: Literal["squash", "crop"]) -> ImageInput:
    """Pixels as CLIP normalizes them, or as the folder's preprocessor_config.json says.

    Args:
        name: Hub name or folder; None = there is none.
        size: Side of the square in pixels.
        resize: See `ImageInput`.
    """
    mean, std = NORMALIZATIONS["clip"]
    if name is not None:
        mean, std = stored_normalization(name, mean, std)
    return ImageInput(size=size, mean=mean, std=std, resize=resize)
