"""What is done with a loaded model: vectors of files and texts as a validation makes them, captions with their probability."""

from __future__ import annotations

import math
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_ranking
import tiny_vilt
import torch
import yaml
from PIL import Image
from pretended_gpu import pretended_gpu
from tiny_captioner import captioner, images
from tiny_data import write_flickr8k, write_image
from tiny_run import reading_run

import lightning_modules
from datamodules.errors import InputError
from datamodules.flickr8k import Flickr8k
from datamodules.loading.tokens import TextWarning, Tokenizer
from datamodules.miniworld.write import write_tokenizer
from lightning_modules.adapters.i_tuning import ITuning
from lightning_modules.captioning import CaptioningModule
from lightning_modules.exporting import export_run
from lightning_modules.loading import build
from lightning_modules.networks.language_model import Decoding
from lightning_modules.ranking import RankingModule


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reading_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def loaded(run: Path) -> Any:
    return lightning_modules.load(run)


@pytest.mark.filterwarnings("ignore::datamodules.loading.tokens.TextWarning")  # words of the rendered world, and others
def test_vectors_are_those_of_a_validation(loaded: Any, tmp_path: Path) -> None:
    data = Flickr8k(str(write_flickr8k(tmp_path)), num_workers=0, batch_size=4)
    data.connect(loaded.network.inputs)
    records = data.records("train")
    wanted: list[torch.Tensor] = []
    for loader in data.evaluation_loaders("train"):
        parts = [loaded.predict_step(batch, 0) for batch in loader]
        order = torch.cat([part["index"] for part in parts]).argsort()
        wanted.append(torch.cat([part["embeddings"] for part in parts])[order])
    loaded.train()
    vectors_ND = loaded.encode_images([record.path for record in records], batch_size=5)
    texts_ND = loaded.encode_texts([caption.text for record in records for caption in record.captions], batch_size=7)
    assert loaded.training  # as before, though nothing was dropped meanwhile
    for found, own in zip((vectors_ND, texts_ND), wanted, strict=True):
        torch.testing.assert_close(found, own, atol=2e-6, rtol=0)
        torch.testing.assert_close(found.norm(dim=1), torch.ones(len(found)))
        assert not found.requires_grad
    assert (vectors_ND[0] - vectors_ND[1]).abs().max() > 1e-3
    loaded.eval()


def test_an_export_gives_the_same_bits(run: Path, loaded: Any, tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg", 1)
    exported = lightning_modules.load(export_run(run, tmp_path / "export"))
    assert torch.equal(exported.encode_images([tmp_path / "a.jpg"]), loaded.encode_images([tmp_path / "a.jpg"]))
    assert torch.equal(exported.encode_texts(["a red cat"]), loaded.encode_texts(["a red cat"]))


def test_on_a_gpu_only_vectors_come_back(loaded: Any, tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg", 1)
    here = loaded.encode_images([tmp_path / "a.jpg"])
    with pretended_gpu():
        there = lightning_modules.load(Path(loaded.network.inputs.text.tokenizer).parent).to("cuda")
        found = there.encode_images([tmp_path / "a.jpg"]), there.encode_texts(["a cat"])
        assert {each.device.type for each in found} == {"cpu"}
        torch.testing.assert_close(torch.Tensor(found[0]), here)


def test_what_the_model_cannot_read_is_said(loaded: Any) -> None:
    with pytest.warns(TextWarning) as said:
        loaded.encode_texts(["a xylophone cat", "a cat", "a cat " * 9])
    first, second = (str(warning.message) for warning in said)
    assert first == "'a xylophone cat': the model does not know all of its words, and reads 'a [UNK] cat'"
    assert second.endswith("longer than the 8 tokens of the model, which reads 'a cat a cat a cat'")
    with pytest.warns(TextWarning) as said:
        loaded.encode_texts(["a cat", *["a xylophone"] * 9])
    assert [str(warning.message) for warning in said][5:] == ["4 more of 10 texts are not read as they stand"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded.encode_texts(["a cat"])


def test_files_and_lists_that_cannot_be_encoded(loaded: Any, tmp_path: Path) -> None:
    (tmp_path / "words.jpg").write_text("no image")
    for paths, message in (([tmp_path / "gone.jpg"], r"gone\.jpg does not exist"), ([tmp_path / "words.jpg"], "is not an image")):
        with pytest.raises(InputError, match=message):
            loaded.encode_images(paths)
    with pytest.raises(InputError, match="there are no images to encode"):
        loaded.encode_images([])
    with pytest.raises(InputError, match="there are no texts to read"):
        loaded.encode_texts([])
    for size in (0, -3):
        with pytest.raises(InputError, match=f"batch size {size}: give at least 1"):
            loaded.encode_texts(["a cat"], batch_size=size)


def test_pairs_of_files_and_texts_are_scored_one_by_one(tmp_path: Path) -> None:
    """The twin embeds and scores each pair by itself."""
    write_tokenizer(tmp_path / "words")
    network = tiny_vilt.vilt(config={"vocab_size": 320}, tokenizer=str(tmp_path / "words"), max_tokens=12)
    model = RankingModule(network)
    for number in range(3):
        write_image(tmp_path / f"{number}.jpg", number)
    paths, texts = [tmp_path / f"{number}.jpg" for number in range(3)], ["a red cup", "a large green cup"]
    model.train()
    scores_IT = model.score_pairs(paths, texts, batch_size=2)
    assert model.training
    assert scores_IT.shape == (3, 2)
    assert "model.score_pairs(" in model.task.example
    model.eval()
    for row, path in enumerate(paths):
        for column, text in enumerate(texts):
            torch.testing.assert_close(model.score_pairs([path], [text])[0, 0], scores_IT[row, column], atol=1e-5, rtol=1e-5)
    assert scores_IT.unique().numel() == 6
    with pytest.raises(InputError, match="there are no images to score"):
        model.score_pairs([], texts)
    with pytest.raises(InputError, match="there are no texts to read"):
        model.score_pairs(paths, [])
    with pytest.raises(InputError, match=r"UniterRetrieval takes region features"):
        tiny_ranking.module().score_pairs(paths, texts)


def test_a_model_says_what_it_cannot_do_and_what_it_can(loaded: Any) -> None:
    uniter = tiny_ranking.module()
    assert uniter.task.example == "print(model.uses)"  # its card must not show a line that it refuses
    for use in (lambda: uniter.encode_images(["a.jpg"]), lambda: uniter.encode_texts(["a"])):
        with pytest.raises(InputError, match=r"UniterRetrieval\) gives .* no vector: .*; `crosslight test` ranks"):
            use()
    with pytest.raises(InputError, match=r"DualEncoder\) scores no pairs: .* crosslight index and search"):
        loaded.score_pairs(["a.jpg"], ["a"])
    with pytest.raises(InputError, match=r"DualEncoder\) writes no captions: .* crosslight index and search"):
        loaded.caption(["a.jpg"])
    with pytest.raises(InputError, match=r"Captioner\) gives an image no vector: it writes captions"):
        CaptioningModule(captioner(), ITuning()).encode_images(["a.jpg"])


# -------------------------------------------------------------------------------------------------------------- captions


def naive_log_prob(network: Any, pixels: Any, ids: list[int], ended: bool) -> float:
    """Token by token, one image at a time."""
    total = 0.0
    for place, token in enumerate([*ids, network.language.eos] if ended and ids[-1:] != [network.language.eos] else ids):
        network._set_images(network.encode_images(pixels), None)
        lead = torch.tensor([[network.language.bos, *ids[:place]]])
        logits = network.language.model(input_ids=lead).logits[0, -1]
        total += logits.double().log_softmax(-1)[token].item()
        network.clear_images()
    return total


@pytest.mark.parametrize(
    "decoding",
    [
        Decoding(num_beams=2, max_new_tokens=6),
        Decoding(num_beams=1, sample=True, temperature=3.0, max_new_tokens=5),
        Decoding(num_beams=1, max_new_tokens=6, keep_eos=True),
    ],
    ids=["beams", "sampled", "with its end"],
)
def test_the_probability_of_a_caption_is_that_of_its_tokens(decoding: Decoding, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = CaptioningModule(captioner(), ITuning(init_std=0.3), decoding=decoding).eval()
    network, batch = model.network, images(4)
    monkeypatch.setattr(network.language, "decode", lambda ids: [" ".join(map(str, row)) for row in ids])
    # one that ends at once, one after a while, one never: some end tokens are made likelier than the model has them
    plain = network.generate_ids(network.encode_images(batch), decoding, [1, 2, 3, 4])
    cut = [[], plain[1][:3], *plain[2:]]
    monkeypatch.setattr(network, "generate_ids", lambda features, decoding, seeds: cut)
    written = model.write(batch)
    assert [each.ended for each in written] == [len(ids) < decoding.max_new_tokens for ids in cut]
    for row, each in enumerate(written):
        one = type(batch)(("",), torch.tensor([0]), batch.pixels_B3HW[row : row + 1])
        assert list(each.ids) == cut[row]
        assert each.text == " ".join(map(str, cut[row]))
        assert each.log_prob == pytest.approx(naive_log_prob(network, one, cut[row], each.ended), abs=1e-4)
    assert len({round(each.log_prob, 3) for each in written}) == 4
    assert all(math.isfinite(each.log_prob) for each in written)


def test_captions_on_a_gpu_are_those_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = CaptioningModule(captioner(), ITuning(init_std=0.3), decoding=Decoding(num_beams=2, max_new_tokens=6))
    monkeypatch.setattr(model.network.language, "decode", lambda ids: [" ".join(map(str, row)) for row in ids])
    here = model.write(images(3))
    with pretended_gpu():
        there = model.to("cuda").write(images(3))
    assert [each.text for each in there] == [each.text for each in here]
    assert [each.log_prob for each in there] == pytest.approx([each.log_prob for each in here], abs=1e-4)


def test_captions_of_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = CaptioningModule(captioner(), ITuning(init_std=0.3), decoding=Decoding(num_beams=2, max_new_tokens=6))
    monkeypatch.setattr(model.network.language, "decode", lambda ids: [" ".join(map(str, row)) for row in ids])
    paths = []
    for seed in range(3):
        paths.append(tmp_path / f"{seed}.png")
        Image.effect_noise((20, 20), 40.0 + 70 * seed).convert("RGB").save(paths[-1])
    together = model.caption(paths, batch_size=2)
    assert together == [model.caption([path])[0] for path in paths]
    assert len(model.caption(paths[:1], decoding=Decoding(num_beams=1, max_new_tokens=2))[0].split()) <= 2
    with pytest.raises(InputError, match="a language model without an adapter, which sees no image"):
        CaptioningModule(captioner(), tuning="head").caption(paths)


@pytest.mark.filterwarnings("ignore::datamodules.loading.tokens.TextWarning")
def test_a_prompt_is_read_by_training_tests_searches_and_exports_alike(run: Path, loaded: Any, tmp_path: Path) -> None:
    prompted = tmp_path / "run"
    shutil.copytree(run, prompted)
    config = yaml.safe_load((prompted / "config.yaml").read_text())
    config["model"]["init_args"]["prompt"] = "the big {} here"
    (prompted / "config.yaml").write_text(yaml.safe_dump(config))
    model = lightning_modules.load(prompted)
    text = "red cat"
    vector = model.encode_texts([text])
    assert torch.equal(vector, loaded.encode_texts(["the big red cat here"]))
    assert not torch.allclose(vector, loaded.encode_texts([text]), atol=1e-3)
    assert torch.equal(lightning_modules.load(export_run(prompted, tmp_path / "export")).encode_texts([text]), vector)
    data = Flickr8k(str(write_flickr8k(tmp_path / "data")), num_workers=0, batch_size=4)
    data.connect(model.network.inputs)
    read = Tokenizer(replace(model.network.inputs.text, prompt="{}"))
    for batch in (next(iter(data.train_dataloader())).texts, next(iter(data.evaluation_loaders("test")[1]))):
        assert not any(caption.startswith("the big") for caption in batch.texts)  # what people see is what they wrote
        assert torch.equal(batch.tokens_BT, read([f"the big {caption} here" for caption in batch.texts])[0])


@pytest.mark.parametrize("prompt", ["a photo of", "{} and {}"])
def test_a_prompt_without_one_place_for_the_text_is_refused(run: Path, tmp_path: Path, prompt: str) -> None:
    section = yaml.safe_load((run / "config.yaml").read_text())["model"]
    section["init_args"]["prompt"] = prompt
    with pytest.raises(InputError, match=r"prompt is .* needs \{\} once, where the text goes"):
        build(section)
