"""BEiT-3's training step: ours against the official code's, and MultiWay-Adapter against full tuning. Interleaved in one run.

    python benchmarks/beit3_step.py official --out official.json   # (a) our full step / Microsoft's encoder (torchscale 0.2.0)
    python benchmarks/beit3_step.py modes --out modes.json         # (b) MWA, KE, released / full
    python benchmarks/beit3_step.py modes --size tiny --rounds 1   # does it run at all?

What runs: `RetrievalModule`'s own step (forward, contrastive loss, backward, AdamW, schedule) on one random batch, without
Lightning's loop and without data loading, at the sizes the official code was timed at before (width 192, 6
layers, 112 px, batch 16, captions of 24 tokens padded to 32, drop path 0.1, fp32, one thread).

(a) Two processes stay alive and take turns, step by step; each measures its own CPU seconds. torchscale is installed by itself
    (`--no-deps`) into a folder of its own on the first run and seen only by that process (`beit3_reference.py`). Before the
    timing both compute loss and gradients from the same weights (through our map to the official names) on the same batch with
    drop path off, and the run ends here if they differ. The headline has equal inputs: 32 tokens for both. The official data
    set pads every caption to a fixed length, our data module to the longest of the batch; what that saves is a line of its own.
(b) One process. The adapters' widths are scaled like the network (KE 16, AE 32 a modality); `released` has the published code's
    AE, as wide as the FFN. Heads are frozen in all adapter rows, as in the paper's count.

How to read it
- Ratios are to the first row (`harness.READING`).
- "counted" FLOPs are what torch counts while the step runs; they know that the last layer owes a retrieval head one token only.
  "textbook" FLOPs are those of the official architecture (all tokens in all layers, attention in separate products), by formula.
- Peak resident size is of the whole process; what the imports alone take is printed beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

# The file is run by its path: the packages beside this folder must be found without an installation, too.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from benchmarks import harness
from benchmarks.beit3_reference import Sizes, random_batch, serve_steps
from benchmarks.flops import transformer_flops
from benchmarks.tuning_step import TuningStep
from benchmarks.workers import Worker, packages_alone, resident_bytes
from datamodules.records import ImageBatch, PairBatch, TextBatch
from lightning_modules.adapters.multiway import MultiWayAdapter
from lightning_modules.checkpoints.beit3 import to_official
from lightning_modules.networks.beit3 import BEiT3Retrieval, DropPath
from lightning_modules.optimization import Optimization
from lightning_modules.retrieval import RetrievalModule

HERE = Path(__file__).resolve().parent
TORCHSCALE = "torchscale==0.2.0"
SIZES = {
    "facts": Sizes(),
    "tiny": Sizes(32, 3, 2, 48, 32, 16, vocabulary=64, text_positions=16, batch=4, text_tokens=8, real_tokens=6),
}
KNOWLEDGE, ALIGNMENT = 16, 32  # of the paper's 64 and 128, scaled as width 192 is of 768
LABELS = {"full": "full", "mwa": "MWA (KE 16 + AE 32)", "ke": "KE only", "released": "released (AE as wide as the FFN)"}
GOALS = {"mwa": 0.71, "ke": 0.66}
OFFICIAL_GOAL = 0.7


# ------------------------------------------------------------------------------------------------------------- our own step


def network(sizes: Sizes, checkpoint_activations: bool = False) -> BEiT3Retrieval:
    """A `BEiT3Retrieval` with random weights, the same at every call."""
    torch.manual_seed(0)
    return BEiT3Retrieval(
        image_size=sizes.image_size,
        width=sizes.width,
        num_layers=sizes.layers,
        num_heads=sizes.heads,
        ffn_width=sizes.ffn_width,
        patch_size=sizes.patch_size,
        vocab_size=sizes.vocabulary,
        text_positions=sizes.text_positions,
        tokenizer="none",
        weights="random",
        max_tokens=min(64, sizes.text_positions - 2),
        drop_path=sizes.drop_path,
        checkpoint_activations=checkpoint_activations,
    )


def pairs(sizes: Sizes, longest: bool = False) -> PairBatch:
    """The random batch as a `PairBatch`; with `longest`, captions are cut to their `real_tokens`."""
    pixels, tokens, mask = random_batch(sizes)
    index_B, names = torch.arange(sizes.batch), tuple(str(row) for row in range(sizes.batch))
    cut = slice(None, sizes.real_tokens if longest else None)
    return PairBatch(ImageBatch(names, index_B, pixels), TextBatch(names, names, index_B, index_B, tokens[:, cut], mask[:, cut]))


def module(mode: str, sizes: Sizes) -> RetrievalModule:
    """A row's module."""
    adapter = {
        "full": lambda: None,
        "mwa": lambda: MultiWayAdapter("printed", knowledge_extractor_mid=KNOWLEDGE, alignment_enhancer_mid=ALIGNMENT),
        "ke": lambda: MultiWayAdapter("printed", knowledge_extractor_mid=KNOWLEDGE, alignment_enhancer=False),
        "released": lambda: MultiWayAdapter("released", knowledge_extractor_mid=KNOWLEDGE),
    }[mode]()
    tuning: Any = "full" if mode == "full" else "adapter"
    optimization = Optimization(lr=1e-4, weight_decay=0.05)
    # eval_frozen false, as the official recipe: frozen layers keep their drop path, so every row drops the same share of its work
    return RetrievalModule(network(sizes), adapter, tuning, train_heads="none", optimization=optimization, eval_frozen=False)


class Ours(TuningStep):
    """One row of ours, ready to step.

    Args:
        mode: A key of `LABELS`.
        sizes: Sizes of network and batch.
    """

    def __init__(self, mode: str, sizes: Sizes) -> None:
        super().__init__(module(mode, sizes))
        self.batches = {"padded": pairs(sizes), "longest": pairs(sizes, longest=True)}

    def check(self, weights: str, gradients: str) -> dict[str, Any]:
        """Writes our weights to `weights` under the official names; loss and gradients of them with drop path off."""
        from safetensors.torch import save_file

        network = self.module.network
        save_file({n: t.detach().clone() for n, t in to_official(network.state_dict()).items()}, weights)
        self.module.eval()
        self.optimizer.zero_grad()
        loss = self.module.training_step(self.batches["padded"], 0)
        loss.backward()
        found = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
        save_file({n: g.clone() for n, g in to_official(found).items()}, gradients)
        self.module.train()
        self.optimizer.zero_grad()
        return {"loss": loss.item(), "parameters": sum(p.numel() for p in network.parameters())}

    def step(self, text: str = "padded") -> dict[str, float]:
        """One training step on captions padded to `text_tokens`, or cut to the longest."""
        return harness.timed(lambda: self.whole(self.batches[text]))

    def flops(self, text: str = "padded") -> int:
        """Of one forward and backward pass, counted by torch without drop path (how much it saves is drawn)."""
        drops = {part: part.probability for part in self.module.modules() if isinstance(part, DropPath)}
        for part in drops:
            part.probability = 0.0
        counter = self.counted(self.batches[text])
        for part, probability in drops.items():
            part.probability = probability
        return counter.get_total_flops()

    def memory(self) -> dict[str, int]:
        """Bytes that one step keeps; takes a step."""
        parts = self.kept_bytes(self.batches["padded"])
        return parts | {"all": sum(parts.values())}


def worker(sizes: Sizes, threads: int) -> None:
    """Our side of (a), in a process of its own like the official one."""
    torch.set_num_threads(threads)
    imported = resident_bytes(peak=False)
    serve_steps(Ours("full", sizes), imported)


# ------------------------------------------------------------------------------------------------------------ FLOPs by hand


def adapter_widths(mode: str, sizes: Sizes, knowledge: int = KNOWLEDGE, alignment: int = ALIGNMENT) -> tuple[int, ...]:
    """Middle widths of a layer's KE and AE."""
    return {"full": (), "mwa": (knowledge, alignment), "ke": (knowledge,), "released": (knowledge, sizes.ffn_width)}[mode]


def closed_form(sizes: Sizes, mids: Sequence[int], pooled: bool = False, fused: bool = False) -> int:
    """FLOPs of forward and backward of one batch: both passes, heads (frozen beside adapters), the contrastive loss's products.

    The defaults are the textbook count, which is the official code's; ours is `pooled`.
    """
    d = sizes.width
    stem = (sizes.image_tokens - 1) * 2 * 3 * sizes.patch_size**2 * d
    encoder = partial(transformer_flops, d, sizes.ffn_width, sizes.layers, mids=mids, pooled=pooled, fused=fused)
    both = sum(encoder(tokens=sizes.image_tokens, stem=stem)) + sum(encoder(tokens=sizes.text_tokens))
    heads = 2 * 2 * d * d * (2 if mids else 3)
    return sizes.batch * (both + heads) + 2 * 3 * 2 * sizes.batch**2 * d


# -------------------------------------------------------------------------------------------------------------- measurement


def torchscale_folder(given: Path | None) -> Path:
    """The folder with torchscale alone."""
    return packages_alone(TORCHSCALE, given)


def differences(ours: Path, official: Path) -> dict[str, Any]:
    """Largest relative deviation of a gradient tensor (largest difference by largest value), and whose it is."""
    from safetensors.torch import load_file

    a, b = load_file(ours), load_file(official)
    if a.keys() != b.keys():
        raise SystemExit(f"gradients of different parameters: {sorted(a.keys() ^ b.keys())[:5]}")
    scale = max(tensor.abs().max().item() for tensor in b.values())
    floor = 1e-6 * scale  # a bias of the keys has no gradient but rounding: softmax does not see it
    deviations = {n: ((a[n] - b[n]).abs().max() / b[n].abs().max().clamp_min(floor)).item() for n in b}
    worst = max(deviations, key=lambda name: deviations[name] if b[name].abs().max() > 1e-5 * scale else 0.0)
    return {"tensors": len(b), "largest_relative": deviations[worst], "of": worst}


def against_official(sizes: Sizes, rounds: int, threads: int, packages: Path) -> dict[str, Any]:
    """(a): check that both compute the same, then time them in turns."""
    common = ["--threads", str(threads), "--sizes", sizes.dump()]
    official = Worker([str(HERE / "beit3_reference.py"), "--packages", str(packages), *common])
    ours = Worker([str(HERE / "beit3_step.py"), "worker", *common])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = [str(folder / file) for file in ("weights.safetensors", "ours.safetensors", "official.safetensors")]
        a = ours.ask("check", weights=files[0], gradients=files[1])
        b = official.ask("check", weights=files[0], gradients=files[2])
        check = {"loss": a["loss"], "loss_difference": abs(a["loss"] - b["loss"]), "parameters": a["parameters"]}
        check["gradients"] = differences(Path(files[1]), Path(files[2]))
    if check["loss_difference"] > 1e-5 or check["gradients"]["largest_relative"] > 1e-3 or a["parameters"] != b["parameters"]:
        raise SystemExit(f"the two do not compute the same, so there is nothing to compare: {check}")
    harness.tell(f"same loss and gradients: {check}")
    flops = {
        "official": official.ask("flops"),
        "ours": ours.ask("flops"),
        "ours_longest": ours.ask("flops", text="longest"),
    }
    turns = {
        "official": lambda: official.ask("step"),
        "ours": lambda: ours.ask("step"),
        "ours_longest": lambda: ours.ask("step", text="longest"),
    }
    for process in (official, ours):
        process.ask("forget_peak")
    steps = harness.interleave(turns, rounds)
    memory = {"official": official.ask("memory"), "ours": ours.ask("memory")}
    for process in (official, ours):
        process.close()
    labels = {
        "official": f"official (torchscale 0.2.0), {sizes.text_tokens} text tokens",
        "ours": f"ours, {sizes.text_tokens} text tokens (equal inputs)",
        "ours_longest": f"ours, padded to the longest caption ({sizes.real_tokens})",
    }
    rows = [
        {
            "name": name,
            "label": labels[name],
            "flops": flops[name],
            "flops_ratio": flops[name] / flops["official"],
            "memory_bytes": memory.get(name),
            **harness.summary(steps, name, "official"),
        }
        for name in turns
    ]
    return {"check": check, "rows": rows, "steps": steps, "goal": OFFICIAL_GOAL}


def modes(sizes: Sizes, names: Sequence[str], rounds: int, threads: int) -> dict[str, Any]:
    """(b): our modes against the first of them."""
    torch.set_num_threads(threads)
    variants = {name: Ours(name, sizes) for name in names}
    facts = {name: (variant.flops(), variant.memory()) for name, variant in variants.items()}
    steps = harness.interleave({name: variant.step for name, variant in variants.items()}, rounds)
    first = names[0]
    rows = []
    for name, variant in variants.items():
        counted, memory = facts[name]
        mids = adapter_widths(name, sizes)
        textbook = closed_form(sizes, mids)
        rows.append(
            {
                "name": name,
                "label": LABELS[name],
                "tunable_parameters": variant.module.counts.trainable,
                "total_parameters": variant.module.counts.total,
                "flops": counted,
                "flops_formula": closed_form(replace(sizes, text_tokens=sizes.real_tokens), mids, pooled=True, fused=True),
                "flops_ratio": counted / facts[first][0],
                "textbook_flops": textbook,
                "textbook_ratio": textbook / closed_form(sizes, adapter_widths(first, sizes)),
                "memory_bytes": memory,
                "memory_ratio": memory["all"] / facts[first][1]["all"],
                "goal": GOALS.get(name),
                **harness.summary(steps, name, first),
            }
        )
    return {"rows": rows, "steps": steps}


# ------------------------------------------------------------------------------------------------------------------- report


def report(result: Mapping[str, Any]) -> str:
    """The table, as Markdown."""
    rows, sizes = result["rows"], Sizes(**result["sizes"])
    title = [
        f"BEiT-3 {sizes.layers}x{sizes.width}, FFN {sizes.ffn_width}, {sizes.image_size} px, captions of "
        f"{sizes.real_tokens} tokens padded to {sizes.text_tokens}, batch {sizes.batch}, "
        f"drop path {sizes.drop_path}, fp32, {result['threads']} thread(s), {result['rounds']} interleaved rounds.",
        harness.machine_line(result, result["steps"]),
    ]
    if result["benchmark"] == "beit3_step official":
        check = result["check"]
        title.append(
            f"Same weights, drop path off: losses differ by {check['loss_difference']:.1e}, gradients by at most "
            f"{check['gradients']['largest_relative']:.1e} of a tensor's largest. Goal: {result['goal']}."
        )
        head = [
            "full step", "CPU / official", "goal", "counted FLOPs / official", "CPU ms", "wall ms", "peak RSS MB", "imports MB",
        ]  # fmt: skip
        cells = [
            [
                row["label"], harness.spread(row["cpu_ratio"]), f"{result['goal']}" if row["name"] == "ours" else "",
                f"{row['flops_ratio']:.3f}", f"{1000 * row['cpu_s']:.0f}", f"{1000 * row['wall_s']:.0f}",
                *(f"{row['memory_bytes'][key] / 1e6:.0f}" if row["memory_bytes"] else "" for key in ("peak", "imports")),
            ]
            for row in rows
        ]  # fmt: skip
    else:
        first = rows[0]["label"]
        head = [
            "step", f"CPU / {first}", "goal", f"counted FLOPs / {first}", f"textbook FLOPs / {first}", "CPU ms", "wall ms",
            "tunable", f"memory / {first}", "GFLOP counted",
        ]  # fmt: skip
        cells = [
            [
                row["label"], harness.spread(row["cpu_ratio"]), f"{row['goal'] or ''}", f"{row['flops_ratio']:.3f}",
                f"{row['textbook_ratio']:.3f}", f"{1000 * row['cpu_s']:.0f}", f"{1000 * row['wall_s']:.0f}",
                f"{row['tunable_parameters']:,}", f"{row['memory_ratio']:.2f}", f"{row['flops'] / 1e9:.5g}",
            ]
            for row in rows
        ]  # fmt: skip
    return "\n".join([*title, "", harness.table(head, cells)])


def parser() -> argparse.ArgumentParser:
    made = harness.command_line(f"{__doc__}{harness.READING}", threads=1, rounds=25)
    add = made.add_argument
    add("what", choices=("official", "modes", "worker"), help="(a), (b); worker is what (a) starts")
    add("--size", choices=sorted(SIZES), default="facts")
    add("--sizes", help="JSON of all sizes instead, as beit3_reference.Sizes names them")
    add("--modes", nargs="+", choices=list(LABELS), default=list(LABELS), help="rows of (b); ratios are to the first")
    add("--packages", type=Path, help="folder with torchscale 0.2.0; by default one in the cache, filled on the first run")
    return made


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print the table, return what --out would hold."""
    options = parser().parse_args(arguments)
    sizes = Sizes(**json.loads(options.sizes)) if options.sizes else SIZES[options.size]
    if options.what == "worker":
        worker(sizes, options.threads)
        return {}
    settings = {"sizes": asdict(sizes), "threads": options.threads, "rounds": options.rounds}
    result = harness.heading(f"beit3_step {options.what}", "cpu", settings)
    if options.what == "official":
        result |= against_official(sizes, options.rounds, options.threads, torchscale_folder(options.packages))
    else:
        result |= modes(sizes, options.modes, options.rounds, options.threads)
    print(report(result))
    harness.write(result, options.out)
    return result


if __name__ == "__main__":
    main()
