"""The site: an index, a page an exhibit, a page of runs. Every page is one file with its style and script inside, and asks for
nothing: it opens from a disk, an archive, a mail."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from datamodules.files.atomic import write_atomically
from experiments.papers.places import paper_folders
from experiments.papers.schema import SCALES, Scale
from experiments.report import exports
from experiments.report.bootstrap import interval
from experiments.report.captions import captions, thumbnail
from experiments.report.collect import Cell, View
from experiments.report.dials import dial_csv, dial_rows, dials_of
from experiments.report.explanations import explanation
from experiments.report.lines import lines
from experiments.report.scales import Side, side_of_runs
from experiments.report.verdicts import Outcome, Verdict, apart, in_common, judge, paired_resamples
from experiments.runs.headings import heading, number
from experiments.runs.records import root_of
from experiments.runs.results import Results
from experiments.runs.store import Run

if TYPE_CHECKING:
    from experiments.report.drawing import Picture
from experiments.runs.duration import readable_time

TITLES = {"mwa": "MultiWay-Adapter", "iais": "IAIS", "i_tuning": "I-Tuning", "clip": "CLIP as it comes"}
MARKS: dict[Outcome, str] = {"supported": "✓", "contradicted": "✗", "not decided": "?", "not tested": "–"}


@dataclass(frozen=True)
class Difference:
    """A variant against the first one: ours with its paired interval, and the paper's.

    Args:
        mean: Ours.
        low: Of its interval.
        high: Of its interval.
        paper: The paper's.
        digits: Of its column.
        reach: The largest of its column, of either sign: strips of a column have one axis.
    """

    mean: float | None
    low: float | None
    high: float | None
    paper: float | None
    digits: int
    reach: float = 1.0

    @property
    def ours(self) -> str:
        return exports.signed(self.mean, self.digits)

    @property
    def band(self) -> str:
        if self.low is None or self.high is None:
            return ""
        return f"[{exports.signed(self.low, self.digits)}, {exports.signed(self.high, self.digits)}]"

    @property
    def places(self) -> dict[str, float | None]:
        """On a strip: in percent of its width, 0 at 50."""
        known = {"mean": self.mean, "low": self.low, "high": self.high, "paper": self.paper}
        return {name: None if value is None else round(50 + 46 * value / self.reach, 1) for name, value in known.items()}


@dataclass(frozen=True)
class Page:
    """An exhibit with all that its page shows.

    Args:
        view: The exhibit.
        verdicts: Of its claims.
        pictures: Of its figure.
        missing_maps: Why some run has no attention maps, where they were asked for.
    """

    view: View
    verdicts: tuple[Verdict, ...]
    pictures: tuple[Picture, ...]
    missing_maps: tuple[str, ...] = ()

    @property
    def counts(self) -> Counter[str]:
        return Counter(each.outcome for each in self.verdicts)

    @property
    def words(self) -> list[str]:
        """What the pictures show, where it is not in the table."""
        figure = self.view.exhibit.figure
        tabled = figure is not None and (figure.kind == "lines" or figure.x_column is not None)
        return [] if tabled else [each.text for each in self.pictures]

    @property
    def measured(self) -> int:
        return sum(variant.finished > 0 for variant in self.view.variants)


@dataclass(frozen=True)
class Shot:
    """A picture on the first page: its file, and what it shows in words."""

    file: Path
    text: str

    @property
    def data(self) -> str:
        """A data URI."""
        return str(thumbnail(self.file, 1600))


def judged(views: Iterable[View], missing_maps: Mapping[str, Sequence[str]] | None = None) -> list[Page]:
    """Exhibits with their verdicts and pictures.

    Args:
        views: The exhibits.
        missing_maps: Why runs have no attention maps, by exhibit: `maps.make_view_maps` gives it.
    """
    return [
        Page(
            view,
            tuple(judge(view, claim) for claim in view.exhibit.claims),
            _pictures(view),
            tuple((missing_maps or {}).get(view.name, ())),
        )
        for view in views
    ]


def _pictures(view: View) -> tuple[Picture, ...]:
    if view.exhibit.figure is None:
        return ()
    from experiments.report.figures import draw  # matplotlib takes longer to import than a table to make

    return tuple(draw(view))


def build(
    pages: Sequence[Page],
    extra: Sequence[Run],
    scale: Scale,
    out: Path,
    shots: Sequence[Shot] = (),
    others: Sequence[Side] = (),
) -> Path:
    """Writes the site: its index.html.

    Args:
        pages: The exhibits.
        extra: Runs of folders that were given by hand: they are shown as runs.
        scale: Of the exhibits.
        out: Folder; files of an earlier report in it are replaced.
        shots: Pictures of the first page.
        others: What other scales say of the same claims: `scales.other_sides` gives it.
    """
    out.mkdir(parents=True, exist_ok=True)
    runs = list({run.folder: run for run in [*(run for page in pages for run in page.view.runs), *extra]}.values())
    made_of = provenance(runs)
    where = Counter(root_of(run.folder) for run in runs if run.folder is not None).most_common()
    pages_of = environment()
    common: dict[str, Any] = {"scale": scale, "pages": pages, "runs": runs, "marks": MARKS}
    names = paper_folders()
    papers = [(paper, [page for page in pages if page.view.name.partition("/")[0] == paper]) for paper in names]
    own = side_of_runs(scale, [(page.view, page.verdicts) for page in pages])
    sides = sorted([own, *others], key=lambda side: SCALES.index(side.scale))
    claims = lines([page.view for page in pages], sides)
    counts = [
        Counter(each.outcome or each.note for line in claims for each in line.said if each.scale == side.scale) for side in sides
    ]
    index = pages_of.get_template("index.html").render(
        **common,
        titles={paper: TITLES.get(paper, paper) for paper in names},
        papers=[
            (paper, found, [line for line in claims if line.view.name.partition("/")[0] == paper])
            for paper, found in papers
            if found
        ],
        sides=list(zip(sides, counts, strict=True)),
        provenance=[*made_of, ("folder", where)],
        shots=shots,
    )
    write_atomically(out / "index.html", index)
    for page in pages:
        dials = dials_of(page.view)
        rendered = pages_of.get_template("exhibit.html").render(
            **common, page=page, view=page.view, differences=differences(page.view), captions=captions(page.view),
            dials=dials, dial_rows=dial_rows(dials),
        )  # fmt: skip
        if dials:
            write_atomically(out / f"{page.view.slug}-dial.csv", dial_csv(dials))
        write_atomically(out / f"{page.view.slug}.html", rendered)
        write_atomically(out / f"{page.view.slug}.md", exports.to_markdown(page.view, page.verdicts))
        if page.view.exhibit.columns and page.view.variants:
            write_atomically(out / f"{page.view.slug}.csv", exports.to_csv(page.view))
            write_atomically(out / f"{page.view.slug}.tex", exports.to_latex(page.view))
    write_atomically(out / "runs.html", pages_of.get_template("runs.html").render(**common))
    write_atomically(out / "claims.csv", exports.claims_csv([(page.view, page.verdicts) for page in pages]))
    told = [(page.view, page.verdicts, page.words) for page in pages]
    write_atomically(out / "summary.md", exports.summary_markdown(told, made_of))
    write_atomically(out / "summary.json", exports.summary_json(told, made_of))
    return out / "index.html"


def provenance(runs: Iterable[Run]) -> list[tuple[str, list[tuple[str, int]]]]:
    """What the runs were made of, each with how many runs it holds for."""
    results = [run.results for run in runs if run.results is not None]

    def counted(values: Iterable[str | None]) -> list[tuple[str, int]]:
        return Counter(value for value in values if value).most_common()

    names = ("python", "crosslight", "torch", "lightning", "transformers", "timm", "torchmetrics", "numpy")
    versions = (
        ", ".join(f"{name} {result.provenance.versions[name]}" for name in names if result.provenance.versions.get(name))
        for result in results
        if result.provenance is not None
    )
    data = (
        f"{name} {each.fingerprint} ("
        + ", ".join(f"{split} {sizes.get('images', 0):,} images" for split, sizes in each.splits.items())
        + ")"
        for result in results
        for name, each in result.data.items()
    )
    return [
        ("git revision", counted(map(revision, results))),
        ("device", counted(map(device, results))),
        ("versions", counted(versions)),
        ("data, by fingerprint", counted(data)),
        ("seeds", counted(str(result.seed) for result in results)),
        ("scale", counted(str(result.scale) for result in results)),
        ("status", counted(run.status for run in runs)),
    ]


def revision(results: Results | None) -> str:
    """Of the code that computed them; "no checkout" where that is not known."""
    known = results is not None and results.provenance is not None and results.provenance.git.revision is not None
    return str(results.code) if results is not None and known else "no checkout"


def device(results: Results | None) -> str:
    """What computed them."""
    if results is None or results.provenance is None:
        return "unknown"
    used = results.provenance.device
    return f"{f'{used.world_size} x ' if used.world_size > 1 else ''}{used.name} {used.precision}".strip()


def validation_text(results: Results | None) -> str:
    """The best validation, by what chose the checkpoint."""
    fit = None if results is None else results.fit
    if fit is None or fit.monitor is None or fit.best_value is None:
        return exports.NONE
    metric = fit.monitor.removeprefix("val/")
    return f"{heading(metric)} {number(metric, fit.best_value)}"


def tests_text(results: Results | None) -> list[str]:
    """Of each test the metric that chose the checkpoint on validation, or its first one."""
    if results is None:
        return []
    monitor = (results.fit.monitor or "" if results.fit is not None else "").removeprefix("val/")
    told = []
    for test in results.evaluations:
        metric = next((name for name in (monitor, "rsum", "cider") if name in test.metrics), next(iter(test.metrics), None))
        if metric is not None:
            named = test.columns.get(metric, heading(metric))
            told.append(f"{test.data} {test.split}: {named} {number(metric, test.metrics[metric], test.columns)}")
    return told


def differences(view: View) -> dict[str, dict[str, Difference]]:
    """Every variant against the first, by variant and column; empty where nothing is known of any. The paper's differences can be
    compared with ours at any scale, its numbers only at full scale."""
    if len(view.variants) < 2:
        return {}
    first, *others = view.variants
    found: dict[str, dict[str, Difference]] = {variant.label: {} for variant in others}
    for column in view.exhibit.columns:
        of_column = [_difference(variant.cells[column.name], first.cells[column.name]) for variant in others]
        known = [value for each in of_column for value in (each.mean, each.low, each.high, each.paper) if value is not None]
        reach = max(map(abs, known), default=0.0) or 1.0
        for variant, each in zip(others, of_column, strict=True):
            found[variant.label][column.name] = replace(each, reach=reach)
    anything = any(each.mean is not None or each.paper is not None for row in found.values() for each in row.values())
    return found if anything else {}


def _difference(cell: Cell, base: Cell) -> Difference:
    paper = None if cell.published is None or base.published is None else cell.published - base.published
    if cell.measured and base.measured and apart(cell, base):
        return Difference(None, None, None, paper, cell.column.digits)
    cell, base = in_common(cell, base)
    ours = None if cell.mean is None or base.mean is None else cell.mean - base.mean
    both = paired_resamples(cell, base)
    low, high = (None, None) if both is None else interval(both[0] - both[1])
    return Difference(ours, low, high, paper, cell.column.digits)


def environment() -> Environment:
    """Of the templates."""
    found = Environment(
        loader=PackageLoader("experiments.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    assert found.loader is not None
    for name in ("style.css", "light.js", "script.js"):
        source, _, _ = found.loader.get_source(found, name)
        found.globals[name.partition(".")[0]] = Markup(source)  # own text, nothing of a run
    filters: dict[str, Callable[..., Any]] = {
        "number": exports.number,
        "signed": exports.signed,
        "mean_text": exports.mean_text,
        "duration": lambda seconds: exports.NONE if seconds is None else readable_time(seconds),
        "revision": revision,
        "device": device,
        "seeds": exports.seeds,
        "validation": validation_text,
        "tests": tests_text,
        "finite": lambda value: value is not None and math.isfinite(value),
        "svg": Markup,
    }
    found.filters.update(filters)
    found.globals["caption_of"] = exports.caption
    found.globals["why"] = explanation
    found.globals["made_of"] = exports.MADE_OF
    return found
