"""The sub-commands that do not train: a function each, named like it, from its arguments to the exit status."""

from __future__ import annotations

from pathlib import Path

from experiments.cli.parser import Parser


def table(arguments: list[str]) -> int:
    from experiments.report.table import find_runs, markdown, rows, to_csv

    parser = Parser("table")
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--data")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args(arguments)
    lines = rows(find_runs(options.runs), options.data)
    text = markdown(lines)
    print(text, end="")
    if options.out is not None:
        options.out.write_text(text)
    if options.csv is not None:
        options.csv.write_text(to_csv(lines))
    return 0


def report(arguments: list[str]) -> int:
    from experiments.cli.report import main

    return main(arguments)


def correlate(arguments: list[str]) -> int:
    from experiments.report.correlation import report
    from experiments.runs.metrics_csv import ISDA, META_SUM

    parser = Parser("correlate")
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--x", default=ISDA)
    parser.add_argument("--y", default=META_SUM)
    options = parser.parse_args(arguments)
    print("\n".join(report(options.runs, options.x, options.y)))
    return 0


def params(arguments: list[str]) -> int:
    from experiments.parity.params import main

    return main(arguments)


def captions(arguments: list[str]) -> int:
    from experiments.analysis.retrieved import draw_captions

    parser = Parser("captions")
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data")
    parser.add_argument("--images", type=int, default=8)
    options = parser.parse_args(arguments)
    print(draw_captions(options.runs, options.out, options.data, options.images))
    return 0


def caption(arguments: list[str]) -> int:
    from experiments.cli.caption import main

    return main(arguments)


def score(arguments: list[str]) -> int:
    from experiments.cli.score import main

    return main(arguments)


def export(arguments: list[str]) -> int:
    import yaml

    import lightning_modules
    from experiments.training.quiet import quiet
    from lightning_modules.checkpoints.adapter_export import export_adapter

    parser = Parser("export")
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    quiet()
    model = lightning_modules.load(options.run)
    config = yaml.safe_load((options.run / "config.yaml").read_text())
    backbone = {"model": config["model"], "seed": config["seed_everything"]}
    export_adapter(model.network, model.adapter, options.folder, backbone=backbone)
    size = sum(file.stat().st_size for file in options.folder.iterdir())
    print(f"{options.folder}: {size / 2**20:.2f} MiB")
    return 0


def sweep(arguments: list[str]) -> int:
    from experiments.cli.sweep import main

    return main(arguments)
