"""Loggers that survive a resume: `metrics.csv` in the run folder, and W&B (offline unless logged in)."""

from __future__ import annotations

import csv
import io
import netrc
import os
import re
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from datamodules.files.atomic import whole_file
from experiments.runs.metrics_csv import FILE, read_rows


class MetricsCSV(Logger):
    """One row a step, one column a metric, appended to across resumes.

    Lightning's own CSV logger deletes the file of the folder it is given; here a resumed run keeps the rows that its checkpoint
    knows of (`keep`).
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.file = Path(folder) / FILE
        self._columns: list[str] | None = None  # of the file; None before the first look
        self._row: dict[str, Any] | None = None  # the last one in the file
        self._place = 0  # where it begins
        self._rows = 0

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.file.parent)

    @property
    def rows(self) -> int:
        """Of the file."""
        self._look()
        return self._rows

    @rank_zero_only
    def keep(self, rows: int) -> None:
        """The first rows alone: those after them are about to be made again."""
        self._look()
        if rows < self._rows:
            self._rewrite(read_rows(self.file.parent)[:rows])

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Write at once: what a killed run logged is in the file, and what comes later for the same step joins its row."""
        step = step or 0
        self._look()
        again = self._row is not None and self._row["step"] == step
        self._row = {"step": step, **((self._row or {}) if again else {}), **{key: float(v) for key, v in metrics.items()}}
        columns = self._columns or []
        if set(self._row) - set(columns):  # a metric seen for the first time: the header grows
            rows = read_rows(self.file.parent)
            self._columns = ["step", *sorted((set(columns) | set(self._row)) - {"step"})]
            self._rewrite([*(rows[:-1] if again else rows), self._row])
        else:
            with open(self.file, "r+b") as file:
                self._place = file.seek(self._place) if again else file.seek(0, os.SEEK_END)
                file.truncate()
                file.write(self._line(self._row))
            self._rows += not again

    def _look(self) -> None:
        """What an earlier attempt left: whole rows. Half a line of a killed process goes."""
        if self._columns is None:
            rows = read_rows(self.file.parent)
            self._columns = list(rows[0]) if rows else []
            if rows:
                self._rewrite(rows)

    def _rewrite(self, rows: Sequence[Mapping[str, Any]]) -> None:
        with whole_file(self.file) as part, open(part, "wb") as file:
            file.write(self._line({column: column for column in self._columns or []}))
            for row in rows:
                self._place = file.tell()
                file.write(self._line(row))
        self._rows = len(rows)
        self._row = {**rows[-1], "step": int(rows[-1]["step"])} if rows else None

    def _line(self, row: Mapping[str, Any]) -> bytes:
        text = io.StringIO()
        csv.DictWriter(text, self._columns or [], lineterminator="\n").writerow(row)
        return text.getvalue().encode()


def wandb_logged_in() -> bool:
    """An API key in the environment or in ~/.netrc, without importing wandb and without asking its server."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "//api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (FileNotFoundError, netrc.NetrcParseError):
        return False


def make_wandb(folder: Path, *, project: str, name: str, run_id: str | None, group: str | None, tags: list[str]) -> WandbLogger:
    """W&B in the run folder: online when logged in, else offline (`wandb sync <run>/wandb/offline-run-*` uploads it later).

    `WANDB_MODE` wins over both. The id is the run folder's, so that a resumed run continues the same W&B run; characters that
    W&B takes in no id are left out of it.
    """
    mode = os.environ.get("WANDB_MODE")
    offline = mode == "offline" or (mode is None and not wandb_logged_in())
    os.environ.setdefault("WANDB_SILENT", "true")
    known = None if run_id is None else re.sub(r"[^\w.-]", "_", run_id, flags=re.ASCII)
    logger = WandbLogger(
        project=project, name=name, id=known, group=group, tags=tags, save_dir=folder, offline=offline, resume="allow"
    )
    logger._wandb_init.pop("anonymous", None)  # Lightning hands it on unset, and W&B warns of it all the same
    return logger
