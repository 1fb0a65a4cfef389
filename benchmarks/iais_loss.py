"""The IAIS block against a plain loop and against the released code's way, and its share of UNITER-base's step. Interleaved.

    python benchmarks/iais_loss.py --out iais.json                       # CPU, fp32, 2 threads, sizes of the official timings
    python benchmarks/iais_loss.py --device cuda --precision bf16        # or fp32
    python benchmarks/iais_loss.py --size tiny --rounds 1                # does it run at all?

What runs, in rounds A B C A B C: 8 positives of 30 content words and 50 regions, last layer, both anchors, forward and backward.

- ours: `RelationAlignment` on the queries and keys that the layer computes anyway; the gradient ends at these.
- loop: `plain_loop`, written from the equations on the same queries and keys: pair by pair, head by head, a softmax, an argmax
  and a KL a row. L and V share the four maps of a pair.
- released: `released_way`, our own writing of what lancopku/IAIS computes, and as often: for each of the four maps queries and
  keys of the whole sequence from the hidden states, additive masks, softmax over the whole row; all of it for L and again for V;
  then a loop over pairs. Its gradient goes on to the hidden states and the two weights, as in its training.
- step: UNITER-base in training mode (dropout 0.1), forward and backward of the ranking loss of 8 pairs, without and with IAIS of
  all 8. No optimizer, so the share is of less than a whole step; the released recipe has one positive in 32 such pairs.

Before the timing, values and gradients of the three are compared, and the run ends here if they differ (the released way only in
fp32). `ragged` has pairs of 7 to 30 words and 10 to 50 regions in one padded batch; the others have no padding.

How to read it
- Ratios are of CPU seconds on a processor, of wall seconds around synchronised calls on a GPU (`harness.READING`).
- Two shares of the step: `direct` = seconds of the block by itself / of the step without it; `difference` = (step with IAIS -
  step without) / step without. The second is a small difference of two large numbers: look at its spread.
- Where others use the cores, set OMP_WAIT_POLICY=passive (or --threads 1): threads that wait for each other at every small
  operation of the loop otherwise spin, which takes minutes and is counted as CPU time.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# The file is run by its path: the packages beside this folder must be found without an installation, too.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import harness
from benchmarks.harness import summary
from lightning_modules.networks.attention import Attended, Items
from lightning_modules.objectives.relation_alignment import IAIS, Anchor, Kind, RelationAlignment

KINDS: tuple[Kind, ...] = ("singular", "distributed")
WAYS = ("loop", "released", "ours")
EPS = 1e-6  # the released distributed loss adds it inside logarithms
GOALS = {"loop_over_ours": 10.0, "share_of_step": 0.01}


@dataclass(frozen=True)
class Sizes:
    """UNITER's sizes, and how many words and regions the longest pair has ([CLS] and [SEP] come on top)."""

    pairs: int = 8
    words: int = 30
    regions: int = 50
    width: int = 768
    layers: int = 12
    heads: int = 12
    ffn_width: int = 3072
    vocabulary: int = 28996
    feature_width: int = 2048


SIZES = {"facts": Sizes(), "tiny": Sizes(3, 5, 6, 24, 2, 3, 48, 50, 16)}


# --------------------------------------------------------------------------------------------------------- three ways of IAIS


@dataclass(frozen=True)
class Block:
    """What the last layer has: hidden states, its query and key maps, and where words and regions are.

    Args:
        hidden_BSW: Input of the layer, [CLS] words [SEP] regions padding.
        query: Its query map.
        key: Its key map.
        heads: Attention heads.
        words: Places of the content words.
        regions: Places of the regions.
    """

    hidden_BSW: Tensor
    query: nn.Linear
    key: nn.Linear
    heads: int
    words: Items
    regions: Items

    def attended(self) -> Attended:
        """Queries and keys in the memory layout of a layer that computes queries, keys and values in one product."""
        both = torch.stack([self.query(self.hidden_BSW), self.key(self.hidden_BSW)], 2).unflatten(-1, (self.heads, -1))
        queries_BHSD, keys_BHSD = both.permute(2, 0, 3, 1, 4)
        return Attended(queries_BHSD, keys_BHSD)

    def leaves(self, dtype: torch.dtype) -> Attended:
        """The same as leaves: gradients end here."""
        found = self.attended()
        return Attended(*(each.detach().to(dtype).requires_grad_() for each in (found.queries_BHQD, found.keys_BHKD)))


def block(sizes: Sizes, ragged: bool, device: str) -> Block:
    """Random, the same at every call; attention is peaky enough for the argmaxes to be far from ties."""
    generator = torch.Generator().manual_seed(0)
    words_B, regions_B = torch.full((sizes.pairs,), sizes.words), torch.full((sizes.pairs,), sizes.regions)
    if ragged:  # the first pair keeps all words, the second all regions
        least_words, least_regions = max(sizes.words // 4, 1), max(sizes.regions // 5, 1)
        words_B[1:] = torch.randint(least_words, sizes.words + 1, (sizes.pairs - 1,), generator=generator)
        regions_B[0] = least_regions
        regions_B[2:] = torch.randint(least_regions, sizes.regions + 1, (sizes.pairs - 2,), generator=generator)
    length = int((words_B + regions_B).max()) + 2
    place_W, place_R = torch.arange(sizes.words), torch.arange(sizes.regions)
    words = Items((place_W + 1).expand(sizes.pairs, -1).to(device), (place_W < words_B[:, None]).to(device))
    regions = Items((words_B[:, None] + 2 + place_R).clamp_max(length - 1).to(device), (place_R < regions_B[:, None]).to(device))
    hidden_BSW = torch.randn(sizes.pairs, length, sizes.width, generator=generator).to(device).requires_grad_()
    torch.manual_seed(0)
    maps = [nn.Linear(sizes.width, sizes.width) for _ in range(2)]
    for each in maps:
        nn.init.normal_(each.weight, std=1.5 / math.sqrt(sizes.width))
    return Block(hidden_BSW, maps[0].to(device), maps[1].to(device), sizes.heads, words, regions)


def ours(kind: Kind, attended: Attended, words: Items, regions: Items) -> Tensor:
    """Mean over the pairs of L's loss, and V's, summed."""
    terms = RelationAlignment(kind)(attended, words, regions, ("language", "vision"))
    return terms["language"].mean() + terms["vision"].mean()


def plain_loop(
    kind: Kind, attended: Attended, words: Items, regions: Items, anchors: Sequence[Anchor] = ("language", "vision")
) -> Tensor:
    """The same from Algorithm 2 and Eq. 8-13, in the released reading."""
    queries_BHSD, keys_BHSD = attended.queries_BHQD.float(), attended.keys_BHKD.float()
    pairs, heads, _, width = queries_BHSD.shape
    losses = []
    for pair in range(pairs):
        places = {"L": words.place_BN[pair][words.mask_BN[pair]], "V": regions.place_BN[pair][regions.mask_BN[pair]]}
        attention = {}
        for rows, columns in ("LL", "LV", "VL", "VV"):
            per_head = []
            for head in range(heads):
                queries_RD, keys_CD = queries_BHSD[pair, head, places[rows]], keys_BHSD[pair, head, places[columns]]
                per_head.append(torch.softmax(queries_RD @ keys_CD.T / math.sqrt(width), dim=-1))
            attention[rows + columns] = torch.stack(per_head).mean(0)
        for anchor in anchors:
            own, other = "LV" if anchor == "language" else "VL"
            own_AA, across_AO = attention[own + own], attention[own + other]
            count = len(own_AA)
            star = torch.stack([across_AO[i].detach().argmax() for i in range(count)])
            for i in range(count):
                if kind == "singular":
                    mirror_A, eps = torch.softmax(attention[other + other][star[i]][star], dim=-1), 0.0
                else:
                    mirror_A, eps = across_AO[i] @ attention[other + own], EPS
                forward = (own_AA[i] * (own_AA[i].log() - (mirror_A + eps).log())).sum()
                backward = (mirror_A * (mirror_A.log() - (own_AA[i] + eps).log())).sum()
                losses.append((forward + backward) / count)
    return torch.stack(losses).sum() / pairs


def released_way(kind: Kind, given: Block) -> Tensor:
    """The same with the released code's structure: four maps with their own queries and keys, for L and again for V."""
    length, count = given.hidden_BSW.shape[1], len(given.hidden_BSW)
    places = {"L": given.words, "V": given.regions}
    real = {
        side: torch.zeros(count, length + 1, device=given.hidden_BSW.device)
        .scatter_(1, each.place_BN.masked_fill(~each.mask_BN, length), 1.0)[:, :length]
        for side, each in places.items()
    }  # fmt: skip

    def attention(rows: str, columns: str) -> Tensor:
        queries_BHSD = given.query(given.hidden_BSW).unflatten(-1, (given.heads, -1)).transpose(1, 2)
        keys_BHSD = given.key(given.hidden_BSW).unflatten(-1, (given.heads, -1)).transpose(1, 2)
        scores_BHSS = (queries_BHSD @ keys_BHSD.transpose(-2, -1)) / math.sqrt(queries_BHSD.shape[-1])
        mask_B1SS = (real[rows][:, :, None] * real[columns][:, None, :])[:, None]
        probabilities_BHSS = torch.softmax(scores_BHSS + (1 - mask_B1SS) * -10000.0, dim=-1) * mask_B1SS
        return probabilities_BHSS.mean(1).float()

    total = torch.zeros((), device=given.hidden_BSW.device)
    for own, other in ("LV", "VL"):
        maps = {rows + columns: attention(rows, columns) for rows, columns in ("LL", "LV", "VL", "VV")}
        for pair in range(count):
            at = {side: each.place_BN[pair][each.mask_BN[pair]] for side, each in places.items()}
            cut = {name: each[pair][at[name[0]]][:, at[name[1]]] for name, each in maps.items()}
            own_AA = cut[own + own]
            if kind == "singular":
                star_A = cut[own + other].detach().argmax(-1)
                mirror_AA, eps = torch.softmax(cut[other + other][star_A][:, star_A], dim=-1), 0.0
            else:
                mirror_AA, eps = cut[own + other] @ cut[other + own], EPS
            total = total + F.kl_div((own_AA + eps).log(), mirror_AA, reduction="batchmean")
            total = total + F.kl_div((mirror_AA + eps).log(), own_AA, reduction="batchmean")
    return total / count


def differences(kind: Kind, given: Block, dtype: torch.dtype) -> dict[str, float]:
    """How far loss and gradients of the other two are from ours, relative to the loss and to the largest gradient.

    Raises:
        SystemExit: They are not the same.
    """

    def gradients(loss: Tensor, leaves: Sequence[Tensor]) -> tuple[float, list[Tensor]]:
        return loss.item(), [each.float() for each in torch.autograd.grad(loss, leaves)]

    def apart(a: tuple[float, list[Tensor]], b: tuple[float, list[Tensor]]) -> float:
        deviations = [((x - y).abs().max() / y.abs().max()).item() for x, y in zip(a[1], b[1], strict=True)]
        return max([abs(a[0] - b[0]) / abs(b[0]), *deviations])

    attended = given.leaves(dtype)
    leaves = [attended.queries_BHQD, attended.keys_BHKD]
    found = {
        "loop": apart(
            gradients(plain_loop(kind, attended, given.words, given.regions), leaves),
            gradients(ours(kind, attended, given.words, given.regions), leaves),
        )
    }
    if dtype == torch.float32:
        leaves = [given.hidden_BSW, given.query.weight, given.key.weight]
        found["released"] = apart(
            gradients(released_way(kind, given), leaves),
            gradients(ours(kind, given.attended(), given.words, given.regions), leaves),
        )
    allowed = 1e-3 if dtype == torch.float32 else 1e-2  # a gradient in bf16 has 8 bits
    if wrong := {way: value for way, value in found.items() if not value <= allowed}:
        raise SystemExit(f"{kind}: these do not compute what our block computes, so there is nothing to compare: {wrong}")
    return found


# ----------------------------------------------------------------------------------------------------------------- UNITER's step


class Step:
    """Forward and backward of UNITER's ranking loss, with the pieces that `RankingModule` is made of.

    Args:
        sizes: Sizes of network and batch.
        device: Where it runs.
        dtype: bfloat16 = autocast.
    """

    def __init__(self, sizes: Sizes, device: str, dtype: torch.dtype) -> None:
        from datamodules.records import ImageBatch, Regions, TextBatch
        from lightning_modules.networks.uniter import UniterRetrieval
        from lightning_modules.objectives.matching import MarginRanking

        torch.manual_seed(0)
        self.device, self.dtype, self.layer = device, dtype, sizes.layers - 1
        self.network = UniterRetrieval(
            sizes.width, sizes.layers, sizes.heads, sizes.ffn_width, sizes.vocabulary, sizes.words + 2,
            sizes.feature_width, tokenizer=None,
        ).to(device).train()  # fmt: skip
        self.objective = MarginRanking()
        pairs, names, index_B = sizes.pairs, tuple(map(str, range(sizes.pairs))), torch.arange(sizes.pairs, device=device)
        regions = Regions(
            torch.randn(pairs, sizes.regions, sizes.feature_width, device=device),
            torch.rand(pairs, sizes.regions, 7, device=device),
            torch.rand(pairs, sizes.regions, device=device),
            torch.ones(pairs, sizes.regions, dtype=torch.bool, device=device),
        )
        self.images = ImageBatch(names, index_B, None, regions)
        tokens_BT = torch.randint(1, sizes.vocabulary, (pairs, sizes.words + 2), device=device)
        self.texts = TextBatch(names, names, index_B, index_B, tokens_BT, torch.ones_like(tokens_BT, dtype=torch.bool))

    def __call__(self, alignment: IAIS | None) -> float:
        """One step; the loss."""
        from lightning_modules.networks.packing import items_of, pack

        self.network.zero_grad()
        with torch.autocast(self.device, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            images, texts = self.network.embed_images(self.images), self.network.embed_texts(self.texts)
            packed = pack(texts, images)
            scores, joint = self.network.score(packed, () if alignment is None else (self.layer,))
            loss = self.objective(scores.view(1, -1))
            if alignment is not None:
                loss = loss + torch.stack([each.mean() for each in alignment(items_of(packed, joint.attention)).values()]).sum()
        loss.backward()
        return loss.item() if self.device == "cpu" else 0.0  # on a GPU it would wait


# ------------------------------------------------------------------------------------------------------------------ measurement


def turn(step: Callable[[], Any], calls: int, device: str) -> Callable[[], dict[str, float]]:
    """Seconds of one of `calls` calls."""

    def all_calls() -> None:
        for _ in range(calls):
            step()

    return lambda: {name: seconds / calls for name, seconds in harness.timed(all_calls, device).items()}


def block_turn(way: str, kind: Kind, given: Block, dtype: torch.dtype) -> Callable[[], object]:
    """Forward and backward of one way."""
    if way == "released":
        leaves = [given.hidden_BSW, given.query.weight, given.key.weight]

        def released() -> object:
            with torch.autocast(given.hidden_BSW.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
                loss = released_way(kind, given)
            return torch.autograd.grad(loss, leaves)

        return released
    attended, way_of = given.leaves(dtype), {"loop": plain_loop, "ours": ours}[way]
    inputs = [attended.queries_BHQD, attended.keys_BHKD]
    return lambda: torch.autograd.grad(way_of(kind, attended, given.words, given.regions), inputs)


def measure(sizes: Sizes, device: str, dtype: torch.dtype, rounds: int, calls: int) -> dict[str, Any]:
    """Everything in one interleaved run."""
    cases = {"even": block(sizes, False, device), "ragged": block(sizes, True, device)}
    check = {f"{case} {kind}": differences(kind, given, dtype) for case, given in cases.items() for kind in KINDS}
    harness.tell(f"same losses and gradients: {check}")
    turns = {
        f"{case} {kind} {way}": turn(block_turn(way, kind, given, dtype), calls if way == "ours" else 1, device)
        for case, given in cases.items()
        for kind in KINDS
        for way in WAYS
    }
    step = Step(sizes, device, dtype)
    alignments: dict[str, IAIS | None] = {"without": None, **{kind: IAIS(kind) for kind in KINDS}}
    turns |= {f"step {name}": turn(lambda each=each: step(each), 1, device) for name, each in alignments.items()}  # type: ignore[misc]
    steps = harness.interleave(turns, rounds, warm=1)
    clock = "wall" if device == "cuda" else "cpu"
    rows = []
    for case in cases:
        for kind in KINDS:
            names = {way: f"{case} {kind} {way}" for way in WAYS}
            rows.append(
                {
                    "case": case,
                    "kind": kind,
                    **{f"{way}_s": summary(steps, name, name)[f"{clock}_s"] for way, name in names.items()},
                    **{f"{way}_over_ours": summary(steps, names[way], names["ours"])[f"{clock}_ratio"] for way in WAYS[:2]},
                    "direct_share": summary(steps, names["ours"], "step without")[f"{clock}_ratio"],
                }
            )
    of_steps = []
    for name in alignments:
        row = summary(steps, f"step {name}", "step without")
        of_steps.append({"name": name, "step_s": row[f"{clock}_s"], "ratio": row[f"{clock}_ratio"]})
    return {"check": check, "clock": clock, "rows": rows, "of_steps": of_steps, "goals": GOALS, "steps": steps}


def report(result: Mapping[str, Any]) -> str:
    """The tables, as Markdown."""
    sizes, clock = Sizes(**result["sizes"]), result["clock"]
    lines = [
        f"IAIS of {sizes.pairs} positives, up to {sizes.words} words and {sizes.regions} regions, width {sizes.width}, "
        f"{sizes.heads} heads, both anchors, forward and backward; {result['precision']}, {result['threads']} thread(s), "
        f"{result['rounds']} interleaved rounds; {clock} milliseconds.",
        harness.machine_line(result, result["steps"]),
        f"Goals: loop / ours at least {result['goals']['loop_over_ours']:g}, direct share at most "
        f"{result['goals']['share_of_step']:.0%}. Losses and gradients differ by at most "
        f"{max(value for each in result['check'].values() for value in each.values()):.1e} (relative).",
        "",
    ]
    rows = []
    for row in result["rows"]:
        milliseconds = (f"{1000 * row[f'{way}_s']:.1f}" for way in ("ours", "loop", "released"))
        times = (harness.spread(row[f"{way}_over_ours"], ".1f", ".1f", " to ") for way in ("loop", "released"))
        share = harness.spread(row["direct_share"], ".2%", ".2%", " to ")
        rows.append([row["case"], row["kind"], *milliseconds, *times, share])
    head = ["ours ms", "loop ms", "released way ms", "loop / ours", "released / ours", "direct share of the step"]
    lines += [harness.table(["pairs", "kind", *head], rows, texts=2), ""]
    rows = []
    for row in result["of_steps"]:
        values, name = row["ratio"], "without IAIS" if row["name"] == "without" else f"with {row['name']}"
        apart = f"{values['low'] - 1:+.2%} to {values['high'] - 1:+.2%}"
        rows.append([name, f"{1000 * row['step_s']:.0f}", f"{values['median'] - 1:+.2%}", apart])
    lines.append(harness.table([f"step of {sizes.layers} layers", "ms", "difference", "its spread"], rows))
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    made = harness.command_line(f"{__doc__}{harness.READING}", devices=("cpu", "cuda"), threads=2, rounds=15)
    add = made.add_argument
    add("--size", choices=sorted(SIZES), default="facts")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="bf16 = autocast; our block is fp32 inside")
    add("--calls", type=int, default=5, help="calls of our block in a turn: one is short for a clock")
    return made


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print the tables, return what --out would hold."""
    options = parser().parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: there is no CUDA device here")
    torch.set_num_threads(options.threads)
    sizes = SIZES[options.size]
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    settings = {
        "sizes": asdict(sizes),
        "on": options.device,
        **{name: getattr(options, name) for name in ("precision", "threads", "rounds", "calls")},
    }
    result = harness.heading("iais_loss", options.device, settings)
    result |= measure(sizes, options.device, dtype, options.rounds, options.calls)
    print(report(result))
    harness.write(result, options.out)
    return result


if __name__ == "__main__":
    main()
