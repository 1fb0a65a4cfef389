"""Run folders as the commands write them, with made-up numbers: for tests of the report, and to look at one.

python tests/support/fake_runs.py OUT [--scale miniature] [--seeds 0 1 2]    fills OUT for all exhibits
"""

from __future__ import annotations

import argparse
import csv
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.analysis.stored_maps import SHARES_FILES, WordShares, store_map
from experiments.papers.catalogue import exhibit_names, read_exhibit
from experiments.papers.plan import PlannedRun, plan
from experiments.papers.schema import SCALES, Scale
from lightning_modules.checkpoints.run_folder import RESULTS_SCHEMA

IMAGES, CAPTIONS = 96, 5


def ranks(generator: np.random.Generator, quality: float, images: int = IMAGES) -> dict[str, np.ndarray]:
    """Per-query arrays of a retrieval test; `quality` 0 to 1 is about R@1."""
    image_rank = generator.geometric(quality, images)
    text_rank = generator.geometric(quality * 0.8, images * CAPTIONS)
    owner = np.arange(images).repeat(CAPTIONS)
    texts = np.arange(images * CAPTIONS)
    return {
        "i2t_image_index": np.arange(images), "i2t_rank": image_rank,
        "t2i_text_index": texts, "t2i_image_index": owner, "t2i_rank": text_rank,
    }  # fmt: skip


def recalls(arrays: Mapping[str, np.ndarray]) -> dict[str, float]:
    found = {f"{side}_r{k}": 100.0 * float((arrays[f"{side}_rank"] <= k).mean()) for side in ("i2t", "t2i") for k in (1, 5, 10)}
    return {**found, "rsum": sum(found.values()), "mean_recall": sum(found.values()) / 6, "i2t_medr": 2.0}


def captions(generator: np.random.Generator, quality: float, images: int = IMAGES) -> dict[str, np.ndarray]:
    return {name: generator.gamma(4, quality / 4, images) for name in ("cider", "rouge_l")}


def write_run(
    folder: Path,
    arrays: Mapping[str, Mapping[str, np.ndarray]],
    *,
    metrics: Mapping[str, float] | None = None,
    cost: Mapping[str, float] | None = None,
    seed: int = 0,
    scale: str = "miniature",
    status: str = "finished",
    error: str | None = None,
    name: str = "run",
    logged: Mapping[str, Sequence[float]] | None = None,
    fingerprint: str = "0862bb3fdcec0032",
) -> Path:
    """A run folder with per-query arrays by data set; metrics are computed from them, `metrics` are further ones."""
    (folder / "per_query").mkdir(parents=True)
    evaluations = []
    for data, each in arrays.items():
        values = recalls(each) if "i2t_rank" in each else {key: float(scores.mean()) for key, scores in each.items()}
        np.savez_compressed(folder / f"per_query/{data}-test.npz", **each)
        evaluations.append(
            {"data": data, "split": "test", "stage": "test", "protocol": "made up", "metrics": {**values, **(metrics or {})},
             "per_query_file": f"per_query/{data}-test.npz"}
        )  # fmt: skip
    results: dict[str, Any] = {
        "schema": RESULTS_SCHEMA, "status": status, "attempts": 1, "command": "run", "name": name,
        "config_hash": "0123456789ab", "started": "2026-11-21T15:32:55+00:00", "finished": "2026-11-21T15:40:00+00:00",
        "seconds": 425.0, "seed": seed, "scale": scale, "error": error,
        "evaluations": evaluations if status == "finished" else [],
        "provenance": {
            "git": {"revision": "148bf7a" + 33 * "0", "dirty": False}, "versions": {"python": "3.11.7", "torch": "2.15.0"},
            "device": {"host": "vm", "kind": "cpu", "name": "AMD EPYC", "precision": "32-true", "world_size": 1},
        },
        "data": {data: {"kind": "Made", "fingerprint": fingerprint, "splits": {"test": {"images": IMAGES}}} for data in arrays},
        "fit": {"steps": 100, "epochs": 10}, "cost": dict(cost or {}),
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results))
    if logged:
        steps = max(len(values) for values in logged.values())
        with (folder / "metrics.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["step", "epoch", *logged])
            for step in range(steps):
                writer.writerow([10 * step, step / 10, *(values[step] for values in logged.values())])
    return folder


def fill(root: Path, names: Sequence[str], scale: Scale, seeds: Sequence[int], skip: Sequence[str] = ()) -> list[PlannedRun]:
    """Every planned run of the exhibits as a finished run; of names that end with one of `skip` it failed or is not there."""
    wanted: dict[str, dict[str, set[str]]] = {}
    logged: dict[str, set[str]] = {}
    looked_into: set[tuple[str, str]] = set()
    for name in names:
        paper, exhibit = name.partition("/")[0], read_exhibit(name)
        for variant in exhibit.variants:
            for role, run in variant.runs.items():
                of_run = wanted.setdefault(f"{paper}/{run}", {})
                for column in exhibit.columns:
                    if column.run == role and column.metric is not None:
                        of_run.setdefault(column.data or "", set()).add(column.metric)
                for by in SHARES_FILES:
                    if any(getattr(column, by) for column in exhibit.columns):
                        looked_into.add((by, f"{paper}/{run}"))
                if exhibit.figure is not None:
                    logged.setdefault(f"{paper}/{run}", set()).update(exhibit.figure.logged)
    planned = plan(names, scale, seeds)
    for number, run in enumerate(planned):
        folder = root / run.folder_name
        generator = np.random.default_rng(zlib.crc32(run.key.encode()))
        quality = 0.2 + 0.5 * (zlib.crc32(run.names[0].encode()) % 97) / 97
        if any(run.names[0].endswith(end) for end in skip):
            if number % 3:
                bad = "oom" if number % 3 == 1 else "failed"
                error = "out of memory: CUDA <24 GiB> & more" if bad == "oom" else 'ValueError: a "quoted" <b>cause</b>'
                write_run(folder, {}, status=bad, error=error, seed=run.seed, scale=scale, name=run.names[0].partition("/")[2])
            continue
        data: dict[str, dict[str, np.ndarray]] = {}
        further: dict[str, float] = {}
        needs: dict[str, set[str]] = {}
        for name in run.names:
            for set_name, metrics in wanted.get(name, {}).items():
                needs.setdefault(set_name, set()).update(metrics)
        for set_name, metrics in sorted(needs.items()):
            captioned = any(metric.split("/")[-1] in ("cider", "spice", "bleu_4", "meteor", "rouge_l") for metric in metrics)
            data[set_name or "world"] = captions(generator, quality) if captioned else ranks(generator, quality)
            known = {**recalls(ranks(generator, 0.5)), "cider": 0.0, "rouge_l": 0.0}
            further |= {metric: float(generator.gamma(4, quality / 10)) for metric in metrics if metric not in known}
        columns = sorted({column for name in run.names for column in logged.get(name, ())})
        slope = np.linspace(0, 1, 12)
        lines = {column: list(quality * np.exp(-2 * slope) + generator.normal(0, 0.02, 12)) for column in columns}
        cost = {
            "tunable_parameters": int(2e5 * (1 + 9 * quality)), "total_parameters": 1033345, "tunable_percent": 100 * quality,
            "adapter_parameters": 200000, "peak_memory_bytes": int(4e7 * (1 + quality)), "train_seconds": 37.5,
            "seconds_per_epoch": 4 + 2 * float(generator.random()), "pairs_per_second": 120.0 + 9 * float(generator.random()),
        }  # fmt: skip
        write_run(
            folder,
            data,
            metrics=further,
            cost=cost,
            seed=run.seed,
            scale=scale,
            logged=lines,
            name=run.names[0].partition("/")[2],
        )
        for by, file in SHARES_FILES.items():
            if looked_into.isdisjoint((by, name) for name in run.names):
                continue
            inside_W = generator.uniform(0.2, 0.9, 40)
            image_W, inside_LW, patches_W = np.arange(40) // 4, np.stack([inside_W / 2, inside_W]), 2 + 20 * inside_W
            shares = WordShares(
                image_W, np.arange(2), inside_LW, inside_W / 3, inside_W / 2, patches_W, image_W, "f", "6 x 6 patches, made up",
                (inside_W > 0.5).astype(float), inside_W / 3,
            )  # fmt: skip
            store_map(folder, file, shares)
        if any("cider" in metrics for metrics in needs.values()) or not needs:
            write_beside(folder, next(iter(data), "world"), generator, root)
    return planned


def write_beside(folder: Path, data: str, generator: np.random.Generator, root: Path) -> None:
    """captions/DATA-test.beside.json of four images."""
    (folder / "captions").mkdir()
    entries = []
    for image in range(4):
        picture = root / f"picture-{image}.png"
        if not picture.exists():
            colors = np.random.default_rng(image).integers(0, 255, (6, 8, 3), dtype=np.uint8)
            Image.fromarray(colors).resize((320, 240)).save(picture)
        caption = " ".join(generator.choice(["a", "red", "cone", "on", "the", "<snow>", "house", "& sky"], 6))
        entries.append(
            {"image_id": str(image), "file": str(picture), "caption": caption, "references": ["A red cone."] * 5,
             "scores": {"cider": float(generator.random())}}
        )  # fmt: skip
    (folder / "captions" / f"{data}-test.beside.json").write_text(json.dumps(entries))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--scale", choices=SCALES, default="miniature")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--skip", nargs="*", default=[])
    options = parser.parse_args()
    print(len(fill(options.out, exhibit_names(), options.scale, options.seeds, options.skip)), "planned runs")
