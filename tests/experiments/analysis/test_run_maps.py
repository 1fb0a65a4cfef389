"""A run's own data module from its configuration."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from datamodules.errors import InputError
from experiments.analysis.run_maps import data_of


def test_data_of_somebody_else_needs_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "somebody_elses_data.py").write_text(
        "from lightning.pytorch import LightningDataModule\nclass Own(LightningDataModule): pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": "somebody_elses_data.Own"}))
    with pytest.raises(InputError, match=r"config.yaml names the class 'somebody_elses_data.Own'"):
        data_of(tmp_path)
    assert "somebody_elses_data" not in sys.modules
    monkeypatch.setenv("CROSSLIGHT_TRUST", "somebody_elses_data")
    assert type(data_of(tmp_path)).__name__ == "Own"
    (tmp_path / "config.yaml").write_text("name: nothing\n")
    with pytest.raises(InputError, match="its data cannot be built"):
        data_of(tmp_path)
