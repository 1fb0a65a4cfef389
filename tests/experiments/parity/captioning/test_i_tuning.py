"""Checkers of I-Tuning and ClipCap on the committed recordings, whole and tampered with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from edited_recordings import edited, off, verdicts
from torch import Tensor

from datamodules.errors import InputError
from experiments.parity.captioning import clipcap, i_tuning
from experiments.parity.compare import GroupCheck
from experiments.parity.recordings import Recording, read_recording

RECORDINGS = Path(__file__).parents[3] / "recordings" / "captioning"
CHECKERS: dict[str, Callable[[Recording], list[GroupCheck]]] = {
    "i-tuning-module": i_tuning.check_module,
    "i-tuning-gpt2": i_tuning.check_gpt2,
    "clipcap": clipcap.check,
}
FILES = {
    "ituning_module": {"weights", "parameters", "dh", "attention"},
    "ituning_gpt2": {
        "modules, first 0 dropped",
        "modules, first 2 dropped",
        "logits",
        "loss",
        "greedy tokens",
        "beam tokens",
    },
    "clipcap_mlp": {
        "weights, in and out",
        "prefix embeddings",
        "logits at real positions",
        "loss",
        "norms of gradients",
        "generate_beam",
        "generate2",
    },
}
FILES["clipcap_transformer"] = FILES["clipcap_mlp"]


def check(path: Path) -> list[GroupCheck]:
    recording = read_recording(path)
    return CHECKERS[recording.kind](recording)


@pytest.mark.parametrize("name", FILES)
def test_recordings_pass(name: str) -> None:
    rows = check(RECORDINGS / f"{name}.json")
    assert verdicts(rows) == dict.fromkeys(FILES[name], "ok"), rows
    assert all(row.count for row in rows)


def nudge(name: str, by: float = 1e-3) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    def edit(about: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        tensors[name].view(-1)[1 % tensors[name].numel()] += by

    return edit


def replace(path: str, value: Callable[[Any], Any]) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    def edit(about: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        *keys, last = path.split("/")
        for key in keys:
            about = about[key]
        about[last] = value(about[last])

    return edit


def other_tokens(rows: list[list[int]]) -> list[list[int]]:
    return [[rows[0][0], rows[0][1] + 1, *rows[0][2:]], *rows[1:]]


CASE = "results/heads1_unscaled_drop2"


@pytest.mark.parametrize(
    ("name", "edit", "wrong"),
    [
        ("ituning_module", nudge("outputs/delta_h_heads4_scaled"), {"dh"}),
        ("ituning_module", nudge("outputs/attention_heads1_scaled"), {"attention"}),
        ("ituning_module", nudge("outputs/attention_heads4_scaled"), {"attention"}),
        ("ituning_module", replace("parameters", lambda count: count + 1), {"parameters"}),
        ("ituning_module", nudge("weights/k.weight", 0.1), {"dh", "attention"}),
        ("ituning_module", replace("lambda_", lambda value: value + 0.01), {"dh"}),
        ("ituning_gpt2", nudge("outputs/logits_heads1_unscaled_drop2", 0.01), {"logits"}),
        ("ituning_gpt2", replace(f"{CASE}/loss_mean_over_tokens", lambda value: value + 1e-4), {"loss"}),
        ("ituning_gpt2", replace(f"{CASE}/greedy_10_tokens", other_tokens), {"greedy tokens"}),
        ("ituning_gpt2", replace(f"{CASE}/beam5_hf_transformers_5_23_max10", other_tokens), {"beam tokens"}),
        ("clipcap_mlp", nudge("outputs/prefix_embeddings"), {"prefix embeddings"}),
        ("clipcap_mlp", nudge("outputs/logits", 0.01), {"logits at real positions"}),
        ("clipcap_transformer", nudge("outputs/loss"), {"loss"}),
        ("clipcap_transformer", replace("grad_norms_clip_project/linear.bias", lambda v: v * 1.001), {"norms of gradients"}),
        ("clipcap_transformer", replace("grad_norm_wte", lambda v: v * 1.001), {"norms of gradients"}),
        ("clipcap_mlp", replace("beam_outputs_best_first", lambda v: [v[0][::-1], *v[1:]]), {"generate_beam"}),
        ("clipcap_mlp", replace("greedy_outputs", lambda v: [*v[:2], v[2] + " 1"]), {"generate2"}),
    ],
)
def test_a_change_is_found_where_it_is(
    name: str, edit: Callable[[dict[str, Any], dict[str, Tensor]], None], wrong: set[str], tmp_path: Path
) -> None:
    rows = check(edited(RECORDINGS / f"{name}.json", tmp_path, edit))
    assert off(rows) == wrong, rows


@pytest.mark.parametrize(("name", "tensor"), [("ituning_module", "weights/o.bias"), ("ituning_gpt2", "weights/ituning.3.o.bias")])
def test_weights_that_do_not_fit_end_the_check(name: str, tensor: str, tmp_path: Path) -> None:
    rows = check(edited(RECORDINGS / f"{name}.json", tmp_path, lambda about, tensors: tensors.pop(tensor)))
    assert [row.verdict for row in rows if row.verdict != "ok"] == ["OFF", "not checked"]


@pytest.mark.parametrize(
    ("name", "tensor"),
    [("ituning_gpt2", "weights/lm.transformer.ln_f.bias"), ("clipcap_mlp", "weights/clip_project.model.2.bias")],
)
def test_models_that_do_not_fit(name: str, tensor: str, tmp_path: Path) -> None:
    rows = check(edited(RECORDINGS / f"{name}.json", tmp_path, lambda about, tensors: tensors.pop(tensor)))
    assert [row.verdict for row in rows] == ["OFF"]


def test_what_a_check_cannot_do_without(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="inputs/V"):
        check(edited(RECORDINGS / "ituning_module.json", tmp_path, lambda about, tensors: tensors.pop("inputs/V")))
    with pytest.raises(InputError, match="prefix_length"):
        check(edited(RECORDINGS / "clipcap_mlp.json", tmp_path, lambda about, tensors: about.pop("prefix_length")))
    rows = check(edited(RECORDINGS / "clipcap_mlp.json", tmp_path, replace("mapping", lambda _: "linear")))
    assert verdicts(rows) == {"all": "not checked"}


def test_other_sizes(tmp_path: Path) -> None:
    """Another configuration, recorded from our own build: no size is assumed."""

    def edit(about: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        torch.manual_seed(0)
        about.update(d_model=10, d_visual=6, bottleneck=12, heads=[3, 12], lambda_=1.5, parameters=12 * 10 * 2 + 12 * 6 * 2 + 46)
        shapes = {"q": (12, 10), "k": (12, 6), "v": (12, 6), "o": (10, 12)}
        tensors.clear()
        for name, shape in shapes.items():
            tensors |= {f"weights/{name}.weight": torch.randn(shape), f"weights/{name}.bias": torch.randn(shape[0])}
        tensors |= {"inputs/X": torch.randn(3, 4, 10), "inputs/V": torch.randn(3, 9, 6)}

        def of(name: str, x: Tensor) -> Tensor:
            return x @ tensors[f"weights/{name}.weight"].T + tensors[f"weights/{name}.bias"]

        for heads in (3, 12):
            for kind, scale in (("unscaled", 1.0), ("scaled", (12 / heads) ** -0.5)):
                query, key, value = (
                    of(n, tensors[f"inputs/{i}"]).unflatten(-1, (heads, -1)) for n, i in (("q", "X"), ("k", "V"), ("v", "V"))
                )
                maps = torch.softmax(scale * torch.einsum("bthe,bnhe->bhtn", query, key), -1)
                context = torch.einsum("bhtn,bnhe->bthe", maps, value).flatten(2)
                tensors[f"outputs/delta_h_heads{heads}_{kind}"] = (
                    1.5 * (context @ tensors["weights/o.weight"].T) + tensors["weights/o.bias"]
                )
                stored = maps.permute(0, 2, 3, 1) if heads == 3 else maps  # in the order of memory, or as labelled
                tensors[f"outputs/attention_heads{heads}_{kind}"] = stored.reshape(maps.shape).contiguous()

    rows = check(edited(RECORDINGS / "ituning_module.json", tmp_path, edit))
    assert verdicts(rows) == dict.fromkeys(FILES["ituning_module"], "ok"), rows
    note = next(row.note for row in rows if row.group == "attention")
    assert "attention_heads3_scaled, attention_heads3_unscaled: stored in another order" in note
