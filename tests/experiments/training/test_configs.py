"""Every YAML of the repository, through the real parser: it composes, and what is given later wins. Nothing is built."""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Sequence
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import yaml

from datamodules.errors import InputError
from datamodules.files.yaml_file import read_yaml
from experiments.papers.catalogue import read_runs
from experiments.papers.schema import PAPERS
from experiments.runs.identity import config_hash
from experiments.training.command import run_alone
from experiments.training.configs import find_configs, packaged_configs
from experiments.training.lightning_cli import CrosslightCLI, ParsedCLI

REPOSITORY = Path(__file__).resolve().parents[3]
BEIT3 = "configs/model/beit3_tiny.yaml"
TINY, WORLD, CPU = "configs/model/dual_tiny.yaml", "configs/data/world.yaml", "configs/trainer/cpu.yaml"
MODELS, DATA, TRAINERS = (
    [name for name in packaged_configs() if name.startswith(f"configs/{section}/")] for section in ("model", "data", "trainer")
)
ROWS = ["head", "mwa", "ke_only", "ae_only", "full"]
MORE_ROWS = ["frozen", "mwa_released", "mwa_text", "lora", "dora", "ia3", "vera"]
BY_PEFT = {"lora", "dora", "ia3", "vera"}
MULTIWAY = "lightning_modules.adapters.multiway.MultiWayAdapter"
LORA = "lightning_modules.adapters.lora.LoRAAdapter"
RECIPES = {  # recipe -> model, data and row that its comment names
    **{
        f"beit3_{size}_{short}": (f"beit3_{size}_384", data, "full")
        for size in ("base", "large")
        for short, data in (("coco", "coco"), ("f30k", "flickr30k"))
    },
    "paper_base": ("beit3_base_384", "coco", "mwa"),
    "paper_large": ("beit3_large_384", "flickr30k", "mwa"),
    "repository_readme": ("beit3_large_384", "coco", "mwa_released"),
    "repository_ex_sh": ("beit3_base_384", "coco", "mwa_released"),
}
GPU = "configs/trainer/gpu.yaml"


def recipe(name: str) -> list[str]:
    model, data, row = RECIPES[name]
    return [
        f"configs/model/{model}.yaml", f"configs/data/{data}.yaml", GPU, f"experiments/papers/mwa/variants/{row}.yaml",
        f"experiments/papers/mwa/recipes/{name}.yaml",
    ]  # fmt: skip


UNITER, ENTITIES = "configs/model/uniter_tiny.yaml", "configs/data/world_entities.yaml"
KINDS = ("singular", "distributed")
IAIS_ROWS = (
    "baseline", *KINDS, *(f"{kind}_{anchor}" for kind in KINDS for anchor in ("language", "vision")),
    *(f"{kind}_paper" for kind in KINDS), "singular_linear", "singular_log5", "singular_log10", "singular_exp10",
)  # fmt: skip
IAIS_RECIPES = (
    ("flickr30k", "base", "flickr30k"), ("flickr30k", "large", "flickr30k"), ("coco_base", "base", "coco"),
    ("coco_large", "large", "coco"),
)  # fmt: skip
TUNED = "experiments/papers/i_tuning"
CAPTIONER, CAPTIONS = "configs/model/captioner_tiny.yaml", "configs/data/world_captions.yaml"
CAPTION_ROWS = ("i_tuning", "i_tuning_half", "i_tuning_multihead", "clipcap", "clipcap_mlp", "language_model_only")
CAPTION_RECIPES = {  # recipe -> model, data and row that its comment names
    "coco": ("captioner_gpt2_large", "coco_captions", "i_tuning"),
    "flickr30k": ("captioner_gpt2_large", "flickr30k_captions", "i_tuning"),
    "vlp_visual_genome": ("captioner_gpt2_large", "visual_genome", "i_tuning"),
    "clipcap_coco": ("captioner_gpt2_clip_b32", "coco_captions", "clipcap_mlp"),
}


def caption_recipe(name: str) -> list[str]:
    model, data, row = CAPTION_RECIPES[name]
    return [
        f"configs/model/{model}.yaml", f"configs/data/{data}.yaml", GPU, f"{TUNED}/variants/{row}.yaml",
        f"{TUNED}/recipes/{name}.yaml",
    ]  # fmt: skip


COMPOSITIONS: list[list[str]] = [
    *map(list, zip(MODELS, cycle(DATA), cycle(TRAINERS), strict=False)),  # there are more models than data and trainers
    *([BEIT3, WORLD, CPU, f"experiments/papers/mwa/variants/{row}.yaml"] for row in [*ROWS, *MORE_ROWS]),
    *(recipe(name) for name in RECIPES),
    *([UNITER, ENTITIES, CPU, f"experiments/papers/iais/variants/{row}.yaml"] for row in IAIS_ROWS),
    *([BEIT3, WORLD, CPU, "experiments/papers/mwa/variants/mwa.yaml",
       f"experiments/papers/iais/variants/beit3_{kind}.yaml"] for kind in KINDS),
    [CPU, "configs/model/uniter_minilm.yaml", *(f"experiments/papers/iais/small/{name}.yaml" for name in ("common", "grid"))],
    *([f"configs/model/uniter_{size}.yaml", f"configs/data/{data}_regions.yaml", "configs/trainer/gpu.yaml",
       "experiments/papers/iais/variants/singular.yaml", f"experiments/papers/iais/recipes/{name}.yaml"]
      for name, size, data in IAIS_RECIPES),
    *([CAPTIONER, CAPTIONS, CPU, f"{TUNED}/variants/{row}.yaml"] for row in CAPTION_ROWS),
    *(caption_recipe(name) for name in CAPTION_RECIPES),
    [*caption_recipe("coco"), f"{TUNED}/recipes/nocaps.yaml"],
]  # fmt: skip


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, and roots that do not exist: parsing must need neither."""
    monkeypatch.chdir(tmp_path)
    for name in ("WORLD", "DATA", "WEIGHTS", "MINILM", "REGIONS", "SMOLLM2"):
        monkeypatch.setenv(f"CROSSLIGHT_{name}", f"/roots/{name.lower()}")
    return tmp_path


def parse(files: list[str], *options: str, command: str = "run") -> dict[str, Any]:
    arguments = [part for file in files for part in ("-c", file)]
    return ParsedCLI([command, *find_configs([*arguments, *options])]).plain


@cache
def _composed(files: tuple[str, ...]) -> dict[str, Any]:
    return parse(list(files))


def composed(files: Sequence[str]) -> dict[str, Any]:
    """`parse` of packaged files alone: the same in every test, so each composition is parsed once."""
    return copy.deepcopy(_composed(tuple(files)))


def at(config: dict[str, Any], name: str) -> Any:
    value: Any = config
    for part in name.split("."):
        value = value[part]
    return value


def leaves(content: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(content, dict):
        return {prefix.rstrip("."): content}
    return {name: leaf for key, value in content.items() for name, leaf in leaves(value, f"{prefix}{key}.").items()}


def test_every_yaml_is_packaged_and_composed_here() -> None:
    on_disk = {
        str(path.relative_to(REPOSITORY)) for room in ("configs", "experiments") for path in (REPOSITORY / room).rglob("*.y*ml")
    }
    others = r"/(exhibits|sweeps)/|/(runs|numbers|inputs|miniatures|explanations|devices|known_counts)\.yaml$"
    no_configurations = {name for name in on_disk if re.search(others, name)}
    assert len(no_configurations) > 30
    # what only runs of the papers, or sweeps, compose is parsed by test_exhibits.py
    books = [scales.values() for paper in PAPERS for scales in read_runs(paper).values()]
    of_runs = {name for recipes in books for recipe in recipes for name in recipe.configs}
    composed_here = {name for files in COMPOSITIONS for name in files}
    assert on_disk - no_configurations == set(packaged_configs()) == composed_here | of_runs | {"experiments/papers/seeded.yaml"}


@pytest.mark.parametrize("files", COMPOSITIONS, ids=lambda files: "+".join(Path(file).stem for file in files))
def test_it_parses_and_every_value_of_the_last_file_of_a_section_arrives(files: list[str], elsewhere: Path) -> None:
    config = composed(files)
    given: dict[str, Any] = {}
    for file in reversed(files):
        content = read_yaml(REPOSITORY / file)
        assert leaves(content), f"{file} says nothing"
        given |= {section: said for section, said in content.items() if section not in given}
    for name, value in leaves(given).items():
        if isinstance(value, str) and "${" in value:
            assert at(config, name).startswith("/roots/"), name
        else:
            assert at(config, name) == value, name
    assert "${" not in json.dumps(config)
    assert list(elsewhere.iterdir()) == []
    assert CrosslightCLI.opened is None or not str(CrosslightCLI.opened.path).startswith(str(elsewhere))


def test_every_command_takes_the_same_files() -> None:
    files = [TINY, WORLD, CPU, "experiments/papers/mwa/variants/mwa.yaml"]
    expected = parse(files)
    for command in ("fit", "validate", "test", "predict"):
        assert parse(files, command=command) == expected, command


def test_rows_say_what_their_names_say() -> None:
    def row(name: str) -> dict[str, Any]:
        return composed([BEIT3, WORLD, CPU, f"experiments/papers/mwa/variants/{name}.yaml"])

    found = {}
    for name in [*ROWS, *MORE_ROWS]:
        config = row(name)
        assert config["name"] == name
        arguments = config["model"]["init_args"]
        adapter = arguments["adapter"]
        if adapter is not None and name not in BY_PEFT:
            assert adapter["class_path"] == MULTIWAY
            adapter = tuple(adapter["init_args"][key] for key in ("reading", "knowledge_extractor", "alignment_enhancer"))
        found[name] = (arguments["tuning"], adapter)
        assert arguments["train_heads"] == "new"
    lora, *methods = (found.pop(name) for name in ("lora", "dora", "ia3", "vera"))
    assert found == {
        "head": ("head", None),
        "full": ("full", None),
        "frozen": ("frozen", None),
        "mwa": ("adapter", ("printed", True, True)),
        "mwa_released": ("adapter", ("released", True, True)),
        "mwa_text": ("adapter", ("text", True, True)),
        "ke_only": ("adapter", ("printed", True, False)),
        "ae_only": ("adapter", ("printed", False, True)),
    }
    assert [tuning for tuning, _ in (lora, *methods)] == ["adapter"] * 4
    assert [adapter["init_args"]["method"].lower() for _, adapter in methods] == ["dora", "ia3", "vera"]
    assert lora[1] is not None
    assert (lora[1]["class_path"], lora[1]["init_args"]["rank"], lora[1]["init_args"]["budget"]) == (LORA, 24, None)


@pytest.mark.parametrize(("name", "batch", "lr", "decay", "epochs", "warm", "drop_path"), [
    # unilm beit3/get_started, MWA Section 4.1, MWA README and ex.sh; None = not stated there
    ("beit3_base_coco", 3072, 2e-4, 0.65, 15, 3, 0.2),
    ("beit3_base_f30k", 3072, 1e-4, 0.65, 20, 5, 0.2),
    ("beit3_large_coco", 3072, 5e-5, 0.85, 15, 3, 0.2),
    ("beit3_large_f30k", 3072, 5e-5, 0.85, 20, 5, 0.2),
    ("paper_base", 1024, 1e-3, None, 20, None, None),
    ("paper_large", 512, 1e-3, None, 20, None, None),
    ("repository_readme", 128, 2e-4, 0.65, 30, 3, 0.2),
    ("repository_ex_sh", 64, 5e-4, 0.65, 10, 2, 0.2),
])  # fmt: skip
def test_recipes_are_the_published_ones(
    name: str, batch: int, lr: float, decay: float | None, epochs: int, warm: int | None, drop_path: float | None
) -> None:
    config = composed(recipe(name))
    model = config["model"]["init_args"]
    optimization, network = model["optimization"], model["network"]["init_args"]
    assert (config["data"]["init_args"]["batch_size"], config["trainer"]["max_epochs"]) == (batch, epochs)
    assert network["image_size"] == 384
    assert (optimization["lr"], optimization["weight_decay"], optimization["min_lr"]) == (lr, 0.05, 1e-6)
    assert (optimization["betas"], optimization["eps"]) == ([0.9, 0.999], 1e-8)
    assert optimization["layer_decay"] == (decay or 1.0)
    assert optimization["warmup_fraction"] == (0.1 if warm is None else warm / epochs)
    assert network["drop_path"] == (drop_path or 0.0)
    assert network["width"] == (1024 if "large" in name or name == "repository_readme" else 768)
    assert config["checkpoint"]["monitor"] == "val/rsum"  # the released code picks on test
    released = name.startswith("repository")
    assert optimization["layer_decay_on_adapters"] is released
    assert model["eval_frozen"] is not released
    if released:
        assert model["adapter"]["init_args"]["reading"] == "released"
        assert model["adapter"]["init_args"]["scale"] == (1.0 if "ex_sh" in name else 0.6)


def test_a_row_on_a_row_switches_the_adapter_off_again() -> None:
    config = parse([TINY, WORLD, CPU, "experiments/papers/mwa/variants/mwa.yaml", "experiments/papers/mwa/variants/head.yaml"])
    assert config["model"]["init_args"]["adapter"] is None
    assert config["model"]["init_args"]["tuning"] == "head"


def test_the_last_file_wins_and_the_command_line_wins_over_all(elsewhere: Path) -> None:
    first, second = elsewhere / "first.yaml", elsewhere / "second.yaml"
    first.write_text("name: first\ndata: {init_args: {batch_size: 11, seed: 1}}\nmodel: {init_args: {optimization: {lr: 0.1}}}\n")
    second.write_text("name: second\ndata: {init_args: {batch_size: 22}}\n")
    base = [TINY, WORLD, CPU]
    config = parse([*base, str(first), str(second)])
    assert config["name"] == "second"
    assert at(config, "data.init_args.batch_size") == 22
    assert at(config, "data.init_args.seed") == 1  # untouched by the second file
    assert at(config, "data.init_args.augment") == "none"  # nor is world.yaml's by either
    assert at(config, "model.init_args.optimization.lr") == 0.1
    assert parse([*base, str(second), str(first)])["name"] == "first"
    files = [part for file in [*base, str(first), str(second)] for part in ("-c", file)]
    options = ["--data.init_args.batch_size=33", "--name=third"]
    for arguments in ([*files, *options], [*options, *files]):
        config = ParsedCLI(["fit", *find_configs(arguments)]).plain
        assert (config["name"], at(config, "data.init_args.batch_size")) == ("third", 33)


def test_interpolation_reaches_across_files_and_sees_what_wins(elsewhere: Path) -> None:
    file = elsewhere / "chunk.yaml"
    file.write_text(
        "model: {init_args: {gradient_cache_chunk: '${data.init_args.batch_size}'}}\nname: 'b${data.init_args.batch_size}'\n"
    )
    config = parse([TINY, str(file), WORLD, CPU])
    assert at(config, "model.init_args.gradient_cache_chunk") == at(config, "data.init_args.batch_size")
    assert config["name"] == f"b{at(config, 'data.init_args.batch_size')}"
    config = parse([TINY, str(file), WORLD, CPU], "--data.init_args.batch_size=16")
    assert at(config, "model.init_args.gradient_cache_chunk") == 16


def test_environment_variables_have_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    assert at(parse([TINY, WORLD, CPU]), "data.init_args.root") == "/roots/world/flickr30k"
    for name in list(os.environ):
        if name.startswith("CROSSLIGHT_"):
            monkeypatch.delenv(name)
    assert at(parse([TINY, WORLD, CPU]), "data.init_args.root") == "./data/world/flickr30k"


def test_a_runs_own_config_starts_it_again(elsewhere: Path) -> None:
    files = [TINY, WORLD, CPU, "experiments/papers/mwa/variants/mwa.yaml"]
    config = parse(files, "--trainer.max_epochs=3", "--evaluate.more=datamodules.coco.COCO", "--evaluate.more.init_args.root=/x")
    saved = elsewhere / "config.yaml"
    saved.write_text(yaml.safe_dump(config, sort_keys=False))
    again = parse([str(saved)])
    assert again == config
    assert config_hash({"command": "run", **again}) == config_hash({"command": "run", **config})
    assert parse([str(saved)], "--trainer.max_epochs=4")["trainer"]["max_epochs"] == 4


def test_iais_rows_say_what_their_names_say() -> None:
    found = {}
    for name in IAIS_ROWS:
        config = composed([UNITER, ENTITIES, CPU, f"experiments/papers/iais/variants/{name}.yaml"])
        assert config["name"] == name
        iais = config["model"]["init_args"]["iais"]
        if iais is not None:
            options = iais["init_args"]
            annealing = options["annealing"]
            when = None if annealing is None else (annealing["schedule"], annealing["scale"])
            iais = (options["kind"], options["reading"], options["anchors"], when)
        found[name] = iais
    both = {kind: (kind, "released", "both", None) for kind in KINDS}
    single = {f"{k}_{a}": (k, "released", a, None) for k in KINDS for a in ("language", "vision")}
    annealed = {"linear": ("linear", 5.0), "log5": ("log", 5.0), "log10": ("log", 10.0), "exp10": ("exp", 10.0)}
    schedules = {f"singular_{name}": ("singular", "released", "both", when) for name, when in annealed.items()}
    paper = {f"{kind}_paper": (kind, "paper", "both", None) for kind in KINDS}
    assert found == {"baseline": None, **both, **single, **paper, **schedules}


def test_caption_rows_say_what_their_names_say() -> None:
    found = {}
    for name in CAPTION_ROWS:
        config = composed([CAPTIONER, CAPTIONS, CPU, f"{TUNED}/variants/{name}.yaml"])
        assert (config["name"], config["checkpoint"]["monitor"]) == (name, "val/cider")
        model = config["model"]["init_args"]
        adapter = model["adapter"] or {"init_args": {}}
        named = ("reading", "lambda_", "drop_first", "mapping", "prefix_length", "tune_language_model")
        options = {key: value for key, value in adapter["init_args"].items() if key in named}
        found[name] = (model["tuning"], model["network"]["init_args"]["visual"], options)
    paper = {"reading": "paper", "lambda_": 4.0, "drop_first": 0}
    prefix = {"mapping": "transformer", "prefix_length": 10, "tune_language_model": False}
    assert found == {
        "i_tuning": ("adapter", "tokens", paper),
        "i_tuning_half": ("adapter", "tokens", {**paper, "drop_first": "half"}),
        "i_tuning_multihead": ("adapter", "tokens", {**paper, "reading": "multihead"}),
        "clipcap": ("adapter", "pooled", prefix),
        "clipcap_mlp": ("adapter", "pooled", {**prefix, "mapping": "mlp", "tune_language_model": True}),
        "language_model_only": ("frozen", "tokens", {}),
    }


@pytest.mark.parametrize(("name", "epochs"), [("coco", 30), ("flickr30k", 30), ("vlp_visual_genome", 10)])
def test_i_tunings_recipes_are_the_papers(name: str, epochs: int) -> None:
    """Batch, epochs, beams and split of Section 3.1; the rest is inferred, and the same in all three."""
    config = composed(caption_recipe(name))
    model, data, trainer = config["model"]["init_args"], config["data"]["init_args"], config["trainer"]
    assert (trainer["max_epochs"], data["batch_size"] * trainer["accumulate_grad_batches"]) == (epochs, 4096)
    assert data["augment"] == "none"
    assert data["captioning"]["captions_per_image"] == (5 if name == "vlp_visual_genome" else None)
    assert data.get("split") == ("entities" if name == "flickr30k" else None)
    assert (model["decoding"]["num_beams"], model["decoding"]["length_penalty"]) == (5, 1.0)
    optimization = model["optimization"]
    assert (optimization["lr"], optimization["min_lr"], optimization["warmup_fraction"]) == (5e-4, 0.0, 0.1)
    assert (optimization["weight_decay"], optimization["betas"], trainer["gradient_clip_val"]) == (0.01, [0.9, 0.999], 1.0)


def test_packaged_configurations_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = find_configs(["-c", "configs/trainer/cpu.yaml", "--config=experiments/papers/mwa/variants/mwa.yaml", "--name", "x"])
    assert Path(found[1]).is_file()
    assert Path(found[2].removeprefix("--config=")).is_file()
    assert found[3:] == ["--name", "x"]
    own = tmp_path / "configs" / "trainer" / "cpu.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("trainer: {}\n")
    assert find_configs(["-c", "configs/trainer/cpu.yaml"]) == ["-c", "configs/trainer/cpu.yaml"]  # a file here wins


@pytest.mark.parametrize("form", [["-c", "{}"], ["--config", "{}"], ["--config={}"]])
def test_a_missing_file_suggests_the_packaged_one(form: list[str]) -> None:
    with pytest.raises(InputError, match=r"configs/model/dual_tinny\.yaml: .* Did you mean configs/model/dual_tiny\.yaml"):
        find_configs([part.format("configs/model/dual_tinny.yaml") for part in form])
    with pytest.raises(InputError, match=r"Did you mean experiments/papers/mwa/variants/mwa\.yaml") as error:
        run_alone("fit", [part.format("experiments/papers/mwa/variant/mwa.yaml") for part in form])
    assert "\n" not in str(error.value)
