"""BEiT-3 and MultiWay-Adapter against the official code."""
