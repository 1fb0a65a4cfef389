"""One bar, on stderr, for whoever watches a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def progress_bar(shown: bool, console: Console | None = None) -> Progress:
    """A bar with what is done, how long it took and how long it will. What is printed to stdout meanwhile goes where it would.

    Args:
        shown: Whether it is seen at all; nor is it where the console is no terminal.
        console: Where it is drawn. None: stderr.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    console = console or Console(stderr=True)
    return Progress(*columns, console=console, disable=not (shown and console.is_terminal), transient=True, redirect_stdout=False)
