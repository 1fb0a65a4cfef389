"""The order of all tests: the files that take longest first, so that two workers (`--dist loadfile`) end together."""

from __future__ import annotations

import pytest

LONG = ("end_to_end", "test_lazy_imports.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not any(part in LONG for part in item.path.parts))
