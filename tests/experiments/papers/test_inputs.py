"""What runs read must be there before anything starts, and one message names all that is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from datamodules.errors import InputError
from experiments.cli.main import run_command
from experiments.papers.inputs import read_inputs, require_inputs

VARIABLES = ("DATA", "WEIGHTS", "MINILM", "SMOLLM2", "REGIONS")


@pytest.fixture
def nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in VARIABLES:
        monkeypatch.delenv(f"CROSSLIGHT_{name}", raising=False)
    return tmp_path


def test_all_that_is_missing_is_in_one_message(nothing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSLIGHT_WEIGHTS", "/elsewhere")
    with pytest.raises(InputError) as caught:
        run_command("sweep", ["run", "all", "--scale", "small", "--out", str(nothing / "runs")])
    text = str(caught.value)
    for name, needed in read_inputs().items():
        assert f"{needed.variable} is " in text, name
        assert needed.what in text, name
        assert needed.how in text, name
    assert "CROSSLIGHT_DATA is not set (./data is taken): no data/flickr8k/images, data/flickr8k/dataset_flickr8k.json" in text
    assert "CROSSLIGHT_WEIGHTS is /elsewhere: no /elsewhere/dinov2_small.safetensors" in text
    assert not (nothing / "runs").exists()


def test_an_exhibit_asks_for_its_own_alone(nothing: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError) as caught:
        run_command("sweep", ["run", "mwa/table3", "--scale", "small", "--out", "runs"])
    assert {name for name in VARIABLES if f"CROSSLIGHT_{name} is" in str(caught.value)} == {"DATA", "WEIGHTS", "MINILM"}
    assert run_command("sweep", ["run", "mwa/table3", "--scale", "small", "--dry-run"]) == 0  # needs none of it
    assert "mwa/base-coco-ke_only" in capsys.readouterr().out


def test_what_is_there_is_not_asked_for(nothing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSLIGHT_SMOLLM2", "smollm2")
    for needed in read_inputs().values():
        folder = nothing / ("smollm2" if needed.variable == "CROSSLIGHT_SMOLLM2" else needed.default)
        for file in needed.files:
            (folder / file).mkdir(parents=True, exist_ok=True)
    require_inputs(read_inputs())
    (nothing / "smollm2" / "config.json").rmdir()
    with pytest.raises(InputError, match=r"CROSSLIGHT_SMOLLM2 is smollm2: no smollm2/config\.json\n"):
        require_inputs(read_inputs())
    require_inputs([])
