"""The files around the code: license, citation, changelog, hooks, templates, the pins of extras."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
PROJECT: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def read(name: str) -> Any:
    return yaml.safe_load((REPOSITORY / name).read_text())


def test_the_license_is_whole_and_the_same_everywhere() -> None:
    text = (REPOSITORY / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert "[yyyy]" not in text
    assert (PROJECT["license"], PROJECT["license-files"]) == ("Apache-2.0", ["LICENSE"])
    assert read("CITATION.cff")["license"] == "Apache-2.0"


def test_versions_agree() -> None:
    newest = re.findall(r"^## (\S+)", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE)[0]
    assert newest == read("CITATION.cff")["version"] == PROJECT["version"]


def test_the_citation_has_what_its_format_asks_for() -> None:
    citation = read("CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    for reference in citation["references"]:
        assert {"type", "title", "authors", "year", "url"} <= reference.keys()


def test_hooks_are_the_commands_of_make_lint() -> None:
    (lint,) = re.findall(r"^lint:.*\n((?:\t.+\n)+)", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    commands = {line.strip().replace("$(BIN)", ".venv/bin").removesuffix(" .") for line in lint.splitlines()}
    (source,) = read(".pre-commit-config.yaml")["repos"]
    assert source["repo"] == "local"  # nothing is fetched
    assert {hook["entry"] for hook in source["hooks"]} == commands


@pytest.mark.parametrize("name", [file.name for file in (REPOSITORY / ".github" / "ISSUE_TEMPLATE").glob("*.yml")])
def test_issue_templates_are_forms(name: str) -> None:
    form = read(f".github/ISSUE_TEMPLATE/{name}")
    if name != "config.yml":
        assert {"name", "description", "body"} <= form.keys()
        for part in form["body"]:
            assert part["type"] in ("textarea", "input", "dropdown", "checkboxes", "markdown")
            assert part["attributes"]["label"]


def test_what_extras_bring_is_pinned() -> None:
    pins = {line.partition("==")[0].lower().replace("_", "-") for line in (REPOSITORY / "constraints.txt").read_text().split()}
    for extra in ("docs", "dev"):
        for wanted in PROJECT["optional-dependencies"][extra]:
            name = re.split(r"[\s\[<>=!~]", wanted)[0].lower().replace("_", "-")
            assert name in {*pins, "crosslight"}, f"{name} of the extra {extra} is not in constraints.txt"


def test_every_extra_is_explained() -> None:
    page = (REPOSITORY / "docs" / "first_steps.md").read_text()
    table = page[page.index("| extra |") : page.index("## Make data")]
    named = {name for line in table.splitlines()[2:] for name in re.findall(r"`([a-z_]+)`", line.split("|")[1] if line else "")}
    assert named == set(PROJECT["optional-dependencies"])
