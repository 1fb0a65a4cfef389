"""UNITER's databases as the official readers read them, full rank over a toy split, and its recalls.

Recorded from `data/data.py`, `data/itm.py`, `inf_itm.py` and `utils/itm_eval.py`. The databases lie beside it, in `db/`.

Legend: I images, T texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datamodules.errors import InputError
from datamodules.formats.uniter.image_database import ImageDatabase
from datamodules.formats.uniter.layout import Layout
from datamodules.formats.uniter.text_database import TextDatabase
from experiments.parity.compare import (
    EQUAL,
    OUTPUT,
    STATE,
    GroupCheck,
    Tolerance,
    compare,
    not_checked,
    stacked,
)
from experiments.parity.uniter.build import Ledger, image_batch, text_batch
from lightning_modules.metrics.full_rank import FullRank
from lightning_modules.metrics.ranks import score_ranks
from lightning_modules.metrics.recalls import recalls
from lightning_modules.networks.uniter import UniterRetrieval

_WAYS = {"txt": "i2t", "img": "t2i"}  # the official txt_r: an image finds its texts; img_r: a text finds its image
_SHARE = Tolerance(1e-9)  # both sides are counts over counts
HALF = Tolerance(5e-4, scaled=True)  # the official inference keeps scores in half precision


# --------------------------------------------------------------------------------------------------------------- recalls


def official_recalls(scores_IT: Tensor, image_T: Tensor, compat: bool) -> dict[str, float]:
    """Our recalls under the official names, as shares."""
    found = {name: float(value) for name, value in recalls(score_ranks(scores_IT, image_T), compat=compat).items()}
    named = {f"{way}_r{k}": found[f"{ours}_r{k}"] / 100 for way, ours in _WAYS.items() for k in (1, 5, 10)}
    for way in _WAYS:
        named[f"{way}_r_mean"] = sum(named[f"{way}_r{k}"] for k in (1, 5, 10)) / 3
    named["r_mean"] = (named["txt_r_mean"] + named["img_r_mean"]) / 2
    return named


def compare_recalls(group: str, scores_IT: Tensor, image_T: Tensor, recorded: Mapping[str, Any], compat: bool) -> GroupCheck:
    """The official ranking is torch.topk's, which places equal scores somehow: where some tie, every order is right."""
    least = official_recalls(scores_IT, image_T, compat)
    own = image_T, torch.arange(len(image_T))
    raised_IT = scores_IT.double()
    raised_IT[own] = torch.nextafter(raised_IT[own], torch.tensor(torch.inf, dtype=torch.float64))
    most = official_recalls(raised_IT, image_T, compat)
    found = {name: min(max(float(recorded.get(name, 0)), least[name]), most[name]) for name in least}
    notes = ["counts rows as ranks"] * compat + ["some scores tie"] * (least != most)
    return compare(group, stacked(found), stacked(recorded), _SHARE, "; ".join(notes))


def recalls_of_scores(ledger: Ledger) -> None:
    """Recorded scores: recalls as published, on half precision, and corrected."""
    recording, told = ledger.recording, ledger.recording.about.get("itm_eval")
    scores_IT = recording.tensors.get("inputs/itm_eval/score_matrix_img_by_txt")
    image_T = recording.tensors.get("inputs/itm_eval/txt_to_img")
    if not told or scores_IT is None or image_T is None:
        ledger.rows.append(not_checked("recalls", "the file does not record itm_eval with its scores"))
        return
    for group, key, seen, compat in (
        ("recalls, as published", "official", scores_IT, True),
        ("recalls, half precision", "official_on_fp16_scores", scores_IT.half(), True),
        ("recalls, corrected", "corrected", scores_IT, False),
    ):
        ledger.rows.append(compare_recalls(group, seen, image_T, told.get(key, {}), compat))
    sums = {}
    for key, compat in (("meta_sum_official", True), ("meta_sum_corrected", False)):
        sums[key] = float(recalls(score_ranks(scores_IT, image_T), compat=compat)["rsum"])
    wanted = {key: told[key] for key in sums if key in told}
    ledger.rows.append(compare("Meta-Sum", stacked(sums), stacked(wanted), OUTPUT))


# -------------------------------------------------------------------------------------------------------------- databases


def databases(ledger: Ledger, network: UniterRetrieval) -> None:
    """What is read from `db/`, and all that is computed from it."""
    recording, folder = ledger.recording, ledger.recording.path.parent / "db"
    told = recording.about.get("db")
    if not told or not folder.is_dir():
        why = f"{folder} is not there" if told else "the file does not record db"
        ledger.rows += [not_checked("databases", why), not_checked("full rank", why)]
        return
    conf_th, max_bb, min_bb = (recording.value("db", key) for key in ("conf_th", "max_bb", "min_bb"))
    layout = Layout("threshold", conf_th, max_bb, min_bb)
    try:
        images = _image_folder(folder / "img_db", layout)
        plain = ImageDatabase(images, layout)
    except InputError as error:
        ledger.rows += [GroupCheck("databases", "OFF", note=str(error)), not_checked("full rank", "see databases")]
        return
    _images(ledger, images, layout, told.get("sample_images", []))
    try:
        texts = TextDatabase(_text_folder(folder / "txt_db"))
        _batches(ledger, plain, texts)
        _full_rank(ledger, network, plain, texts)
    except InputError as error:
        ledger.rows += [GroupCheck("databases", "OFF", note=str(error)), not_checked("full rank", "see databases")]


def _image_folder(folder: Path, layout: Layout) -> Path:
    found = sorted(path.parent.parent for path in folder.glob(f"*/{layout.folder}/data.mdb"))
    if len(found) != 1:
        raise InputError(f"{folder} has {len(found)} databases of layout {layout.folder}; one is needed")
    return found[0]


def _text_folder(folder: Path) -> Path:
    found = sorted(path.parent for path in folder.glob("*/data.mdb"))
    if len(found) != 1:
        raise InputError(f"{folder} has {len(found)} text databases; one is needed")
    return found[0]


def _images(ledger: Ledger, folder: Path, layout: Layout, sampled: list[str]) -> None:
    """The sampled images from every encoding, equal to the last bit."""
    packed = Layout("threshold", layout.conf_th, layout.max_bb, layout.min_bb, compressed=True)
    for title, each in (("plain", layout), ("compressed", packed), ("all", Layout("all"))):
        group = f"database: {title}"
        if not (folder / each.folder).is_dir():
            ledger.rows.append(not_checked(group, f"{folder / each.folder} is not there"))
            continue
        found = {}
        try:
            database = ImageDatabase(folder, each)
            for row, name in enumerate(sampled):
                read = database.read(name)
                if title == "all":
                    found[f"outputs/db/{row}/img_feat_all"] = torch.from_numpy(read.features_RD)
                else:
                    found[f"outputs/db/{row}/img_feat"] = torch.from_numpy(read.features_RD)
                    found[f"outputs/db/{row}/img_pos_feat"] = torch.from_numpy(read.boxes_R7)
        except InputError as error:
            ledger.rows.append(GroupCheck(group, "OFF", note=str(error)))
            continue
        ledger.add(group, found, EQUAL)


def _batches(ledger: Ledger, images: ImageDatabase, texts: TextDatabase) -> None:
    """The official data sets' recorded batches of one step, made again from the ids they sampled."""
    recording = ledger.recording
    for side in ("t", "i"):
        prefix, group = f"inputs/hn_{side}", f"database: batch {side}"
        if side not in recording.about.get("hn_step", {}) or f"{prefix}/input_ids" not in recording.tensors:
            ledger.rows.append(not_checked(group, "the file does not record which items it has"))
            continue
        names, ids = ([recording.value("hn_step", side, key)] for key in ("gt_img", "gt_txt_id"))
        (names if side == "t" else ids).extend(recording.value("hn_step", side, "sampled_negatives"))
        tokens, _ = _tokens(texts, ids)
        features, boxes, _ = _regions(images, names)
        found = {f"{prefix}/input_ids": tokens, f"{prefix}/img_feat": features, f"{prefix}/img_pos_feat": boxes}
        ledger.add(group, found, EQUAL)


def _tokens(texts: TextDatabase, ids: list[str]) -> tuple[Tensor, Tensor]:
    """[N, T] with [CLS] and [SEP], padded with 0, and the lengths."""
    words = texts.vocabulary
    rows = [torch.tensor([words.cls, *texts.read(identity).input_ids, words.sep]) for identity in ids]
    lengths = torch.tensor([len(row) for row in rows])
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), lengths


def _regions(images: ImageDatabase, names: list[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Features [N, R, F] and boxes [N, R, 7], padded with 0, and the numbers of regions."""
    read = [images.read(name) for name in names]
    features = [torch.from_numpy(each.features_RD) for each in read]
    boxes = [torch.from_numpy(each.boxes_R7) for each in read]
    padded = [torch.nn.utils.rnn.pad_sequence(each, batch_first=True) for each in (features, boxes)]
    return padded[0], padded[1], torch.tensor([len(each) for each in features])


def _full_rank(ledger: Ledger, network: UniterRetrieval, images: ImageDatabase, texts: TextDatabase) -> None:
    """Every text against every image, from the files to the recalls."""
    told = ledger.recording.about.get("eval_db")
    if not told:
        ledger.rows.append(not_checked("full rank", "the file does not record eval_db"))
        return
    ids, names = (ledger.recording.value("eval_db", key) for key in ("txt_ids", "img_ids"))
    row_of = {name: row for row, name in enumerate(names)}
    owners = [row_of.get(texts.read(identity).image_name) for identity in ids]
    if None in owners:
        raise InputError(f"{texts.path}: text {ids[owners.index(None)]} is about an image that eval_db does not name")
    image_T = torch.tensor(owners)
    with torch.no_grad():
        full = FullRank(len(names), len(ids), progress=False)
        full.add_images(network.embed_images(image_batch(*_regions(images, names))), torch.arange(len(names)))
        full.add_texts(network.embed_texts(text_batch(*_tokens(texts, ids))), torch.arange(len(ids)), image_T)
        full.compute(network)
    scores_TI = full.scores().T
    ledger.add("full rank: scores", {"outputs/eval_db/score_matrix_fp32": scores_TI}, STATE)
    ledger.add("full rank: scores, half", {"outputs/eval_db/score_matrix_fp16": scores_TI}, HALF)
    # Rounding can put near-equal scores in another order in half precision; so the recalls are of the recorded halves.
    half = ledger.recording.tensors.get("outputs/eval_db/score_matrix_fp16")
    seen = scores_TI if half is None or half.shape != scores_TI.shape else half
    ledger.rows.append(compare_recalls("full rank: recalls", seen.T, image_T, told.get("official", {}), compat=True))
