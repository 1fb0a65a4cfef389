"""UNITER with the heads of its pre-training, as the released code computes them (ChenRocks/UNITER `model/pretrain.py`).

    words      y = LN(GELU(Linear(x)));  logits = y W^T + b       W the table of words
    features   y = LN(GELU(Linear(x)));  feature = y P + b        P the weight of the map from features to states
    classes    y = LN(GELU(Linear(x)));  logits = Linear(y)
    matching   Linear(tanh(Linear(x[CLS])))

The feature of a hidden region is zero, plus one learned vector.

Legend: B pairs, T text tokens, R regions, N of them that are looked at, D width, F feature width.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter

from datamodules.errors import InputError
from datamodules.inputs import RegionInput
from datamodules.records import MaskedBatch
from lightning_modules.networks.packing import pack
from lightning_modules.networks.pair_scorer import Ragged
from lightning_modules.networks.pretraining import CLASSES, FEATURES, MATCHING, WORDS, MaskedStates, PretrainingNetwork
from lightning_modules.networks.start import fresh_names
from lightning_modules.networks.uniter import EPS, UniterRetrieval

_HIDDEN = 1  # row of the mask feature's table
_PREFIXES = {WORDS: ("words.",), FEATURES: ("features.",), CLASSES: ("classes.",), MATCHING: ("itm.", "encoder.pooler.")}
_REGIONS = "encoder.region_embed."
_MASK_FEATURE = f"{_REGIONS}mask_feature.weight"


class Guess(nn.Module):
    """What the heads of words, features and classes begin with, [N, D] -> [N, D], and a bias for what comes out."""

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.bias = Parameter(torch.zeros(out_width))

    def forward(self, states_ND: Tensor) -> Tensor:
        return self.norm(F.gelu(self.dense(states_ND)))


class GuessClasses(nn.Module):
    """[N, D] -> [N, C]."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.out = nn.Linear(width, classes)

    def forward(self, states_ND: Tensor) -> Tensor:
        return self.out(self.norm(F.gelu(self.dense(states_ND))))


class UniterPretraining(UniterRetrieval, PretrainingNetwork):
    """UNITER to be pre-trained: its encoder with the heads that guess what is hidden. With the defaults and 1,601 classes it has
    the 112,938,887 parameters of the released one, and 769 of the ranking head, which takes no part.

    What it has learnt starts other UNITERs as their `weights`: a run's checkpoint as RUN/checkpoints/best.ckpt#network., or an
    official file (`checkpoints.uniter.write_official`).

    Args:
        region_classes: Classes of the detector, background included, for the tasks of region classes (released: 1601). Null: it
            has no head for them.
        options: Those of `UniterRetrieval`. `weights` may be a BERT, whose head for hidden words comes along, or a UNITER.

    Raises:
        InputError: Fewer than two classes, or sizes that do not divide.
    """

    def __init__(self, region_classes: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        if region_classes is not None and region_classes < 2:
            raise InputError(f"UNITER: region_classes is {region_classes}; give at least 2 (class 0 is the background), or null")
        std: float = options.get("init_std", 0.02)
        width, vocabulary = self.itm.in_features, self.encoder.text_embed.words.num_embeddings
        assert self.inputs.regions is not None
        feature_width = self.inputs.regions.feature_width
        self.words = Guess(width, vocabulary)
        self.features = Guess(width, feature_width)
        self.classes = None if region_classes is None else GuessClasses(width, region_classes)
        for part in (self.words, self.features, self.classes):
            for module in () if part is None else part.modules():
                if isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, std=std)
                    nn.init.zeros_(module.bias)
        self.inputs = replace(self.inputs, regions=RegionInput(feature_width, region_classes), masked=True)
        self.fresh = fresh_names(self, options.get("weights"))
        self._heads: frozenset[str] = frozenset(_PREFIXES)
        self._images: Literal["never", "sometimes", "always"] = "always"

    # ------------------------------------------------------------------------------------------------------ pre-training

    def encode_masked(self, batch: MaskedBatch, text_only: bool = False) -> MaskedStates:
        """See `PretrainingNetwork`.

        Raises:
            InputError: The batch carries no regions.
        """
        texts = self.embed_texts(batch.texts)
        count = batch.texts.tokens_BT.shape[1]
        if text_only:
            none = torch.zeros_like(texts.lengths_B)
            packed = pack(texts, Ragged(texts.states_ND[:0], none))
            words_BTD = self.encoder(packed).tokens_BSD
            return MaskedStates(words_BTD, words_BTD[:, :0])
        regions = batch.images.regions
        if regions is None:
            raise InputError("UNITER needs region features, but the data module's images carry none; set its regions option")
        packed = pack(texts, self._embed_masked(batch))
        tokens_BSD = self.encoder(packed).tokens_BSD
        place_BR = packed.words_B[:, None] + torch.arange(regions.mask_BR.shape[1], device=tokens_BSD.device)
        place_BR1 = place_BR.clamp_max(tokens_BSD.shape[1] - 1)[:, :, None]
        regions_BRD = tokens_BSD.gather(1, place_BR1.expand(-1, -1, tokens_BSD.shape[2]))
        return MaskedStates(tokens_BSD[:, :count], regions_BRD)

    def _embed_masked(self, batch: MaskedBatch) -> Ragged:
        """Embedded regions, the hidden ones without what they look like."""
        if batch.hidden_BR is None:
            return self.embed_images(batch.images)
        regions, embed = batch.images.regions, self.encoder.region_embed
        assert regions is not None
        hidden_BR1 = batch.hidden_BR[:, :, None]
        features_BRF = regions.features_BRD.to(embed.mask_feature.weight.dtype)
        masked_BRF = torch.where(hidden_BR1, embed.mask_feature.weight[_HIDDEN], features_BRF)
        return self.encoder.embed_regions(masked_BRF, regions.boxes_BR7, regions.mask_BR)

    def word_logits(self, states_ND: Tensor) -> Tensor:
        """See `PretrainingNetwork`."""
        return F.linear(self.words(states_ND), self.encoder.text_embed.words.weight, self.words.bias).float()

    def region_features(self, states_ND: Tensor) -> Tensor:
        """See `PretrainingNetwork`."""
        return F.linear(self.features(states_ND), self.encoder.region_embed.features.weight.T, self.features.bias).float()

    def region_logits(self, states_ND: Tensor) -> Tensor:
        """See `PretrainingNetwork`."""
        assert self.classes is not None, "learn() has seen that it is there"
        logits_NC: Tensor = self.classes(states_ND)
        return logits_NC.float()

    def match_logits(self, states: MaskedStates) -> Tensor:
        """See `PretrainingNetwork`."""
        return self.itm(self.encoder.pool(states.words_BTD)).float()

    # --------------------------------------------------------------------------------------------------- what takes part

    def learn(self, heads: Set[str], images: Literal["never", "sometimes", "always"]) -> None:
        """See `PretrainingNetwork`."""
        if CLASSES in heads and self.classes is None:
            raise InputError(
                "model.objectives: one learns the classes of regions, and the network has no head for them: set region_classes "
                "of the network to the detector's number of classes, background included."
            )
        self._heads, self._images = frozenset(heads), images

    def head_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Those of pre-training and the matching head. (The ranking head takes no part.)"""
        heads = ("words.", "features.", "classes.", "itm.", "rank.")
        return ((name, p) for name, p in self.named_parameters() if name.startswith(heads))

    def unused_parameters(self) -> frozenset[str]:
        """The ranking head, the heads of no objective, the mask feature where no region is hidden, and where no image is ever
        looked at, all that embeds regions."""
        prefixes = [prefix for head, own in _PREFIXES.items() if head not in self._heads for prefix in own]
        prefixes += [_REGIONS] if self._images == "never" else []
        prefixes += [] if self._heads & {FEATURES, CLASSES} else [_MASK_FEATURE]
        return frozenset(name for name, _ in self.named_parameters() if name.startswith(("rank.", *prefixes)))

    def occasional_parameters(self) -> frozenset[str]:
        """A step is of one task and passes the heads of the others by."""
        prefixes = [prefix for own in _PREFIXES.values() for prefix in own]
        prefixes += [_MASK_FEATURE] + ([_REGIONS] if self._images == "sometimes" else [])
        names = {name for name, _ in self.named_parameters() if name.startswith(tuple(prefixes))}
        return (super().occasional_parameters() | names) - self.unused_parameters()
