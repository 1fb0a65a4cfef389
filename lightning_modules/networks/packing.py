"""Words of a caption and regions (or patches) of its image in one sequence: what a network reads that looks at both together.

Legend: B pairs, P pairs by rows, A all tokens there are, S tokens of the packed sequence, W words, R regions, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_modules.networks.attention import Attended, Items, Relations
from lightning_modules.networks.pair_scorer import Ragged


@dataclass(frozen=True)
class Packed:
    """Words and regions of pairs in one sequence, the padding of both at its end, so that it is no longer than the longest pair.

    Args:
        x_BSD: Embeddings.
        mask_BS: bool, True = a real token; None = all are (pairs of one length).
        words_B: Words of every pair, [CLS] and [SEP] included: its tokens 0 .. words - 1.
        regions_B: Regions, which follow, with what special tokens an image has.
    """

    x_BSD: Tensor
    mask_BS: Tensor | None
    words_B: Tensor
    regions_B: Tensor


def pack(texts: Ragged, images: Ragged, text_P: Tensor | None = None, image_P: Tensor | None = None) -> Packed:
    """Join words and regions pair by pair and cut the sequence to the longest pair (the official `gather_index`).

    Args:
        texts: Embedded words.
        images: Embedded regions.
        text_P: Rows of the pairs' texts (int64); by default text i goes with image i.
        image_P: Rows of their images.
    """
    device = texts.states_ND.device
    if text_P is None or image_P is None:
        text_P = image_P = torch.arange(len(texts.lengths_B), device=device)
    words_P, regions_P = texts.lengths_B[text_P], images.lengths_B[image_P]
    total_P = words_P + regions_P
    place_S = torch.arange(int(total_P.max()), device=device)
    is_word_PS = place_S < words_P[:, None]
    mask_PS = place_S < total_P[:, None]
    # rows of (all words, then all regions); padding repeats the first row, and nothing looks at it
    word_PS = texts.starts()[text_P][:, None] + place_S
    region_PS = len(texts.states_ND) + (images.starts()[image_P] - words_P)[:, None] + place_S
    row_PS = torch.where(mask_PS, torch.where(is_word_PS, word_PS, region_PS), 0)
    both_AD = torch.cat([texts.states_ND, images.states_ND])
    x_PSD = both_AD.index_select(0, row_PS.flatten()).unflatten(0, row_PS.shape)
    return Packed(x_PSD, None if bool(mask_PS.all()) else mask_PS, words_P, regions_P)


def items_of(packed: Packed, attention: dict[int, Attended], rows: Tensor | None = None, special: int = 0) -> Relations:
    """Attention of packed pairs as relations of content words ([CLS] and [SEP] are none) and regions.

    Args:
        packed: The pairs.
        attention: What the encoder gave for them.
        rows: Only these pairs (int64).
        special: Tokens before an image's regions that are none (ViLT's [CLS] of the image).
    """
    words_B, regions_B = packed.words_B, packed.regions_B
    if rows is not None:
        words_B, regions_B = words_B[rows], regions_B[rows]
        attention = {i: each.rows(rows) for i, each in attention.items()}
    place_W = torch.arange(max(int(words_B.max()) - 2, 1), device=words_B.device)
    regions_B = regions_B - special
    place_R = torch.arange(max(int(regions_B.max()), 1), device=words_B.device)
    end = packed.x_BSD.shape[1] - 1
    words = Items((place_W + 1).clamp_max(end).expand(len(words_B), -1), place_W < words_B[:, None] - 2)
    regions = Items((words_B[:, None] + special + place_R).clamp_max(end), place_R < regions_B[:, None])
    return Relations(attention, words, regions)
