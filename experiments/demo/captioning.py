"""`make demo-captioning`: I-Tuning and ClipCap between a tiny language model and a tiny vision tower, on rendered scenes.

A ViT learns to see by matching scenes and captions, a GPT-2 learns to write captions without ever seeing a scene. Three ways to
connect them are trained from these two files: I-Tuning and I-Tuning with the lower half of the layers dropped, both models being
frozen, and ClipCap with a tuned language model. Reported as they come: caption metrics, tunable parameters, time, and how much
of I-Tuning's attention is inside the box of the thing that a word names.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass
from experiments.analysis.grounding import Grounding, encode_split, mean_of, measure_grounding

ROWS = ("i_tuning", "i_tuning_half", "clipcap_mlp")
SEE_EPOCHS, WRITE_EPOCHS, CONNECT_EPOCHS = 25, 3, 10
# Peak learning rates, tried on validation images of one seed: to see 1e-3, 2e-3, 3e-3; to write 1e-3, 3e-3, 5e-3; I-Tuning 1e-3,
# 3e-3, 5e-3, 1e-2 (as printed: one head, no scale, lambda 4), chosen by CIDEr. ClipCap tunes the language model here: one of this
# size that has only ever seen captions is not steered by a prefix while frozen (1, 2, 4 or 8 tokens, transformer or MLP, 5e-3 and
# 1e-2: losses from 1.376 up, without an image 1.381).
SEE_LR, WRITE_LR = 3e-3, 5e-3
CONNECT_LR = {"i_tuning": 5e-3, "i_tuning_half": 5e-3, "clipcap_mlp": 2e-3}

# 36 patches of the scenes' own pixels. Every patch takes part in the mean, so every patch learns to say what is in it.
_TOWER = {
    "image_size": 96,
    "pooling": "mean",
    "options": "{img_size: 96, patch_size: 16, embed_dim: 96, depth: 3, num_heads: 3}",
}
_CAPTIONER = "model.init_args.network.init_args"


def run_demo(out: Path, seeds: Sequence[int]) -> int:
    """Render, train and look for every seed, print both tables. Returns the exit status."""
    from experiments.demo.common import demo_worlds, opening

    console, say = opening()
    folder = out / datetime.now().strftime("captioning-%Y%m%d-%H%M%S")
    worlds = demo_worlds(out, seed=0)
    results = run_captioning(worlds["source"], folder, seeds, say)
    console.print()
    print_rows(console, results)
    (folder / "captioning.md").write_text(report(results))
    console.print(f"\nscale: miniature (embedded world), seeds {', '.join(map(str, seeds))}", highlight=False)
    console.print(f"tables:  {folder / 'captioning.md'}\npicture: {results.picture}\nruns:    {folder}", highlight=False)
    return 0


# -------------------------------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class Results:
    """`table`: rows of `report.table.rows`, the language model alone among them. `grounding`: of each I-Tuning row, by seed.
    `picture`: one caption's maps."""

    table: list[dict[str, Any]]
    grounding: dict[str, list[Grounding]]
    picture: Path


def run_captioning(world: Path, folder: Path, seeds: Sequence[int], say: Callable[[str], None]) -> Results:
    """Learn to see, to write, and to do both for every seed; then look where the words look."""
    from experiments.report.table import find_runs, rows

    runs = [train_seed(world, folder, seed, say) for seed in seeds]
    say("grounding: the share of attention in the named thing's box")
    grounding = {row: [measure_grounding(found[row], world) for found in runs] for row in ROWS if row.startswith("i_tuning")}
    say("drawing what the words of a caption attend to")
    picture = draw(runs[0]["i_tuning"], world, grounding["i_tuning"][0], folder / "attention.png")
    table = rows(find_runs([found[row] for row in ("language_model_only", *ROWS) for found in runs]))
    return Results(table, grounding, picture)


def train_seed(world: Path, folder: Path, seed: int, say: Callable[[str], None]) -> dict[str, Path]:
    """The run folders of one seed by row, those of the language model alone among them."""
    from experiments.demo.common import train

    seeded = ["-c", "configs/trainer/demo.yaml", f"--seed_everything={seed}", f"--data.init_args.seed={seed}"]

    def tower(place: str) -> list[str]:
        return [f"--model.init_args.network.init_args.{place}.init_args.{key}={value}" for key, value in _TOWER.items()]

    say(f"seed {seed}: a tiny ViT learns to see, {SEE_EPOCHS} epochs")
    see = folder / f"see-{seed}"
    train(
        "fit", world, see,
        [*seeded, "-c", "configs/model/dual_tiny.yaml", "-c", "configs/data/world.yaml", "-c",
         "experiments/papers/mwa/variants/full.yaml",
         *tower("image"), "--name=see", *_epochs(SEE_EPOCHS), f"--model.init_args.optimization.lr={SEE_LR}"],
    )  # fmt: skip
    seen = save_part(see, "image.model", folder / f"see-{seed}.safetensors")

    common = [
        *seeded, "-c", "configs/model/captioner_tiny.yaml", "-c", "configs/data/world_captions.yaml", *tower("vision"),
        "--trainer.gradient_clip_val=1.0", "--data.init_args.batch_size=64",
        # these three need no Java, and the same tokenizer everywhere gives the same numbers everywhere
        "--model.init_args.scoring.metrics=[bleu, rouge_l, cider]", "--model.init_args.scoring.tokenizer=simple",
    ]  # fmt: skip
    say(f"seed {seed}: a tiny GPT-2 learns to write, {WRITE_EPOCHS} epochs of captions without images")
    write = folder / f"language_model_only-{seed}"
    train(
        "run", world, write,
        [*common, "-c", "experiments/papers/i_tuning/variants/language_model_only.yaml", "--model.init_args.tuning=head",
         *_epochs(WRITE_EPOCHS), "--data.init_args.captioning.group=none", f"--model.init_args.optimization.lr={WRITE_LR}"],
    )  # fmt: skip
    written = save_part(write, "language.model", folder / f"write-{seed}.safetensors")

    frozen = [f"--{_CAPTIONER}.vision.init_args.weights={seen}", f"--{_CAPTIONER}.language.init_args.weights={written}"]
    found = {"language_model_only": write}
    for row in ROWS:
        say(f"seed {seed}: the two connected by {row}, {CONNECT_EPOCHS} epochs")
        found[row] = folder / f"{row}-{seed}"
        own = ["--model.init_args.adapter.init_args.prefix_length=4"] if row == "clipcap_mlp" else []
        train(
            "run", world, found[row],
            [*common, "-c", f"experiments/papers/i_tuning/variants/{row}.yaml", *frozen, *own, *_epochs(CONNECT_EPOCHS),
             # two captions of twice as many images teach more than five of a few
             "--data.init_args.captioning.captions_per_image=2", f"--model.init_args.optimization.lr={CONNECT_LR[row]}"],
        )  # fmt: skip
    return found


def _epochs(number: int) -> list[str]:
    """So many, with one validation at the end."""
    return [f"--trainer.max_epochs={number}", f"--trainer.check_val_every_n_epoch={number}"]


def save_part(run: Path, part: str, path: Path) -> Path:
    """A part of a run's network as a weights file, under the part's own keys. A tied tensor is written once."""
    import lightning_modules
    from lightning_modules.checkpoints.weights import write_weights

    network: Any = lightning_modules.load(run).network
    kept, there = {}, set()
    for name, tensor in network.get_submodule(part).state_dict().items():
        if tensor.data_ptr() not in there:
            kept[name] = tensor.contiguous()
        there.add(tensor.data_ptr())
    write_weights(kept, path)
    return path


# ----------------------------------------------------------------------------------------------------- attention maps


def draw(run: Path, world: Path, grounding: Grounding, path: Path) -> Path:
    """The maps of what the network writes about the first test image, taken from the place of `grounding`."""
    import lightning_modules
    from datamodules.files.images import open_image
    from experiments.analysis.draw_maps import draw_maps
    from experiments.analysis.grid import covered_area
    from experiments.analysis.word_maps import token_maps
    from lightning_modules.networks.captioner import VisualFeatures

    module: Any = lightning_modules.load(run)
    network = module.network.eval()
    records, features = encode_split(network, world, "test")
    first = VisualFeatures(features.tokens_IVD[:1])
    layer, position = grounding.place
    (maps,) = token_maps(network, first, network.generate_ids(first, module.decoding), layer=layer, position=position)
    image = open_image(records[0])
    return draw_maps(path, image, maps, covered_area(network.inputs.image, *image.size))


# --------------------------------------------------------------------------------------------------------------- tables


_COLUMNS = {"cider": "CIDEr", "bleu_4": "BLEU-4", "rouge_l": "ROUGE-L"}


def print_rows(console: Any, results: Results) -> None:
    """Caption scores (times 100) and costs of each row, then where I-Tuning's words look; means and deviations over seeds."""
    from rich.table import Table

    for title, header, lines in (_scores(results), _looks(results)):
        shown = Table(box=None, padding=(0, 1, 0, 0), title=title, title_justify="left")
        for name in header:
            shown.add_column(name, justify="right" if name else "left")
        for line in lines:
            shown.add_row(*line)
        console.print(shown)


def report(results: Results) -> str:
    """Both tables as Markdown."""
    parts = []
    for title, header, lines in (_scores(results), _looks(results)):
        rows = [header, ["---"] * len(header), *lines]
        parts.append(f"{title}\n\n" + "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n")
    return "\n".join(parts)


def _scores(results: Results) -> tuple[str, list[str], list[list[str]]]:
    from experiments.report.table import metric_text

    lines = []
    for row in results.table:
        alone = row["name"] == "language_model_only"
        cost = ["", ""] if alone else [f"{row['tunable_parameters']:,.0f}", f"{row['seconds_per_epoch']:.2f}"]
        lines.append(["no image" if alone else row["name"], *(metric_text(row, key) for key in _COLUMNS), *cost])
    title = "a vision tower and a language model, three ways to connect them: test captions (CIDEr-D and others times 100)"
    return title, ["", *_COLUMNS.values(), "tunable", "s/epoch"], lines


def _looks(results: Results) -> tuple[str, list[str], list[list[str]]]:
    columns = {"inside": "in its box", "area": "area", "elsewhere": "other maps", "over": "over area", "everywhere": "all layers"}
    lines = []
    for name, grounding in results.grounding.items():
        places = {
            f"{layer}, {'reading' if position == 'reads' else 'predicting'}" for layer, position in (x.place for x in grounding)
        }
        lines.append(
            [name, " / ".join(sorted(places)), *(_percent([getattr(each, key) for each in grounding]) for key in columns)]
        )
    words = next(iter(results.grounding.values()))[0].words
    title = f"where {words} words of test captions look that name a thing: % of attention inside of its box"
    return title, ["", "layer (from 0)", *columns.values()], lines


def _percent(values: Sequence[float]) -> str:
    spread = f" ±{100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * mean_of(values):.1f}{spread}"
