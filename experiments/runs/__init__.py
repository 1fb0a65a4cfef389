"""The run folder: the one contract between all rooms. `load_runs("runs/")` gives what many of them say as pandas frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Any

    import pandas as pd

    from experiments.runs.frames import Runs


def load_runs(*where: str | Path) -> Runs:
    """Run folders as frames: `.frame()` has a row a run, `.per_query()` a row a query, `.history()` what was logged.

    Args:
        where: A folder of runs (at any depth), a run, several of these, or patterns such as "runs/mwa-*".

    Raises:
        InputError: A folder does not exist or holds no run, or a pattern has no folder. A run that cannot be read is no error: it
            is in the frame with its status and the reason, and a warning says so.
    """
    from experiments.runs.frames import read_runs  # who reads one run needs none of it

    return read_runs(where)


def wandb_frame(project: str, filters: Mapping[str, Any] | None = None) -> pd.DataFrame:
    """Runs of a W&B project with the columns of `load_runs(...).frame()`, as far as W&B has them.

    Args:
        project: "entity/project".
        filters: As `wandb.Api().runs` takes them, such as {"group": "mwa-table1"}.

    Raises:
        InputError: Nobody is logged in, or there is no such project.
    """
    from experiments.runs.wandb_runs import read_project

    return read_project(project, filters)
