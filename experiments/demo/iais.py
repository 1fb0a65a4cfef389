"""`make demo-iais`: what IAIS does to a tiny UNITER on rendered scenes.

UNITER learns to match region features and captions on random candidates (a margin hardly moves random weights), then it is
fine-tuned with mined hard negatives: plain, IAIS-singular, IAIS-distributed, each from the same checkpoint and with the same
batches. Reported as they come: recalls, ISDa, and both distances of the paper's Table 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

ROWS = ("baseline", "singular", "distributed")
PRETRAIN_STEPS = 160
STEPS = 50
COMMON = ("-c", "configs/trainer/demo.yaml", "-c", "configs/model/uniter_tiny.yaml", "-c", "configs/data/world_entities.yaml")


def run_demo(out: Path, seeds: Sequence[int]) -> int:
    """Render, pre-train and fine-tune for every seed, print the table. Returns the exit status."""
    from experiments.demo.common import demo_worlds, opening
    from experiments.report.table import markdown

    console, say = opening()
    folder = out / datetime.now().strftime("iais-%Y%m%d-%H%M%S")
    worlds = demo_worlds(out, seed=0)
    table = compare(worlds["source"], folder, seeds, say)
    (folder / "iais.md").write_text(markdown(table))
    console.print()
    print_rows(console, table)
    console.print(f"\nscale: miniature (embedded world), seeds {', '.join(map(str, seeds))}\nruns:  {folder}", highlight=False)
    return 0


def compare(world: Path, folder: Path, seeds: Sequence[int], say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Match and fine-tune in three ways for every seed. Returns the rows of the table."""
    from experiments.demo.common import train
    from experiments.report.table import find_runs, rows

    for seed in seeds:
        seeded = [f"--seed_everything={seed}", f"--data.init_args.seed={seed}"]
        say(f"seed {seed}: a tiny UNITER learns to match, {PRETRAIN_STEPS} steps")
        pretrained = folder / f"pretrain-{seed}"
        train(
            "fit", world, pretrained,
            [*COMMON, *seeded, "--name=pretrain", f"--trainer.max_steps={PRETRAIN_STEPS}", "--trainer.max_epochs=-1",
             "--trainer.check_val_every_n_epoch=null", f"--trainer.val_check_interval={PRETRAIN_STEPS}",
             "--data.init_args.ranking.candidates=15", "--model.init_args.hard_negatives=15", "--data.init_args.limits.val=20",
             "--model.init_args.objective=lightning_modules.objectives.matching.Matching",
             "--model.init_args.optimization.lr=1e-3"],
        )  # fmt: skip
        for row in ROWS:
            say(f"seed {seed}: fine-tuning with hard negatives: {row}")
            train(
                "run", world, folder / f"{row}-{seed}",
                [*COMMON, *seeded, "-c", f"experiments/papers/iais/variants/{row}.yaml",
                 f"--model.init_args.init_from={pretrained}",
                 f"--trainer.max_steps={STEPS}", "--trainer.max_epochs=-1", "--trainer.check_val_every_n_epoch=null",
                 f"--trainer.val_check_interval={STEPS}", "--data.init_args.batch_size=8",
                 "--data.init_args.ranking.candidates=15", "--model.init_args.hard_negatives=7",
                 "--data.init_args.limits.val=20", "--data.init_args.limits.test=50"],
            )  # fmt: skip
    return rows(find_runs([folder / f"{row}-{seed}" for row in ROWS for seed in seeds]))


def print_rows(console: Any, table: list[dict[str, Any]]) -> None:
    """Recalls, Meta-Sum (the sum of the six recalls), ISDa and both IAIS distances; mean and standard deviation over seeds."""
    from rich.table import Table

    shown = Table(
        box=None,
        padding=(0, 1, 0, 0),
        title="UNITER with hard negatives: test recalls in %, distances between the two modalities' relations",
        title_justify="left",
    )
    columns = {
        "i2t_r1": "i2t@1", "i2t_r5": "@5", "i2t_r10": "@10", "t2i_r1": "t2i@1", "t2i_r5": "@5", "t2i_r10": "@10",
        "rsum": "Meta-Sum", "isda": "ISDa", "iais_singular": "L(s)", "iais_distributed": "L(d)",
    }  # fmt: skip
    for name in ("", *columns.values()):
        shown.add_column(name, justify="right" if name else "left")
    for row in table:
        cells = []
        for key in columns:
            spread, digits = row.get(f"{key}_sd"), 1 if key.endswith(("1", "5", "0", "sum")) else 3
            cells.append(f"{row[key]:.{digits}f}" + (f"±{spread:.{digits}f}" if spread is not None else ""))
        shown.add_row(row["name"], *cells)
    console.print(shown)
