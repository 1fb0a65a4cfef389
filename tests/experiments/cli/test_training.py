"""run, fit, validate, test, predict: their short help, and the way to jsonargparse."""

from __future__ import annotations

import pytest

from experiments.cli.main import build_parser, main, run_command
from experiments.training import command as training_command

TRAINING = ("run", "fit", "validate", "test", "predict")


@pytest.mark.parametrize("command", TRAINING)
def test_the_short_help_lists_what_is_packaged(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "configs/model/dual_tiny.yaml" in text
    assert "experiments/papers/mwa/variants/mwa.yaml" in text
    assert ("--evaluate." in text) == (command in ("run", "test"))
    assert "--ckpt_path" in text.partition("options of every")[2]


def test_everything_but_the_files_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(training_command, "run_alone", lambda command, words: asked.append((command, words)) or 7)
    words = ["--name", "x", "--config=a.yaml", "-c", "b.yaml", "--model.init_args.tuning=head", "--seed_everything", "-1", "y"]
    assert run_command("fit", words) == 7
    assert run_command("run", ["--help-all", "--trainer.max_epochs=2"]) == 7
    assert asked == [
        ("fit", ["-c", "a.yaml", "-c", "b.yaml", "--name", "x", "--model.init_args.tuning=head", "--seed_everything", "-1", "y"]),
        ("run", ["--trainer.max_epochs=2", "--help"]),
    ]
    assert build_parser("fit").parse_args([]).config == []
