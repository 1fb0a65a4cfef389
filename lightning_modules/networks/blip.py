"""BLIP (Li et al., arXiv 2201.12086) as transformers has it: a ViT, and a BERT whose words look at the patches.

Released code: salesforce/BLIP `models/blip_retrieval.py`, `models/med.py`, `train_retrieval.py`.

    patches  ViT(image), once an image
    layer    h = LN(x + attention(x));   g = LN(h + cross-attention(h, patches));   y = LN(g + FFN(g))
    matching (ITM)     Linear(y[first])                                           two outputs: does not belong, belongs
    contrast (ITC)     cosine of Linear(patches[class]) and Linear(z[CLS])        z: the same BERT without cross-attention

Words look at patches and never the other way, so there is no sequence of both in which IAIS could compare anything.

The released retrieval code puts [ENC], the last word of its vocabulary, in the place of [CLS] before it matches. The library
leaves [CLS] there. Both readings exist by name (`first_token`); the printed recalls are of "enc".

Legend: B items, P pairs, U images of the pairs, T text tokens, V patches (the class token first), D width, E shared width.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.errors import InputError
from datamodules.inputs import Inputs
from datamodules.records import ImageBatch, TextBatch
from lightning_modules.networks.bert_layers import Memory, cross_attention, feed_forward, self_attention
from lightning_modules.networks.hugging_face_scorer import HuggingFaceScorer, Score, clip_image_input
from lightning_modules.networks.network import pixels_of
from lightning_modules.networks.pair_scorer import Ragged

CONTRAST = ("vision_proj.", "text_proj.")


class BLIP(HuggingFaceScorer):
    """BLIP's image-text matching, with its image-text contrast as a first stage.

    Args:
        name: Hub name or folder with weights, e.g. Salesforce/blip-itm-base-coco, -base-flickr, -large-coco, -large-flickr.
        config: Instead of `name`: sizes as BlipConfig names them: {text_config: {...}, vision_config: {...},
            image_text_hidden_size: 256}.
        weights: With `config`: a file with the library's keys; random = random weights on purpose. Null = random, to be trained
            or brought by init_from.
        tokenizer: Hugging Face name or folder of a BERT tokenizer; null = `name`, which brings one.
        max_tokens: Tokens of a caption, [CLS] and [SEP] included; longer ones are cut (released: 35).
        first_token: What a caption begins with when it is matched: "enc" as in the released retrieval code, "cls" as in the
            library.
        score: "logit" = the output "belongs", as released; "log_odds" = less the other output, which orders pairs as the
            probability does.

    Raises:
        InputError: Nothing to build, no tokenizer, weights that do not fit, or a text side without cross-attention.
    """

    heads = ("itm_head.",)
    matched = 1
    unrelated = "BLIP's words look at patches by cross-attention, and no sequence holds both, so it has no relations to align"

    def __init__(
        self,
        name: str | None = None,
        config: dict[str, Any] | None = None,
        weights: str | None = None,
        tokenizer: str | None = None,
        max_tokens: int = 35,
        first_token: Literal["enc", "cls"] = "enc",
        score: Score = "logit",
    ) -> None:
        from transformers import BlipForImageTextRetrieval

        super().__init__()
        settings = self._build(BlipForImageTextRetrieval, name, config, weights, score)
        text: Any = settings.text_config
        if not text.is_decoder:
            raise InputError(
                "BLIP: text_config.is_decoder is false, which leaves out the cross-attention to the patches; set it true"
            )
        self.first_token = first_token
        self.inputs = Inputs(
            image=clip_image_input(name, int(settings.vision_config.image_size), "squash"),
            text=self._text_input(name, tokenizer, max_tokens, int(text.max_position_embeddings), int(text.vocab_size)),
            ranking=True,
        )

    @property
    def _blip(self) -> Any:
        return self.model

    def embed_images(self, batch: ImageBatch) -> Ragged:
        """Every image through the ViT: its patches, the class token first.

        Raises:
            InputError: The batch carries no pixels.
        """
        pixels_B3HW = pixels_of(batch, "BLIP needs", "leave its regions option out")
        return Ragged.even(self._blip.vision_model(pixel_values=pixels_B3HW).last_hidden_state)

    def embed_texts(self, batch: TextBatch) -> Ragged:
        """Embedded words of every caption, from [CLS] on."""
        return Ragged.of(self._words(batch.tokens_BT), batch.mask_BT)

    def _words(self, tokens_BT: Tensor) -> Tensor:
        """[B, T, D], before the dropout."""
        embed = self._blip.text_encoder.embeddings
        return embed.LayerNorm(embed.word_embeddings(tokens_BT) + embed.position_embeddings.weight[: tokens_BT.shape[1]])

    def score_pairs(self, images: Ragged, texts: Ragged, image_P: Tensor, text_P: Tensor) -> Tensor:
        """See `RankingNetwork`. Keys and values of an image are made once, however many pairs it is in."""
        x_PTD, mask_PT = texts.padded(text_P)
        if self.first_token == "enc":
            words = self._blip.text_encoder.embeddings.word_embeddings.num_embeddings
            encode_11D = self._words(text_P.new_full((1, 1), words - 1))
            x_PTD = torch.cat([encode_11D.to(x_PTD.dtype).expand(len(x_PTD), -1, -1), x_PTD[:, 1:]], dim=1)
        states_UVD, mask_UV = images.padded()
        memory = Memory(states_UVD, None if mask_UV is None else mask_UV[image_P], image_P)
        return self._matching_score(self._blip.itm_head, self._encode(x_PTD, mask_PT, memory))

    def _encode(self, x_PTD: Tensor, mask_PT: Tensor | None, memory: Memory | None) -> Tensor:
        """The first token [P, D] behind all layers; the last one computes nothing else."""
        text = self._blip.text_encoder
        x_PTD = text.embeddings.dropout(x_PTD)
        for i, layer in enumerate(text.encoder.layer):
            x_PTD, _ = self_attention(layer.attention, x_PTD, mask_PT, first=i == self.num_layers - 1)
            if memory is not None:
                x_PTD = cross_attention(layer.crossattention, x_PTD, memory)
            x_PTD = feed_forward(layer, x_PTD)
        return x_PTD[:, 0]

    # ------------------------------------------------------------------------------------- first stage

    def image_vectors(self, images: Ragged) -> Tensor:
        """See `FirstStage`: [B, E], fp32."""
        return _unit(self._blip.vision_proj, images.states_ND[images.starts()])

    def text_vectors(self, texts: Ragged) -> Tensor:
        """See `FirstStage`: [B, E], fp32."""
        return _unit(self._blip.text_proj, self._encode(*texts.padded(), memory=None))

    def first_stage_parameters(self) -> frozenset[str]:
        """See `FirstStage`."""
        return frozenset(f"model.{part}{leaf}" for part in CONTRAST for leaf in ("weight", "bias"))

    # -------------------------------------------------------------------------------------------------

    def unused_parameters(self) -> frozenset[str]:
        """The projections of the contrast: training ranks by the matching head alone."""
        return self.first_stage_parameters()

    @property
    def num_layers(self) -> int:
        """Layers of the text side."""
        return len(self._blip.text_encoder.encoder.layer)


def _unit(projection: Any, states_BD: Tensor) -> Tensor:
    with torch.autocast(states_BD.device.type, enabled=False):
        return F.normalize(projection(states_BD.to(projection.weight.dtype)).float(), dim=-1)
