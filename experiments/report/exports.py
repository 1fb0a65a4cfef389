"""An artefact's table as Markdown, CSV and LaTeX, from the same cells as the page; and its claims."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence

from experiments.report.collect import Cell, RowView, View
from experiments.report.verdicts import Verdict

NONE = "–"
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "±": r"$\pm$", "–": "--",
    "−": "$-$", "×": r"$\times$", "γ": r"$\gamma$", "→": r"$\rightarrow$", "≤": r"$\leq$", "≥": r"$\geq$", "“": "``", "”": "''",
}  # fmt: skip
_MARKDOWN = {character: "\\" + character for character in "\\`*_[]<>|#~"}


def number(value: float | None, digits: int) -> str:
    """With that many digits behind the point; small numbers keep two that say something."""
    if value is None:
        return NONE
    if value and abs(value) < 0.5 * 10.0**-digits:
        return f"{value:.1e}"
    return f"{value:,.{digits}f}".replace("-", "−")


def signed(value: float | None, digits: int) -> str:
    return NONE if value is None else ("+" if value > 0 else "") + number(value, digits)


def ours(cell: Cell) -> str:
    """ "60.7 ±0.4 [59.1, 62.0]": mean, standard deviation over seeds, interval over queries."""
    digits = cell.column.digits
    text = number(cell.mean, digits)
    if cell.deviation is not None and not cell.counted:
        text += f" ±{number(cell.deviation, digits)}"
    if cell.interval is not None:
        text += f" [{number(cell.interval[0], digits)}, {number(cell.interval[1], digits)}]"
    return text


def caption(view: View) -> str:
    """What a table must say of itself, wherever it is pasted."""
    where = "the embedded world, miniature models" if view.scale == "miniature" else "the paper's models and data"
    beyond = " Not in the paper." if view.artefact.beyond else ""
    return f"{view.artefact.title}. {view.scale.capitalize()} scale ({where}).{beyond}"


_LEGEND = (
    "Mean ± standard deviation over n seeds [95 % bootstrap interval over the test images]; in italics what the paper prints."
)


def to_markdown(view: View, verdicts: Sequence[Verdict]) -> str:
    columns = view.artefact.columns
    header = ["row"]
    for column in columns:
        header += [column.label, "*paper*"]
    lines = [f"# {_md(view.artefact.title)}", "", f"{_md(caption(view))} {_LEGEND}", ""]
    if view.rows and columns:
        header = [*(_md(name) if name != "*paper*" else name for name in header), "n", "status"]
        lines += ["| " + " | ".join(header) + " |", "| --- |" + " ---: |" * (2 * len(columns) + 1) + " --- |"]
        for row in view.rows:
            cells = [_md(row.row.label)]
            for column in columns:
                cell = row.cells[column.name]
                cells += [ours(cell).replace("[", "\\["), f"*{number(cell.published, column.digits)}*"]
            lines.append("| " + " | ".join([*cells, str(seeds(row)), _md(row.status)]) + " |")
        lines.append("")
    if any(row.status != "finished" for row in view.rows):
        lines += ["What is missing runs with:", "", f"    {view.command}", ""]
    if verdicts:
        lines += ["## Claims", ""]
        lines += [f"- **{each.sentence}**: {_md(each.claim.text)} — {_md(each.summary)}" for each in verdicts]
        lines.append("")
    if view.artefact.note:
        lines += [_md(view.artefact.note), ""]
    return "\n".join(lines)


def to_latex(view: View) -> str:
    columns = view.artefact.columns
    label = view.slug
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}",
        "  \\centering",
        f"  \\caption{{{_tex(caption(view))} Ours: mean $\\pm$ standard deviation over seeds; in italics the paper's.}}",
        f"  \\label{{tab:{label}}}",
        f"  \\begin{{tabular}}{{l{'rr' * len(columns)}r}}",
        "    \\toprule",
        "    & " + " & ".join(f"\\multicolumn{{2}}{{c}}{{{_tex(column.label)}}}" for column in columns) + " & $n$ \\\\",
        "    \\midrule",
    ]
    for row in view.rows:
        cells = []
        for column in columns:
            cell = row.cells[column.name]
            value = number(cell.mean, column.digits)
            if cell.deviation is not None and not cell.counted:
                value += f" ±{number(cell.deviation, column.digits)}"
            cells += [_tex(value), f"\\textit{{{_tex(number(cell.published, column.digits))}}}"]
        lines.append(f"    {_tex(row.row.label)} & " + " & ".join([*cells, str(seeds(row))]) + " \\\\")
    return "\n".join([*lines, "    \\bottomrule", "  \\end{tabular}", "\\end{table}", ""])


def to_csv(view: View) -> str:
    """A line for each row and column, with everything that the page shows of it."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        ["artefact", "scale", "row", "column", "mean", "sd", "n", "low", "high", "published", "difference", "status", "seeds"]
    )
    for row in view.rows:
        for column in view.artefact.columns:
            cell = row.cells[column.name]
            low, high = cell.interval or (None, None)
            numbers = [cell.mean, cell.deviation, cell.n, low, high, cell.published, cell.difference]
            run_seeds = " ".join(str(each.seed) for each in cell.measured)
            line = [view.name, view.scale, row.row.label, column.name, *numbers, row.status, run_seeds]
            writer.writerow(["" if each is None else _cell(each) for each in line])
    return stream.getvalue()


def claims_csv(judged: Sequence[tuple[View, Sequence[Verdict]]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["artefact", "claim", "verdict", "scope", "summary", "comparison", "mean", "low", "high", "bound", "test"])
    for view, verdicts in judged:
        for verdict in verdicts:
            start = [view.name, verdict.claim.text, verdict.outcome, verdict.scope, verdict.summary]
            for each in verdict.comparisons:
                spread = each.spread
                found = [math.nan] * 3 if spread is None else [spread.mean, spread.low, spread.high]
                values = ["" if math.isnan(value) else float(f"{value:.6g}") for value in found]
                writer.writerow([_cell(text) for text in (*start, each.what, *values, each.bound, each.how)])
            if not verdict.comparisons:
                writer.writerow([*(_cell(text) for text in start), "", "", "", "", "", ""])
    return stream.getvalue()


def claims_markdown(judged: Sequence[tuple[View, Sequence[Verdict]]]) -> str:
    lines = ["# Claims", "", "| artefact | claim | verdict | why |", "| --- | --- | --- | --- |"]
    for view, verdicts in judged:
        lines += [
            f"| {_md(view.name)} | {_md(each.claim.text)} | {_md(each.sentence)} | {_md(each.summary)} |" for each in verdicts
        ]
    return "\n".join([*lines, ""])


def seeds(row: RowView) -> int:
    """How many runs the row's numbers come from."""
    return max((cell.n for cell in row.cells.values()), default=row.finished)


def _cell(value: object) -> object:
    """A spreadsheet takes text that begins like a formula for one."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "@", "-", "\t") else value


def _md(text: str) -> str:
    return "".join(_MARKDOWN.get(character, character) for character in " ".join(text.split()))


def _tex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
