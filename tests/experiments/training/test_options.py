"""Options that people mistype or misuse: exit status 2 and at most three lines, before the first batch, without a traceback."""

from __future__ import annotations

import re
from pathlib import Path

import own_parts
import pytest
import torch
import yaml
from end_to_end import crosslight, results, torchrun
from lightning_utilities.core.imports import RequirementCache
from ranks import srun
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import lightning_modules
from experiments.training.configs import find_configs
from experiments.training.lightning_cli import ParsedCLI

OWN = (
    "-c", "configs/trainer/demo.yaml", "--model=own_parts.Module", "--data=own_parts.Data", "--checkpoint.monitor=val/loss",
    "--checkpoint.mode=min", "--trainer.max_epochs=2",
)  # fmt: skip
TINY = (
    "-c", "configs/trainer/demo.yaml", "-c", "configs/model/dual_tiny.yaml", "-c", "configs/data/world.yaml",
    "-c", "experiments/papers/mwa/variants/head.yaml",
)  # fmt: skip
STOP = "--trainer.callbacks+=lightning.pytorch.callbacks.EarlyStopping --trainer.callbacks.monitor="
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
MISTAKES: dict[str, str] = {  # options (with blanks between them): what the message says
    # the length of the training and its validations
    "--trainer.max_epochs=-1": "would never end",
    "--trainer.max_epochs=-5": "trainer.max_epochs is -5",
    "--trainer.max_epochs=0": "nothing would be trained",
    "--trainer.max_epochs=many": "must be an integer or null",
    "--trainer.max_epochs=1.5": "must be an integer or null",
    "--trainer.max_steps=0": "nothing would be trained",
    "--trainer.max_steps=-3": "trainer.max_steps is -3",
    "--trainer.max_steps=3": "due after 4 batches",
    "--trainer.min_epochs=5": "more than max_epochs (2)",
    "--trainer.max_time=00:00:00:00": "trainer.max_time is 00:00:00:00",
    "--trainer.max_time=soon": "DD:HH:MM:SS",
    "--trainer.limit_train_batches=0": "nothing would be trained",
    "--trainer.limit_train_batches=0.1": "limit_train_batches=0.25",
    "--trainer.limit_train_batches=-1": "trainer.limit_train_batches is -1",
    "--trainer.limit_train_batches=1.5": "trainer.limit_train_batches is 1.5",
    "--trainer.limit_val_batches=0": "choose the best checkpoint",
    "--trainer.limit_val_batches=2": "limits.val=N",
    "--trainer.overfit_batches=1": "trainer.overfit_batches is 1",
    "--trainer.fast_dev_run=true": "fast_dev_run",
    "--trainer.fast_dev_run=-1": "trainer.fast_dev_run is -1",
    "--trainer.val_check_interval=100": "trainer.val_check_interval is 100, but an epoch has 4 batches",
    "--trainer.val_check_interval=0.01": "give one at least",
    "--trainer.val_check_interval=1.5": "trainer.val_check_interval is 1.5",
    "--trainer.val_check_interval=0": "trainer.val_check_interval is 0",
    "--trainer.val_check_interval=-1": "trainer.val_check_interval is -1",
    "--trainer.check_val_every_n_epoch=0": "give at least 1",
    "--trainer.check_val_every_n_epoch=3": "give at most 2",
    "--trainer.check_val_every_n_epoch=null --trainer.val_check_interval=9": "due after 9 batches",
    "--trainer.num_sanity_val_steps=-3": "give at least -1",
    "--model=own_parts.Unvalidated": "needs a validation_step",
    # optimization
    "--trainer.accumulate_grad_batches=0": "give at least 1",
    "--trainer.gradient_clip_val=-1": "give at least 0",
    "--trainer.gradient_clip_val=.nan": "trainer.gradient_clip_val",
    "--trainer.gradient_clip_algorithm=norms": "trainer.gradient_clip_algorithm is 'norms'",
    "--trainer.precision=fp16": "trainer.precision",
    "--trainer.precision=16-mixed": "which a CPU cannot do",
    "--trainer.precision=64-true": "trainer.precision is 64-true",
    "--trainer.precision=transformer-engine": "transformer_engine",
    # machines
    "--trainer.accelerator=gpus": "trainer.accelerator is 'gpus'",
    "--trainer.accelerator=tpu": "trainer.accelerator is 'tpu'",
    "--trainer.devices=0": "trainer.devices is '0'",
    "--trainer.devices=-1": "trainer.devices is '-1'",
    "--trainer.devices=9999": "cores",
    "--trainer.devices=[0,7]": "trainer.devices is",
    "--trainer.num_nodes=0": "give at least 1",
    "--trainer.num_nodes=2": "srun or torchrun",
    "--trainer.strategy=ddpp": "trainer.strategy is 'ddpp'",
    "--trainer.strategy=fsdp_cpu_offload": "trainer.strategy is 'fsdp_cpu_offload', which divides the weights among the GPUs",
    "--trainer.strategy=lightning.pytorch.strategies.DDPStrategy --trainer.strategy.start_method=spawn": "Leave start_method out",
    "--trainer.sync_batchnorm=true": "torch synchronizes batch norms on GPUs alone",
    "--model=own_parts.Normed --trainer.devices=2": "1 layer of the network (norm) would take statistics of each process's share",
    # what makes a run folder
    "--trainer.enable_checkpointing=false": "its best and its last checkpoint",
    "--trainer.barebones=true": "leave it false",
    "--trainer.default_root_dir=x": "--run_dir",
    "--trainer.profiler=simpel": "trainer.profiler is 'simpel'",
    "--trainer.deterministic=maybe": "trainer.deterministic",
    "--trainer.log_every_n_steps=-1": "give at least 0",
    "--trainer.reload_dataloaders_every_n_epochs=-1": "trainer.reload_dataloaders_every_n_epochs is -1",
    "--trainer.plugins=nothing": "there is no class 'nothing'",
    # callbacks and loggers
    "--trainer.callbacks=EarlyStoping": "Did you mean lightning.pytorch.callbacks.EarlyStopping?",
    "--trainer.callbacks=lightning.pytorch.callbacks.EarlyStopping": "needs --trainer.callbacks.init_args.monitor",
    "--trainer.callbacks=[1]": "must be the class path of a Callback or null, not '1'",
    "--trainer.callbacks=own_parts.Raises": "trainer: no licence found",
    "--trainer.callbacks=no.such.Callback": "there is no class 'no.such.Callback'",
    f"{STOP}val/loss {STOP}val/loss": "trainer.callbacks has two of EarlyStopping",
    f"{STOP}val/loss --trainer.callbacks.mode=least": "`mode` can be min, max, got least",
    f"{STOP}val_loss": "Did you mean val/loss?",
    "--trainer.callbacks+=lightning.pytorch.callbacks.StochasticWeightAveraging --trainer.callbacks.swa_lrs=0.1": "validated",
    "--trainer.callbacks+=lightning.pytorch.callbacks.LearningRateMonitor --trainer.logger=false": "LearningRateMonitor",
    "--trainer.logger=tensorboard": "there is no class 'tensorboard'",
    # the metric that is waited for
    "--checkpoint.monitor=val/los": "Did you mean val/loss?",
    "--checkpoint.monitor=": "checkpoint.monitor is ''",
    "--checkpoint.monitor=test/loss": "checkpoint.monitor is 'test/loss'",
    "--checkpoint.mode=up": "must be one of max, min",
    "--model=own_parts.Declares --checkpoint.mode=max": "a lower val/loss is better",
    "--model=own_parts.Declares --checkpoint.monitor=val/acuracy": "Did you mean val/accuracy?",
    "--model=own_parts.Module --model.init_args.plateau=val/los": "configure_optimizers ReduceLROnPlateau.monitor is 'val/los'",
    # networks of ours in a module of one's own
    "--model=own_parts.Holds --model.init_args.of_tower=nowhere.pt": "nowhere.pt does not exist",
    "--model=own_parts.Holds": "do not train, so every number would be one of chance",
    "--checkpoint.every_n_steps=0": "null for a checkpoint at each validation",
    # names, seeds, W&B
    "--name=a/../../b": "leave the folder runs/",
    "--name=a\tb": "'\\t'",
    "--name=a\udc80": "not UTF-8",
    f"--name={'n' * 300}": "a shorter one",
    "--name=": "--name is empty",
    "--seed_everything=true": "seed_everything is true",
    "--seed_everything=-1": "seed_everything is -1",
    "--seed_everything=4294967296": "4294967295",
    "--wandb.enabled=true --wandb.project=a/b": "wandb.project is 'a/b'",
    "--wandb.enabled=true --wandb.tags=['']": "wandb.tags has ''",
    "--scale=papers": "scale",
    # whole sections
    "--trainer=5": "trainer (on the command line) is '5', but has options of its own",
    **{f"-c {name}.yaml": f"-c {name}.yaml: {name} is" for name in ("trainer", "checkpoint", "wandb", "data")},
    "--evaluate.a/b=own_parts.Data": "evaluate has 'a/b'",
}  # fmt: skip
OF_MODEL_AND_DATA: dict[str, str] = {
    "--data.init_args.batch_size=0": "batch_size is 0",
    "--data.init_args.batch_size=2.5": "must be an integer",
    "--data.init_args.num_workers=-1": "num_workers is -1",
    "--data.init_args.num_workers=99999": "cores",
    "--data.init_args.limits.train=-5": "limits.train is -5",
    "--model.init_args.optimization.lr=0": "optimization.lr is 0",
    "--model.init_args.optimization.betas=[1,2]": "optimization.betas",
    "--model.init_args.optimization.weight_decay=-1": "optimization.weight_decay",
    "--model.init_args.gradient_cache_chunk=0": "gradient_cache_chunk is 0",
    "-c optimization.yaml": "model.init_args.optimization is 5, but has options of its own (lr, ",
    "-c inner.yaml": "cannot be made of what it is given",
    "-c network.yaml": "network (in network.yaml) must be the class path of a RetrievalNetwork, not '[1]'",
    '--data.init_args.limits={"trian":3}': "Did you mean --data.init_args.limits.train?",
    "--data.init_args.limits=5": "limits (on the command line) is '5', but has options of its own",
    "--evaluate.b=datamodules.flickr30k.Flickr30k --evaluate.b.root=x --evaluate.b.num_workers=99999": "evaluate.b.init_args.num",
    '--model.init_args.network.init_args.text.init_args.config={"model_type":"brt"}': "Unrecognized model",
    "--model.init_args.init_from=/nowhere": "init_from /nowhere does not exist",
}  # fmt: skip


def refused(options: str, folder: Path, base: tuple[str, ...]) -> str:
    own_parts.built.clear()
    answer = crosslight("run", *base, *options.split(" "), f"--run_dir={folder}")
    assert answer.status == 2, answer.error
    assert "Traceback" not in answer.error
    assert 1 <= len(answer.error.splitlines()) <= 3, answer.error
    assert answer.out == ""
    assert "a step" not in own_parts.built
    assert not list(Path.cwd().rglob("metrics.csv"))
    return answer.error


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CROSSLIGHT_WORLD", str(tmp_path / "no-world"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "GROUP_RANK", "NODE_RANK", "MASTER_ADDR", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("options", MISTAKES)
def test_a_mistake_is_told_before_the_first_batch(options: str, tmp_path: Path) -> None:
    for section, value in {"trainer": "[1]", "checkpoint": "val/loss", "wandb": "off", "data": "null"}.items():
        (tmp_path / f"{section}.yaml").write_text(f"{section}: {value}\n")
    assert MISTAKES[options] in refused(options, tmp_path / "run", OWN)


@pytest.mark.parametrize("options", OF_MODEL_AND_DATA)
def test_a_mistake_in_model_or_data(options: str, tmp_path: Path) -> None:
    for option, value in {"optimization": "5", "network": "[1]"}.items():
        (tmp_path / f"{option}.yaml").write_text(f"model: {{init_args: {{{option}: {value}}}}}\n")
    (tmp_path / "inner.yaml").write_text("model: {init_args: {network: {init_args: [1]}}}\n")
    assert OF_MODEL_AND_DATA[options] in refused(options, tmp_path / "run", TINY)


@pytest.mark.parametrize("option", ["name", "checkpoint.monitor", "trainer.max_steps", "model.init_args.tuning",
                                    "data.init_args.batch_size"])  # fmt: skip
def test_nothing_where_there_must_be_something(option: str, tmp_path: Path) -> None:
    content = None
    for key in reversed(option.split(".")):
        content = {key: content}
    (tmp_path / "null.yaml").write_text(yaml.safe_dump(content))  # on the command line null is refused by its type
    assert f"{option} is null" in refused("-c null.yaml", tmp_path / "run", TINY)


STARTED: dict[str, tuple[dict[str, str], str]] = {  # who started the process, what the message says
    "torchrun": (torchrun(0, 2, 29400), "torchrun started 2 processes, but trainer.devices is 1 and trainer.num_nodes 1: give"),
    "srun": (srun(0, 2, 29400), "srun started 2 processes, but trainer.devices is 1 and trainer.num_nodes 1: give"),
    "sbatch": ({**srun(0, 2, 29400), "SLURM_STEP_ID": ""}, "this is the batch script of a job of 2 tasks"),
    "somebody": ({"RANK": "0", "WORLD_SIZE": "2"}, "RANK=0, WORLD_SIZE=2 is set, but not by torchrun"),
}


@pytest.mark.parametrize("by", STARTED)
def test_processes_that_the_trainer_does_not_have(by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them says it, and none makes a folder."""
    environment, says = STARTED[by]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert says in refused("--trainer.max_epochs=1", tmp_path / "run", OWN)
    monkeypatch.setenv("SLURM_PROCID" if by in ("srun", "sbatch") else "RANK", "1")
    other = crosslight("run", *OWN, f"--run_dir={tmp_path / 'run'}")
    assert (other.status, other.out, other.error) == (2, "", "")
    assert not (tmp_path / "run").exists()


def test_processes_from_outside_need_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in torchrun(0, 2, 29400).items():
        monkeypatch.setenv(name, value)
    answer = crosslight("run", *OWN, "--trainer.devices=2")
    assert (answer.status, len(answer.error.splitlines())) == (2, 1)
    assert "2 processes were started from outside (torchrun or srun), so they need a folder" in answer.error


@NO_GPU
def test_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    for name in ("gpu", "cuda"):
        assert f"trainer.accelerator is '{name}'" in refused(f"--trainer.accelerator={name}", tmp_path / "run", OWN)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("logger", "module", "flags", "says"),
    [
        (
            "TensorBoardLogger --trainer.logger.save_dir=x", "lightning.fabric.loggers.tensorboard",
            ("_TENSORBOARD_AVAILABLE", "_TENSORBOARDX_AVAILABLE"),
            "tensorboard is not installed: pip install 'crosslight[tensorboard]'",
        ),
        (
            "MLFlowLogger", "lightning.pytorch.loggers.mlflow", ("_MLFLOW_AVAILABLE",),
            "mlflow is not installed: pip install 'crosslight[mlflow]'",
        ),
        ("CometLogger", "lightning.pytorch.loggers.comet", ("_COMET_AVAILABLE",), "comet"),
    ],
)  # fmt: skip
def test_a_logger_whose_package_is_missing(
    logger: str, module: str, flags: tuple[str, ...], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for flag in flags:
        package = {"_MLFLOW_AVAILABLE": "mlflow", "_COMET_AVAILABLE": "comet-ml"}.get(flag, flag.split("_")[1].lower())
        monkeypatch.setattr(f"{module}.{flag}", RequirementCache(f"{package}>=9999"))
    said = refused(f"--trainer.logger=lightning.pytorch.loggers.{logger}", tmp_path / "run", OWN)
    assert "trainer.logger (on the command line): lightning.pytorch.loggers." in said
    assert says in said
    log = Path(said.rpartition("The traceback is in ")[2].strip().removesuffix("."))
    assert "Traceback" in log.read_text()


def test_a_logger_that_is_named_has_metrics_and_options(tmp_path: Path) -> None:
    said = refused("--trainer.logger=TensorBoardLogger", tmp_path / "run", OWN)
    assert "TensorBoardLogger (on the command line) needs --trainer.logger.init_args.save_dir." in said
    board = (
        "--trainer.logger=TensorBoardLogger",
        f"--trainer.logger.save_dir={tmp_path / 'run'}",
        "--trainer.log_every_n_steps=1",
    )
    answer = crosslight("fit", *OWN, *board, f"--run_dir={tmp_path / 'run'}")
    assert answer.status == 0, answer.error
    events = EventAccumulator(str(tmp_path / "run" / "lightning_logs" / "version_0"))
    events.Reload()
    assert [each.step for each in events.Scalars("train/loss")] == list(range(8))
    assert "val/loss" in events.Tags()["scalars"]
    options = yaml.safe_load((tmp_path / "run" / "lightning_logs" / "version_0" / "hparams.yaml").read_text())
    assert options["trainer"]["max_epochs"] == 2
    assert (tmp_path / "run" / "metrics.csv").exists(), "beside it"


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in ("file/run", "n" * 300, "/proc/nothing/run"):
        assert "cannot be made or written" in refused("--trainer.max_epochs=1", Path(folder), OWN)


def test_an_unknown_mode_of_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offlin")
    assert "WANDB_MODE is 'offlin'" in refused("--wandb.enabled=true", tmp_path / "run", OWN)


def test_a_monitor_of_training_is_missed_after_the_first_step(tmp_path: Path) -> None:
    own_parts.built.clear()
    endless = ("--trainer.max_epochs=null", *f"{STOP}train/los".split(" "))
    answer = crosslight("run", *OWN, *endless, f"--run_dir={tmp_path / 'run'}")
    assert (answer.status, own_parts.built.count("a step")) == (2, 1)
    assert "Did you mean train/loss?" in answer.error
    assert "crosslight: trainer.max_epochs is not set: at most Lightning's 1,000 epochs.\n" in answer.error
    assert "Setting it to" not in answer.error


def test_a_module_that_derives_from_lightnings_alone(tmp_path: Path) -> None:
    """Trained, chosen by validation, tested, resumed from, loaded."""
    answer = crosslight("run", *OWN, f"--run_dir={tmp_path / 'run'}")
    assert (answer.status, answer.error) == (0, "")
    found = results(tmp_path / "run")
    assert (found["status"], found["fit"]["steps"], found["fit"]["monitor"]) == ("finished", 8, "val/loss")
    (test,) = found["evaluations"]
    assert 0 < test["metrics"]["loss"] < 1
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    again = ("-c", str(tmp_path / "run" / "config.yaml"), f"--ckpt_path={best}", f"--run_dir={tmp_path / 'again'}")
    assert crosslight("test", *again).status == 0
    assert results(tmp_path / "again")["evaluations"][0]["metrics"] == test["metrics"]
    loaded = lightning_modules.load(tmp_path / "run", trust=["own_parts"])
    assert torch.equal(loaded.layer.weight, torch.load(best, weights_only=True)["state_dict"]["layer.weight"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--model=own_parts.Holds", "--model.init_args.of_tower=random", "--model.init_args.frozen=false"],
            r"parameters should train and got no gradient in the first step: tower.*Let training_step of Holds use it, or freeze",
        ),
        (["--model=own_parts.Diverges", "--model.init_args.loss=true"], r"the loss is not finite at step 0 .* entered"),
        (["--model=own_parts.Diverges"], r"weights were not finite before this step \(layer.weight\)"),
        (
            ["--model=own_parts.Diverges", "--checkpoint.every_n_steps=1"],
            r"2 trained tensors are not finite \(layer.weight, layer.bias\), so this checkpoint is not written",
        ),
        (
            [
                "--model=own_parts.Diverges", "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint",
                "--trainer.callbacks.save_weights_only=true", "--trainer.callbacks.every_n_train_steps=1",
            ],
            r"2 trained tensors are not finite",
        ),
    ],
)  # fmt: skip
def test_a_module_of_ones_own_is_watched(options: list[str], message: str, tmp_path: Path) -> None:
    answer = crosslight("run", *OWN, *options, f"--run_dir={tmp_path / 'run'}")
    assert answer.status == 2, answer.error
    assert re.search(message, answer.error), answer.error
    assert not list((tmp_path / "run").rglob("*.ckpt"))


def test_one_that_optimizes_by_hand_is_left_alone(tmp_path: Path) -> None:
    answer = crosslight("fit", *OWN, "--model=own_parts.Hand", f"--run_dir={tmp_path / 'run'}")
    assert answer.status == 0, answer.error


def test_a_training_goes_on_with_the_average_that_it_began(tmp_path: Path) -> None:
    ema = ("--trainer.callbacks+=lightning_modules.callbacks.ema.EMA", "--trainer.callbacks.decay=0.5")
    assert crosslight("fit", *OWN, *ema, f"--run_dir={tmp_path / 'run'}").status == 0
    again = (*OWN, "--trainer.max_epochs=3", f"--ckpt_path={tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}")
    for name, options, said in (
        ("other", (ema[0], "--trainer.callbacks.decay=0.6"), "began with decay 0.5"),
        ("none", (), "holds an average of the weights (EMA)"),
    ):
        answer = crosslight("fit", *again, *options, f"--run_dir={tmp_path / name}")
        assert answer.status == 2
        assert said in answer.error
    assert crosslight("fit", *again, *ema, f"--run_dir={tmp_path / 'same'}").status == 0


# --------------------------------------------------------------------------------------------- what was given, as it was given


def parsed(*options: str) -> dict:
    return ParsedCLI(["run", *find_configs([*OWN, *options])]).plain["trainer"]


def test_a_default_that_is_of_an_enumeration_is_a_word_in_the_configuration() -> None:
    (timer,) = parsed("--trainer.callbacks+=lightning.pytorch.callbacks.Timer")["callbacks"]
    assert timer == {
        "class_path": "lightning.pytorch.callbacks.Timer",
        "init_args": {"duration": None, "interval": "step", "verbose": True},
    }


def test_batches_are_a_number_or_a_share_as_they_were_written(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("trainer: {limit_train_batches: 2, val_check_interval: 1.0}\n")
    for options, batches, interval in (
        (("--trainer.limit_train_batches=2", "--trainer.val_check_interval=1"), 2, 1),
        (("--trainer.limit_train_batches=1.0", "--trainer.val_check_interval", "0.5"), 1.0, 0.5),
        (("-c", "a.yaml"), 2, 1.0),
        (("-c", "a.yaml", "--trainer.limit_train_batches=1"), 1, 1.0),
    ):
        trainer = parsed(*options)
        assert repr((trainer["limit_train_batches"], trainer["val_check_interval"])) == repr((batches, interval))


@pytest.mark.parametrize("other", ["a.yaml", "command line"])
def test_a_list_that_replaces_another_says_what_it_drops(other: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    room = "lightning.pytorch.callbacks"
    stop = {"class_path": f"{room}.EarlyStopping", "init_args": {"monitor": "val/loss"}}
    stats = {"class_path": f"{room}.DeviceStatsMonitor"}
    for name, trainer in {"first": {"callbacks": [stop]}, "a": {"callbacks": [stats]}, "more": {"callbacks+": [stats]}}.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"trainer": trainer}))
    second = ("-c", "a.yaml") if other == "a.yaml" else (f"--trainer.callbacks={room}.DeviceStatsMonitor",)
    assert "EarlyStopping" not in str(parsed("-c", "first.yaml", *second)["callbacks"])
    (said,) = [record.getMessage() for record in caplog.records if record.name == "crosslight"]
    assert f"{room}.EarlyStopping is dropped. Write callbacks+" in said
    assert "first.yaml" in said
    caplog.clear()
    assert len(parsed("-c", "first.yaml", "-c", "more.yaml")["callbacks"]) == 2
    assert parsed("-c", "first.yaml", "--trainer.callbacks=null")["callbacks"] is None  # said by whoever wrote it
    assert not [record for record in caplog.records if record.name == "crosslight"]
