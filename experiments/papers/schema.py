"""What a paper's YAML files hold: recipes, variants, columns, claims, figures."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

Scale = Literal["full", "small", "miniature"]
Paper = Literal["mwa", "iais", "i_tuning", "clip", "uniter"]
Style = Literal["source", "target", "web"]
SCALES: tuple[Scale, ...] = get_args(Scale)
PAPERS: tuple[Paper, ...] = get_args(Paper)
STYLES: tuple[Style, ...] = get_args(Style)
_RUN = re.compile(r"\{run:([^{}]+)\}")


@dataclass(frozen=True)
class Cost:
    """An estimate of one run, one seed.

    Args:
        hours: Device-hours in all: with two devices at once it takes half as long.
        devices: Devices at once, at least.
        device: Which.
        memory_gb: Of one device.
        disk_gb: Of data sets and weights.
    """

    hours: float
    devices: int = 1
    device: str = ""
    memory_gb: float | None = None
    disk_gb: float | None = None

    @property
    def seconds(self) -> float:
        """On the clock."""
        return 3600 * self.hours / self.devices


@dataclass(frozen=True)
class Recipe:
    """A run at one scale.

    Args:
        configs: YAML files, later ones win. Packaged ones (configs/..., experiments/...) work from any folder.
        options: Dotted options over them. `{run:NAME}` in a value is the folder of another run of the paper, which then comes
            first.
        start: Name of the run whose weights this one starts from (model.init_args.init_from).
        world: Style of the embedded world that the run reads (CROSSLIGHT_WORLD); see `write_miniature_world`.
        reads: Names of what the user must have (inputs.yaml): photographs, weights. It is not started without.
        command: Sub-command of crosslight.
        seeded: Whether it depends on the seed. One that does not (a test of published weights) is planned once for all seeds.
        cost: Estimate.
    """

    configs: list[str]
    options: dict[str, Any] = field(default_factory=dict)
    start: str | None = None
    world: Style | None = None
    reads: tuple[str, ...] = ()
    command: Literal["run", "fit", "test"] = "run"
    seeded: bool = True
    cost: Cost | None = None


Grounding = Literal["inside", "area", "elsewhere", "patches", "pointed", "pointed_even"]


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        name: Of the published column, where there is one.
        label: What the table says.
        run: Which of a variant's runs. One that lacks it has nothing in this column. (A sum has those of its parts.)
        metric: A metric of the run's evaluations; or
        cost: A cost of the run (tunable_parameters, peak_memory_bytes, seconds_per_epoch, ...); or
        attention: A share of the attention of words that name a thing with boxes, which `report --maps` measures (`WordShares`):
            inside of the boxes, their area, or that of other words there; over how many patches it is spread; or how often its
            highest place is in a box (pointed), and how often a random one would be (pointed_even); or
        gradient: The same of how much the words depend on each place (experiments/analysis/gradient_maps.py), for any captioner;
            or
        sum_of: Names of columns before it whose sum it is, of ours and of the paper's.
        data: Name of the evaluation (null: the run's own data, its first evaluation).
        factor: What the stored value is multiplied with to have the published unit.
        digits: Behind the point.
        better: Whether more or less of it is better; null is neither.
    """

    name: str
    label: str
    run: str = "run"
    metric: str | None = None
    cost: str | None = None
    attention: Grounding | None = None
    gradient: Grounding | None = None
    sum_of: tuple[str, ...] = ()
    data: str | None = None
    factor: float = 1.0
    digits: int = 1
    better: Literal["high", "low"] | None = "high"


@dataclass(frozen=True)
class Variant:
    """A row of a table, or a curve or point of a figure: one way to do it, and the runs that show it.

    Args:
        label: What the table says.
        runs: Names of runs of the paper by the role that columns name ("run" where there is but one).
        published: Fields that the published row has, which select it; null where the paper has no such row.
        x: Place on a figure's axis.
        beyond: It is ours, not the paper's.
    """

    label: str
    runs: dict[str, str]
    published: dict[str, Any] | None = None
    x: float | None = None
    beyond: bool = False


@dataclass(frozen=True)
class Gain:
    """The mean of some rows over some columns minus that of others.

    Args:
        of: Labels of variants, or models of rows that the paper quotes.
        over: What is subtracted, likewise.
        columns: Names of columns.
    """

    of: list[str]
    over: list[str]
    columns: list[str]

    @property
    def cells(self) -> list[list[str]]:
        """[label, column] of all its values."""
        return [[label, column] for label in (*self.of, *self.over) for column in self.columns]


@dataclass(frozen=True)
class Claim:
    """A claim of the paper and the test that our numbers put it to. `experiments/report/verdicts.py` has the tests.

    Args:
        text: The claim in the paper's words, from paper_numbers.yaml (claims or readings), or a number of its tables.
        test: greater (every `high` more than `margin` above its `low`), within (at most `margin` below it), ratio (the mean of
            high / low is at most `margin`), correlation (Pearson's r of the points (high, low), or without points of the figure's
            two `logged` columns over each run's checkpoints, has the sign and about the size of `margin`, the claimed r), mean
            (`gain` is more than `margin` above the gain `than`, or above 0), amount (`gain` is `margin`), relative (`gain` is
            `margin` times `than`), or none (`reason` says what keeps us from testing it).
        high: [variant label, column name] pairs that should be higher ...
        low: ... than these, pair by pair. A label may also be the model of a row that the paper quotes of another system,
            which is not run here: its printed number is of full scale, and only there compared.
        margin: See test.
        gain: Of mean, amount and relative, in place of high and low.
        than: Of relative, and of mean.
        reason: Why there is no test; with a test, what of the claim it tests, and what not.
        beyond: It is a question of ours, not the paper's: `text` then says what is asked.
    """

    text: str
    test: Literal["greater", "within", "ratio", "correlation", "mean", "amount", "relative", "none"]
    high: list[list[str]] = field(default_factory=list)
    low: list[list[str]] = field(default_factory=list)
    margin: float = 0.0
    gain: Gain | None = None
    than: Gain | None = None
    reason: str | None = None
    beyond: bool = False


@dataclass(frozen=True)
class Figure:
    """How a figure is drawn from its variants.

    Args:
        kind: lines (columns over `x` of the variants, a panel a unit), curves (a logged metric of each over steps), scatter
            (`x_column` against `y_column` of the variants, or with `logged` the first of its columns against the second over each
            one's checkpoints), schedules (annealing functions, no runs), maps (attention maps), captions (beside images), dial
            (what `crosslight dial` measured of each variant's runs).
        x_label: Of the axis.
        y_label: Of the axis.
        x_column: Of a scatter.
        y_column: Of a scatter.
        logged: Column of metrics.csv that curves show.
        log_x: Logarithmic axis.
        categories: The variants of `lines` are no numbers: they stand side by side in order, labelled and with no line between.
    """

    kind: Literal["lines", "curves", "scatter", "schedules", "maps", "captions", "dial"]
    x_label: str = ""
    y_label: str = ""
    x_column: str | None = None
    y_column: str | None = None
    logged: list[str] = field(default_factory=list)
    log_x: bool = False
    categories: bool = False


@dataclass(frozen=True)
class AtScale:
    """What an exhibit shows at a scale, where its own words name other data or other models.

    Args:
        data: What stands in the place of what, in the words of a table's caption: "Flickr8k in place of COCO".
        columns: Labels of columns, by the column's name.
        variants: What tables and figures call variants, by the exhibit's own labels, which claims name.
        note: Added to the exhibit's.
    """

    data: str
    columns: dict[str, str] = field(default_factory=dict)
    variants: dict[str, str] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Exhibit:
    """A table or figure of a paper.

    Args:
        title: What it shows.
        kind: table or figure.
        published: Place in paper_numbers.yaml, such as mwa.table1; null where the paper has no numbers of it.
        variants: In order.
        columns: In order.
        claims: What it is evidence for.
        figure: How it is drawn.
        note: What a reader must know: an ambiguity of the paper, another reading.
        beyond: It is ours, not the paper's.
        at: What it shows at a scale that is not in its own words (`at_scale`).
    """

    title: str
    kind: Literal["table", "figure"]
    published: str | None = None
    variants: list[Variant] = field(default_factory=list)
    columns: list[Column] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    figure: Figure | None = None
    note: str = ""
    beyond: bool = False
    at: dict[Scale, AtScale] = field(default_factory=dict)

    def at_scale(self, scale: Scale) -> Exhibit:
        """The exhibit with the columns' labels and the note of a scale. (Variants keep theirs, which claims name.)"""
        own = self.at.get(scale)
        if own is None:
            return self
        return replace(
            self,
            columns=[replace(each, label=own.columns.get(each.name, each.label)) for each in self.columns],
            note=f"{self.note.strip()} {own.note.strip()}".strip(),
        )


def needs_of(recipe: Recipe) -> list[str]:
    """Names of the runs that must be finished first."""
    texts = json.dumps(recipe.options, default=str, ensure_ascii=False)
    return list(dict.fromkeys([*([recipe.start] if recipe.start else []), *_RUN.findall(texts)]))


def replace_runs(value: Any, of_run: Any) -> Any:
    """`value` with {run:NAME} replaced in all its texts."""
    if isinstance(value, str):
        return _RUN.sub(lambda found: of_run(found[1]), value)
    if isinstance(value, dict):
        return {key: replace_runs(each, of_run) for key, each in value.items()}
    return [replace_runs(each, of_run) for each in value] if isinstance(value, list) else value
