"""The papers as data: exhibits, runs and plans agree with numbers.yaml, with each other, and with the command line."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from datamodules.errors import InputError
from experiments.papers import catalogue as exhibits
from experiments.papers import schema, strict_yaml
from experiments.papers.catalogue import read_exhibit, read_runs
from experiments.papers.plan import PlannedRun, plan, plan_runs
from experiments.papers.schema import PAPERS, SCALES, Scale
from experiments.pretraining.pretrain import read_shipped
from experiments.runs.store import folder_of
from experiments.sweep.launches import PROGRAM
from experiments.sweep.targets import launches_of
from experiments.training.configs import find_configs
from lightning_modules.checkpoints import miniatures

REPOSITORY = Path(__file__).resolve().parents[3]
NUMBERS = yaml.safe_load((REPOSITORY / "experiments" / "papers" / "numbers.yaml").read_text())
NUMBERS["clip"] = yaml.safe_load((REPOSITORY / "experiments" / "papers" / "clip" / "numbers.yaml").read_text())
PAPERS_OWN = {
    "mwa": ["figure2", "table1", "table2", "table3"],
    "iais": ["figure3", "figure5", "figure6", "figure7", "figure8", "figure9", "table1", "table2", "table3"],
    "i_tuning": ["figure1", "figure3", "table1", "table2", "table3"],
    "clip": ["zero_shot"],
    "uniter": [],
}
BEYOND = {
    "clip": ["adapt"],
    "mwa": ["dial", "equal_budgets", "iais_on_beit3"],
    "iais": ["vilt"],
    "i_tuning": ["equal_parameters", "grounding", "language_models", "vision_towers"],
    "uniter": ["pretrain"],
}
NUMBERED = [paper for paper in PAPERS if PAPERS_OWN[paper]]  # uniter is what iais needs, and prints nothing here
NAMES = [f"{paper}/{name}" for paper in PAPERS for name in sorted([*PAPERS_OWN[paper], *BEYOND[paper]])]
PARAMETERS = {"dropped_layers"}  # fields of a published row that say what was run, beside its texts and true or false
SIZES = ("base.yaml", "medium.yaml", "large.yaml", "neox.yaml", "llama.yaml", "opt.yaml")  # overlays of nothing but sizes
ALIKE = {
    "mwa/base-coco-ke32": "mwa/base-coco-ke-small",
    "clip/adapt-frozen": "clip/zero_shot-openai_b32-coco-plain",
}  # at full scale


@cache
def planned_runs(scale: Scale, seeds: tuple[int, ...] = (0,)) -> list[PlannedRun]:
    return plan(NAMES, scale, seeds)


# -------------------------------------------------------------------------------------------------- against the papers


def test_every_exhibit_is_there_and_reads() -> None:
    assert exhibits.exhibit_names() == NAMES
    for name in NAMES:
        exhibit = read_exhibit(name)
        beyond = name.partition("/")[2] in BEYOND[name.partition("/")[0]]
        assert exhibit.beyond is beyond, name
        assert (exhibit.published is None) is beyond, name
        assert exhibit.kind == ("figure" if "/figure" in name else "table"), name
        assert (exhibit.figure is not None) or exhibit.kind == "table", name
        assert exhibit.note, name
        for variant in exhibit.variants:
            assert variant.beyond is (variant.published is None) or variant.published is None, (name, variant.label)


def test_the_numbers_are_the_papers() -> None:
    """The repository's copy is the transcription that was handed to it, byte for byte, and lines that say where in a paper they
    are from."""
    lines = (REPOSITORY / "experiments" / "papers" / "numbers.yaml").read_text().splitlines(keepends=True)
    added = [line for line in lines if "# added" in line]
    assert len(added) == 10
    assert all(re.search(r"  # added: (page \d|Section \d|Table \d)", line) for line in added)
    content = "".join(line for line in lines if line not in added).encode()
    assert hashlib.sha256(content).hexdigest() == "564c78030bacc5f76c413b31dae5cf7275a8e33b082ad89e9b7c9cfd3e3ee9d4"


@pytest.mark.parametrize("name", [name for name in NAMES if name.partition("/")[2] in PAPERS_OWN[name.partition("/")[0]]])
def test_every_published_number_is_reached(name: str) -> None:
    """Rows select each published row once, and columns show each of its numbers, as the file has them by position or by name."""
    exhibit = read_exhibit(name)
    paper, place = str(exhibit.published).split(".")
    entry = NUMBERS[paper][place]
    if not isinstance(entry, dict) or "rows" not in entry:
        assert all(variant.published is None for variant in exhibit.variants)
        return
    expected = [dict(zip(entry["columns"], row["values"], strict=True)) if "values" in row else row for row in entry["rows"]]
    columns = {column.name: column for column in exhibit.columns}
    found = []
    for variant in exhibit.variants:
        if variant.published is None:
            continue
        published = exhibits.published_row(exhibit, variant)
        assert published is not None
        assert not published["quoted"]
        place_of = [
            i for i, one in enumerate(entry["rows"]) if all(one.get(key) == value for key, value in variant.published.items())
        ]
        assert len(place_of) == 1, (variant.label, place_of)
        numbers = {key: value for key, value in expected[place_of[0]].items() if isinstance(value, (int, float))}
        numbers = {key: value for key, value in numbers.items() if not isinstance(value, bool) and key not in PARAMETERS}
        if exhibit.kind == "table":
            assert numbers.keys() <= columns.keys(), variant.label
        assert {key: published[key] for key in numbers} == numbers
        found += place_of
    assert sorted(found) == list(range(len(entry["rows"])))
    quoted = [row for row in exhibits.published_table(exhibit) if row["quoted"]]
    assert len(quoted) == len(entry.get("quoted", []))


@pytest.mark.parametrize("paper", NUMBERED)
def test_every_claim_and_reading_is_put_to_a_test_or_says_why_not(paper: str) -> None:
    own = NUMBERS[paper]
    listed = {*own["claims"], *own.get("readings", []), *own.get("figure2", {}).get("claims", [])}
    texts = {value for key, value in own.items() if isinstance(value, str)}
    if paper == "iais":  # a number in the words of its figure's caption
        r = own["figure3"]["pearson_isda_vs_meta_sum"]
        texts |= {f"ISDa and Meta-Sum are highly correlated with a Pearson's correlation coefficient of {r:.2f}"}
    told: dict[str, list[schema.Claim]] = {}
    for name in NAMES:
        if name.startswith(f"{paper}/"):
            for claim in read_exhibit(name).claims:
                if not claim.beyond:
                    told.setdefault(claim.text, []).append(claim)
    assert listed <= told.keys(), sorted(listed - told.keys())
    assert told.keys() <= listed | texts, sorted(told.keys() - listed - texts)
    for text, claims in told.items():
        assert all(claim.test != "none" or claim.reason for claim in claims), text
        if len(claims) > 1:  # the parts of one claim say which part they are
            assert all(claim.reason for claim in claims), text


def test_what_the_documents_quote_is_what_the_papers_print() -> None:
    rows = {(row["model"], row["tuning"]): row for row in NUMBERS["mwa"]["table1"]["rows"]}
    multiway = " ".join((REPOSITORY / "docs" / "multiway.md").read_text().split())
    large = rows["beit3-large", "mwa"]
    assert f"Table 1's {large['tunable_m']:.2f} M ({large['tunable_pct']} %)" in multiway
    assert f"Table 1's {rows['beit3-base', 'mwa']['tunable_m']} M on BEiT-3 base" in multiway
    captioning = " ".join((REPOSITORY / "docs" / "captioning.md").read_text().split())
    counts = [row["params_m"] for row in NUMBERS["i_tuning"]["table2"]["rows"] if row["model"] != "clipcap-gpt2-large"]
    assert "{}, {}, {} and {} M".format(*counts) in captioning
    mwa, full = rows["beit3-base", "mwa"]["minutes"], rows["beit3-base", "full"]["minutes"]
    assert f"base {full} full and {mwa} MWA" in (REPOSITORY / "experiments" / "papers" / "mwa" / "runs.yaml").read_text()


def _recipe(paper: str, *names: str) -> dict[str, Any]:
    """Overlays of a paper, later ones win, as dotted options."""
    found: dict[str, Any] = {}

    def add(content: dict[str, Any], start: str) -> None:
        for key, value in content.items():
            add(value, f"{start}{key}.") if isinstance(value, dict) else found.update(
                {f"{start}{key}".replace("init_args.", ""): value}
            )

    for name in names:
        add(yaml.safe_load((REPOSITORY / "experiments" / "papers" / paper / f"{name}.yaml").read_text()), "")
    return found


def test_recipes_have_what_the_papers_print() -> None:
    """Each printed set-up, in the recipes of full scale; where a recipe follows the release, in rows of their own."""
    mwa, iais, i_tuning = (NUMBERS[paper]["setup"] for paper in ("mwa", "iais", "i_tuning"))
    for size in ("base", "large"):
        recipe = _recipe("mwa", f"recipes/paper_{size}")
        assert recipe["data.batch_size"] == mwa[f"batch_{size}"]
        assert (recipe["trainer.max_epochs"], recipe["model.optimization.lr"]) == (mwa["epochs"], mwa["lr"])
    assert _recipe("mwa", "variants/mwa")["model.adapter.reading"] == "printed"
    rates = {name: _recipe("iais", f"recipes/{name}") for name in ("flickr30k", "coco_base", "coco_large")}
    for recipe in rates.values():
        assert recipe["model.objective.margin"] == iais["margin"]
        assert recipe["model.hard_negatives"] == iais["hard_negatives_per_side"]
        assert recipe["data.batch_size"] == iais["positives_per_batch"]
        assert recipe["trainer.max_steps"] == iais["steps"]
        positives = recipe["data.batch_size"] * (1 + recipe["model.hard_negatives"])
        assert 2 * positives == iais["pairs_per_step"], "of a micro-batch, both sides"
    assert [recipe["model.optimization.lr"] == iais["lr"] for recipe in rates.values()] == [True, True, False]
    runs = read_runs("iais")
    for row in ("baseline", "singular", "distributed"):
        assert runs[f"large-coco-{row}-printed_lr"]["full"].options["model.init_args.optimization.lr"] == iais["lr"]
        for size in ("base", "large"):
            assert "experiments/papers/iais/recipes/coco_82k.yaml" in runs[f"{size}-coco-{row}-82k"]["full"].configs
    whole = yaml.safe_load((REPOSITORY / "configs" / "data" / "coco_regions.yaml").read_text())
    databases = whole["data"]["init_args"]["regions"]["text_db"]
    less = {split: [name for name in names if "restval" not in name] for split, names in databases.items()}
    assert less["train"] != databases["train"]
    assert _recipe("iais", "recipes/coco_82k") == {f"data.regions.text_db.{split}": names for split, names in less.items()}
    for name, epochs in (("coco", "epochs"), ("flickr30k", "epochs"), ("vlp_visual_genome", "vlp_epochs")):
        recipe = _recipe("i_tuning", f"recipes/{name}")
        assert recipe["data.batch_size"] * recipe["trainer.accumulate_grad_batches"] == i_tuning["batch"]
        assert recipe["trainer.max_epochs"] == i_tuning[epochs]
        assert recipe["model.decoding.num_beams"] == i_tuning["beam_size"]


# ---------------------------------------------------------------------------------------------------- jobs of the papers


@pytest.mark.parametrize("scale", SCALES)
def test_planned_runs_come_once_after_what_they_need(scale: Scale) -> None:
    found = planned_runs(scale)
    done: set[str] = set()
    for planned in found:
        assert set(planned.after) <= done, planned.names
        assert planned.key not in done
        done.add(planned.key)
        assert planned.recipe.cost is not None, planned.names
        assert (planned.recipe.world is None) is (scale != "miniature")
    names = [name for planned in found for name in planned.names]
    assert len(names) == len(set(names))


def test_every_run_is_in_an_exhibit_or_of_the_shipped_weights_or_on_the_way_there() -> None:
    shipped = plan_runs([each.run for each in read_shipped().values()], "miniature", [0])
    covered = {name for runs in (*map(planned_runs, SCALES), shipped) for planned in runs for name in planned.names}
    assert covered == {f"{paper}/{run}" for paper in PAPERS for run in read_runs(paper)}


def test_equal_runs_are_planned_once() -> None:
    found = {name: planned.key for planned in planned_runs("full") for name in planned.names}
    for name, alias in ALIKE.items():
        assert found[name] == found[alias]
    assert found["mwa/base-coco-mwa"] != found["mwa/base-coco-mwa-ke32"]


def test_the_miniature_has_the_papers_rows() -> None:
    small = {name for planned in planned_runs("miniature") for name in planned.names}
    large = {name for planned in planned_runs("full") for name in planned.names}
    # towers and fine-tuned weights that only a hub has
    clips = {name for name in large if name.startswith("clip/zero_shot-") and "openai_b32" not in name}
    assert large - small == {
        "i_tuning/coco-vision-supervised", "i_tuning/coco-vision-dino", "iais/vilt-flickr30k-released", "iais/vilt-coco-released",
        *clips,
    }  # fmt: skip
    starts = {"iais/pretrain-vilt", "clip/pretrain-tiny", "uniter/bert"}  # of full scale the hub has them
    # CLIP's own tower has learnt from pairs alone
    methods = ("large", "large-clipcap_equal", "large-linear_prefix", "clipcap-large")
    assert small - large == starts | {f"i_tuning/coco-{method}-pairs_tower" for method in methods}


def test_the_small_scale_has_the_papers_variants() -> None:
    """And says of every exhibit that it has a row of what stands in the place of what."""
    planned = planned_runs("small", (0, 1))
    names = {name.partition("/")[2] for run in planned for name in run.names}
    tuned = {"full", "mwa", "ke_only", "ae_only", "head", "lora", "lora-small", "ke-small"}
    transferred, rows = ("full", "mwa", "ke_only", "ae_only", "head"), {"baseline", "singular", "distributed"}
    captioners = {"large", "large-half", "clipcap-large"}
    assert names == (
        {f"base-coco-{row}" for row in tuned} | {f"large-zero_shot-{row}" for row in transferred}
        | {f"base-flickr30k-{row}" for row in rows} | {"pretrain-base"}
        | {f"{data}-{row}" for data in ("coco", "nocaps") for row in captioners} | {"coco-llama", "alone-llama"}
        | {"coco-large-linear_prefix", "coco-large-lora_language"}
    )  # fmt: skip
    assert all(run.recipe.reads and run.recipe.cost and run.recipe.cost.device == "CPU core" for run in planned)
    starts = {run.key for run in planned if run.names == ("iais/pretrain-base",)}
    assert len(starts) == 1  # one for both seeds
    assert {run.after for run in planned if run.names[0].startswith("iais/base")} == {tuple(starts)}
    for name in NAMES:
        exhibit = read_exhibit(name)
        there = bool(plan([name], "small", [0]))
        assert ("small" in exhibit.at) is there, name
        own, seen = exhibit.at_scale("small"), {run for each in plan([name], "small", [0]) for run in each.names}
        paper = name.partition("/")[0]
        roles = {role for variant in exhibit.variants for role, run in variant.runs.items() if f"{paper}/{run}" in seen}
        tests = {
            role for variant in exhibit.variants for role, run in variant.runs.items() if "zero_shot" in run or "nocaps" in run
        }
        for variant in exhibit.variants:
            if there and any(f"{paper}/{run}" in seen for run in variant.runs.values()):
                called = exhibit.at["small"].variants.get(variant.label, variant.label)
                assert "GPT-2" not in called, (name, called)  # it is another model there
        for before, column in zip(exhibit.columns, own.columns, strict=True):
            if column.metric is not None and column.run in roles - tests:
                assert not re.search("COCO|Flickr30k", column.label), (name, column.label)
            assert column.name == before.name


def test_an_exhibit_in_the_words_of_a_scale() -> None:
    whole, own = read_exhibit("mwa/table1"), read_exhibit("mwa/table1").at_scale("small")
    assert read_exhibit("mwa/table1").at_scale("full") is whole
    assert [column.label for column in own.columns if column.name == "coco_ir1"] == ["Flickr8k IR@1"]
    assert (own.variants, own.claims) == (whole.variants, whole.claims)  # one claim is the same at all scales
    assert own.note.startswith(whole.note.strip())
    assert "MiniLM" in own.note.removeprefix(whole.note.strip())


def test_the_miniature_of_the_three_papers_takes_fifty_minutes_of_two_cores_and_all_of_it_little_more_than_an_hour() -> None:
    """By the estimates, which are what the runs took; with what other people's papers pre-train it takes longer."""
    hours: dict[bool, float] = {True: 0.0, False: 0.0}
    for planned in planned_runs("miniature"):
        own = not re.match("uniter/|clip/|iais/(pretrain-)?vilt", planned.names[0])
        hours[own] += planned.recipe.cost.hours if planned.recipe.cost is not None else 0.0
    assert 1.0 < hours[True] < 2 * 0.83
    assert sum(hours.values()) < 2 * 1.2


def test_seeds_multiply_what_depends_on_them() -> None:
    one, three = planned_runs("full"), planned_runs("full", (0, 1, 2))
    fixed = [planned for planned in one if not planned.recipe.seeded]
    assert fixed
    assert all(not planned.after for planned in fixed)
    assert len(three) == 3 * (len(one) - len(fixed)) + len(fixed)
    assert Counter(planned.seed for planned in three if planned.recipe.seeded) == {
        seed: len(one) - len(fixed) for seed in (0, 1, 2)
    }


def _options(planned: PlannedRun) -> set[str]:
    """What of its command line test_configs.py does not parse: its command and options with each kind of model, and the
    overlays of the scales below full."""
    files = {file.rpartition("/")[2] for file in planned.recipe.configs if file.startswith(("configs/model/", "configs/data/"))}
    kinds = {"beit3", "uniter", "dual", "captioner", "vilt", "clip", "siglip", "siglip2", "open"}
    kind = min({file.split("_")[0] for file in files} & kinds)
    overlays = {
        file for file in planned.recipe.configs if re.search("/(miniature|small)/|coco_sample", file) and not file.endswith(SIZES)
    }
    return {f"{kind} {planned.recipe.command}", *(f"{kind} {name}" for name in planned.recipe.options), *overlays}


def _covering(candidates: list[PlannedRun]) -> list[PlannedRun]:
    """Planned runs that together have every file and option of all of them."""
    wanted = set[str]().union(*map(_options, candidates))
    chosen: list[PlannedRun] = []
    while wanted:
        best = max(candidates, key=lambda planned: len(_options(planned) & wanted))
        chosen.append(best)
        wanted -= _options(best)
    return chosen


def test_planned_runs_parse_through_the_real_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planned runs that have every file and every option among them; with CROSSLIGHT_EVERY_RUN=1 all of them (a minute)."""
    from experiments.training.lightning_cli import ParsedCLI

    monkeypatch.chdir(tmp_path)
    for name in ("WORLD", "DATA", "WEIGHTS", "MINILM", "REGIONS", "SMOLLM2"):
        monkeypatch.setenv(f"CROSSLIGHT_{name}", f"/roots/{name.lower()}")
    every = [planned for scale in SCALES for planned in planned_runs(scale)]
    chosen = every if os.environ.get("CROSSLIGHT_EVERY_RUN") else _covering(every)
    folders = {planned.key: Path("/runs") / planned.folder_name for planned in every}
    launches = {launch.key: launch for launch in launches_of(every, Path("/runs"))}
    for planned in chosen:
        command, arguments = launches[planned.key].command, list(launches[planned.key].arguments)
        config = ParsedCLI([str(command), *find_configs(arguments)]).plain
        assert config["scale"] == planned.scale
        assert (
            config["seed_everything"]
            == config["data"]["init_args"]["seed"]
            == (0 if planned.recipe.seeded else config["seed_everything"])
        )
        assert f"{planned.names[0].partition('/')[0]}/{config['name']}" in planned.names
        start = planned.starts.get(planned.recipe.start or "")
        if start is not None:
            assert config["model"]["init_args"]["init_from"] == str(folders[start])
        assert "{" not in yaml.safe_dump(config["model"]["init_args"].get("init_from"))
    swept = [
        "configs/model/dual_tiny.yaml",
        "configs/data/world.yaml",
        "experiments/papers/seeded.yaml",
        "experiments/papers/mwa/variants/head.yaml",
    ]
    config = ParsedCLI(["run", *find_configs([f"--config={file}" for file in swept]), "--seed_everything=7"]).plain
    assert (config["name"], config["seed_everything"], config["data"]["init_args"]["seed"]) == ("head", 7, 7)
    assert list(tmp_path.iterdir()) == []


def test_sweeps_sweep_over_what_is_there_and_never_by_the_test_split() -> None:
    files = sorted((REPOSITORY / "experiments" / "papers").glob("*/sweeps/*.yaml"))
    assert {file.parts[-3] for file in files} == set(NUMBERED)
    names = []
    for file in files:
        content = yaml.safe_load(file.read_text())
        names.append(content["name"])
        assert content["metric"]["goal"] == "maximize"
        assert content["metric"]["name"] in ("val/rsum", "val/cider"), file
        assert content["command"][-1] == "${args}"
        command = content["command"]
        rows = content["parameters"].get("config", {}).get("values", [])
        for name in [*(command[at + 1] for at, part in enumerate(command) if part == "-c"), *rows]:
            assert (REPOSITORY / name).is_file(), (file, name)
        seeds = content["parameters"].get("seed_everything", {}).get("values", [0])
        assert len(set(seeds)) == len(seeds)
        if content["method"] == "grid":
            assert all("values" in parameter for parameter in content["parameters"].values())
        else:
            assert content["early_terminate"]["type"] == "hyperband"
    assert len(set(names)) == len(names)


# ------------------------------------------------------------------------------------------------------- a small project

RUNS = """
common:
  full: {configs: [configs/common.yaml], options: {a: 1}}
runs:
  start: {full: {command: fit, configs: [configs/start.yaml]}}
  "child-{row}":
    matrix: {row: [x, y]}
    full: {start: start, configs: ["configs/{row}.yaml"]}
  last:
    full: {command: test, configs: [configs/x.yaml], options: {ckpt_path: "{run:child-x}/best.ckpt", more: [{at: "{run:start}"}]}}
  alone: {full: {seeded: false}}
  again: {full: {command: fit, configs: [configs/start.yaml]}}
"""
NUMBERS_OF_IT = "mwa: {table: {columns: [r1, r5], rows: [{model: m, values: [1.5, 2.5]}, {model: n, values: [3.5, null]}]}}\n"
INPUTS = "flickr8k: {variable: CROSSLIGHT_DATA, default: ./data, files: [flickr8k/images], what: photographs, how: a form}"
EXHIBIT = """
title: A table
kind: table
published: mwa.table
variants: [{label: M, runs: {run: child-x}, published: {model: m}}, {label: N, runs: {run: child-y}, published: {model: n}}]
columns: [{name: r1, label: R@1, metric: i2t_r1}]
claims: [{text: more, test: greater, high: [[M, r1]], low: [[N, r1]]}]
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for paper in PAPERS:
        (tmp_path / "experiments" / "papers" / paper / "exhibits").mkdir(parents=True)
    (tmp_path / "configs").mkdir()
    for name in ("common", "start", "x", "y"):
        (tmp_path / "configs" / f"{name}.yaml").write_text(f"name: {name}  # a comment\n")
    (tmp_path / "configs" / "y.yaml").write_text("weights: miniature:small#blocks.\n")
    monkeypatch.setattr(miniatures, "FOLDER", tmp_path)
    (tmp_path / "experiments/papers/mwa/runs.yaml").write_text(RUNS)
    (tmp_path / "experiments/papers/mwa/exhibits/t.yaml").write_text(EXHIBIT)
    (tmp_path / "experiments/papers/numbers.yaml").write_text(NUMBERS_OF_IT)
    (tmp_path / "experiments/papers/inputs.yaml").write_text(INPUTS)
    monkeypatch.setattr(strict_yaml, "HERE", tmp_path / "experiments" / "papers")
    return tmp_path


ALL = ["mwa/start", "mwa/child-x", "mwa/child-y", "mwa/last", "mwa/alone", "mwa/again"]


def keys(names: list[str] = ALL, seed: int = 0) -> dict[str, str]:
    return {name: planned.key for planned in plan_runs(names, "full", [seed]) for name in planned.names}


def test_a_plan_of_a_small_project(project: Path) -> None:
    found = plan_runs(["mwa/last", "mwa/child-y", "mwa/alone", "mwa/again"], "full", [7])
    assert [planned.names for planned in found] == [
        ("mwa/start", "mwa/again"), ("mwa/child-x",), ("mwa/last",), ("mwa/child-y",), ("mwa/alone",)
    ]  # fmt: skip
    by_name = {planned.names[0]: planned for planned in found}
    launches = {launch.key: launch for launch in launches_of(found, Path("/runs"))}
    last, start = by_name["mwa/last"], by_name["mwa/start"]
    assert last.after == (by_name["mwa/child-x"].key, start.key)
    assert launches[last.key].argv == (
        *PROGRAM, "test", "-c", "configs/common.yaml", "-c", "configs/x.yaml", "--name=last", "--wandb.group=mwa", "--a=1",
        f"--ckpt_path=/runs/{by_name['mwa/child-x'].folder_name}/best.ckpt", f'--more=[{{"at": "/runs/{start.folder_name}"}}]',
        "--data.init_args.seed=7", "--seed_everything=7", "--scale=full", f"--run_dir=/runs/{last.folder_name}",
    )  # fmt: skip
    child = launches[by_name["mwa/child-x"].key].arguments
    assert f"--model.init_args.init_from=/runs/{start.folder_name}" in child
    assert not any("seed" in part for part in launches[by_name["mwa/alone"].key].arguments)
    assert (by_name["mwa/alone"].seed, last.seed) == (0, 7)
    assert last.folder_name == f"mwa-last-s7-{last.key[:8]}"


def test_exhibits_plan_their_rows(project: Path) -> None:
    names = [name for planned in plan(["mwa/t"], "full", [0]) for name in planned.names]
    assert sorted(names) == ["mwa/child-x", "mwa/child-y", "mwa/start"]
    assert plan(["mwa/t"], "miniature", [0]) == []


def test_a_folder_is_found_by_its_key_in_any_root(project: Path, tmp_path: Path) -> None:
    planned = plan_runs(["mwa/start"], "full", [0])[0]
    here, there = tmp_path / "here", tmp_path / "there"
    assert folder_of(planned, [here, there]) == here / planned.folder_name
    other = there / f"mwa-again-s0-{planned.key[:8]}"  # as the same planned run was called there
    other.mkdir(parents=True)
    assert folder_of(planned, [here, there]) == other


CHANGES: dict[str, tuple[Callable[[Path], Any], set[str]]] = {
    "a file of the child": (
        lambda root: (root / "configs/x.yaml").write_text("name: changed\n"), {"mwa/child-x", "mwa/last"}
    ),
    "a file of the parent": (
        lambda root: (root / "configs/start.yaml").write_text("name: changed\n"),
        {"mwa/start", "mwa/again", "mwa/child-x", "mwa/child-y", "mwa/last"},
    ),
    "a file of all": (lambda root: (root / "configs/common.yaml").write_text("name: changed\n"), set(ALL)),
    "a comment": (lambda root: (root / "configs/common.yaml").write_text("# another\nname: common\n"), set()),
    "an option of all": (lambda root: _runs(root, "a: 1", "a: 2"), set(ALL)),
    "an option of one": (lambda root: _runs(root, "best.ckpt", "last.ckpt"), {"mwa/last"}),
    "the command": (lambda root: _runs(root, "command: test", "command: run"), {"mwa/last"}),
    "a cost": (lambda root: _runs(root, "{seeded: false}", "{seeded: false, cost: {hours: 3}}"), set()),
    "the weights of a miniature": (
        lambda root: (root / "SHA256SUMS").write_text(miniatures.sums_text({"small": "a" * 64})), {"mwa/child-y"}
    ),
    "those of another": (lambda root: (root / "SHA256SUMS").write_text(miniatures.sums_text({"big": "a" * 64})), set()),
    "the world": (lambda root: _runs(root, "{seeded: false}", "{seeded: false, world: target}"), {"mwa/alone"}),
}  # fmt: skip


def _runs(root: Path, old: str, new: str) -> None:
    file = root / "experiments/papers/mwa/runs.yaml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    status = file.stat()
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))  # on file systems with coarse clocks


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_is_a_new_planned_run_for_what_it_concerns(what: str, project: Path) -> None:
    change, concerned = CHANGES[what]
    before = keys()
    change(project)
    after = keys()
    assert {name for name in ALL if before[name] != after[name]} == concerned


@pytest.mark.parametrize(("over", "option", "changes"), [("random", "random", False), ("null", "miniature:one", True)])
def test_shipped_weights_count_where_nothing_is_put_over_them(over: str, option: str, changes: bool, project: Path) -> None:
    (project / "configs/x.yaml").write_text("model: {a: {weights: miniature:one, more: 1}, b: {weights: miniature:one}}\n")
    (project / "configs/y.yaml").write_text(f"model: {{a: {{weights: {over}}}}}\n")
    (project / "experiments/papers/mwa/runs.yaml").write_text(
        f"runs: {{r: {{full: {{configs: [configs/x.yaml, configs/y.yaml], options: {{model.b.weights: {option}}}}}}}}}"
    )
    before = keys(["mwa/r"])
    (project / "SHA256SUMS").write_text(miniatures.sums_text({"one": "a" * 64}))
    assert (keys(["mwa/r"]) != before) == changes


def test_a_seed_changes_what_depends_on_it(project: Path) -> None:
    before, after = keys(seed=0), keys(seed=1)
    assert {name for name in ALL if before[name] != after[name]} == set(ALL) - {"mwa/alone"}


def test_a_matrix_value_may_bring_more(project: Path) -> None:
    (project / "experiments/papers/mwa/runs.yaml").write_text(
        'runs: {"r-{row}": {matrix: {row: {x: {hours: 3, text: a}}, n: [1, 2]}, full: {configs: ["configs/{row}.yaml"],'
        ' options: {one: "{n}", both: "{text}-{n}"}, cost: {hours: "{hours}"}}}}'.replace('"r-{row}"', '"r-{row}-{n}"')
    )
    runs = read_runs("mwa")
    assert list(runs) == ["r-x-1", "r-x-2"]
    recipe = runs["r-x-2"]["full"]
    assert recipe.cost == schema.Cost(hours=3)
    assert recipe.options == {"one": 2, "both": "a-2"}


def test_options_are_not_built(project: Path) -> None:
    option = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 1, "out_features": 1}}
    _runs(project, "a: 1", f"a: {option}")
    assert read_runs("mwa")["start"]["full"].options == {"a": option}


MISTAKES: dict[str, tuple[str, str, str, str]] = {  # file, what stands there, what then does, what the message has
    "a mistyped key of a run": ("runs", "seeded: false", "sedeed: false", "sedeed"),
    "a mistyped scale": ("runs", "alone: {full:", "alone: {ful:", "'ful'; there are matrix, full, small and miniature"),
    "an unknown part": ("runs", "common:", "comon:", "'comon'; there are common and runs"),
    "no such start": ("runs", "start: start,", "start: strat,", "'strat', which is no run of this scale (did you mean start?)"),
    "no such run in an option": ("runs", "{run:child-x}", "{run:child-z}", "'child-z', which is no run of this scale"),
    "no such file": ("runs", "configs/common.yaml", "configs/comon.yaml", "configs/comon.yaml does not exist"),
    "a run twice": ("runs", "  again:", "  start:", "'start' is there twice"),
    "a run twice by its matrix": ("runs", "row: [x, y]", "row: [x, x]", "two runs are called child-x"),
    "a wrong type": ("runs", "{seeded: false}", "{seeded: perhaps}", "seeded"),
    "an unknown command": ("runs", "command: test", "command: tset", "command"),
    "no mapping": ("runs", "{full: {seeded: false}}", "7", "7 is no mapping"),
    "configs that are no list": ("runs", "configs: [configs/x.yaml]", "configs: configs/x.yaml", "configs is a list of files"),
    "a matrix that is none": ("runs", "{row: [x, y]}", "{row: x}", "matrix row is neither"),
    "a circle": ("runs", "start: {full: {command: fit,", "start: {full: {start: last, command: fit,", "start from each other"),
    "a mistyped key of an exhibit": ("t", "title:", "titel:", "titel"),
    "an unknown run": ("t", "child-x", "child-z", "mwa/runs.yaml has no such run (did you mean child-"),
    "no published row": ("t", "{model: m}", "{model: q}", "0 published rows of mwa.table"),
    "several published rows": ("t", "{model: m}", "{quoted: false}", "2 published rows of mwa.table"),
    "a mistyped selector": ("t", "{model: m}", "{modle: null}", "have no 'modle'"),
    "no published place": ("t", "mwa.table", "mwa.tabel", "mwa.tabel"),
    "two variants of a name": ("t", "label: N", "label: M", "two variants are called 'M'"),
    "a claim on no variant": ("t", "high: [[M, r1]]", "high: [[Q, r1]]", "no variant and column"),
    "a claim on half a pair": ("t", "high: [[M, r1]]", "high: [[M]]", "no variant and column"),
    "a claim of unequal sides": ("t", "low: [[N, r1]]", "low: [[N, r1], [N, r1]]", "pair by pair"),
    "a claim without sides": ("t", "high: [[M, r1]], low: [[N, r1]]", "margin: 1", "needs high and low"),
    "a test that there is not": ("t", "test: greater", "test: grater", "test"),
    "a mean without a gain": ("t", "test: greater", "test: mean", "a gain of, over and columns is of the tests mean"),
    "a gain of no row": ("t", "test: greater, high: [[M, r1]], low: [[N, r1]]",
                         "test: amount, gain: {of: [M], over: [Q], columns: [r1]}", "['Q', 'r1'], which is no variant"),
    "a gain of nothing": ("t", "test: greater, high: [[M, r1]], low: [[N, r1]]",
                          "test: amount, gain: {of: [M], over: [], columns: [r1]}", "a gain of, over and columns"),
    "relative to nothing": ("t", "test: greater, high: [[M, r1]], low: [[N, r1]]",
                            "test: relative, gain: {of: [M], over: [N], columns: [r1]}", "than is of the tests relative"),
    "a sum of what comes later": ("t", "metric: i2t_r1}", "sum_of: [r5]}, {name: r5, label: R@5, metric: i2t_r5}",
                                  "'r1' sums 'r5', which is no column before it"),
    "no test and no reason": ("t", "test: greater, high: [[M, r1]], low: [[N, r1]]", "test: none", "say the reason"),
    "a column of nothing": ("t", "metric: i2t_r1", "digits: 2", "give one"),
    "a column of no such cost": ("t", "metric: i2t_r1", "cost: steps_per_second", "no cost 'steps_per_second' (did you mean"),
    "a column of no role": ("t", "metric: i2t_r1", "metric: i2t_r1, run: coco", "'coco'"),
    "a label of no variant": ("t", "kind: table", "kind: table\nat: {small: {data: d, variants: {Q: R}}}", "'Q' is no variant"),
    "an unknown input": ("runs", "{seeded: false}", "{reads: [flickr9k]}", "which inputs.yaml does not have (did you"),
    "an axis that is no column": ("t", "kind: table", "kind: table\nfigure: {kind: scatter, x_column: r2}", "'r2' is no column"),
    "no YAML": ("t", "title: A table", "title: [", "not YAML"),
}  # fmt: skip


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_is_one_readable_message(what: str, project: Path) -> None:
    stem, old, new, expected = MISTAKES[what]
    file = project / "experiments/papers/mwa" / ("runs.yaml" if stem == "runs" else "exhibits/t.yaml")
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(InputError) as caught:
        plan_runs(ALL, "full", [0]) if stem == "runs" else plan(["mwa/t"], "full", [0])
    message = str(caught.value)
    assert expected in message
    assert "runs.yaml" in message or "t.yaml" in message
    assert "\n" not in message


def test_unknown_names_list_the_known_ones(project: Path) -> None:
    with pytest.raises(InputError, match="no exhibit 'mwa/table9'; there are mwa/t"):
        plan(["mwa/table9"], "full", [0])
    with pytest.raises(InputError, match=r"no run mwa/child-z; mwa/runs\.yaml has start, child-x"):
        plan_runs(["mwa/child-z"], "full", [0])
    with pytest.raises(InputError, match="no paper 'moa'; there are mwa, iais, i_tuning, clip"):
        plan_runs(["moa/start"], "full", [0])
