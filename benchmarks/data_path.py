"""From image files to a batch: pairs a second of one core, ours beside torchvision's and Pillow's loops; and workers for a GPU.

    python benchmarks/data_path.py FOLDER --out data_path.json          # of photographs, with all folders below it
    python benchmarks/data_path.py FOLDER --sizes 224 --images 64 --rounds 3

Each way reads the same files one after the other in this process, on one thread, and ends with a normalized float32 batch
[B, 3, size, size]. Training is BEiT-3's transform (a random crop of 0.5 to 1 of the area, bicubic, a flip), evaluation is both
sides resized.

    ours              datamodules.loading.images.SplitImages, as a data worker of a run calls it
    torchvision       PIL decodes, then transforms.v2 image by image, normalization included
    decode_image      torchvision.io decodes, then the same transforms on uint8 tensors. Their resizing gives other values than
                      PIL's, which the official code has; the report says how many
    Pillow            PIL decodes, crops, resizes; numpy scales and normalizes
    Pillow, draft     as Pillow, but a JPEG is decoded at half, a quarter or an eighth of its size where that still is larger:
                      other values again
    decode only       PIL decodes, nothing else: what any of the PIL ways takes at least

Prediction: decoding and resizing are C code that all PIL ways share, so ours is within 5 % of torchvision's loop (goal: not
slower by more), and ahead of it by what normalizing a whole batch saves.

A GPU waits for nothing where workers make as many pairs a second as it takes: its data sheet times --mfu over the FLOPs of a pair
(formulas of benchmarks/flops.py; BEiT-3 with 64 text tokens, attention in one kernel, one token in the last layer). Workers are
processes, each on a core of its own; every pair needs an image of its own, as `train_unit: pair` has it.
"""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

# The file is run by its path: the packages beside this folder must be found without an installation, too.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import harness
from benchmarks.flops import transformer_flops

OURS, REFERENCE = "ours", "torchvision"
GOAL = 1.05  # of the reference's CPU seconds, at most

Way = Callable[[], Any]


def ways(paths: Sequence[Path], size: int, training: bool) -> dict[str, Way]:
    """What makes a batch of all the files, by name."""
    import numpy as np
    import torch
    from PIL import Image
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms import InterpolationMode, v2

    from datamodules.inputs import ImageInput
    from datamodules.loading.images import Augmentation, SplitImages
    from datamodules.records import ImageRecord

    spec = ImageInput(size, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "squash")
    records = [ImageRecord(str(row), path, ()) for row, path in enumerate(paths)]
    split = SplitImages(records, spec, Augmentation() if training else None)
    rows, least = range(len(paths)), Augmentation().min_scale
    crop = v2.RandomResizedCrop(size, (least, 1.0), interpolation=InterpolationMode.BICUBIC)
    shape = (
        [crop, v2.RandomHorizontalFlip()] if training else [v2.Resize((size, size), InterpolationMode.BICUBIC)]
    )  # fmt: skip
    to_float = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(spec.mean, spec.std)]
    of_image, of_tensor = v2.Compose([*shape, v2.ToImage(), *to_float]), v2.Compose([*shape, *to_float])
    mean_3, std_3 = (np.array(each, np.float32) * 255 for each in (spec.mean, spec.std))

    def pillow(path: Path, draft: bool) -> Any:
        file = Image.open(path)
        if draft:
            file.draft("RGB", (size, size))
        image = file.convert("RGB")
        box, flip = (0, 0, *image.size), False
        if training:
            at = crop.make_params([image])
            box = (at["left"], at["top"], at["left"] + at["width"], at["top"] + at["height"])
            flip = bool(torch.rand(()) < 0.5)
        image = image.resize((size, size), Image.Resampling.BICUBIC, box)
        if flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return torch.from_numpy(((np.asarray(image, np.float32) - mean_3) / std_3).transpose(2, 0, 1))

    return {
        OURS: lambda: split.pixels(rows, rows),
        REFERENCE: lambda: torch.stack([of_image(Image.open(path).convert("RGB")) for path in paths]),
        "decode_image": lambda: torch.stack([of_tensor(decode_image(str(path), ImageReadMode.RGB)) for path in paths]),
        "Pillow": lambda: torch.stack([pillow(path, False) for path in paths]),
        "Pillow, draft": lambda: torch.stack([pillow(path, True) for path in paths]),
        "decode only": lambda: [Image.open(path).load() for path in paths],
    }


def pair_flops(width: int, layers: int, mids: Sequence[int]) -> int:
    """Of a training step of BEiT-3 at 384 px, a pair: an image of 24 x 24 patches and its class token, and a caption."""
    patches = 2 * width * 3 * 16**2 * 24**2
    image = transformer_flops(width, 4 * width, layers, 577, mids, stem=patches, pooled=True, fused=True)
    return sum(image) + sum(transformer_flops(width, 4 * width, layers, 64, mids, pooled=True, fused=True))


CONSUMERS = {
    "BEiT-3 base, full": (384, pair_flops(768, 12, ())),
    "BEiT-3 base, MWA": (384, pair_flops(768, 12, (64, 128))),
    "BEiT-3 large, full": (384, pair_flops(1024, 24, ())),
    "BEiT-3 large, MWA": (384, pair_flops(1024, 24, (64, 128))),
    "CLIP ViT-B/16, an image embedded": (224, transformer_flops(768, 3072, 12, 197, stem=2 * 768 * 3 * 16**2 * 14**2)[0]),
}
"""Image size, and FLOPs of a pair or an image."""


def workers(rates: Mapping[int, float], device: str, mfu: float) -> list[dict[str, Any]]:
    """What a GPU takes and how many workers make it.

    Args:
        rates: Pairs a second of one worker, by image size.
        device: A name of harness.PEAKS.
        mfu: Share of its peak that a step reaches.
    """
    peak = harness.peak_flops(device)
    assert peak is not None, device
    found = []
    for name, (size, flops) in CONSUMERS.items():
        if size in rates:
            wanted = mfu * peak / flops
            found.append(
                {"what": name, "size": size, "flops": flops, "wanted": wanted, "workers": math.ceil(wanted / rates[size])}
            )
    return found


def other_values(paths: Sequence[Path], size: int) -> dict[str, float]:
    """Of decode_image's evaluation, beside PIL's: share of the values of 0 to 255 that differ, and by how much at most."""
    one, other = (way() for name, way in ways(paths, size, False).items() if name in (REFERENCE, "decode_image"))
    levels = ((one - other) * 127.5).abs().round()
    return {"share": float((levels > 0).float().mean()), "most": float(levels.max())}


def resaved(paths: Sequence[Path], longest: int, folder: Path) -> list[Path]:
    """Copies with another longer side, as JPEGs of quality 90: of the size of a data set of which one has small copies only."""
    from PIL import Image

    found = []
    for number, path in enumerate(paths):
        image = Image.open(path).convert("RGB")
        scale = longest / max(image.size)
        image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC).save(
            folder / f"{number}.jpg", quality=90
        )
        found.append(folder / f"{number}.jpg")
    return found


def measure(paths: Sequence[Path], sizes: Sequence[int], rounds: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of all ways, sizes and transforms, and every step of every round."""
    rows, steps = [], []
    for size in sizes:
        for transform in ("training", "evaluation"):
            all_ways = ways(paths, size, transform == "training")
            turns = {name: (lambda way=way: harness.timed(way)) for name, way in all_ways.items()}
            harness.tell(f"{size} px, {transform}: {', '.join(turns)}")
            of_these = harness.interleave(turns, rounds, warm=1)
            for name in turns:
                found = harness.summary(of_these, name, REFERENCE)
                rows.append(
                    {"size": size, "transform": transform, "way": name, "pairs_per_cpu_s": len(paths) / found["cpu_s"], **found}
                )
            steps += [{"size": size, "transform": transform, **step} for step in of_these]
    return rows, steps


def report(result: Mapping[str, Any]) -> str:
    head = ("px", "transform", "way", "pairs/s a core", "CPU s / torchvision", "ms an image")
    rows = [
        (
            str(row["size"]), row["transform"], row["way"], f"{row['pairs_per_cpu_s']:.0f}", harness.spread(row["cpu_ratio"]),
            f"{1000 / row['pairs_per_cpu_s']:.2f}",
        )
        for row in result["rows"]
    ]  # fmt: skip
    needs = [
        (need["what"], str(need["size"]), f"{need['flops'] / 1e9:.0f}", f"{need['wanted']:,.0f}", str(need["workers"]))
        for need in result["workers"]
    ]
    return "\n".join(
        [
            f"{result['images']} files of {result['megapixels']:.2f} megapixels (median), batch by batch, one thread, "
            f"{result['rounds']} interleaved rounds.",
            harness.machine_line(result, result["steps"], "torchvision", "pillow", "python"),
            "",
            harness.table(head, rows, texts=3),
            "",
            *(
                f"decode_image at {size} px: {each['share']:.1%} of the values are not PIL's, by up to {each['most']:.0f} of 255."
                for size, each in result["other_values"].items()
            ),
            "",
            f"Workers for one {result['gpu']} at {result['mfu']:.0%} of its peak",
            "",
            harness.table(("a step of", "px", "GFLOP", "pairs/s", "workers"), needs),
        ]
    )


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print the tables, return what --out would hold."""
    parser = harness.command_line(__doc__, rounds=7)
    parser.add_argument("folder", type=Path, help="of photographs; JPEGs are taken")
    parser.add_argument("--images", type=int, default=128, help="of the folder, at most, evenly spread")
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 384])
    parser.add_argument("--longest", type=int, help="longer side that the files are re-saved with before")
    parser.add_argument("--gpu", default="A100", choices=harness.PEAKS, help="that is to be fed")
    parser.add_argument("--mfu", type=float, default=0.4, help="share of its peak FLOP/s that a step reaches")
    options = parser.parse_args(arguments)
    import torch
    from PIL import Image

    from datamodules.files.images import image_files_below

    torch.set_num_threads(1)
    names = [name for name in image_files_below(options.folder)[0] if name.lower().endswith((".jpg", ".jpeg"))]
    if not names:
        raise SystemExit(f"{options.folder}: no JPEG in it")
    paths = [options.folder / name for name in names[:: max(1, len(names) // options.images)][: options.images]]
    with tempfile.TemporaryDirectory() as folder:
        if options.longest is not None:
            paths = resaved(paths, options.longest, Path(folder))
        sizes = [Image.open(path).size for path in paths]
        rows, steps = measure(paths, options.sizes, options.rounds)
        others = {size: other_values(paths, size) for size in options.sizes}
    rates = {row["size"]: row["pairs_per_cpu_s"] for row in rows if (row["way"], row["transform"]) == (OURS, "training")}
    result = {
        **harness.heading("data_path", "cpu", {"rounds": options.rounds, "images": len(paths), "longest": options.longest}),
        "megapixels": statistics.median(map(math.prod, sizes)) / 1e6,
        "goal": GOAL, "gpu": options.gpu, "mfu": options.mfu, "rows": rows,
        "other_values": others, "workers": workers(rates, options.gpu, options.mfu), "steps": steps,
    }  # fmt: skip
    print(report(result))
    harness.write(result, options.out)
    return result


if __name__ == "__main__":
    main()
