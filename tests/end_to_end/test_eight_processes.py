"""Eight processes of a BEiT-3, a UNITER and a captioning run compute what one computes (`make test-eight`).

27 images to train, 7 to validate (the eighth process has none), 11 to test, and one: seven processes have no image there, three
have no caption either. Batches are global, so eight processes have one pair, one positive a side or three captions each.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from end_to_end import BEIT3, arguments, captioner, results, uniter
from ranks import one_and_many

pytestmark = pytest.mark.skipif(not os.environ.get("CROSSLIGHT_EIGHT"), reason="make test-eight")
EIGHT = 8
EXACT = "--model.init_args.optimization.eps=1e-4"  # at 1e-8 AdamW makes whole steps of the rounding of gradients near zero
EMA = ("--trainer.callbacks+=lightning.pytorch.callbacks.EMAWeightAveraging", "--trainer.callbacks.decay=0.8")


def few(kind: str, *options: str) -> list[str]:
    """One image of a data set to test on besides."""
    given = "--evaluate.few"
    return [f"{given}={kind}", f"{given}.init_args.limits.test=1", f"{given}.init_args.num_workers=0",
            *(f"{given}.init_args.{option}" for option in options)]  # fmt: skip


BEIT3_WAYS = {
    "plain": ("--trainer.max_epochs=1",),
    # three batches an epoch: the second step of each is of one batch
    "accumulation": ("--trainer.max_epochs=2", "--trainer.accumulate_grad_batches=2", "--trainer.gradient_clip_val=0.05"),
    "gradient cache": ("--trainer.max_epochs=3", "--data.init_args.batch_size=16", "--model.init_args.gradient_cache_chunk=1"),
    "EMA": ("--trainer.max_epochs=2", *EMA),
}


@pytest.mark.parametrize("way", BEIT3_WAYS)
def test_beit3(way: str, tmp_path: Path, world: Path) -> None:
    def command(run: Path, *more: str) -> list[str]:
        return arguments(
            "mwa", *BEIT3, EXACT, "--model.init_args.optimization.lr=0.01", "--model.init_args.adapter.init_args.dropout=0",
            *BEIT3_WAYS[way], *few("datamodules.flickr30k.Flickr30k", f"root={world / 'flickr30k'}"), f"--run_dir={run}", *more,
        )  # fmt: skip

    _, many = one_and_many(command, EIGHT, tmp_path)
    assert results(many)["fit"]["steps"] == {"plain": 3, "accumulation": 4, "gradient cache": 3, "EMA": 6}[way]


@pytest.mark.parametrize("more", [(), EMA], ids=["plain", "EMA"])
def test_uniter(more: tuple[str, ...], tmp_path: Path, world: Path) -> None:
    """Mined hard negatives, IAIS, two batches a step, the matrix of all pairs."""
    entities = ("datamodules.flickr30k_entities.Flickr30kEntities", f"root={world / 'flickr30k'}",
                "regions.image_db=img_db/flickr30k", "regions.kind=all")  # fmt: skip

    def command(run: Path, *given: str) -> list[str]:
        return uniter(
            "distributed", "--trainer.max_steps=3", EXACT, "--model.init_args.optimization.lr=0.005",
            "--data.init_args.eval_batch_size=3", *few(*entities), *more, f"--run_dir={run}", *given,
        )  # fmt: skip

    one_and_many(command, EIGHT, tmp_path, loss=1e-4)


@pytest.mark.parametrize("more", [(), EMA], ids=["plain", "EMA"])
def test_captioning(more: tuple[str, ...], tmp_path: Path, world: Path) -> None:
    def command(run: Path, *given: str) -> list[str]:
        return captioner(
            "i_tuning", "--data.init_args.batch_size=24", "--trainer.max_steps=4", "--model.init_args.optimization.lr=0.005",
            EXACT, *few("datamodules.flickr30k.Flickr30k", f"root={world / 'flickr30k'}"), *more, f"--run_dir={run}", *given,
        )  # fmt: skip

    one_and_many(command, EIGHT, tmp_path)
