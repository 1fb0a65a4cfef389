"""Where official files are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from datamodules.errors import InputError
from datamodules.files.releases import CACHE_VARIABLE, official_file


def test_a_cache_that_cannot_be_written_names_its_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file"))
    with pytest.raises(InputError, match=rf"the cache .*beit3 cannot be written; set {CACHE_VARIABLE}\. .*\(Not a directory\)"):
        official_file("beit3.spm")
