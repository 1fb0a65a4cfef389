"""BridgeTower (Xu et al., arXiv 2206.08657) as transformers has it: RoBERTa and CLIP-ViT, whose upper layers each feed a layer in
which words and patches look at each other.

Released code: microsoft/BridgeTower `src/modules/bt_module.py`.

    towers   t_0 .. t_C-1 and v_0 .. v_C-1: the last C layers of RoBERTa and of the ViT, mapped to one width, plus a type
    start    x = LN(t_0),  y = LN(v_0)
    bridge   x = LN(t_c + x),  y = LN(v_c + y)                                       before every later layer
    layer    x' = FFN(cross-attention(attention(x), y)),  y' = FFN(cross-attention(attention(y), x))
    score    Linear of tanh(Linear(x[CLS])) beside tanh(Linear(y[class]))            two outputs: does not belong, belongs

What the towers say of an image or a caption is computed once, all C layers of it: an image of 325 tokens and six layers of 768 is
6 MB in fp32, so a split of 1,000 images needs 6 GB. Scoring keeps them on the device.

A layer has one attention among words, one among patches, and two between them, each with projections of its own. IAIS compares
blocks of one attention over one sequence, which there is not.

Legend: B items, P pairs, T text tokens, V patches (the class token first), D width, C layers in which both meet.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from datamodules.errors import InputError
from datamodules.inputs import Inputs
from datamodules.records import ImageBatch, TextBatch
from lightning_modules.networks.bert_layers import Memory, cross_attention, feed_forward, self_attention
from lightning_modules.networks.hugging_face_scorer import HuggingFaceScorer, Score, clip_image_input
from lightning_modules.networks.network import pixels_of
from lightning_modules.networks.pair_scorer import Ragged

TEXT_TYPE, IMAGE_TYPE = 0, 1  # rows of the token type table


class BridgeTower(HuggingFaceScorer):
    """BridgeTower's image-text matching.

    Args:
        name: Hub name or folder with weights, e.g. BridgeTower/bridgetower-base-itm-mlm, -large-itm-mlm. Entries without "itm"
            bring no matching head: it is new then.
        config: Instead of `name`: sizes as BridgeTowerConfig names them: {hidden_size: 768, num_hidden_layers: 6, text_config:
            {...}, vision_config: {...}}.
        weights: With `config`: a file with the library's keys; random = random weights on purpose. Null = random, to be trained
            or brought by init_from.
        tokenizer: Hugging Face name or folder of a RoBERTa tokenizer; null = `name`, which brings one.
        max_tokens: Tokens of a caption, begin and end included; longer ones are cut (released: 50).
        score: "logit" = the output "belongs", as in the library's example; "log_odds" = less the other output, which orders pairs
            as the probability does.

    Raises:
        InputError: Nothing to build, no tokenizer, weights that do not fit, or towers of different depth.
    """

    heads = ("itm_score.",)
    without = ("bridgetower.text_model.pooler", "bridgetower.vision_model.visual.ln_separate")
    matched = 1
    unrelated = (
        "BridgeTower's words and patches look at each other by cross-attention with projections of its own, and no sequence "
        "holds both, so it has no relations to align"
    )

    def __init__(
        self,
        name: str | None = None,
        config: dict[str, Any] | None = None,
        weights: str | None = None,
        tokenizer: str | None = None,
        max_tokens: int = 50,
        score: Score = "logit",
    ) -> None:
        from transformers import BridgeTowerForImageAndTextRetrieval

        super().__init__()
        settings = self._build(BridgeTowerForImageAndTextRetrieval, name, config, weights, score)
        text: Any = settings.text_config
        layers, blocks = len(self._tower.text_model.encoder.layer), len(self._blocks)
        if layers != blocks or not 0 < settings.num_hidden_layers <= layers:
            raise InputError(
                f"BridgeTower: {layers} text layers, {blocks} image layers and {settings.num_hidden_layers} layers of both do "
                "not fit; give both towers as many, and no more layers of both than these"
            )
        positions = int(text.max_position_embeddings) - int(text.pad_token_id) - 1  # the table starts behind the padding index
        self.bridges = int(settings.num_hidden_layers)
        self.padding = int(text.pad_token_id)
        self.inputs = Inputs(
            image=clip_image_input(name, int(settings.vision_config.image_size), "crop"),
            text=self._text_input(name, tokenizer, max_tokens, positions, int(text.vocab_size)),
            ranking=True,
        )

    @property
    def _tower(self) -> Any:
        model: Any = self.model
        return model.bridgetower

    @property
    def _blocks(self) -> Any:
        return self._tower.vision_model.visual.transformer.resblocks

    @property
    def _alone(self) -> int:
        """Layers of a tower behind which the first layer of both comes."""
        return len(self._blocks) - self.bridges + 1

    def embed_images(self, batch: ImageBatch) -> Ragged:
        """Every image through the ViT: of each token what all C layers get of it, side by side [C * D].

        Raises:
            InputError: The batch carries no pixels.
        """
        pixels_B3HW = pixels_of(batch, "BridgeTower needs", "leave its regions option out")
        tower = self._tower
        visual = tower.vision_model.visual
        x_VBD = visual.forward_pre(pixels_B3HW.to(tower.vision_model.dtype))
        type_D = tower.token_type_embeddings.weight[IMAGE_TYPE]
        fed = []
        for i, block in enumerate(self._blocks):
            x_VBD = block(x_VBD)
            if (bridge := i + 1 - self._alone) >= 0:
                fed.append(tower._apply_image_transform(visual.forward_post(x_VBD), bridge) + type_D)
        fed[0] = tower.cross_modal_image_layernorm(fed[0])
        return Ragged.even(torch.cat(fed, dim=-1))

    def embed_texts(self, batch: TextBatch) -> Ragged:
        """Every caption through RoBERTa, likewise."""
        tower = self._tower
        embed, tokens_BT = tower.text_model.embeddings, batch.tokens_BT
        place_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device) + self.padding + 1
        sum_BTD = embed.word_embeddings(tokens_BT) + embed.token_type_embeddings.weight[0] + embed.position_embeddings(place_T)
        x_BTD = embed.dropout(embed.LayerNorm(sum_BTD))
        type_D = tower.token_type_embeddings.weight[TEXT_TYPE]
        fed = []
        for i, layer in enumerate(tower.text_model.encoder.layer):
            x_BTD, _ = self_attention(layer.attention, x_BTD, batch.mask_BT)
            x_BTD = feed_forward(layer, x_BTD)
            if (bridge := i + 1 - self._alone) >= 0:
                fed.append(tower._apply_text_transform(x_BTD, bridge) + type_D)
        fed[0] = tower.cross_modal_text_layernorm(fed[0])
        return Ragged.of(torch.cat(fed, dim=-1), batch.mask_BT)

    def score_pairs(self, images: Ragged, texts: Ragged, image_P: Tensor, text_P: Tensor) -> Tensor:
        """See `RankingNetwork`."""
        tower, model = self._tower, self.model
        words_PTX, mask_PT = texts.padded(text_P)
        patches_PVX, mask_PV = images.padded(image_P)
        words, patches = words_PTX.chunk(self.bridges, -1), patches_PVX.chunk(self.bridges, -1)
        x_PTD, y_PVD = words[0], patches[0]
        for i in range(self.bridges):
            if i:
                x_PTD = tower.cross_modal_text_link_tower[i - 1](words[i], x_PTD, None)
                y_PVD = tower.cross_modal_image_link_tower[i - 1](patches[i], y_PVD, None)
            last = i == self.bridges - 1
            x_PTD, y_PVD = (
                _meet(tower.cross_modal_text_layers[i], x_PTD, mask_PT, Memory(y_PVD, mask_PV), last),
                _meet(tower.cross_modal_image_layers[i], y_PVD, mask_PV, Memory(x_PTD, mask_PT), last),
            )
        with torch.autocast(x_PTD.device.type, enabled=False):
            dtype = tower.cross_modal_text_pooler.dense.weight.dtype
            pooled_PX = tower.get_cls_features(x_PTD.to(dtype), y_PVD.to(dtype))
        head: Any = model
        return self._matching_score(head.itm_score, pooled_PX)

    @property
    def num_layers(self) -> int:
        """Layers in which words and patches meet."""
        return self.bridges


def _meet(layer: nn.Module, x_PTD: Tensor, mask_PT: Tensor | None, memory: Memory, first: bool) -> Tensor:
    """A layer: its tokens look at each other, then at the other side's; `first`: only the first token is wanted."""
    part: Any = layer
    x_PTD, _ = self_attention(part.attention, x_PTD, mask_PT, first=first)
    return feed_forward(part, cross_attention(part.crossattention, x_PTD, memory))
