"""The documentation as a site: `make docs`. The pages are Markdown that a plain repository browser shows as well."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the reference imports the packages; nothing is fetched

project = "crosslight"
author = "The crosslight contributors"
project_copyright = f"2026, {author}"
release = re.findall(r'^version = "(.+)"$', (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)[0]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
nitpicky = False

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
copybutton_prompt_text = r"\$ "
copybutton_prompt_is_regexp = True
copybutton_line_continuation_character = "\\"
copybutton_only_copy_prompt_lines = True

default_role = "code"  # docstrings have `name` in single backticks
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 100
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False  # those of Lightning and torch are theirs
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = f"crosslight {release}"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_copy_source = False
html_show_sphinx = False


def _inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(tex2mathml(node.astext(), as_block=False))
    raise nodes.SkipNode


def _block(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


OUTSIDE = re.compile(r"\]\(((?:\.\./)+[^)#]+\.md)(#[^)]*)?\)")
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def _link_outside(app: Any, name: str, source: list[str]) -> None:
    """A link to a Markdown file outside docs/ goes to the site's page of it, or downloads it."""
    folder = Path(app.srcdir, name).parent

    def link(found: re.Match[str]) -> str:
        target = (folder / found[1]).resolve()
        if target.is_relative_to(app.srcdir):
            return found[0]
        page = PAGES.get(target.relative_to(REPOSITORY).as_posix())
        return f"]({os.path.relpath(Path(app.srcdir, page), folder)})" if page else f"](path:{found[1]})"

    source[0] = OUTSIDE.sub(link, source[0])


SIGNS = re.compile(r"[*|]|(?<=\w)_(?=\W|$)")  # that reStructuredText would take for mark-up


def _readable(app: Any, what: str, name: str, found: Any, options: Any, lines: list[str]) -> None:
    """Docstrings as their authors mean them: an indented block is to be shown as it stands, signs are signs, and
    "Whether ...: ..." is no type."""
    at = 0
    while at < len(lines):
        before = next((line for line in reversed(lines[:at]) if line), "    ")
        if lines[at].startswith("    ") and not lines[at - 1] and not before.startswith(" "):
            lines[at:at] = ["::", ""]
            at += 2
            while at < len(lines) and (not lines[at] or lines[at].startswith(" ")):
                at += 1
        else:
            parts = lines[at].split("`")
            lines[at] = "`".join(part if odd % 2 else SIGNS.sub(r"\\\g<0>", part) for odd, part in enumerate(parts))
            at += 1
    if what in ("property", "attribute"):
        lines.insert(0, "\\ ")  # an empty word: napoleon takes what stands before a colon in the first line for a type


def setup(app: Any) -> None:
    """Equations become MathML, which browsers draw by themselves: no script is fetched from anywhere."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.connect("source-read", _link_outside)
    app.connect("autodoc-process-docstring", _readable, priority=400)  # before napoleon
