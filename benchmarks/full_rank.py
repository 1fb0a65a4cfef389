"""Full-rank scoring with UNITER: ours, a bare encoder at the same tokens, and the released way. Interleaved in one run.

    python benchmarks/full_rank.py --out full_rank.json            # base, fp32, 2 threads, 2 to 4 minutes
    python benchmarks/full_rank.py --device cuda                   # bf16; pairs/s and the share of the chip's peak
    python benchmarks/full_rank.py --tokens 512 1024 2048 4096 --ways encoder      # where throughput saturates
    python benchmarks/full_rank.py --size tiny --rounds 3          # does it run at all?

A world of 1,200 images and 5,000 captions, random but for their lengths (below), and random weights. A round takes a piece of the
whole job of each way:

    ours      one unit of full rank (`Plan`; units at equal distances through the job), from embeddings that were made once
    encoder   the same layers, pooler and head on ready random tokens [pairs, tokens, width] of the same unit in the same
              mini-batches: nothing is gathered. The upper bound. Goal: at least 90 % of its tokens/s
    released  IAIS `utils/itm_eval.py`, `data/itm.py`: one caption against images sorted by their regions in mini-batches of 400,
              padded to the mini-batch's longest, masked, both sides embedded anew for every pair. Goal: never slower. Rounds go
              through the mini-batches (--rounds: best a multiple of them, 3 for 1,200 images), each with another caption; of a
              mini-batch every STRIDE-th image is scored (the padding is that of 400; the processor is busy with 50)

Lengths: word pieces of the 40,455 captions of dataset_flickr30k.json's Flickr8k photographs with [CLS] and [SEP] (BERT's uncased
tokenizer, mean 14.3); regions as UNITER's threshold leaves them, 10 to 100 with a mean of 36 (a clipped gamma distribution: the
released features are not here).

How to read it
- Rates are of real tokens (words + regions of the pairs scored; the released way's padding counts for nothing), ratios of
  tokens/s (`harness.READING`). The released way's rounds differ in padding: the rates over all rounds are its mean.
- FLOPs are counted by hand: 2 a multiplication and addition, all tokens in all layers but the last, which has its
  attention and FFN for the first token alone. The share of peak is FLOPs / seconds / the data sheet's dense bf16 peak (GPU only).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

# The file is run by its path: the packages beside this folder must be found without an installation, too.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from benchmarks import harness
from benchmarks.flops import transformer_flops
from lightning_modules.metrics.pair_batches import TOKENS, TOKENS_ELSEWHERE, UNIT_TOKENS, Plan, score_pairs_by_length
from lightning_modules.networks.packing import Packed, pack
from lightning_modules.networks.pair_scorer import Ragged
from lightning_modules.networks.uniter import UniterRetrieval

RELEASED_BATCH = 400
GOALS = {"encoder": 0.9, "released": 1.0}

# Captions by word pieces, of 10,000 (see the module's text): 4, 5, .. 36.
WORDS_FROM = 4
WORDS = (
    3, 8, 41, 110, 262, 560, 745, 872, 992, 1041, 1009, 951, 801, 670, 517, 401, 285, 220, 155, 103, 80, 57, 34, 24, 20, 12, 9,
    5, 3, 3, 2, 2, 2,
)  # fmt: skip


@dataclass(frozen=True)
class Size:
    width: int
    layers: int
    heads: int
    ffn_width: int
    vocab: int = 28996
    features: int = 2048


SIZES = {
    "base": Size(768, 12, 12, 3072),
    "large": Size(1024, 24, 16, 4096),
    "tiny": Size(32, 2, 2, 64, vocab=200, features=16),
}


def lengths(images: int, texts: int) -> tuple[Tensor, Tensor]:
    """Regions of every image and tokens of every caption, always the same."""
    draw = torch.Generator().manual_seed(0)
    weights = torch.tensor(WORDS, dtype=torch.float64)
    words_T = WORDS_FROM + torch.multinomial(weights, texts, replacement=True, generator=draw)
    # gamma of shape 3 = sum of three exponentials
    gamma_I = -torch.rand(images, 3, generator=draw).clamp_min(1e-9).log().sum(1)
    regions_I = (4 + 32.5 / 3 * gamma_I).clamp(10, 100).long()
    return regions_I, words_T


class Job:
    """Pieces of a whole job of full rank: each way takes them of the same network and items. See `World`, and vilt_full_rank.py.

    Attributes:
        network: The pair scorer.
        width: Of its tokens.
        images: Embedded once.
        texts: Likewise.
        lengths_I: Tokens of every image.
        words_T: Tokens of every caption.
        plan: The job's units.
        tokens: Tokens of a mini-batch (ours and the encoder's).
        device: "cpu" or "cuda".
    """

    network: Any
    width: int
    images: Ragged
    texts: Ragged
    lengths_I: Tensor
    words_T: Tensor
    plan: Plan
    tokens: int
    device: str

    def flops(self, total: int) -> int:
        """Of one pair's pass through the layers, `total` tokens long."""
        raise NotImplementedError

    def score(self, packed: Packed) -> Tensor:
        """Of packed pairs."""
        raise NotImplementedError

    def unit(self, number: int, rounds: int) -> tuple[Tensor, Tensor]:
        """Rows of the pairs of one of `rounds` units at equal distances in tokens."""
        until = self.plan.unit_tokens().cumsum()
        unit = int((until < until[-1] * (number + 0.5) / rounds).sum())
        image_P, text_P = self.plan.rows(int(self.plan.edges[unit]), int(self.plan.edges[unit + 1]))
        return torch.from_numpy(image_P), torch.from_numpy(text_P)

    def count(self, image_P: Tensor, text_P: Tensor) -> dict[str, int]:
        """Pairs, their real tokens, their FLOPs."""
        total = (self.lengths_I[image_P] + self.words_T[text_P]).tolist()
        return {"pairs": len(total), "tokens": sum(total), "flops": sum(self.flops(length) for length in total)}

    def ours(self, image_P: Tensor, text_P: Tensor) -> Tensor:
        return score_pairs_by_length(self.network, self.images, self.texts, image_P, text_P, tokens=self.tokens)

    def ready(self, image_P: Tensor, text_P: Tensor) -> list[Packed]:
        """The unit's mini-batches; what is in them costs nothing, so all are the same numbers."""
        length = int(self.lengths_I[image_P[0]] + self.words_T[text_P[0]])
        counts = [len(part) for part in image_P.split(max(self.tokens // length, 1))]
        memory = torch.randn(counts[0], length, self.width, device=self.device)
        one = torch.ones(1, dtype=torch.int64, device=self.device)
        return [Packed(memory[:count], None, one, one) for count in counts]

    def encoder(self, ready: Sequence[Packed]) -> Tensor:
        return torch.cat([self.score(packed) for packed in ready])

    def turn(self, step: Callable[[], Tensor], pairs: tuple[Tensor, Tensor]) -> harness.Turn:
        """One way's part of a round."""

        def taken() -> dict[str, float]:
            if self.device == "cuda":
                step()  # kernels are chosen (and compiled) by shape
            return {**self.count(*pairs), **harness.timed(step, self.device)}

        return taken

    def turns_of_unit(self, number: int, rounds: int) -> dict[str, harness.Turn]:
        """Ours and the encoder's, of one unit."""
        unit = self.unit(number, rounds)
        return {
            "ours": self.turn(partial(self.ours, *unit), unit),
            "encoder": self.turn(partial(self.encoder, self.ready(*unit)), unit),
        }


class World(Job):
    """Network, items, and the three ways over pieces of the job.

    Args:
        size: Of the network.
        images: How many.
        texts: How many.
        device: "cpu" or "cuda".
        tokens: Tokens of a mini-batch (ours and the encoder's).
        unit_tokens: Tokens of a unit.
        stride: Of a released mini-batch, every so manieth image is scored.
    """

    def __init__(self, size: Size, images: int, texts: int, device: str, tokens: int, unit_tokens: int, stride: int) -> None:
        self.size, self.width, self.device, self.tokens, self.stride = size, size.width, device, tokens, stride
        torch.manual_seed(0)
        network = UniterRetrieval(
            size.width, size.layers, size.heads, size.ffn_width, size.vocab, feature_width=size.features, tokenizer=None
        )
        self.network = network.to(device).eval()
        self.lengths_I, self.words_T = lengths(images, texts)
        self.lengths_I = self.lengths_I.sort().values  # as the released data set sorts them
        most, longest = int(self.lengths_I.max()), int(self.words_T.max())
        # the same features for all images (they would take 1 GB); boxes tell images apart
        self.features_IRF = torch.randn(1, most, size.features, device=device).expand(images, -1, -1)
        self.boxes_IR7 = torch.rand(images, most, 7, device=device)
        self.mask_IR = (torch.arange(most)[None] < self.lengths_I[:, None]).to(device)
        self.tokens_TW = torch.randint(1, size.vocab, (texts, longest), device=device)
        self.mask_TW = (torch.arange(longest)[None] < self.words_T[:, None]).to(device)
        self.plan = Plan(self.lengths_I.numpy(), self.words_T.numpy(), unit_tokens)
        encoder = self.network.encoder
        with harness.autocast(device), torch.no_grad():
            rows = torch.arange(images).split(100)
            parts = [encoder.embed_regions(self.features_IRF[r], self.boxes_IR7[r], self.mask_IR[r]) for r in rows]
            self.images = Ragged.joined(parts)
            self.texts = encoder.embed_texts(self.tokens_TW, self.mask_TW)

    def flops(self, total: int) -> int:
        """Of one pair's pass through the layers, `total` tokens long."""
        return transformer_flops(self.size.width, self.size.ffn_width, self.size.layers, total, pooled=True)[0]

    def score(self, packed: Packed) -> Tensor:
        """Of packed pairs."""
        return self.network.score(packed)[0]

    def released_pairs(self, number: int) -> tuple[Tensor, Tensor]:
        """Rows of the pairs that a round of the released way scores."""
        batches = torch.arange(len(self.lengths_I)).split(RELEASED_BATCH)
        # from the end: the mini-batch's longest image decides its padding
        images = batches[number % len(batches)].flip(0)[:: self.stride].flip(0)
        return images, torch.full_like(images, number * 997 % len(self.words_T))

    def released(self, images: Tensor, text: Tensor) -> Tensor:
        """A padded, masked mini-batch of one caption, everything embedded for every pair."""
        encoder, row = self.network.encoder, int(text[0])
        rows, longest, words = images.to(self.device), int(self.lengths_I[images].max()), int(self.words_T[row])
        tokens, mask = (each[row, :words].expand(len(images), -1) for each in (self.tokens_TW, self.mask_TW))
        features, boxes, real = (each[rows, :longest] for each in (self.features_IRF, self.boxes_IR7, self.mask_IR))
        # padded regions are embedded as well, there
        states = encoder.region_embed(features, boxes, encoder.text_embed.types.weight[1])
        return self.network.score(pack(encoder.embed_texts(tokens, mask), Ragged.of(states, real)))[0]


def measure(world: World, rounds: int, ways: Sequence[str]) -> dict[str, Any]:
    """All ways, round by round, each round with another unit and another caption."""

    def turns(number: int) -> dict[str, harness.Turn]:
        caption = world.released_pairs(number)
        every = {
            **world.turns_of_unit(number, rounds),
            "released": world.turn(partial(world.released, *caption), caption),
        }
        return {way: every[way] for way in ways}

    with torch.no_grad(), harness.autocast(world.device):
        few = [rows[-8:] for rows in world.released_pairs(0)]  # warms up, too
        apart = (world.ours(*few) - world.released(*few)).abs().max().item()
        steps = harness.interleave(turns, rounds, warm=0, key="way")
    return {"largest_difference_to_released": apart, "steps": steps, "rows": [summary(steps, way) for way in ways]}


def summary(steps: Sequence[Mapping[str, Any]], way: str) -> dict[str, Any]:
    """Rates of a way over all rounds, and the rounds' own ratios of our tokens/s to its."""
    own, ours = ([step for step in steps if step["way"] == name] for name in (way, "ours"))
    row: dict[str, Any] = {"way": way}
    for kind in ("wall", "cpu"):
        seconds = sum(step[f"{kind}_s"] for step in own)
        for what in ("pairs", "tokens", "flops"):
            row[f"{what}_per_{kind}_s"] = sum(step[what] for step in own) / seconds
        rates, others = ([step["tokens"] / step[f"{kind}_s"] for step in rows] for rows in (ours, own))
        row[f"ours_{kind}_ratio"] = harness.ratios(rates, others)
    return row


def report(result: Mapping[str, Any]) -> str:
    """The table, as Markdown."""
    lines = [
        f"UNITER {result['size']}, {result['precision']}, {result['images']} images x {result['texts']} captions, "
        f"{result['mean_tokens']:.1f} tokens a pair, {result['threads']} thread(s), {result['rounds']} interleaved rounds.",
        harness.machine_line(result, [step for run in result["runs"] for step in run["steps"]]),
        "",
    ]
    head = [
        "way", "mini-batch tokens", "pairs/s", "tokens/s", "tokens/CPU s", "GFLOP/s", "of peak", "ours / it, CPU",
        "ours / it, wall", "goal",
    ]  # fmt: skip
    cells = []
    for run in result["runs"]:
        for row in run["rows"]:
            share = f"{row['flops_per_wall_s'] / result['peak']:.1%}" if result["peak"] else ""
            cells.append(
                [
                    row["way"],
                    "" if row["way"] == "released" else str(run["tokens"]),
                    f"{row['pairs_per_wall_s']:,.1f}",
                    f"{row['tokens_per_wall_s']:,.0f}",
                    f"{row['tokens_per_cpu_s']:,.0f}",
                    f"{row['flops_per_wall_s'] / 1e9:,.0f}",
                    share,
                    *(harness.spread(row[f"ours_{kind}_ratio"]) for kind in ("cpu", "wall")),
                    f">= {GOALS[row['way']]}" if row["way"] in GOALS else "",
                ]
            )
    furthest = max(run["largest_difference_to_released"] for run in result["runs"])
    lines += [
        harness.table(head, cells),
        "",
        f"Largest difference between a score of ours and of the released way: {furthest:.1e}.",
    ]
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    out = "write everything, each way of each round included, as JSON"
    made = harness.command_line(f"{__doc__}{harness.READING}", out, devices=("cpu", "cuda"), threads=2, rounds=9)
    add = made.add_argument
    add("--size", choices=sorted(SIZES), default="base")
    add("--images", type=int, default=1200)
    add("--texts", type=int, default=5000)
    add("--unit", type=int, help="tokens of a round's unit; default 4,096; as in full rank on a GPU")
    add("--stride", type=int, help="score every so manieth image of a released mini-batch; default 8; 1 on a GPU")
    add("--tokens", type=int, nargs="+", help="tokens of a mini-batch, one run each; by default ours of the device")
    add("--ways", nargs="+", choices=("encoder", "released"), default=["encoder", "released"], help="beside ours")
    return made


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print the table, return what --out would hold."""
    options = parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    cuda = options.device == "cuda"
    images, texts = options.images, options.texts
    unit, stride = options.unit or (UNIT_TOKENS if cuda else 4096), options.stride or (1 if cuda else 8)
    regions_I, words_T = lengths(images, texts)
    settings = {
        "size": options.size,
        "precision": "bf16 autocast" if cuda else "fp32",
        "images": images,
        "texts": texts,
        "mean_regions": regions_I.double().mean().item(),
        "mean_words": words_T.double().mean().item(),
        "mean_tokens": regions_I.double().mean().item() + words_T.double().mean().item(),
        "rounds": options.rounds,
        "unit_tokens": unit,
        "stride": stride,
        "threads": options.threads,
    }
    result = harness.heading("full_rank", options.device, settings)
    result |= {"peak": harness.peak_flops(result["device"]["name"]) if cuda else None, "runs": []}
    for tokens in options.tokens or [TOKENS.get(options.device, TOKENS_ELSEWHERE)]:
        world = World(SIZES[options.size], images, texts, options.device, tokens, unit, stride)
        result["runs"].append({"tokens": tokens, **measure(world, options.rounds, ["ours", *options.ways])})
        del world
    print(report(result))
    harness.write(result, options.out)
    return result


if __name__ == "__main__":
    main()
