"""CLIPScore: the paper's formula in plain loops, torchmetrics' number with the same model, runs of ours, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_data import write_image

from datamodules.errors import InputError
from lightning_modules.captioning import CaptioningModule, Scoring
from lightning_modules.clip_score import CLIPScore
from lightning_modules.metrics.captions.evaluation import CaptionScorer

WORDS = ["A", "photo", "depicts", "a", "dog", "cat", "red", "runs", "on", "the", "grass", "."]
CAPTIONS = ["a dog runs", "the cat on the red grass .", "a red dog"]
REFERENCES = [["a dog runs on the grass ."], ["a cat", "the red cat ."], ["the dog", "a dog runs", "red grass"]]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random CLIP, saved as the library saves it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("clip")
    vocabulary = {word: row for row, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *dict.fromkeys(WORDS)])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=16, **special).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(folder)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**tower, "vocab_size": len(vocabulary), "max_position_embeddings": 16}
    text |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    vision = {**tower, "image_size": 16, "patch_size": 8}
    torch.manual_seed(1)
    model = CLIPModel(CLIPConfig(projection_dim=8, text_config=text, vision_config=vision))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """At the model's own size, so that no resizing is compared."""
    paths = [tmp_path_factory.mktemp("images") / f"{row}.png" for row in range(len(CAPTIONS))]
    for row, path in enumerate(paths):
        write_image(path, row, (16, 16))
    return paths


def scored(clip: Path, files: list[Path], **options: Any) -> Any:
    metric = CLIPScore(str(clip), **options)
    return CaptionScorer(REFERENCES, [metric], "simple", domains=["in", None, "in"], files=files).score(CAPTIONS)


def test_images_are_encoded_once_for_several_sets_of_references(
    clip: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    metric = CLIPScore(str(clip))
    metric.require()
    encoded: list[int] = []
    encode = metric._encoder.encode_images
    monkeypatch.setattr(metric._encoder, "encode_images", lambda some, size: encoded.append(len(some)) or encode(some, size))
    others = [["a cat"], ["the dog"], ["red grass"]]
    for references in (REFERENCES, others):
        found = CaptionScorer(references, [metric], "simple", files=files).score(CAPTIONS)
        alone = CaptionScorer(references, [CLIPScore(str(clip))], "simple", files=files).score(CAPTIONS)
        assert found.values == alone.values
    assert encoded == [3]
    CaptionScorer(REFERENCES[:2], [metric], "simple", files=files[:2]).score(CAPTIONS[:2])
    assert encoded == [3, 2], "of other images again"


def test_the_papers_formula(clip: Path, files: list[Path]) -> None:
    from PIL import Image
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

    model, tokenizer, processor = (kind.from_pretrained(clip) for kind in (CLIPModel, AutoTokenizer, CLIPImageProcessor))

    def unit(output: Any) -> list[float]:
        vector = getattr(output, "pooler_output", output)[0]
        return (vector / vector.norm()).tolist()

    def text(sentence: str) -> list[float]:
        tokens = tokenizer(f"A photo depicts {sentence}", return_tensors="pt")
        return unit(model.get_text_features(tokens["input_ids"], tokens["attention_mask"]))

    def cosine(one: list[float], other: list[float]) -> float:
        return max(0.0, math.fsum(a * b for a, b in zip(one, other, strict=True)))

    found = scored(clip, files)
    plain, with_references = [], []
    with torch.no_grad():
        for caption, references, file in zip(CAPTIONS, REFERENCES, files, strict=True):
            image = unit(model.get_image_features(processor(Image.open(file), return_tensors="pt")["pixel_values"]))
            plain.append(2.5 * cosine(image, text(caption)))
            nearest = max(cosine(text(caption), text(reference)) for reference in references)
            both = plain[-1] + nearest
            with_references.append(2 * plain[-1] * nearest / both if both else 0.0)
    assert max(plain) > 0.1
    assert found.per_image["clip_score"].tolist() == pytest.approx(plain, abs=1e-5)
    assert found.per_image["ref_clip_score"].tolist() == pytest.approx(with_references, abs=1e-5)
    assert found.values == pytest.approx(
        {
            "clip_score": sum(plain) / 3, "ref_clip_score": sum(with_references) / 3,
            "in/clip_score": (plain[0] + plain[2]) / 2, "in/ref_clip_score": (with_references[0] + with_references[2]) / 2,
        },
        abs=1e-5,
    )  # fmt: skip
    assert found.columns == {"clip_score": "CLIP-S", "ref_clip_score": "RefCLIP-S"}


def test_torchmetrics_number_with_the_same_model(clip: Path, files: list[Path]) -> None:
    from torchmetrics.multimodal import CLIPScore as Theirs
    from torchvision.io import read_image
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

    class Model(CLIPModel):
        """Gives tensors, as torchmetrics takes them."""

        def get_image_features(self, pixel_values: Any) -> Any:
            return super().get_image_features(pixel_values).pooler_output

        def get_text_features(self, input_ids: Any, attention_mask: Any) -> Any:
            return super().get_text_features(input_ids, attention_mask).pooler_output

    tokenizer, images = AutoTokenizer.from_pretrained(clip), CLIPImageProcessor.from_pretrained(clip)

    def processor(text: Any = None, images: Any = None, **options: Any) -> Any:
        return tokenizer(text, **options) if images is None else image_processor(images, return_tensors="pt")

    image_processor = images
    theirs = Theirs(model_name_or_path=lambda: (Model.from_pretrained(clip), processor))
    theirs.update([read_image(str(file)) for file in files], CAPTIONS)
    found = scored(clip, files, reading="torchmetrics")
    assert float(theirs.compute()) > 1
    assert 100 * found.values["clip_score"] == pytest.approx(float(theirs.compute()), abs=1e-3)
    assert found.columns == {"clip_score": "CLIP-S"}
    assert "ref_clip_score" not in found.per_image


def test_a_set_below_nothing_is_nothing_for_torchmetrics_and_each_caption_for_the_paper() -> None:
    from lightning_modules.metrics.captions.clip_scores import clip_scores

    images_ID, captions_ID = torch.eye(2), torch.tensor([[-1.0, 0.0], [0.0, 0.5]])
    assert clip_scores(images_ID, captions_ID).tolist() == [0, 1.25]
    assert clip_scores(images_ID, captions_ID, "torchmetrics").tolist() == [-1, 0.5]


def test_what_cannot_be_used_is_refused_with_the_remedy(clip: Path, files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="model not/a/name is no folder and no name on the Hub"):
        CLIPScore("not/a/name")
    with pytest.raises(InputError, match="not every one has a file here: give them"):
        scored(clip, [files[0], None, files[2]])  # type: ignore[list-item]
    (tmp_path / "config.yaml").write_text("model: {}")
    import lightning_modules.loading as loading

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "load_export_or_run", lambda folder: SimpleNamespace(uses="it writes captions"))
        with pytest.raises(InputError, match="is no dual encoder: it writes captions"):
            scored(tmp_path, files)


def test_before_a_training_its_model_is_there_or_the_training_does_not_begin(clip: Path, tmp_path: Path) -> None:
    """And the random numbers that the training draws are the same with and without it."""
    language = SimpleNamespace(hf_tokenizer=None)

    def module(model: Path) -> Any:
        return SimpleNamespace(network=SimpleNamespace(language=language), scoring=Scoring(further=(CLIPScore(str(model)),)))

    torch.manual_seed(3)
    CaptioningModule.setup(module(clip), "fit")
    drawn = torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(3))
    with pytest.raises(InputError, match=r"give a folder with config\.json"):
        CaptioningModule.setup(module(tmp_path), "fit")
