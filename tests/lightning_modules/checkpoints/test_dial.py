"""The dial: its two ends are what the run started from and what it trained, to the last bit, and between them lies a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import configuration, run_folder
from torch import Tensor

import lightning_modules
from datamodules.errors import InputError
from datamodules.records import ImageBatch
from lightning_modules.adapters.adapter import Adapter
from lightning_modules.adapters.multiway import MultiWayAdapter
from lightning_modules.checkpoints.dial import Dial, Dialled
from lightning_modules.checkpoints.weights import write_weights
from lightning_modules.exporting import export_run
from lightning_modules.loading import build, load_dial, run_section


def started(folder: Path, tuning: str, adapter: str | None, **options: Any) -> Path:
    """A run of that tuning that started from weights for everything, its heads too; the weights are beside it."""
    folder.mkdir()
    parent = configuration()
    parent["init_args"] |= {"adapter": None, "tuning": "full"}
    plain: Any = build(parent, 3)
    write_weights(plain.network.state_dict(), folder / "start.safetensors")
    section = configuration()
    given = None if adapter is None else {"class_path": f"lightning_modules.adapters.{adapter}", "init_args": options}
    section["init_args"] |= {"adapter": given, "tuning": tuning, "init_from": str(folder / "start.safetensors")}
    run_folder(folder / "run", section=section)
    return folder / "run"


def dial_of(run: Path) -> tuple[Any, Dial]:
    return load_dial(run, *run_section(run, None))


@torch.no_grad()
def vectors(model: Any) -> Tensor:
    pixels = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    found: Tensor = model.network.encode_images(ImageBatch(("", "", ""), torch.arange(3), pixels))
    return found


METHODS: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "mwa": ("adapter", "multiway.MultiWayAdapter", {}),
    "mwa text": ("adapter", "multiway.MultiWayAdapter", {"reading": "text"}),
    "mwa out": ("adapter", "multiway.MultiWayAdapter", {"layer_norm": "out", "alignment_enhancer_form": "bottleneck"}),
    "mwa released": ("adapter", "multiway.MultiWayAdapter", {"reading": "released"}),
    "lora": ("adapter", "lora.LoRAAdapter", {"rank": 2}),
    "full": ("full", None, {}),
    "head": ("head", None, {}),
}


@pytest.mark.parametrize("name", METHODS)
def test_the_ends_are_the_start_and_the_run(name: str, tmp_path: Path) -> None:
    tuning, adapter, options = METHODS[name]
    run = started(tmp_path / "made", tuning, adapter, **options)
    plain = configuration()
    plain["init_args"] |= {"adapter": None, "tuning": "full", "init_from": str(tmp_path / "made" / "start.safetensors")}
    trained, start = vectors(lightning_modules.load(run)), vectors(build(plain, 9).eval())
    model, dial = dial_of(run)
    assert dial.kept == ()
    assert "tensor" not in str(dial)  # it is printed in notebooks
    assert not torch.allclose(trained, start, atol=1e-3), "the run did something"
    for alpha, wanted in ((0, start), (1, trained), (0, start)):
        dial.turn(model.network, alpha)
        assert torch.equal(vectors(model), wanted), alpha
    dial.turn(model.network, 0.5)
    between = vectors(model)
    assert not torch.allclose(between, start, atol=1e-4)
    assert not torch.allclose(between, trained, atol=1e-4)
    with pytest.raises(InputError, match=r"alpha is 1\.5; give a number from 0"):
        dial.state(1.5)


@pytest.mark.parametrize("place", ["none", "in", "out"])
def test_an_adapters_alpha_is_a_factor_on_what_it_adds(place: Any) -> None:
    adapter = MultiWayAdapter(alignment_enhancer_form="bottleneck", layer_norm=place)
    parts = {"knowledge_extractor": adapter.values.knowledge_extractor(16)}
    parts["alignment_enhancer"] = adapter.values.alignment_enhancer(16, 64)  # type: ignore[assignment] - a bottleneck
    for side, part in parts.items():
        assert part is not None
        with torch.no_grad():
            for parameter in part.parameters():
                parameter.normal_(generator=torch.Generator().manual_seed(parameter.numel()))
        prefix, x = f"block.multiway.{side}.", torch.randn(5, 16)
        trained = {f"{prefix}{key}": value.clone() for key, value in part.state_dict().items()}
        whole = part.eval()(x)
        scaled = adapter.scaled(trained, trained, 0.25)
        part.load_state_dict({key.removeprefix(prefix): value for key, value in scaled.items()})
        torch.testing.assert_close(part(x), 0.25 * whole)


def test_full_tuning_is_a_line_and_counts_are_no_points_on_it() -> None:
    start = {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(3), "head": torch.tensor([0.1])}
    end = {"w": torch.tensor([2.0, -2.0]), "n": torch.tensor(7), "head": torch.tensor([9.0])}
    dial = Dial.of(None, start, end, {"head"})
    assert dial.kept == ("head",)
    found = dial.state(0.25)
    torch.testing.assert_close(found["w"], torch.tensor([1.25, 1.0]))
    assert (found["n"].item(), found["head"].item()) == (7, 9.0), "a new head stays as trained"
    assert dial.turned == "the line between start and trained weights"


def test_heads_that_are_new_stay_and_a_run_from_nothing_is_refused(tmp_path: Path) -> None:
    run_folder(tmp_path / "adapter")
    model, dial = dial_of(tmp_path / "adapter")
    assert dial.kept == ("image_projection.weight", "logit_scale", "text_projection.weight")
    assert dial.turned == "the output of MultiWayAdapter"
    dial.turn(model.network, 0)
    for name in dial.kept:
        assert torch.equal(model.network.state_dict()[name], dial.trained[name])
    section = configuration()
    section["init_args"] |= {"adapter": None, "tuning": "head"}
    run_folder(tmp_path / "heads", section=section)
    with pytest.raises(InputError, match=r"heads: all that trained here \(image_projection.weight, .* began at random, so there"):
        dial_of(tmp_path / "heads")


class Silent(Adapter):
    """Not the identity, and without a word of what less of it is."""

    def inject(self, network: Any) -> None: ...

    def owns(self, parameter_name: str) -> bool:
        return parameter_name == "own"


class Marked(Silent):
    identity_at_start = True


def test_an_adapter_of_ones_own_lies_on_the_line_where_it_starts_without_effect() -> None:
    start, end = {"own": torch.tensor([0.0]), "w": torch.tensor([1.0])}, {"own": torch.tensor([4.0]), "w": torch.tensor([2.0])}
    assert Dial.of(Marked(), start, end, frozenset()).state(0.5) == {"own": torch.tensor([2.0]), "w": torch.tensor([1.5])}
    with pytest.raises(
        InputError, match=r"Silent is not the identity at its start and has no method `scaled`, .* write that method"
    ):
        Dial.of(Silent(), start, end, frozenset())


@pytest.mark.parametrize("name", ["mwa", "lora", "full"])
def test_an_export_at_alpha_is_the_model_there(name: str, tmp_path: Path) -> None:
    tuning, adapter, options = METHODS[name]
    run = started(tmp_path / "made", tuning, adapter, **options)
    model, dial = dial_of(run)
    dial.turn(model.network, 0.6)
    folder = export_run(run, tmp_path / "at", dialled=Dialled(0.6, "a rule"))
    loaded: Any = lightning_modules.load(folder)
    mine, theirs = model.network.state_dict(), loaded.network.state_dict()
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in mine.items())
    text = (folder / "adapter_config.json").read_text()
    assert '"dial": {\n  "alpha": 0.6,\n  "picked": "a rule"\n }' in text
    plain = export_run(run, tmp_path / "plain")
    assert '"dial"' not in (plain / "adapter_config.json").read_text(), "exports without a dial are what they were"
    with pytest.raises(InputError, match="already holds an adapter export, of something else"):
        export_run(run, tmp_path / "plain", dialled=Dialled(1.0))
