"""What is random, does not train and was not asked to be random is refused; what a CLIP has behind its towers is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_captioner import CLIP as VISION
from tiny_captioner import FAMILIES

from datamodules.errors import InputError
from lightning_modules.adapters.i_tuning import ITuning
from lightning_modules.adapters.lora import LoRAAdapter
from lightning_modules.captioning import CaptioningModule
from lightning_modules.checkpoints.fill import fill
from lightning_modules.checkpoints.fresh import fresh_parameters, require_weights
from lightning_modules.networks.beit3 import BEiT3Retrieval
from lightning_modules.networks.captioner import Captioner
from lightning_modules.networks.dual_encoder import DualEncoder
from lightning_modules.networks.language_model import LanguageModel
from lightning_modules.networks.towers.clip import ProjectedCLIPTower
from lightning_modules.networks.towers.hugging_face import HFImageTower, HFTextTower
from lightning_modules.networks.towers.timm import TimmImageTower
from lightning_modules.networks.uniter import UniterRetrieval
from lightning_modules.ranking import RankingModule
from lightning_modules.retrieval import RetrievalModule

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {**SIZES, "vocab_size": 40, "max_position_embeddings": 16}
TIMM = {"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 8, "img_size": 16}


def timm(weights: str | None) -> Any:
    return DualEncoder(TimmImageTower("vit_tiny_patch16_224", weights, options=TIMM), text("random"), 8)


def text(weights: str | None) -> HFTextTower:
    return HFTextTower(config={**TEXT, "model_type": "bert"}, weights=weights, tokenizer="none", max_tokens=8)


def hugging_face(weights: str | None) -> Any:
    return DualEncoder(HFImageTower(config=VISION, weights=weights), text("random"), 8)


def words(weights: str | None) -> Any:
    return DualEncoder(HFImageTower(config=VISION, weights="random"), text(weights), 8)


def beit3(weights: str | None) -> Any:
    return BEiT3Retrieval(16, 16, 2, 2, 24, 8, 40, 16, max_tokens=8, weights=weights)


def language(weights: str | None) -> LanguageModel:
    config = {**FAMILIES["gpt2"], "vocab_size": 61, "bos_token_id": 60, "eos_token_id": 60}
    return LanguageModel(config=config, weights=weights, max_tokens=12)


@pytest.mark.parametrize(
    ("build", "part"),
    [(timm, "image.model."), (hugging_face, "image.model."), (words, "text.model."), (beit3, "encoder.")],
)
@pytest.mark.parametrize("tuning", ["head", "adapter"])
def test_a_frozen_part_is_random_by_will_or_not_at_all(build: Any, part: str, tuning: Any) -> None:
    def module(weights: str | None, way: Any) -> RetrievalModule:
        return RetrievalModule(build(weights), LoRAAdapter(rank=1) if way == "adapter" else None, way)

    with pytest.raises(
        InputError, match=rf"parameters of model\.network \({part}.*\) are at their random start .*tuning {tuning}"
    ):
        module(None, tuning)
    module(None, "full")  # then it is a beginning
    assert module("random", tuning).counts.trainable > 0


def test_captioners_and_unite_rs_parts_too() -> None:
    for vision, weights, named in ((None, "random", "vision"), ("random", None, "language")):
        with pytest.raises(InputError, match=rf"\({named}\.model\."):
            CaptioningModule(Captioner(HFImageTower(config=VISION, weights=vision), language(weights)), ITuning())
    tower = ProjectedCLIPTower(config={k: v for k, v in VISION.items() if k != "model_type"})
    with pytest.raises(InputError, match=r"\(vision\.model\."):
        CaptioningModule(Captioner(tower, language("random")), ITuning())
    # nothing looks at images: the tower is in nobody's way
    CaptioningModule(Captioner(HFImageTower(config=VISION), language(None)), tuning="head")
    sizes = {"width": 24, "num_layers": 2, "num_heads": 2, "ffn_width": 48, "vocab_size": 40, "text_positions": 16}
    with pytest.raises(InputError, match=r"\(encoder\."):
        RankingModule(UniterRetrieval(**sizes, feature_width=5, tokenizer=None), tuning="head")


def test_uniter_from_bert_has_no_regions(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    BertModel(BertConfig(**TEXT)).save_pretrained(tmp_path)
    sizes = {"width": 16, "num_layers": 2, "num_heads": 2, "ffn_width": 24, "vocab_size": 40, "text_positions": 16}

    def network() -> UniterRetrieval:
        return UniterRetrieval(**sizes, feature_width=5, tokenizer=None, weights=str(tmp_path))

    assert RankingModule(network()).counts.trainable > 0
    with pytest.raises(InputError, match=r"\(encoder\.region_embed\.box_norm\.bias, .* are at their random start"):
        RankingModule(network(), tuning="head")


def test_heads_that_nothing_brings_or_trains(tiny: Any) -> None:
    for options in ({"tuning": "frozen"}, {"adapter": LoRAAdapter(rank=1), "train_heads": "none"}):
        with pytest.raises(
            InputError, match=r"3 parameters .*\(image_projection\.weight, logit_scale, text_projection\.weight\)"
        ):
            RetrievalModule(tiny.network(weights=None), **options)
    RetrievalModule(tiny.network(weights="random"), tuning="frozen")
    RetrievalModule(tiny.network(weights=None), LoRAAdapter(rank=0))  # they train


def test_heads_of_a_network_of_ones_own(tiny: Any) -> None:
    class Own(DualEncoder):
        """It says nothing of where its parts come from."""

        def __init__(self) -> None:
            super().__init__(tiny.image_tower(), tiny.text_tower(), 8)
            del self.fresh

    network = Own()
    with pytest.raises(InputError, match="What the network loads by itself belongs into its `loaded_heads`"):
        RetrievalModule(network, tuning="frozen")
    network.loaded_heads = frozenset({"image_projection.weight", "text_projection.weight", "logit_scale"})
    RetrievalModule(network, tuning="frozen")


def test_what_init_from_brings_is_not_random(tiny: Any, tmp_path: Path) -> None:
    torch.save(beit3("random").state_dict(), tmp_path / "whole.pt")
    assert RetrievalModule(beit3(None), None, "frozen", init_from=str(tmp_path / "whole.pt")).counts.trainable == 0
    heads = {name: value for name, value in tiny.network().state_dict().items() if "projection" in name}
    torch.save(heads, tmp_path / "heads.pt")
    with pytest.raises(InputError, match=r"1 parameters of model\.network \(logit_scale\)"):
        RetrievalModule(tiny.network(weights=None), None, "frozen", init_from=str(tmp_path / "heads.pt"))


def test_an_evaluation_without_a_checkpoint_wants_all_of_them(tiny: Any) -> None:
    module = RetrievalModule(tiny.network(weights=None), tuning="full")
    with pytest.raises(InputError, match=r"\(image_projection\.weight, .* nothing was trained here\. .*--ckpt_path"):
        require_weights(module.network)
    saved: dict[str, Any] = {}
    module.on_save_checkpoint(saved)
    module.on_load_checkpoint(saved)
    require_weights(module.network)


# ------------------------------------------------------------------------------------------------------------------- CLIP


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str]:
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    token = {"bos_token_id": 1, "eos_token_id": 39, "pad_token_id": 0}
    config = CLIPConfig(
        vision_config={**SIZES, "image_size": 16, "patch_size": 8}, text_config={**TEXT, **token}, projection_dim=8
    )
    model = CLIPModel(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    folder = tmp_path_factory.mktemp("clip")
    model.save_pretrained(folder)
    return model, str(folder)


def over(folder: str, weights: str | None, pooling: tuple[Any, Any] = ("pooler", "last"), **options: Any) -> DualEncoder:
    towers = (
        HFImageTower(name=folder, pooling=pooling[0]),
        HFTextTower(name=folder, pooling=pooling[1], tokenizer="none", max_tokens=8),
    )
    return DualEncoder(*towers, **{"embed_dim": 8, "weights": weights, **options})


def test_a_clip_is_tested_with_its_own_projections(clip: tuple[Any, str], tiny: Any) -> None:
    model, folder = clip
    with pytest.raises(InputError, match=r"image_projection\.weight, logit_scale, text_projection\.weight"):
        RetrievalModule(over(folder, None), None, "frozen")
    network: Any = RetrievalModule(over(folder, folder), None, "frozen").network.eval()
    assert not fresh_parameters(network)
    batch = tiny.texts()
    tokens = batch.tokens_BT.clone()
    tokens[batch.mask_BT.cumsum(1) == batch.mask_BT.sum(1, keepdim=True)] = 39  # each ends in the end token, and so its padding
    batch = type(batch)(batch.caption_ids, batch.texts, batch.index_B, batch.image_index_B, tokens, batch.mask_BT)
    with torch.no_grad():
        found = model(input_ids=tokens, attention_mask=batch.mask_BT.long(), pixel_values=tiny.images().pixels_B3HW)
        torch.testing.assert_close(network.encode_images(tiny.images()), F.normalize(found.image_embeds, dim=-1))
        torch.testing.assert_close(network.encode_texts(batch), F.normalize(found.text_embeds, dim=-1))
    assert torch.equal(network.logit_scale, model.logit_scale)
    adapted = RetrievalModule(over(folder, folder), LoRAAdapter(rank=1))
    assert adapted.counts.trainable == adapted.counts.adapter  # heads that a checkpoint brought stay frozen


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": ("cls", "last")}, r"set pooling of the image tower to pooler .*they are cls and last"),
        ({"pooling": ("pooler", "mean")}, "they are pooler and mean"),
        ({"embed_dim": 12}, r"visual_projection\.weight \[8, 16\].*embed_dim to the CLIP's projection_dim \(8\)"),
        ({"projection": "mlp"}, "its projections are linear; set projection to linear"),
        ({"weights": "no/such/clip"}, "no folder with model.safetensors, no file, and nothing on the hub"),
        ({"weights": "bert"}, "it has no logit_scale, text_projection.weight, visual_projection.weight, so it is no CLIP"),
    ],
)
def test_projections_of_another_kind_are_refused(
    clip: tuple[Any, str], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    if options.get("weights") == "bert":
        torch.save({"pooler.weight": torch.zeros(2)}, tmp_path / "bert.pt")
        options = {"weights": str(tmp_path / "bert.pt")}
    with pytest.raises(InputError, match=message):
        fill(over(clip[1], **{"weights": clip[1], **options}))
