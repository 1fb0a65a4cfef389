"""Which places of an image a word of a caption depends on, by gradient: for captioners without attention maps, and beside those.

Gradient x input (Shrikumar et al. 2016, arXiv 1605.01713): the word's log-probability is differentiated by the pixels, as the
network has them, and multiplied with them. A pixel counts with the size of the sum over its colors, a cell of the map with the
mean over its pixels. The input that counts as nothing is 0, the mean color of the network's normalization. A gradient says what a
small change would do, which is not what the word was read from; so it is a measure of its own, beside that of attention.

Legend: N words, T tokens of a caption, Y and X rows and columns of a grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from datamodules.errors import InputError
from experiments.analysis.grid import Grid
from lightning_modules.networks.captioner import Captioner, VisualFeatures

_WORDS = 32  # at once: each has its image's activations to itself


def gradient_maps(
    network: Captioner,
    pixels_N3HW: Tensor,
    captions: Sequence[Sequence[int]],
    tokens: Sequence[int],
    grid: Grid,
) -> NDArray[np.float32]:
    """[N, Y, X], at least 0: a map of one token of each caption, given the tokens before it.

    Args:
        network: A captioner that sees images, in eval mode.
        pixels_N3HW: The image of each caption, as the network takes it.
        captions: Token ids.
        tokens: Which one of each, by its place.
        grid: How fine.

    Raises:
        InputError: The captioner sees no image.
    """
    if network.alone:
        raise InputError("this captioner has no adapter and sees no image, so no word depends on a place of it")
    found = []
    for start in range(0, len(captions), _WORDS):
        some = slice(start, start + _WORDS)
        found.append(_maps(network, pixels_N3HW[some], captions[some], tokens[some], grid))
    return np.concatenate(found) if found else np.zeros((0, grid.rows, grid.columns), np.float32)


def _maps(
    network: Captioner, pixels_N3HW: Tensor, captions: Sequence[Sequence[int]], tokens: Sequence[int], grid: Grid
) -> NDArray[np.float32]:
    device, rows = pixels_N3HW.device, range(len(captions))
    longest = max(tokens) + 1  # what comes behind a word decides nothing about it
    tokens_NT = torch.tensor(
        [[*row[:longest], *[network.language.eos] * (longest - len(row))] for row in captions], device=device
    )
    with torch.enable_grad():
        pixels_N3HW = pixels_N3HW.detach().clone().requires_grad_()
        try:
            features = VisualFeatures(network.visual_tokens(pixels_N3HW))
            states_NTW = network.states(features, tokens_NT, torch.arange(len(rows), device=device))
        finally:
            network.clear_images()
        place_N = torch.tensor(list(tokens), device=device)
        logits_NV = network.language.logits(states_NTW[list(rows), place_N]).float()
        log_prob_N = logits_NV.log_softmax(-1)[list(rows), tokens_NT[list(rows), place_N]]
        (gradient_N3HW,) = torch.autograd.grad(log_prob_N.sum(), pixels_N3HW)
    size_NHW = (gradient_N3HW * pixels_N3HW.detach()).sum(1).abs()
    return F.adaptive_avg_pool2d(size_NHW[:, None], (grid.rows, grid.columns))[:, 0].float().cpu().numpy()
