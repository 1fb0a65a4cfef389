"""`crosslight demo`: headline exhibits of the papers, run at miniature scale, and the report that judges them.

    mwa/table3        a tiny BEiT-3, adapted whole, by either part of the MultiWay-Adapter, by both; and as it starts
    iais/figure7      a tiny UNITER without IAIS and with its singular kind: recalls, attention maps, the distances that IAIS is
                      made of; where IAIS is named also with its distributed kind
    iais/table2       likewise ISDa, and of a large UNITER: where IAIS is named
    i_tuning/table3   a tiny GPT-2 that sees through ClipCap and I-Tuning: captions beside images
    i_tuning/figure3  where the words of these captions look: needs no further run

The runs are those of `crosslight sweep run`, in the same folder: what a demo has run, no sweep repeats, and a second demo runs
nothing.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.papers.schema import Paper

if TYPE_CHECKING:
    from rich.console import Console

    from experiments.report.collect import VariantView, View
    from experiments.report.site import Page
    from experiments.sweep.launches import Launch

EXHIBITS: dict[Paper, tuple[str, ...]] = {
    "mwa": ("mwa/table3",),
    "iais": ("iais/figure7", "iais/table2"),
    "i_tuning": ("i_tuning/table3", "i_tuning/figure3"),
}
# What only the demo of papers that are named has: that of all takes three minutes on two cores.
WITH_A_NAME = ("iais/table2",)
ROWS_WITH_A_NAME = (
    "iais/base-flickr30k-distributed", "i_tuning/coco-large-half", "i_tuning/vlp-large", "i_tuning/coco-large-vlp",
)  # fmt: skip
LEFT_OUT = "left out"
QUERIES_OF = "mwa/base-coco-mwa"
QUERIES_TEXT = (
    "Queries spread evenly over the test images, and what “KE and AE” of MultiWay-Adapter's Table 3 finds for them, best first."
)


def run_demo(papers: Sequence[Paper], out: Path, runs: Path, seeds: Sequence[int]) -> int:
    """Run what is not there yet, look, report. Returns the exit status.

    Args:
        papers: Whose exhibits, with all their rows; none is all papers, without what takes longer.
        out: Folder of the report and the picture.
        runs: Folder of the runs.
        seeds: Seeds of every run.
    """
    from experiments.report.collect import collect
    from experiments.report.maps import make_view_maps
    from experiments.report.scales import other_sides
    from experiments.report.site import Shot, build, judged
    from experiments.runs.store import RunFolders
    from experiments.sweep.processes import FORKS
    from experiments.sweep.runner import Runner

    console, say = _opening()
    started = time.perf_counter()
    launches = demo_launches(papers, runs, seeds)
    say(f"{len(launches)} miniature runs, two at once where there are two cores; the first demo renders scenes for them")
    status = Runner(launches, runs, jobs=min(2, len(os.sched_getaffinity(0))), console=console).run()
    if status > 1:
        return status  # told to stop
    folders = RunFolders([runs])
    views = collect(exhibits_of(papers), "miniature", folders)
    say("attention maps, where words look, and queries with what was found")
    missing_maps: dict[str, list[str]] = {}
    # Processes that have imported everything for the runs; here that would take seconds.
    with ProcessPoolExecutor(2, FORKS) as pool:
        queries_of = _finished_run(views, QUERIES_OF)
        drawing = None if queries_of is None else pool.submit(_draw_queries, queries_of, out / "queries.png")
        looking = {view.name: pool.submit(make_view_maps, view) for view in views}
        for name, made in looking.items():
            _, missing_maps[name] = made.result()
            for why in missing_maps[name]:
                say(f"not possible: {why}")
        picture = None if drawing is None else drawing.result()
    views = collect(exhibits_of(papers), "miniature", folders)  # with the shares of attention that were just measured
    say("writing the report")
    pages = judged(views, missing_maps)
    shots = [] if picture is None else [Shot(picture, QUERIES_TEXT)]
    index = build(pages, [], "miniature", out / "report", shots, other_sides(views, "miniature", folders))
    for page in pages:
        _print_page(console, page)
    measured = sorted({seed for view in views for seed in view.seeds})  # a sweep may have run more
    console.print(
        f"\nMiniature scale: the embedded world, small models, seed{'s' * (len(measured) > 1)} {', '.join(map(str, measured))}. "
        f"{time.perf_counter() - started:.0f} s in all.\n",
        highlight=False,
    )
    for name, path in {"runs": runs, "queries": picture, "report": index}.items():
        if path is not None:
            console.print(f"{name + ':':<9}{path}", highlight=False, soft_wrap=True)
    return status


def exhibits_of(papers: Sequence[Paper]) -> list[str]:
    """What the demo of these papers shows, in the papers' order; of none, what that of all shows."""
    shown = [name for paper, names in EXHIBITS.items() if paper in (papers or EXHIBITS) for name in names]
    return [name for name in shown if papers or name not in WITH_A_NAME]


def demo_launches(papers: Sequence[Paper], runs: Path, seeds: Sequence[int]) -> list[Launch]:
    """What these exhibits need, each once; where no paper is named without what takes longer.

    What takes longest comes first, together with what waits for it: two at once then end together.
    """
    from experiments.sweep.targets import exhibit_launches

    without = () if papers else ROWS_WITH_A_NAME
    found = [
        launch for name in exhibits_of(papers) for launch in exhibit_launches(name, "miniature", seeds, runs, without=without)
    ]
    launches = {launch.key: launch for launch in found}
    until_the_end: dict[str, float] = {}
    for key, launch in reversed(launches.items()):  # what waits comes after what it waits for
        behind = (until_the_end[later.key] for later in launches.values() if key in later.after)
        until_the_end[key] = max(behind, default=0.0) + (launch.cost.seconds if launch.cost else 0.0)
    return sorted(launches.values(), key=lambda launch: until_the_end[launch.key], reverse=True)


def _opening() -> tuple[Console, Callable[[str], None]]:
    """A console, and how to say on it what comes next: with the seconds since now."""
    from rich.console import Console

    from experiments.training.quiet import quiet

    quiet()
    console = Console()
    if not console.is_terminal:
        console = Console(width=132)  # in a file or pipe nothing is cut at 80
    started = time.perf_counter()

    def say(text: str) -> None:
        console.print(f"[dim]{time.perf_counter() - started:5.1f} s[/dim]  {text}", highlight=False)

    return console, say


# ------------------------------------------------------------------------------------------------------------ what is shown


def _print_page(console: Console, page: Page) -> None:
    """An exhibit on a terminal: ours beside what the paper prints, what a run took, the verdicts, a few captions."""
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    from experiments.report.captions import captions
    from experiments.report.exports import mean_text, number, seeds
    from experiments.report.site import MARKS

    view = page.view
    console.print(f"\n[bold]{escape(view.exhibit.title)}[/bold]  [dim]{view.name}[/dim]", highlight=False)
    columns = view.exhibit.columns
    table = Table(box=None, padding=(0, 2, 0, 0))
    titles = [column.label + " (paper)" * (column.name in view.printed) for column in columns]
    for name in ("", *titles, "n", "time"):
        table.add_column(escape(name), justify="right" if name else "left")
    for variant in view.variants:
        cells = []
        for column in columns:
            cell = variant.cells[column.name]
            cells.append(mean_text(cell) + (f" ({number(cell.published, column.digits)})" if cell.published is not None else ""))
        label = escape(variant.label) + " [dim]ours[/dim]" * variant.declared.beyond
        table.add_row(label, *map(escape, cells), str(seeds(variant)), escape(_time(variant)))
    console.print(table)
    if any(_time(variant) == LEFT_OUT for variant in view.variants):
        console.print(
            f"  {LEFT_OUT}: `crosslight demo {view.name.partition('/')[0]}` has these rows", style="dim", highlight=False
        )
    for remark in view.remarks:
        console.print(Text(f"  {remark}", "dim"))
    _print_differences(console, view)
    _print_looks(console, view)
    for image in captions(view)[:2]:
        console.print(f"  [dim]a person:[/dim] {escape(image.references[0])}", highlight=False)
        for row_label, written, _ in image.captions:
            console.print(f"    [dim]{escape(row_label)}:[/dim] {escape(written)}", highlight=False)
    colors = {"supported": "green", "contradicted": "red", "not decided": "yellow"}
    left_out = {variant.declared.label for variant in view.variants if _time(variant) == LEFT_OUT}
    for verdict in page.verdicts:
        rows = {row for row, _ in (*verdict.claim.high, *verdict.claim.low)}
        if verdict.outcome != "not tested" and not (rows and rows <= left_out):
            told = Text(f"{MARKS[verdict.outcome]} {verdict.sentence}: ", colors[verdict.outcome])
            console.print(told.append(f"“{verdict.claim.text}”", "default"))
            console.print(Text((f"  tested: {verdict.tested}\n" if verdict.tested else "") + f"  {verdict.summary}", "dim"))


def _time(variant: VariantView) -> str:
    """What its runs took on average; where none is finished what keeps it from that."""
    runs = [run for found in variant.runs.values() for run in found]
    took = [run.results.seconds or 0.0 for run in runs if run.status == "finished" and run.results]
    if took:
        return f"{statistics.fmean(took):.0f} s"
    return LEFT_OUT if all(run.status == "missing" and run.name in ROWS_WITH_A_NAME for run in runs) else variant.status


def _print_differences(console: Console, view: View) -> None:
    """Every row minus the first, with the paired interval over the test images, of the columns that are means over images."""
    from rich.markup import escape
    from rich.table import Table

    from experiments.report.site import differences

    against = {label: found for label, found in differences(view).items() if any(each.band for each in found.values())}
    paired = [
        column for column in view.exhibit.columns if column.better and any(row[column.name].band for row in against.values())
    ]
    if not paired:
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column(f"[dim]minus “{escape(view.variants[0].label)}”, 95 % interval[/dim]")
    for column in paired:
        table.add_column(escape(column.label), justify="right")
    for label, found in against.items():
        table.add_row(escape(label), *(escape(f"{found[each.name].ours} {found[each.name].band}") for each in paired))
    console.print(table)


def _print_looks(console: Console, view: View) -> None:
    """Where the words of captions look: how many times an even share their things get, in which layers, and whether any map is of
    one patch, or all are of the same."""
    from rich.markup import escape
    from rich.table import Table

    from experiments.demo.looks import looks

    found = looks(view)
    if not found:
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("[dim]where words look[/dim]")
    for name in ("over area [95 % interval]", "in the boxes by layer, %", "fewest patches", "same peak, %", "words"):
        table.add_column(escape(name), justify="right")
    for each in found:
        band = "" if each.band is None else f" [{each.band[0]:.1f}, {each.band[1]:.1f}]"
        layers = ", ".join(f"{layer}: {100 * share:.0f}" for layer, share in each.by_layer.items())
        cells = (f"{each.times:.1f}{band}", layers, f"{each.patches:.1f}", f"{100 * each.peak:.0f}", f"{each.words:,}")
        table.add_row(escape(each.label), *map(escape, cells))
    console.print(table)
    told = (
        "over area: attention in the boxes over the boxes' part of the image; fewest patches: of the least spread map (exp of "
        "its entropy; 1 is one patch); same peak: maps with their peak on the patch where most have it"
    )
    console.print(f"  {told}. {found[0].shown}; the last layer", style="dim", highlight=False)


def _finished_run(views: Sequence[View], name: str) -> Path | None:
    """The folder of the first finished run of this name."""
    return next((run.folder for view in views for run in view.runs if run.name == name and run.status == "finished"), None)


def _draw_queries(run: Path, picture: Path) -> Path:
    """Queries of MWA's test split with what it finds for them."""
    import lightning_modules
    from experiments.analysis.data import data_of
    from experiments.analysis.retrieved import draw_queries

    picture.parent.mkdir(parents=True, exist_ok=True)
    return draw_queries(lightning_modules.load(run), data_of(run), "test", picture)
