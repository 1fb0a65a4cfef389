"""Mistakes on the command line and in YAMLs: exit status 2 and a few lines that name the option, its place and what was meant."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import own_parts
import pytest
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException

from datamodules.errors import InputError
from experiments.cli import main as cli
from experiments.runs.folder import RunFolder
from experiments.runs.results import Results, read_results
from experiments.training.command import settle_failure
from experiments.training.configs import find_configs
from experiments.training.failures import one_line
from experiments.training.lightning_cli import ParsedCLI
from experiments.training.parse_errors import explain

TINY = ["-c", "configs/model/dual_tiny.yaml", "-c", "configs/data/world.yaml", "-c", "configs/trainer/cpu.yaml"]
MWA = ["-c", "experiments/papers/mwa/variants/mwa.yaml"]
UNITER = [
    "-c", "configs/model/uniter_tiny.yaml", "-c", "configs/data/world_entities.yaml", "-c",
     "experiments/papers/iais/variants/singular.yaml",
]  # fmt: skip
Fail = Callable[..., str]


@pytest.fixture
def fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Fail:
    """Runs a command that must fail before it makes anything; returns its message without the prefix."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CROSSLIGHT_WORLD", str(tmp_path / "no-world"))

    def run(*arguments: str, command: str = "fit") -> str:
        with pytest.raises(SystemExit) as stop:
            cli.main([command, *arguments])
        said = capsys.readouterr()
        assert stop.value.code == 2
        assert said.out == ""
        assert said.err.startswith("crosslight: error: ")
        message = said.err.removeprefix("crosslight: error: ").rstrip("\n")
        lines = message.splitlines()
        assert len(lines) <= 6, message
        assert max(map(len, lines)) <= 300, message
        for noise in ("usage:", "Traceback", "NestedArg", "<class", "Namespace(", "typing.", "Union", "Parser key"):
            assert noise not in message, message
        assert not (tmp_path / "runs").exists(), "a run folder was made for a command line that cannot run"
        return message

    return run


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("--trainer.max_epoch=2", "--trainer.max_epochs"),
        ("--max_epochs=2", "--trainer.max_epochs"),
        ("--model.init_args.tunning=head", "--model.init_args.tuning"),
        ("--model.tunning=head", "--model.init_args.tuning"),
        ("--model.init_arg.tuning=head", "--model.init_args.tuning"),
        ("--tuning=head", "--model.init_args.tuning"),
        ("--batch_size=8", "--data.init_args.batch_size"),
        ("--model.init_args.adapter.init_args.reding=printed", "--model.init_args.adapter.init_args.reading"),
        ("--model.init_args.optimization.lrr=1", "--model.init_args.optimization.lr"),
        ("--data.init_args.limits.trian=3", "--data.init_args.limits.train"),
        ("--wandb.enable=false", "--wandb.enabled"),
        ("--checkpoint.monitr=x", "--checkpoint.monitor"),
        ("--nam=x", "--name"),  # abbreviations are off
        ("--data.init_args.limits.trai=3", "--data.init_args.limits.train"),  # also inside classes
        ("--data.init_args.ranking.candidate=3", "--data.init_args.ranking.candidates"),
        ("--model.init_args.optimization.warmup=0.5", "--model.init_args.optimization.warmup_fraction"),
        ("--run_di=x", "--run_dir"),
        ("--ckpt_pth=x", "--ckpt_path"),
    ],
)
def test_unknown_option_on_the_command_line(wrong: str, meant: str, fail: Fail) -> None:
    name = wrong.partition("=")[0]
    assert fail(*TINY, *MWA, wrong) == f"there is no option {name} (on the command line).\nDid you mean {meant}?"


def test_a_part_of_an_option_that_the_class_has_not(fail: Fail) -> None:
    """The part that is wrong is told, and not one behind it."""
    for wrong in ("--model.init_args.rerank.k_test=4", "--model.init_args.rerank={k_test: 4}"):
        assert "\nRetrievalModule takes: network, adapter, tuning" in (message := fail(*TINY, *MWA, wrong)), message
        assert "Did you mean" not in message


def test_nothing_far_fetched_is_proposed(fail: Fail) -> None:
    name = "--model.init_args.optimization.lrate"
    message = fail(*TINY, *MWA, f"{name}=1")
    assert message == f"there is no option {name} (on the command line).\nSee crosslight fit --help-all."


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("--model.init_args.iais.init_args.kinds=singular", "--model.init_args.iais.init_args.kind"),
        (
            "--model.init_args.iais.init_args.annealing.shedule=exp",
            "--model.init_args.iais.init_args.annealing.schedule",
        ),
        ("--model.init_args.hard_negative=3", "--model.init_args.hard_negatives"),
        ("--data.init_args.phrase_region=gt", "--data.init_args.phrase_regions"),
        ("--data.init_args.regions.image_dbs=x", "--data.init_args.regions.image_db"),
        ("--data.init_args.ranking.candidate=3", "--data.init_args.ranking.candidates"),
    ],
)
def test_unknown_option_of_uniter_and_iais(wrong: str, meant: str, fail: Fail) -> None:
    name = wrong.partition("=")[0]
    assert fail(*UNITER, wrong) == f"there is no option {name} (on the command line).\nDid you mean {meant}?"


def test_class_of_another_kind(fail: Fail, tmp_path: Path) -> None:
    towers = "lightning_modules.networks.dual_encoder.DualEncoder"
    message = fail(*UNITER, f"--model.init_args.network={towers}")
    assert message.startswith(
        f"model.init_args.network (on the command line): {towers} is no RankingNetwork.\nIt takes: of lightning_modules.networks "
    )
    assert "uniter.UniterRetrieval, " in message
    assert message.endswith(", your own that derives from lightning_modules.networks.network.RankingNetwork.")
    margin = "lightning_modules.objectives.matching.MarginRanking"
    (tmp_path / "mine.yaml").write_text(f"model: {{init_args: {{iais: {{class_path: {margin}}}}}}}\n")
    assert fail(*UNITER[:4], "-c", "mine.yaml") == (
        f"model.init_args.iais (in mine.yaml): {margin} is no IAIS."
        "\nIt takes: lightning_modules.objectives.relation_alignment.IAIS."
    )


def test_null_arrives_at_any_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSLIGHT_WORLD", str(tmp_path / "no-world"))
    inside = "--model.init_args.network.init_args"
    files = find_configs([*UNITER, f"{inside}.tokenizer=null", f"{inside}.max_tokens=null", "--data.init_args.limits.val=null"])
    found = ParsedCLI(["fit", *files]).plain
    network = found["model"]["init_args"]["network"]["init_args"]
    assert (network["tokenizer"], network["max_tokens"], found["data"]["init_args"]["limits"]["val"]) == (None, None, None)


DUMP = """Parser key "trainer.callbacks":
  Does not validate against any of the Union subtypes
  Subtypes: [list[lightning.pytorch.callbacks.callback.Callback], <class 'NoneType'>]
  Errors:
    - {}
    - Expected a <class 'NoneType'>
  Given value type: <class 'str'>
  Given value: own_parts.Unannotated
"""


def test_an_argument_without_a_type_is_named() -> None:
    given = ["fit", "--trainer.callbacks=own_parts.Unannotated", "--trainer.callbacks.init_args.patience=3"]
    dump = DUMP.format("Problem with given class_path 'own_parts.Unannotated':\n        Option 'patience' is not accepted")
    assert own_parts.Unannotated.__name__ in given[1]
    assert explain(dump, None, given) == (
        "trainer.callbacks.init_args.patience (on the command line): own_parts.Unannotated does not say of what type patience "
        "is. Annotate it there."
    )
    missing = "Unannotated.__init__() missing 1 required positional argument: 'rank'"
    for said in (missing, DUMP.format(missing)):
        assert one_line(TypeError(said)) == (
            "Unannotated needs 'rank', whose types its constructor does not say: annotate them, which makes them options."
        )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            ["--trainer.callbacks=own_parts.Needs"],
            "trainer.callbacks: own_parts.Needs needs patience, and its constructor does not say of what type that is: annotate "
            "it there (patience: int, or what it is), and give --trainer.callbacks.init_args.patience.",
        ),
        (
            ["--model.init_args.adapter=own_parts.Half"],
            "own_parts.Half does not write owns, which lightning_modules.adapters.adapter.Adapter asks for.",
        ),
        (
            ["--model.init_args.adapter=own_parts.make"],
            "your own that derives from lightning_modules.adapters.adapter.Adapter.\nmake is a function: say in its annotation "
            "what it gives back (-> Adapter).",
        ),
        (
            ["-c", "beside.yaml"],
            "model.init_args.adapter (in beside.yaml) has rank beside class_path: options of a class stand below init_args.",
        ),
    ],
)
def test_a_class_of_ones_own_is_told_what_it_lacks(options: list[str], says: str, fail: Fail, tmp_path: Path) -> None:
    beside = "model: {init_args: {adapter: {class_path: own_parts.Whole, rank: 3}}}\n"
    (tmp_path / "beside.yaml").write_text(beside)
    assert fail(*TINY, "--model.init_args.tuning=adapter", *options).endswith(says)


def test_a_class_whose_methods_have_no_annotations_is_taken() -> None:
    adapter = "--model.init_args.adapter"
    files = find_configs([*TINY, f"{adapter}=own_parts.Whole", f"{adapter}.init_args.rank=3"])
    found = ParsedCLI(["fit", *files]).plain["model"]["init_args"]["adapter"]
    assert found == {"class_path": "own_parts.Whole", "init_args": {"rank": 3}}


def test_a_module_that_cannot_be_imported_is_named() -> None:
    dump = DUMP.format("invalid syntax (mine.py, line 1)").replace("own_parts.Unannotated", "mine.Mine")
    said = explain(dump, None, ["fit", "--trainer.callbacks=mine.Mine"])
    assert said == "trainer.callbacks (on the command line): invalid syntax (mine.py, line 1)"


def test_unknown_option_of_a_further_data_set(fail: Fail) -> None:
    message = fail(*TINY, "--evaluate.x=datamodules.coco.COCO", "--evaluate.x.init_args.rot=y", command="run")
    assert "--evaluate.x.init_args.rot" in message
    assert message.endswith("Did you mean --evaluate.x.init_args.root?")


def test_an_option_without_any_neighbour_lists_what_the_class_takes(fail: Fail) -> None:
    message = fail(*TINY, "--model.init_args.qqqq=1")
    assert message.startswith(
        "there is no option --model.init_args.qqqq (on the command line).\nRetrievalModule takes: network, "
    )
    assert fail(*TINY, "--qqqq=1").endswith("See crosslight fit --help-all.")


@pytest.mark.parametrize(
    ("text", "wrong", "meant"),
    [
        ("nmae: x\n", "nmae", "name"),
        ("trainer:\n  max_epoch: 3\n", "trainer.max_epoch", "trainer.max_epochs"),
        ("model:\n  init_args:\n    tunning: head\n", "model.init_args.tunning", "model.init_args.tuning"),
        (
            "model:\n  init_args:\n    adapter:\n      init_args:\n        reding: printed\n",
            "model.init_args.adapter.init_args.reding",
            "model.init_args.adapter.init_args.reading",
        ),
        (
            "model: {init_args: {network: {init_args: {image: {init_args: {imagesize: 3}}}}}}\n",
            "model.init_args.network.init_args.image.init_args.imagesize",
            "model.init_args.network.init_args.image.init_args.image_size",
        ),
        ("data:\n  init_args:\n    batchsize: 3\n", "data.init_args.batchsize", "data.init_args.batch_size"),
    ],
)
def test_unknown_option_in_a_yaml(text: str, wrong: str, meant: str, fail: Fail, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    assert fail(*TINY, *MWA, "-c", "mine.yaml") == f"there is no option {wrong} (in mine.yaml).\nDid you mean {meant}?"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("--data.init_args.batch_size=many", "data.init_args.batch_size (on the command line) must be an integer, not 'many'."),
        (
            "--model.init_args.tuning=sideways",
            "model.init_args.tuning (on the command line) must be one of full, adapter, head, frozen, not 'sideways'.",
        ),
        (
            "--model.init_args.adapter.init_args.reading=print",
            "model.init_args.adapter.init_args.reading (on the command line) must be one of printed, released, text, not 'print'."
            "\nDid you mean printed?",
        ),
        (
            "--model.init_args.optimization.lr=fast",
            "model.init_args.optimization.lr (on the command line) must be a number, not 'fast'.",
        ),
        (
            "--trainer.max_epochs=None",
            "trainer.max_epochs (on the command line) must be an integer or null, not 'None'.\nYAML's word for nothing is null.",
        ),
        ("--wandb.enabled=maybe", "wandb.enabled (on the command line) must be true or false, not 'maybe'."),
        ("--checkpoint.mode=up", "checkpoint.mode (on the command line) must be one of max, min, not 'up'."),
        ("--seed_everything=abc", "seed_everything (on the command line) must be true or false or an integer, not 'abc'."),
        ("oops", "'oops' is not an option (options begin with --, files follow -c)."),
    ],
)
def test_wrong_value_on_the_command_line(wrong: str, message: str, fail: Fail) -> None:
    assert fail(*TINY, *MWA, wrong) == message


def test_a_value_after_a_space_is_named_as_well(fail: Fail) -> None:
    message = fail(*TINY, "--data.init_args.train_unit", "pairs")
    assert message == (
        "data.init_args.train_unit (on the command line) must be one of pair, image, not 'pairs'.\nDid you mean pair?"
    )


def test_wrong_value_in_a_yaml(fail: Fail, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("data:\n  init_args:\n    batch_size: many\n")
    assert fail(*TINY, "-c", "mine.yaml") == "data.init_args.batch_size (in mine.yaml) must be an integer, not 'many'."
    deep = "model: {init_args: {network: {init_args: {image: {init_args: {image_size: big}}}}}}\n"
    (tmp_path / "mine.yaml").write_text(deep)
    assert fail(*TINY, "-c", "mine.yaml") == (
        "model.init_args.network.init_args.image.init_args.image_size (in mine.yaml) must be an integer or null, not 'big'."
    )


def test_unknown_class(fail: Fail, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("model:\n  class_path: lightning_modules.retrieval.RetrivalModule\n")
    message = fail(*TINY, "-c", "mine.yaml")
    assert message.startswith("model (in mine.yaml): there is no class 'lightning_modules.retrieval.RetrivalModule'")
    assert message.endswith("Did you mean lightning_modules.retrieval.RetrievalModule?")
    message = fail(*TINY, "--data=datamodules.flickr30k.Flicker30k")
    assert message.startswith("data (on the command line): ")
    assert message.endswith("Did you mean datamodules.flickr30k.Flickr30k?")
    assert fail(*TINY, "--model.init_args.network=DualEncodr").endswith("lightning_modules.networks.dual_encoder.DualEncoder?")


def test_what_is_missing_is_named(fail: Fail) -> None:
    message = fail()
    assert message.startswith("not given: data, model.")
    assert "-c configs/data/NAME.yaml" in message
    assert "-c configs/model/NAME.yaml" in message
    assert fail("-c", "configs/model/dual_tiny.yaml").startswith("not given: data.")
    message = fail("-c", "configs/model/dual_tiny.yaml", "--data=datamodules.flickr30k.Flickr30k")
    assert message == "datamodules.flickr30k.Flickr30k (on the command line) needs --data.init_args.root."
    assert "expected one argument" in fail(*TINY, "--name")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [\n", "-c mine.yaml, line 2, column 1: not YAML: "),
        ("- 1\n- 2\n", "-c mine.yaml: holds no options."),
        ("# nothing yet\n", "-c mine.yaml: holds no options."),
    ],
)
def test_a_file_that_is_no_configuration(text: str, message: str, fail: Fail, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    assert fail(*TINY, "-c", "mine.yaml").startswith(message)


def test_interpolations_that_do_not_resolve(fail: Fail, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.yaml").write_text("name: ${nothing.here}\n")
    message = fail(*TINY, "-c", "mine.yaml")
    assert message.startswith("name (in mine.yaml): Interpolation key")
    assert "nothing.here" in message
    monkeypatch.delenv("CROSSLIGHT_NO_SUCH", raising=False)
    message = fail(*TINY, "--name=${oc.env:CROSSLIGHT_NO_SUCH}")
    assert message.startswith("name (on the command line): the environment variable CROSSLIGHT_NO_SUCH is not set.")


# ------------------------------------------------------------------------------------ how a run that was begun ends


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.open(tmp_path / "run", name="x", command="run", config={"seed_everything": 0})


def settle(error: BaseException, folder: RunFolder | None, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, Results | None]:
    """Exit status, stderr and results.json. The error is raised first, so that it has a traceback."""
    try:
        raise error
    except BaseException as raised:
        code = settle_failure(raised, folder)
    return code, capsys.readouterr().err, read_results(folder.path) if folder else None


def test_bad_input_is_one_line_also_inside_another_exception(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    error = ValueError("wrapped by a library")
    error.__cause__ = InputError("photo.jpg is truncated. Delete it.")
    code, said, results = settle(error, folder, capsys)
    assert results is not None
    assert (code, said) == (2, "crosslight: error: photo.jpg is truncated. Delete it.\n")
    assert (results.status, results.error) == ("failed", "photo.jpg is truncated. Delete it.")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nGPU 0 has\n..."),
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
        ),
    ],
)
def test_out_of_memory(error: BaseException, folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    code, said, results = settle(error, folder, capsys)
    assert results is not None
    assert code == 1
    assert results.status == "oom"
    assert said.count("\n") == 1
    assert "gradient_cache_chunk" in said
    assert "Traceback" not in said
    assert ".." not in said
    assert str(results.error) in said


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_full_disk(number: int, wrapped: bool, folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    full: BaseException = OSError(number, "No space left on device", "/runs/x/last.ckpt")
    if wrapped:  # torch.save reports its own writer's state instead
        cause, full = full, RuntimeError("[enforce fail at inline_container.cc:603] . unexpected pos 704 vs 598")
        full.__context__ = cause
    code, said, results = settle(full, folder, capsys)
    assert results is not None
    assert code == 1
    assert results.status == "failed"
    assert said.count("\n") == 1
    for part in ("the disk is full (/runs/x/last.ckpt)", "Free some space.", f"with --run_dir {folder.path} resumes it"):
        assert part in said
        assert part in str(results.error)


def test_a_disk_so_full_that_results_cannot_say_so(
    folder: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "last.ckpt")

    def fail_too(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", fail_too)
    code, said, results = settle(full, folder, capsys)
    assert results is not None
    assert code == 1
    assert "the disk is full (last.ckpt)" in said
    assert "could not write" in said
    assert "Traceback" not in said
    assert results.status == "running"  # the old file, whole: the next attempt resumes it


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SIGTERMException(), SystemExit(1)])
def test_interrupted(error: BaseException, folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    code, said, results = settle(error, folder, capsys)
    assert results is not None
    assert code == 130
    assert results.status == "interrupted"
    assert said == f"crosslight: interrupted. The same command with --run_dir {folder.path} resumes it.\n"


def test_anything_else_is_one_line_and_keeps_its_traceback_in_a_log(
    folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said, results = settle(ZeroDivisionError("oh"), folder, capsys)
    assert results is not None
    assert code == 1
    log = folder.path / "traceback.log"
    assert said == f"crosslight: error: ZeroDivisionError: oh. The traceback is in {log}.\n"
    assert "Traceback (most recent call last)" in log.read_text()
    assert results.status == "failed"
    assert results.error in said


def test_before_there_is_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert settle(KeyboardInterrupt(), None, capsys)[:2] == (130, "crosslight: interrupted.\n")
    assert settle(SystemExit(0), None, capsys)[:2] == (0, "")
