"""`make demo`: a headline exhibit of each paper, run at miniature scale from nothing, and the report that judges it.

    mwa/table3        a tiny BEiT-3, adapted whole, by either part of the MultiWay-Adapter, by both
    iais/figure7      a tiny UNITER without IAIS and with both kinds: attention maps, and the distances that IAIS is made of
    i_tuning/table3   a tiny GPT-2 that sees through ClipCap and I-Tuning: captions beside images
    i_tuning/figure3  where the words of these captions look: needs no further run

The runs are those of `crosslight sweep run`, in the same folder: what a demo has run, no sweep repeats, and a second demo runs
nothing. `iais.py` and `captioning.py` are demos of one method with settings of their own; they render and train here.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from experiments.report.collect import View
    from experiments.report.site import Page
    from experiments.sweep.launches import Launch
from experiments.demo.common import opening

# The longest chains of runs first: two at once then end together.
HEADLINES = ("iais/figure7", "i_tuning/table3", "mwa/table3")
SHOWN = ("mwa/table3", "iais/figure7", "i_tuning/table3", "i_tuning/figure3")
# Under five minutes in all on two cores: these would take half a minute more. The report shows how to run them.
LEFT_OUT = ("i_tuning/vlp-large", "i_tuning/coco-large-vlp")
QUERIES_OF = "mwa/base-coco-mwa"
QUERIES_TEXT = (
    "Queries spread evenly over the test images, and what “KE and AE” of MultiWay-Adapter's Table 3 finds for them, best first."
)


def run_demo(out: Path, runs: Path, seeds: Sequence[int]) -> int:
    """Run what is not there yet, look, report. Returns the exit status.

    Args:
        out: Folder of the report and the picture.
        runs: Folder of the runs.
        seeds: Seeds of every run.
    """
    from experiments.report.collect import collect
    from experiments.report.maps import make_view_maps
    from experiments.report.scales import other_sides
    from experiments.report.site import Shot, build, judged
    from experiments.runs.store import RunFolders
    from experiments.sweep.runner import Runner

    console, say = opening()
    started = time.perf_counter()
    launches = headline_launches(runs, seeds)
    say(f"{len(launches)} miniature runs, two at once where there are two cores; the first demo renders scenes for them")
    status = Runner(launches, runs, jobs=min(2, len(os.sched_getaffinity(0))), console=console).run()
    if status > 1:
        return status  # told to stop
    views = collect(SHOWN, "miniature", RunFolders([runs]))
    say("attention maps of words and regions")
    missing_maps: dict[str, list[str]] = {}
    for view in views:
        _, missing_maps[view.name] = make_view_maps(view)
        for why in missing_maps[view.name]:
            say(f"not possible: {why}")
    picture = _draw_queries(views, out, say)
    say("writing the report")
    pages = judged(views, missing_maps)
    shots = [] if picture is None else [Shot(picture, QUERIES_TEXT)]
    index = build(pages, [], "miniature", out / "report", shots, other_sides(views, "miniature", RunFolders([runs])))
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


def headline_launches(runs: Path, seeds: Sequence[int]) -> list[Launch]:
    """What the headline exhibits need, each once, without what is left out."""
    from experiments.sweep.targets import exhibit_launches

    launches = [launch for name in HEADLINES for launch in exhibit_launches(name, "miniature", seeds, runs, without=LEFT_OUT)]
    return list({launch.key: launch for launch in launches}.values())


# ------------------------------------------------------------------------------------------------------------ what is shown


def _print_page(console: Console, page: Page) -> None:
    """An exhibit on a terminal: ours beside what the paper prints, what a run took, the verdicts, a few captions."""
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    from experiments.report.captions import captions
    from experiments.report.exports import mean_text, number, seeds
    from experiments.report.site import MARKS, differences

    view = page.view
    console.print(f"\n[bold]{escape(view.exhibit.title)}[/bold]  [dim]{view.name}[/dim]", highlight=False)
    if view.name not in HEADLINES:  # another view of the same rows: a picture
        console.print("  drawn in the report", highlight=False)
        return
    columns = view.exhibit.columns
    against = differences(view)
    # of the first column that has queries: the first row's number is subtracted, with the interval of the difference
    paired = next((each for each in columns if any(difference[each.name].band for difference in against.values())), None)
    table = Table(box=None, padding=(0, 2, 0, 0))
    titles = [column.label + " (paper)" * (column.name in view.printed) for column in columns]
    for name in ("", *titles, *([] if paired is None else [f"{paired.label} − {view.variants[0].label}"]), "n", "time"):
        table.add_column(name, justify="right" if name else "left")
    for variant in view.variants:
        cells = []
        for column in columns:
            cell = variant.cells[column.name]
            cells.append(mean_text(cell) + (f" ({number(cell.published, column.digits)})" if cell.published is not None else ""))
        took = [
            run.results.seconds or 0.0
            for found in variant.runs.values()
            for run in found
            if run.status == "finished" and run.results
        ]
        time_text = f"{statistics.fmean(took):.0f} s" if took else variant.status
        if paired is not None:
            found = against.get(variant.label)
            cells.append("" if found is None else f"{found[paired.name].ours} {found[paired.name].band}")
        table.add_row(escape(variant.label), *map(escape, cells), str(seeds(variant)), time_text)
    console.print(table)
    for image in captions(view)[:2]:
        console.print(f"  [dim]a person:[/dim] {escape(image.references[0])}", highlight=False)
        for row_label, written, _ in image.captions:
            console.print(f"    [dim]{escape(row_label)}:[/dim] {escape(written)}", highlight=False)
    colors = {"supported": "green", "contradicted": "red", "not decided": "yellow"}
    for verdict in page.verdicts:
        if verdict.outcome != "not tested":
            told = Text(f"{MARKS[verdict.outcome]} {verdict.sentence}: ", colors[verdict.outcome])
            console.print(told.append(f"“{verdict.claim.text}”", "default"))
            console.print(Text((f"  tested: {verdict.tested}\n" if verdict.tested else "") + f"  {verdict.summary}", "dim"))


def _draw_queries(views: Sequence[View], out: Path, say: Callable[[str], None]) -> Path | None:
    """Queries of MWA's test split with what it finds for them; None where its run did not finish."""
    import lightning_modules
    from experiments.analysis.retrieved import draw_queries
    from experiments.analysis.run_maps import data_of

    found = next((run for view in views for run in view.runs if run.name == QUERIES_OF and run.status == "finished"), None)
    if found is None or found.folder is None:
        return None
    say("drawing queries with what was found")
    out.mkdir(parents=True, exist_ok=True)
    return draw_queries(lightning_modules.load(found.folder), data_of(found.folder), "test", out / "queries.png")
