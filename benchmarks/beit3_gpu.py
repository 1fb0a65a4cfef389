"""BEiT-3 base and large on a GPU: time, peak memory and MFU of full tuning, MWA, KE and LoRA, in four ways. One JSON a run.

    python benchmarks/beit3_gpu.py --size base --out base.json             # 384 px, bf16, the largest batch that full tuning fits
    python benchmarks/beit3_gpu.py --size large --ways plain cache --rounds 2
    python benchmarks/beit3_gpu.py --device cpu --tiny                     # does it run at all?

Ways: `plain`, `compile` (torch.compile of the encoder), `checkpoint` (activation checkpointing), and `cache` (gradient caching:
the paper's batch of 1,024 pairs for base and 512 for large, encoded in chunks of the batch above). Rounds go through all rows,
each built anew, so that no row's memory is in another's peak and a slow minute does not hit one row alone.

How to read it
- Seconds are a median over the steps of all rounds, after a warm-up that takes compilation with it (reported by itself).
- Ratios are to `full` in the same way, and, in the last columns, to plain full tuning (its time a pair where the batch differs).
  The paper's Table 1: 0.58 and 0.55 of the time, 0.81 and 0.80 of the memory. Our goal: 0.60 of the time, 0.50 of the memory.
- "needed" FLOPs are a mode's own, without recomputation (checkpointing, caching), counted on the meta device; MFU is needed
  FLOPs / seconds / the chip's dense bf16 peak. A mode with few FLOPs can be fast at a low MFU, and recomputation lowers it.
- Peak memory is the allocator's, parameters included. Without a GPU it is what a step keeps (saved activations, gradients,
  moments) plus the parameters: never compare the two.
- Captions have 64 tokens without padding, the length that the official code always computes; our data module pads to the longest.
"""

from __future__ import annotations

import argparse
import functools
import gc
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

# The file is run by its path: the packages beside this folder must be found without an installation, too.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import harness
from benchmarks.beit3_reference import Sizes
from benchmarks.beit3_step import network, pairs
from benchmarks.tuning_step import TuningStep
from lightning_modules.adapters.adapter import Adapter
from lightning_modules.adapters.multiway import MultiWayAdapter
from lightning_modules.optimization import Optimization
from lightning_modules.retrieval import RetrievalModule

SIZES = {
    "base": Sizes(768, 12, 12, 3072, 384, 16, 64010, 1024, text_tokens=64, real_tokens=64, drop_path=0.2),
    "large": Sizes(1024, 24, 16, 4096, 384, 16, 64010, 1024, text_tokens=64, real_tokens=64, drop_path=0.2),
}
TINY = Sizes(32, 2, 2, 64, 32, 16, 64, 16, batch=4, text_tokens=8, real_tokens=8, drop_path=0.1)
CACHED_PAIRS = {"base": 1024, "large": 512}  # Table 1's batches
MODES = ("full", "mwa", "ke", "lora")
WAYS = ("plain", "compile", "checkpoint", "cache")
PAPER = {"base": {"time": 0.58, "memory": 0.81}, "large": {"time": 0.55, "memory": 0.80}}
GOAL = {"time": 0.60, "memory": 0.50}


@dataclass(frozen=True)
class Row:
    """One way of tuning in one way of computing; `chunk` only with gradient caching."""

    mode: str
    way: str
    batch: int
    chunk: int | None = None

    @property
    def label(self) -> str:
        return f"{self.mode}, {self.way}" + (f" ({self.batch} in chunks of {self.chunk})" if self.chunk else "")


def adapter(mode: str, sizes: Sizes) -> Adapter | None:
    """As in papers/mwa/variants: the paper's widths, and LoRA of the rank that fits MWA's count; narrower in the toy network."""
    toy = sizes.width < 256
    if mode == "lora":
        from lightning_modules.adapters.lora import LoRAAdapter

        return LoRAAdapter(rank=1 if toy else 24)
    if mode == "full":
        return None
    knowledge, alignment = (4, 8) if toy else (64, 128)
    return MultiWayAdapter(
        "printed", alignment_enhancer=mode == "mwa", knowledge_extractor_mid=knowledge, alignment_enhancer_mid=alignment
    )


def build(row: Row, sizes: Sizes, device: str) -> RetrievalModule:
    """The module of a row, on its device."""
    with torch.device(device):
        return RetrievalModule(
            network(sizes, checkpoint_activations=row.way == "checkpoint"),
            adapter(row.mode, sizes),
            "full" if row.mode == "full" else "adapter",
            train_heads="none",
            optimization=Optimization(lr=1e-4),
            gradient_cache_chunk=row.chunk,
            compile=row.way == "compile",
        )


def needed_flops(row: Row, sizes: Sizes) -> int:
    """FLOPs of forward and backward of the row's batch without any recomputation or drop path, counted on the meta device."""
    one = _flops_of_a_pair(row.mode, replace(sizes, batch=1, drop_path=0.0))
    return row.batch * one + 12 * sizes.width * row.batch**2  # the loss: two products, three times


@functools.cache  # a mode is there in many ways and batches
def _flops_of_a_pair(mode: str, sizes: Sizes) -> int:
    """Of the two encoders."""
    one = build(Row(mode, "plain", 1), sizes, "meta").to("meta").train().network
    batch = pairs(sizes).to("meta")
    with FlopCounterMode(display=False) as counter:
        (one.encode_images(batch.images).sum() + one.encode_texts(batch.texts).sum()).backward()
    return int(counter.get_total_flops())


class Visit(TuningStep):
    """One row, built, for some steps.

    Args:
        row: What to build.
        sizes: Sizes of network and captions.
        device: "cuda" or "cpu".
    """

    def __init__(self, row: Row, sizes: Sizes, device: str) -> None:
        super().__init__(build(row, sizes, device), device, bf16=True)
        self.batch = pairs(replace(sizes, batch=row.batch)).to(device)

    def step(self) -> float:
        """Wall seconds of a whole step."""
        return harness.timed(lambda: self.whole(self.batch), self.device)["wall_s"]

    def peak_bytes(self) -> int:
        """Of one more step: the allocator's peak, or without a GPU what a step keeps and the parameters."""
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.step()
            return torch.cuda.max_memory_allocated()
        return sum(self.kept_bytes(self.batch).values()) + sum(parameter.nbytes for parameter in self.module.parameters())


def visit(row: Row, sizes: Sizes, device: str, warm: int, steps: int) -> dict[str, Any]:
    """Build a row, warm it up, measure it, and leave nothing of it behind."""
    try:
        here = Visit(row, sizes, device)
        warm_up = sum(here.step() for _ in range(warm))
        seconds = [here.step() for _ in range(steps)]
        return {
            "row": asdict(row),
            "warm_up_s": warm_up,
            "step_s": seconds,
            "peak_bytes": here.peak_bytes(),
            "tunable_parameters": here.module.counts.trainable,
            "total_parameters": here.module.counts.total,
        }
    except torch.OutOfMemoryError as error:
        return {"row": asdict(row), "out_of_memory": str(error).splitlines()[0]}
    finally:
        here = None  # type: ignore[assignment]
        sweep(device)


def sweep(device: str) -> None:
    """Free what the last row held."""
    gc.collect()
    torch._dynamo.reset()
    if device == "cuda":
        torch.cuda.empty_cache()


def largest_batch(fits: Callable[[int], bool], step: int = 8, most: int = 4096) -> int:
    """The largest multiple of `step` that fits: doubling, then halving the interval.

    Raises:
        SystemExit: Not even `step` does.
    """
    if not fits(step):
        raise SystemExit(f"full tuning does not fit with a batch of {step}; give --batch, or take a smaller --size")
    low, high = step, 2 * step
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + step)
    while high - low > step:
        middle = (low + high) // 2 // step * step
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def fits_in_full(sizes: Sizes, device: str) -> Callable[[int], bool]:
    """Whether two plain steps of full tuning fit in the device's memory (moments exist from the first step on)."""

    def fits(batch: int) -> bool:
        found = visit(Row("full", "plain", batch), sizes, device, warm=1, steps=1)
        harness.tell(f"batch {batch}: {found.get('out_of_memory') or 'fits'}")
        return "out_of_memory" not in found

    return fits


def summarise(visits: Sequence[dict[str, Any]], rows: Sequence[Row], sizes: Sizes, peak: float | None) -> list[dict[str, Any]]:
    """One line a row: medians over all its visits, ratios, MFU."""
    out: list[dict[str, Any]] = []
    for row in rows:
        own = [each for each in visits if each["row"] == asdict(row)]
        failed = next((each["out_of_memory"] for each in own if "out_of_memory" in each), None)
        good = [each for each in own if "out_of_memory" not in each]
        line: dict[str, Any] = {**asdict(row), "label": row.label, "out_of_memory": failed}
        if good:
            seconds = statistics.median(s for each in good for s in each["step_s"])
            flops = needed_flops(row, sizes)
            line |= {
                "step_s": seconds,
                "pairs_per_s": row.batch / seconds,
                "peak_bytes": max(each["peak_bytes"] for each in good),
                "warm_up_s": statistics.median(each["warm_up_s"] for each in good),
                "tunable_parameters": good[0]["tunable_parameters"],
                "needed_flops": flops,
                "mfu": flops / seconds / peak if peak else None,
            }
        out.append(line)
    by_name = {(line["mode"], line["way"]): line for line in out if "step_s" in line}
    for line in by_name.values():
        full, plain = by_name.get(("full", line["way"])), by_name.get(("full", "plain"))
        if full:
            line["time_ratio"] = line["step_s"] / full["step_s"]
            line["memory_ratio"] = line["peak_bytes"] / full["peak_bytes"]
            line["flops_ratio"] = line["needed_flops"] / full["needed_flops"]
        if plain:
            line["time_to_plain_full"] = plain["pairs_per_s"] / line["pairs_per_s"]
            line["memory_to_plain_full"] = line["peak_bytes"] / plain["peak_bytes"]
    return out


def report(result: dict[str, Any]) -> str:
    """The table, as Markdown."""
    head = [
        "row", "time / full", "memory / full", "needed FLOPs / full", "ms a step", "pairs/s", "peak GB", "MFU", "tunable",
        "time a pair / plain full", "memory / plain full",
    ]  # fmt: skip
    rows = []
    for row in result["rows"]:
        if "step_s" not in row:
            rows.append([row["label"], f"{row['out_of_memory'] or 'not run'}" + " |" * 9])
            continue

        def show(name: str, form: str = "{:.3f}", factor: float = 1.0, row: dict[str, Any] = row) -> str:
            return form.format(factor * row[name]) if row.get(name) is not None else ""

        rows.append([
            row["label"], show("time_ratio"), show("memory_ratio"), show("flops_ratio"), show("step_s", "{:.1f}", 1e3),
            show("pairs_per_s", "{:.1f}"), show("peak_bytes", "{:.2f}", 1e-9), show("mfu", "{:.1%}"),
            f"{row['tunable_parameters']:,}", show("time_to_plain_full"), show("memory_to_plain_full"),
        ])  # fmt: skip
    sizes = Sizes(**result["sizes"])
    return "\n".join(
        [
            f"BEiT-3 {result['size']} ({sizes.layers}x{sizes.width}), {sizes.image_size} px, {sizes.text_tokens} text tokens, "
            f"bf16, batch {result['batch']} ({result['batch_chosen_by']}), "
            f"{result['rounds']} round(s) of {result['steps']} steps.",
            f"{result['device']['name']} ({result['device']['kind']}); torch {result['versions']['torch']}; "
            f"{(result['git']['revision'] or 'unknown revision')[:12]}; {result['date']}.",
            "",
            harness.table(head, rows),
        ]
    )


def parser() -> argparse.ArgumentParser:
    made = harness.command_line(__doc__, "write everything as JSON, renewed after every visit", devices=("cuda", "cpu"), rounds=2)
    add = made.add_argument
    add("--size", choices=sorted(SIZES), default="base")
    add("--tiny", action="store_true", help="a toy network instead, to see that everything runs")
    add("--batch", type=int, help="pairs; by default the largest that plain full tuning fits (on a processor 4)")
    add("--modes", nargs="+", choices=MODES, default=list(MODES))
    add("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    add("--cached-pairs", type=int, help="pairs of the way cache (base 1,024, large 512; tiny: twice the batch)")
    add("--image-size", type=int, help="pixels (384)")
    add("--text-tokens", type=int, help="tokens of every caption (64)")
    add("--steps", type=int, default=5, help="measured steps a visit")
    add("--warm", type=int, default=3, help="steps before them")
    add("--peak-tflops", type=float, help="dense bf16 peak of the device, where its name is not known here")
    return made


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print the table, return what --out would hold.

    Raises:
        SystemExit: No GPU, or a batch that does not fit.
    """
    options = parser().parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            "no CUDA device here, so there is nothing to measure; --device cpu --tiny only shows that everything runs"
        )
    if options.device == "cpu" and not options.tiny:
        raise SystemExit(f"BEiT-3 {options.size} at 384 px on a processor would take hours; add --tiny, or use beit3_step.py")
    sizes = TINY if options.tiny else SIZES[options.size]
    if options.image_size:
        sizes = replace(sizes, image_size=options.image_size)
    if options.text_tokens:
        sizes = replace(sizes, text_tokens=options.text_tokens, real_tokens=options.text_tokens)
    chosen_by = "given"
    batch: int = options.batch or sizes.batch
    if options.batch is None and options.device == "cuda":
        batch, chosen_by = largest_batch(fits_in_full(sizes, options.device)), "the largest that plain full tuning fits"
    cached = options.cached_pairs or (2 * batch if options.tiny else CACHED_PAIRS[options.size])
    rows = [
        Row(mode, way, cached, min(batch, cached)) if way == "cache" else Row(mode, way, batch)
        for way in options.ways
        for mode in options.modes
    ]
    settings = {
        "size": "tiny" if options.tiny else options.size,
        "sizes": asdict(replace(sizes, batch=batch)),
        "batch": batch,
        "batch_chosen_by": chosen_by,
        "rounds": options.rounds,
        "steps": options.steps,
    }
    result = harness.heading("beit3_gpu", options.device, settings, environment=())
    peak = options.peak_tflops * 1e12 if options.peak_tflops else harness.peak_flops(result["device"]["name"])
    if options.device == "cpu":
        peak = None
    result |= {"peak_flops": peak, "paper": PAPER[options.size], "goal": GOAL, "visits": []}
    for number in range(options.rounds):
        for row in rows:
            found = visit(row, sizes, options.device, options.warm, options.steps)
            result["visits"].append({"round": number, **found})
            said = found.get("out_of_memory") or f"{statistics.median(found['step_s']):.3f} s, {found['peak_bytes'] / 1e9:.2f} GB"
            harness.tell(f"round {number + 1} of {options.rounds}, {row.label}: {said}")
            harness.write(result, options.out)  # device time may end between two visits
    result["rows"] = summarise(result["visits"], rows, sizes, peak)
    harness.write(result, options.out)
    print(report(result))
    return result


if __name__ == "__main__":
    main()
