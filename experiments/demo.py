"""`make demo`: the whole story on rendered scenes, in one process.

A tiny BEiT-3 is pre-trained on the embedded world's first style, then adapted to its second style in five ways from that one
checkpoint: head-only, MWA, KE only, AE only, full. As in the paper, the adapter rows leave everything that the checkpoint brought
as it is, the heads too. Then a tiny UNITER is fine-tuned without IAIS and with both kinds (`iais_demo.py`), and a tiny vision
tower is connected with a tiny language model by I-Tuning and ClipCap (`captioning_demo.py`). Every step goes through the same
command line that real runs use; the numbers come as they come.
"""

from __future__ import annotations

import os
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from datamodules.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from datamodules.miniworld.scenes import Style

ROWS = ("head", "mwa", "ke_only", "ae_only", "full")
SCENES = 800
PRETRAIN_EPOCHS = 20
ADAPT_EPOCHS = 14
# Peak learning rates, chosen by validation recalls of one seed: heads of 3e-4, 1e-3 and 3e-3, adapters of 1e-3, 3e-3 and 1e-2,
# full of 3e-5, 1e-4, 3e-4 and of 1e-4 with heads at 1e-3.
HEAD_LR, ADAPTER_LR, FULL_LR = 1e-3, 3e-3, 3e-4


def run_demo(out: Path, seed: int) -> int:
    """Render, pre-train, adapt in five ways, print the table, draw the picture. Returns the exit status."""
    from experiments import captioning_demo
    from experiments.iais_demo import compare, print_rows
    from experiments.table import find_runs, markdown, rows

    console, say = opening()
    say(f"rendering {2 * SCENES:,} scenes in two styles (kept in {out} for the next time)")
    worlds = demo_worlds(out, seed)
    folder = out / datetime.now().strftime("%Y%m%d-%H%M%S")
    common = ["-c", "configs/trainer/demo.yaml", "-c", "configs/model/beit3_tiny.yaml", "-c", "configs/data/world.yaml"]
    common += [f"--seed_everything={seed}", f"--data.init_args.seed={seed}"]

    say(f"pre-training a tiny BEiT-3 on the first style, {PRETRAIN_EPOCHS} epochs")
    pretrained = folder / "pretrain"
    train(
        "fit", worlds["source"], pretrained,
        [*common, "-c", "experiments/mwa/rows/full.yaml", "--name=pretrain", f"--trainer.max_epochs={PRETRAIN_EPOCHS}",
         f"--trainer.check_val_every_n_epoch={PRETRAIN_EPOCHS}"],
    )  # fmt: skip
    for row in ROWS:
        say(f"adapting to the second style: {row}")
        rates = {"lr": FULL_LR} if row == "full" else {"lr": HEAD_LR, "adapter_lr": ADAPTER_LR}
        train(
            "run", worlds["target"], folder / row,
            [*common, "-c", f"experiments/mwa/rows/{row}.yaml", f"--model.init_args.init_from={pretrained}",
             f"--trainer.max_epochs={ADAPT_EPOCHS}", f"--trainer.check_val_every_n_epoch={ADAPT_EPOCHS}",
             *(f"--model.init_args.optimisation.{key}={rate}" for key, rate in rates.items())],
        )  # fmt: skip
    table = markdown(rows(find_runs([folder / row for row in ROWS])))
    (folder / "table.md").write_text(table)
    say("drawing queries with what was found")
    picture = _draw(folder / "mwa", worlds["target"])
    console.print()
    _print_table(console, folder)
    console.print()
    distances = compare(worlds["source"], folder / "iais", [seed], say)
    console.print()
    print_rows(console, distances)
    (folder / "iais.md").write_text(markdown(distances))
    console.print()
    captioning = captioning_demo.run_captioning(worlds["source"], folder / "captioning", [seed], say)
    console.print()
    captioning_demo.print_rows(console, captioning)
    (folder / "captioning.md").write_text(captioning_demo.report(captioning))
    console.print(f"\nscale: miniature (embedded world, {SCENES:,} scenes a style), seed {seed}", highlight=False)
    tables = [folder / name for name in ("table.md", "iais.md", "captioning.md")]
    for name, paths in {"tables": tables, "pictures": [picture, captioning.picture], "runs": [folder]}.items():
        for number, path in enumerate(paths):
            console.print(f"{'' if number else f'{name}:':<10}{path}", highlight=False, soft_wrap=True)
    return 0


def opening() -> tuple[Console, Callable[[str], None]]:
    """A console, and how a demo says on it what comes next: with the seconds since now."""
    from rich.console import Console

    from experiments.training import quiet

    quiet()
    console = Console()
    started = time.perf_counter()

    def say(text: str) -> None:
        console.print(f"[dim]{time.perf_counter() - started:5.1f} s[/dim]  {text}", highlight=False)

    return console, say


def demo_worlds(out: Path, seed: int) -> dict[str, Path]:
    """A world of each style, nearly all of it in the Flickr30k part, which the demos read."""
    from datamodules.miniworld import Splits, write_world

    splits = Splits(coco=0.02, flickr_train=0.8, flickr_val=0.08)
    styles: tuple[Style, ...] = ("source", "target")
    return {style: write_world(out / f"world-{style}", scenes=SCENES, seed=seed, style=style, splits=splits) for style in styles}


def train(command: str, world: Path, run_dir: Path, arguments: list[str]) -> None:
    """`crosslight COMMAND` on a world, in this process.

    Raises:
        InputError: It did not finish.
    """
    from experiments.cli import find_configs
    from experiments.training import train_or_evaluate

    os.environ["CROSSLIGHT_WORLD"] = str(world)
    status = train_or_evaluate(command, find_configs([*arguments, f"--run_dir={run_dir}"]), announce=False)
    if status != 0:
        raise InputError(f"the demo stopped in {run_dir}: its results.json says why.")


def _print_table(console: object, folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from experiments.table import find_runs, rows

    assert isinstance(console, Console)
    table = Table(
        box=None,
        padding=(0, 1, 0, 0),
        title="one pre-trained model, five ways to adapt it: test recalls in %",
        title_justify="left",
    )
    columns = ("", "i2t@1", "@5", "@10", "t2i@1", "@5", "@10", "rsum", "tunable", "%", "MiB", "s/epoch")
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    for row in rows(find_runs([folder / name for name in ROWS])):
        recalls = [f"{row[key]:.1f}" for key in ("i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10", "rsum")]
        cost = [f"{row['tunable_parameters']:,.0f}", f"{row['tunable_percent']:.0f}", f"{row['peak_memory_bytes'] / 2**20:.1f}"]
        table.add_row(row["name"], *recalls, *cost, f"{row['seconds_per_epoch']:.2f}")
    console.print(table)


def _draw(run: Path, world: Path) -> Path:
    import lightning_modules
    from datamodules.flickr30k import Flickr30k
    from experiments.pictures import draw_queries

    data = Flickr30k(root=str(world / "flickr30k"), num_workers=0, eval_batch_size=256)
    return draw_queries(lightning_modules.load(run), data, "test", run.parent / "queries.png")
