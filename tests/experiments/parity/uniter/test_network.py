"""`crosslight parity` on the committed recordings of UNITER and IAIS, whole and tampered with.

The check of a network takes a second, so that many things are changed at once: in two rounds every second group must be off, and
no other. `tests/recordings/uniter_db` holds the databases that lie in `db/` beside the original.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from edited_recordings import edited, off, verdicts
from torch import Tensor

from datamodules.errors import InputError
from experiments.cli import main as cli
from experiments.parity.compare import GroupCheck
from experiments.parity.recordings import read_recording
from experiments.parity.run import check, check_files
from experiments.parity.uniter import evaluation as uniter_evaluation

RECORDINGS = Path(__file__).parents[3] / "recordings"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the recordings were made: databases beside them."""
    folder = tmp_path_factory.mktemp("recorded") / "iais"
    shutil.copytree(RECORDINGS / "iais", folder)
    shutil.copytree(RECORDINGS / "uniter_db", folder / "db", ignore=shutil.ignore_patterns("reads.safetensors"))
    return folder


@pytest.fixture
def beside(recorded: Path, tmp_path: Path) -> Path:
    """A folder for a changed copy, with the same databases."""
    (tmp_path / "db").symlink_to(recorded / "db")
    return tmp_path


def not_checked(rows: list[GroupCheck]) -> dict[str, str]:
    return {row.group: row.note for row in rows if row.verdict == "not checked"}


def test_every_recording_passes(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["parity", *map(str, sorted(recorded.glob("*.json")))])
    out = capsys.readouterr().out
    assert stop.value.code == 0, out
    assert re.search(r"\n3 files: 6\d groups ok, 0 off, 0 not checked\n$", out)
    assert max(map(len, out.splitlines())) <= 100
    for group in ("uncompact: ranking scores", "IAIS: gradients", "hard texts: right packing", "full rank: recalls", "distance"):
        assert group in out


# Groups and what changes them alone: a recorded tensor, or a path of keys in the .json. Kept in the order of the table.
CHANGES: dict[str, list[str]] = {
    "annealing": ["outputs/tsa/log_schedule_scale10"],
    "annealing, .json": ["tsa.linear_schedule.5"],
    "learning rate": ["lr_schedule.501"],
    "AdamW": ["outputs/adamw/params"],
    "recalls, as published": ["itm_eval.official.img_r5"],
    "recalls, half precision": ["itm_eval.official_on_fp16_scores.txt_r1"],
    "recalls, corrected": ["itm_eval.corrected.img_r1"],
    "Meta-Sum": ["itm_eval.meta_sum_corrected"],
    "mining": ["outputs/hn_select/indices"],
    "packing: index": ["inputs/gather_index"],
    "packing: mask": ["inputs/attn_masks"],
    "packing: words, regions": ["inputs/uncompact_img_attn_masks"],
    "compact: embedding": ["outputs/compact/embedding"],
    "compact: hidden states": ["outputs/compact/hidden_2"],
    "compact: attention scores": ["outputs/compact/last_attn_scores"],
    "compact: attention maps": ["outputs/compact/last_attn_probs"],
    "compact: pooled, heads": ["outputs/compact/itm_logits"],
    "compact: ranking scores": ["outputs/compact/rank_scores"],
    "uncompact: embedding": ["outputs/uncompact/embedding"],
    "uncompact: hidden states": ["outputs/uncompact/hidden_1"],
    "uncompact: attention scores": ["outputs/uncompact/last_attn_scores"],
    "uncompact: attention maps": ["outputs/uncompact/last_attn_probs"],
    "uncompact: pooled, heads": ["outputs/uncompact/pooled"],
    "uncompact: ranking scores": ["outputs/uncompact/rank_scores"],
    "margin, mean of hinges": ["outputs/margin/rank_loss_mean"],
    "margin: gradients": ["grads/margin/rank_output.bias"],
    "IAIS: maps": ["outputs/iais_all/i2t_attn"],
    "IAIS: argmax": ["outputs/iais_all/argmax_V/pair_4"],
    "IAIS: per pair": ["outputs/iais_all/distributed_V/per_pair"],
    "IAIS: reduced": ["outputs/iais_all/singular_LV/loss"],
    "IAIS: gradients": ["grads/iais_all/singular_LV/uniter.encoder.layer.2.attention.self.query.weight"],
    "IAIS, positives: per pair": ["outputs/iais_pos/singular_L/per_pair"],
    "IAIS, positives: reduced": ["outputs/iais_pos/distributed_V/loss"],
    "IAIS, positives: gradients": ["grads/iais_pos/distributed_L/uniter.encoder.layer.2.attention.self.key.bias"],
    "IAIS: by layer": ["outputs/iais_layer/distributed_V/layer_1"],
    "hard images: mining scores": ["outputs/hn_t/mining_scores"],
    "hard images: mined": ["outputs/hn_t/hard_indices_sorted"],
    "hard images: width": ["hn_step.t.hard_batch_width"],
    "hard images: ranking loss": ["outputs/hn_t/rank_loss_sorted"],
    "hard images: IAIS": ["outputs/hn_t/L-distributed/iais_loss"],
    "hard images: total": ["outputs/hn_t/L-singular/total_loss"],
    "hard images: gradients": ["grads/hn_t/L-singular/uniter.pooler.dense.weight"],
    "hard texts: mining scores": ["outputs/hn_i/mining_scores"],
    "hard texts: mined": ["outputs/hn_i/hard_attn_masks_sum"],
    "hard texts: ranking loss": ["outputs/hn_i/rank_loss_mean"],
    "hard texts: IAIS": ["outputs/hn_i/V-singular/iais_loss"],
    "hard texts: total": ["outputs/hn_i/V-distributed/total_loss"],
    "hard texts: gradients": ["grads/hn_i/V-distributed/rank_output.weight"],
    "database: plain": ["outputs/db/0/img_feat"],
    "database: compressed": ["outputs/db/0/img_feat"],
    "database: all": ["outputs/db/2/img_feat_all"],
    "full rank: scores": ["outputs/eval_db/score_matrix_fp32"],
    "full rank: scores, half": ["outputs/eval_db/score_matrix_fp16"],
    "full rank: recalls": ["eval_db.official.r_mean"],
}
TOGETHER = {"database: plain", "database: compressed"}  # of the same recorded tensor
# a recorded whole number; half precision; and a change of 1e-3 of what is 12 in size is allowed
AMOUNTS = {"outputs/eval_db/score_matrix_fp16": 5e-3, "outputs/compact/last_attn_scores": 1e-2}
# The margin as printed comes from the compact ranking scores.
FOLLOWS = {"compact: ranking scores": {"margin, Eq. 14"}}


def change(about: dict[str, Any], tensors: dict[str, Tensor], name: str) -> None:
    if name in tensors:
        tensor = tensors[name].view(-1)
        tensor[0] += AMOUNTS.get(name, 1e-3) if tensor.is_floating_point() else 1
        return
    *path, last = name.split(".")
    place: Any = about
    for key in path:
        place = place[key]
    key: Any = int(last) if isinstance(place, list) else last
    place[key] += 1 if isinstance(place[key], int) else 1e-3


@pytest.mark.parametrize("part", [0, 1])
def test_a_change_of_the_recording_shows_in_its_group_and_in_no_other(part: int, recorded: Path, beside: Path) -> None:
    groups = {group for row, group in enumerate(CHANGES) if row % 2 == part}
    if groups & TOGETHER:
        groups |= TOGETHER

    def edit(about: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        for name in {name for group in groups for name in CHANGES[group]}:
            change(about, tensors, name)
        tensors["outputs/vqa/logits"] = torch.ones(2)

    rows = check(read_recording(edited(recorded / "recording.json", beside, edit)))
    expected = groups.union(*(FOLLOWS.get(group, set()) for group in groups))
    assert off(rows) == expected
    assert not_checked(rows) == {"other outputs": "nothing was compared with outputs/vqa/logits"}
    elsewhere = {
        "weights taken",
        "weights written back",
        "ranking head of matching head",
        "database: batch t",
        "database: batch i",
    }
    assert verdicts(rows).keys() == CHANGES.keys() | elsewhere | {"margin, Eq. 14", "other outputs"}


def test_weights_that_do_not_fit_are_off(recorded: Path, beside: Path) -> None:
    def more(about: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        tensors["weights/uniter.cls.weight"] = torch.ones(2)

    rows = check(read_recording(edited(recorded / "recording.json", beside, more)))
    assert {"weights taken", "weights written back"} <= off(rows)
    assert not_checked(rows) == {"outputs": "the weights do not fit"}

    def fewer(about: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        del tensors["weights/uniter.pooler.dense.bias"]

    rows = check(read_recording(edited(recorded / "recording.json", beside, fewer)))
    assert "weights" in off(rows)
    assert "recalls, corrected" in verdicts(rows)  # what needs no network is checked all the same


def test_another_network_is_off_or_not_checked(recorded: Path, beside: Path) -> None:
    def heads(about: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        about["config"]["num_attention_heads"] = 2

    found = off(check(read_recording(edited(recorded / "recording.json", beside, heads))))
    assert {
        "compact: hidden states",
        "IAIS: per pair",
        "IAIS: gradients",
        "hard texts: mining scores",
        "full rank: scores",
    } <= found

    for changes, why in (({"hidden_act": "relu"}, "hidden_act"), ({"num_attention_heads": 5}, "multiple of num_heads")):
        path = edited(recorded / "recording.json", beside, lambda about, _, changes=changes: about["config"].update(changes))
        rows = check(read_recording(path))
        assert not off(rows)
        assert why in not_checked(rows)["network"]
    with pytest.raises(InputError, match=r"config\.hidden_size"):
        check(read_recording(edited(recorded / "recording.json", beside, lambda about, _: about["config"].pop("hidden_size"))))
    with pytest.raises(InputError, match="inputs/txt_lens"):
        check(read_recording(edited(recorded / "recording.json", beside, lambda _, tensors: tensors.pop("inputs/txt_lens"))))


def test_what_a_recording_lacks_is_said(recorded: Path, tmp_path: Path) -> None:
    gone = (
        "inputs/hn_t/img_feat", "inputs/hn_select/", "inputs/adamw/", "inputs/itm_eval/", "outputs/uncompact/", "grads/margin/",
        "grads/iais_all/singular_L/",
        "outputs/compact/hidden_1", "outputs/iais_layer/", "outputs/tsa/", "outputs/margin/rank_loss_mean",
    )  # fmt: skip

    def edit(about: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.startswith(gone)]:
            del tensors[name]
        for key in ("lr_schedule", "tensors"):
            del about[key]

    rows = check(read_recording(edited(recorded / "recording.json", tmp_path, edit)))
    assert not off(rows)
    said = not_checked(rows)
    nothing = {
        "uncompact: embedding", "uncompact: hidden states", "uncompact: attention scores", "uncompact: attention maps",
        "uncompact: pooled, heads", "uncompact: ranking scores", "margin: gradients", "IAIS: by layer",
    }  # fmt: skip
    assert {group for group, why in said.items() if why == "the file records none of it"} == nothing
    some = {
        "margin, mean of hinges": "does not record outputs/margin/rank_loss_mean",
        "IAIS: gradients": "does not record grads/iais_all/singular_L",
        "compact: hidden states": "does not record outputs/compact/hidden_1",
        "mining": "hn_select", "recalls": "itm_eval", "AdamW": "inputs", "learning rate": "does not record",
        "hard images": "inputs/hn_t/img_feat", "hard texts: total": "lambda", "other outputs": "grads/hn_i/",
        "databases": "db is not there", "full rank": "db is not there",
    }  # fmt: skip
    assert said.keys() == nothing | some.keys()
    for group, why in some.items():
        assert why in said[group], group


def test_tensors_that_the_json_lists_and_the_file_lacks_are_said(recorded: Path, tmp_path: Path) -> None:
    path = edited(recorded / "recording.json", tmp_path, lambda _, tensors: tensors.pop("outputs/hn_t/L-singular/total_loss"))
    said = not_checked(list(check_files([path])[0].rows))
    assert said["file"] == "the .json lists 1 tensors that the file lacks (outputs/hn_t/L-singular/total_loss)"


def test_one_pair_alone_in_other_sizes(recorded: Path, beside: Path) -> None:
    """A recording of one pair, cut to its length: nothing is padded, and there is no mask."""
    row = 2

    def edit(about: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        words, regions = int(tensors["inputs/txt_lens"][row]), int(tensors["inputs/num_bbs"][row])
        total = words + regions
        for name in [
            name for name in tensors if name.startswith(("grads/", "outputs/margin", "outputs/iais", "outputs/uncompact"))
        ]:
            keep = re.fullmatch(r"outputs/iais_all/(singular|distributed)_[LV]/per_pair", name)
            tensor = tensors.pop(name)
            if keep:
                tensors[name] = tensor[row : row + 1]
                tensors[name.replace("per_pair", "loss")] = tensor[row].clone()
        for name in ("input_ids", "img_feat", "img_pos_feat", "txt_lens", "num_bbs"):
            size = {"input_ids": words, "img_feat": regions, "img_pos_feat": regions}.get(name)
            tensor = tensors[f"inputs/{name}"][row : row + 1]
            tensors[f"inputs/{name}"] = (tensor if size is None else tensor[:, :size]).clone()
        for name in [name for name in tensors if name.startswith("outputs/compact/")]:
            tensor = tensors[name][row : row + 1]
            if "last_attn" in name:
                tensor = tensor[:, :, :total, :total]
            elif tensor.ndim == 3:
                tensor = tensor[:, :total]
            tensors[name] = tensor.clone()
            tensors[name.replace("/compact/", "/uncompact/")] = tensors[name].clone()
        for name in ("gather_index", "attn_masks", "uncompact_attn_masks"):
            tensors[f"inputs/{name}"] = (torch.arange(total) if name == "gather_index" else torch.ones(total, dtype=torch.int64))[
                None
            ]
        for name in ("txt", "img"):
            mask = torch.zeros(1, total, dtype=torch.int64)
            mask[0, slice(1, words - 1) if name == "txt" else slice(words, total)] = 1
            tensors[f"inputs/uncompact_{name}_attn_masks"] = mask
        about["pairs_num"] = 1

    rows = check(read_recording(edited(recorded / "recording.json", beside, edit)))
    assert not off(rows)
    found = verdicts(rows)
    for group in ("packing: index", "compact: hidden states", "uncompact: attention maps", "IAIS: per pair"):
        assert found[group] == "ok", group


# ------------------------------------------------------------------------------------------------------------- UNITER's own


def test_hard_negatives_of_uniter_alone(recorded: Path, tmp_path: Path) -> None:
    for name in ("recording.json", "recording.safetensors"):
        shutil.copy(recorded / name, tmp_path)
    source = recorded / "baseline_uniter.json"

    def run(edit: Any) -> list[GroupCheck]:
        return check(read_recording(edited(source, tmp_path, edit)))

    def numbers(about: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        about["info"]["i"]["rank_loss_mean_iais_path"] += 1e-3
        about["info"]["i"]["max_abs_diff_mining_vs_correct"] = 0.0
        tensors["outputs/hn_t/rank_loss_sorted"][3] += 1e-3

    assert off(run(numbers)) == {"hard texts: right packing", "hard texts: as told", "hard images: as recorded"}

    def packing(about: dict[str, Any], tensors: dict[str, Tensor]) -> None:  # as if the released index were right
        tensors["inputs/hn_i/gather_index"] = torch.arange(13).repeat(16, 1)
        del tensors["inputs/hn_t/gather_index"]
        del about["info"]["t"]

    rows = run(packing)
    assert off(rows) == {"hard texts: as recorded", "hard texts: as told"}
    assert not_checked(rows).keys() == {"hard images: as recorded", "hard images: right packing", "other outputs"}
    assert {row.verdict for row in run(lambda _, tensors: None)} == {"ok"}

    (tmp_path / "recording.safetensors").unlink()
    rows = run(lambda _, tensors: None)
    assert [row.group for row in rows] == ["all"]
    assert "recording.safetensors is missing" in not_checked(rows)["all"]


# -------------------------------------------------------------------------------------------------------------- ISDa, recalls


def test_the_example_of_isda(recorded: Path, tmp_path: Path) -> None:
    def run(edit: Any) -> list[GroupCheck]:
        return check(read_recording(edited(recorded / "isda_example.json", tmp_path, edit)))

    assert verdicts(run(lambda about, _: None)) == {"compressed": "ok", "distance": "ok"}
    for variant in json.loads((recorded / "isda_example.json").read_text())["variants"]:
        rows = run(lambda about, _, variant=variant: about["variants"].update({variant: about["variants"][variant] + 1e-4}))
        assert off(rows) == {"distance"}
        assert variant.split()[0].rstrip(":") in rows[-1].note
    assert off(run(lambda about, _: about["prob_cps_VV"][1].__setitem__(0, 0.0734))) == {"compressed"}
    assert off(run(lambda about, _: about["objects"]["o1"]["tokens"].append(2))) == {"compressed", "distance"}

    def unknown(about: dict[str, Any], _: Any) -> None:
        about["variants"] = {"E_cosine: another": 1.0}
        del about["prob_cps_LL"], about["prob_cps_VV"]

    rows = run(unknown)
    assert not off(rows)
    assert set(not_checked(rows)) == {"compressed", "distance", "other variants"}
    with pytest.raises(InputError, match=r"objects\.o1\.regions"):
        run(lambda about, _: about["objects"]["o1"].update(regions=[9]))


def test_ties_in_the_recorded_scores_are_no_deviation() -> None:
    scores_IT, image_T = torch.tensor([[1.0, 0.0], [1.0, 2.0]]), torch.tensor([0, 1])

    def verdict(told: dict[str, float], compat: bool = False) -> str:
        return uniter_evaluation.compare_recalls("g", scores_IT, image_T, told, compat).verdict

    told = uniter_evaluation.official_recalls(scores_IT, image_T, compat=False)
    assert told["img_r1"] == 0.5  # text 0 is behind image 1, or before it
    assert verdict(told) == verdict(told | {"img_r1": 1.0}) == "ok"
    assert verdict(told | {"img_r1": 0.4}) == verdict(told | {"img_r1": 1.1}) == verdict(told | {"txt_r1": 0.5}) == "OFF"
    counted = uniter_evaluation.official_recalls(scores_IT, image_T, compat=True)
    assert verdict(counted) == "OFF"
    assert verdict(counted, compat=True) == "ok"
    assert verdict(told, compat=True) == "OFF"


def test_a_database_that_is_another_shows(recorded: Path, tmp_path: Path) -> None:
    shutil.copytree(recorded / "db", tmp_path / "db")

    def edit(about: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        about["hn_step"]["t"]["sampled_negatives"][2:4] = about["hn_step"]["t"]["sampled_negatives"][3:1:-1]
        about["hn_step"]["i"]["gt_txt_id"] = "64"
        about["db"]["sample_images"].reverse()

    path = edited(recorded / "recording.json", tmp_path, edit)
    shutil.rmtree(tmp_path / "db" / "img_db" / "toy" / "all")
    (tmp_path / "db" / "txt_db" / "copy").symlink_to(tmp_path / "db" / "txt_db" / "itm_toy.db")
    rows = check(read_recording(path))
    assert off(rows) == {"database: plain", "database: compressed", "databases"}
    assert "all is not there" in not_checked(rows)["database: all"]
    assert "2 text databases; one is needed" in next(row.note for row in rows if row.group == "databases")
    (tmp_path / "db" / "txt_db" / "copy").unlink()
    rows = check(read_recording(path))
    assert off(rows) == {"database: plain", "database: compressed", "database: batch t", "database: batch i"}
    (tmp_path / "db" / "img_db" / "toy" / "feat_th0.2_max8_min3" / "data.mdb").write_bytes(b"")
    assert "databases" in off(check(read_recording(path)))
