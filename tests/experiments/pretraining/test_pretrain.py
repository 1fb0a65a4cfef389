"""`crosslight pretrain`: one miniature of each kind from the rendering of its world to what `miniature:NAME` reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lightning_modules
from datamodules.errors import InputError
from datamodules.records import ImageBatch, Regions, TextBatch
from experiments.cli.main import run_command
from experiments.papers.plan import plan_runs
from experiments.pretraining import pretrain as pretraining
from experiments.pretraining.pack import halved
from experiments.sweep.launches import Launch
from experiments.training.command import train_or_evaluate
from experiments.training.configs import find_configs
from lightning_modules.checkpoints import miniatures
from lightning_modules.loading import build, run_section

SCENES, STEPS = 60, 1
NETWORK = "init_args", "network", "init_args"
IMAGES, TOKENS = 3, torch.tensor([[2, 30, 41, 52, 3], [2, 60, 31, 3, 0], [2, 77, 3, 0, 0]])
TEXTS = TextBatch(("",) * 3, ("",) * 3, torch.arange(3), torch.arange(3), TOKENS, TOKENS > 0)


class Here:
    """In the place of the runner: its launches one after the other, in this process."""

    def __init__(self, launches: Sequence[Launch], root: Path, jobs: int) -> None:
        self.launches = launches

    def run(self) -> int:
        with pytest.MonkeyPatch.context() as patch:
            for launch in self.launches:
                for name, value in launch.environment.items():
                    patch.setenv(name, value)
                assert launch.world is None, "the runner would render the whole world"
                assert train_or_evaluate(str(launch.command), find_configs(list(launch.arguments)), announce=False) == 0
        return 0


def _pixels(side: int) -> Tensor:
    return torch.randn(IMAGES, 3, side, side, generator=torch.Generator().manual_seed(1))


def _beit3(network: Any) -> Tensor:
    images = ImageBatch(("",) * IMAGES, torch.arange(IMAGES), _pixels(network.inputs.image.size))
    return torch.cat([network.encode_images(images), network.encode_texts(TEXTS)])


def _uniter(network: Any) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    mask = torch.ones(IMAGES, 4, dtype=torch.bool)
    features = torch.rand(IMAGES, 4, 108, generator=draw), torch.rand(IMAGES, 4, 7, generator=draw)
    images = ImageBatch(("",) * IMAGES, torch.arange(IMAGES), regions=Regions(*features, torch.ones(IMAGES, 4), mask))
    pairs = torch.arange(IMAGES)
    return network.score_pairs(network.embed_images(images), network.embed_texts(TEXTS), pairs, pairs)


def _vision(network: Any) -> Tensor:
    return network.vision.tokens(_pixels(network.vision.image_input.size))[0]


def _language(network: Any) -> Tensor:
    return network.language.model(input_ids=TOKENS).logits


# which option of the run's model is the weights of what is shipped, and what to compare
KINDS: dict[str, tuple[tuple[str, ...], Callable[[Any], Tensor]]] = {
    "beit3_base": (NETWORK, _beit3),
    "uniter_base": (NETWORK, _uniter),
    "vision": ((*NETWORK, "vision", "init_args"), _vision),
    "language_opt": ((*NETWORK, "language", "init_args"), _language),
}


def test_one_of_each_kind_is_trained_packed_and_read_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, out = tmp_path / "runs", tmp_path / "out"
    words = [*KINDS, "--runs", str(runs), "--out", str(out), "--trial", str(SCENES), str(STEPS)]
    monkeypatch.setattr(pretraining, "Runner", Here)
    assert run_command("pretrain", words) == 0
    files = {file.name: file.read_bytes() for file in out.iterdir()}
    assert sorted(files) == sorted(["SHA256SUMS", *(f"{name}.{kind}" for name in KINDS for kind in ("md", "safetensors"))])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[-5:-1]] == list(KINDS)

    monkeypatch.setattr(miniatures, "FOLDER", out)
    for name, (place, compute) in KINDS.items():
        (folder,) = runs.glob(f"{pretraining.read_shipped([name])[name].run.replace('/', '-')}-s0-*")
        made: Any = lightning_modules.load(folder)
        section, _ = run_section(folder, None)
        inside = section
        for key in place:
            inside = inside[key]
        inside["weights"] = f"miniature:{name}"
        again: Any = build(section, seed=5).eval()  # whatever the file does not bring would differ
        with torch.no_grad():
            torch.testing.assert_close(compute(again.network), compute(made.network), atol=2e-3, rtol=2e-3)
        card = (out / f"{name}.md").read_text()
        for said in (f"scenes {SCENES}", "fingerprint ", "revision", "`crosslight run -c configs/trainer/demo.yaml", "| step | "):
            assert said in card, (name, said)
        assert str(tmp_path) not in card

    monkeypatch.undo()  # the runner itself now, which finds nothing left to do
    assert run_command("pretrain", words) == 0
    assert {file.name: file.read_bytes() for file in out.iterdir()} == files
    (out / "vision.md").unlink()
    assert run_command("pretrain", ["vision", *words[len(KINDS) :]]) == 0  # one alone leaves the others among the sums
    assert {file.name: file.read_bytes() for file in out.iterdir()} == files


def test_nothing_is_packed_before_all_have_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Here, "run", lambda self: 1)
    monkeypatch.setattr(pretraining, "Runner", Here)
    words = ["vision", "--runs", str(tmp_path), "--out", str(tmp_path / "out"), "--trial", str(SCENES), str(STEPS)]
    assert run_command("pretrain", words) == 1
    assert not list((tmp_path / "out").iterdir())


def test_a_trial_never_goes_into_the_package_and_names_are_known(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"good for nothing.* give another --out"):
        run_command("pretrain", ["--runs", str(tmp_path), "--trial", "60", "1"])
    with pytest.raises(InputError, match=r"no miniature is called 'visoin' \(did you mean vision or .* there are beit3_base"):
        run_command("pretrain", ["visoin", "--runs", str(tmp_path), "--out", str(tmp_path)])


def test_every_shipped_one_is_a_run_of_the_papers_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = pretraining.read_shipped()
    planned = plan_runs([each.run for each in shipped.values()], "miniature", [0])
    assert {name for run in planned for name in run.names} >= {each.run for each in shipped.values()}
    assert len({each.run for each in shipped.values()}) == len(shipped)
    assert all(run.recipe.world is not None for run in planned)
    monkeypatch.setattr(miniatures, "FOLDER", tmp_path)
    (tmp_path / miniatures.SUMS_FILE).write_text(miniatures.sums_text(dict.fromkeys(shipped, "a" * 64)))
    again = plan_runs([each.run for each in shipped.values()], "miniature", [0])
    assert [run.key for run in again] == [run.key for run in planned], "else shipping asks for another training"


def test_matrices_alone_are_halved() -> None:
    state = {"matrix": torch.ones(2, 2), "bias": torch.ones(2), "scale": torch.tensor(1.0), "ids": torch.ones(2, 2).long()}
    assert {name: tensor.dtype for name, tensor in halved(state).items()} == {
        "matrix": torch.float16, "bias": torch.float32, "scale": torch.float32, "ids": torch.int64
    }  # fmt: skip
