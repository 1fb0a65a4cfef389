"""BEiT-3's training step: ours against the official code's, and MultiWay-Adapter against full tuning. Interleaved in one run.

    python benchmarks/beit3_step.py official --out official.json   # (a) our full step / Microsoft's encoder (torchscale 0.2.0)
    python benchmarks/beit3_step.py modes --out modes.json         # (b) MWA, KE, released / full
    python benchmarks/beit3_step.py modes --size tiny --rounds 1   # does it run at all?

What runs: `RetrievalModule`'s own step (forward, contrastive loss, backward, AdamW, schedule) on one random batch, without
Lightning's loop and without data loading, at the sizes the official code was timed at before (width 192, 6
layers, 112 px, batch 16, captions of 24 tokens padded to 32, drop path 0.1, fp32, one thread). Rounds go A B C A B C.

(a) Two processes stay alive and take turns, step by step; each measures its own CPU seconds. torchscale is installed by itself
    (`--no-deps`) into a folder of its own on the first run and seen only by that process (`beit3_reference.py`). Before the
    timing both compute loss and gradients from the same weights (through our map to the official names) on the same batch with
    drop path off, and the run ends here if they differ. The headline has equal inputs: 32 tokens for both. The official data
    set pads every caption to a fixed length, our data module to the longest of the batch; what that saves is a line of its own.
(b) One process. The adapters' widths are scaled like the network (KE 16, AE 32 a modality); `released` has the published code's
    AE, as wide as the FFN. Heads are frozen in all adapter rows, as in the paper's count.

How to read it
- A ratio is the median of the rounds' own ratios to the first row, with lowest and highest in brackets. On shared cores only CPU
  ratios mean anything; wall seconds then measure the load, which is printed.
- "counted" FLOPs are what torch counts while the step runs; they know that the last layer owes a retrieval head one token only.
  "textbook" FLOPs are those of the official architecture (all tokens in all layers, attention in separate products), by formula.
- Peak resident size is of the whole process; what the imports alone take is printed beside it.
- Use the memory settings of `make` (MALLOC_*, docs/speed.md): the line under the title says whether they were set.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

# The file is run by its path: the packages beside this folder must be found without an installation, too.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from benchmarks.beit3_reference import Sizes, forget_peak, random_batch, resident_bytes, serve, timed

HERE = Path(__file__).resolve().parent
MALLOC = ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")
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


def network(sizes: Sizes, checkpoint_activations: bool = False) -> Any:
    """A `BEiT3Retrieval` with random weights, the same at every call."""
    import torch

    from lightning_modules.networks.beit3 import BEiT3Retrieval

    torch.manual_seed(0)
    return BEiT3Retrieval(
        image_size=sizes.image_size,
        width=sizes.width,
        num_layers=sizes.layers,
        heads=sizes.heads,
        ffn_width=sizes.ffn_width,
        patch_size=sizes.patch_size,
        vocab_size=sizes.vocabulary,
        text_positions=sizes.text_positions,
        tokenizer="none",
        max_tokens=min(64, sizes.text_positions - 2),
        drop_path=sizes.drop_path,
        checkpoint_activations=checkpoint_activations,
    )


def pairs(sizes: Sizes, longest: bool = False) -> Any:
    """The random batch as a `PairBatch`; with `longest`, captions are cut to their `real_tokens`."""
    import torch

    from datamodules.records import ImageBatch, PairBatch, TextBatch

    pixels, tokens, mask = random_batch(sizes)
    index_B, names = torch.arange(sizes.batch), tuple(str(row) for row in range(sizes.batch))
    cut = slice(None, sizes.real_tokens if longest else None)
    return PairBatch(ImageBatch(names, index_B, pixels), TextBatch(names, names, index_B, index_B, tokens[:, cut], mask[:, cut]))


def module(mode: str, sizes: Sizes) -> Any:
    """A `RetrievalModule` in training mode."""
    from lightning_modules.adapters.multiway import MultiWayAdapter
    from lightning_modules.optimization import Optimization
    from lightning_modules.retrieval import RetrievalModule

    adapter = {
        "full": lambda: None,
        "mwa": lambda: MultiWayAdapter("printed", knowledge_extractor_mid=KNOWLEDGE, alignment_enhancer_mid=ALIGNMENT),
        "ke": lambda: MultiWayAdapter("printed", knowledge_extractor_mid=KNOWLEDGE, alignment_enhancer=False),
        "released": lambda: MultiWayAdapter("released", knowledge_extractor_mid=KNOWLEDGE),
    }[mode]()
    tuning: Any = "full" if mode == "full" else "adapter"
    optimization = Optimization(lr=1e-4, weight_decay=0.05)
    # eval_frozen false, as the official recipe: frozen layers keep their drop path, so every row drops the same share of its work
    built = RetrievalModule(network(sizes), adapter, tuning, train_heads="none", optimization=optimization, eval_frozen=False)
    built.log_dict = lambda *_, **__: None  # type: ignore[method-assign] # there is no trainer to log to
    return built.train()


class Ours:
    """One row of ours, ready to step.

    Args:
        mode: A key of `LABELS`.
        sizes: Sizes of network and batch.
    """

    def __init__(self, mode: str, sizes: Sizes) -> None:
        from lightning_modules import optimization

        self.mode, self.sizes = mode, sizes
        self.module = module(mode, sizes)
        self.batches = {"padded": pairs(sizes), "longest": pairs(sizes, longest=True)}
        self.optimizer, self.schedule = optimization.build(
            self.module.network, self.module.optimization, 100_000, self.module.owns
        )

    def check(self, weights: str, gradients: str) -> dict[str, Any]:
        """Writes our weights to `weights` under the official names; loss and gradients of them with drop path off."""
        from safetensors.torch import save_file

        from lightning_modules.checkpoints.beit3 import to_official

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

    def _step(self, batch: Any) -> None:
        loss = self.module.training_step(batch, 0)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()

    def step(self, text: str = "padded") -> dict[str, float]:
        """One training step on captions padded to `text_tokens`, or cut to the longest."""
        return timed(lambda: self._step(self.batches[text]))

    def flops(self, text: str = "padded") -> int:
        """Of one forward and backward pass, counted by torch while it runs, without drop path (how much it saves is drawn)."""
        from torch.utils.flop_counter import FlopCounterMode

        from lightning_modules.networks.beit3 import DropPath

        drops = {part: part.probability for part in self.module.modules() if isinstance(part, DropPath)}
        for part in drops:
            part.probability = 0.0
        with FlopCounterMode(display=False) as counter:
            self.module.training_step(self.batches[text], 0).backward()
        for part, probability in drops.items():
            part.probability = probability
        self.optimizer.zero_grad()
        return counter.get_total_flops()

    def memory(self) -> dict[str, int]:
        """Bytes that one step keeps (as `training_step.py` counts them); takes a step."""
        from lightning_modules.metrics.cost import SavedBytes, gradient_bytes, optimizer_state_bytes

        with SavedBytes(exclude=self.module) as saved:
            self.module.training_step(self.batches["padded"], 0).backward()
        gradients = gradient_bytes(self.module.parameters())
        self.optimizer.step()
        state = optimizer_state_bytes(self.optimizer)
        parts = {"activations": saved.peak_bytes, "gradients": gradients, "optimizer": state}
        return parts | {"all": sum(parts.values())}


def worker(sizes: Sizes, threads: int) -> None:
    """Our side of (a), in a process of its own like the official one."""
    import torch

    import lightning_modules.retrieval  # noqa: F401 - everything is imported before memory is read

    torch.set_num_threads(threads)
    imported = resident_bytes(peak=False)
    ours = Ours("full", sizes)
    serve(
        {
            "check": ours.check,
            "step": ours.step,
            "flops": ours.flops,
            "forget_peak": forget_peak,
            "memory": lambda: {"imports": imported, "peak": resident_bytes()},
        }
    )


# ------------------------------------------------------------------------------------------------------------ FLOPs by hand


def adapter_widths(mode: str, sizes: Sizes, knowledge: int = KNOWLEDGE, alignment: int = ALIGNMENT) -> tuple[int, ...]:
    """Middle widths of a layer's KE and AE."""
    return {"full": (), "mwa": (knowledge, alignment), "ke": (knowledge,), "released": (knowledge, sizes.ffn_width)}[mode]


def pass_flops(sizes: Sizes, tokens: int, mids: Sequence[int], stem: int = 0, pooled: bool = False, fused: bool = False) -> int:
    """FLOPs of one item's pass through the encoder, forward and backward.

    Per token and layer, forward: 8 d^2 in queries, keys, values and output, 4 d f in the FFN, 4 N d in attention, 4 d m in an
    adapter of width m. Backward: a linear layer once for its input and once for its weight (frozen: only for its input),
    attention twice its forward (a fused kernel 2.5 times), an adapter twice. Below the first adapter nothing is
    back-propagated: not through layer 0's attention and FFN, nor to that adapter's input.

    Args:
        sizes: Sizes of the network.
        tokens: Tokens of the item.
        mids: Middle widths of the adapters of a frozen network; none = everything trains.
        stem: FLOPs of the patch embedding.
        pooled: The last layer computes one query, and output, FFN and adapters of one token (ours; the official code does all).
        fused: Attention is one kernel, which recomputes its scores in the backward pass.
    """
    d, f = sizes.width, sizes.ffn_width
    again = 2.5 if fused else 2
    forward, backward = float(stem), 0.0 if mids else float(stem)
    for layer in range(sizes.layers):
        rows = 1 if pooled and layer == sizes.layers - 1 else tokens
        linear = tokens * 6 * d * d + rows * (2 * d * d + 4 * d * f)
        attention = rows * 4 * tokens * d
        adapters = sum(rows * 4 * d * mid for mid in mids)
        forward += linear + attention + adapters
        backward += 2 * adapters
        if not mids:
            backward += 2 * linear + again * attention
        elif layer > 0:
            backward += linear + again * attention
        else:
            backward -= rows * 2 * d * mids[0]
    return round(forward + backward)


def closed_form(sizes: Sizes, mids: Sequence[int], pooled: bool = False, fused: bool = False) -> int:
    """FLOPs of forward and backward of one batch: both passes, heads (frozen beside adapters), the contrastive loss's products.

    The defaults are the textbook count, which is the official code's.
    """
    d = sizes.width
    stem = (sizes.image_tokens - 1) * 2 * 3 * sizes.patch_size**2 * d
    image = pass_flops(sizes, sizes.image_tokens, mids, stem, pooled, fused)
    text = pass_flops(sizes, sizes.text_tokens, mids, 0, pooled, fused)
    heads = 2 * 2 * d * d * (2 if mids else 3)
    return sizes.batch * (image + text + heads) + 2 * 3 * 2 * sizes.batch**2 * d


# -------------------------------------------------------------------------------------------------------------- measurement


def interleave(turns: Mapping[str, Callable[[], dict[str, float]]], rounds: int, warm: int = 2) -> list[dict[str, Any]]:
    """Every turn once a round, in order, after `warm` rounds that do not count."""
    for _ in range(warm):
        for step in turns.values():
            step()
    steps: list[dict[str, Any]] = []
    for number in range(rounds):
        for name, step in turns.items():
            steps.append({"round": number, "row": name, **step(), "load_average": round(os.getloadavg()[0], 2)})
        times = ", ".join(f"{1000 * s['cpu_s']:.0f}" for s in steps[-len(turns) :])
        print(f"round {number + 1} of {rounds}: CPU ms {times}", file=sys.stderr, flush=True)
    return steps


def summary(steps: Sequence[Mapping[str, Any]], name: str, reference: str) -> dict[str, Any]:
    """Medians of one row, and the rounds' own ratios to another."""
    own, first = ([step for step in steps if step["row"] == row] for row in (name, reference))
    out: dict[str, Any] = {}
    for kind in ("cpu", "wall"):
        out[f"{kind}_s"] = statistics.median(step[f"{kind}_s"] for step in own)
        ratios = [a[f"{kind}_s"] / b[f"{kind}_s"] for a, b in zip(own, first, strict=True)]
        out[f"{kind}_ratio"] = {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
    return out


class Worker:
    """A process that speaks `serve`'s protocol."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker ended with status {self._process.wait()}; what it said is above")
        return json.loads(line)

    def ask(self, do: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        return self._answer()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def torchscale_folder(given: Path | None) -> Path:
    """The folder with torchscale alone; filled with `pip install --no-deps` the first time.

    Raises:
        SystemExit: It cannot be installed.
    """
    if given is not None:
        if not (given / "torchscale").is_dir():
            raise SystemExit(f"--packages {given}: there is no torchscale in it; leave the option out to have it installed")
        return given
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "crosslight" / TORCHSCALE.replace("==", "-")
    if (folder / "torchscale").is_dir():
        return folder
    uv = Path(sys.executable).with_name("uv")
    install = [str(uv), "pip", "install"] if uv.exists() else [sys.executable, "-m", "pip", "install"]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
        command = [*install, "--quiet", "--no-deps", "--target", unfinished + "/packages", TORCHSCALE]
        if subprocess.run(command, check=False).returncode:
            raise SystemExit(f"could not install {TORCHSCALE}: {' '.join(command)}; with a copy of it: --packages FOLDER")
        shutil.move(unfinished + "/packages", folder)
    return folder


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
    print(f"same loss and gradients: {check}", file=sys.stderr, flush=True)
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
    steps = interleave(turns, rounds)
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
            **summary(steps, name, "official"),
        }
        for name in turns
    ]
    return {"check": check, "rows": rows, "steps": steps, "goal": OFFICIAL_GOAL}


def modes(sizes: Sizes, names: Sequence[str], rounds: int, threads: int) -> dict[str, Any]:
    """(b): our modes against the first of them."""
    import torch

    torch.set_num_threads(threads)
    variants = {name: Ours(name, sizes) for name in names}
    facts = {name: (variant.flops(), variant.memory()) for name, variant in variants.items()}
    steps = interleave({name: variant.step for name, variant in variants.items()}, rounds)
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
                **summary(steps, name, first),
            }
        )
    return {"rows": rows, "steps": steps}


# ------------------------------------------------------------------------------------------------------------------- report


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    line = "| " + " | ".join(head) + " |\n|" + " --- |" + " ---: |" * (len(head) - 1) + "\n"
    return line + "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _ratio(values: Mapping[str, float]) -> str:
    return f"{values['median']:.3f} ({values['low']:.2f}-{values['high']:.2f})"


def report(result: Mapping[str, Any]) -> str:
    """The table, as Markdown."""
    rows, sizes, device = result["rows"], Sizes(**result["sizes"]), result["device"]
    loads = [step["load_average"] for step in result["steps"]]
    malloc = "set" if all(result["environment"].values()) else "NOT set"
    revision = (result["git"]["revision"] or "unknown revision")[:12] + (" + changes" if result["git"]["dirty"] else "")
    title = [
        f"BEiT-3 {sizes.layers}x{sizes.width}, FFN {sizes.ffn_width}, {sizes.image_size} px, captions of "
        f"{sizes.real_tokens} tokens padded to {sizes.text_tokens}, batch {sizes.batch}, "
        f"drop path {sizes.drop_path}, fp32, {result['threads']} thread(s), {result['rounds']} interleaved rounds.",
        f"{device['name']}, {device['cores']} cores, load average {min(loads):.1f} to {max(loads):.1f}, MALLOC_* {malloc}; "
        f"torch {result['versions']['torch']}, python {result['versions']['python']}; {revision}; {result['date']}.",
    ]
    if result["benchmark"] == "beit3_step official":
        check = result["check"]
        title.append(
            f"Same weights, drop path off: losses differ by {check['loss_difference']:.1e}, gradients by at most "
            f"{check['gradients']['largest_relative']:.1e} of a tensor's largest. Goal: {result['goal']}."
        )
        head = [
            "full step",
            "CPU / official",
            "goal",
            "counted FLOPs / official",
            "CPU ms",
            "wall ms",
            "peak RSS MB",
            "imports MB",
        ]
        cells = [
            [
                row["label"], _ratio(row["cpu_ratio"]), f"{result['goal']}" if row["name"] == "ours" else "",
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
                row["label"], _ratio(row["cpu_ratio"]), f"{row['goal'] or ''}", f"{row['flops_ratio']:.3f}",
                f"{row['textbook_ratio']:.3f}", f"{1000 * row['cpu_s']:.0f}", f"{1000 * row['wall_s']:.0f}",
                f"{row['tunable_parameters']:,}", f"{row['memory_ratio']:.2f}", f"{row['flops'] / 1e9:.5g}",
            ]
            for row in rows
        ]  # fmt: skip
    return "\n".join([*title, "", _table(head, cells)])


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("what", choices=("official", "modes", "worker"), help="(a), (b); worker is what (a) starts")
    add("--size", choices=sorted(SIZES), default="facts")
    add("--sizes", help="JSON of all sizes instead, as beit3_reference.Sizes names them")
    add("--modes", nargs="+", choices=list(LABELS), default=list(LABELS), help="rows of (b); ratios are to the first")
    add("--rounds", type=int, default=25)
    add("--threads", type=int, default=1)
    add("--packages", type=Path, help="folder with torchscale 0.2.0; by default one in the cache, filled on the first run")
    add("--out", type=Path, help="write everything, each step of each round included, as JSON")
    return parser


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print the table, return what --out would hold."""
    options = parser().parse_args(arguments)
    sizes = Sizes(**json.loads(options.sizes)) if options.sizes else SIZES[options.size]
    if options.what == "worker":
        worker(sizes, options.threads)
        return {}
    from experiments.runs.provenance import device_state, git_state, versions

    result: dict[str, Any] = {
        "benchmark": f"beit3_step {options.what}",
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "sizes": asdict(sizes),
        "threads": options.threads,
        "rounds": options.rounds,
        "git": git_state(HERE),
        "versions": versions(),
        "device": device_state("cpu"),
        "environment": {name: os.environ.get(name) for name in MALLOC},
    }
    if options.what == "official":
        result |= against_official(sizes, options.rounds, options.threads, torchscale_folder(options.packages))
    else:
        result |= modes(sizes, options.modes, options.rounds, options.threads)
    print(report(result))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    return result


if __name__ == "__main__":
    main()
