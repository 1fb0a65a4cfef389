"""What every scale says of the same claims: the report's own scale from its runs, another from runs of it in the same folders,
else from the results that are committed with the code (`experiments/results/SCALE/summary.json`), which then says so.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

from datamodules.errors import InputError, shown
from datamodules.files.json_file import read_json
from experiments.papers.schema import SCALES, Claim, Scale
from experiments.report.bootstrap import Spread
from experiments.report.collect import View, collect
from experiments.report.verdicts import Comparison, Outcome, Verdict, judge
from experiments.runs.store import RunFolders

RESULTS = Path(__file__).parents[1] / "results"
NOT_RUN, NOT_PLANNED, OTHER_CLAIM = "not run", "no run at this scale", "not judged then"
_DEFINES = tuple(each.name for each in fields(Claim) if each.name not in ("text", "reason"))  # its wording may be mended


@dataclass(frozen=True)
class Finding:
    """What a scale says of a claim: a verdict, or why there is none."""

    verdict: Verdict | None
    absent: str = ""


@dataclass(frozen=True)
class Side:
    """A scale's findings.

    Args:
        scale: The scale.
        source: Where they come from, in words.
        findings: By exhibit, in the order of its claims.
    """

    scale: Scale
    source: str
    findings: Mapping[str, tuple[Finding, ...]]


def claim_key(claim: Claim) -> str:
    """Of the test that a claim is put to: what was judged under another key was another test."""
    empty = Claim("", claim.test)
    given = {name: value for name, value in asdict(claim).items() if name in _DEFINES and value != getattr(empty, name)}
    return hashlib.sha256(json.dumps({**given, "test": claim.test}, sort_keys=True).encode()).hexdigest()[:12]


def absence(view: View, verdict: Verdict) -> str:
    """Why nothing can be said of a claim; empty where something was measured, or where it is not tested at any scale."""
    claim = verdict.claim
    if claim.test == "none" or verdict.comparisons:
        return ""
    gains = [pair for gain in (claim.gain, claim.than) if gain is not None for pair in gain.cells]
    cells = [cell for pair in (*claim.high, *claim.low, *gains) if not (cell := view.cell(*pair)).quoted]
    runs = [run for variant in view.variants for found in variant.runs.values() for run in found]
    measured = any(cell.measured for cell in cells) if cells else any(run.status == "finished" for run in runs)
    planned = any(cell.planned for cell in cells) if cells else any(run.status != "not at this scale" for run in runs)
    return "" if measured else NOT_RUN if planned else NOT_PLANNED


def side_of_runs(scale: Scale, judged: Sequence[tuple[View, Sequence[Verdict]]]) -> Side:
    """Of verdicts over runs that were read."""
    findings = {
        view.name: tuple(Finding(None if (absent := absence(view, verdict)) else verdict, absent) for verdict in verdicts)
        for view, verdicts in judged
    }
    finished = {run.folder for view, _ in judged for run in view.runs if run.status == "finished"}
    source = f"from {len(finished):,} run{'s' * (len(finished) != 1)} that this report has read" if finished else NOT_RUN
    return Side(scale, source, findings)


def other_sides(views: Sequence[View], scale: Scale, folders: RunFolders) -> list[Side]:
    """The other scales, of the same claims.

    Args:
        views: The exhibits of the report.
        scale: Its own.
        folders: Where its runs are: runs of other scales may be there as well.

    Raises:
        InputError: A committed summary cannot be read.
    """
    names = [view.name for view in views]
    sides: list[Side] = []
    for other in SCALES:
        if other != scale:
            found = zip(views, collect(names, other, folders), strict=True)
            judged = [(theirs, [judge(theirs, claim) for claim in own.exhibit.claims]) for own, theirs in found]
            there = {run.folder: run.status == "finished" for theirs, _ in judged for run in theirs.runs}
            side = None if any(there.values()) else _committed_side(other, views)
            side = side or side_of_runs(other, judged)
            if bad := len(there) - sum(there.values()):
                why = f"{bad} more here did not finish or cannot be read (`crosslight report --scale {other}` says why)"
                side = replace(side, source=f"{side.source}; {why}")
            sides.append(side)
    return sides


@dataclass(frozen=True)
class Committed:
    """The summary that is committed of a scale: its claims by exhibit and key, and what it was made of."""

    claims: Mapping[tuple[str, str | None], Mapping[str, Any]]
    provenance: Mapping[str, Any]


def committed(scale: Scale) -> Committed | None:
    """None where there is none.

    Raises:
        InputError: It is no summary of this scale.
    """
    file = RESULTS / scale / "summary.json"
    return _read_committed(file, scale) if file.is_file() else None


@cache
def _read_committed(file: Path, scale: Scale) -> Committed:
    content = read_json(file, "a summary of `crosslight report`")
    if not isinstance(content, dict) or content.get("schema") != "crosslight.summary/1" or content.get("scale") != scale:
        raise InputError(f"{file} holds {shown(content)}; expected the summary.json of `crosslight report --scale {scale}`.")
    claims = {(exhibit["name"], each.get("key")): each for exhibit in content["exhibits"] for each in exhibit["claims"]}
    return Committed(claims, content["provenance"])


def _committed_side(scale: Scale, views: Sequence[View]) -> Side | None:
    """From the summary that is committed, where there is one."""
    summary = committed(scale)
    if summary is None:
        return None
    findings = {
        view.name: tuple(_finding(claim, summary.claims.get((view.name, claim_key(claim)))) for claim in view.exhibit.claims)
        for view in views
    }
    made_of = summary.provenance
    known = [f"revision{'s' * (len(values) > 1)} {', '.join(values)}" for values in [made_of.get("git revision", {})] if values]
    known += [f"seeds {', '.join(sorted(values, key=int))}" for values in [made_of.get("seeds", {})] if values]
    return Side(scale, f"committed results: {'; '.join(known)}", findings)


def _finding(claim: Claim, stored: Mapping[str, Any] | None) -> Finding:
    if claim.test == "none":
        return Finding(Verdict(claim, "not tested", "", claim.reason or ""))
    if stored is None:
        return Finding(None, OTHER_CLAIM)
    if stored.get("absent"):
        return Finding(None, stored["absent"])
    if stored["verdict"] not in get_args(Outcome):
        raise InputError(f"a committed verdict is {shown(stored['verdict'])}; expected one of {', '.join(get_args(Outcome))}")
    compared = tuple(_comparison(each) for each in stored["comparisons"])
    return Finding(Verdict(claim, stored["verdict"], stored["scope"], stored["summary"], compared))


def _comparison(stored: Mapping[str, Any]) -> Comparison:
    mean, low, high = (math.nan if stored.get(name) is None else float(stored[name]) for name in ("mean", "low", "high"))
    spread = None if math.isnan(mean) else Spread(mean, low, high, math.nan, math.nan)
    return Comparison(stored["what"], stored["outcome"], spread, stored["bound"], stored["how"])
