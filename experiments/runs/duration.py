"""How long something took, for a person."""

from __future__ import annotations


def readable_time(seconds: float) -> str:
    """12 s, 3 min, 2 h 05."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d}"
