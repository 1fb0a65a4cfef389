"""Loading models of Hugging Face without their tables and progress bars."""

from __future__ import annotations
