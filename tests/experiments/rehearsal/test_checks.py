"""What is wrong with a run is found before it starts, in one line: planted faults."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from experiments.rehearsal.changes import Settings
from experiments.rehearsal.checks import Facts, check, wrong_counts
from experiments.rehearsal.show import nobodys
from experiments.runs.rehearsed import Rehearsed, Verdict
from experiments.sweep.launches import Launch
from experiments.sweep.targets import exhibit_launches

IMAGE = "--model.init_args.network.init_args.image.init_args"


@pytest.fixture(scope="module")
def launch(place: Path) -> Launch:
    launch = exhibit_launches("tiny/start", "small", [0], place / "runs")[0]
    return replace(launch, configs=tuple(file.replace("beit3_tiny", "dual_tiny") for file in launch.configs))


def checked(launch: Launch, *options: str, settings: Settings | None = None) -> tuple[Facts | None, dict[str, Verdict]]:
    told: list[Verdict] = []
    changed = replace(launch, options=(*launch.options, *options))
    facts = check(changed, settings or Settings(3), 0, Path("watch.jsonl"), False, told.append)
    assert all("\n" not in verdict.said for verdict in told)
    return facts, {verdict.stage: verdict for verdict in told}


def test_a_sound_run_passes(launch: Launch) -> None:
    facts, told = checked(launch)
    assert {stage: verdict.outcome for stage, verdict in told.items()} == dict.fromkeys(("parse", "data", "weights"), "passed")
    assert facts is not None
    assert facts.complete
    assert facts.counts == {"flickr30k": {"train": 27, "val": 7, "test": 11}}
    assert facts.parameters == facts.tunable
    assert facts.weight_bytes >= 4 * facts.parameters
    assert facts.checkpoint_bytes == 7 * 4 * facts.parameters
    assert facts.changes.cut == ()
    assert "--trainer.accelerator=cpu" in facts.changes.options


def test_a_smaller_batch_is_said(launch: Launch) -> None:
    words = ("--trainer.accumulate_grad_batches=4",)
    facts, _ = checked(launch, *words, settings=Settings(3, batch=4, options=("--data.init_args.train_unit=pair",)))
    assert facts is not None
    assert facts.changes.cut == ("batch 4 of 8", "accumulation 2 of 4", "--data.init_args.train_unit=pair")


def test_an_option_of_other_runs_is_left_out_and_said(launch: Launch) -> None:
    both = ("--data.init_args.train_unit=pair", "--model.init_args.hard_negatives=7", "--data.init_args.nothing.at.all=1")
    facts, told = checked(launch, settings=Settings(3, options=both))
    assert facts is not None
    assert facts.changes.cut == both[:1]
    assert facts.changes.options[-1] == both[0]
    assert told["parse"].outcome == "passed"
    assert told["parse"].said == f"left out what this run has no option for: {both[1]}, {both[2]}"
    run = Rehearsed("one", "", "", (told["parse"],))
    other = Rehearsed("other", "", "", (Verdict("parse", "passed", without=both[1:2]),))
    assert nobodys(both, [run, other]) == [both[1]]
    assert nobodys(both, [run, replace(other, verdicts=(Verdict("parse", "passed"),))]) == []


def test_a_mistyped_option(launch: Launch) -> None:
    facts, told = checked(launch, "--trainer.max_epoch=3")
    assert facts is None
    assert told.keys() == {"parse"}
    assert "max_epochs" in told["parse"].said


def test_what_the_run_itself_refuses_of_its_length(launch: Launch) -> None:
    facts, told = checked(launch, "--trainer.min_steps=5", "--trainer.max_steps=4")
    assert facts is None
    assert told["parse"].said == "trainer.min_steps is 5, more than max_steps (4): give it at most that."


def test_what_the_run_itself_refuses_of_its_strategy(launch: Launch) -> None:
    facts, told = checked(launch, "--trainer.strategy=fsdp")
    assert facts is None
    assert told["parse"].said.startswith("trainer.strategy is 'fsdp', which divides the weights")


def test_half_a_data_set(launch: Launch, place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "world" / "flickr30k", tmp_path / "flickr30k")
    images = sorted(file for file in tmp_path.rglob("*") if file.suffix in (".jpg", ".png"))
    for file in images[: len(images) // 2]:
        file.unlink()
    facts, told = checked(launch, f"--data.init_args.root={tmp_path / 'flickr30k'}")
    assert facts is not None
    assert not facts.complete
    assert told["data"].outcome == "failed"
    assert images[0].name in told["data"].said
    assert told["weights"].outcome == "passed"


def test_counts_of_whole_data_sets() -> None:
    assert wrong_counts("coco", {"train": 113_287, "val": 5000, "test": 5000}) == []
    (line,) = wrong_counts("coco", {"train": 56_643, "val": 5000, "test": 4999})
    assert "train has 56,643 images, not 113,287 or 82,783 or 118,287" in line
    assert "test has 4,999 images" in line
    assert "crosslight data check coco" in line
    assert wrong_counts("coco", {"train": 110_000}, held_out=True) == []
    assert wrong_counts("coco", {"train": 110_000}) != []
    assert wrong_counts("my_own", {"train": 3}) == []


@pytest.fixture(scope="module")
def tower() -> dict[str, torch.Tensor]:
    options: dict[str, Any] = {"img_size": 64, "patch_size": 16, "embed_dim": 96, "depth": 3, "num_heads": 3}
    return dict(timm.create_model("vit_tiny_patch16_224", num_classes=0, global_pool="token", **options).state_dict())


def _missing(state: dict[str, torch.Tensor]) -> None:
    del state["blocks.1.attn.qkv.weight"]


def _zero(state: dict[str, torch.Tensor]) -> None:
    state["blocks.1.attn.qkv.weight"].zero_()


def _not_finite(state: dict[str, torch.Tensor]) -> None:
    state["blocks.1.attn.qkv.weight"][0, 0] = float("nan")


def _misshapen(state: dict[str, torch.Tensor]) -> None:
    state["blocks.1.attn.qkv.weight"] = state["blocks.1.attn.qkv.weight"][:, :-1].contiguous()


@pytest.mark.parametrize(
    ("plant", "said"),
    [
        (lambda state: None, None), (_missing, "1 missing"), (_zero, "1 matrices hold only zeros"), (_not_finite, "NaN"),
        (_misshapen, "[288, 95] instead of [288, 96]"),
    ],
    ids=["sound", "missing", "zero", "nan", "shape"],
)  # fmt: skip
def test_weights(launch: Launch, tower: dict[str, torch.Tensor], tmp_path: Path, plant: Any, said: str | None) -> None:
    state = {name: tensor.clone() for name, tensor in tower.items()}
    plant(state)
    save_file(state, tmp_path / "tower.safetensors")
    _, told = checked(launch, f"{IMAGE}.weights={tmp_path / 'tower.safetensors'}")
    assert told["weights"].outcome == ("passed" if said is None else "failed")
    assert said is None or ("blocks.1.attn.qkv.weight" in told["weights"].said and said in told["weights"].said)
