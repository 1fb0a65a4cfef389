"""Captioning: dropped layers, image-grouped batches, cached features, beams. Alternating in one run, predictions beside times.

    python benchmarks/captioning.py dropped --out dropped.json   # I-Tuning in the upper half of the layers / in all
    python benchmarks/captioning.py grouped --out grouped.json   # an image encoded once for all its captions / once a caption
    python benchmarks/captioning.py cached --out cached.json     # visual tokens read from the feature cache / encoded on the fly
    python benchmarks/captioning.py beams --out beams.json       # beam search / plain language model / keys anew for every beam
    python benchmarks/captioning.py dropped --device cuda --size medium      # bf16; pairs/s, captions/s, peak memory
    python benchmarks/captioning.py grouped --size tiny --rounds 2           # does it run at all?

GPT-2 base (medium, large) and CLIP-ViT B/16 (224 px: 197 tokens of 768) with random weights; captions of 20 tokens with their
end token; I-Tuning as the paper reads, language model and tower frozen. A training step is forward, loss, backward and AdamW,
without Lightning's loop and without data loading. Generation is beam search with 5 beams, every caption 16 tokens long. What two
rows must have equal (losses and gradients, token ids) is compared before anything is timed, and the run ends where it is not.

How to read it
- The measure is CPU seconds of the process, with one thread; on a GPU it is wall seconds, synchronised (`harness.READING`).
- Three predictions (`captioning_work.py`). "FLOPs": 2 a multiplication and addition in products and attention. "moved": bytes of
  their operands and results, each moved once. "products": these products and attentions alone, timed in their shapes: it knows
  both FLOPs and bytes, since a product of a few rows runs at the speed of memory and not of arithmetic. Goals are against it.
- "saved" are bytes that autograd keeps for the backward pass, counted (metrics/training_memory.py) and by formula.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

# The file is run by its path: the packages beside this folder must be found without an installation, too.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor

from benchmarks import harness
from benchmarks.captioning_work import SIZES, Batch, Size, Work, clock, generation, now, predict, saved_bytes, training
from datamodules.loading.features import FeatureFile, Precision
from datamodules.records import ImageBatch, TextBatch
from lightning_modules import optimization
from lightning_modules.adapters.i_tuning import ITuning, ITuningModule, ITuningModules, Rows
from lightning_modules.adapters.tuning import set_tuning
from lightning_modules.metrics.training_memory import SavedBytes
from lightning_modules.networks.captioner import Captioner, VisualFeatures
from lightning_modules.networks.language_model import Decoding, LanguageModel
from lightning_modules.networks.towers.hugging_face import HFImageTower
from lightning_modules.optimization import Optimization

GOALS = {
    "dropped": 0.03,  # reduction of time and saved bytes: at most so far from the prediction
    "grouped": 2.0,  # times the pairs/s of one encoding a caption, at five captions an image
    "naive": 4.5,  # times the captions/s of keys and values recomputed for every beam and step
    "plain": 1.15,  # of the time of the plain language model
}


# -------------------------------------------------------------------------------------------------------------- what runs


def captioner(size: Size, dropped: int = 0, device: str = "cpu") -> tuple[Captioner, ITuning]:
    """Random weights, the same at every call; only the modules train."""
    torch.manual_seed(0)
    end = size.vocabulary - 1
    language = {
        "model_type": "gpt2", "n_embd": size.width, "n_layer": size.layers, "n_head": size.heads, "vocab_size": size.vocabulary,
        "bos_token_id": end, "eos_token_id": end,
    }  # fmt: skip
    tower = {
        "model_type": "clip_vision_model", "hidden_size": size.tower_width, "intermediate_size": 4 * size.tower_width,
        "num_hidden_layers": size.tower_layers, "num_attention_heads": size.tower_heads, "image_size": size.image_size,
        "patch_size": size.patch_size,
    }  # fmt: skip
    network, adapter = Captioner(HFImageTower(config=tower), LanguageModel(config=language)), ITuning(drop_first=dropped)
    adapter.inject(network)
    set_tuning(network, adapter, "adapter")
    return network.to(device).eval(), adapter  # modules have no dropout: eval is their training mode, too


def captions(size: Size, batch: Batch, device: str) -> tuple[TextBatch, Tensor]:
    """Random captions without padding, and the image row of each."""
    draw = torch.Generator().manual_seed(1)
    tokens_BT = torch.randint(0, size.vocabulary - 1, (batch.pairs, batch.tokens), generator=draw)
    tokens_BT[:, -1] = size.vocabulary - 1
    row_B = torch.arange(batch.images).repeat_interleave(batch.captions)
    names = tuple(map(str, range(batch.pairs)))
    texts = TextBatch(names, ("",) * batch.pairs, torch.arange(batch.pairs), row_B, tokens_BT, tokens_BT >= 0)
    return texts.to(device), row_B.to(device)


def pixels(size: Size, images: int, device: str) -> ImageBatch:
    """Random images."""
    draw = torch.Generator().manual_seed(2)
    pixels_I3HW = torch.randn(images, 3, size.image_size, size.image_size, generator=draw)
    return ImageBatch(tuple(map(str, range(images))), torch.arange(images), pixels_I3HW).to(device)


def visual_tokens(size: Size, images: int, device: str) -> VisualFeatures:
    """Random tokens in place of a tower's."""
    return VisualFeatures(
        torch.randn(images, size.visual, size.tower_width, generator=torch.Generator().manual_seed(2)).to(device)
    )


class Step:
    """A training step in parts.

    Args:
        network: The captioner.
        adapter: Its adapter.
        encode: Gives the visual tokens.
        texts: Captions.
        image_row_B: Image of each.
    """

    def __init__(
        self, network: Captioner, adapter: ITuning, encode: Callable[[], VisualFeatures], texts: TextBatch, image_row_B: Tensor
    ) -> None:
        self.network, self.encode, self.texts, self.image_row_B = network, encode, texts, image_row_B
        self.device = image_row_B.device.type
        self.optimizer, _ = optimization.build(network, Optimization(lr=1e-4), 100_000, adapter.owns)

    def loss(self) -> Tensor:
        with harness.autocast(self.device):
            return self.network.loss(self.encode(), self.texts, self.image_row_B)["loss"]

    def gradients(self) -> tuple[float, list[Tensor]]:
        """Loss and gradients, and nothing left of them."""
        loss = self.loss()
        loss.backward()
        found = [parameter.grad for parameter in self.network.parameters() if parameter.grad is not None]
        self.optimizer.zero_grad()
        return loss.item(), found

    def __call__(self) -> dict[str, float]:
        """CPU and wall seconds of a whole step, and the measure's seconds of its parts."""
        marks: list[float] = []

        def parts() -> None:
            marks.append(now(self.device))
            with harness.autocast(self.device):
                features = self.encode()
                marks.append(now(self.device))
                loss = self.network.loss(features, self.texts, self.image_row_B)["loss"]
            marks.append(now(self.device))
            loss.backward()
            marks.append(now(self.device))
            self.optimizer.step()
            self.optimizer.zero_grad()
            marks.append(now(self.device))

        names = ("see_s", "forward_s", "backward_s", "optimizer_s")
        whole = harness.timed(parts, self.device)
        return whole | {name: after - before for name, before, after in zip(names, marks, marks[1:], strict=False)}

    def memory(self) -> dict[str, int]:
        """Bytes saved for the backward pass, and the allocator's peak where there is one; takes a step."""
        with SavedBytes(exclude=self.network) as saved:
            self.loss().backward()
        self.optimizer.zero_grad()
        return {"saved": saved.peak_bytes, **allocated(self)}


class Generate:
    """Beam search, every caption of equal length.

    Args:
        network: The captioner.
        features: Images; None = the plain language model, which sees none.
        images: How many.
        beams: Of each.
        tokens: Of each.
        naive: Keys and values are computed for every beam and step.
    """

    def __init__(
        self, network: Captioner, features: VisualFeatures | None, images: int, beams: int, tokens: int, naive: bool = False
    ) -> None:
        self.network, self.features, self.beams, self.naive = network, features, beams, naive
        self.device = next(network.parameters()).device.type
        self.decoding = Decoding(num_beams=beams, max_new_tokens=tokens, min_new_tokens=tokens)
        language = network.language
        self.begin = torch.full((images, 1), language.bos, dtype=torch.int64, device=self.device)

    def ids(self) -> list[list[int]]:
        with harness.autocast(self.device):
            if self.features is None:
                self.network.clear_images()
                return self.network.language.generate(self.decoding, input_ids=self.begin)
            modules = self.network.i_tuning
            assert modules is not None
            anew = recomputed(modules, self.features.tokens_IVD, self.beams) if self.naive else nullcontext()
            with anew:
                return self.network.generate_ids(self.features, self.decoding)

    def __call__(self) -> dict[str, float]:
        return harness.timed(self.ids, self.device)

    def memory(self) -> dict[str, int]:
        return allocated(self)


def allocated(turn: Step | Generate) -> dict[str, int]:
    """The allocator's peak in one turn, where there is one."""
    if turn.device != "cuda":
        return {}
    torch.cuda.reset_peak_memory_stats()
    turn()
    return {"peak": torch.cuda.max_memory_allocated()}


@contextmanager
def recomputed(modules: ITuningModules, tokens_IVD: Tensor, beams: int) -> Iterator[None]:
    """The naive way: whenever an FFN is called, its module computes keys and values of the image of every beam."""
    repeated_RVD = tokens_IVD.repeat_interleave(beams, 0)
    rows = Rows(len(repeated_RVD), 1, None)
    own = list(modules.modules_by_layer().values())

    def forward(module: ITuningModule, x: Tensor, features: Any) -> Tensor:
        return ITuningModule.forward(module, x, module.keys_values(repeated_RVD, rows))

    for module in own:
        module.forward = partial(forward, module)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in own:
            del module.forward


# -------------------------------------------------------------------------------------------------------------- comparisons


@dataclass(frozen=True)
class Row:
    """What is timed, and what it is compared with.

    Args:
        turn: What is timed.
        work: Its products.
        units: Its pairs or captions.
        reference: Name of the row that it is compared with.
        formula: Saved bytes by formula (fp32).
    """

    turn: Step | Generate
    work: list[Work]
    units: int
    reference: str
    formula: int | None = None


def compare(asked: Mapping[str, Row], options: argparse.Namespace) -> dict[str, Any]:
    """Memory, interleaved times and predictions of every row."""
    kind, dtype = ("wall", torch.bfloat16) if options.device == "cuda" else ("cpu", torch.float32)
    memory = {name: row.turn.memory() for name, row in asked.items()}
    clocked = clock([each for row in asked.values() for each in row.work], options.device, dtype)
    steps = harness.interleave({name: row.turn for name, row in asked.items()}, options.rounds, warm=1)
    predictions = {name: predict(row.work, clocked) for name, row in asked.items()}
    rows = []
    for name, given in asked.items():
        first, reference = given.reference, asked[given.reference]
        measured = harness.summary(steps, name, first)
        seconds = measured[f"{kind}_s"]
        own = [step for step in steps if step["row"] == name]
        row: dict[str, Any] = {
            "name": name,
            "reference": first,
            "ratio": measured[f"{kind}_ratio"],
            "predicted": {
                key: predictions[name][key] / predictions[first][key] for key in ("flops", "moved_bytes", "products_s")
            },
            "units_per_s": given.units / seconds,
            # pairs/s or captions/s as a multiple of the reference's
            "throughput_ratio": given.units / reference.units / measured[f"{kind}_ratio"]["median"],
            "parts_s": {
                part: statistics.median(step[part] for step in own)
                for part in ("see_s", "forward_s", "backward_s", "optimizer_s")
                if part in own[0]
            },
            "memory_bytes": memory[name],
            "work": predictions[name],
            "gflops_per_s": predictions[name]["flops"] / seconds / 1e9,
            **measured,
        }
        row |= {f"{key}_ratio": size / memory[first][key] for key, size in memory[name].items()}
        if given.formula and reference.formula:
            row |= {"saved_formula": given.formula, "saved_predicted": given.formula / reference.formula}
        rows.append(row)
    return {"rows": rows, "steps": steps, "products": [{"shape": shape, "s": s} for shape, s in clocked.items()]}


def require(holds: bool, what: str) -> None:
    if not holds:
        raise SystemExit(f"the ways do not compute the same, so there is nothing to compare: {what}")


def dropped(size: Size, options: argparse.Namespace) -> dict[str, Any]:
    """Modules in all layers against the upper half: training at each number of captions, generation."""
    lower, device = size.layers // 2, options.device
    networks = {"all": captioner(size, 0, device), "half": captioner(size, lower, device)}
    rows = {}
    for count in options.captions:
        batch = Batch(options.images, count, options.tokens)
        for name, (network, adapter) in networks.items():
            less, features = lower if name == "half" else 0, visual_tokens(size, batch.images, device)
            turn = Step(network, adapter, lambda features=features: features, *captions(size, batch, device))  # type: ignore[misc]
            formula = saved_bytes(size, batch, less) if device == "cpu" else None
            reference = f"train, {count} an image, all"
            rows[f"train, {count} an image, {name}"] = Row(turn, training(size, batch, less), batch.pairs, reference, formula)
    images, made = options.images, (options.images, options.beams, options.new_tokens)
    for name, (network, _) in networks.items():
        modules = size.layers - (lower if name == "half" else 0)
        search = Generate(network, visual_tokens(size, images, device), *made)
        rows[f"generate, {name}"] = Row(search, generation(size, *made, modules, [images]), images, "generate, all")
    return compare(rows, options)


def grouped(size: Size, options: argparse.Namespace) -> dict[str, Any]:
    """An image and its keys and values once for all its captions, against once a caption."""
    device = options.device
    network, adapter = captioner(size, 0, device)
    rows, checks = {}, []
    for count in options.captions:
        batch = Batch(options.images, count, options.tokens)
        texts, row_B = captions(size, batch, device)
        images = pixels(size, batch.images, device)
        assert images.pixels_B3HW is not None
        repeated = replace(images, pixels_B3HW=images.pixels_B3HW.index_select(0, row_B))
        each, once = f"{count} an image, encoded for each", f"{count} an image, encoded once"
        apart = Step(network, adapter, partial(network.encode_images, repeated), texts, torch.arange(batch.pairs, device=device))
        together = Step(network, adapter, partial(network.encode_images, images), texts, row_B)
        rows[each] = Row(apart, training(size, batch, 0, batch.pairs, batch.pairs), batch.pairs, each)
        rows[once] = Row(together, training(size, batch, 0, batch.images), batch.pairs, each)
        cpu = device == "cpu"
        checks.append({"captions": count, **equal_steps(apart, together, 1e-4 if cpu else 1e-2, exact=cpu)})
    return {"checks": checks, **compare(rows, options)}


def equal_steps(a: Any, b: Any, tolerance: float, exact: bool = True) -> dict[str, float]:
    """Differences of losses and gradients, relative to the largest of each.

    In 12 layers of random weights with unscaled attention and lambda 4, a change of the visual tokens by 1e-6 changes gradients
    by 1e-2: where the inputs are not `exact` (rounded to fp16 or bf16), only losses can be required to agree.

    Raises:
        SystemExit: One is larger than `tolerance`.
    """
    (loss_a, gradients_a), (loss_b, gradients_b) = a.gradients(), b.gradients()
    largest = max(gradient.abs().max().item() for gradient in gradients_a)
    apart = max((x - y).abs().max().item() for x, y in zip(gradients_a, gradients_b, strict=True)) / largest
    found = {"loss": loss_a, "loss_difference": abs(loss_a - loss_b) / abs(loss_a), "gradient_difference": apart}
    require(max(found["loss_difference"], apart if exact else 0.0) <= tolerance, str(found))
    return found


def cached(size: Size, options: argparse.Namespace) -> dict[str, Any]:
    """Visual tokens by the tower in every step, against read from the feature cache (decoding photographs would come on top)."""
    device = options.device
    network, adapter = captioner(size, 0, device)
    images = pixels(size, options.images, device)
    rows, checks = {}, []
    with tempfile.TemporaryDirectory() as folder:
        kept: dict[Precision, Callable[[], VisualFeatures]] = {
            dtype: stored(network, images, Path(folder), dtype) for dtype in ("float16", "float32")
        }
        for count in options.captions:
            batch = Batch(options.images, count, options.tokens)
            texts, row_B = captions(size, batch, device)
            fly, read = f"{count} an image, on the fly", f"{count} an image, cached"
            encoded = Step(network, adapter, partial(network.encode_images, images), texts, row_B)
            unrounded, rounded = (Step(network, adapter, kept[dtype], texts, row_B) for dtype in ("float32", "float16"))
            rows[fly] = Row(encoded, training(size, batch, 0, batch.images), batch.pairs, fly)
            rows[read] = Row(rounded, training(size, batch), batch.pairs, fly)
            for dtype, step in (("float32", unrounded), ("float16", rounded)):
                exact = dtype == "float32" and device == "cpu"
                apart = equal_steps(encoded, step, 1e-6 if exact else 1e-2, exact)
                checks.append({"captions": count, "dtype": dtype, **apart})
        return {"checks": checks, **compare(rows, options)}


def stored(network: Captioner, images: ImageBatch, root: Path, dtype: Precision) -> Callable[[], VisualFeatures]:
    """Writes the tokens of these images to a feature file; what a step does to have them from there."""
    with torch.no_grad():
        tokens_IVD = network.encode_images(images).tokens_IVD.float().cpu()
    about = dict(zip(("images", "tokens", "width"), tokens_IVD.shape, strict=True))
    file = FeatureFile.make(root, {"data": "random", "split": "train", **about, "dtype": dtype})
    file.write(0, tokens_IVD.numpy().astype(dtype))
    rows, device = images.index_B.tolist(), images.index_B.device

    def encode() -> VisualFeatures:
        tokens_BVD = torch.from_numpy(file.read(rows)).to(device)
        return network.encode_images(replace(images, pixels_B3HW=None, tokens_BVD=tokens_BVD))

    return encode


def beams(size: Size, options: argparse.Namespace) -> dict[str, Any]:
    """Beam search with modules in all layers and in half of them, against the naive way and the plain language model."""
    device, images, steps = options.device, options.images, options.new_tokens
    networks = {"ours": captioner(size, 0, device)[0], "half": captioner(size, size.layers // 2, device)[0]}
    features = visual_tokens(size, images, device)
    make = partial(Generate, images=images, beams=options.beams, tokens=steps)
    own = partial(generation, size, images, options.beams, steps)
    plain, naively = "plain language model", "keys and values for every beam and step"
    every = {
        plain: (make(networks["ours"], None), own(0, [])),
        "all layers": (make(networks["ours"], features), own(size.layers, [images])),
        "upper half": (make(networks["half"], features), own(size.layers - size.layers // 2, [images])),
        naively: (make(networks["ours"], features, naive=True), own(size.layers, [images * options.beams] * steps)),
    }
    ids = {name: search.ids() for name, (search, _) in every.items()}
    same = ids["all layers"] == ids[naively]
    require(all(len(row) == steps for rows in ids.values() for row in rows), "captions are not of equal length")
    if device == "cpu":  # in bf16 products of other shapes round otherwise
        require(same, "token ids of the naive way differ")
    result = compare({name: Row(*each, images, plain) for name, each in every.items()}, options)
    kind = "wall" if device == "cuda" else "cpu"
    naive = harness.summary(result["steps"], naively, "all layers")[f"{kind}_ratio"]
    return {"checks": [{"equal_ids": same}], "naive_ratio": naive, **result}


WHATS: dict[str, Callable[[Size, argparse.Namespace], dict[str, Any]]] = {
    "dropped": dropped,
    "grouped": grouped,
    "cached": cached,
    "beams": beams,
}


# ------------------------------------------------------------------------------------------------------------------- report


def goals(what: str, result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was to be reached, what was, and whether."""
    rows = {row["name"]: row for row in result["rows"]}
    compared = [row for row in rows.values() if row["name"] != row["reference"]]

    def goal(text: str, value: float, wanted: str = "", reached: bool | None = None) -> dict[str, Any]:
        return {"what": text, "value": value, "goal": wanted, "reached": reached}

    if what == "beams":
        naive, ours = result["naive_ratio"]["median"], rows["all layers"]["ratio"]["median"]
        text = "captions/s, times those of keys and values for every beam and step"
        return [
            goal(text, naive, f"at least {GOALS['naive']}", naive >= GOALS["naive"]),
            goal("time, times that of the plain language model", ours, f"at most {GOALS['plain']}", ours <= GOALS["plain"]),
        ]
    found = []
    for row in compared:
        if what == "dropped":
            pairs = [("time", row["ratio"]["median"], row["predicted"]["products_s"], "products")]
            if "saved_predicted" in row:
                pairs.append(("saved bytes", row["saved_ratio"], row["saved_predicted"], "formula"))
            for thing, measured, predicted, source in pairs:
                text = f"{row['name']}: {thing}, part saved ({source}: {1 - predicted:.3f}), points apart"
                reached = abs(measured - predicted) <= GOALS["dropped"]
                line = goal(text, 100 * (predicted - measured), f"within {100 * GOALS['dropped']:.0f}", reached)
                found.append({**line, "measured": 1 - measured})
            continue
        line = goal(f"{row['name']}: pairs/s, times", row["throughput_ratio"])
        if what == "grouped" and row["name"].startswith("5 "):
            line |= {"goal": f"at least {GOALS['grouped']:.0f}", "reached": line["value"] >= GOALS["grouped"]}
        found.append(line)
    return found


def report(result: Mapping[str, Any]) -> str:
    """Tables, as Markdown."""
    size = result["sizes"]
    lines = [
        f"Captioning {result['what']}: GPT-2 {size['layers']}x{size['width']}, {result['images']} images, captions of "
        f"{result['tokens']} tokens, {result['beams']} beams of {result['new_tokens']} tokens, {result['precision']}, "
        f"{result['threads']} thread(s), {result['rounds']} interleaved rounds. Measure: {result['measure']}.",
        harness.machine_line(result, result["steps"]),
        "",
    ]
    head = [
        "row", "time / reference", "products /", "FLOPs /", "moved /", "ms", "units/s", "GFLOP", "GFLOP/s", "saved MB", "saved /",
        "formula /", "peak GB", "peak /",
    ]  # fmt: skip
    cells = []
    kind = "cpu" if result["precision"] == "fp32" else "wall"
    for row in result["rows"]:
        memory = row["memory_bytes"]
        cells.append(
            [
                row["name"] + (" (reference)" if row["name"] == row["reference"] else ""),
                harness.spread(row["ratio"]),
                *(f"{row['predicted'][key]:.3f}" for key in ("products_s", "flops", "moved_bytes")),
                f"{1000 * row[f'{kind}_s']:,.0f}",
                f"{row['units_per_s']:.2f}",
                f"{row['work']['flops'] / 1e9:.4g}",
                f"{row['gflops_per_s']:,.0f}",
                f"{memory['saved'] / 1e6:,.1f}" if "saved" in memory else "",
                f"{row['saved_ratio']:.3f}" if "saved_ratio" in row else "",
                f"{row['saved_predicted']:.3f}" if "saved_predicted" in row else "",
                f"{memory['peak'] / 1e9:.2f}" if "peak" in memory else "",
                f"{row['peak_ratio']:.3f}" if "peak" in memory else "",
            ]
        )
    lines.append(harness.table(head, cells))
    stepped = [row for row in result["rows"] if row["parts_s"]]
    if parts := [[row["name"], *(f"{1000 * s:.1f}" for s in row["parts_s"].values())] for row in stepped]:
        lines += ["", harness.table(["row", "see ms", "forward ms", "backward ms", "AdamW ms"], parts)]
    cells = []
    for row in result["rows"]:
        for part, work in row["work"]["parts"].items():
            rate = f"{work['flops'] / work['products_s'] / 1e9:,.0f}" if work["products_s"] else ""
            moved, taken = f"{work['moved_bytes'] / 1e6:,.0f}", f"{1000 * work['products_s']:.1f}"
            cells.append([f"{row['name']}: {part}", f"{work['flops'] / 1e9:.4g}", taken, rate, moved])
    lines += ["", harness.table(["row, products of", "GFLOP", "products ms", "GFLOP/s", "moved MB"], cells)]
    lines.append("")
    for goal in result["goals"]:
        reached = {True: ": reached", False: ": MISSED", None: ""}[goal["reached"]]
        lines.append(f"{goal['what']}: {goal['value']:.2f} {goal['goal'] and '(goal: ' + goal['goal'] + ')'}{reached}")
    lines += [f"equal: {check}" for check in result.get("checks", ())]
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    made = harness.command_line(f"{__doc__}{harness.READING}", devices=("cpu", "cuda"), threads=1, rounds=5)
    add = made.add_argument
    add("what", choices=list(WHATS))
    add("--size", choices=list(SIZES), default="base")
    add("--images", type=int, help="of a batch; default 4, on a GPU 64 (generation and training alike)")
    add("--captions", type=int, nargs="+", help="of each image, a row each; default 5, and 1 where that tells something")
    add("--tokens", type=int, default=20, help="of a caption in training, end token included")
    add("--beams", type=int, default=5)
    add("--new-tokens", type=int, default=16, help="of a generated caption")
    return made


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print the tables, return what --out would hold."""
    options = parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    cuda = options.device == "cuda"
    options.images = options.images or (64 if cuda else 4)
    options.captions = options.captions or ([5] if options.what == "grouped" else [1, 5])
    size = SIZES[options.size]
    settings = {
        "what": options.what,
        "size": options.size,
        "sizes": asdict(size),
        "measure": "wall seconds, synchronised" if cuda else "CPU seconds of the process (the cores are shared)",
        "precision": "bf16 autocast" if cuda else "fp32",
        **{name: getattr(options, name) for name in ("images", "captions", "tokens", "beams", "new_tokens", "rounds", "threads")},
    }
    result = harness.heading(f"captioning {options.what}", options.device, settings)
    result |= WHATS[options.what](size, options)
    result["goals"] = goals(options.what, result)
    print(report(result))
    harness.write(result, options.out)
    return result


if __name__ == "__main__":
    main()
