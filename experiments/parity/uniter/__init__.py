"""UNITER and IAIS against the official code."""
