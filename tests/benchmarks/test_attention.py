"""`benchmarks/attention.py`: its ways agree, and a result has every shape."""

from __future__ import annotations

import pytest
from benchmark_scripts import benchmark

attention = benchmark("attention")


def test_every_shape_is_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(attention, "SHAPES", {"small": (2, 2, 5, 7, 8), "large": (1, 1, 130, 130, 8)})
    result = attention.main(["--rounds", "1"])
    assert [(row["what"], row["goal"]) for row in result["rows"]] == [("small", 0.5), ("large", 1.1)]
    assert "5 x 7" in capsys.readouterr().out


def test_ways_that_do_not_agree_stop_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_modules.networks.attention.attention_context", lambda q, k, v: 2 * (q @ k.mT @ v))
    with pytest.raises(SystemExit, match="differs from the fused kernel"):
        attention.turns((2, 2, 5, 7, 8))
