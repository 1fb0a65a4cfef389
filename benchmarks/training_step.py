"""Time, memory and FLOPs of one training step: full, MWA, KE only, AE only and head-only tuning, interleaved in one run.

    python benchmarks/training_step.py                                    # DINOv2-S and MiniLM shapes, fp32, one thread
    python benchmarks/training_step.py --precision bf16 --threads 2 --out step.json
    python benchmarks/training_step.py --gradient-cache --modes full mwa  # batch 256 at once and in chunks of 32
    python benchmarks/training_step.py --size tiny --rounds 1             # does it run at all?

What runs: towers of the real shapes with random weights, built by the project's classes, and `RetrievalModule`'s own step
(forward, contrastive loss, backward, AdamW) on one random batch, without Lightning and without data loading.

How to read it
- "predicted" is the ratio of FLOPs, counted by torch while the step runs (matrix products, convolutions and attention only).
  Beside the measured ratio it says whether a mode costs what its arithmetic costs; a measured ratio above it is work that
  no FLOP count sees (memory traffic of small operations, dropout, the optimizer).
- Ratios are to the first mode (full, unless --modes says otherwise; `harness.READING`).
- Memory is what training has to keep: activations saved for backward (`SavedBytes`), gradients, AdamW's moments. Parameters
  are left out, and so is the resident size of the process, which is mostly libraries and cached blocks. With gradient
  caching the activations are those of the largest recomputed chunk plus what is held across chunks.
- "formula" recomputes the FLOPs by hand (`closed_form`, `flops.py`); it must equal the count. docs/speed.md explains it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

# The file is run by its path: the packages beside this folder must be found without an installation, too.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from benchmarks import harness
from benchmarks.flops import transformer_flops
from benchmarks.tuning_step import TuningStep
from datamodules.records import ImageBatch, PairBatch, TextBatch
from lightning_modules.adapters.multiway import MultiWayAdapter
from lightning_modules.metrics.training_memory import SavedBytes
from lightning_modules.networks.dual_encoder import DualEncoder
from lightning_modules.networks.towers.hugging_face import HFImageTower, HFTextTower
from lightning_modules.objectives.gradient_cache import slice_batch
from lightning_modules.retrieval import RetrievalModule

LABELS = {"full": "full", "mwa": "MWA (KE 64 + AE 128)", "ke": "KE only", "ae": "AE only", "head": "head-only"}
PHASES = ("forward", "backward", "optimizer")


@dataclass(frozen=True)
class Transformer:
    """`layers` blocks of `width`, heads of 64 (of 16 in towers narrower than 64), FFN four times as wide."""

    layers: int
    width: int

    @classmethod
    def parse(cls, text: str) -> Transformer:
        """From "12x384", layers first."""
        layers, _, width = text.partition("x")
        return cls(int(layers), int(width))

    @property
    def heads(self) -> int:
        return self.width // (64 if self.width >= 64 else 16)


@dataclass(frozen=True)
class Shape:
    """Everything that FLOPs depend on. `dropout` is BERT's; it is active only where a tower trains fully."""

    image: Transformer
    text: Transformer
    image_size: int
    tokens: int
    batch: int
    patch: int = 14
    vocabulary: int = 30522
    dropout: float = 0.1
    embed_dim: int = 256
    attention: str = "sdpa"

    @property
    def image_tokens(self) -> int:
        """Patches and the class token."""
        return (self.image_size // self.patch) ** 2 + 1


SIZES = {
    "tiny": Shape(Transformer(2, 32), Transformer(2, 32), 28, 6, 4, vocabulary=64, embed_dim=16),
    "small": Shape(Transformer(12, 384), Transformer(6, 384), 84, 24, 32),  # DINOv2-S, MiniLM
    "base": Shape(Transformer(12, 768), Transformer(12, 768), 224, 24, 32),  # DINOv2-B, BERT base: for a GPU
}


# ------------------------------------------------------------------------------------------------------- what is measured


def network(shape: Shape) -> DualEncoder:
    """Random weights, the same at every call."""
    torch.manual_seed(0)
    attention: Any = shape.attention
    image = HFImageTower(
        config={
            "model_type": "dinov2",
            "hidden_size": shape.image.width,
            "num_hidden_layers": shape.image.layers,
            "num_attention_heads": shape.image.heads,
            "image_size": 37 * shape.patch,  # the stored position table; resampled to the size below, as with real weights
            "patch_size": shape.patch,
        },
        image_size=shape.image_size,
        pooling="cls+mean",
        weights="random",
        attention=attention,
    )
    text = HFTextTower(
        config={
            "model_type": "bert",
            "hidden_size": shape.text.width,
            "num_hidden_layers": shape.text.layers,
            "num_attention_heads": shape.text.heads,
            "intermediate_size": 4 * shape.text.width,
            "vocab_size": shape.vocabulary,
            "hidden_dropout_prob": shape.dropout,
            "attention_probs_dropout_prob": shape.dropout,
        },
        tokenizer="none",
        max_tokens=shape.tokens,
        pooling="mean",
        weights="random",
        attention=attention,
    )
    return DualEncoder(image, text, embed_dim=shape.embed_dim)


def adapter(mode: str) -> MultiWayAdapter | None:
    """As in experiments/papers/mwa/variants; None where the towers stay as they are."""
    if mode not in ("mwa", "ke", "ae"):
        return None
    return MultiWayAdapter(reading="printed", knowledge_extractor=mode != "ae", alignment_enhancer=mode != "ke")


def random_batch(shape: Shape) -> PairBatch:
    """Noise for pixels; captions of half to all tokens, padded as real batches are."""
    draw = torch.Generator().manual_seed(1)
    rows, size = shape.batch, shape.image_size
    index_B = torch.arange(rows)
    names = tuple(str(row) for row in range(rows))
    lengths_B = torch.randint(shape.tokens // 2, shape.tokens + 1, (rows,), generator=draw)
    lengths_B[0] = shape.tokens
    mask_BT = torch.arange(shape.tokens)[None] < lengths_B[:, None]
    tokens_BT = torch.randint(1, shape.vocabulary, (rows, shape.tokens), generator=draw) * mask_BT
    return PairBatch(
        ImageBatch(names, index_B, torch.randn(rows, 3, size, size, generator=draw)),
        TextBatch(names, names, index_B, index_B, tokens_BT, mask_BT),
    )


class Variant(TuningStep):
    """One row of the tables: a module with its optimizer, ready to step.

    Args:
        mode: A key of `LABELS`.
        shape: Sizes of towers and batch.
        bf16: Under bf16 autocast, as Lightning's bf16-mixed does it.
        device: "cpu" or "cuda".
        chunk: Gradient caching in chunks of this many pairs; None = the whole batch at once.
    """

    def __init__(self, mode: str, shape: Shape, bf16: bool = False, device: str = "cpu", chunk: int | None = None) -> None:
        tuning: Any = mode if mode in ("full", "head") else "adapter"
        super().__init__(RetrievalModule(network(shape), adapter(mode), tuning, gradient_cache_chunk=chunk), device, bf16)
        self.mode, self.shape, self.chunk = mode, shape, chunk
        self.label = LABELS[mode] + (f", chunks of {chunk}" if chunk else "")
        self.batch = random_batch(shape).to(device)

    def step(self) -> dict[str, float]:
        """One training step: wall and CPU seconds of the whole and of every phase."""
        marks = [harness.clock(self.device)]
        loss = self.loss(self.batch)
        marks.append(harness.clock(self.device))
        self.optimizer.zero_grad()
        loss.backward()
        marks.append(harness.clock(self.device))
        self.advance()
        marks.append(harness.clock(self.device))
        phases = list(zip(PHASES, marks[:-1], marks[1:], strict=True))
        kinds = list(enumerate(("wall", "cpu")))
        whole = {f"{kind}_s": marks[-1][i] - marks[0][i] for i, kind in kinds}
        return whole | {f"{name}_{kind}_s": b[i] - a[i] for name, a, b in phases for i, kind in kinds}

    def count_flops(self) -> tuple[int, dict[str, int]]:
        """FLOPs of forward and backward: in all, and by operation."""
        counter = self.counted(self.batch)
        return counter.get_total_flops(), {str(name): count for name, count in counter.get_flop_counts()["Global"].items()}

    def memory(self) -> dict[str, int]:
        """Bytes that one step keeps; takes a step."""
        kept, recomputed = self.kept_bytes(self.batch), self._recomputed_bytes()
        kept["activations"] += recomputed  # the part of the activations that is of one chunk
        return {**kept, "recomputed": recomputed, "all": sum(kept.values())}

    def _recomputed_bytes(self) -> int:
        """Activations of the largest chunk: a checkpoint recomputes them where `SavedBytes` does not see them."""
        if self.chunk is None:
            return 0
        sizes = []
        encoders: list[tuple[Callable[[Any], torch.Tensor], Any]] = [
            (self.module.network.encode_images, self.batch.images),
            (self.module.network.encode_texts, self.batch.texts),
        ]
        for encode, batch in encoders:
            with SavedBytes(exclude=self.module) as saved, harness.autocast(self.device, self.bf16):
                encode(slice_batch(batch, 0, self.chunk))
            sizes.append(saved.peak_bytes)
        return max(sizes)


# --------------------------------------------------------------------------------------------------------- FLOPs by hand


def tower_flops(tower: Transformer, tokens: int, mode: str, stem: int = 0, fused: bool = True) -> tuple[int, int]:
    """FLOPs of one item in one tower: (forward, backward); of mode head nothing but the projection is back-propagated."""
    mids = {"ke": (64,), "ae": (128,), "mwa": (64, 128)}.get(mode, ())
    forward, backward = transformer_flops(tower.width, 4 * tower.width, tower.layers, tokens, mids, stem=stem, fused=fused)
    return forward, 0 if mode == "head" else backward


def closed_form(shape: Shape, mode: str, chunk: int | None = None) -> int:
    """FLOPs of forward and backward of one batch: both towers, projections, and the two products of the contrastive loss.

    Gradient caching (`chunk`) runs every encoder's forward once more. Attention of the text tower is not fused in mode full:
    its dropout is active there, and the processor's fused kernel knows none.
    """
    image_fused = shape.attention == "sdpa"
    text_fused = image_fused and not (mode == "full" and shape.dropout)
    stem = (shape.image_tokens - 1) * 2 * 3 * shape.patch**2 * shape.image.width
    towers = [
        (tower_flops(shape.image, shape.image_tokens, mode, stem, image_fused), 2 * shape.image.width),
        (tower_flops(shape.text, shape.tokens, mode, 0, text_fused), shape.text.width),
    ]
    flops = 2 * 3 * 2 * shape.batch**2 * shape.embed_dim
    for (forward, backward), pooled in towers:
        projection = 2 * pooled * shape.embed_dim
        again = forward + projection if chunk and chunk < shape.batch else 0
        flops += shape.batch * (forward + backward + again + projection * (2 if mode == "head" else 3))
    return flops


# ------------------------------------------------------------------------------------------------------------ measurement


def measure(variants: Sequence[Variant], rounds: int) -> dict[str, Any]:
    """Counts and memory of every variant (which also warms it up), then the interleaved rounds."""
    rows: list[dict[str, Any]] = []
    for variant in variants:
        counted, operations = variant.count_flops()
        memory = variant.memory()
        variant.step()
        parameters = variant.module.counts
        rows.append(
            {
                "label": variant.label,
                "mode": variant.mode,
                "chunk": variant.chunk,
                "tunable_parameters": parameters.trainable,
                "tunable_percent": parameters.percent,
                "total_parameters": parameters.total,
                "flops": counted,
                "flops_by_operation": operations,
                "flops_formula": closed_form(variant.shape, variant.mode, variant.chunk),
                "memory_bytes": memory,
            }
        )
        harness.tell(f"{variant.label}: {counted / 1e9:.4g} GFLOP a step")
    steps = harness.interleave({index: variant.step for index, variant in enumerate(variants)}, rounds, warm=0)
    for index, row in enumerate(rows):
        row["flops_ratio"] = row["flops"] / rows[0]["flops"]
        row["memory_ratio"] = row["memory_bytes"]["all"] / rows[0]["memory_bytes"]["all"]
        row |= harness.summary(steps, index, 0)
        for phase in PHASES:
            row[f"{phase}_cpu_s"] = statistics.median(step[f"{phase}_cpu_s"] for step in steps if step["row"] == index)
        row["gflops_per_second"] = row["flops"] / 1e9 / row["wall_s"]
    return {"rows": rows, "steps": steps}


def report(result: dict[str, Any]) -> str:
    """The tables, as Markdown."""
    rows, shape = result["rows"], result["shape"]
    reference = rows[0]["label"]
    image, text = shape["image"], shape["text"]

    def ratio(values: dict[str, float]) -> str:
        return harness.spread(values, ".2f")

    time_rows = [
        [
            row["label"], f"{row['flops_ratio']:.3f}", ratio(row["cpu_ratio"]), ratio(row["wall_ratio"]), f"{row['cpu_s']:.3f}",
            f"{row['wall_s']:.3f}", *(f"{row[f'{phase}_cpu_s']:.3f}" for phase in PHASES), f"{row['gflops_per_second']:.0f}",
        ]
        for row in rows
    ]  # fmt: skip
    memory_rows = [
        [
            row["label"], f"{row['tunable_parameters']:,}", f"{row['memory_ratio']:.2f}",
            *(f"{row['memory_bytes'][part] / 1e6:.1f}" for part in ("all", "activations", "gradients", "optimizer")),
            f"{row['flops'] / 1e9:.5g}", f"{row['flops_formula'] / 1e9:.5g}",
        ]
        for row in rows
    ]  # fmt: skip
    return "\n".join(
        [
            f"Image tower {image['layers']}x{image['width']} at {shape['image_size']} px, text tower {text['layers']}x"
            f"{text['width']} on {shape['tokens']} tokens, batch {shape['batch']}, {result['precision']}, "
            f"{shape['attention']} attention, {result['threads']} thread(s), {result['rounds']} interleaved rounds.",
            harness.machine_line(result, result["steps"], "torch", "transformers", "python"),
            "",
            harness.table(
                [
                    "step", "predicted (FLOPs)", f"CPU / {reference}", f"wall / {reference}", "CPU s", "wall s",
                    "forward CPU s", "backward CPU s", "optimizer CPU s", "GFLOP/s",
                ],
                time_rows,
            ),
            "",
            harness.table(
                [
                    "step", "tunable", f"memory / {reference}", "memory MB", "activations", "gradients", "optimizer",
                    "GFLOP counted", "GFLOP formula",
                ],
                memory_rows,
            ),
        ]
    )  # fmt: skip


def parser() -> argparse.ArgumentParser:
    made = harness.command_line(f"{__doc__}{harness.READING}", devices=("cpu", "cuda"), threads=1, rounds=7)
    add = made.add_argument
    add("--size", choices=sorted(SIZES), default="small", help="small: DINOv2-S and MiniLM; base: DINOv2-B and BERT base")
    add("--image-size", type=int, help="pixels, a multiple of 14 (small: 84; the papers' 224 costs six times as much)")
    add("--image", type=Transformer.parse, metavar="LAYERSxWIDTH", help="image tower, e.g. 12x384")
    add("--text", type=Transformer.parse, metavar="LAYERSxWIDTH", help="text tower, e.g. 6x384")
    add("--tokens", type=int, help="tokens of the longest caption (24)")
    add("--batch", type=int, help="pairs in a batch (32; with --gradient-cache 256)")
    add("--dropout", type=float, help="BERT's dropout, active only where the tower trains fully (0.1, as MiniLM's)")
    add("--attention", choices=("sdpa", "eager"), help="the towers' attention: fused (default) or separate products")
    add("--modes", nargs="+", choices=list(LABELS), help="rows; ratios are to the first (all; with --gradient-cache mwa)")
    add("--gradient-cache", action="store_true", help="each mode with the whole batch at once and in chunks")
    add("--chunk", type=int, default=32, help="pairs in a chunk of --gradient-cache")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="bf16 = autocast, as trainer.precision bf16-mixed")
    return made


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print the tables, return what --out would hold."""
    options = parser().parse_args(arguments)
    shape = SIZES[options.size]
    if options.gradient_cache:
        shape = replace(shape, batch=256 if options.size != "tiny" else shape.batch)
    given = ("image_size", "image", "text", "tokens", "batch", "dropout", "attention")
    shape = replace(shape, **{name: value for name in given if (value := getattr(options, name)) is not None})
    modes = options.modes or (["mwa"] if options.gradient_cache else list(LABELS))
    chunks = [None, min(options.chunk, max(1, shape.batch // 2))] if options.gradient_cache else [None]
    torch.set_num_threads(options.threads)
    settings = {"shape": asdict(shape), **{name: getattr(options, name) for name in ("precision", "threads", "rounds")}}
    result = harness.heading("training_step", options.device, settings)
    variants = [Variant(mode, shape, options.precision == "bf16", options.device, chunk) for mode in modes for chunk in chunks]
    result["load_average_at_start"] = os.getloadavg()
    result |= measure(variants, options.rounds)
    result["load_average_at_end"] = os.getloadavg()
    print(report(result))
    harness.write(result, options.out)
    return result


if __name__ == "__main__":
    main()
