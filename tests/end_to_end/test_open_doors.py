"""A user's own adapter, objective, network and callback: by class path, trained, killed, resumed, saved, loaded, reported."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from end_to_end import arguments, crosslight, metrics, results, succeed, weights
from open_doors import OWN, killed_and_resumed_is_whole

import lightning_modules
from datamodules.errors import InputError


@pytest.fixture(autouse=True)
def on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """As PYTHONPATH does; processes that are started inherit it."""
    monkeypatch.syspath_prepend(str(OWN))


@pytest.mark.parametrize("file", sorted(OWN.glob("*.py")), ids=lambda file: file.stem)
def test_it_is_short(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= 40


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, surroundings: None) -> tuple[Path, Path]:
    """Own adapter, objective and callback."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(OWN))
        options = arguments(
            "full", "--model.init_args.tuning=adapter", "--model.init_args.adapter=own_adapter.OwnAdapter",
            "--model.init_args.objective=own_objective.OwnObjective", "--model.init_args.optimization.lr=0.01",
            "--trainer.callbacks=own_callback.OwnCallback", "--trainer.callbacks.file={run}-steps", "--name=own",
        )  # fmt: skip
        return killed_and_resumed_is_whole(options, tmp_path_factory.mktemp("tuned"))


def test_what_it_learns_is_saved_resumed_and_counted(tuned: tuple[Path, Path]) -> None:
    _, cut = tuned
    state = weights(cut, "last.ckpt")
    trained = {name for name in state if "own_adapter" in name}
    assert len(trained) == 2 * 3  # of three blocks
    assert any(bool(state[name].any()) for name in trained if name.endswith(".up"))  # it started at zero
    margins = [value for _, value in metrics(cut, "train/margin")]
    assert margins[0] == pytest.approx(0.1)
    assert len(set(margins)) == 6  # of each step: it is in the optimizer
    assert float(state["objective.margin"]) not in margins
    adapter = 3 * 2 * (96 + 288)
    heads = 2 * 96 * 96 + 1 + 1  # projections, temperature, margin
    assert results(cut)["cost"]["tunable_parameters"] == adapter + heads
    for run in tuned:
        assert Path(f"{run}-steps").read_text() == "6"  # the callback's state is resumed, too


def test_it_is_loaded_and_exported_by_who_trusts_it(tuned: tuple[Path, Path], tmp_path: Path) -> None:
    _, cut = tuned
    with pytest.raises(InputError, match=r"'own_adapter\.OwnAdapter'.* trust=\[\"own_adapter\"\]"):
        lightning_modules.load(cut)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CROSSLIGHT_TRUST", "own_adapter,own_objective")
        succeed("export", str(cut), str(tmp_path / "export"))
        folder = lightning_modules.load(tmp_path / "export")
    run = lightning_modules.load(cut, trust=["own_adapter", "own_objective"])
    best = weights(cut, "best.ckpt")
    for model in (run, folder):
        state = model.state_dict()
        for name, tensor in best.items():
            assert torch.equal(state[name], tensor), name


def test_it_is_in_table_and_report(tuned: tuple[Path, Path], tmp_path: Path) -> None:
    printed = succeed("table", *map(str, tuned)).out  # their callback keeps its notes in different files
    assert sorted(line.split("|")[1].strip() for line in printed.splitlines()[2:4]) == ["own (cut)", "own (whole)"]
    succeed("report", "mwa/table3", *map(str, tuned), "--runs", str(tmp_path), "--out", str(tmp_path / "report"))
    assert any("own" in page.read_text() for page in (tmp_path / "report").rglob("*.html"))


def test_a_network_of_ones_own(tmp_path: Path, world: Path) -> None:
    network = "--model.init_args.network"
    options = [
        "-c", "configs/trainer/demo.yaml", "-c", "configs/data/world.yaml", "--data.init_args.batch_size=8",
        "--trainer.precision=32-true", "--trainer.log_every_n_steps=1", "--name=own",
        "--model=lightning_modules.retrieval.RetrievalModule", f"{network}=own_network.OwnNetwork",
        f"{network}.init_args.tokenizer={world / 'tokenizer'}", "--model.init_args.tuning=full",
        "--model.init_args.objective=lightning_modules.objectives.sigmoid.SigmoidLoss",
    ]  # fmt: skip
    whole, cut = killed_and_resumed_is_whole(options, tmp_path)
    assert {"network.projection.weight", "network.text.weight", "objective.bias"} <= weights(cut, "last.ckpt").keys()
    assert float(weights(cut, "last.ckpt")["objective.bias"]) != -10
    assert "| own |" in succeed("table", str(whole), str(cut)).out
    model = lightning_modules.load(cut, trust=["own_network"])
    assert type(model.network).__name__ == "OwnNetwork"


LACKING = """
from lightning.pytorch import LightningModule
from lightning_modules.adapters.adapter import Adapter
from lightning_modules.networks.network import RetrievalNetwork
from lightning_modules.objectives.objective import ContrastiveObjective

class NoOwns(Adapter):
    def inject(self, network): pass

class Forgetful(Adapter):
    def __init__(self, rank: int = 2): pass
    def inject(self, network): pass
    def owns(self, name): return False

class NoForward(ContrastiveObjective): pass

class NoScale(ContrastiveObjective):
    def forward(self, images, texts): pass

class NoInputs(RetrievalNetwork):
    def encode_images(self, batch): pass
    def encode_texts(self, batch): pass

class Plain(LightningModule): pass
"""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["tuning=adapter", "adapter=lacking.NoOwns"],
            r"lacking\.NoOwns does not write owns, which .*\.Adapter asks for",
        ),
        (["tuning=adapter", "adapter=lacking.Forgetful"], "Forgetful keeps no attribute 'rank'"),
        (["objective=lacking.NoForward"], r"lacking\.NoForward does not write forward, which .*ContrastiveObjective asks for"),
        (
            ["objective=lacking.NoScale"],
            r"lacking\.NoScale has forward\(images, texts\), and it is called as forward\(images_BD, ",
        ),
        (["network=lacking.NoInputs"], r"lacking\.NoInputs sets no `inputs` of type Inputs"),
    ],
    ids=["adapter", "adapter's argument", "objective", "objective's argument", "network"],
)
def test_what_is_lacking_is_said_before_training(
    options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lacking.py").write_text(LACKING)
    monkeypatch.syspath_prepend(str(tmp_path))
    given = [f"--model.init_args.{option}" for option in options]
    base = arguments("full")
    if "network=lacking.NoInputs" in options:  # without the arguments of another class
        base = ["-c", "configs/trainer/demo.yaml", "-c", "configs/data/world.yaml"]
        given = ["--model=lightning_modules.retrieval.RetrievalModule", *given]
    answer = crosslight("run", *base, *given, f"--run_dir={tmp_path / 'run'}")
    assert answer.status == 2, answer
    assert answer.error.count("\n") == 1, answer.error
    assert re.search(message, answer.error), answer.error
