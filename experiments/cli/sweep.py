"""A table or figure of a paper, a paper, all of them, or a W&B sweep file: run here or by Slurm, shown, cancelled.

TARGET is an exhibit (mwa/table1), a run of a paper (mwa/pretrain-base), a paper (mwa), all, or a W&B sweep file: grid, random,
bayes (with Optuna: pip install optuna), early_terminate. The same file runs on W&B's server, with an account, on any number of
machines:

  wandb sweep FILE                          prints the sweep's name
  wandb agent ENTITY/PROJECT/SWEEP          on each machine; CUDA_VISIBLE_DEVICES gives an agent its GPUs

Without an account every run is written offline; `wandb sync DIR/*/wandb/offline-run-*` uploads them later.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from datamodules.errors import InputError
from experiments.cli._parser import Parser, add_fields, given_fields, refuse_given
from experiments.papers.schema import SCALES, Scale
from experiments.sweep.slurm_script import SlurmOptions

if TYPE_CHECKING:
    from experiments.runs.rehearsed import Rehearsed, Verdict
    from experiments.sweep.launches import Launch

PAPERS_ROOT = Path("runs/papers")
_RUN = """\
Run everything of TARGET that is not finished, in order of what starts from what, and go on where it was interrupted. A failure is
a recorded row and stops only what starts from it. Ctrl-C stops the runs in order; the same command goes on.

--submit slurm: submit what is neither finished nor queued, as job arrays that wait for each other; preempted or at its time limit
a run saves, is queued again and goes on. --dry-run prints the batch scripts. Not for bayes and early_terminate."""
_STATUS = """\
What is finished, with the best validation of each run; what is running or failed, and why; of submitted runs also what Slurm
says. TARGET may be any folder of runs. `crosslight table` has the tests as well."""
_CANCEL = "Cancel the submitted runs of TARGET. What was trained is kept: submitted again it goes on."
_PLAN = """\
How many seeds and test images would settle each claim of TARGET (supported or contradicted, four times in five), and what they
cost by the recipes' estimates: from the runs that there are, before any more are started. docs/papers.md says how it is found.

--from-scale miniature --scale full takes the miniature's differences and variances for those of the papers' models, which nothing
here shows: an order of magnitude."""
_REHEARSE = """\
Take each run of TARGET through its whole life in minutes, before anyone pays for it: parse, devices, data, weights, disk, some
optimizer steps of the real batch on the real model, SIGKILL and resume, validation and tests of a few images, memory, export,
report. Each stage has a verdict, and where it fails one line with the remedy. Nothing of it can enter a report.

Writes DIR/rehearsed.json and rehearsed.md. What was found sound by this very code is not repeated; Ctrl-C at any moment. On a GPU
the measured costs take the place of the estimates in plan, run --dry-run and Slurm's time limits. docs/rehearsal.md says more."""
_SLURM = "--slurm."


def add_options(parser: Parser) -> None:
    actions = parser.add_subparsers(required=True, dest="action", metavar="ACTION", prog=parser.prog)
    run = actions.add_parser("run", help="run or submit what is not finished", description=_RUN)
    status = actions.add_parser("status", help="what is finished, running, failed, and why", description=_STATUS)
    cancel = actions.add_parser("cancel", help="cancel submitted runs", description=_CANCEL)
    _add_plan_options(actions.add_parser("plan", help="what would settle its claims, and what that costs", description=_PLAN))
    _add_rehearse_options(
        actions.add_parser("rehearse", help="take every run through its life, shortened", description=_REHEARSE)
    )
    for action in (run, status, cancel):
        action.add_argument("target", metavar="TARGET", help="an exhibit, run, paper, all, or a sweep file")
        option = action.add_argument
        option(
            "--scale",
            choices=SCALES,
            help="of exhibits: the embedded world (default: miniature), photographs (small), or the papers' own",
        )
        option("--seeds", type=int, nargs="+", metavar="N", help="of exhibits (default: 0)")
        option(
            "--out", type=Path, metavar="DIR",
            help=f"where the run folders are (default: {PAPERS_ROOT}, or runs/sweeps/NAME of a sweep file)",
        )  # fmt: skip
        option(
            "--count", type=int, metavar="N", help="of a sweep file: the first N points (random and bayes need it, or run_cap)"
        )
        option("--search-seed", type=int, metavar="N", help="of a sweep file: seed of random and bayes (default: 0)")
    option = run.add_argument
    option(
        "--devices", type=_devices, metavar="N",
        help="of exhibits: GPUs of each run, or all of this machine (default: as many as the run's estimate says; on a processor "
        "processes, default 1). The global batch stays, and so do the numbers",
    )  # fmt: skip
    option("--jobs", type=int, metavar="N", help="runs at once (default: one a GPU; on a processor one)")
    option("--dry-run", action="store_true", help="print what would run, in order, and what it costs; start nothing")
    option("--retry-failed", action="store_true", help="start again what failed")
    group = run.add_argument_group("submitting to Slurm")
    group.add_argument("--submit", choices=("slurm",), help="instead of running here")
    group.add_argument("--slurm", type=Path, metavar="FILE.yaml", help="the options below, without `slurm.`; they win over it")
    add_fields(group, SlurmOptions, _SLURM)


def _add_rehearse_options(rehearse: Parser) -> None:
    rehearse.add_argument("target", metavar="TARGET", help="an exhibit, run, paper, or all")
    option = rehearse.add_argument
    option("--scale", choices=SCALES, default="full", help="of the runs")
    option("--out", type=Path, metavar="DIR", help=f"where the runs will be (default: {PAPERS_ROOT}); rehearsals go into it")
    option("--devices", type=_devices, metavar="N", help="GPUs of each run, as of run")
    option("--on", metavar="8xA100", help="the machine that runs are meant for, all of it or --devices: hours and memory there")
    option(
        "--steps", type=_whole, metavar="N", help="optimizer steps (default: 3, on a GPU 24: more than data workers have ready)"
    )
    option("--items", type=_whole, default=10, metavar="N", help="images of each validation and test")
    option(
        "--batch", type=_whole, metavar="N",
        help="samples of a batch, where the real one takes too long on a processor; accumulation is then 2. What that takes is "
        "computed back, and said",
    )  # fmt: skip
    option("--processes", type=_devices, default=1, metavar="N", help="on a processor: processes of each run (DDP)")
    option(
        "--set", action="append", default=[], metavar="OPTION=VALUE",
        help="change an option of every run that has it, such as data.init_args.ranking.candidates=31; said in the table",
    )  # fmt: skip
    option(
        "--stand-in", type=Path, metavar="DIR",
        help="of full scale: on data and weights of random contents in the official layouts, all of them, which are made in DIR "
        "unless they are there (`crosslight data stand-in`)",
    )  # fmt: skip
    option("--max-disk", type=float, default=20.0, metavar="GB", help="of --stand-in: at most so much more in DIR")
    option("--keep", action="store_true", help="keep the run folders and logs (DIR/rehearsal)")
    option("--json", action="store_true", help="print what was found as JSON, in place of the table")


def _rehearse(options: argparse.Namespace) -> int:
    import json
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from experiments.rehearsal.changes import Settings
    from experiments.rehearsal.devices import machine_of
    from experiments.rehearsal.life import Place
    from experiments.rehearsal.rehearse import SCRATCH, rehearse
    from experiments.rehearsal.show import COLUMNS, faults, limits, line, missing, nobodys, row, too_many, totals
    from experiments.runs.rehearsed import FILE
    from experiments.sweep.display import plain
    from experiments.sweep.points import sweep_file
    from experiments.sweep.processes import visible_gpus
    from experiments.sweep.targets import exhibit_launches, on_devices

    if sweep_file(options.target) is not None:
        raise InputError(
            f"rehearse is of exhibits, runs and papers, and {options.target} is a sweep file: start its first point."
        )
    if "all" in (options.processes, options.devices):
        raise InputError("--devices and --processes of rehearse are numbers.")
    if options.batch is not None and options.batch % options.processes:
        raise InputError(f"--batch {options.batch} does not divide among {options.processes} processes.")
    if wrong := next((word for word in options.set if "=" not in word), None):
        raise InputError(f"--set {wrong}: give OPTION=VALUE, such as data.init_args.ranking.candidates=31.")
    on = None if options.on is None else machine_of(options.on, options.devices)
    console = Console(width=None if sys.stdout.isatty() else 200, stderr=options.json)
    if options.stand_in is not None:
        _make_stand_ins(options, lambda text: console.print(plain(f"stand-in: {text}"), soft_wrap=True, style="dim"))
    root = (options.out or PAPERS_ROOT).absolute()
    scratch = root / SCRATCH
    launches = exhibit_launches(options.target, options.scale, [0], scratch)
    if not launches:
        raise InputError(f"{options.target} has no run at scale {options.scale}.")
    if options.devices is not None:
        launches = on_devices(launches, options.devices)
    gpus = len(visible_gpus()) if any(launch.gpus for launch in launches) else 0
    on_processor = not any(launch.gpus for launch in launches)
    processes = options.devices if on_processor and options.devices is not None else options.processes
    words = tuple(f"--{word.removeprefix('--')}" for word in options.set)
    settings = Settings(
        options.steps or (24 if gpus else 3),
        options.items,
        options.batch,
        processes,
        words,
        gpus,
        options.stand_in is not None,
        options.devices,
    )
    place = Place(root, scratch, settings, on)
    numbers = {launch.key: number for number, launch in enumerate(launches, 1)}

    def say(launch: Launch, record: Rehearsed, verdict: Verdict | None) -> None:
        place = f"[{numbers[launch.key]}/{len(launches)}] {launch.title}"
        if verdict is None:
            console.print(plain(f"{place}: {row(launch, record, on)[1]}"), soft_wrap=True)
        else:
            console.print(
                plain(f"{place}: {line(verdict)}"), soft_wrap=True, style="red" if verdict.outcome == "failed" else "dim"
            )

    found = rehearse(launches, place, say, keep=options.keep)
    unknown = nobodys(words, list(found.values()))
    for word in unknown:
        console.print(plain(f"{word}: no run of {options.target} has this option"), soft_wrap=True, style="red")
    if options.json:
        print(json.dumps({key: asdict(record) for key, record in found.items()}, indent=1))
        return int(bool(unknown) or any(record.faults for record in found.values()))
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in COLUMNS:
        table.add_column(column, overflow="fold")
    for launch in launches:
        table.add_row(*map(plain, row(launch, found[launch.key], on)))
    console.print(table)
    for fault in faults(launches, found):
        console.print(plain(fault), soft_wrap=True, style="red")
    for lack in missing(launches, found):
        console.print(plain(lack), soft_wrap=True, style="yellow")
    for text in (f"{totals(list(found.values()))} ({root / FILE})", limits(place, launches)):
        if text:
            console.print(plain(text), soft_wrap=True)
    if (crowded := too_many(place, exhibit_launches(options.target, options.scale, [0], root), found)) is not None:
        console.print(plain(crowded), soft_wrap=True, style="red")
    return int(bool(unknown or crowded) or any(record.faults for record in found.values()))


def _make_stand_ins(options: argparse.Namespace, tell: Callable[[str], None]) -> None:
    """From here on this process and those that it starts read stand-ins."""
    from experiments.papers.reads import reads_of, recipes_of
    from experiments.papers.stand_ins import environment_of, write_stand_ins

    if options.scale != "full":
        raise InputError(f"--stand-in is of full scale; what the {options.scale} one reads is here, or is made in seconds.")
    os.environ |= environment_of(options.stand_in)  # before transformers is imported
    write_stand_ins(reads_of(recipes_of(options.target)), options.stand_in, max_disk_gb=options.max_disk, tell=tell)


def _add_plan_options(plan: Parser) -> None:
    plan.add_argument("target", metavar="TARGET", help="an exhibit, paper, or all")
    option = plan.add_argument
    option("--scale", choices=SCALES, default="miniature", help="of the runs that are planned")
    option("--from-scale", choices=SCALES, metavar="SCALE", help="of the runs that it is planned from (default: the same)")
    option(
        "--runs",
        nargs="+",
        type=Path,
        metavar="DIR",
        help=f"where `crosslight sweep run` wrote to, or records (default: {PAPERS_ROOT})",
    )
    option("--seeds", type=_whole, default=10, metavar="N", help="at most")
    option("--json", action="store_true", help="print it as JSON")


def _plan(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from experiments.papers.catalogue import exhibit_names
    from experiments.papers.places import paper_folders
    from experiments.report.power_plan import COLUMNS, hours_words, images_words, plan_exhibits, reasons, rows, to_json
    from experiments.runs.records import opened
    from experiments.runs.store import RunFolders
    from experiments.sweep.display import plain

    names = [name for name in exhibit_names() if options.target in ("all", name, name.partition("/")[0])]
    if not names:
        known = f"Exhibits: {', '.join(exhibit_names())}; papers: {', '.join(paper_folders())}, all."
        raise InputError(f"there is no exhibit or paper {options.target!r}. {known}")
    source: Scale = options.from_scale or options.scale
    roots = options.runs if options.runs is not None else [PAPERS_ROOT] if PAPERS_ROOT.is_dir() else []
    with opened(roots) as folders:
        plans = plan_exhibits(names, RunFolders(folders), options.scale, source, options.seeds)
    if not plans:
        raise InputError(f"{options.target} has no claim that is tested: there is nothing to settle.")
    if not any(plan.claims for plan in plans):
        where = " ".join(map(str, roots)) or PAPERS_ROOT
        raise InputError(f"{where}: no finished run of {options.target} at {source} scale to plan from. {plans[0].command}")
    if options.json:
        print(to_json(plans, options.scale, source, options.seeds))
        return 0
    console = Console(width=None if sys.stdout.isatty() else 200)
    for plan in plans:
        if not plan.claims:
            console.print(plain(f"{plan.name}: no finished run at {source} scale: {plan.command}\n"), soft_wrap=True)
            continue
        taken = "" if source == options.scale else f", differences and variances taken over from {source} scale"
        console.print(plain(f"{plan.name}, {options.scale} scale{taken}"), soft_wrap=True)
        table = Table(box=None, padding=(0, 2, 0, 0))
        for column in COLUMNS:
            table.add_column(column, overflow="fold")
        for row in (planned := rows(plan)):
            table.add_row(*map(plain, row))
        if planned:
            console.print(table)
        settling = [] if plan.total is None else [f"with the images that there are: {plan.command}: {hours_words(plan.total)}"]
        for line in (images_words(plan, options.scale, source), *reasons(plan), *settling):
            console.print(plain(line), soft_wrap=True, end="\n" if line else "")
        console.print()
    return 0


def run(options: argparse.Namespace) -> int:
    if options.action == "plan":
        return _plan(options)
    if options.action == "rehearse":
        return _rehearse(options)
    from rich.console import Console

    from experiments.papers.catalogue import exhibit_names, read_exhibit
    from experiments.papers.inputs import require_inputs
    from experiments.sweep.outcomes import known_state
    from experiments.sweep.points import Search, sweep_file
    from experiments.sweep.request import Request
    from experiments.sweep.runner import Runner
    from experiments.sweep.status import status_of_folder, without_running
    from experiments.sweep.sweep_file import read_sweep
    from experiments.sweep.targets import exhibit_launches, on_devices

    shared = {name: getattr(options, name) for name in ("action", "target", "out", "count", "search_seed")}
    if options.action == "run":
        shared |= {name: getattr(options, name) for name in ("jobs", "dry_run", "retry_failed")} | {"submit": _submit(options)}
    request = Request(**shared)
    console = Console(width=None if sys.stdout.isatty() else 160)
    file = sweep_file(request.target)
    if file is not None:
        refuse_given(options, ["scale", "seeds"], f"is of exhibits; a sweep file says itself what it sweeps over ({file}).")
        if getattr(options, "devices", None) is not None:
            raise InputError(f"--devices is of exhibits; the command of {file} says it itself: --trainer.devices=N.")
        return Search(read_sweep(file), request).act(console)
    refuse_given(options, ["count", "search_seed"], f"is of sweep files, and {request.target} is none.")
    if request.action == "status" and Path(request.target).is_dir():
        refuse_given(
            options, ["scale", "seeds", "out"], f"is of exhibits; status {request.target} shows all runs of that folder."
        )
        return status_of_folder(console, Path(request.target))
    root = (request.out or PAPERS_ROOT).absolute()
    scale: Scale = options.scale or "miniature"
    launches = exhibit_launches(request.target, scale, options.seeds or [0], root)
    if not launches:
        if request.target in exhibit_names() and not read_exhibit(request.target).variants:
            raise InputError(f"{request.target} is a formula and needs no run: `crosslight report {request.target}` draws it.")
        raise InputError(f"{request.target} has no run at scale {scale}.")
    if getattr(options, "devices", None) is not None:
        if request.submit is not None and request.submit.gpus_per_node is not None:
            raise InputError("--devices and --slurm.gpus_per_node say the same: give one of them.")
        if request.submit is not None and options.devices == "all":
            raise InputError("--devices all is of this machine's GPUs; of a cluster's give a number, or --slurm.gpus_per_node.")
        launches = on_devices(launches, options.devices)
    if request.starts:
        require_inputs(name for launch in launches if known_state(launch)[0] != "finished" for name in launch.reads)
    if not request.starts or request.submit is not None:
        return without_running(console, launches, root, request)
    return Runner(launches, root, jobs=request.jobs, retry_failed=request.retry_failed).run()


def _whole(text: str) -> int:
    """A number from 2."""
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 2")
    return int(text)


def _devices(text: str) -> int | Literal["all"]:
    """A number from 1, or all."""
    if text == "all":
        return "all"
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number from 1 nor all")
    return int(text)


def _submit(options: argparse.Namespace) -> SlurmOptions | None:
    """What to submit with; None: not to be submitted.

    Raises:
        InputError: Options of one way with the other, or a file that holds other ones.
    """
    given = given_fields(options, SlurmOptions, _SLURM)
    if options.submit is None:
        names = [*(["--slurm"] if options.slurm else []), *(f"{_SLURM}{name}={value}" for name, value in given.items())]
        if names:
            raise InputError(f"{names[0]} is of jobs: add --submit slurm.")
        return None
    if options.jobs is not None:
        raise InputError("--jobs is of this machine; --slurm.at_once says how many elements of an array run at once.")
    from datamodules.formats.typed import read_typed
    from experiments.papers.strict_yaml import read_yaml

    base = SlurmOptions() if options.slurm is None else read_typed(SlurmOptions, read_yaml(options.slurm), str(options.slurm))
    return replace(base, **given)
