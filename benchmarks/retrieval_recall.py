"""Recalls of 5,000 images x 25,000 captions: time and memory, beside the naive and torchmetrics twins.

    python benchmarks/retrieval_recall.py [--images 5000] [--captions 5] [--width 512] [--threads 2] [--repeat 3] [--out F.json]

Every line of the table is a process of its own, so that its peak resident memory (`ru_maxrss`: Python, torch and the
embeddings included) is its own. Times are from embeddings to all recalls, imports left out, the first (cold) repeat included;
on a machine with other work the CPU seconds say what the wall clock cannot. The naive twin sorts all candidates of every
query; torchmetrics runs `RetrievalHitRate`, once for each k and direction, on a small world only (it would need about 10 GB
and a minute and a half a metric on the large one). All of them see the same embeddings and must agree.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# The file is run by its path: the packages beside this folder must be found without an installation, too.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import harness

SMALL_IMAGES = 200


def world(images: int, captions: int, width: int) -> tuple[Any, Any, Any]:
    """Random unit embeddings, captions near their images, so that recalls are neither 0 nor 100."""
    import torch

    draw = torch.Generator().manual_seed(0)
    image_index = torch.arange(images).repeat_interleave(captions)
    images_ID = torch.nn.functional.normalize(torch.randn(images, width, generator=draw), dim=1)
    noise_TD = torch.nn.functional.normalize(torch.randn(images * captions, width, generator=draw), dim=1)
    texts_TD = torch.nn.functional.normalize(images_ID[image_index] + 5 * noise_TD, dim=1)
    return images_ID, texts_TD, image_index


def ours(images_ID: Any, texts_TD: Any, image_index: Any) -> dict[str, float]:
    from lightning_modules.metrics.ranks import embedding_ranks
    from lightning_modules.metrics.recalls import recalls

    return {name: float(value) for name, value in recalls(embedding_ranks(images_ID, texts_TD, image_index)).items()}


def metric(images_ID: Any, texts_TD: Any, image_index: Any) -> dict[str, float]:
    import torch

    from lightning_modules.metrics.retrieval import RetrievalRecall

    recall = RetrievalRecall(expected_images=len(images_ID), expected_texts=len(texts_TD))
    for rows in torch.arange(len(images_ID)).split(256):
        recall.update_images(images_ID[rows], rows)
    for rows in torch.arange(len(texts_TD)).split(256):
        recall.update_texts(texts_TD[rows], rows, image_index[rows])
    return {name: float(value) for name, value in recall.compute().items()}


def naive(images_ID: Any, texts_TD: Any, image_index: Any) -> dict[str, float]:
    import torch

    scores = images_ID @ texts_TD.T
    i2t = (
        (image_index[scores.argsort(dim=1, descending=True, stable=True)] == torch.arange(len(images_ID))[:, None])
        .int()
        .argmax(1)
    )
    t2i = (scores.argsort(dim=0, descending=True, stable=True) == image_index).int().argmax(0)
    return {
        f"{name}_r{k}": 100 * float((place < k).double().mean())
        for name, place in (("i2t", i2t), ("t2i", t2i))
        for k in (1, 5, 10)
    }


def torchmetrics(images_ID: Any, texts_TD: Any, image_index: Any) -> dict[str, float]:
    import torch
    from torchmetrics.retrieval import RetrievalHitRate

    scores = (images_ID @ texts_TD.T).flatten()
    image, text = torch.meshgrid(torch.arange(len(images_ID)), torch.arange(len(texts_TD)), indexing="ij")
    target = (image_index == torch.arange(len(images_ID))[:, None]).flatten()
    queries = (("i2t", image.flatten()), ("t2i", text.flatten()))
    return {
        f"{name}_r{k}": 100 * float(RetrievalHitRate(top_k=k)(scores, target, query))
        for name, query in queries
        for k in (1, 5, 10)
    }


WAYS: dict[str, Callable[[Any, Any, Any], dict[str, float]]] = {
    "ours": ours, "metric": metric, "naive": naive, "torchmetrics": torchmetrics,
}  # fmt: skip


def child(way: str, images: int, captions: int, width: int, threads: int, repeat: int, device: str = "cpu") -> None:
    """One measurement in this process, as one line of JSON. On a GPU the peak is the allocator's; recalls are numbers of the
    processor, so that whoever has them has waited for the GPU."""
    import torch

    torch.set_num_threads(threads)
    data = tuple(tensor.to(device) for tensor in world(images, captions, width))
    if way != "nothing":
        import lightning_modules.metrics.retrieval  # noqa: F401 - imports are not part of the time
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    recalls: dict[str, float] = {}

    def once() -> None:
        with torch.device(device):
            recalls.update(WAYS[way](*data))

    taken = [harness.timed(once, device) for _ in range(repeat)]
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss if device == "cpu" else torch.cuda.max_memory_allocated()
    answer = {
        "way": way, "device": device, "images": images, "captions": images * captions, "width": width, "threads": threads,
        "seconds": [each["wall_s"] for each in taken], "cpu_seconds": [each["cpu_s"] for each in taken],
        "load_average": os.getloadavg()[0], "peak_rss_bytes": peak, "rss_before_bytes": before * 1024, "recalls": recalls,
        "torch": torch.__version__,
    }  # fmt: skip
    print(json.dumps(answer))


def measure(way: str, images: int, options: argparse.Namespace, repeat: int) -> dict[str, Any]:
    arguments = [way, options.device, images, options.captions, options.width, options.threads, repeat]
    command = [sys.executable, __file__, "--child", *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        way, device, *numbers = sys.argv[2:]
        child(way, *map(int, numbers), device=device)
        return
    parser = harness.command_line(__doc__, "write the measurements as JSON", devices=("cpu", "cuda"), threads=2)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--captions", type=int, default=5, help="captions an image")
    parser.add_argument("--width", type=int, default=512, help="embedding width")
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    small = min(SMALL_IMAGES, options.images)
    plan = [
        ("ours", options.images, options.repeat), ("metric", options.images, options.repeat), ("naive", options.images, 1),
        ("ours", small, options.repeat), ("naive", small, options.repeat), ("torchmetrics", small, 1),
    ]  # fmt: skip
    rows = []
    print(
        f"{'':14}{'images':>8}{'captions':>10}{'fastest s':>11}{'median s':>10}{'CPU s':>8}"
        f"{'peak MB':>9}{'i2t R@1':>9}{'t2i R@1':>9}"
    )
    for way, images, repeat in plan:
        row = measure(way, images, options, repeat)
        rows.append(row)
        print(
            f"{way:14}{images:8}{row['captions']:10}{min(row['seconds']):11.3f}{statistics.median(row['seconds']):10.3f}"
            f"{statistics.median(row['cpu_seconds']):8.2f}"
            f"{row['peak_rss_bytes'] / 1e6:9.0f}{row['recalls']['i2t_r1']:9.3f}{row['recalls']['t2i_r1']:9.3f}",
            flush=True,
        )
    for images in sorted({row["images"] for row in rows}):
        same = [row["recalls"] for row in rows if row["images"] == images]
        furthest = max(abs(other[name] - same[0][name]) for other in same for name in other)
        print(f"{images} images: largest difference between the recalls of {len(same)} ways: {furthest:.4f} points")
    device = harness.heading("retrieval_recall", "cpu", {})["device"]
    machine = {
        "machine": platform.machine(), "processor": f"{device['name']} x {device['cores']}", "python": platform.python_version(),
    }  # fmt: skip
    harness.write({"device": machine, "measurements": rows}, options.out)


if __name__ == "__main__":
    main()
