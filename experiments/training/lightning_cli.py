"""`crosslight fit|validate|test|predict|run`: LightningCLI with its pitfalls closed.

What differs from the stock LightningCLI, and why:

- no abbreviations: `--trainer.max_epoch` must not silently become `max_epochs`;
- a checkpoint never overrides the command line: the stock CLI lets the hyperparameters inside `--ckpt_path` win;
- mistakes print a few lines that name the option and its closest match instead of the whole usage;
- one run, one folder (`experiments/runs/folder.py`), opened before anything is built;
- checkpoints, cost, progress and loggers are always there: they are what makes a folder a run.
"""

from __future__ import annotations

import dataclasses
import enum
import gc
import logging
import os
import re
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, Namespace, get_loader, set_dumper, set_loader
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

import lightning_modules.callbacks.cost
import lightning_modules.retrieval
from datamodules.errors import AgreedError, InputError, chain, find_input_error
from datamodules.files.references import conceal, look_up, variable
from datamodules.loading.order import require_divided
from experiments.runs.folder import RunFolder
from experiments.runs.provenance import is_rehearsal, provenance, reads_stand_ins
from experiments.runs.results import RunScale
from experiments.training import last_words, preemption
from experiments.training.batch_norms import SyncBatchNorms, require_synchronized
from experiments.training.checkpoints import Best, Checkpoints, ResumePoint, WholeCheckpoints
from experiments.training.failures import inner_cause, is_disk_full, refused
from experiments.training.given import all_given, as_written, holder, leaves, replaced_lists
from experiments.training.loggers import MetricsCSV, make_wandb
from experiments.training.loops import EvaluationLoop, FitLoop
from experiments.training.monitors import Waiting, require_logged
from experiments.training.parse_errors import explain, explain_interpolation
from experiments.training.progress import Bar, Progress, on_a_terminal
from experiments.training.ranges import require_values
from experiments.training.starts import RUN_FOLDER_VARIABLE, Start, find_start
from experiments.training.strategies import make_patient, require_supported
from experiments.training.trainer import ONE_PROCESS, Trainer, data_name, describe_data, tell_notes, trains
from experiments.training.trainer_options import require_trainer
from experiments.training.weight_callbacks import refuse_unsound, with_own_ema
from lightning_modules.base import TunedModule
from lightning_modules.checkpoints.fill import fill_inside
from lightning_modules.checkpoints.fresh import require_started

log = logging.getLogger("crosslight")

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's, many times faster, where PyYAML was built with it
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_VARIABLE = re.compile(r"\$\{oc\.env:(\w+)(?:,([\w./-]*))?\}")  # with a default that needs no quoting
_CONFIG_SECTIONS = ("seed_everything", "name", "scale", "model", "data", "evaluate", "trainer", "checkpoint", "wandb")


@dataclass
class WandB:
    """Weights & Biases, offline unless logged in (`WANDB_MODE` wins).

    Args:
        enabled: Write a W&B run beside metrics.csv.
        project: W&B project.
        group: W&B group, for example a table of a paper.
        tags: W&B tags.
    """

    enabled: bool = True
    project: str = "crosslight"
    group: str | None = None
    tags: list[str] = dataclasses.field(default_factory=list)


class Parser(LightningArgumentParser):
    """The parser of a command line, and those that jsonargparse makes like it for the classes that are configured."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"allow_abbrev": False, **options})

    def parse_args(self, args: Any = None, *arguments: Any, **options: Any) -> Any:
        # An option of a class inside a class is handed on as text again, and null arrives as str(None).
        if args is not None and getattr(self, "_inner_parser", False):
            args = [f"{each.removesuffix('None')}null" if each.endswith("=None") else each for each in args]
        return super().parse_args(args, *arguments, **options)


class CrosslightCLI(LightningCLI):
    """The command line of everything that trains or evaluates. See the module's docstring."""

    trainer: Trainer
    opened: RunFolder | None = None  # the folder of the run being made, for whoever has to settle it after a failure

    def __init__(self, args: list[str]) -> None:
        set_loader("omegaconf+", _from_yaml, (yaml.YAMLError,))
        set_dumper("yaml", _as_yaml)
        OmegaConf.register_resolver("envvar", variable, replace=True)
        self.arguments = args
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            trainer_class=Trainer,
            parser_class=Parser,
            trainer_defaults={"use_distributed_sampler": False, "enable_model_summary": False},
            seed_everything_default=0,
            save_config_callback=None,
            auto_configure_optimizers=False,
            args=[look_up(word) for word in args],
        )

    # ------------------------------------------------------------------------------------------------ parsing

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        kwargs.setdefault("parser_mode", "omegaconf+")
        kwargs.setdefault("exit_on_error", False)  # the stock parser prints the usage of every option first
        return super().init_parser(**kwargs)

    def subcommands(self) -> dict[str, set[str]]:
        # options of Lightning's that are settled here (weights are never unpickled, results go to the run folder)
        settled = {"weights_only", "verbose", "return_predictions"}
        stock = {name: skipped | settled for name, skipped in LightningCLI.subcommands().items()}
        every = {**stock, "run": {"model", "datamodule", "evaluate"}}
        return {self.arguments[0]: every[self.arguments[0]]}  # a parser of each of the others would cost as much as the parsing

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--name", type=str, default="run", help="What the run is called; runs/<name>/... by default.")
        parser.add_argument("--run_dir", type=str | None, default=None, help="The run's folder. An interrupted run resumes.")
        parser.add_argument(
            "--scale",
            type=RunScale | None,
            default=None,
            help="Printed beside every number. Default: miniature on the embedded world, else reduced.",
        )
        parser.add_argument(
            "--parent", type=str | None, default=None, help="Run this one starts from (default: model's init_from)."
        )
        parser.add_argument(
            "--evaluate",
            type=dict[str, LightningDataModule] | None,
            default=None,
            help="More data modules to test on, by name (`run` and `test`): zero-shot transfer.",
        )
        if self.arguments[0] == "predict":
            parser.add_argument("--split", type=str, default="test", help="Whose images and captions are embedded.")
        parser.add_argument("--checkpoint", type=Checkpoints, default=Checkpoints())
        parser.add_argument("--wandb", type=WandB, default=WandB())

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        if odd := next((word for word in self.arguments if not _is_text(word)), None):
            raise InputError(f"{odd!r} holds characters that are not UTF-8: write it without them.")
        command, *words = args
        # By the command's own parser: the one above it would fill in and check everything again.
        try:
            parsed = self._subcommand_parsers[command].parse_args(words)
        except ArgumentError as error:
            raise InputError(explain(str(error), parser, self.arguments)) from None
        except OmegaConfBaseException as error:
            raise InputError(explain_interpolation(error, self.arguments)) from None
        except Exception as error:  # of a class of the user's own, which is imported here, or of its signature
            raise find_input_error(error) or refused("the configuration cannot be read", error) from error
        self.config = Namespace(subcommand=command, **{command: parsed})
        self.given = list(all_given(self.arguments))
        trainer = self.config[self.arguments[0]].trainer
        as_written(trainer, Trainer, self.given)
        trainer.callbacks = with_own_ema(_without_enums(trainer.callbacks))
        if self.arguments[0] in ("fit", "run"):
            refuse_unsound(trainer.callbacks)
        for note in replaced_lists(self.given):
            log.warning("%s", note)

    def _set_seed(self) -> None:
        command = str(self.subcommand)
        self.saved_config = self._plain_config(command)
        require_values(command, {**self.saved_config, "run_dir": self.config[command].run_dir})
        super()._set_seed()

    def _parse_ckpt_path(self) -> None:
        """Nothing: the command line and its files are the configuration, whatever a checkpoint remembers."""

    # ----------------------------------------------------------------------------------------------- building

    def before_instantiate_classes(self) -> None:
        """Everything that can be refused without a model, then the run's folder."""
        command = str(self.subcommand)
        config = self.config[command]
        self.start = find_start()
        self.parts = self._instantiated("trainer")
        options = vars(self.parts["trainer"])
        require_supported(options["strategy"], options["plugins"])
        devices, nodes = require_trainer(options), options["num_nodes"]
        self.start.require(devices, nodes)
        if command == "predict" and devices * nodes > 1:
            raise AgreedError(ONE_PROCESS)
        self.run_folder = _open_run_folder(config.run_dir, config.name, command, self.saved_config, self.start)
        CrosslightCLI.opened = self.run_folder

    def _plain_config(self, command: str) -> dict[str, Any]:
        text = self._subcommand_parsers[command].dump(self.config[command], skip_none=False, skip_validation=True)
        whole = yaml.load(text, _LOADER)
        as_written(whole["trainer"], Trainer, self.given)  # the dump tries the kinds of a union again
        for name, value in leaves(whole):
            if isinstance(value, str) and value.startswith("Unable to serialize instance"):
                raise InputError(
                    f"{name} is by default an object ({value.rpartition(' ')[2]}) that config.yaml cannot hold, so the run could "
                    f"not be resumed. Give --{name} yourself, for example null."
                )
        self.config_dump = whole  # for hyperparameters; Lightning would dump it all once more
        return {key: conceal(whole.get(key)) for key in _CONFIG_SECTIONS}

    def instantiate_classes(self) -> None:
        """As Lightning, but the Trainer before the model: a mistake in its options does not wait for weights.

        Raises:
            InputError: A class refuses what it is given, or training would wait for a metric that the model does not log.
        """
        command = str(self.subcommand)
        self.config_init = {command: {"trainer": {**vars(self.parts["trainer"]), "default_root_dir": str(self.run_folder.path)}}}
        try:
            self.trainer = self.instantiate_trainer()
        except Exception as error:
            raise find_input_error(error) or refused("the Trainer refuses its options", error) from error
        self.config_init = {command: self._instantiated("model", "data", "evaluate")}
        self.datamodule = self._get(self.config_init, "data")
        self.model = self._get(self.config_init, "model")
        if not isinstance(self.model, TunedModule):  # which has done both itself
            fill_inside(self.model)
            if command in ("fit", "run") and self.config[command].ckpt_path is None:  # else that may bring what is random
                require_started(self.model, None)
        if command in ("fit", "run"):
            if isinstance(size := getattr(self.datamodule, "batch_size", None), int):
                require_divided(size, self.trainer.world_size)
            require_logged(self.trainer, self.model)
            require_synchronized(self.trainer, self.model)
            self.trainer.watch(self.model)

    def _instantiated(self, *sections: str) -> dict[str, Any]:
        """The objects of some sections of the configuration.

        Raises:
            InputError: A class refuses what it is given.
        """
        command = str(self.subcommand)
        config = self.config.clone()
        for key in list(vars(config[command])):
            if key not in sections:
                del config[command][key]
        try:
            return vars(self.parser.instantiate_classes(config)[command])
        except Exception as error:
            if (known := find_input_error(error)) is not None:
                raise known from error
            raise refused(_culprit(error, self.arguments) or " or ".join(sections), error) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self.config[str(self.subcommand)]
        trainer_config = self._get(self.config_init, "trainer")
        self.cost = lightning_modules.callbacks.cost.CostMonitor()
        given = trainer_config.get("callbacks") or []
        callbacks: list[Callback] = [*(given if isinstance(given, list) else [given]), self.cost]
        point = None
        if self.subcommand in ("fit", "run"):
            options, agreement = config.checkpoint, preemption.Agreement() if preemption.listening() else None
            point = ResumePoint(self.run_folder.path, self.saved_config, options.every_n_steps, agreement)
            # Before all others: what cannot end well is refused, and a resumed run's files and metrics are where they were.
            callbacks = [Waiting(), point, *callbacks, Best(self.run_folder.checkpoints, options.monitor, options.mode)]
            if trainer_config.get("logger") is not False:
                callbacks.append(LearningRateMonitor("step"))
        bars = trainer_config.get("enable_progress_bar") is not False
        if bars and not any(isinstance(callback, ProgressBar) for callback in callbacks):
            if on_a_terminal():
                callbacks.append(Bar(config.checkpoint.monitor))
            else:  # Lightning would add one of its own
                kwargs["enable_progress_bar"] = False
        callbacks.append(Progress(config.checkpoint.monitor, lines=bars and not on_a_terminal()))
        trainer = super().instantiate_trainer(callbacks=callbacks, logger=self._loggers(trainer_config.get("logger")), **kwargs)
        assert isinstance(trainer, Trainer)
        trainer.run_folder = self.run_folder
        trainer.strategy.checkpoint_io = WholeCheckpoints()
        make_patient(trainer.strategy)
        if trainer_config.get("sync_batchnorm"):
            trainer.strategy._layer_sync = SyncBatchNorms()
        trainer.validate_loop, trainer.test_loop = EvaluationLoop(trainer.validate_loop), EvaluationLoop(trainer.test_loop)
        if point is not None:
            trainer.fit_loop = FitLoop(trainer, point)
        if preemption.listening():  # Lightning's handlers would save and broadcast from wherever each rank is
            trainer._signal_connector.register_signal_handlers = lambda: None
        return trainer

    def _loggers(self, given: Any) -> list[Logger] | bool:
        if given is False:
            return False
        loggers: list[Logger] = [MetricsCSV(self.run_folder.path)]
        options = self.config[str(self.subcommand)].wandb
        if options.enabled:
            name = self.config[str(self.subcommand)].name
            loggers.append(
                make_wandb(
                    self.run_folder.path, project=options.project, name=name, group=options.group, tags=list(options.tags),
                    run_id=self.run_folder.results.wandb_id,
                )
            )  # fmt: skip
        if isinstance(given, Logger):
            loggers.append(given)
        elif isinstance(given, list):
            loggers += given
        return loggers

    # ------------------------------------------------------------------------------------------------ running

    def _run_subcommand(self, subcommand: str) -> None:
        gc.enable()  # see train_or_evaluate
        config = self.config[subcommand]
        method = {k: v for k, v in config.items() if k in self._subcommand_method_arguments[subcommand]}
        evaluate = self._get(self.config_init, "evaluate") or {}
        folder, trainer = self.run_folder, self.trainer
        init_from = getattr(self.model, "init_from", None)
        stand_in = reads_stand_ins({**self.saved_config, "ckpt_path": method.get("ckpt_path")})
        if is_rehearsal():
            folder.mark("a rehearsal, of a few steps and images: none of its numbers is a result")
        elif stand_in:
            folder.mark("a run on stand-ins: none of its numbers is a result")
        folder.update(
            argv=tuple(self.arguments),
            scale=config.scale or _default_scale(self.saved_config),
            parent=config.parent or init_from,
            seed=config.seed_everything,
            provenance=provenance(trainer.strategy.root_device.type, str(trainer.precision), trainer.world_size, stand_in),
        )
        if self.start.outside:  # the others are there already: they wait for the first one where nothing times out
            trainer.strategy.setup_environment()
        trainer.by_first(self._describe_data)
        for logger in trainer.loggers:
            logger.log_hyperparams(self.saved_config)
        if subcommand == "run":
            trainer.run(self.model, self.datamodule, evaluate, method.get("ckpt_path"))
        elif subcommand == "fit":
            trainer.fit_or_resume(self.model, self.datamodule, method.get("ckpt_path"))
        elif subcommand == "test":
            trainer.test_all(self.model, {data_name(self.datamodule): self.datamodule, **evaluate}, method.get("ckpt_path"))
        elif subcommand == "validate":
            trainer.validate_one(self.model, self.datamodule, method.get("ckpt_path"))
        else:
            trainer.write_embeddings(self.model, self.datamodule, method.get("ckpt_path"), config.split)
        folder.update(cost=self.cost.summary())

    def _describe_data(self) -> None:
        """See that the data are there, and note what they are; it may take long (a download, the content of each photograph)."""
        self.datamodule.prepare_data()  # a download comes before the description of what was downloaded
        name, description = data_name(self.datamodule), describe_data(self.datamodule)
        self.run_folder.describe(name, description)
        tell_notes(name, description)
        asked = self.config[str(self.subcommand)].trainer
        endless = asked.max_epochs is None and asked.max_steps == -1 and asked.max_time is None
        if self.subcommand in ("fit", "run") and endless and trains(self.model):
            print("crosslight: trainer.max_epochs is not set: at most Lightning's 1,000 epochs.", file=sys.stderr)


class ParsedCLI(CrosslightCLI):
    """Parses a command line and stops there: no seed, no folder, nothing built. `plain` is what config.yaml would hold."""

    plain: dict[str, Any]

    def _set_seed(self) -> None:
        pass

    def before_instantiate_classes(self) -> None:
        self.plain = self._plain_config(str(self.subcommand))

    def instantiate_classes(self) -> None:
        pass

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def _from_yaml(text: str) -> Any:
    """As jsonargparse reads it, with the environment variables that it names in the plain way. A configuration that is left
    without interpolations is spared OmegaConf, for which jsonargparse would write and read the whole of it once more."""
    return _with_variables(get_loader("yaml")(text))


def _with_variables(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _with_variables(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_with_variables(value) for value in content]
    return _VARIABLE.sub(_value, content) if isinstance(content, str) else content


def _value(found: re.Match[str]) -> str:
    value = os.environ.get(found[1], found[2])
    return found[0] if value is None or "${" in value else value  # which OmegaConf says, or looks into


def _as_yaml(data: Any) -> str:
    """As jsonargparse writes it."""
    return yaml.dump(data, Dumper=_DUMPER, default_flow_style=False, allow_unicode=True, sort_keys=False)


def _is_text(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:  # a byte that Python could not decode
        return False
    return True


def _culprit(error: BaseException, arguments: list[str]) -> str | None:
    """The class that raised it while it was built, and the option that names it; None where none of the options does."""
    given = list(all_given(arguments))
    named = None
    if (cause := inner_cause(str(error))) is not None:
        place = holder(cause[0], given)
        return f"{place[0]} ({place[1]}): {cause[0]}" if place else cause[0]
    for each in chain(error):
        for frame, _ in traceback.walk_tb(each.__traceback__):
            owner = type(frame.f_locals.get("self"))
            for name in (f"{owner.__module__}.{owner.__qualname__}", owner.__qualname__):
                if (place := holder(name, given)) is not None:
                    named = f"{place[0]} ({place[1]}): {name}"
    return named


def _without_enums(value: Any) -> Any:
    """A parsed value with words for members of enumerations, such as the default of Timer's `interval`: no YAML holds those."""
    if isinstance(value, list):
        return [_without_enums(inner) for inner in value]
    if isinstance(value, Namespace):
        for key, inner in vars(value).items():
            setattr(value, key, _without_enums(inner))
    return value.value if isinstance(value, enum.Enum) else value


def _default_scale(config: dict[str, Any]) -> RunScale:
    root = ((config.get("data") or {}).get("init_args") or {}).get("root")
    inside_world = root is not None and any((folder / "world.json").exists() for folder in (Path(root), *Path(root).parents))
    return "miniature" if inside_world else "reduced"


def _open_run_folder(path: str | None, name: str, command: str, config: dict[str, Any], start: Start) -> RunFolder:
    """Open on rank 0 and attach on the others; ranks launched by us learn the folder from the environment."""
    if start.by == "crosslight":
        return RunFolder.attach(os.environ[RUN_FOLDER_VARIABLE], name=name, command=command, config=config)
    if start.outside:
        if path is None:
            raise AgreedError(
                f"{start.processes} processes were started from outside (torchrun or srun), so they need a folder to agree on: "
                "give --run_dir."
            )
        if start.rank > 0:
            return RunFolder.attach(Path(path).resolve(), name=name, command=command, config=config)
    try:
        folder = RunFolder.open(path, name=name, command=command, config=config)
    except OSError as error:
        if is_disk_full(error):
            raise
        where = f"--run_dir {path}" if path is not None else f"the run's folder runs/{name}/..."
        raise InputError(f"{where} cannot be made or written ({error.strerror or error}). Give another --run_dir.") from error
    os.environ[RUN_FOLDER_VARIABLE] = str(folder.path)
    last_words.forget(folder.path)
    return folder
