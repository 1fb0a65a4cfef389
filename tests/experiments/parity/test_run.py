"""`crosslight parity` on committed recordings of the official code, and on recordings that were tampered with.

`tests/recordings/mwa` holds copies of recordings. Those of `on_a_base` leave out what equals a_base's (backbone weights, inputs,
embeddings); `assembled` puts that back, byte for byte as recorded, which the sha256 in the .json confirms.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from edited_recordings import Edit, edited, off, verdicts
from safetensors.torch import load_file, save_file
from torch import Tensor

from experiments.cli import main as cli
from experiments.parity.beit3 import contrastive
from experiments.parity.compare import (
    GRADIENT,
    OUTPUT,
    STATE,
    compare,
    compare_lines,
    compare_names,
)
from experiments.parity.recordings import read_recording
from experiments.parity.run import check

RECORDINGS = Path(__file__).parents[2] / "recordings" / "mwa"
NETWORKS = ("b_mwa_code", "c_ke_only", "e_paper_count", "f_paper_text")
OTHERS = ("a_base", "itc_gather", "retrieval_eval", "pos_embed_interp", "recipe", "eval_transform", "index_jsonl", "tokenizer")


@pytest.fixture(scope="module")
def gathered(assembled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two real processes found for itc_gather. They import torch anew, so they run once for all tests."""
    folder = tmp_path_factory.mktemp("gather")
    inputs = read_recording(assembled / "itc_gather.json").group("inputs")
    save_file(inputs, folder / "inputs.safetensors")
    assert contrastive._run(folder, 2) == ""
    return folder


@pytest.fixture
def gathered_before(gathered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def copy(folder: Path, ranks: int) -> str:
        inputs, same = (load_file(where / "inputs.safetensors") for where in (folder, gathered))
        assert inputs.keys() == same.keys()
        for found in gathered.glob("found_*"):
            shutil.copy(found, folder)
        return ""

    monkeypatch.setattr(contrastive, "_run", copy)


@pytest.fixture(scope="module")
def assembled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recordings whole."""
    folder = tmp_path_factory.mktemp("mwa")
    base = {name: t for name, t in load_file(RECORDINGS / "a_base.safetensors").items() if not name.startswith("grads/")}
    for name in NETWORKS:
        shutil.copy(RECORDINGS / "on_a_base" / f"{name}.json", folder)
        save_file(base | load_file(RECORDINGS / "on_a_base" / f"{name}.safetensors"), folder / f"{name}.safetensors")
        stored = hashlib.sha256((folder / f"{name}.safetensors").read_bytes()).hexdigest()
        assert stored == json.loads((folder / f"{name}.json").read_text())["sha256"]
    for name in OTHERS:
        for file in RECORDINGS.glob(f"{name}.*"):
            shutil.copy(file, folder)
    return folder


def parity(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int | str | None, str, str]:
    """Exit status, what was printed, what stood on stderr."""
    with pytest.raises(SystemExit) as stop:
        cli.main(["parity", *map(str, arguments)])
    printed = capsys.readouterr()
    return stop.value.code, printed.out, printed.err


# ---------------------------------------------------------------------------------------------------------- the command


def test_every_recording_passes_and_what_cannot_be_checked_is_said(
    assembled: Path, gathered_before: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CROSSLIGHT_BEIT3_SPM", raising=False)
    code, out, err = parity(capsys, *sorted(assembled.glob("*.json")))
    assert code == 0, out
    assert err == ""
    assert "OFF" not in out
    # Without the sentencepiece file: the tokenizer and both written indexes; and the released code's unfrozen AE.
    assert re.search(r"\n12 files: \d+ groups ok, 0 off, 4 not checked\n$", out)
    assert out.count("give --spm FILE") == 3
    assert max(map(len, out.splitlines())) <= 100
    assert "\x1b" not in out
    for group in (
        "hidden states",
        "fused output",
        "gradients, 2 gloo",
        "mwa_from_plain: groups",
        "4x4 to 6x6",
        "recalls",
        "pixels",
    ):
        assert group in out


def test_one_number_that_is_off_makes_the_command_fail(
    assembled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def edit(about: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        tensors["outputs/image_1"][0, 0, 0] += 1e-4

    path = edited(assembled / "eval_transform.json", tmp_path, edit)
    code, out, _ = parity(capsys, path, assembled / "pos_embed_interp.json")
    assert code == 1
    assert re.search(r"pixels +3 +1\.0e-04 +1e-5 +OFF +image_1", out)
    assert out.endswith("2 files: 3 groups ok, 1 off, 0 not checked\n")


def test_unknown_kinds_are_not_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.json").write_text('{"kind": "iais-losses"}')
    code, out, _ = parity(capsys, tmp_path / "x.json")
    assert code == 0
    assert " ".join(out.split()).count("no checker for kind iais-losses") == 1
    assert out.endswith("1 file: 0 groups ok, 0 off, 1 not checked\n")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.json", None, "none.json does not exist"),
        ("cut.json", '{"kind": "beit3', "cut.json is no valid JSON"),
        ("list.json", "[1]", "list.json has no 'kind'"),
        ("a.safetensors", "", "a.safetensors is no recording's .json"),
        ("lone.json", '{"kind": "beit3-retrieval", "sha256": ""}', "lone.safetensors is missing"),
        ("recall.json", '{"kind": "retrieval-recall", "metrics": {}}', "has no tensor 'inputs/pair_image_feats'"),
        ("recipe.json", '{"kind": "beit3-recipe"}', "has no 'cases'"),
    ],
)
def test_bad_input_is_one_message_and_exit_2(
    name: str, content: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    code, out, err = parity(capsys, tmp_path / name)
    assert (code, out) == (2, "")
    assert err.startswith("crosslight: error: ")
    assert message in err


def test_a_damaged_safetensors_is_bad_input(assembled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(assembled / "itc_gather.json", tmp_path)
    (tmp_path / "itc_gather.safetensors").write_bytes((assembled / "itc_gather.safetensors").read_bytes()[:-8])
    code, _, err = parity(capsys, tmp_path / "itc_gather.json")
    assert code == 2
    assert "itc_gather.safetensors cannot be read" in err


def test_a_file_that_is_not_the_recorded_one_is_said(assembled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(assembled / "c_ke_only.json", tmp_path)
    tensors = load_file(assembled / "c_ke_only.safetensors")
    del tensors["grads/logit_scale"]
    save_file(tensors, tmp_path / "c_ke_only.safetensors")
    code, out, _ = parity(capsys, tmp_path / "c_ke_only.json")
    assert code == 0
    said = " ".join(out.split())
    assert re.search(r"the .json counts \d+ tensors, the file has \d+", said)
    assert "its sha256 is not" in said
    assert out.endswith("10 groups ok, 0 off, 2 not checked\n")


@pytest.mark.parametrize("name", ["tokenizer", "index_jsonl"])
def test_another_sentencepiece_file_is_not_checked_and_a_missing_one_is_an_error(
    name: str, assembled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other.spm").write_bytes(b"another")
    monkeypatch.setenv("CROSSLIGHT_BEIT3_SPM", str(tmp_path / "other.spm"))
    code, out, _ = parity(capsys, assembled / f"{name}.json")
    assert code == 0
    assert "other.spm is another file" in " ".join(out.split())
    code, _, err = parity(capsys, assembled / f"{name}.json", "--spm", tmp_path / "none.spm")
    assert code == 2
    assert "none.spm cannot be read" in err


# ----------------------------------------------------------------------------------------------------------- comparisons


def test_tolerances_are_absolute_of_the_tensors_scale_and_of_the_element() -> None:
    recorded = {"x": torch.tensor([10.0, 0.0], dtype=torch.float64)}

    def at(deviation: list[float], tolerance: Any) -> str:
        return compare("g", {"x": recorded["x"] + torch.tensor(deviation, dtype=torch.float64)}, recorded, tolerance).verdict

    assert [at([0, 0.9e-5], OUTPUT), at([0, 1.1e-5], OUTPUT)] == ["ok", "OFF"]
    assert [at([0, 0.9e-4], STATE), at([0, 1.1e-4], STATE)] == ["ok", "OFF"]
    assert [at([0.9e-3, 0], GRADIENT), at([1.1e-3, 0], GRADIENT)] == ["ok", "OFF"]
    assert [at([0, 0.9e-5], GRADIENT), at([0, 1.1e-5], GRADIENT)] == ["ok", "OFF"]


def test_what_cannot_be_subtracted_is_off() -> None:
    one = {"x": torch.ones(2)}
    for found in ({}, {"x": torch.ones(1)}, {"x": torch.tensor([1.0, torch.nan])}, {"x": torch.tensor([1.0, torch.inf])}):
        assert compare("g", found, one, OUTPUT).verdict == "OFF"
    assert compare("g", {"x": torch.full((2,), torch.nan)}, {"x": torch.full((2,), torch.nan)}, OUTPUT).verdict == "OFF"
    assert compare("g", one, {}, OUTPUT).verdict == "not checked"
    assert compare("g", one, one, OUTPUT).verdict == "ok"
    # An offending tensor is named before one with a larger, allowed deviation.
    row = compare(
        "g", {"a": torch.tensor(1e4 + 0.05), "b": torch.tensor(2e-4)}, {"a": torch.tensor(1e4), "b": torch.zeros(())}, STATE
    )
    assert (row.verdict, row.note) == ("OFF", "b")


def test_names_and_lines_are_compared_both_ways() -> None:
    assert compare_names("g", {"a"}, {"a"}).verdict == "ok"
    assert "1 lacking: b" in compare_names("g", {"a"}, {"a", "b"}).note
    assert "1 too many: b" in compare_names("g", {"a", "b"}, {"a"}).note
    assert compare_lines("g", {"a": 1}, {"a": 1}).verdict == "ok"
    assert compare_lines("g", {"a": 1}, {"a": 2}).verdict == "OFF"
    assert compare_lines("g", {"a": 1, "b": 1}, {"a": 1}).verdict == "OFF"
    assert compare_lines("g", {}, {"a": 1}).verdict == "OFF"


# ------------------------------------------------------------------------------------------------- one kind after another


def _add(name: str, amount: float = 1e-3) -> Edit:
    def edit(about: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        tensors[name].view(-1)[0] += amount

    return edit


def _drop(name: str) -> Edit:
    def edit(about: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        del tensors[name]

    return edit


def _config(**changes: Any) -> Edit:
    def edit(about: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        about["config"] |= changes

    return edit


LAYER = "weights/beit3.encoder.layers.1."


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (_add("outputs/vision_embed_before_pos"), {"embeddings"}),
        (_add("outputs/text_hidden_2"), {"hidden states"}),
        (_add("outputs/vision_encoder_out"), {"encoder output"}),
        (_add("outputs/language_cls", 2e-5), {"unit vectors"}),
        (_add("outputs/logits_per_text"), {"logits"}),
        (_add("outputs/loss", 2e-5), {"loss"}),
        (_add("outputs/fused_encoder_out"), {"fused output"}),
        (_add("grads/beit3.encoder.layers.1.enhancemlp.B.fc2.weight", 2e-5), {"gradients"}),
        (_drop("weights/beit3.encoder.layers.1.self_attn.k_proj.A.bias"), {"weights"}),
        (_drop(LAYER + "adaptmlp_text.up_proj.weight"), {"weights taken", "weights written back"}),
        (_config(ffn_mode="vision"), {"hidden states", "unit vectors", "loss"}),
        (_config(ffn_adapter_scalar="0.5"), {"hidden states", "unit vectors", "loss"}),
        (_config(encoder_attention_heads=2), {"hidden states", "unit vectors", "loss", "fused output"}),
        (_config(ae_mid=8), {"weights"}),
    ],
)
def test_a_change_of_the_network_recording_shows_in_its_group(
    edit: Edit, expected: set[str], assembled: Path, tmp_path: Path
) -> None:
    rows = check(read_recording(edited(assembled / "e_paper_count.json", tmp_path, edit)))
    found = off(rows)
    assert found >= expected
    if len(expected) == 1:  # a perturbed number, not another network
        assert found == expected


def test_a_changed_weight_shows_in_what_follows_from_it(assembled: Path, tmp_path: Path) -> None:
    rows = check(
        read_recording(edited(assembled / "e_paper_count.json", tmp_path, _add(LAYER + "adaptmlp_vision.down_proj.weight", 0.05)))
    )
    assert "hidden states" in off(rows)
    assert not off(rows) & {"weights taken", "weights written back", "embeddings", "fused output"}  # fused: recorded without KE


def test_a_weight_that_has_no_place_is_off(assembled: Path, tmp_path: Path) -> None:
    def edit(about: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        tensors["weights/beit3.pooler.weight"] = torch.ones(2)

    rows = check(read_recording(edited(assembled / "a_base.json", tmp_path, edit)))
    assert off(rows) == {"weights taken", "weights written back"}


@pytest.mark.parametrize("mode", ["text", "vision"])
def test_one_sided_adapters_adapt_the_side_that_the_released_code_adapts(mode: str, assembled: Path, tmp_path: Path) -> None:
    # `adaptmlp_text` serves image tokens: a recording with ffn_mode "text" has the image side of the full one, and the text side
    # of one without KE, which is a_base's. So recordings that exist make up the expected outputs.
    base = load_file(assembled / "a_base.safetensors")

    def edit(about: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        about["config"]["ffn_mode"] = mode
        unused, side, head = ("vision", "text", "language") if mode == "text" else ("text", "vision", "vision")
        for name in list(tensors):
            if f".adaptmlp_{unused}." in name or name.startswith(("grads/", "outputs/logits", "outputs/loss")):
                del tensors[name]
            elif name.startswith((f"outputs/{side}_", f"outputs/{head}_cls")):
                tensors[name] = base[name]

    found = verdicts(check(read_recording(edited(assembled / "c_ke_only.json", tmp_path, edit))))
    lacking = {"logits", "loss", "gradients"}
    assert {group for group, verdict in found.items() if verdict == "not checked"} == lacking
    assert {verdict for group, verdict in found.items() if group not in lacking} == {"ok"}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"subln": False}, "subln"),
        ({"ffn_enhance": "gated"}, "gated"),
        ({"ffn_option": "sequential"}, "sequential"),
        ({"d_model": 24}, "width 24"),
        ({"ffn_adapter_layernorm_option": "both"}, "both"),
        ({"ffn_adapter_scalar": "half"}, "half"),
        ({"img_size": 33}, "multiple"),
    ],
)
def test_what_our_build_cannot_express_is_not_checked(changes: dict[str, Any], why: str, assembled: Path, tmp_path: Path) -> None:
    rows = check(read_recording(edited(assembled / "b_mwa_code.json", tmp_path, _config(**changes))))
    assert [row.verdict for row in rows] == ["not checked"]
    assert why in rows[0].note


def test_an_output_that_nothing_is_compared_with_is_said(assembled: Path, tmp_path: Path) -> None:
    def edit(about: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        tensors["outputs/text_hidden_4"] = tensors["outputs/text_hidden_3"].clone()
        del tensors["outputs/vision_hidden_1"]

    rows = check(read_recording(edited(assembled / "a_base.json", tmp_path, edit)))
    assert [(row.group, row.note) for row in rows if row.verdict == "not checked"] == [
        ("hidden states", "the file does not record vision_hidden_1"),
        ("other outputs", "ours gives none of text_hidden_4"),
    ]


def test_a_one_sided_loss_is_not_checked_but_the_rest_is(assembled: Path, tmp_path: Path) -> None:
    found = verdicts(check(read_recording(edited(assembled / "a_base.json", tmp_path, _config(loss="text")))))
    assert [group for group, verdict in found.items() if verdict == "not checked"] == ["loss", "gradients"]
    assert found["unit vectors"] == found["fused output"] == "ok"


def test_gather_sees_a_wrong_gradient_of_a_rank(assembled: Path, gathered_before: None, tmp_path: Path) -> None:
    rows = check(read_recording(edited(assembled / "itc_gather.json", tmp_path, _add("grads/text_1", 1e-3))))
    assert off(rows) == {"gradients, one process", "gradients, 2 gloo processes"}


def test_processes_that_fail_are_off(assembled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrastive.sys, "executable", "false")
    rows = check(read_recording(assembled / "itc_gather.json"))
    assert off(rows) == {"2 gloo processes"}
    assert rows[-1].note == "the processes failed: exit status 1"


def test_recalls_of_any_k_are_compared(assembled: Path, tmp_path: Path) -> None:
    def edit(about: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        scores = tensors["inputs/pair_text_feats"] @ tensors["inputs/pair_image_feats"].T
        ids = tensors["inputs/pair_image_ids"]
        first = torch.tensor([int((ids == i).nonzero()[0]) for i in ids.unique()])
        top = ids.unique()[scores[:, first].topk(3).indices]
        about["metrics"] = {"ir_r3": 100 * float((top == ids[:, None]).any(1).double().mean()), "mrr": 1.0}

    rows = check(read_recording(edited(assembled / "retrieval_eval.json", tmp_path, edit)))
    assert verdicts(rows) == {"recalls": "ok", "other metrics": "not checked"}
    rows = check(
        read_recording(edited(tmp_path / "retrieval_eval.json", tmp_path, lambda about, _: about["metrics"].update(ir_r3=1.0)))
    )
    assert off(rows) == {"recalls"}


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda about, _: about["cases"]["mwa_from_plain"]["trainable"].remove("logit_scale"), {"mwa_from_plain: trains"}),
        (
            lambda about, _: about["cases"]["full"]["param_groups"]["layer_1_decay"].update(lr_scale=0.28),
            {"full: groups"},
        ),
        (
            lambda about, _: about["cases"]["mwa_from_itc"]["param_groups"]["layer_2_no_decay"].update(weight_decay=0.05),
            {"mwa_from_itc: groups"},
        ),
        (lambda about, _: about["schedule"].__setitem__(20, 1e-4), {"schedule"}),
        (lambda about, _: about["schedule"].pop(), {"schedule"}),
    ],
)
def test_a_change_of_the_recipe_shows(edit: Edit, expected: set[str], assembled: Path, tmp_path: Path) -> None:
    assert off(check(read_recording(edited(assembled / "recipe.json", tmp_path, edit)))) == expected


def test_positions_and_index_reader_see_a_change(assembled: Path, tmp_path: Path) -> None:
    def move(about: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        about["cases"][1]["output"][5][0] += 1e-4

    assert off(check(read_recording(edited(assembled / "pos_embed_interp.json", tmp_path, move)))) == {"6x6 to 4x4"}


def test_another_schedule_is_read_from_the_file(assembled: Path, tmp_path: Path) -> None:
    base, final, epochs, steps, warmup = 1e-3, 2e-5, 11, 10, 3  # 3 / 11 * 110 is just below 30 in floating point

    def edit(about: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        rest = np.arange((epochs - warmup) * steps)
        cosine = final + 0.5 * (base - final) * (1 + np.cos(np.pi * rest / len(rest)))  # utils.cosine_scheduler
        about["schedule"] = [*np.linspace(0, base, warmup * steps), *cosine]
        about["doc"] = f"layer_decay 0.65, base={base}, final={final}, epochs=11, niter_per_ep=10, warmup_epochs=3"

    rows = {row.group: row for row in check(read_recording(edited(assembled / "recipe.json", tmp_path, edit)))}
    assert (rows["schedule"].verdict, rows["schedule"].count) == ("ok", 110)
    path = edited(assembled / "recipe.json", tmp_path, lambda about, _: about.update(doc=""))
    unsaid = {row.group: row for row in check(read_recording(path))}
    assert unsaid["schedule"].verdict == unsaid["full: groups"].verdict == "not checked"
    assert unsaid["full: trains"].verdict == "ok"


def test_token_ids_of_the_sentencepiece_file_that_the_recording_names(assembled: Path, tmp_path: Path) -> None:
    texts = [row["text"] for row in json.loads((assembled / "tokenizer.json").read_text())["rows"] if "<" not in row["text"]]
    spm, model = tmp_path / "tiny.spm", io.BytesIO()
    options = {"model_type": "unigram", "vocab_size": 200, "hard_vocab_limit": False, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(texts * 3), model_writer=model, **options)
    spm.write_bytes(model.getvalue())
    raw = sentencepiece.SentencePieceProcessor(str(spm))

    def edit(about: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        about["spm_sha256"] = hashlib.sha256(spm.read_bytes()).hexdigest()
        about["special"] |= {"mask": len(raw) + 1, "len": len(raw) + 2}
        about["rows"] = []
        for text in texts:
            ids = [3 if i == 0 else i + 1 for i in raw.encode(text)]
            own = [0, *ids[:10], 2]
            tokens, mask = own + [1] * (12 - len(own)), [0] * len(own) + [1] * (12 - len(own))
            about["rows"].append({"text": text, "ids": ids, "language_tokens_12": tokens, "padding_mask_12": mask})

    path = edited(assembled / "tokenizer.json", tmp_path, edit)
    groups = {"token ids", "12 tokens, from text", "12 tokens, from ids", "special tokens"}
    assert verdicts(check(read_recording(path), spm)) == dict.fromkeys(groups, "ok")

    def wrong(about: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        about["rows"][0]["ids"][0] += 1
        about["rows"][1]["padding_mask_12"][0] = 1
        about["special"]["eos"] = 1

    assert off(check(read_recording(edited(path, tmp_path, wrong)), spm)) == groups
