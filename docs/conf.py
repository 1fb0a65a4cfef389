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
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = f"crosslight {release}"
html_math_renderer = "mathml"
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


def setup(app: Any) -> None:
    """Equations become MathML, which browsers draw by themselves: no script is fetched from anywhere."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.connect("source-read", _link_outside)
