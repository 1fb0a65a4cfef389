"""Matplotlib's figures as they are written to files, for what is in them."""

from __future__ import annotations

from typing import Any

import pytest
from matplotlib.figure import Figure


def keep_figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every figure that is saved from now on; it is saved as well."""
    kept: list[Any] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **more: (kept.append(figure), save(figure, *args, **more)))
    return kept
