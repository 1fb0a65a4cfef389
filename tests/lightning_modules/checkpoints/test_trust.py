"""What a file from elsewhere may make us import: ours, and what the caller trusts."""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import ArgumentError, ArgumentParser
from jsonargparse._common import parsing_settings

from datamodules.errors import InputError
from lightning_modules.checkpoints import trust
from lightning_modules.checkpoints.trust import importing_only, require_importable, require_trusted
from lightning_modules.metrics.captions.caption_metric import find_metric
from lightning_modules.objectives.objective import ContrastiveObjective

FILE = "somebody_elses_file"
OWN = f"{FILE}.Own"


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"{FILE}.py").write_text(
        "from lightning_modules.objectives.sigmoid import SigmoidLoss\nclass Own(SigmoidLoss): pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, FILE, raising=False)


def parse(value: Any) -> Any:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(ContrastiveObjective, "objective")
    return parser.instantiate_classes(parser.parse_object({"objective": value})).objective


@pytest.mark.parametrize("value", [{"class_path": OWN}, OWN, json.dumps({"class_path": OWN}), "os.system", "json.JSONDecoder"])
def test_however_it_is_named_it_is_not_imported(value: Any) -> None:
    before = dict(parsing_settings)
    message = r"^RUN/config.yaml names the class '(\S+)', .* load\(\.\.\., trust="
    with pytest.raises(InputError, match=message) as error, importing_only("RUN/config.yaml"):
        parse(value)
    assert FILE not in sys.modules
    assert "\n" not in str(error.value)
    assert parsing_settings == before


def test_who_trusts_it_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with importing_only("RUN/config.yaml", [FILE]):
        assert type(parse(OWN)).__name__ == "Own"
    monkeypatch.setenv(trust.VARIABLE, f"another,{FILE}")
    with importing_only("RUN/config.yaml"):
        assert type(parse({"class_path": OWN})).__name__ == "Own"
    require_trusted(OWN, "RUN/config.yaml")
    monkeypatch.delenv(trust.VARIABLE)
    with pytest.raises(InputError, match=OWN):
        require_trusted(OWN, "RUN/config.yaml", [FILE[:-1]])  # the beginning of a name is another module


def test_ours_is_parsed_and_other_mistakes_stay_what_they_are() -> None:
    with importing_only("RUN/config.yaml"):
        parse({"class_path": "lightning_modules.objectives.sigmoid.SigmoidLoss"})
        with pytest.raises(ArgumentError, match="no_such"):
            parse({"class_path": "lightning_modules.objectives.sigmoid.SigmoidLoss", "init_args": {"no_such": 1}})


def test_the_command_line_may_name_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(parse(OWN)).__name__ == "Own"
    require_importable("os.system")


def test_caption_metrics_that_a_file_names_are_not_imported_either() -> None:
    with importing_only("RUN/config.yaml"):
        assert find_metric("cider").name == "cider"
        with pytest.raises(InputError, match=rf"RUN/config.yaml names the class '{OWN}'"):
            find_metric(OWN)
    assert FILE not in sys.modules


def test_one_thread_that_leaves_opens_nothing_for_another() -> None:
    """What may be imported is a setting of the process."""
    before = dict(parsing_settings)

    def guarded(_: int) -> bool:
        with importing_only("RUN/config.yaml"):
            time.sleep(0.001)
            return bool(parsing_settings["import_paths_enforced"])

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(guarded, range(64)))
    assert dict(parsing_settings) == before
