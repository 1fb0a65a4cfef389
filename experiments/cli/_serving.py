"""What commands that use a trained model share: which one, where it runs, and what is said at the end."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamodules.errors import InputError, line_of, printable, some
from experiments.cli._parser import Parser, add_backbone

if TYPE_CHECKING:
    from experiments.serving.index import Label
    from lightning_modules.retrieval import RetrievalModule


def add_model_options(parser: Parser, batch_size: int, workers: bool = True) -> None:
    """Where the model's weights are and where it runs."""
    add_backbone(parser)
    option = parser.add_argument
    option("--batch-size", type=int, default=batch_size, metavar="N", help="at once")
    if workers:
        option("--workers", type=int, default=2, metavar="N", help="processes that decode images; 0 decodes in this one")
    option("--device", default="auto", metavar="NAME", help="cpu, cuda, cuda:N (default: cuda where there is one)")


def load_encoders(run: str, options: Any) -> RetrievalModule:
    """The model of a run or export that has two encoders, on the device that was asked for.

    Raises:
        InputError: It has none, or cannot be loaded.
    """
    import lightning_modules
    from experiments.serving.models import find_device, two_encoders
    from experiments.training.quiet import quiet

    quiet()
    device = find_device(options.device)
    model = two_encoders(lightning_modules.load(run, backbone=options.backbone, tokenizer=options.tokenizer), run)
    tell_no_result(model, run)
    model.to(device)
    return model


def place_of_model(label: Label, options: Any) -> str:
    """Where an index's model lies now: as the command line says, or as when the index was made, with the same backbone and
    tokenizer.

    Raises:
        InputError: It is not there.
    """
    if options.run:
        folder = str(options.run)
    else:
        options.backbone = options.backbone or label.backbone
        options.tokenizer = options.tokenizer or label.tokenizer
        folder = label.run
    if Path(folder).is_absolute() and not Path(folder).exists():
        raise InputError(f"{folder}, whose model made {options.index}, is not there; say with --run where it lies now.")
    return folder


def tell_no_result(model: Any, run: str | Path) -> None:
    """Say it, where a model is of stand-ins or of a rehearsal."""
    if (why := getattr(model, "no_result", None)) is not None:
        tell(f"crosslight: nothing that {run} computes is a result ({why})")


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """While inside, a warning is one line on stderr: what a model cannot read of a text."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: tell(f"crosslight: {message}")
        yield


def tell(line: str) -> None:
    """A line on stderr."""
    print(printable(line), file=sys.stderr, flush=True)


def tell_others(others: Sequence[str]) -> None:
    """What of a folder was not looked at."""
    if others:
        kinds = Counter(Path(name).suffix.lower() or "without an ending" for name in others)
        tell(
            "left out, no images by their endings, hidden, or links to folders: "
            + some(f"{count:,} {kind}" for kind, count in kinds.most_common())
        )


def tell_broken(broken: Sequence[str]) -> int:
    """Name the images that could not be read, a line each. Returns the exit status."""
    if broken:
        tell(f"{len(broken):,} images cannot be read, and the rest is done:")
        for line in broken:
            tell(f"  {line_of(line)}")
    return int(bool(broken))
