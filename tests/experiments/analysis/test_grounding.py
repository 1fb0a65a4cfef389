"""Where the words of captions look: which tokens name a thing, and how much of their attention is in its boxes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_captioner
import torch

from datamodules.errors import InputError
from datamodules.files.images import open_image
from datamodules.flickr30k_entities import Flickr30kEntities
from datamodules.miniworld.write import write_world
from datamodules.records import Box, Caption, Phrase
from experiments.analysis.grid import covered_area, share_in_box
from experiments.analysis.grounding import naming, word_shares
from experiments.analysis.word_maps import token_maps
from lightning_modules.adapters.i_tuning import ITuning
from lightning_modules.networks.captioner import Captioner
from lightning_modules.networks.language_model import LanguageModel
from lightning_modules.networks.towers.hugging_face import HFImageTower

LEFT, RIGHT = Box(0, 0, 10, 20), Box(10, 0, 20, 20)


def test_only_phrases_with_boxes_name_a_thing_and_their_last_token_is_the_noun() -> None:
    text = "Two balls in the snow next to a red cube ."
    phrases = (
        Phrase(0, 9, "1", "other", (LEFT, RIGHT)),
        Phrase(13, 21, "2", "scene"),
        Phrase(30, 40, "3", "other", (RIGHT,)),
    )
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(text.split()))}
    tokenizer = lambda word, **_: {"input_ids": [vocabulary[word]]}  # noqa: E731
    network = SimpleNamespace(language=SimpleNamespace(hf_tokenizer=tokenizer))

    ids, named = naming(network, Caption("0", text, phrases))

    assert ids == list(range(11))
    assert named == [(1, (LEFT, RIGHT)), (9, (RIGHT,))]


def captioner(world: Path) -> Captioner:
    """Random weights, the world's words."""
    torch.manual_seed(5)
    config = {**tiny_captioner.FAMILIES["gpt2"], "vocab_size": 320, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    language = LanguageModel(config=config, weights="random", tokenizer=str(world / "tokenizer"), max_tokens=24)
    network = Captioner(HFImageTower(config=tiny_captioner.CLIP, weights="random"), language)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return network.eval().requires_grad_(False)


def test_shares_are_those_of_the_maps_of_each_layer(tmp_path: Path) -> None:
    world = write_world(tmp_path / "world", scenes=30, image_size=32, workers=1)
    root, network = world / "flickr30k", captioner(world)
    with pytest.raises(InputError, match="this captioner has no adapter, so there are none"):
        word_shares(network, root, 9)
    ITuning(init_std=0.1, drop_first=2).inject(network)

    shares, (boxed, *_) = word_shares(network, root, 9)

    data = Flickr30kEntities(root=str(root), split="karpathy", num_workers=0, eval_batch_size=16)
    data.connect(network.inputs)
    (loader,), records = data.evaluation_loaders("test"), data.records("test")
    batch = next(iter(loader))
    features = network.encode_images(batch)
    expected: list[tuple[float, ...]] = []
    maps_of_words, boxes_of_words = [], []
    assert len(batch.index_B) > 1
    for row, image in enumerate(batch.index_B.tolist()):
        for caption in records[image].captions:
            ids, names = naming(network, caption)
            first, last = (token_maps(network, features, [ids], [row], layer=layer)[0].maps_TYX for layer in (2, 3))
            covered = covered_area(network.inputs.image, *open_image(records[image]).size)
            for token, boxes in names:
                own = share_in_box(last[token], boxes, covered)
                even = last[token] / last[token].sum()
                entropy = -float((even * np.log(even)).sum())
                expected.append(
                    (
                        image,
                        share_in_box(first[token], boxes, covered).attention,
                        own.attention,
                        own.area,
                        entropy,
                        last[token].argmax(),
                    )
                )
                maps_of_words.append(last[token])
                boxes_of_words.append((boxes, covered))
    away = len(expected) // 2
    elsewhere = [share_in_box(maps_of_words[at - away], *where).attention for at, where in enumerate(boxes_of_words)]
    assert shares.layers_L.tolist() == [2, 3]
    found = [shares.image_W, *shares.inside_LW, shares.area_W, np.log(shares.patches_W), shares.peak_W]
    np.testing.assert_allclose(np.stack(found), np.array(expected).T, atol=1e-5)
    np.testing.assert_allclose(shares.elsewhere_W, elsewhere, atol=1e-5)
    np.testing.assert_array_equal(shares.inside_W, shares.inside_LW[1])
    assert boxed.shown == "layer 3, mean over heads, where each token is predicted"
    assert shares.shown == "2 x 2 patches, mean over heads, where each token is predicted"
