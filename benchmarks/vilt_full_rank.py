"""Full-rank scoring with ViLT: ours, a bare encoder at the same tokens, and the library as it comes. Interleaved in one run.

    python benchmarks/vilt_full_rank.py --out vilt_full_rank.json      # base, fp32, 2 threads, some minutes
    python benchmarks/vilt_full_rank.py --device cuda                  # bf16; pairs/s and the share of the chip's peak
    python benchmarks/vilt_full_rank.py --size tiny --rounds 3         # does it run at all?

A world of images and captions, random but for their sizes (below), and random weights. A round takes a piece of the whole job of
each way:

    ours      one unit of full rank (`Plan`; units at equal distances through the job), from embeddings that were made once
    encoder   the same layers, pooler and head on ready random tokens [pairs, tokens, width] of the same unit in the same
              mini-batches: nothing is gathered. The upper bound. Goal: at least 90 % of its tokens/s
    library   `ViltForImageAndTextRetrieval` as it comes, one caption against a mini-batch of images of several sizes: patches are
              embedded anew for every pair, padded and masked, attention is not fused. Goal: never slower

Sizes: photographs as ViLT's transform leaves them, 384 pixels and 384 to 608, with the shares of COCO's formats in round numbers
(4 : 3 and 3 : 4 make 384 x 512, the rest is spread evenly); captions as in full_rank.py.

How to read it
- Rates are of real tokens (words and patches with their [CLS]), ratios of tokens/s (`harness.READING`).
- FLOPs are counted by hand: 2 a multiplication and addition, all tokens in all layers but the last, which has its query,
  attention and FFN for the first token alone. The share of peak is FLOPs / seconds / the data sheet's dense bf16 peak (GPU only).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

# The file is run by its path: the packages beside this folder must be found without an installation, too.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from benchmarks import full_rank, harness
from benchmarks.flops import transformer_flops
from datamodules.records import ImageBatch, TextBatch
from lightning_modules.metrics.pair_batches import TOKENS, TOKENS_ELSEWHERE, UNIT_TOKENS, Plan
from lightning_modules.networks.packing import Packed
from lightning_modules.networks.pair_scorer import Ragged
from lightning_modules.networks.vilt import ViLT

GOALS = {"encoder": 0.9, "library": 1.0}


@dataclass(frozen=True)
class Size:
    width: int
    layers: int
    heads: int
    ffn_width: int
    vocab: int = 30522
    patch: int = 32


SIZES = {"base": Size(768, 12, 12, 3072), "tiny": Size(32, 2, 2, 64, vocab=200)}


def photographs(images: int) -> list[tuple[int, int]]:
    """Height and width of every image, always the same: seven of ten 384 x 512 or 512 x 384, the rest from square to longest."""
    longer = [512] * 7 + [384, 448, 576]
    sizes = [(384, longer[row % 10]) for row in range(images)]
    return [(height, width) if row % 4 else (width, height) for row, (height, width) in enumerate(sizes)]


class World(full_rank.Job):
    """Network, items, and the three ways over pieces of the job.

    Args:
        size: Of the network.
        images: How many.
        texts: How many.
        device: "cpu" or "cuda".
        tokens: Tokens of a mini-batch (ours and the encoder's).
        unit_tokens: Tokens of a unit.
        batch: Images of the library's mini-batch.
    """

    def __init__(self, size: Size, images: int, texts: int, device: str, tokens: int, unit_tokens: int, batch: int) -> None:
        from transformers import ViltForImageAndTextRetrieval

        self.size, self.width, self.device, self.tokens, self.batch = size, size.width, device, tokens, batch
        torch.manual_seed(0)
        config = {
            "hidden_size": size.width, "num_hidden_layers": size.layers, "num_attention_heads": size.heads,
            "intermediate_size": size.ffn_width, "vocab_size": size.vocab, "patch_size": size.patch,
        }  # fmt: skip
        self.network = ViLT(config=config, tokenizer="none", weights="random").to(device).eval()
        self.library: Any = ViltForImageAndTextRetrieval(self.network.model.config).to(device).eval()
        self.library.load_state_dict(self.network.model.state_dict())
        sizes = photographs(images)
        self.sizes_I2 = torch.tensor(sizes)
        self.lengths_I = (self.sizes_I2 // size.patch).prod(1) + 1
        self.words_T = full_rank.lengths(1, texts)[1].clamp_max(40)
        draw = torch.Generator().manual_seed(1)
        longest = int(self.words_T.max())
        tokens_TW = torch.randint(1, size.vocab, (texts, longest), generator=draw)
        self.texts_batch = TextBatch(
            ("",) * texts, ("",) * texts, torch.arange(texts), torch.arange(texts), tokens_TW,
            torch.arange(longest)[None] < self.words_T[:, None],
        ).to(device)  # fmt: skip
        self.plan = Plan(self.lengths_I.numpy(), self.words_T.numpy(), unit_tokens)
        with harness.autocast(device), torch.no_grad():
            parts = [self.network.embed_images(self.shown(rows)) for rows in torch.arange(images).split(20)]
            self.images = Ragged.joined(parts)
            self.texts = self.network.embed_texts(self.texts_batch)

    def shown(self, rows: Tensor) -> ImageBatch:
        """Pixels of some images; each image's are drawn by its row."""
        sizes_B2 = self.sizes_I2[rows]
        height, width = sizes_B2.amax(0).tolist()
        pixels_B3HW = torch.zeros(len(rows), 3, height, width)
        for place, (row, size) in enumerate(zip(rows.tolist(), sizes_B2.tolist(), strict=True)):
            draw = torch.Generator().manual_seed(row)
            pixels_B3HW[place, :, : size[0], : size[1]] = torch.randn(3, *size, generator=draw)
        return ImageBatch(("",) * len(rows), rows, pixels_B3HW, sizes_B2=sizes_B2).to(self.device)

    def flops(self, total: int) -> int:
        """Of one pair's pass through the layers, `total` tokens long; the last layer makes one query only."""
        whole = transformer_flops(self.size.width, self.size.ffn_width, self.size.layers, total, pooled=True)[0]
        return whole - 2 * self.size.width**2 * (total - 1)

    def score(self, packed: Packed) -> Tensor:
        """Of packed pairs."""
        return self.network.score_packed(packed)[0]

    def library_pairs(self, number: int) -> tuple[Tensor, Tensor]:
        """Rows of the pairs that a round of the library scores: neighbours of the split, of several sizes."""
        images = (torch.arange(self.batch) + number * self.batch) % len(self.sizes_I2)
        return images, torch.full_like(images, number * 997 % len(self.words_T))

    def pixels(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What the library takes: pixels and their mask."""
        batch = self.shown(images)
        assert batch.pixels_B3HW is not None
        assert batch.sizes_B2 is not None
        height, width = (torch.arange(side, device=self.device) for side in batch.pixels_B3HW.shape[2:])
        mask = (height < batch.sizes_B2[:, :1])[:, :, None] & (width < batch.sizes_B2[:, 1:])[:, None]
        return batch.pixels_B3HW, mask.long()

    def as_it_comes(self, pixels_B3HW: Tensor, mask_BHW: Tensor, text: Tensor) -> Tensor:
        """One caption against a mini-batch of images."""
        row, words = int(text[0]), int(self.words_T[int(text[0])])
        tokens = self.texts_batch.tokens_BT[row, :words].expand(len(pixels_B3HW), -1)
        return self.library(input_ids=tokens, pixel_values=pixels_B3HW, pixel_mask=mask_BHW).logits[:, 0].float()


def measure(world: World, rounds: int, ways: Sequence[str]) -> dict[str, Any]:
    """All ways, round by round, each round with another unit and another caption."""

    def turns(number: int) -> dict[str, harness.Turn]:
        images, text = world.library_pairs(number)
        every = {
            **world.turns_of_unit(number, rounds),
            "library": world.turn(partial(world.as_it_comes, *world.pixels(images), text), (images, text)),
        }
        return {way: every[way] for way in ways}

    with torch.no_grad(), harness.autocast(world.device):
        images, text = (rows[:4] for rows in world.library_pairs(0))  # warms up, too
        apart = (world.ours(images, text) - world.as_it_comes(*world.pixels(images), text)).abs().max().item()
        steps = harness.interleave(turns, rounds, warm=0, key="way")
    return {"largest_difference_to_the_library": apart, "steps": steps, "rows": [full_rank.summary(steps, way) for way in ways]}


def report(result: Mapping[str, Any]) -> str:
    """The table, as Markdown."""
    lines = [
        f"ViLT {result['size']}, {result['precision']}, {result['images']} images x {result['texts']} captions, "
        f"{result['mean_tokens']:.1f} tokens a pair, {result['threads']} thread(s), {result['rounds']} interleaved rounds.",
        harness.machine_line(result, result["run"]["steps"], "transformers"),
        "",
    ]
    head = ["way", "pairs/s", "tokens/s", "tokens/CPU s", "GFLOP/s", "of peak", "ours / it, CPU", "ours / it, wall", "goal"]
    cells = [
        [
            row["way"],
            f"{row['pairs_per_wall_s']:,.2f}",
            f"{row['tokens_per_wall_s']:,.0f}",
            f"{row['tokens_per_cpu_s']:,.0f}",
            f"{row['flops_per_wall_s'] / 1e9:,.0f}",
            f"{row['flops_per_wall_s'] / result['peak']:.1%}" if result["peak"] else "",
            *(harness.spread(row[f"ours_{kind}_ratio"]) for kind in ("cpu", "wall")),
            f">= {GOALS[row['way']]}" if row["way"] in GOALS else "",
        ]
        for row in result["run"]["rows"]
    ]
    apart = result["run"]["largest_difference_to_the_library"]
    lines += [harness.table(head, cells), "", f"Largest difference between a score of ours and of the library: {apart:.1e}."]
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    out = "write everything, each way of each round included, as JSON"
    made = harness.command_line(f"{__doc__}{harness.READING}", out, devices=("cpu", "cuda"), threads=2, rounds=5)
    add = made.add_argument
    add("--size", choices=sorted(SIZES), default="base")
    add("--images", type=int, default=60)
    add("--texts", type=int, default=300)
    add("--unit", type=int, help="tokens of a round's unit; default 4,096; as in full rank on a GPU")
    add("--batch", type=int, help="images of a mini-batch of the library; default 12; 64 on a GPU")
    add("--tokens", type=int, help="tokens of a mini-batch; by default ours of the device")
    add("--ways", nargs="+", choices=("encoder", "library"), default=["encoder", "library"], help="beside ours")
    return made


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print the table, return what --out would hold."""
    options = parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    cuda = options.device == "cuda"
    unit, batch = options.unit or (UNIT_TOKENS if cuda else 4096), options.batch or (64 if cuda else 12)
    tokens = options.tokens or TOKENS.get(options.device, TOKENS_ELSEWHERE)
    world = World(SIZES[options.size], options.images, options.texts, options.device, tokens, unit, batch)
    settings = {
        "size": options.size,
        "precision": "bf16 autocast" if cuda else "fp32",
        "images": options.images,
        "texts": options.texts,
        "mean_patches": world.lengths_I.double().mean().item(),
        "mean_words": world.words_T.double().mean().item(),
        "mean_tokens": world.lengths_I.double().mean().item() + world.words_T.double().mean().item(),
        "rounds": options.rounds,
        "unit_tokens": unit,
        "library_batch": batch,
        "threads": options.threads,
        "mini_batch_tokens": tokens,
    }
    result = harness.heading("vilt_full_rank", options.device, settings)
    result |= {"peak": harness.peak_flops(result["device"]["name"]) if cuda else None}
    result |= {"run": measure(world, options.rounds, ["ours", *options.ways])}
    print(report(result))
    harness.write(result, options.out)
    return result


if __name__ == "__main__":
    main()
