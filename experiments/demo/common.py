"""What the demos share: their opening lines, worlds, and how they train."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from datamodules.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from datamodules.miniworld.scenes import Style


SCENES = 800  # of the worlds of `demo_worlds`


def opening() -> tuple[Console, Callable[[str], None]]:
    """A console, and how a demo says on it what comes next: with the seconds since now."""
    from rich.console import Console

    from experiments.training.quiet import quiet

    quiet()
    console = Console()
    if not console.is_terminal:
        console = Console(width=132)  # in a file or pipe nothing is cut at 80
    started = time.perf_counter()

    def say(text: str) -> None:
        console.print(f"[dim]{time.perf_counter() - started:5.1f} s[/dim]  {text}", highlight=False)

    return console, say


def demo_worlds(out: Path, seed: int) -> dict[str, Path]:
    """A world of each style, nearly all of it in the Flickr30k part, which the demos of one method read."""
    from datamodules.miniworld.write import Splits, write_world

    splits = Splits(coco=0.02, flickr_train=0.8, flickr_val=0.08)
    styles: tuple[Style, ...] = ("source", "target")
    return {style: write_world(out / f"world-{style}", scenes=SCENES, seed=seed, style=style, splits=splits) for style in styles}


def train(command: str, world: Path, run_dir: Path, arguments: list[str]) -> None:
    """`crosslight COMMAND` on a world, in this process.

    Raises:
        InputError: It did not finish.
    """
    from experiments.training.command import train_or_evaluate
    from experiments.training.configs import find_configs

    os.environ["CROSSLIGHT_WORLD"] = str(world)
    status = train_or_evaluate(command, find_configs([*arguments, f"--run_dir={run_dir}"]), announce=False)
    if status != 0:
        raise InputError(f"the demo stopped in {run_dir}: its results.json says why.")
