"""Search in an index: exact by a matrix product over the mapped file; approximate (usearch) with exact scores of its candidates.

    python benchmarks/search.py --out benchmarks/results/search.json

Vectors are random, with the statistics of trained ones: images and captions of rendered scenes go through the miniature of
BEiT-3 that the package ships, and images and queries are drawn from the normal distributions with their means and covariances,
then made unit vectors. Width 96 is the miniature's own. For other widths the eigenvalues of both covariances are stretched over
the dimensions, and the lengths of the means and their cosine are kept. Such vectors have no clusters beyond that.

Each row is measured in a process of its own that imports no torch. Milliseconds are of one query alone, with its ten best sorted:
the mean over all queries of the fastest round, since the machine may be busy. Memory is what the process holds itself (anonymous)
and what of the mapped files is in memory (file, which the system takes back when it needs it).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# The file is run by its path: the packages beside this folder must be found without an installation, too.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import harness
from experiments.serving import neighbors
from experiments.serving.index import LABEL, ImageIndex, Label, generation_folder

TOP, BLOCK = 10, 50_000
Array = NDArray[np.float32]


# ------------------------------------------------------------------------------------------------------------------ vectors


def trained(scenes: int) -> tuple[Array, Array]:
    """Vectors of the images and captions of rendered scenes, by the miniature of BEiT-3."""
    from datamodules.miniworld.write import write_world
    from lightning_modules.loading import build

    with tempfile.TemporaryDirectory() as folder:
        world = write_world(Path(folder) / "world", scenes=scenes, seed=5)
        sizes = {"image_size": 96, "width": 96, "num_layers": 3, "num_heads": 3, "ffn_width": 384, "patch_size": 16}
        text = {"vocab_size": 320, "text_positions": 64, "tokenizer": str(world / "tokenizer"), "max_tokens": 48}
        network = {
            "class_path": "lightning_modules.networks.beit3.BEiT3Retrieval",
            "init_args": {**sizes, **text, "weights": "miniature:beit3_base"},
        }
        section = {
            "class_path": "lightning_modules.retrieval.RetrievalModule",
            "init_args": {"network": network, "tuning": "frozen"},
        }
        model: Any = build(section)
        captions = json.loads(next((world / "coco").rglob("captions_train2014.json")).read_text())["annotations"]
        images = sorted((world / "coco").rglob("*.jpg"))
        return model.encode_images(images).numpy(), model.encode_texts([each["caption"] for each in captions]).numpy()


def stretched(vectors_ND: Array, width: int) -> tuple[float, Array]:
    """The length of the mean, and the standard deviations along `width` axes whose variances add up to what they did."""
    variances = np.linalg.eigvalsh(np.cov(vectors_ND.T))[::-1].clip(1e-12)
    places = np.linspace(0, len(variances) - 1, width)
    wide = np.exp(np.interp(places, np.arange(len(variances)), np.log(variances)))
    return float(np.linalg.norm(vectors_ND.mean(0))), np.sqrt(wide * variances.sum() / wide.sum()).astype(np.float32)


class Source:
    """Draws unit vectors like those of images, or of texts.

    Args:
        images_ND: Trained ones.
        texts_ND: Likewise.
        width: D of what is drawn.
    """

    def __init__(self, images_ND: Array, texts_ND: Array, width: int) -> None:
        self._of: dict[str, tuple[Array, Array]] = {}  # mean, and what is multiplied with normal numbers
        means = images_ND.mean(0), texts_ND.mean(0)
        cosine = float(means[0] @ means[1] / np.linalg.norm(means[0]) / np.linalg.norm(means[1]))
        for kind, vectors_ND in (("images", images_ND), ("texts", texts_ND)):
            if width == vectors_ND.shape[1]:
                factor = np.linalg.cholesky(np.cov(vectors_ND.T) + 1e-9 * np.eye(width)).astype(np.float32).T
                self._of[kind] = vectors_ND.mean(0), factor
                continue
            length, deviations = stretched(vectors_ND, width)
            mean = np.zeros(width, np.float32)
            direction = (1.0, 0.0) if kind == "images" else (cosine, (1 - cosine**2) ** 0.5)
            mean[-2:] = length * np.array(direction)  # where variances are smallest
            self._of[kind] = mean, deviations

    def draw(self, kind: str, number: int, rng: np.random.Generator) -> Array:
        mean, factor = self._of[kind]
        normal = rng.standard_normal((number, len(mean)), dtype=np.float32)
        vectors = mean + (normal @ factor if factor.ndim == 2 else normal * factor)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def write_index(folder: Path, source: Source, count: int, width: int, seed: int) -> dict[str, float]:
    """An index of so many drawn vectors with approximate search, and what making it took."""
    place = generation_folder(folder, 1)
    place.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    wall, cpu = harness.clock()
    vectors_ND = np.lib.format.open_memmap(place / "vectors.npy", "w+", np.float32, (count, width))
    for start in range(0, count, BLOCK):
        vectors_ND[start : start + BLOCK] = source.draw("images", min(BLOCK, count - start), rng)
    vectors_ND.flush()
    names = [f"{number:08d}.jpg".encode() for number in range(count)]
    np.save(place / "names.npy", np.frombuffer(b"".join(names), np.uint8))
    np.save(place / "name_ends.npy", np.cumsum([len(name) for name in names]))
    digests_N = rng.integers(0, 256, (count, 16), np.uint8).view("S16").ravel()
    np.save(place / "digests.npy", digests_N)
    drawn = time.perf_counter() - wall, time.process_time() - cpu
    (folder / LABEL).write_text(json.dumps(asdict(Label("random", (), "none", str(folder), generation=1, count=count, ann=True))))
    wall, cpu = harness.clock()
    neighbors.write(place / neighbors.FILE, np.load(place / "vectors.npy", "r"), digests_N, Path("none"))
    wall_after, cpu_after = harness.clock()
    return {"files_s": drawn[0], "ann_wall_s": wall_after - wall, "ann_cpu_s": cpu_after - cpu}


# ------------------------------------------------------------------------------------------------------------------- worker


def resident() -> dict[str, float]:
    """MiB of this process."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(fields[key].split()[0]) / 1024 for name, key in (("anonymous", "RssAnon"), ("file", "RssFile"))}


def work(folder: Path, ann: bool, rounds: int) -> dict[str, Any]:
    """Search with the queries beside an index; what it cost and what it found."""
    before = resident()
    started = time.perf_counter()
    index = ImageIndex(folder)
    queries_QD = np.load(folder / "queries.npy")
    index.search(queries_QD[:1], TOP, ann=ann)
    first = time.perf_counter() - started
    steps = []
    for _ in range(rounds):
        times, cpu = [], time.process_time()
        found = []
        for query_D in queries_QD:
            begun = time.perf_counter()
            rows_1K, _ = index.search(query_D[None], TOP, ann=ann)
            times.append(1000 * (time.perf_counter() - begun))
            found.append(rows_1K[0].tolist())
        spent = 1000 * (time.process_time() - cpu) / len(times)
        steps.append(
            {"mean_ms": float(np.mean(times)), "slowest_ms": max(times), "cpu_ms": spent, "load_average": os.getloadavg()[0]}
        )
    after = resident()
    held = {name: after[name] - before[name] for name in after}
    return {"first_s": first, "rounds": steps, "resident_mib": held, "found": found}


def measured(folder: Path, ann: bool, rounds: int) -> dict[str, Any]:
    """`work` in a process of its own."""
    command = [sys.executable, __file__, "--work", str(folder), "--rounds", str(rounds), *(["--ann"] if ann else [])]
    result: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return result


# --------------------------------------------------------------------------------------------------------------------- main


def row(folder: Path, source: Source, count: int, width: int, rounds: int, queries: int) -> dict[str, Any]:
    """Build and search one index."""
    index = folder / f"{count}x{width}"
    harness.tell(f"{count:,} x {width}: building")
    built = write_index(index, source, count, width, seed=count + width)
    np.save(index / "queries.npy", source.draw("texts", queries, np.random.default_rng(1)))
    place = generation_folder(index, 1)
    sizes = {name: (place / name).stat().st_size / 2**20 for name in ("vectors.npy", neighbors.FILE)}
    sizes["names and digests"] = (
        sum((place / name).stat().st_size for name in ("names.npy", "name_ends.npy", "digests.npy")) / 2**20
    )
    harness.tell(f"{count:,} x {width}: built in {built['ann_wall_s']:.0f} s ({built['ann_cpu_s']:.0f} s of processor)")
    exact, near = measured(index, False, rounds), measured(index, True, rounds)
    truth, found = exact.pop("found"), near.pop("found")
    recall = float(np.mean([len(set(one) & set(other)) / TOP for one, other in zip(truth, found, strict=True)]))
    for file in place.iterdir():
        file.unlink()
    made = {"images": count, "width": width, "build": built, "files_mib": sizes, "exact": exact, "ann": near, "recall": recall}
    harness.tell(f"{count:,} x {width}: {fastest(exact):.1f} ms exact, {fastest(near):.1f} ms approximate, recall {recall:.3f}")
    return made


def fastest(side: Mapping[str, Any]) -> float:
    """Milliseconds a query in the fastest round."""
    return min(step["mean_ms"] for step in side["rounds"])


def report(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table of the documentation."""
    cells = []
    for made in rows:
        exact, near, build = made["exact"]["resident_mib"], made["ann"]["resident_mib"], made["build"]
        sizes = made["files_mib"]
        cells.append(
            [
                f"{made['images']:,} x {made['width']}",
                f"{sizes['vectors.npy']:,.0f}",
                f"{fastest(made['exact']):.1f}",
                f"{exact['anonymous']:,.0f} + {exact['file']:,.0f}",
                f"{build['ann_wall_s']:,.0f} ({build['ann_cpu_s']:,.0f})",
                f"{sizes[neighbors.FILE]:,.0f}",
                f"{fastest(made['ann']):.1f}",
                f"{near['anonymous']:,.0f} + {near['file']:,.0f}",
                f"{made['recall']:.3f}",
            ]
        )
    head = ["vectors", "file, MiB", "exact, ms a query", "memory, MiB", "ANN build, s (CPU)", "its file, MiB", "ms a query",
            "memory, MiB", "recall@10"]  # fmt: skip
    return harness.table(head, cells)


def main(argv: Sequence[str] | None = None) -> None:
    options = command_line().parse_args(argv)
    if options.work is not None:
        print(json.dumps(work(options.work, options.ann, options.rounds)))
        return
    images_ND, texts_ND = trained(options.scenes)
    settings = {
        "statistics": f"miniature:beit3_base, {len(images_ND):,} images and {len(texts_ND):,} captions of rendered scenes",
        "queries": options.queries, "rounds": options.rounds, "ann_dtype": neighbors.DTYPE, "candidates": neighbors.CANDIDATES,
    }  # fmt: skip
    result = harness.heading("search", "cpu", settings, ("OMP_NUM_THREADS",))
    result["note"] = "other work ran on the machine: the fastest round counts, and load averages stand beside each"
    result["rows"] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for width in options.widths:
            source = Source(images_ND, texts_ND, width)
            for count in options.counts:
                result["rows"].append(row(Path(folder), source, count, width, options.rounds, options.queries))
                harness.write(result, options.out)
    print(report(result["rows"]))


def command_line() -> argparse.ArgumentParser:
    parser = harness.command_line(__doc__, rounds=5)
    option = parser.add_argument
    option("--counts", type=int, nargs="+", default=[100_000, 1_000_000], metavar="N", help="images")
    option("--widths", type=int, nargs="+", default=[96, 256], metavar="D", help="of vectors")
    option("--queries", type=int, default=50, metavar="N")
    option("--scenes", type=int, default=1000, metavar="N", help="rendered, for the statistics")
    option("--folder", type=Path, metavar="DIR", help="where the indices are made: 3 GB for the defaults (default: the system's)")
    option("--work", type=Path, help=argparse.SUPPRESS)
    option("--ann", action="store_true", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
