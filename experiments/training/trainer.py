"""Lightning's Trainer with one more verb: `run` = fit, take the best on validation, test it on any number of data modules."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn

from datamodules.errors import AgreedError, InputError, printable, some
from datamodules.files.atomic import whole_file
from datamodules.formats.typed import read_typed
from experiments.runs.folder import RunFolder
from experiments.runs.results import DataDescription, Evaluation, read_results
from experiments.training import preemption
from experiments.training.checkpoints import Best
from experiments.training.failures import one_line
from lightning_modules import collectives
from lightning_modules.base import TunedModule
from lightning_modules.callbacks.finite_loss import FiniteLoss, require_sound
from lightning_modules.callbacks.gradients import EveryParameterLearns
from lightning_modules.checkpoints.fresh import require_weights
from lightning_modules.checkpoints.run_folder import Fit
from lightning_modules.checkpoints.weights import misfits
from lightning_modules.loading import read_checkpoint

ONE_PROCESS = "predict writes one file from one process: set --trainer.devices=1."
DataModules = dict[str, pl.LightningDataModule]
_WATCHERS: tuple[type[Callback], ...] = (EveryParameterLearns, FiniteLoss)


class Trainer(pl.Trainer):
    """Lightning's Trainer, unchanged, plus `run` and the run folder that results go to."""

    run_folder: RunFolder
    evaluated_data: str | None = None  # its name: two modules of one data set do not share theirs (`evaluating` is Lightning's)
    trained_data: str | None = None
    trained_images: Mapping[str, str] = MappingProxyType({})  # by data set: how many images of its test are of the training too

    def watch(self, model: pl.LightningModule) -> None:
        """Have a module of one's own watched in training as ours are, which bring the same callbacks themselves. One that
        optimizes by hand is left alone: what a step of it owes to which parameter is its own affair."""
        if isinstance(model, TunedModule) or not model.automatic_optimization:
            return
        missing = [kind() for kind in _WATCHERS if not any(isinstance(callback, kind) for callback in self.callbacks)]
        kept = (at for at, callback in enumerate(self.callbacks) if isinstance(callback, Checkpoint))
        before = next(kept, len(self.callbacks))  # nothing is kept of what they refuse
        self.callbacks[before:before] = missing

    def save_checkpoint(self, filepath: Any, weights_only: bool | None = None, storage_options: Any = None) -> None:
        """As Lightning, which asks no callback where it saves weights alone, and so not the one that looks at them.

        Raises:
            InputError: Trained weights of a module of one's own are not finite.
        """
        module = self.lightning_module
        if weights_only and module.automatic_optimization and not isinstance(module, TunedModule):
            require_sound({name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad})
        super().save_checkpoint(filepath, weights_only, storage_options)

    def run(
        self,
        model: pl.LightningModule,
        datamodule: pl.LightningDataModule,
        evaluate: DataModules,
        ckpt_path: str | None = None,
    ) -> None:
        """Fit, pick the best checkpoint by validation, test it on the data's own test split and on each of `evaluate`.

        Where nothing trains (tuning frozen, or an adapter of mid dimension 0 beside heads that a checkpoint brought) the model is
        tested as it is: `fit` of the results then has a `skipped` with the reason, and no checkpoint.

        Args:
            model: Trained and tested.
            datamodule: What it is trained on, validated and tested.
            evaluate: What it is tested on besides.
            ckpt_path: The last.ckpt of another run: the training goes on from there, with its optimizer and schedule.

        Raises:
            InputError: A split that will be needed, or an image of it, is missing; before the training starts, not after it.
        """
        own = data_name(datamodule)
        if own in evaluate:
            raise InputError(f"--evaluate.{own} has the name of the run's own data. Give it another name: --evaluate.{own}_2=...")
        something_trains = trains(model)

        def look() -> None:
            require_data(model, "data", datamodule, ("train", "val", "test") if something_trains else ("test",))
            for name, other in evaluate.items():
                require_data(model, f"evaluate.{name}", other, ("test",))
            if something_trains:
                self.trained_images = tell_trained_images(datamodule, {own: datamodule, **evaluate})

        self.by_first(look)
        if something_trains:
            self.trained_data = own
            self.fit_or_resume(model, datamodule, ckpt_path)
        elif ckpt_path is not None:
            raise InputError(f"nothing trains in this model, so nothing goes on from {ckpt_path}: leave --ckpt_path out.")
        else:
            self.run_folder.update(fit=Fit(steps=0, epochs=0, skipped="nothing trains"))
        self.test_all(model, {own: datamodule, **evaluate}, str(self.best_checkpoint()) if something_trains else None)

    def fit_or_resume(self, model: pl.LightningModule, datamodule: pl.LightningDataModule, ckpt_path: str | None = None) -> None:
        """Fit from the beginning, or from the run folder's last checkpoint when an earlier attempt left one.

        Raises:
            InputError: Nothing trains.
        """
        if not trains(model):
            raise InputError(
                "nothing trains in this model (tuning frozen, or an adapter of size 0 beside heads that a checkpoint brought), "
                "so there is nothing to fit. Use `crosslight run` or `crosslight test` to test it as it is, or set "
                "--model.init_args.tuning or --model.init_args.train_heads=all."
            )
        last = collectives.told_by(self.run_folder.last_checkpoint)  # a network's file system may show it to some
        if last is not None:
            ckpt_path = str(last)
        self._require_sound(ckpt_path, resumes=True)
        begun_at = None if ckpt_path is None else str(Path(ckpt_path).resolve())
        # a resumed run keeps where its first attempt began; one that kept nothing begins anew
        if last is None and self.run_folder.results.resumed_from != begun_at:
            self.run_folder.update(resumed_from=begun_at)
        self.fit(model, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True)
        best = self._best
        score = None if best is None else best.best_model_score
        self.run_folder.update(
            fit=Fit(
                steps=self.global_step,
                epochs=self.current_epoch,
                monitor=None if best is None else best.monitor,
                best_value=None if score is None else float(score),
                best_checkpoint=None if best is None else self._relative(best.best_model_path),
            )
        )

    def by_first(self, work: Callable[[], None]) -> None:
        """What the first process does alone. The others wait for it, where they can hear of it: those that it starts come when it
        has done it.

        Raises:
            InputError: Work raises it; in all processes that wait.
        """
        if collectives.several():
            collectives.by_first(work)
        elif self.is_global_zero:
            work()

    @property
    def _best(self) -> Best | None:
        """What keeps the best checkpoint: Lightning's `checkpoint_callback` is the first one, which may be the user's own."""
        return next((callback for callback in self.callbacks if isinstance(callback, Best)), None)

    def best_checkpoint(self) -> Path:
        best = self._best
        if best is None or not best.best_model_path:
            raise InputError(
                "no best checkpoint to test: validation never ran. Let --trainer.max_epochs or max_steps reach one validation."
            )
        return Path(best.best_model_path)

    def test_all(self, model: pl.LightningModule, data: DataModules, ckpt_path: str | None) -> None:
        """Test on each data module, writing metrics and per-query ranks into the run folder; finished ones are skipped."""
        done = collectives.told_by(self._evaluated())
        left = {name: datamodule for name, datamodule in data.items() if name not in done}
        if left:
            self._require_evaluable(model, ckpt_path)  # once: it reads the whole checkpoint

            def look() -> None:
                for name, datamodule in left.items():
                    require_data(model, name, datamodule, ("test",))

            self.by_first(look)
        for name, datamodule in left.items():
            self._evaluate("test", model, name, datamodule, ckpt_path)

    def validate_one(self, model: pl.LightningModule, datamodule: pl.LightningDataModule, ckpt_path: str | None) -> None:
        self._require_evaluable(model, ckpt_path)
        self.by_first(lambda: require_data(model, "data", datamodule, ("val",)))
        self._evaluate("validate", model, data_name(datamodule), datamodule, ckpt_path)

    def write_embeddings(
        self, model: pl.LightningModule, datamodule: pl.LightningDataModule, ckpt_path: str | None, split: str = "test"
    ) -> None:
        """Embed a split into `embeddings.npz`: images [I, D] and texts [T, D] in the split's order, with their ids.

        Raises:
            InputError: More than one process, of which each would hold a part only; or the data has no such split.
        """
        if self.world_size > 1:
            raise AgreedError(ONE_PROCESS)
        if split != "test":
            if Path(split).is_dir():
                raise InputError(
                    f"--split {split} is a folder: `crosslight embed {split} --run RUN --out FILE` embeds any folder."
                )
            if not hasattr(datamodule, "predict_split"):
                kind = type(datamodule).__name__
                raise InputError(f"--split {split}: {kind} says by itself what is predicted (its predict_dataloader).")
            datamodule.predict_split = split
        require_splits(datamodule, (split,))
        self._require_evaluable(model, ckpt_path)
        parts = self.predict(model, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True)
        tell_unknown_words(datamodule, split)
        arrays: dict[str, Any] = {"split": np.array(getattr(datamodule, "split_label", str)(split))}
        for side, batches in zip(("image", "text"), parts or [], strict=True):
            order = np.concatenate([batch["index"].cpu().numpy() for batch in batches]).argsort()
            arrays[f"{side}_ids"] = np.array([name for batch in batches for name in batch["ids"]])[order]
            arrays[f"{side}s"] = np.concatenate([batch["embeddings"].float().cpu().numpy() for batch in batches])[order]
        with whole_file(self.run_folder.path / "embeddings.npz") as part:
            np.savez_compressed(part, **arrays)

    def _evaluate(
        self, verb: str, model: pl.LightningModule, name: str, datamodule: pl.LightningDataModule, ckpt_path: str | None
    ) -> None:
        self.evaluated_data = name
        act = self.test if verb == "test" else self.validate
        collectives.meet()  # the first has written the results of the last one, and their tables to W&B
        if preemption.listening() and any(collectives.told_objects(preemption.told() is not None)):
            raise preemption.Preempted(f"before the {verb} of {name}")
        with preemption.leaving_at_once(self.world_size == 1):
            act(model, datamodule=datamodule, ckpt_path=ckpt_path, verbose=False, weights_only=True)
        stage: Literal["val", "test"] = "test" if verb == "test" else "val"
        if not self.is_global_zero:
            return
        if name != self.trained_data or stage == "test":
            tell_unknown_words(datamodule, stage)
        found = evaluation_of(self, model, name, datamodule, stage, self.run_folder.path, f"per_query/{name}-{stage}.npz")
        found = replace(found, notes={**found.notes, **self._cut_captions(name, datamodule, stage)})
        if stage == "test" and name in self.trained_images:
            remarks = {**found.notes.get("remarks", {}), "images": self.trained_images[name]}
            found = replace(found, notes={**found.notes, "remarks": remarks})
        for logger in self.loggers:  # before the results say that it is done: a run killed in between logs it again
            final = {f"final/{name}/{found.split}/{key}": value for key, value in found.metrics.items()}
            logger.log_metrics(final, step=self.global_step)
        description = describe_data(datamodule)
        if name != self.trained_data:
            tell_notes(name, description)
        self.run_folder.add(found, description)

    def _cut_captions(self, name: str, datamodule: Any, stage: str) -> dict[str, Any]:
        """A note of captions of which the network read the beginning alone; of the data of training, for all splits."""
        if not hasattr(datamodule, "cut_captions"):
            return {}
        own = name == self.trained_data
        before: dict[str, int] = datamodule.cut_captions(("train",)) if own else {}  # told before the first step
        cut = before | tell_cut_captions(name, datamodule, ("val", "test") if own else (stage,))
        return {"cut_captions": cut} if cut else {}

    def _evaluated(self) -> set[str]:
        """Data sets that an earlier attempt has tested. From the file, so that every rank skips the same ones."""
        if not (self.run_folder.path / "results.json").exists():
            return set()
        return {evaluation.data for evaluation in read_results(self.run_folder.path).evaluations}

    def _require_sound(self, ckpt_path: str | None, resumes: bool = False) -> None:
        """Refuse what cannot work, before Lightning starts processes or meets it with a traceback.

        Raises:
            InputError: A part of a split, a distributed sampler over several processes, a precision that batches are converted
                to, or a file that is no checkpoint.
        """
        if str(self.precision) in ("16-true", "bf16-true", "64-true"):
            raise InputError(
                f"trainer.precision is {self.precision}, for which Lightning converts batches in place, and ours are read-only: "
                "set it to bf16-mixed, 16-mixed, or 32-true."
            )
        for stage in ("val", "test"):
            limit = getattr(self, f"limit_{stage}_batches")
            if limit and (isinstance(limit, int) or limit != 1.0):  # 1 is one batch, 1.0 is all; fast_dev_run makes it an int
                raise InputError(
                    f"trainer.limit_{stage}_batches is {limit} (fast_dev_run sets it too), but recalls and caption scores are of "
                    f"whole splits. Shorten the split instead: --data.init_args.limits.{stage}=N."
                )
        if self.world_size > 1 and self._accelerator_connector.use_distributed_sampler:
            raise AgreedError(
                "trainer.use_distributed_sampler is true, but the data modules share their batches out themselves (batch_size is "
                "global, nothing is padded). Leave it false."
            )
        if ckpt_path is not None:
            _name_failures(self._checkpoint_connector, ckpt_path)

            def look() -> None:
                read_checkpoint(ckpt_path, resumes)

            self.by_first(look)

    def _require_evaluable(self, model: pl.LightningModule, ckpt_path: str | None) -> None:
        """Likewise, of a model that is evaluated as the checkpoint or itself has it.

        Raises:
            InputError: As `_require_sound`, or nothing brings what a training was to make of random weights.
        """
        self._require_sound(ckpt_path)
        network = getattr(model, "network", None)
        if ckpt_path is None:
            require_weights(network if isinstance(network, nn.Module) else model)

    def _relative(self, path: str) -> str | None:
        return str(Path(path).relative_to(self.run_folder.path)) if path else None


def evaluation_of(
    trainer: pl.Trainer, model: Any, name: str, datamodule: Any, stage: Literal["val", "test"], folder: Path, file: str
) -> Evaluation:
    """What a trainer has just measured, with the per-query ranks or scores written, where the model has some.

    Args:
        trainer: It has validated or tested.
        model: What was evaluated.
        name: Of the data.
        datamodule: The data.
        stage: Which split it was.
        folder: Of the run.
        file: In it, for the ranks or scores.
    """
    prefix = f"{stage}/"
    logged = trainer.callback_metrics.items()
    metrics = {key.removeprefix(prefix): float(value) for key, value in logged if key.startswith(prefix)}
    split = datamodule.split_label(stage) if hasattr(datamodule, "split_label") else stage
    per_query: dict[str, Any] = getattr(model, "per_query", dict)()
    if per_query:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        with whole_file(folder / file) as part:
            np.savez_compressed(part, **per_query)
    notes: dict[str, Any] = getattr(model, "evaluation_notes", dict)()
    return Evaluation(name, split, stage, metrics, getattr(model, "protocol", None), file if per_query else None, dict(notes))


def _name_failures(connector: Any, ckpt_path: str) -> None:
    """What Lightning raises while it takes a checkpoint up is of the file: a part has another type or is missing. Name it."""
    where = f"checkpoint {ckpt_path}"

    def named(restore: Any) -> Any:
        def guarded(*arguments: Any, **options: Any) -> Any:
            try:
                _require_moments(connector.trainer, connector._loaded_checkpoint, where)
                return restore(*arguments, **options)
            except (LookupError, TypeError, ValueError, AttributeError, AssertionError) as error:
                raise InputError(
                    f"{where} cannot be taken up ({type(error).__name__}: {one_line(error)}): it was changed, or "
                    "is of another version. Give another, or the one beside it."
                ) from error

        return guarded

    for name in ("_restore_modules_and_callbacks", "restore_training_state"):
        setattr(connector, name, named(getattr(type(connector), name).__get__(connector)))


def _require_moments(trainer: pl.Trainer, checkpoint: dict[str, Any], where: str) -> None:
    """See that each optimizer's state is there and fits: torch casts whole numbers, and writes beyond moments that are short.

    Raises:
        InputError: It does not.
    """
    if trainer.state.fn != TrainerFn.FITTING or not trainer.optimizers:
        return
    states, schedules = checkpoint["optimizer_states"], checkpoint["lr_schedulers"]
    found, wanted = (len(states), len(schedules)), (len(trainer.optimizers), len(trainer.lr_scheduler_configs))
    if found != wanted:
        raise InputError(f"{where} has the states of {found} optimizers and schedules, here there are {wanted}: it was changed.")
    for state, optimizer in zip(states, trainer.optimizers, strict=True):
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for index, values in state["state"].items():
            moments = {key: value for key, value in values.items() if key in ("exp_avg", "exp_avg_sq", "momentum_buffer")}
            if wrong := misfits(moments, dict.fromkeys(moments, parameters[index])):
                raise InputError(f"{where}: the optimizer's {wrong[0]} (parameter {index}): it was changed.")


def trains(model: pl.LightningModule) -> bool:
    """Whether any parameter is to be trained."""
    return any(parameter.requires_grad for parameter in model.parameters())


def require_splits(datamodule: Any, splits: tuple[str, ...]) -> None:
    """See that splits and their images are there.

    Raises:
        InputError: One is not.
    """
    datamodule.prepare_data()
    if hasattr(datamodule, "records"):
        for split in splits:
            datamodule.records(split)


def require_data(model: Any, place: str, datamodule: Any, splits: tuple[str, ...]) -> None:
    """See that splits and their images are there, and have captions where an evaluation of the model is nothing without any.

    Args:
        model: It says which splits it needs captions of (`needs_captions`); one that does not say needs none.
        place: The option that names the data.
        datamodule: The data.
        splits: Those that the run needs.

    Raises:
        InputError: A split, an image of it or its captions are missing.
    """
    require_splits(datamodule, splits)
    needed: frozenset[str] = getattr(model, "needs_captions", frozenset())
    for split in splits:
        if split in needed and hasattr(datamodule, "caption_count") and not datamodule.caption_count(split):
            raise InputError(
                f"{place}: {data_name(datamodule)} {datamodule.split_label(split)} has images and no captions, without which "
                f"{type(model).__name__} measures nothing. Choose a split that has captions, or leave this data set out."
            )


def tell_trained_images(trained: Any, tests: DataModules) -> dict[str, str]:
    """One line for each test that has images of the training; the lines' words, by data set.

    Args:
        trained: The data of the training.
        tests: What is tested on, by name.

    Raises:
        InputError: An image cannot be read.
    """
    known = set(trained.image_contents("train")) - {""} if hasattr(trained, "image_contents") else set()
    told = {}
    for name, data in tests.items():
        contents = data.image_contents("test") if known and hasattr(data, "image_contents") else []
        if count := sum(content in known for content in contents):
            told[name] = f"{count:,} of {len(contents):,} images were trained on (their files have the same content)"
            print(f"crosslight: {name} {data.split_label('test')}: {told[name]}")
    return told


def tell_unknown_words(datamodule: Any, split: str) -> None:
    """One line that names the words of a split which the network's tokenizer does not know, where there are any."""
    unknown: dict[str, int] = datamodule.unknown_words(split) if hasattr(datamodule, "unknown_words") else {}
    if not unknown:
        return
    times = sum(unknown.values())
    print(
        f"crosslight: {data_name(datamodule)} {datamodule.split_label(split)}: the network's tokenizer does not know "
        f"{len(unknown):,} {'word' if len(unknown) == 1 else 'words'} of the captions, which come {times:,} "
        f"{'time' if times == 1 else 'times'}: {some(map(printable, unknown))}.",
        file=sys.stderr,
    )


def tell_cut_captions(name: str, datamodule: Any, splits: tuple[str, ...]) -> dict[str, int]:
    """One line for each split with captions of which the network reads the beginning alone; how many they are, by split."""
    cut: dict[str, int] = datamodule.cut_captions(splits) if hasattr(datamodule, "cut_captions") else {}
    for split, count in cut.items():
        what = "caption is" if count == 1 else "captions are"
        print(f"crosslight: {name} {split}: {count:,} {what} longer than the network's max_tokens and cut there.")
    return cut


def data_name(datamodule: pl.LightningDataModule) -> str:
    return getattr(datamodule, "name", type(datamodule).__name__.lower())


def tell_notes(name: str, data: DataDescription) -> None:
    """What whoever reads the numbers should know of the data: that its splits are drawn, say."""
    for note in data.further.get("notes") or ():
        print(f"crosslight: {name}: {note}")


def describe_data(datamodule: Any) -> DataDescription:
    """Fingerprint and counts, of data modules that tell them.

    Raises:
        InputError: What it tells has another type than `DataDescription` says.
    """
    told: dict[str, Any] = datamodule.describe() if hasattr(datamodule, "describe") else {}
    if "fingerprint" not in told and hasattr(datamodule, "fingerprint"):
        told = {**told, "fingerprint": datamodule.fingerprint()}
    kind, ours = type(datamodule).__name__, ("name", "fingerprint", "options", "splits")
    known = {key: value for key, value in told.items() if key in ours}
    further = {key: value for key, value in told.items() if key not in ours}
    description: DataDescription = read_typed(DataDescription, {"kind": kind, **known, "further": further}, f"{kind}.describe()")
    return description
