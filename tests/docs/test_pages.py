"""The documentation: links reach what they name, every page is in the site, and code blocks are of today's code."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

from datamodules.formats.typed import read_typed
from experiments.sweep.slurm_script import SlurmOptions
from experiments.sweep.sweep_file import read_sweep

REPOSITORY = Path(__file__).resolve().parents[2]
SITE = REPOSITORY / "docs"
PAGES = sorted(file for file in SITE.rglob("*.md") if "_build" not in file.parts)
DOCUMENTS = [*sorted(REPOSITORY.glob("*.md")), *PAGES]
FENCE = re.compile(r"^(`{3,})(\{?[\w-]*\}?)[ ]*(.*?)\n(.*?)^\1[ ]*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def name_of(file: Path) -> str:
    return file.relative_to(REPOSITORY).as_posix()


def blocks(file: Path, language: str) -> Iterator[tuple[str, str]]:
    """Argument and content of the fenced blocks of a language or directive."""
    for _, kind, argument, content in FENCE.findall(file.read_text()):
        if kind == language:
            yield argument, content


def anchors(file: Path) -> set[str]:
    """Of a page's headings, as repository browsers and the site name them; and those that stand there as HTML."""
    text = FENCE.sub("", file.read_text())
    found = set(re.findall(r'<a id="([^"]+)">', text))
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        found.add(re.sub(r"[^\w\- ]", "", words).replace(" ", "-"))
    return found


@pytest.mark.parametrize("file", DOCUMENTS, ids=name_of)
def test_links_reach_what_they_name(file: Path) -> None:
    for link in LINK.findall(re.sub(r"`[^`\n]*`", "", FENCE.sub("", file.read_text()))):
        if re.match(r"[a-z]+:", link):
            assert link.startswith("https://"), link
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (file.parent / path).resolve() if path else file
        assert target.is_relative_to(REPOSITORY), f"{link} leaves the repository"
        assert target.is_file() or (target.is_dir() and file.parent == REPOSITORY), f"{link} is no file"
        assert not anchor or anchor in anchors(target), f"{link}: {sorted(anchors(target))}"


def test_every_page_is_in_the_site_once() -> None:
    listed: list[Path] = []
    for page in PAGES:
        for _, content in blocks(page, "{toctree}"):
            names = [line for line in content.splitlines() if line and not line.startswith(":")]
            listed += [page.parent / f"{name}.md" for name in names]
    assert sorted(listed) == sorted(set(PAGES) - {SITE / "index.md"})


def test_no_page_has_the_name_of_one_that_sphinx_writes() -> None:
    assert not {page.stem for page in SITE.glob("*.md")} & {"search", "genindex", "py-modindex"}


@pytest.mark.parametrize("file", PAGES, ids=name_of)
def test_what_a_page_includes_is_there(file: Path) -> None:
    for directive in ("{literalinclude}", "{include}"):
        for argument, _ in blocks(file, directive):
            included = (file.parent / argument).resolve()
            assert included.is_file(), argument
            if directive == "{literalinclude}":  # a plain repository browser shows the link in its place
                assert f"]({argument})" in file.read_text(), f"no link to {argument}"


PYTHON = [(file, code) for file in DOCUMENTS for _, code in blocks(file, "python") if code and not code.startswith(":")]


@pytest.mark.parametrize(("file", "code"), PYTHON, ids=[f"{name_of(file)}-{at}" for at, (file, _) in enumerate(PYTHON)])
def test_python_blocks_compile_and_their_imports_resolve(file: Path, code: str) -> None:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"


YAML = [(file, text) for file in DOCUMENTS for _, text in blocks(file, "yaml") if not text.startswith(":")]


@pytest.mark.parametrize(("file", "text"), YAML, ids=[f"{name_of(file)}-{at}" for at, (file, _) in enumerate(YAML)])
def test_yaml_blocks_are_yaml_and_configurations_compose(file: Path, text: str, tmp_path: Path) -> None:
    content = yaml.safe_load(text)
    if "model" in content:
        from experiments.training.configs import find_configs
        from experiments.training.lightning_cli import ParsedCLI

        (tmp_path / "own.yaml").write_text(text)
        words = ["-c", "configs/trainer/cpu.yaml", "-c", "configs/data/flickr30k.yaml", "-c", str(tmp_path / "own.yaml")]
        assert ParsedCLI(["run", *find_configs(words)]).plain["model"]
    elif "method" in content:
        (tmp_path / "rates.yaml").write_text(text)
        assert read_sweep(tmp_path / "rates.yaml").name == content["name"]
    elif "partition" in content:
        assert read_typed(SlurmOptions, content, name_of(file)).partition == content["partition"]


CODE = [file for room in ("datamodules", "lightning_modules", "experiments") for file in (REPOSITORY / room).rglob("*.py")]


def texts(node: ast.AST) -> Iterator[str]:
    """Every text in a file but its docstrings, with … where a value stands in it."""
    docstrings = {each.value for each in ast.walk(node) if isinstance(each, ast.Expr)}
    for each in set(ast.walk(node)) - docstrings:
        if isinstance(each, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in each.values)
        elif isinstance(each, ast.Constant) and isinstance(each.value, str):
            yield each.value


QUOTED = [text.strip() for _, text in blocks(SITE / "troubleshooting.md", "text")]


def test_errors_that_are_quoted_stand_in_the_code() -> None:
    def plain(text: str) -> str:
        return re.sub(r"…+", "…", " ".join(text.split()))

    code = "\n".join(plain(text) for file in CODE for text in texts(ast.parse(file.read_text())))
    assert len(QUOTED) > 40
    assert [text for text in QUOTED if plain(text) not in code] == []


def test_every_environment_variable_is_listed() -> None:
    internal = {"CROSSLIGHT_RANK0_RUN_FOLDER"}  # a rank tells it to the ranks that it starts
    names = re.compile(r"CROSSLIGHT_[A-Z0-9_]+")
    files = [*CODE, *(REPOSITORY / "configs").rglob("*.yaml"), *(REPOSITORY / "experiments").rglob("*.yaml")]
    read = {name for file in files for name in names.findall(file.read_text())} - internal
    assert set(names.findall((SITE / "reference" / "environment.md").read_text())) == read


ROOMS = "tests|datamodules|lightning_modules|experiments|configs|benchmarks"
FILE = re.compile(rf"\b((?:{ROOMS})/[a-z0-9_/]+\.(?:py|yaml|json|md))((?:::\w+)?)")
NAMED = sorted({(file, *found) for file in DOCUMENTS for found in FILE.findall(file.read_text())})


@pytest.mark.parametrize(
    ("file", "path", "test"), NAMED, ids=["-".join(map(str, (name_of(file), *rest))) for file, *rest in NAMED]
)
def test_files_and_tests_that_pages_name_exist(file: Path, path: str, test: str) -> None:
    assert (REPOSITORY / path).is_file(), path
    assert not test or f"def {test.removeprefix('::')}(" in (REPOSITORY / path).read_text(), test
