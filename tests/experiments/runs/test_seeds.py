"""Which runs are seeds of one configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from configurations import changed

from experiments.runs.provenance import Device, Git, Provenance
from experiments.runs.results import DataDescription, Results, now
from experiments.runs.seeds import Configuration, configuration_of, differing, option_text, short_name

LR = "model__init_args__optimization__lr"


def run(folder: Path, seed: int = 0, config: dict[str, Any] | None = None, **entries: Any) -> Configuration:
    folder.mkdir(parents=True, exist_ok=True)
    content = changed(seed_everything=seed, **(config or {}))
    content["data"]["init_args"]["seed"] = seed
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    return configuration_of(folder, Results("finished", "run", "mwa", "c", now(), seed=seed, **entries))


def provenance(revision: str | None, dirty: bool = False, version: str = "1") -> Provenance:
    return Provenance(Git(revision, dirty), {"crosslight": version}, Device("cpu", "AMD", "32", 1, "vm"))


def test_seeds_are_one_configuration_and_the_same_seed_twice_is_one_seed(tmp_path: Path) -> None:
    first, second, again = run(tmp_path / "a", 0), run(tmp_path / "b", 1), run(tmp_path / "c", 1)
    assert first.digest == second.digest == again.digest
    assert first.seed != second.seed == again.seed
    assert differing([first.options, second.options]) == []


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"config": {LR: 0.02}}, "model.optimization.lr=0.02"),
        ({"config": {"model__init_args__adapter": {"class_path": "a.Lora"}}}, "model.adapter=a.Lora"),
        ({"data": {"coco": DataDescription("COCO", fingerprint="1234")}}, "fingerprint of coco=1234"),
        ({"provenance": provenance("e" * 40)}, "code=eeeeeeeeee"),
        ({"provenance": provenance("f" * 40, dirty=True)}, "code=ffffffffff with uncommitted changes"),
        ({"provenance": provenance(None, version="2")}, "code=2"),
        ({"scale": "full"}, "scale=full"),
    ],
)
def test_what_decides_a_result_is_another_configuration_and_says_so(tmp_path: Path, other: dict[str, Any], words: str) -> None:
    known = {"data": {"coco": DataDescription("COCO", fingerprint="0")}, "provenance": provenance("f" * 40), "scale": "reduced"}
    first, second = run(tmp_path / "a", 0, **known), run(tmp_path / "b", 1, **{**known, **other})
    assert first.digest != second.digest
    (name,) = differing([first.options, second.options])
    assert f"{short_name(name)}={option_text(second.options[name])}" == words


def test_an_option_that_one_has_not_differs_where_that_is_asked() -> None:
    options = [{"lr": 0.1, "adapter": "a.Lora"}, {"lr": 0.1}, {"lr": 1e-1, "layers": [1, 2]}]
    assert differing(options) == ["adapter", "layers"]
    assert differing(options, absent=False) == []
    assert differing([*options, {"layers": [1]}], absent=False) == ["layers"]


def test_a_parent_is_what_it_was_trained_as_and_not_its_place(tmp_path: Path) -> None:
    for seed in (0, 1):
        run(tmp_path / f"pretrain-s{seed}-0123456{seed}", seed)
    run(tmp_path / "other-s1-01234569", 1, config={LR: 0.02})

    def child(name: str, seed: int, parent: str) -> Configuration:
        return run(tmp_path / name, seed, config={"model__init_args__init_from": parent})

    first = child("a", 0, f"{tmp_path}/pretrain-s0-01234560/checkpoints/best.ckpt")
    moved = child("b", 1, "/gone/pretrain-s1-01234561/checkpoints/best.ckpt")
    otherwise = child("c", 1, f"{tmp_path}/other-s1-01234569/checkpoints/best.ckpt")
    assert first.digest == moved.digest != otherwise.digest
    circle = child("d", 1, f"{tmp_path}/d/checkpoints/best.ckpt")
    assert circle.digest != first.digest
    weights = [child(f"w{seed}", seed, f"/runs/see-{seed}.safetensors").digest for seed in (0, 1)]
    assert weights[0] == weights[1] != child("w2", 1, "/runs/see-0.safetensors").digest


def test_a_damaged_configuration_stands_by_itself(tmp_path: Path) -> None:
    known = run(tmp_path / "a")
    (tmp_path / "a" / "config.yaml").write_text("{")
    damaged = configuration_of(tmp_path / "a", Results("finished", "run", "mwa", "c", now()))
    assert damaged.digest != known.digest
    assert "a/config.yaml, line 1, column 2: not YAML" in str(damaged.problem)


def test_parents_that_are_not_here_are_known_by_their_names_without_seed_and_key(tmp_path: Path) -> None:
    def child(seed: int, parent: str) -> Configuration:
        start = {"model__init_args__init_from": f"/gone/{parent}-s{seed}-0123456{seed}/checkpoints/best.ckpt"}
        return run(tmp_path / f"{parent}-child-{seed}", seed, config=start)

    first, second, other = child(0, "pretrain"), child(1, "pretrain"), child(1, "other")
    assert first.digest == second.digest != other.digest
