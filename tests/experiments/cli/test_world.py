"""Which world `crosslight world` renders: that of its options, or the one that miniature runs read."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from datamodules.errors import InputError
from datamodules.miniworld import write
from experiments.cli.main import build_parser
from experiments.cli.world import run
from experiments.papers.worlds import world_arguments


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `write_world` is called with."""
    asked: dict[str, Any] = {}

    def write_world(root: Path, **options: Any) -> Path:
        asked.update(options)
        return root

    monkeypatch.setattr(write, "write_world", write_world)
    return asked


def render(*arguments: str) -> int:
    return run(build_parser("world").parse_args(arguments))


def test_a_miniature_world_has_its_own_counts(asked: dict[str, Any], tmp_path: Path) -> None:
    assert render(str(tmp_path / "web"), "--style", "web", "--miniature") == 0
    whole = world_arguments("web")
    assert (asked["style"], asked["scenes"], asked["splits"]) == ("web", whole["scenes"], write.Splits(**whole["splits"]))


def test_options_are_handed_on_and_none_is_dropped(asked: dict[str, Any], tmp_path: Path) -> None:
    assert render(str(tmp_path), "--scenes", "60", "--image-size", "32") == 0
    assert asked == {"style": "source", "scenes": 60, "image_size": 32}
    with pytest.raises(InputError, match=r"--miniature decides what --seed, --image-size would"):
        render(str(tmp_path), "--miniature", "--seed", "0", "--image-size", "96")


def test_the_help_has_the_defaults_of_the_writer() -> None:
    shown = build_parser("world").format_help()
    defaults = inspect.signature(write.write_world).parameters
    assert all(f"(default: {defaults[name].default})" in shown for name in ("scenes", "seed", "image_size", "style"))
