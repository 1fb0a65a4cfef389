"""When do I-Tuning's words look at what they name, and when does attention collapse? The miniature's captioner by settings.

    python benchmarks/i_tuning_attention.py --runs runs/attention --out benchmarks/results/i_tuning_attention.json

Each setting is the run i_tuning/coco-large of the miniature with other heads, another scale of Eq. 4, lambda, start or learning
rate, all else equal, one seed. `callbacks/attention_spread.py` logs over training how many visual tokens share an even map of the
same entropy (37 at most), the largest weight of a map, and the part of maps that peak on the same token. At the end: CIDEr of the
test images, and how much of their attention words have in the boxes of what they name, over the boxes' part of the image (1 is
chance). Finished runs are kept in --runs and not repeated; --tower takes another vision tower than miniature:vision.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# The file is run by its path: the packages beside this folder must be found without an installation, too.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import harness
from experiments.papers.plan import plan_runs
from experiments.papers.worlds import world_folder, write_miniature_world

RUN = "i_tuning/coco-large"
SPREAD = "lightning_modules.callbacks.attention_spread.AttentionSpread"
TOWER = "model.init_args.network.init_args.vision.init_args.weights"
ADAPTER, RATE = "model.init_args.adapter.init_args.", "model.init_args.optimization.lr"
ONE, OWN = {ADAPTER + "num_heads": "1"}, {ADAPTER + "num_heads": "language_model"}
SETTINGS: dict[str, dict[str, str]] = {
    "one head, no scale (as printed), lr 5e-3": {**ONE, RATE: "5e-3"},
    "one head, no scale, lr 3e-3": {**ONE, RATE: "3e-3"},
    "one head, no scale, lr 1e-3": {**ONE, RATE: "1e-3"},
    "one head, scaled, lr 3e-3": {**ONE, ADAPTER + "scale": "sqrt", RATE: "3e-3"},
    "own heads, no scale, lr 5e-3": {**OWN, RATE: "5e-3"},
    "own heads, no scale, lr 3e-3 (the rows')": {**OWN, RATE: "3e-3"},
    "own heads, no scale, lr 1e-3": {**OWN, RATE: "1e-3"},
    "own heads, scaled, lr 3e-3": {**OWN, ADAPTER + "scale": "sqrt", RATE: "3e-3"},
    "own heads, no scale, lambda 1, lr 3e-3": {**OWN, ADAPTER + "lambda_": "1.0", RATE: "3e-3"},
    "own heads, no scale, Wo zero, lr 3e-3": {**OWN, ADAPTER + "init": "zero_up", RATE: "3e-3"},
}
SHOWN = (10, 50, 100, 200, 290)  # steps


def measure(settings: Mapping[str, str], folder: Path, world: Path, seed: int, images: int) -> dict[str, Any]:
    """Train (unless it is done), and look."""
    import lightning_modules
    from experiments.analysis.grounding import word_shares
    from experiments.runs.metrics_csv import read_rows
    from experiments.runs.results import read_results

    if not ((folder / "results.json").exists() and read_results(folder).status == "finished"):
        _train(settings, folder, seed)
    (evaluation,) = read_results(folder).evaluations
    shares, _ = word_shares(lightning_modules.load(folder).network.eval(), world / "flickr30k", images)
    return {
        "cider": evaluation.metrics["cider"],
        "inside": float(shares.inside_W.mean()),
        "area": float(shares.area_W.mean()),
        "elsewhere": float(shares.elsewhere_W.mean()),
        "words": len(shares.inside_W),
        "curve": [
            {"step": int(row["step"]), **{name: float(row[f"attention/{name}"]) for name in ("tokens", "peak", "same")}}
            for row in read_rows(folder)
            if row.get("attention/tokens") and row.get("train/loss")
        ],
    }


def _train(settings: Mapping[str, str], folder: Path, seed: int) -> None:
    from experiments.training.command import train_or_evaluate
    from experiments.training.configs import find_configs

    (planned,) = plan_runs([RUN], "miniature", [seed])
    options = {**planned.options({}), **settings, "trainer.callbacks+": SPREAD, "run_dir": str(folder)}
    words = [word for file in planned.recipe.configs for word in ("-c", file)]
    if train_or_evaluate(
        "run", find_configs([*words, *(f"--{name}={value}" for name, value in options.items())]), announce=False
    ):
        raise SystemExit(f"{folder} did not finish")


def main() -> None:
    options_of = harness.command_line(__doc__, "write the numbers and curves of all settings as JSON")
    options_of.add_argument("--runs", type=Path, default=Path("runs/attention"), metavar="DIR")
    options_of.add_argument("--seed", type=int, default=0)
    options_of.add_argument("--tower", help="a weights file of a vision tower, FILE#PREFIX (give another --runs too)")
    options_of.add_argument("--images", type=int, default=100, help="whose words are looked at")
    options = options_of.parse_args()
    world = write_miniature_world(world_folder(options.runs, "source"), "source")
    os.environ["CROSSLIGHT_WORLD"] = str(world)
    origin = harness.heading(
        "i_tuning_attention", "cpu", {"run": RUN, "seed": options.seed, "tower": options.tower}, environment=()
    )
    tower = {} if options.tower is None else {TOWER: options.tower}
    found: dict[str, Any] = {}
    rows = []
    for name, settings in SETTINGS.items():
        harness.tell(name)
        found[name] = each = measure(
            settings | tower,
            options.runs / f"{re.sub(r'[^a-z0-9.]+', '-', name)}-s{options.seed}",
            world,
            options.seed,
            options.images,
        )
        by_step = {entry["step"] + 1: entry for entry in each["curve"]}
        last = each["curve"][-1]
        tokens = [f"{by_step[step]['tokens']:.1f}" if step in by_step else "" for step in SHOWN]
        rows.append([name, *tokens, f"{last['peak']:.2f}", f"{last['same']:.2f}", f"{each['inside'] / each['area']:.1f}",
                     f"{100 * each['cider']:.0f}"])  # fmt: skip
    head = ["setting", *(f"tokens, step {step}" for step in SHOWN), "peak", "same", "in box / area", "CIDEr"]
    print(harness.table(head, rows))
    harness.write(origin | {"settings": found}, options.out)


if __name__ == "__main__":
    main()
