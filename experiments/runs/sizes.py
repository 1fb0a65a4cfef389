"""How large something is, for a person."""

from __future__ import annotations


def readable_bytes(count: float) -> str:
    """1.50 GiB, 3.2 MiB."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
