"""Attention maps of captioners: which row is whose, where a cell lies in the photograph, words, boxes, pictures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_captioner
import torch
from PIL import Image
from torch import Tensor

from datamodules.errors import InputError
from datamodules.inputs import ImageInput
from datamodules.loading.images import evaluation_transform
from datamodules.miniworld.write import write_tokenizer
from datamodules.records import Box, ImageBatch
from experiments.analysis.draw_maps import draw_maps
from experiments.analysis.grid import Grid, covered_area, find_grid, share_in_box
from experiments.analysis.word_maps import TokenMaps, token_maps
from experiments.analysis.words import Word, split_words
from lightning_modules.adapters.clipcap import ClipCap
from lightning_modules.adapters.i_tuning import ITuning
from lightning_modules.networks.captioner import Captioner, VisualFeatures
from lightning_modules.networks.language_model import LanguageModel
from lightning_modules.networks.towers.base import ImageTower
from lightning_modules.networks.towers.hugging_face import HFImageTower
from lightning_modules.networks.towers.timm import TimmImageTower


@pytest.fixture(scope="module")
def tiny() -> Any:
    return tiny_captioner


def tuned(tiny: Any, family: str = "gpt2", tower: dict[str, Any] | None = None, **adapter: Any) -> Captioner:
    network: Captioner = tiny.captioner(family, **(tower or {}))
    torch.manual_seed(5)
    ITuning(**{"init_std": 0.1, **adapter}).inject(network)
    return network.eval().requires_grad_(False)


# ------------------------------------------------------------------------------------------------------------------ maps


def by_hand(network: Captioner, features: VisualFeatures, captions: list[list[int]], rows: list[int], layer: int) -> list[Tensor]:
    """Eq. 4 for one caption at a time and every position of [begin] prompt caption, from what the module of a layer reads:
    [L + T, H, V] each."""
    assert network.i_tuning is not None
    module = network.i_tuning.modules_by_layer()[layer]
    found = []
    for caption, row in zip(captions, rows, strict=True):
        read: list[Tensor] = []
        hook = module.register_forward_pre_hook(lambda _, args, read=read: read.append(args[0]))
        tokens = torch.tensor([[*caption, 0]])  # the last is not read
        network.states(VisualFeatures(features.tokens_IVD[row : row + 1]), tokens, torch.tensor([0]))
        network.clear_images()
        hook.remove()
        q = (read[0].reshape(-1, read[0].shape[-1]).double() @ module.q.weight.T.double()) + module.q.bias.double()
        k = (features.tokens_IVD[row].double() @ module.k.weight.T.double()) + module.k.bias.double()
        width = q.shape[1] // module.num_heads
        heads = []
        for head in range(module.num_heads):
            part = slice(head * width, (head + 1) * width)
            scores = q[:, part] @ k[:, part].T * module.scale
            weights = (scores - scores.amax(1, keepdim=True)).exp()
            heads.append(weights / weights.sum(1, keepdim=True))
        found.append(torch.stack(heads, 1))
    return found


@pytest.mark.parametrize(
    ("family", "adapter", "visual", "prompt"),
    [
        ("gpt2", {}, "tokens", ()),
        ("gpt2", {"reading": "multihead", "num_heads": 2, "drop_first": 2}, "patches", (8, 3)),
        ("opt", {"reading": "multihead", "num_heads": 2}, "tokens", (8,)),
    ],
)
@pytest.mark.parametrize("position", ["reads", "predicts"])
def test_maps_are_those_of_the_tokens(
    tiny: Any, family: str, adapter: Any, visual: str, prompt: tuple[int, ...], position: Any
) -> None:
    network = tuned(tiny, family, {"visual": visual}, **adapter)
    network.language.prompt_ids = prompt
    features = network.encode_images(tiny.images(3))
    captions, rows = [[4, 9, 60], [7], [], [1, 2, 3, 4, 5]], [2, 0, 1, 2]
    special = 1 if visual == "tokens" else 0
    first = len(prompt) + (0 if position == "predicts" else 1)
    heads = adapter.get("num_heads", 1)
    expected = {layer: by_hand(network, features, captions, rows, layer) for layer in (2, 3)}
    for layer in (2, 3):
        for head in (*range(heads), "mean"):
            found = token_maps(network, features, captions, rows, layer=layer, head=head, position=position)  # type: ignore[arg-type]
            for caption, maps, every in zip(captions, found, expected[layer], strict=True):
                wanted = (every.mean(1) if head == "mean" else every[:, int(head)])[first : first + len(caption)].numpy()
                assert maps.maps_TYX.shape == (len(caption), 2, 2)
                np.testing.assert_allclose(maps.special_TS, wanted[:, :special], atol=1e-5)
                np.testing.assert_allclose(maps.maps_TYX.reshape(-1, 4), wanted[:, special:], atol=1e-5)
                np.testing.assert_allclose(maps.maps_TYX.sum((1, 2)) + maps.special_TS.sum(1), 1, atol=1e-5)
                assert maps.tokens == tuple(caption)
        assert np.concatenate([maps.maps_TYX for maps in found]).std(0).max() > 1e-3  # a wrong row would be seen
    # the last layer unless told, and the mean over all that have a module
    last = token_maps(network, features, captions, rows, position=position)[3].maps_TYX
    np.testing.assert_array_equal(last, token_maps(network, features, captions, rows, layer=3, position=position)[3].maps_TYX)
    layers = range(adapter.get("drop_first", 0), tiny.LAYERS)
    each = [token_maps(network, features, captions, rows, layer=layer, position=position)[0].maps_TYX for layer in layers]
    mean = token_maps(network, features, captions, rows, layer="mean", position=position)[0]
    np.testing.assert_allclose(mean.maps_TYX, np.mean(each, 0), atol=1e-6)
    assert f"mean of {len(layers)} layers" in mean.shown


def test_the_captioner_is_as_before(tiny: Any) -> None:
    network = tuned(tiny)
    features = network.encode_images(tiny.images(1))
    ids = torch.tensor([[3, 4]])
    plain = network.language.states(input_ids=ids)
    for position in ("reads", "predicts"):
        token_maps(network, features, [[3, 4]], position=position)  # type: ignore[arg-type]
        assert torch.equal(network.language.states(input_ids=ids), plain)
        assert network.i_tuning is not None
        assert all(module._maps is None for module in network.i_tuning.modules_by_layer().values())
    assert token_maps(network, features, [], []) == []
    assert token_maps(network, features, [[3, 4]])[0].shown == "layer 3, where each token is predicted"


def test_what_has_no_maps_says_so(tiny: Any) -> None:
    network = tuned(tiny, reading="multihead", num_heads=2)
    features = network.encode_images(tiny.images(1))
    with pytest.raises(InputError, match="heads 0 to 1"):
        token_maps(network, features, [[1]], head=2)
    with pytest.raises(InputError, match=r"layers \[4\] have no module"):
        token_maps(network, features, [[1]], layer=4)
    with pytest.raises(InputError, match="2 captions, but 1 images"):
        token_maps(network, features, [[1], [2]])
    with pytest.raises(InputError, match=r"has 4 visual tokens here, the captioner's tower gives 1 special ones and 2 x 2"):
        token_maps(network, VisualFeatures(features.tokens_IVD[:, 1:]), [[1]])
    pooled = tuned(tiny, tower={"visual": "pooled"})
    with pytest.raises(InputError, match="one vector of an image"):
        token_maps(pooled, pooled.encode_images(tiny.images(1)), [[1]])
    prefixed = tiny.captioner(visual="pooled")
    ClipCap(prefix_length=2, mapping="mlp").inject(prefixed)
    with pytest.raises(InputError, match="ClipCap's prefix"):
        token_maps(prefixed, prefixed.encode_images(tiny.images(1)), [[1]])
    with pytest.raises(InputError, match="no adapter"):
        token_maps(tiny.captioner(), features, [[1]])


# ------------------------------------------------------------------------------------------------------------------ grid


def tower(kind: str) -> ImageTower:
    if kind == "cnn":
        return TimmImageTower("test_efficientnet", image_size=64)
    if kind == "timm_vit":
        sizes = {"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 8, "img_size": 24}
        return TimmImageTower("vit_tiny_patch16_224", options=sizes)
    config = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
    if kind == "registers":
        return HFImageTower(config={**config, "model_type": "dinov2_with_registers", "num_register_tokens": 4, "mlp_ratio": 2})
    return HFImageTower(config={**config, "model_type": "siglip_vision_model", "intermediate_size": 16}, pooling="mean")


@pytest.mark.parametrize(
    ("kind", "grid"),
    [("cnn", Grid(2, 2)), ("timm_vit", Grid(3, 3, 1)), ("registers", Grid(2, 2, 5)), ("siglip", Grid(2, 2))],
)
def test_grids_of_towers(tiny: Any, kind: str, grid: Grid) -> None:
    vision = tower(kind).eval()
    language = tiny.captioner().language
    assert find_grid(Captioner(vision, language)) == grid
    assert find_grid(Captioner(vision, language, visual="patches")) == Grid(grid.rows, grid.columns)
    assert find_grid(Captioner(vision, language, visual="tokens")).special == grid.special


def test_cells_lie_where_the_patches_are() -> None:
    """A patch whose pixels change has another token, and no other has where attention is switched off."""
    vision: Any = tower("timm_vit").eval()
    for block in vision.model.blocks:
        torch.nn.init.zeros_(block.attn.proj.weight)
    pixels = torch.randn(1, 3, 24, 24)
    tokens, special = vision.tokens(pixels)
    for row, column in ((0, 0), (0, 2), (2, 1)):
        changed = pixels.clone()
        changed[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += 1
        difference = (vision.tokens(changed)[0] - tokens).abs().sum(2)[0, special:].reshape(3, 3)
        assert difference.nonzero().tolist() == [[row, column]]


def test_patches_that_are_no_square_are_refused(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HFImageTower, "tokens", lambda tower, pixels: (torch.zeros(1, 7, 4), 1))
    with pytest.raises(InputError, match="6 patches of a square image"):
        find_grid(tiny.captioner())


# ------------------------------------------------------------------------------------------------------------------ area


def ramp(width: int, height: int) -> Image.Image:
    """Red is the column, green the row."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(width), np.arange(height)[:, None]
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size", [(250, 100), (101, 250), (200, 200), (160, 131)])
@pytest.mark.parametrize(("resize", "fraction"), [("squash", 1.0), ("crop", 1.0), ("crop", 0.875), ("crop", 0.6)])
def test_covered_area_is_what_the_transform_keeps(size: tuple[int, int], resize: Any, fraction: float) -> None:
    """The transform of a picture whose pixels say where they are."""
    spec = ImageInput(16, (0, 0, 0), (1, 1, 1), resize, fraction, "bilinear")
    box = covered_area(spec, *size)
    features = evaluation_transform(spec)(ramp(*size)).double()
    centres = (torch.arange(16, dtype=torch.float64) + 0.5) / 16
    columns = box.left + centres * (box.right - box.left) - 0.5
    rows = box.top + centres * (box.bottom - box.top) - 0.5
    inner = slice(1, -1)  # at the border the filter is cut off
    torch.testing.assert_close(features[0, 8, inner], columns[inner], atol=0.8, rtol=0)  # bytes are rounded twice
    torch.testing.assert_close(features[1, inner, 8], rows[inner], atol=0.8, rtol=0)
    assert box.left >= 0
    assert box.top >= 0
    assert box.right <= size[0] + 1e-9
    assert box.bottom <= size[1] + 1e-9


def test_a_crop_larger_than_the_image_reaches_beyond_it() -> None:
    spec = ImageInput(16, (0, 0, 0), (1, 1, 1), "crop", 2.0, "bilinear")
    box = covered_area(spec, 80, 160)
    features = evaluation_transform(spec)(Image.new("RGB", (80, 160), (255, 255, 255)))
    inside = features[0].nonzero()
    (top, left), (bottom, right) = inside.min(0).values.tolist(), (inside.max(0).values + 1).tolist()
    # where in the network's input the photograph begins and ends
    assert [-box.left / (box.right - box.left) * 16, (80 - box.left) / (box.right - box.left) * 16] == [left, right] == [4, 12]
    assert [-box.top / (box.bottom - box.top) * 16, (160 - box.top) / (box.bottom - box.top) * 16] == [top, bottom] == [0, 16]


# ----------------------------------------------------------------------------------------------------------------- boxes


def share_of_one(map_YX: Any, box: Box, covered: Box) -> tuple[float, float]:
    """Cell by cell."""
    rows, columns = map_YX.shape
    height, width = (covered.bottom - covered.top) / rows, (covered.right - covered.left) / columns
    attention = area = 0.0
    for row in range(rows):
        for column in range(columns):
            top, left = covered.top + row * height, covered.left + column * width
            y = max(0.0, min(top + height, box.bottom) - max(top, box.top))
            x = max(0.0, min(left + width, box.right) - max(left, box.left))
            attention += float(map_YX[row, column]) * x * y / (width * height)
            area += x * y
    return attention / float(map_YX.sum()), area / ((covered.bottom - covered.top) * (covered.right - covered.left))


def test_share_in_a_box() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        map_YX = rng.random((int(rng.integers(1, 6)), int(rng.integers(1, 6)))).astype(np.float32)
        covered = Box(*rng.uniform(0, 40, 2), *rng.uniform(60, 90, 2))
        left, right = sorted(rng.uniform(-10, 110, 2))
        top, bottom = sorted(rng.uniform(-10, 110, 2))
        box = Box(left, top, right, bottom)
        found = share_in_box(map_YX, box, covered)
        assert (found.attention, found.area) == pytest.approx(share_of_one(map_YX, box, covered), rel=1e-6, abs=1e-9)
        even = share_in_box(np.full((3, 4), 0.01), box, covered)
        assert even.attention == pytest.approx(even.area)
        assert even.times == pytest.approx(1) or even.area == 0


def test_boxes_count_once_where_they_overlap() -> None:
    rng = np.random.default_rng(1)
    for _ in range(10):
        map_YX = rng.random((3, 4))
        covered = Box(5, 10, 5 + 4 * 6, 10 + 3 * 7)
        boxes = []
        for _ in range(3):
            left, top = (int(value) for value in rng.integers(0, 30, 2))
            boxes.append(Box(left, top, left + int(rng.integers(1, 20)), top + int(rng.integers(1, 20))))
        attention = area = 0.0
        for y in range(10, 31):
            for x in range(5, 29):
                if any(box.left <= x < box.right and box.top <= y < box.bottom for box in boxes):
                    attention += map_YX[(y - 10) // 7, (x - 5) // 6] / (6 * 7)
                    area += 1
        found = share_in_box(map_YX, boxes, covered)
        assert (found.attention, found.area) == pytest.approx((attention / map_YX.sum(), area / (24 * 21)))


def test_shares_without_an_answer_are_nan() -> None:
    covered = Box(0, 0, 10, 10)
    outside = share_in_box(np.ones((2, 2)), Box(20, 0, 30, 10), covered)
    assert (outside.attention, outside.area) == (0, 0)
    assert math.isnan(outside.times)
    assert math.isnan(share_in_box(np.ones((2, 2)), [], covered).times)
    nothing = share_in_box(np.zeros((2, 2)), Box(0, 0, 5, 5), covered)  # all of it on the class token
    assert nothing.area == 0.25
    assert math.isnan(nothing.times)


# ----------------------------------------------------------------------------------------------------------------- words


@pytest.fixture(scope="module")
def bytes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE tokenizer, as GPT-2's and SmolLM2's are, with few merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["a dog in a shirt holding a racket", "the dogs hold rackets"] * 9, trainer)
    folder = tmp_path_factory.mktemp("bytes")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", bos_token="<end>").save_pretrained(folder)
    return folder


def speaking(folder: Path, end: int) -> LanguageModel:
    sizes = {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": 64, "vocab_size": 330}
    return LanguageModel(config={**sizes, "bos_token_id": end, "eos_token_id": end}, tokenizer=str(folder))


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        (" A dog holding a racket.", ["A", "dog", "holding", "a", "racket", "."]),
        ("a T-shirt, (don't) hold...", ["a", "T-shirt", ",", "(", "don't", ")", "hold", "..."]),
        ("  a café 🐶 dog\n犬 ", ["a", "café", "🐶", "dog", "犬"]),
        ("$5 zebras", ["$", "5", "zebras"]),
        ("", []),
    ],
)
def test_words_of_a_byte_level_tokenizer(bytes_folder: Path, caption: str, words: list[str]) -> None:
    language = speaking(bytes_folder, 0)
    encoded = language.hf_tokenizer(caption, return_offsets_mapping=True, add_special_tokens=False)
    ids = [*encoded["input_ids"], 0]
    text, found = split_words(language, ids)
    assert text == language.decode([ids])[0]
    assert [word.text for word in found] == words
    assert [text[word.start : word.end] for word in found] == words
    at = 0
    for word in found:
        at = caption.index(word.text, at)
        # the tokenizer's own account of which characters a token is of
        own = []
        for row, (start, end) in enumerate(encoded["offset_mapping"]):
            while caption[start:end].isspace() and end < len(caption):  # a space alone goes with what follows
                end += 1
            if start < at + len(word.text) and end > at:
                own.append(row)
        assert list(word.tokens) == own
        at += len(word.text)
    assert any(len(word.tokens) > 1 for word in found) or not found


def test_a_lone_space_goes_with_the_next_word_and_special_tokens_with_none(bytes_folder: Path) -> None:
    language = speaking(bytes_folder, 0)
    ids = [language.hf_tokenizer(piece, add_special_tokens=False)["input_ids"] for piece in ("a", " ", "d", "o")]
    flat = [0, *(token for some in ids for token in some), 0]
    assert len(flat) == 6
    assert [(word.text, word.tokens) for word in split_words(language, flat)[1]] == [("a", (1,)), ("do", (2, 3, 4))]


def test_words_of_the_embedded_world(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    language = speaking(tmp_path, 3)
    ids = [*language.hf_tokenizer("A red ball, under a cup.", add_special_tokens=False)["input_ids"], 3]
    text, words = split_words(language, ids)
    assert text == language.decode([ids])[0]
    assert [word.text for word in words] == ["a", "red", "ball", ",", "under", "a", "cup", "."]
    assert [word.tokens for word in words] == [(row,) for row in range(8)]


def test_without_a_tokenizer_ids_are_words(tiny: Any) -> None:
    text, words = split_words(tiny.captioner().language, [7, 60])
    assert text == "7 60"
    assert words == (Word("7", 0, 1, (0,)), Word("60", 2, 4, (1,)))


def test_the_map_of_a_word_is_the_mean_of_its_tokens() -> None:
    maps = np.random.default_rng(0).random((4, 2, 3)).astype(np.float32)
    special = np.random.default_rng(1).random((4, 2)).astype(np.float32)
    found = TokenMaps("ab c", (Word("ab", 0, 2, (0, 2)), Word("c", 3, 4, (3,))), (1, 2, 3, 4), maps, special, "")
    np.testing.assert_allclose(found.word_maps(), np.stack([(maps[0] + maps[2]) / 2, maps[3]]))
    np.testing.assert_allclose(found.word_special(), np.stack([(special[0] + special[2]) / 2, special[3]]))
    assert TokenMaps("", (), (), maps[:0], special[:0], "").word_maps().shape == (0, 2, 3)


# --------------------------------------------------------------------------------------------------------------- picture


def invented(text: str, special: int = 1) -> TokenMaps:
    words = tuple(Word(word, 0, 0, (row,)) for row, word in enumerate(text.split()))
    maps = np.random.default_rng(0).random((len(words), 4, 4)).astype(np.float32)
    return TokenMaps(
        text, words, tuple(range(len(words))), maps, np.full((len(words), special), 0.3, np.float32), "layer 35, mean of 20 heads"
    )


@pytest.mark.parametrize(
    ("size", "text", "special"),
    [
        ((120, 90), "A woman in a blue shirt holding an extraordinarilylongunsplittableword and MMMMMMMMMMMMMMMMMMMMMMMM.", 1),
        ((300, 40), r"one $\nosuch$ word", 5),
        ((40, 200), f"dog {'W' * 130}", 0),
        ((60, 60), "", 1),
    ],
)
def test_pictures_have_every_word_and_none_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], text: str, special: int
) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figures: list[Any] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **more: (figures.append(figure), save(figure, *args, **more)))
    maps, covered = invented(text, special), covered_area(ImageInput(16, (0, 0, 0), (1, 1, 1)), *size)
    path = draw_maps(tmp_path / "new" / "a.png", ramp(*size), maps, covered)
    with Image.open(path) as picture:
        assert min(picture.size) > 150
    (figure,) = figures
    *maps_axes, scale = figure.axes
    assert [each.get_text() for each in scale.get_xticklabels()] == ["no attention", "half", "the word's peak"]
    shown = [*figure.texts, *(each for axes in figure.axes for each in axes.texts)]
    written = ["".join(each.get_text().split()) for each in shown]  # without line breaks
    assert len(maps_axes) == 1 + len(maps.words)
    for word in maps.words:
        assert word.text in written or (len(word.text) > 96 and any(each.endswith("…") for each in written))
    assert [each for each in written if "layer35,meanof20heads" in each]
    assert [each for each in written if each == "".join(f"“{text}”".split() if text else "(anemptycaption)")]
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [each.get_window_extent(renderer) for each in shown]
    panels = [axes.get_window_extent(renderer) for axes in figure.axes]
    for row, box in enumerate(boxes):
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in [*boxes[:row], *panels]), written[row]
    for axes, map_YX in zip(maps_axes[1:], maps.word_maps(), strict=True):
        photograph, drawn = axes.images
        assert photograph.get_extent() == [0, size[0], size[1], 0]
        assert drawn.get_extent() == [covered.left, covered.right, covered.bottom, covered.top]  # row 0 is at the top
        np.testing.assert_allclose(drawn.get_array(), map_YX / map_YX.max(), rtol=1e-6)
        peak = map_YX.max() / map_YX.mean()
        assert any(f"peak {peak:.1f}x even" in each.get_text() for each in axes.texts)


def test_a_picture_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file.*a\.png cannot be written"):
        draw_maps(tmp_path / "file" / "a.png", ramp(20, 20), invented("a"), Box(0, 0, 20, 20))


def test_maps_of_a_batch_that_carries_pixels(tiny: Any) -> None:
    """From a photograph to a number, through the network's own geometry."""
    network = tuned(tiny)
    spec = network.vision.image_input
    photograph = ramp(200, 100)
    pixels = evaluation_transform(spec)(photograph).float().div(255)
    features = network.encode_images(ImageBatch(("a",), torch.tensor([0]), pixels[None]))
    (maps,) = token_maps(network, features, network.generate_ids(features))
    covered = covered_area(spec, *photograph.size)
    assert covered == Box(50, 0, 150, 100)
    map_YX = maps.word_maps()[0]
    right = share_in_box(map_YX, Box(100, 0, 200, 100), covered)
    assert right.area == 0.5
    assert right.attention == pytest.approx(map_YX[:, 1].sum() / map_YX.sum(), rel=1e-6)
