"""An exhibit's table as Markdown, CSV and LaTeX, from the same cells as the page; and its claims. `summary_markdown` and
`summary_json` have all exhibits in one file each, which can be kept: no path of this machine, no link out of the file."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.report.collect import Cell, VariantView, View
from experiments.report.escape import csv_value, latex_text, markdown_text
from experiments.report.explanations import explanation
from experiments.report.scales import absence, claim_key
from experiments.report.verdicts import Verdict

NONE = "–"
MADE_OF: Mapping[str, str] = {
    "full": "the papers' models and data",
    "small": "small pre-trained models, real photographs",
    "miniature": "the embedded world, miniature models",
}


def number(value: float | None, digits: int) -> str:
    """With that many digits behind the point; small numbers keep two that say something."""
    if value is None:
        return NONE
    digits = _places(value, digits)
    if digits > 5:  # 0.015 and 0.00028 stay as they are
        mantissa, _, power = f"{value:.1e}".partition("e")
        return f"{mantissa}e{power}".replace("-", "−")
    return f"{value:,.{digits}f}".replace("-", "−")


def _places(value: float, digits: int) -> int:
    small = value and abs(value) < 0.5 * 10.0**-digits
    return 1 - math.floor(math.log10(abs(value))) if small else digits


def mean_text(cell: Cell) -> str:
    """ "60.7 ±0.4 (2 of 3)": mean and standard deviation over seeds, with as many digits as the mean; and how many of the
    finished seeds have it, where not all do."""
    digits = cell.column.digits
    text = number(cell.mean, digits)
    if cell.mean is not None and cell.deviation is not None and not cell.counted:
        places = _places(cell.mean, digits)
        text += f" ±{cell.deviation:,.{places}f}" if places <= 5 else f" ±{number(cell.deviation, digits)}"
    return f"{text} ({cell.partly})" if cell.partly else text


def signed(value: float | None, digits: int) -> str:
    return NONE if value is None else ("+" if value > 0 else "") + number(value, digits)


def ours(cell: Cell) -> str:
    """ "60.7 ±0.4 [59.1, 62.0]": mean, standard deviation over seeds, interval over queries."""
    digits, text = cell.column.digits, mean_text(cell)
    if cell.interval is not None:
        text += f" [{number(cell.interval[0], digits)}, {number(cell.interval[1], digits)}]"
    return text


def caption(view: View) -> str:
    """What a table must say of itself, wherever it is pasted."""
    own = view.exhibit.at.get(view.scale)
    instead = f"; {own.data}" if own is not None else ""
    beyond = " Not in the paper." if view.exhibit.beyond else ""
    return f"{view.exhibit.title}. {view.scale.capitalize()} scale ({MADE_OF[view.scale]}{instead}).{beyond}"


_LEGEND = (
    "Mean ± standard deviation over n seeds [95 % bootstrap interval over the test images]; in italics what the paper prints."
)


def to_markdown(view: View, verdicts: Sequence[Verdict]) -> str:
    lines = [f"# {markdown_text(view.exhibit.title)}", "", f"{markdown_text(caption(view))} {_LEGEND}", ""]
    lines += _markdown_table(view)
    if view.incomplete:
        lines += ["What is missing runs with:", "", f"    {view.command}", ""]
    if verdicts:
        lines += ["## Claims", "", *_markdown_claims(view, verdicts), ""]
    if view.exhibit.note:
        lines += [markdown_text(view.exhibit.note), ""]
    return "\n".join(lines)


def _markdown_table(view: View) -> list[str]:
    """A column of ours, and one of the paper's where it prints any."""
    columns = view.exhibit.columns
    if not view.variants or not columns:
        return []
    names = [
        part
        for column in columns
        for part in (markdown_text(column.label), *(["*paper*"] if column.name in view.printed else []))
    ]
    lines = ["| " + " | ".join(["row", *names, "n", "status"]) + " |"]
    lines += ["| --- |" + " ---: |" * (len(names) + 1) + " --- |"]
    for variant in view.variants:
        cells = [markdown_text(variant.label)]
        for column in columns:
            cell = variant.cells[column.name]
            cells += [ours(cell).replace("[", "\\[")]
            cells += [f"*{number(cell.published, column.digits)}*"] if column.name in view.printed else []
        lines.append("| " + " | ".join([*cells, str(seeds(variant)), markdown_text(variant.told)]) + " |")
    return [*lines, "", *(f"- *{markdown_text(remark)}*" for remark in view.remarks), *[""] * bool(view.remarks)]


def _markdown_claims(view: View, verdicts: Sequence[Verdict]) -> list[str]:
    return [
        f"- **{each.sentence}**: {markdown_text(each.claim.text)} — "
        + (f"tested: {markdown_text(each.tested)} — " if each.tested else "")
        + markdown_text(each.summary)
        + (f" — *why:* {markdown_text(why)}" if (why := explanation(view.scale, view.name, each)) else "")
        for each in verdicts
    ]


def to_latex(view: View) -> str:
    columns = view.exhibit.columns
    label = view.slug
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}",
        "  \\centering",
        f"  \\caption{{{latex_text(caption(view))} Ours: mean $\\pm$ standard deviation over seeds; in italics the paper's.}}",
        f"  \\label{{tab:{label}}}",
        f"  \\begin{{tabular}}{{l{'rr' * len(columns)}r}}",
        "    \\toprule",
        "    & " + " & ".join(f"\\multicolumn{{2}}{{c}}{{{latex_text(column.label)}}}" for column in columns) + " & $n$ \\\\",
        "    \\midrule",
    ]
    for variant in view.variants:
        cells = []
        for column in columns:
            cell = variant.cells[column.name]
            cells += [latex_text(mean_text(cell)), f"\\textit{{{latex_text(number(cell.published, column.digits))}}}"]
        # "\\\\" takes a "[" or "*" that follows it for an option of its own, also on the next line
        guard = "{}" if variant.label.startswith(("[", "*")) else ""
        lines.append(f"    {guard}{latex_text(variant.label)} & " + " & ".join([*cells, str(seeds(variant))]) + " \\\\")
    apart = [f"{variant.label}: {variant.told}." for variant in view.variants if variant.told != variant.status]
    notes = [latex_text(text) for text in (view.exhibit.note, *apart) if text]
    note = [f"  \\par\\smallskip\\footnotesize {' '.join(notes)}"] if notes else []
    return "\n".join([*lines, "    \\bottomrule", "  \\end{tabular}", *note, "\\end{table}", ""])


def to_csv(view: View) -> str:
    """A line for each row and column, with everything that the page shows of it."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        ["exhibit", "scale", "row", "column", "mean", "sd", "n", "low", "high", "published", "difference", "status", "seeds"]
    )
    for variant in view.variants:
        for column in view.exhibit.columns:
            cell = variant.cells[column.name]
            low, high = cell.interval or (None, None)
            difference = cell.difference if view.scale == "full" else None  # the paper's numbers are of full scale
            numbers = [cell.mean, cell.deviation, cell.n, low, high, cell.published, difference]
            run_seeds = " ".join(str(each.seed) for each in cell.measured)
            line = [view.name, view.scale, variant.label, column.name, *numbers, variant.told, run_seeds]
            writer.writerow(["" if each is None else csv_value(each) for each in line])
    return stream.getvalue()


def claims_csv(judged: Sequence[tuple[View, Sequence[Verdict]]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        ["exhibit", "claim", "tested", "verdict", "scope", "summary", "comparison", "mean", "low", "high", "bound", "test"]
    )
    for view, verdicts in judged:
        for verdict in verdicts:
            start = [view.name, verdict.claim.text, verdict.tested or "", verdict.outcome, verdict.scope, verdict.summary]
            for each in verdict.comparisons:
                spread = each.spread
                found = [math.nan] * 3 if spread is None else [spread.mean, spread.low, spread.high]
                values = ["" if math.isnan(value) else float(f"{value:.6g}") for value in found]
                writer.writerow([csv_value(text) for text in (*start, each.what, *values, each.bound, each.how)])
            if not verdict.comparisons:
                writer.writerow([*(csv_value(text) for text in start), "", "", "", "", "", ""])
    return stream.getvalue()


def summary_markdown(
    judged: Sequence[tuple[View, Sequence[Verdict], Sequence[str]]], provenance: Sequence[tuple[str, Sequence[tuple[str, int]]]]
) -> str:
    """Everything in one Markdown file.

    Args:
        judged: Exhibits, their verdicts, and what their pictures show in words.
        provenance: As `site.provenance` has it.
    """
    scale = judged[0][0].scale if judged else "no"
    outcomes = [each.outcome for _, verdicts, _ in judged for each in verdicts]
    counts = ", ".join(f"{outcomes.count(each)} {each}" for each in dict.fromkeys(sorted(outcomes, key=_ORDER.index)))
    lines = [
        "# Published and measured", "",
        f"Written by `crosslight report`. {scale.capitalize()} scale. {_LEGEND} Claims: {counts or 'none'}; a verdict holds for "
        "the scale, data and seeds that it names.", "",
        "| exhibit | rows measured | verdicts |", "| --- | ---: | --- |",
    ]  # fmt: skip
    for view, verdicts, _ in judged:
        each = ", ".join(
            f"{sum(v.outcome == outcome for v in verdicts)} {outcome}" for outcome in _ORDER if _any(verdicts, outcome)
        )
        done = f"{sum(variant.finished > 0 for variant in view.variants)} of {len(view.variants)}" if view.variants else NONE
        lines.append(f"| [{markdown_text(view.name)}](#{view.slug}) | {done} | {each or NONE} |")
    for view, verdicts, words in judged:
        # an anchor of its own: what a viewer makes of a heading differs between viewers
        lines += ["", f'<a id="{view.slug}"></a>', "", f"## {markdown_text(view.name)}", "", markdown_text(caption(view)), ""]
        lines += [markdown_text(view.exhibit.note), ""] if view.exhibit.note else []
        lines += _markdown_table(view)
        lines += [f"- {markdown_text(text)}" for text in words] + [""] * bool(words)
        if view.incomplete:
            lines += [f"What is missing runs with `{view.command}`.", ""]
        lines += _markdown_claims(view, verdicts)
    if provenance:
        lines += ["", "## Where the numbers come from", "", "| what | value | runs |", "| --- | --- | ---: |"]
        lines += [f"| {what} | {markdown_text(value)} | {count} |" for what, values in provenance for value, count in values]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)) + "\n"


_ORDER = ("supported", "contradicted", "not decided", "not tested")


def _any(verdicts: Sequence[Verdict], outcome: str) -> bool:
    return any(each.outcome == outcome for each in verdicts)


def summary_json(
    judged: Sequence[tuple[View, Sequence[Verdict], Sequence[str]]], provenance: Sequence[tuple[str, Sequence[tuple[str, int]]]]
) -> str:
    """The same as data, with the numbers of every seed, interval and comparison."""
    content = {
        "schema": "crosslight.summary/1",
        "scale": judged[0][0].scale if judged else None,
        "exhibits": [
            {
                "name": view.name, "title": view.exhibit.title, "published": view.exhibit.published,
                "note": view.exhibit.note, "beyond": view.exhibit.beyond, "command": view.command,
                "rows": [
                    {"label": variant.label, "status": variant.told, "n": seeds(variant), "beyond": variant.declared.beyond,
                     "cells": {column.name: _cell_json(variant.cells[column.name]) for column in view.exhibit.columns}}
                    for variant in view.variants
                ],
                "words": list(words), "remarks": view.remarks,
                "claims": [_verdict_json(view, each) for each in verdicts],
            }
            for view, verdicts, words in judged
        ],
        "provenance": {what: dict(values) for what, values in provenance},
    }  # fmt: skip
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _cell_json(cell: Cell) -> Mapping[str, Any]:
    low, high = cell.interval or (None, None)
    numbers = {"mean": cell.mean, "sd": cell.deviation, "low": low, "high": high, "published": cell.published}
    seeds = {str(each.seed): _short(each.value) for each in cell.measured}
    return {"label": cell.column.label, **{name: _short(value) for name, value in numbers.items()}, "seeds": seeds}


def _verdict_json(view: View, verdict: Verdict) -> Mapping[str, Any]:
    compared = [
        {"what": each.what, "outcome": each.outcome, "bound": each.bound, "how": each.how,
         **({} if each.spread is None else {name: _short(getattr(each.spread, name)) for name in ("mean", "low", "high")})}
        for each in verdict.comparisons
    ]  # fmt: skip
    return {
        "text": verdict.claim.text, "test": verdict.claim.test, "verdict": verdict.outcome, "scope": verdict.scope,
        "summary": verdict.summary, "tested": verdict.tested, "comparisons": compared,
        "key": claim_key(verdict.claim), "absent": absence(view, verdict),
        "why": explanation(view.scale, view.name, verdict),
    }  # fmt: skip


def _short(value: float | None) -> float | None:
    """Six digits say enough; JSON has no nan."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


def seeds(variant: VariantView) -> int:
    """How many runs the variant's numbers come from."""
    return max((cell.n for cell in variant.cells.values()), default=variant.finished)
