"""Where the words of captions look: which tokens name a thing, and how much of their attention is in its boxes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_captioner
import torch

from datamodules.errors import InputError
from datamodules.files.images import open_image
from datamodules.flickr30k_entities import Flickr30kEntities
from datamodules.image_text import Limits
from datamodules.miniworld.write import write_world
from datamodules.records import Box, Caption, Phrase
from experiments.analysis.gradient_maps import gradient_maps
from experiments.analysis.grid import Grid, covered_area, share_in_box
from experiments.analysis.grounding import middles_in_boxes, naming, word_shares
from experiments.analysis.stored_maps import SHARES_FILES, store_map, stored_shares
from experiments.analysis.word_maps import token_maps
from lightning_modules.adapters.clipcap import ClipCap
from lightning_modules.adapters.i_tuning import ITuning
from lightning_modules.networks.captioner import Captioner, VisualFeatures
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


def captioner(world: Path, **options: Any) -> Captioner:
    """Random weights, the world's words."""
    torch.manual_seed(5)
    config = {**tiny_captioner.FAMILIES["gpt2"], "vocab_size": 320, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    language = LanguageModel(config=config, weights="random", tokenizer=str(world / "tokenizer"), max_tokens=24)
    network = Captioner(HFImageTower(config=tiny_captioner.CLIP, weights="random"), language, **options)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return network.eval().requires_grad_(False)


def entities(root: Path) -> Flickr30kEntities:
    return Flickr30kEntities(root=str(root), split="karpathy", num_workers=0, eval_batch_size=16)


def test_a_place_is_in_a_box_where_its_middle_is() -> None:
    """The image from 10 to 30 across and 0 to 20 down: middles at 15 and 25, 5 and 15."""
    covered = Box(10, 0, 30, 20)
    boxes = [Box(15, 0, 16, 5.5), Box(0, 16, 40, 40), Box(24, 14, 25.5, 15.1)]
    assert middles_in_boxes(boxes, covered, 2, 2).tolist() == [[True, False], [False, True]]
    assert middles_in_boxes([Box(14, 4, 15, 6), Box(14, 4, 16, 5)], covered, 2, 2).sum() == 0  # right and bottom are outside


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world") / "world", scenes=30, image_size=32, workers=1)


def test_shares_are_those_of_the_maps_of_each_layer(world: Path) -> None:
    root, network = world / "flickr30k", captioner(world)
    with pytest.raises(InputError, match="this captioner has no adapter, so there are none"):
        word_shares(network, entities(root))
    ITuning(init_std=0.1, drop_first=2).inject(network)

    data = entities(root)
    shares, (boxed, *_) = word_shares(network, data)

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
    pointed = []
    for map_YX, (boxes, covered) in zip(maps_of_words, boxes_of_words, strict=True):
        y, x = divmod(int(map_YX.argmax()), 2)
        at_x = covered.left + (x + 0.5) * (covered.right - covered.left) / 2
        at_y = covered.top + (y + 0.5) * (covered.bottom - covered.top) / 2
        pointed.append(any(box.left <= at_x < box.right and box.top <= at_y < box.bottom for box in boxes))
    assert shares.pointed_W is not None
    assert shares.pointed_W.tolist() == pointed
    chances = [middles_in_boxes(*where, 2, 2).mean() for where in boxes_of_words]
    assert shares.pointed_even_W is not None
    assert shares.pointed_even_W.tolist() == chances
    assert boxed.shown == "layer 3, mean over heads, where each token is predicted"
    assert shares.shown == "2 x 2 patches, mean over heads, where each token is predicted"


@pytest.mark.parametrize("kind", ["i_tuning", "clipcap"])
def test_gradient_maps_are_those_of_small_changes_of_the_pixels(world: Path, kind: str) -> None:
    """Each word by itself: what its log-probability gains where a cell's pixels grow by a thousandth of themselves. Signs cancel
    within a pixel's colors, not between pixels; so the image is one in which each cell is one pixel that counts."""
    network = captioner(world, visual="pooled" if kind == "clipcap" else "tokens").double()
    (ClipCap(mapping="mlp", prefix_length=2) if kind == "clipcap" else ITuning(init_std=0.3)).inject(network)
    network.double().eval().requires_grad_(False)
    captions, tokens = [[5, 9, 7, 20], [8, 30, 6]], [2, 1]
    pixels_N3HW = torch.zeros(2, 3, 16, 16, dtype=torch.float64)
    pixels_N3HW[:, :, 3::8, 5::8] = torch.randn(2, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def log_prob(row: int, pixels_3HW: torch.Tensor) -> float:
        features = VisualFeatures(network.visual_tokens(pixels_3HW[None]))
        ids = torch.tensor([captions[row]])
        logits = network.language.logits(network.states(features, ids, torch.zeros(1, dtype=torch.int64)))[0, tokens[row]]
        network.clear_images()
        return float(logits.log_softmax(-1)[captions[row][tokens[row]]])

    expected = np.zeros((2, 2, 2))
    with torch.no_grad():
        for row in range(2):
            for y in range(2):
                for x in range(2):
                    steps = []
                    for step in (1e-4, -1e-4):
                        changed = pixels_N3HW[row].clone()
                        changed[:, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8] *= 1 + step
                        steps.append(log_prob(row, changed))
                    expected[row, y, x] = abs(steps[0] - steps[1]) / 2e-4 / 64  # the mean over a cell's 64 pixels
    found = gradient_maps(network, pixels_N3HW, captions, tokens, Grid(2, 2))
    assert expected.max() > 1e-6
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-9)
    assert not any(parameter.grad is not None for parameter in network.parameters())


def test_shares_by_gradient_are_measured_where_there_is_no_attention(world: Path, tmp_path: Path) -> None:
    network, data = captioner(world, visual="pooled"), entities(world / "flickr30k")
    with pytest.raises(InputError, match="sees no image, so no word depends on a place of it"):
        word_shares(network, data, by="gradient")
    ClipCap(mapping="mlp", prefix_length=2).inject(network)
    with pytest.raises(InputError, match=r"sees one vector of an image.*`crosslight ground RUN --by gradient`"):
        word_shares(network, data)
    shares, (boxed, *_) = word_shares(network, data, by="gradient")
    assert shares.layers_L.tolist() == [0]
    assert shares.shown == "2 x 2 patches, gradient x input of each word's log-probability"
    assert boxed.shown == "gradient x input of each word's log-probability"
    batch = next(iter(data.evaluation_loaders("test")[0]))
    image = int(batch.index_B[0])
    record = data.records("test")[image]
    ids, names = naming(network, record.captions[0])
    maps = gradient_maps(
        network, batch.pixels_B3HW[:1].repeat(len(names), 1, 1, 1), [ids] * len(names), [t for t, _ in names], Grid(2, 2)
    )
    area = covered_area(network.inputs.image, *open_image(record).size)
    expected = [share_in_box(map_YX, boxes, area).attention for map_YX, (_, boxes) in zip(maps, names, strict=True)]
    np.testing.assert_allclose(shares.inside_W[: len(expected)], expected, rtol=1e-4)
    assert shares.pointed_W is not None
    assert 0 < shares.pointed_W.mean() < 1
    hits = [middles_in_boxes(boxes, area, 2, 2).flat[map_YX.argmax()] for map_YX, (_, boxes) in zip(maps, names, strict=True)]
    assert shares.pointed_W[: len(hits)].tolist() == hits

    store_map(tmp_path, SHARES_FILES["gradient"], shares)
    assert stored_shares(tmp_path) is None
    again = stored_shares(tmp_path, "gradient")
    assert again is not None
    np.testing.assert_array_equal(again.pointed_W, shares.pointed_W)


def test_data_without_boxes_are_refused_in_a_line(world: Path) -> None:
    from datamodules.flickr30k import Flickr30k

    network = captioner(world)
    ITuning(init_std=0.1).inject(network)
    with pytest.raises(InputError, match="flickr30k: no caption of its test split says where a thing is"):
        word_shares(network, Flickr30k(str(world / "flickr30k"), num_workers=0))


def test_boxes_are_in_the_pixels_that_were_annotated_where_the_files_are_smaller(world: Path, tmp_path: Path) -> None:
    """The same photographs, half as large: the same shares, as far as resizing leaves the pixels alone."""
    network = captioner(world, visual="pooled")
    ClipCap(mapping="mlp", prefix_length=2).inject(network)
    data = entities(world / "flickr30k")
    shares, (boxed, *_) = word_shares(network, data, by="gradient")
    for record in data.records("test"):
        image = open_image(record)
        image.resize((16, 16)).save(tmp_path / record.path.name)  # type: ignore[union-attr]
    small = Flickr30kEntities(
        root=str(world / "flickr30k"), image_dir=str(tmp_path), split="karpathy", num_workers=0, limits=Limits(train=1, val=1)
    )
    small.file_splits._located = lambda split, records: records  # type: ignore[method-assign] - of the test split alone
    again, (picture, *_) = word_shares(network, small, by="gradient")
    np.testing.assert_array_equal(again.area_W, shares.area_W)
    np.testing.assert_allclose(picture.boxes_B4, boxed.boxes_B4 / 2)
