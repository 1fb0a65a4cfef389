"""What run, fit, validate, test and predict share. Their options are jsonargparse's; what is here is the way to them."""

from __future__ import annotations

import argparse

from experiments.cli._parser import Parser

_OPTIONS = """\
options of every configuration:
  --run_dir DIR            the run's folder; an interrupted run of the same configuration resumes there
                           (default: a new one, runs/NAME/TIME-HASH)
  --name NAME              what the run is called
  --seed_everything N      seed of everything (default 0)
  --model.KEY, --data.KEY  the arguments of the classes that the YAMLs name, for example
                           --model.init_args.tuning=head  --data.init_args.batch_size=64
  --trainer.KEY            Lightning's Trainer, for example --trainer.max_epochs=2 --trainer.precision=bf16-mixed
  --checkpoint.KEY         monitor (val/rsum), mode, every_n_steps
  --wandb.KEY              enabled, project, group, tags (offline unless you are logged in)
  --model.help             what can be named there, with the packaged files; --data.help, --model.init_args.adapter.help,
                           --trainer.callbacks.help and so on likewise. After -c FILE: the arguments of the class that it names
  --model.help CLASS       arguments of a class
"""
EVALUATE = "  --evaluate.NAME=CLASS    a further data module to test on, with --evaluate.NAME.init_args.KEY\n"
CKPT_PATH = "  --ckpt_path FILE         checkpoint to take\n"
SPLIT = "  --split NAME             train, val, test or another of the data (default test)\n"
GO_ON = "  --ckpt_path FILE         last.ckpt of another run: its training goes on here\n"


def add_options(parser: Parser, more: str = "") -> None:
    """`more` are lines of options that not every command has."""
    from experiments.training.configs import packaged_configs

    parser.add_argument(
        "-c", "--config", action="append", default=[], metavar="FILE",
        help="a YAML; several merge, the last wins. Packaged ones (below) work from any folder",
    )  # fmt: skip
    parser.add_argument("--help-all", action="store_true", help="every option with its type and default (imports torch: seconds)")
    parser.keep_others("overrides")
    parser.usage = f"{parser.prog} -c FILE [-c FILE ...] [--key.subkey=value ...]"
    parser.epilog = f"{_OPTIONS}{more}\npackaged configurations:\n" + "\n".join(f"  {name}" for name in packaged_configs())


def run(command: str, options: argparse.Namespace) -> int:
    from experiments.training.command import run_alone

    files = [part for file in options.config for part in ("-c", file)]
    return run_alone(command, [*files, *options.overrides, *(["--help"] if options.help_all else [])])
