"""How large something is, for a person."""

from __future__ import annotations


def readable_bytes(count: float) -> str:
    """1.50 GiB, 3.2 MiB."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def decimal_bytes(count: float) -> str:
    """1.5 GB, 3.2 MB: as data sheets and disks count."""
    return f"{count / 1e9:,.1f} GB" if count >= 5e7 else f"{count / 1e6:,.1f} MB"
