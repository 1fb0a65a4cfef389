"""VisualBERT (Li et al., arXiv 1908.03557) as transformers has it: UNITER's nearest relative, one BERT over words and regions.

    words    LN(word + position + type 0)
    regions  LN(Linear(feature) + visual position 0 + visual type 1)         boxes are not looked at
    layer    h = LN(x + Out(attention(x)));   y = LN(h + Fc2(GELU(Fc1(h))))
    score    Linear(tanh(Linear(y[CLS])))

The score is of its second pre-training task, sentence-image prediction: two captions, of which one belongs to the image, and does
the other, too? The entries `...-coco-pre` of the Hub bring that head (`cls.seq_relationship`, whose row 0 says "it does"). It was
never shown one caption alone, so here it is a start that has to be tuned, and no published recall belongs to it.

Legend: B pairs, T text tokens ([CLS] and [SEP] included), R regions, S tokens of the packed sequence, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from datamodules.errors import InputError
from datamodules.inputs import Inputs, RegionInput, TextInput
from datamodules.records import ImageBatch, PairBatch, TextBatch
from lightning_modules.networks.attention import Attended, Relations
from lightning_modules.networks.bert_layers import feed_forward, self_attention
from lightning_modules.networks.hugging_face_scorer import HuggingFaceScorer, Score
from lightning_modules.networks.packing import Packed, items_of, pack
from lightning_modules.networks.pair_scorer import Ragged


class VisualBERT(HuggingFaceScorer):
    """VisualBERT with the head of its sentence-image prediction.

    Args:
        name: Hub name or folder with weights, e.g. uclanlp/visualbert-vqa-coco-pre (features of 2048), -nlvr2-coco-pre (1024) or
            -vcr-coco-pre (512). Entries without "coco-pre" are of other tasks and bring no matching head: it is new then.
        config: Instead of `name`: sizes as VisualBertConfig names them, e.g. {hidden_size: 768, visual_embedding_dim: 2048}.
        weights: With `config`: a file with the library's keys; random = random weights on purpose. Null = random, to be trained
            or brought by init_from.
        tokenizer: Hugging Face name or folder of a BERT tokenizer (the Hub's entries bring none: theirs is bert-base-uncased);
            null where captions come as token ids.
        max_tokens: Tokens of a caption, [CLS] and [SEP] included; longer ones are cut. Null = as many as there are positions.
        score: "logit" = the output "belongs together", as UNITER takes it over; "log_odds" = less the other output, which orders
            pairs as the probability does.

    Raises:
        InputError: Nothing to build, weights that do not fit, or a configuration that leaves regions out of the layers
            (bypass_transformer).
    """

    heads = ("cls.seq_relationship.",)
    without = ("cls.predictions",)  # of masked words; its table is tied to that of the words
    matched = 0

    def __init__(
        self,
        name: str | None = None,
        config: dict[str, Any] | None = None,
        weights: str | None = None,
        tokenizer: str | None = "bert-base-uncased",
        max_tokens: int | None = None,
        score: Score = "logit",
    ) -> None:
        from transformers import VisualBertForPreTraining

        super().__init__()
        settings = self._build(VisualBertForPreTraining, name, config, weights, score)
        if settings.bypass_transformer:
            raise InputError(
                "VisualBERT: bypass_transformer keeps regions out of its layers, so no layer aligns them; set it false"
            )
        positions = int(settings.max_position_embeddings)
        max_tokens = positions if max_tokens is None else max_tokens
        if max_tokens > positions:
            raise InputError(f"VisualBERT: max_tokens {max_tokens} exceeds its {positions} text positions")
        self.inputs = Inputs(
            text=TextInput(tokenizer, max_tokens, int(settings.vocab_size)),
            regions=RegionInput(int(settings.visual_embedding_dim)),
        )

    @property
    def _bert(self) -> Any:
        model: Any = self.model
        return model.visual_bert

    def embed_images(self, batch: ImageBatch) -> Ragged:
        """Embedded regions of every image.

        Raises:
            InputError: The batch carries no regions.
        """
        if batch.regions is None:
            raise InputError("VisualBERT needs region features, but the data module's images carry none; set its regions option")
        embed, regions = self._bert.embeddings, batch.regions
        features_NF = regions.features_BRD[regions.mask_BR].to(embed.visual_projection.weight.dtype)
        place_D = embed.visual_position_embeddings.weight[0] + embed.visual_token_type_embeddings.weight[1]
        return Ragged(embed.LayerNorm(embed.visual_projection(features_NF) + place_D), regions.mask_BR.sum(1))

    def embed_texts(self, batch: TextBatch) -> Ragged:
        """Embedded words of every caption.

        Raises:
            InputError: A caption has more tokens than there are positions.
        """
        embed, length = self._bert.embeddings, batch.tokens_BT.shape[1]
        if length > (most := embed.position_embeddings.num_embeddings):
            raise InputError(f"VisualBERT has {most} text positions, got {length} tokens; lower max_tokens")
        place_TD = embed.position_embeddings.weight[:length] + embed.token_type_embeddings.weight[0]
        return Ragged.of(embed.LayerNorm(embed.word_embeddings(batch.tokens_BT) + place_TD), batch.mask_BT)

    def score_pairs(self, images: Ragged, texts: Ragged, image_P: Tensor, text_P: Tensor) -> Tensor:
        """See `RankingNetwork`."""
        return self._score(pack(texts, images, text_P, image_P))[0]

    def score_related(self, images: Ragged, texts: Ragged, layers: Sequence[int]) -> tuple[Tensor, Relations]:
        """See `RankingNetwork`."""
        packed = pack(texts, images)
        scores_P, attention = self._score(packed, layers)
        return scores_P, items_of(packed, attention)

    def relations(self, batch: PairBatch, layers: Sequence[int]) -> Relations:
        """Contract 4: attention of some layers (0-based) for every pair, and where its words and regions are."""
        packed = pack(self.embed_texts(batch.texts), self.embed_images(batch.images))
        return items_of(packed, self._score(packed, layers)[1])

    def _score(self, packed: Packed, layers: Sequence[int] = ()) -> tuple[Tensor, dict[int, Attended]]:
        """Scores [B], and queries and keys of these layers. The last layer computes only the token that is pooled."""
        if wrong := [i for i in layers if not 0 <= i < self.num_layers]:
            raise InputError(
                f"attention of layers {wrong} was asked for, but this VisualBERT has layers 0 to {self.num_layers - 1}"
            )
        bert, access = self._bert, {}
        # the last thing that embedding does; here every pair drops its own
        x_BSD = bert.embeddings.dropout(packed.x_BSD)
        for i, layer in enumerate(bert.encoder.layer):
            last = i == self.num_layers - 1
            x_BSD, seen = self_attention(layer.attention, x_BSD, packed.mask_BS, wanted=i in layers, first=last)
            x_BSD = feed_forward(layer, x_BSD)
            if seen is not None:
                access[i] = seen
        model: Any = self.model
        with torch.autocast(x_BSD.device.type, enabled=False):
            pooled_BD = bert.pooler(x_BSD.to(bert.pooler.dense.weight.dtype))
        return self._matching_score(model.cls.seq_relationship, pooled_BD), access

    @property
    def num_layers(self) -> int:
        return len(self._bert.encoder.layer)

    def layer_id(self, name: str) -> int:
        """Layer of a parameter for layer-wise decay: embeddings 0, layer i -> i + 1, pooler and head last."""
        if ".embeddings." in name:
            return 0
        parts = name.split(".")
        return int(parts[parts.index("layer") + 1]) + 1 if "layer" in parts else self.num_layers + 1
