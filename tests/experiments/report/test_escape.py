"""Text of data is text: in a terminal, Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from experiments.report.escape import csv_value, latex_text, markdown_text
from experiments.report.table import find_runs, markdown, rows, to_csv
from experiments.runs.results import Evaluation, Results, now, write_results
from experiments.sweep.display import plain

EVIL = "=HYPERLINK(1)|<b>$x$\x1b[31m\r\nrow \u202e"


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(1)", " =1", "\t=1", "\r=1", "＝1"])
def test_no_cell_is_a_formula(text: str) -> None:
    assert str(csv_value(text))[0] in "'\\", "quoted, or an escape"
    assert csv_value(-1.5) == -1.5
    assert csv_value("a=1") == "a=1"


def test_no_text_is_markup_or_moves_the_cursor() -> None:
    assert markdown_text(EVIL) == r"=HYPERLINK(1)\|\<b\>$x$\\x1b\[31m row \\u202e"
    assert markdown_text("ae_only _x_ a\nb", printed=True) == r"ae_only \_x\_ a b"
    assert latex_text(EVIL) == r"=HYPERLINK(1)|\textless{}b\textgreater{}\$x\$\textbackslash{}x1b[31m row \textbackslash{}u202e"
    assert plain("[red]a[/red]\x1b[31m [/x]").plain == r"[red]a[/red]\x1b[31m [/x]"


def test_a_table_of_such_names_is_a_table(tmp_path: Path) -> None:
    entry = Evaluation("=data", "test", "test", {"=own": 0.5}, notes={"columns": {"=own": "=1|2"}})
    write_results(tmp_path, Results("finished", "run", EVIL, "c", now(), evaluations=(entry,)))
    table = rows(find_runs([tmp_path]))
    lines = markdown(table).splitlines()
    assert len(lines) == 3
    assert len({line.replace(r"\|", "").count("|") for line in lines}) == 1
    assert "\x1b" not in "".join(lines)
    read = list(csv.reader(io.StringIO(to_csv(find_runs([tmp_path])))))
    assert not [cell for line in read for cell in line if cell[:1] in tuple("=+@-")]
