"""`--NAME.help` without a class lists what can be named there."""

from __future__ import annotations

import re

import pytest

from datamodules.errors import InputError
from experiments.cli import main as cli
from experiments.training.choices import answer, listing, offered
from experiments.training.configs import find_configs
from lightning_modules.adapters.adapter import Adapter
from lightning_modules.objectives.objective import Objective

ADAPTERS = {
    "clipcap.ClipCap", "combined.Combined", "i_tuning.ITuning", "lora.LoRAAdapter", "multiway.MultiWayAdapter",
    "peft_adapter.PEFTAdapter",
}  # fmt: skip


def asked(*words: str) -> str | list[str]:
    return answer(["run", *find_configs(list(words))])


def test_a_kind_is_offered_in_all_its_classes_and_not_as_itself() -> None:
    assert {f"lightning_modules.adapters.{name}" for name in ADAPTERS} == {
        f"{kind.__module__}.{kind.__qualname__}" for kind in offered(Adapter)
    }
    assert Objective not in offered(Objective)


@pytest.mark.parametrize(
    ("words", "classes", "files", "own"),
    [
        (
            ["--model.help"],
            [
                "retrieval.RetrievalModule",
                "ranking.RankingModule",
                "captioning.CaptioningModule",
                "networks.uniter.UniterRetrieval",
            ],
            ["configs/model/dual_tiny.yaml", "configs/model/uniter_base.yaml"],
            "LightningModule",
        ),
        (
            ["--data.help", "-c", "configs/model/dual_tiny.yaml"],
            ["coco.COCO", "table.Table"],
            ["configs/data/table.yaml"],
            "LightningDataModule",
        ),
        (["--evaluate.other.help"], ["coco.COCO"], [], "LightningDataModule"),
        (
            ["-c", "configs/model/dual_tiny.yaml", "--model.init_args.adapter.help"],
            [f"adapters.{name}" for name in ADAPTERS],
            ["experiments/papers/mwa/variants/mwa.yaml"],
            "Adapter",
        ),
        (["--trainer.callbacks.help"], ["callbacks.ema.EMA", "EarlyStopping"], [], "Callback"),
        (["--trainer.logger.help"], ["TensorBoardLogger"], [], "Logger"),
    ],
)
def test_classes_files_and_ones_own(words: list[str], classes: list[str], files: list[str], own: str) -> None:
    text = asked(*words)
    assert isinstance(text, str)
    for each in (*classes, *files):
        assert re.search(rf"{re.escape(each)}\b", text), each
    assert re.search(rf"your own, in a file on PYTHONPATH, which derives from [\w.]+\.{own}$", text, re.MULTILINE)
    assert "base.TunedModule" not in text
    if words[0] == "--data.help":
        assert "configs/data/coco.yaml  " in text
        assert "COCO with Karpathy's split" in text, "what the file says of itself"


def test_where_a_file_has_chosen_a_class_its_options_are_asked_for() -> None:
    (_, _, file, *rest) = asked("-c", "configs/data/world.yaml", "--data.help")
    assert rest == ["--data.help", "datamodules.flickr30k.Flickr30k"]
    assert file.endswith("world.yaml")
    words = ["run", "--data.help", "datamodules.coco.COCO"]
    assert answer(words) == words
    assert answer(["run", "--help"]) == ["run", "--help"]


def test_what_takes_no_class_says_where_to_look() -> None:
    for name in ("model.init_args.optimization", "model.init_args.nothing", "data.init_args.root"):
        with pytest.raises(InputError, match=rf"--{name}.help: no class can be named there"):
            asked("-c", "configs/model/dual_tiny.yaml", "-c", "configs/data/world.yaml", f"--{name}.help")


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", "--data.help"])
    assert stop.value.code == 0
    said = capsys.readouterr()
    assert "datamodules.table.Table" in said.out
    assert said.err == ""


def test_ones_own_class_may_say_nothing_of_itself() -> None:
    class Own(Adapter):
        pass

    assert "which derives from" in listing("model.init_args.adapter", [Adapter])
    assert Own not in offered(Adapter)
