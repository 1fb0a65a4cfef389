"""I-Tuning and ClipCap through the same commands: what a run holds, NoCaps, other starts, two processes, kills, bad input."""

from __future__ import annotations

import json
import math
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from end_to_end import (
    BRIDGED,
    TEST,
    VAL,
    captioner,
    captions,
    crosslight,
    forked,
    metrics,
    results,
    run_by_one_and_by_two,
    succeed,
    weights,
)
from forks import ended
from kill_switch import note_captions
from PIL import Image

import lightning_modules
from datamodules.errors import InputError
from datamodules.flickr30k import Flickr30k
from lightning_modules.metrics.captions.store import CaptionStore
from lightning_modules.networks.captioner import Written

STEPPED = 6
NAMES = {"bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider"}
ROWS = [("i_tuning", ()), ("lora_both", BRIDGED)]
EXACT = ("--model.init_args.optimization.lr=0.005", "--model.init_args.optimization.eps=1e-4")


def evaluation(run: Path, name: str = "flickr30k") -> dict[str, Any]:
    (found,) = (each for each in results(run)["evaluations"] if each["data"] == name)
    return found


# ------------------------------------------------------------------------------------------------- what a run holds


def test_results_have_caption_metrics_of_every_data_set(i_tuning_run: Path, world: Path) -> None:
    found = results(i_tuning_run)
    assert (found["status"], found["fit"]["steps"], found["fit"]["monitor"]) == ("finished", STEPPED, "val/cider")
    assert found["cost"]["pairs"] == 2 * 20 * STEPPED
    assert found["cost"]["images"] < found["cost"]["pairs"] / 3  # captions of an image come together
    own = evaluation(i_tuning_run)
    assert own["metrics"].keys() == NAMES
    remarks = own["notes"].pop("remarks")
    assert f"document frequencies of {TEST} images alone" in remarks["cider"]
    assert "captions reached max_new_tokens (" in remarks["decoding"]
    assert own["notes"] == {
        "tokenizer": "simple", "unavailable": {}, "captions_file": "captions/flickr30k-test.json",
        "columns": {"bleu_4": "B@4", "rouge_l": "ROUGE-L", "cider": "CIDEr"},
    }  # fmt: skip
    each = np.load(i_tuning_run / own["per_query_file"])
    assert own["metrics"]["cider"] == pytest.approx(each["cider"].mean(), rel=1e-6)
    assert len(each["cider"]) == TEST

    nocaps = evaluation(i_tuning_run, "nocaps_val")
    assert (nocaps["split"], nocaps["stage"]) == ("val", "test")
    domains = {f"{domain}/{name}" for domain in ("in-domain", "near-domain", "out-domain") for name in NAMES}
    assert nocaps["metrics"].keys() == NAMES | domains
    hidden = evaluation(i_tuning_run, "nocaps_test")  # its references are not public
    assert hidden["metrics"] == {}
    assert np.load(i_tuning_run / hidden["per_query_file"]).files == ["log_prob"]
    images = json.loads((world / "nocaps" / "nocaps_test_image_info.json").read_text())["images"]
    assert sorted(captions(i_tuning_run, "nocaps_test")) == sorted(image["id"] for image in images)  # what EvalAI wants


def test_captions_are_the_models_and_their_scores_those_of_score(i_tuning_run: Path, world: Path, tmp_path: Path) -> None:
    written = captions(i_tuning_run)
    assert len(written) == TEST
    assert len(set(written.values())) > 1  # it looks
    model = lightning_modules.load(i_tuning_run)
    data = Flickr30k(str(world / "flickr30k"), num_workers=0, eval_batch_size=3)
    data.connect(model.network.inputs)
    again: dict[Any, str] = {}
    batches: list[Written] = []
    for batch in data.evaluation_loaders("test")[0]:
        ids = [int(each) for each in batch.image_ids]
        batches += model.network.write(model.network.encode_images(batch), model.decoding)
        again |= dict(zip(ids, [each.text for each in batches[-len(ids) :]], strict=True))
    assert again == written
    rows = json.loads((i_tuning_run / "captions" / "flickr30k-test.beside.json").read_text())
    log_probs = np.load(i_tuning_run / evaluation(i_tuning_run)["per_query_file"])["log_prob"].tolist()
    assert [row["log_prob"] for row in rows] == pytest.approx(log_probs, abs=1e-5)
    assert [each.log_prob for each in batches] == pytest.approx(log_probs, abs=1e-4)
    out = tmp_path / "scores.json"
    file = i_tuning_run / "captions" / "flickr30k-test.json"
    references = world / "flickr30k" / "dataset_flickr30k.json"
    succeed("score", str(file), "--references", str(references), "--tokenizer", "simple", "--metrics", "bleu,rouge_l,cider",
            "--out", str(out))  # fmt: skip
    scored = json.loads(out.read_text())["metrics"]
    values = evaluation(i_tuning_run)["metrics"]
    assert {name: scored[name] for name in NAMES} == pytest.approx(values, rel=1e-5, abs=1e-7)


def test_a_sampled_caption_depends_on_seed_and_image_alone(i_tuning_run: Path, tmp_path: Path) -> None:
    """Not on the batch, nor on which images are tested with it."""
    found = []
    for name, more in (("one", ("eval_batch_size=1",)), ("few", ("eval_batch_size=4", "limits.test=5"))):
        options = (*(f"--data.init_args.{option}" for option in more), "--model.init_args.decoding.sample=true")
        best = results(i_tuning_run)["fit"]["best_checkpoint"]
        succeed("test", "-c", str(i_tuning_run / "config.yaml"), f"--ckpt_path={i_tuning_run / best}", *options,
                "--model.init_args.decoding.temperature=2", f"--run_dir={tmp_path / name}")  # fmt: skip
        found.append(captions(tmp_path / name))
    assert len(found[1]) == 5
    assert len(set(found[1].values())) > 2
    assert found[1].items() <= found[0].items()


def test_every_validation_leaves_captions_beside_references(i_tuning_run: Path) -> None:
    files = sorted((i_tuning_run / "captions").glob("val-step-*.json"))
    assert [file.name for file in files] == ["val-step-000003.json", "val-step-000006.json"]
    rows = json.loads(files[-1].read_text())
    assert len(rows) == VAL
    assert {len(row["references"]) for row in rows} == {5}
    assert np.mean([row["scores"]["cider"] for row in rows]) == pytest.approx(metrics(i_tuning_run, "val/cider")[-1][1], abs=1e-5)
    assert all(Path(row["file"]).exists() for row in rows)
    (table, *_) = (i_tuning_run / "wandb").glob("offline-run-*/files/media/table/val/captions_*.table.json")
    content = json.loads(table.read_text())
    assert content["columns"] == ["image", "picture", "caption", "references"]
    assert len(content["data"]) == VAL


def test_table_has_caption_columns(i_tuning_run: Path) -> None:
    lines = succeed("table", str(i_tuning_run)).out.splitlines()
    header = [cell.strip() for cell in lines[0].split("|")]
    assert {"B@4", "ROUGE-L", "CIDEr", "in CIDEr"} <= set(header)
    assert not {"METEOR", "rsum"} & set(header)
    cells = dict(zip(header, (cell.strip() for cell in lines[2].split("|")), strict=True))
    assert cells["CIDEr"] == f"{100 * evaluation(i_tuning_run)['metrics']['cider']:.1f}"


# --------------------------------------------------------------------------------------------------- other rows, starts


def test_fine_tuning_starts_from_another_runs_adapter(i_tuning_run: Path, world: Path, tmp_path: Path) -> None:
    """Captions, then Visual Genome, which has no split to validate on; VLP is the same the other way round."""
    genome = (
        "-c", "configs/data/visual_genome.yaml", f"--data.init_args.root={world / 'visual_genome'}",
        "--data.init_args.num_workers=0", "--data.init_args.batch_size=8", "--trainer.max_steps=1",
        "--trainer.val_check_interval=2",
    )  # fmt: skip
    answer = crosslight(
        "fit", *captioner("i_tuning", *genome, f"--model.init_args.init_from={i_tuning_run}", f"--run_dir={tmp_path / 'vg'}")
    )
    assert answer.status == 0, answer.error
    assert results(tmp_path / "vg")["parent"] == str(i_tuning_run)


def test_features_on_disk_train_the_same(i_tuning_run: Path, tmp_path: Path) -> None:
    options = (f"--model.init_args.features.folder={tmp_path / 'features'}", "--model.init_args.features.dtype=float32")
    succeed("run", *captioner("i_tuning", *options, f"--run_dir={tmp_path / 'run'}"))
    assert [folder.name.rpartition("-")[0] for folder in sorted((tmp_path / "features").iterdir())] == [
        "flickr30k-train", "flickr30k-val",
    ]  # fmt: skip
    for column in ("train/loss", "val/cider"):
        ours, theirs = metrics(tmp_path / "run", column), metrics(i_tuning_run, column)
        assert [value for _, value in ours] == pytest.approx([value for _, value in theirs], rel=1e-5), column
    assert captions(tmp_path / "run") == captions(i_tuning_run)


@pytest.mark.parametrize("row", ["clipcap", "i_tuning_half"])
def test_other_rows_run(row: str, tmp_path: Path) -> None:
    more = ("--model.init_args.adapter.init_args.num_heads=2",) if row == "clipcap" else ()
    succeed(
        "run", *captioner(row, *more, "--trainer.max_steps=1", "--trainer.val_check_interval=2", f"--run_dir={tmp_path / row}")
    )
    assert math.isfinite(evaluation(tmp_path / row)["metrics"]["cider"])
    keys = set(weights(tmp_path / row, "best.ckpt"))
    assert {key.split(".")[1] for key in keys} == {"prefix" if row == "clipcap" else "i_tuning"}


# ------------------------------------------------------------------------------------------------ processes and kills


@pytest.mark.parametrize(("row", "options"), ROWS, ids=["i_tuning", "lora_both"])
def test_two_processes_train_and_caption_as_one(row: str, options: tuple[str, ...], tmp_path: Path) -> None:
    def command(folder: str, *more: str) -> list[str]:
        return captioner(row, *options, *EXACT, "--trainer.max_steps=3", f"--run_dir={tmp_path / folder}", *more)

    run_by_one_and_by_two(command, tmp_path)
    one, both = tmp_path / "one", tmp_path / "two"
    assert results(both)["provenance"]["device"]["world_size"] == 2
    assert results(both)["cost"]["pairs"] == results(one)["cost"]["pairs"] == 3 * 2 * 20
    for column in ("train/loss", "train/tokens", "val/cider", "final/flickr30k/test/cider"):
        ours, theirs = metrics(both, column), metrics(one, column)
        assert [step for step, _ in ours] == [step for step, _ in theirs], column
        assert [value for _, value in ours] == pytest.approx([value for _, value in theirs], rel=1e-5), column
    state = weights(both, "last.ckpt")
    for key, tensor in weights(one, "last.ckpt").items():
        torch.testing.assert_close(state[key], tensor, rtol=1e-4, atol=5e-5, msg=lambda text, key=key: f"{key}: {text}")
    assert captions(both) == captions(one)  # each image once
    queries = [dict(np.load(run / "per_query" / "flickr30k-test.npz")) for run in (one, both)]
    for name, values in queries[0].items():
        # a log-probability is rounded as its batch is padded
        same = (
            np.allclose(queries[1][name], values, atol=1e-4) if name == "log_prob" else np.array_equal(queries[1][name], values)
        )
        assert same, name


@pytest.mark.parametrize(("row", "options"), ROWS, ids=["i_tuning", "lora_both"])
def test_killed_in_training_and_while_it_writes_captions_it_ends_as_if_left_alone(
    row: str, options: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, with sampled captions: killed when 5 of 6 steps are done, and in the test after 2 of 6 batches."""
    run, before, after, log = (tmp_path / name for name in ("run", "before", "after", "log"))
    sampled = ("--model.init_args.decoding.sample=true", "--model.init_args.decoding.num_beams=1")

    def command(folder: Path) -> list[str]:
        return captioner(
            row, *options, *sampled, "--checkpoint.every_n_steps=3", "--trainer.callbacks=kill_switch.KillSwitch",
            "--trainer.callbacks.step=5", f"--trainer.callbacks.spent={tmp_path / 'power cut'}", f"--run_dir={folder}",
        )  # fmt: skip

    def is_killed(first: Callable[[], None] | None) -> None:
        with forked(log, "run", *command(run), first=first) as process:
            status, printed = ended(process, log)
        assert status == -signal.SIGKILL, printed

    is_killed(None)
    is_killed(partial(note_captions, before, 2))
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == STEPPED
    with monkeypatch.context() as patch:
        patch.setattr(CaptionStore, "add", CaptionStore.add)  # puts it back afterwards
        note_captions(after)
        succeed("run", *command(run))
    noted = [int(row) for file in (before, after) for row in file.read_text().split()]
    assert sorted(noted) == list(range(TEST))  # every caption once
    assert len(before.read_text().splitlines()) == 2
    assert not list((run / "captions").glob("*.parts"))

    whole = tmp_path / "whole"
    succeed("run", *command(whole))
    assert results(run)["attempts"] == 3
    assert captions(run) == captions(whole)
    assert results(run)["evaluations"] == results(whole)["evaluations"]
    for column in ("train/loss", "val/cider"):
        assert metrics(run, column) == metrics(whole, column), column
    for key, tensor in weights(whole, "last.ckpt").items():
        assert torch.equal(weights(run, "last.ckpt")[key], tensor), key


# --------------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model.init_args.scoring.metrics=[cidre]"], "cidre"),
        (["--model.init_args.decoding.num_beams=0"], "num_beams (0)"),
        (["--model.init_args.scoring.required=[spice]", "--model.init_args.tuning=frozen", "--model.init_args.adapter=null"],
         "spice is required and unavailable"),
        (["--model.init_args.decoding.max_new_tokens=100"], "positions"),
        (["--model.init_args.features.folder=x", "--model.init_args.eval_frozen=false"], "set eval_frozen to true"),
    ],
)  # fmt: skip
def test_bad_options_are_one_line(options: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSLIGHT_CACHE", str(tmp_path / "nothing installed"))
    answer = crosslight("run", *captioner("i_tuning", *options, f"--run_dir={tmp_path / 'run'}"))
    assert answer.status == 2
    assert said in answer.error
    assert "Traceback" not in answer.error


def test_shares_of_attention_are_those_of_a_naive_twin_and_reach_the_figure(
    i_tuning_run: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Word by word, from the maps that `token_maps` gives one caption alone; what the report reads of the file is their mean."""
    from datamodules.flickr30k_entities import Flickr30kEntities
    from experiments.analysis.grid import covered_area, share_in_box
    from experiments.analysis.grounding import naming
    from experiments.analysis.run_maps import make_shares
    from experiments.analysis.stored_maps import BoxedMaps, stored, stored_shares
    from experiments.analysis.word_maps import token_maps
    from experiments.papers.schema import Column
    from experiments.report.collect import measure
    from experiments.runs.store import RunFolders, read_run

    folder = tmp_path / "run"
    shutil.copytree(i_tuning_run, folder)
    assert stored_shares(folder) is None
    file = make_shares(folder, images=3)
    found = stored_shares(folder)
    assert found is not None
    network = lightning_modules.load(folder).network
    data = Flickr30kEntities(root=str(world / "flickr30k"), split="karpathy", num_workers=0, eval_batch_size=1)
    data.connect(network.inputs)
    expected = []
    for batch in list(data.evaluation_loaders("test")[0])[:3]:
        record = data.records("test")[int(batch.index_B[0])]
        with torch.no_grad():
            features = network.encode_images(batch)
        for caption in record.captions:
            ids, names = naming(network, caption)
            (maps,) = token_maps(network, features, [ids])
            area = covered_area(network.inputs.image, *Image.open(record.path).size)
            expected += [share_in_box(maps.maps_TYX[token], boxes, area) for token, boxes in names]
    drawn = [maps for maps in stored(folder) if isinstance(maps, BoxedMaps)]
    assert len(drawn) == 3
    for maps, record in zip(drawn, data.records("test"), strict=False):
        (caption,) = (each for each in record.captions if each.text == maps.caption)
        assert maps.words == tuple(caption.text[each.start : each.end] for each in caption.phrases if each.boxes)
        assert {round(float(share), 5) for share in maps.inside_K} <= {round(float(share), 5) for share in found.inside_W}
    assert len(found.inside_W) == len(expected) > 10
    np.testing.assert_allclose(found.inside_W, [each.attention for each in expected], atol=1e-5)
    np.testing.assert_allclose(found.area_W, [each.area for each in expected])
    assert sorted(set(found.image_W.tolist())) == [0, 1, 2]
    assert not np.allclose(found.elsewhere_W, found.inside_W)
    column = Column("inside", "inside", attention="inside", factor=100)
    measured = measure(read_run(folder), column, RunFolders([tmp_path]))
    assert measured is not None
    assert measured.value == pytest.approx(100 * found.inside_W.mean())
    assert measured.by_image is not None
    assert measured.by_image.images == 3
    assert measured.code is not None
    by_gradient = Column("pointed", "pointed", gradient="pointed", factor=100)
    assert measure(read_run(folder), by_gradient, RunFolders([tmp_path])) is None
    section = {"class_path": "datamodules.flickr30k_entities.Flickr30kEntities",
               "init_args": {"root": str(world / "flickr30k"), "num_workers": 0, "limits": {"test": 2}}}  # fmt: skip
    (tmp_path / "entities.yaml").write_text(yaml.safe_dump({"data": section}))
    said = succeed("ground", str(folder), "--by", "gradient", "--data", str(tmp_path / "entities.yaml")).out
    gradient = stored_shares(folder, "gradient")
    assert gradient is not None
    assert f"{len(gradient.image_W)} words of reference captions that name a thing with boxes, 2 images" in said
    assert f"pointing game           {100 * gradient.pointed_W.mean():6.1f}  (" in said
    measured = measure(read_run(folder), by_gradient, RunFolders([tmp_path]))
    assert measured is not None
    assert measured.value == pytest.approx(100 * gradient.pointed_W.mean())
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match=r"shares\.npz is no sound .*Delete it: `report --maps` makes it again"):
        stored_shares(folder)
