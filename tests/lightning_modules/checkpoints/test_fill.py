"""Networks keep the wish for weights, `fill` reads them: by class, once, wherever in a network the part is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_library_models import dual_encoder
from tiny_scorers import network as scorer
from torch import Tensor, nn

from datamodules.errors import InputError
from datamodules.records import ImageBatch, TextBatch
from lightning_modules.checkpoints.beit3 import write_official
from lightning_modules.checkpoints.fill import fill, read_into
from lightning_modules.loading import build
from lightning_modules.networks.beit3 import BEiT3Retrieval
from lightning_modules.networks.dual_encoder import DualEncoder
from lightning_modules.networks.language_model import LanguageModel
from lightning_modules.networks.towers.hugging_face import HFTextTower
from lightning_modules.networks.towers.timm import TimmImageTower
from lightning_modules.networks.uniter import UniterRetrieval


class Own(nn.Linear):
    """A part of somebody's own network."""

    def __init__(self, weights: str | None) -> None:
        super().__init__(2, 1)
        self.weights = weights


class Other(Own):
    """One whose files have a layout of their own."""


@read_into.register
def _(part: Other, weights: str) -> None:
    with torch.no_grad():
        part.weight.fill_(len(weights))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file({"weight": torch.ones(1, 2), "bias": torch.ones(1)}, tmp_path / "own.safetensors")
    return tmp_path / "own.safetensors"


def test_every_part_is_filled_once_by_its_class(file: Path) -> None:
    network = nn.Sequential(Own(str(file)), nn.Sequential(Other("four"), Own(None)))
    random = network[1][1].weight.detach().clone()
    assert fill(network) is network
    assert network[0].weight.tolist() == [[1.0, 1.0]]
    assert network[1][0].weight.tolist() == [[4.0, 4.0]]
    assert torch.equal(network[1][1].weight, random)
    with torch.no_grad():
        network[0].weight.zero_()
    fill(network)
    assert network[0].weight.tolist() == [[0.0, 0.0]]  # what was trained meanwhile stays


def test_a_file_that_does_not_fit_names_the_part(file: Path, tmp_path: Path) -> None:
    save_file({"weight": torch.ones(1, 2)}, tmp_path / "less.safetensors")
    with pytest.raises(InputError, match=r"less.safetensors does not fit Own \(1 missing: bias\)"):
        fill(Own(str(tmp_path / "less.safetensors")))
    with pytest.raises(InputError, match=r"nowhere.safetensors does not exist"):
        fill(nn.Sequential(Own(str(file)), Own(str(tmp_path / "nowhere.safetensors"))))


def test_an_encoder_that_was_not_filled_computes_nothing(tmp_path: Path) -> None:
    sizes = (16, 8, 1, 2, 12, 4, 30, 10, "none", 8)
    source = BEiT3Retrieval(*sizes)
    path = write_official(source, tmp_path / "weights.pth")
    network = BEiT3Retrieval(*sizes, weights=str(path))
    assert all(parameter.is_meta for parameter in network.encoder.parameters())
    assert not any(parameter.is_meta for parameter in fill(network).parameters())
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in source.state_dict().items())


IDS = torch.ones(1, 3, dtype=torch.int64)
TEXTS = TextBatch(("a",), ("a",), torch.zeros(1), torch.zeros(1), IDS, IDS > 0)
IMAGES = ImageBatch(("a",), torch.zeros(1), torch.ones(1, 3, 16, 16))
TIMM = {"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 8, "img_size": 16}
BERT = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 40, "bos_token_id": 2, "eos_token_id": 3}


def timm(weights: str) -> TimmImageTower:
    return TimmImageTower("vit_tiny_patch16_224", weights, options=TIMM)


def bert(weights: str) -> HFTextTower:
    return HFTextTower(config={**BERT, "vocab_size": 40}, weights=weights, tokenizer="none", max_tokens=8)


UNREAD: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {  # what takes weights, and a way to ask it
    "tower": (lambda: bert("x.pt"), lambda tower: tower(IDS, IDS > 0)),
    "its tokens": (lambda: timm("x.pt"), lambda tower: tower.tokens(IMAGES.pixels_B3HW)),
    "in a network": (lambda: DualEncoder(timm("x.pt"), bert("random"), 8), lambda network: network.encode_images(IMAGES)),
    "heads": (lambda: DualEncoder(timm("random"), bert("random"), 8, weights="x.pt"), lambda own: own.encode_texts(TEXTS)),
    "BEiT-3": (
        lambda: BEiT3Retrieval(16, 8, 1, 2, 12, 4, 30, 10, "none", 8, weights="x.pt"), lambda own: own.encode_texts(TEXTS),
    ),
    "UNITER": (
        lambda: UniterRetrieval(16, 1, 2, 24, 40, 16, feature_width=5, tokenizer=None, weights="x.pt"),
        lambda own: own.embed_texts(TEXTS),
    ),
    "language model": (lambda: LanguageModel(config=GPT2, weights="x.pt", max_tokens=8), lambda own: own.states(input_ids=IDS)),
    "a library's dual encoder": (lambda: dual_encoder("clip", weights="x.pt"), lambda own: own.encode_texts(TEXTS)),
    "a library's scorer": (lambda: scorer("blip", weights="x.pt"), lambda own: own.embed_texts(TEXTS)),
}  # fmt: skip


@pytest.mark.parametrize("part", UNREAD)
def test_nothing_computes_before_it_is_filled(part: str) -> None:
    make, ask = UNREAD[part]
    network = make()
    for each in (network, copy.deepcopy(network)):
        with pytest.raises(InputError, match=r"has not read its weights \(x.pt\) yet: .*fill\(network\)"):
            ask(each)


def test_a_copy_is_filled_alone_and_then_computes(tmp_path: Path) -> None:
    source = timm("random")
    save_file(source.model.state_dict(), tmp_path / "w.safetensors")
    network = timm(str(tmp_path / "w.safetensors"))
    twin = fill(copy.deepcopy(network))
    pixels = IMAGES.pixels_B3HW
    assert torch.equal(twin(pixels), source(pixels))
    with pytest.raises(InputError, match="has not read"):
        network(pixels)
    network.weights = None  # not wished for any more
    fill(network)(pixels)
    with torch.device("meta"):  # parameters are counted without a file
        timm("x.pt")(torch.zeros(1, 3, 16, 16))


def test_a_module_of_ones_own_is_filled_where_a_run_is_loaded(tmp_path: Path) -> None:
    source = timm("random")
    save_file(source.model.state_dict(), tmp_path / "w.safetensors")
    section = {"class_path": "own_parts.Holds", "init_args": {"of_tower": str(tmp_path / "w.safetensors")}}
    model: Any = build(section, trust=["own_parts"])
    assert torch.equal(model.tower(IMAGES.pixels_B3HW), source(IMAGES.pixels_B3HW))
    assert model.weights == "imagenet"  # which is its own


def test_positions_of_a_timm_file_are_resampled_after_it_is_read(tmp_path: Path) -> None:
    options = {"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 8, "img_size": 16}

    def tower(**more: object) -> TimmImageTower:
        return TimmImageTower("vit_tiny_patch16_224", options=options, **more)  # type: ignore[arg-type]

    def positions(of: TimmImageTower) -> Tensor:
        return of.model.get_parameter("pos_embed")

    own = tower()
    save_file(own.model.state_dict(), tmp_path / "own.safetensors")
    large = fill(tower(weights=str(tmp_path / "own.safetensors"), image_size=32))
    own.model.set_input_size(img_size=32)  # type: ignore[operator]
    assert positions(large).shape == (1, 17, 16)
    assert torch.equal(positions(large), positions(own))
    assert large.image_input.size == 32


def test_a_tower_takes_what_a_run_kept_of_it(tmp_path: Path) -> None:
    """A run that tunes a whole tower keeps no parameter that the tower never uses (a ConvNeXt's head)."""

    def made(weights: str | None = None) -> TimmImageTower:
        options = {"depths": [1, 1, 1, 1], "dims": [8, 8, 8, 8]}
        return TimmImageTower("convnext_atto", image_size=32, pooling="mean", options=options, weights=weights)

    tower = made()
    unused = {name.removeprefix("model.") for name in tower.unused_parameters()}
    assert unused
    kept = {name: tensor.contiguous() for name, tensor in tower.model.state_dict().items() if name not in unused}
    save_file(kept, tmp_path / "kept.safetensors")
    filled = made(str(tmp_path / "kept.safetensors"))
    fill(filled)
    for name, tensor in kept.items():
        assert torch.equal(filled.model.state_dict()[name], tensor)
    del kept[next(iter(kept))]
    save_file(kept, tmp_path / "less.safetensors")
    with pytest.raises(InputError, match="1 missing"):
        fill(made(str(tmp_path / "less.safetensors")))
