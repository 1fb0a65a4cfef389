"""The runner's progress on a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from datamodules.errors import printable
from experiments.runs.duration import readable_time
from experiments.runs.headings import counted
from experiments.sweep.outcomes import BROKEN, ENDED, OVER, STATES, Entry

_STYLE = {
    "finished": "green", "stopped_early": "green", "running": "cyan", "elsewhere": "cyan", "failed": "red", "oom": "red",
    "blocked": "red", "interrupted": "yellow", "waiting": "dim",
}  # fmt: skip


def state_style(state: str) -> str:
    """Its color on a terminal."""
    return _STYLE.get(state, "")


def plain(content: object, most: int | None = None) -> Text:
    """Text of a name, a path or an error as it is: no markup of the terminal's or of ours."""
    return Text(printable(str(content))[:most])


class Display:
    """A table that is kept up to date on a terminal, or a line for every change elsewhere.

    Args:
        console: To show it on.
        entries: Of the runner, by key; read whenever something is shown.
        root: Where the run folders are.
        seconds_left: Estimate; None where there is nothing to estimate from.
    """

    def __init__(
        self, console: Console, entries: Mapping[str, Entry], root: Path, seconds_left: Callable[[], float | None]
    ) -> None:
        self.console, self.entries, self.root, self.seconds_left = console, entries, root, seconds_left
        self.live = Live(console=console, refresh_per_second=2, get_renderable=self._table) if console.is_terminal else None

    def __enter__(self) -> None:
        entries = self.entries.values()
        done = sum(entry.state in ENDED for entry in entries)
        self.console.print(plain(f"{counted(len(entries), 'run')}, {done} of them done already, in {self.root}"), soft_wrap=True)
        if self.live is not None:
            self.live.start()

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()

    def say(self, entry: Entry) -> None:
        """A launch has changed its state."""
        if self.live is not None and entry.state not in BROKEN:
            return
        over = sum(known.state in OVER for known in self.entries.values())
        took = f", {readable_time(entry.seconds)}" if entry.seconds is not None and entry.state in OVER else ""
        left = f"; {self._left()} left" if over < len(self.entries) else ""
        why = f": {entry.error}" if entry.error else ""
        line = f"{datetime.now():%H:%M:%S} [{over}/{len(self.entries)}] {entry.state} {entry.launch.title}{took}{why}{left}"
        self.console.print(Text(printable(line), state_style(entry.state)), highlight=False, soft_wrap=True)

    def summary(self) -> None:
        """How many ended how, and what to do about those that did not finish."""
        entries = list(self.entries.values())
        counts = [(state, sum(entry.state == state for entry in entries)) for state in reversed(STATES)]
        self.console.print(", ".join(f"{count} {state}" for state, count in counts if count) or "nothing to run", highlight=False)
        before = [entry for entry in entries if entry.state in ("failed", "oom") and not entry.began]
        for entry in before[:20]:  # the others were told when they happened
            told = printable(f"{entry.state} earlier: {entry.launch.title}: {entry.error}")
            self.console.print(Text(told, "red"), soft_wrap=True)
        if any(entry.state in ("failed", "oom") for entry in entries):
            told = f"what failed is recorded and stays so; --retry-failed starts it again. Logs: {self.root / 'logs'}"
            self.console.print(plain(told), soft_wrap=True)

    def _left(self) -> str:
        seconds = self.seconds_left()
        return "?" if seconds is None else readable_time(seconds)

    def _table(self) -> Group:
        entries = list(self.entries.values())
        table = Table(box=None, padding=(0, 2, 0, 0))
        for column in ("run", "status", "time", "on"):
            table.add_column(column, justify="right" if column == "time" else "left")
        shown = [entry for entry in entries if entry.state in ("running", "elsewhere")]
        shown += [entry for entry in entries if entry.state == "waiting"]
        ended = sorted((entry for entry in entries if entry.state in OVER and entry.began), key=lambda entry: entry.began)
        rows = max(4, self.console.height - 6)
        shown = [*ended[-max(2, rows - len(shown)) :], *shown][:rows]
        for entry in shown:
            seconds = time.monotonic() - entry.began if entry.state == "running" else entry.seconds
            table.add_row(
                plain(entry.launch.title), Text(entry.state, state_style(entry.state)),
                "" if seconds is None else readable_time(seconds), ",".join(entry.gpus),
            )  # fmt: skip
        over = sum(entry.state in OVER for entry in entries)
        return Group(table, Text(f"{over} of {len(entries)} over, {self._left()} left", "bold"))
