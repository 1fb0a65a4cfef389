"""Runs a training or evaluation sub-command and settles its run folder: finished, failed, out of memory or interrupted."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence

from datamodules.errors import AgreedError, chain, find_input_error
from datamodules.files.references import conceal
from experiments.training import last_words, preemption
from experiments.training.configs import find_configs
from experiments.training.failures import is_disk_full, lost_worker, one_line, refusal, with_log
from experiments.training.quiet import quiet
from experiments.training.starts import RUN_FOLDER_VARIABLE, rank_here


def run_alone(command: str, arguments: Sequence[str]) -> int:
    """`crosslight COMMAND ARGUMENTS` in a process that does nothing else: it listens to Slurm. Returns the exit status.

    Raises:
        InputError: A configuration file does not exist.
    """
    preemption.listen()  # before torch is imported: until then a signal of Slurm's finds nobody
    return train_or_evaluate(command, find_configs(list(arguments)))


def train_or_evaluate(command: str, arguments: list[str], announce: bool = True) -> int:
    """Parse, build, run. Returns the exit status; the run folder's results.json says the same in words."""
    quiet()
    gc.disable()  # a tenth of a start went into looking for garbage where there is none; on again before the run
    first = "experiments.training.lightning_cli" not in sys.modules
    from experiments.training.lightning_cli import CrosslightCLI

    if first:
        gc.freeze()  # what has been imported stays: no collection looks at it again
    CrosslightCLI.opened = None
    try:
        if any(word.endswith(".help") for word in arguments):
            from experiments.training.choices import answer

            found = answer([command, *arguments])
            if isinstance(found, str):
                print(found)
                return 0
            arguments = found[1:]
        CrosslightCLI([command, *arguments])
    except BaseException as error:
        return settle_failure(error, CrosslightCLI.opened)
    finally:
        gc.enable()
        os.environ.pop(RUN_FOLDER_VARIABLE, None)  # a second run of this process has a folder of its own
    if CrosslightCLI.opened is not None:
        CrosslightCLI.opened.finish("finished")
        if announce and CrosslightCLI.opened.ours:
            from experiments.training.closing import closing

            print(closing(CrosslightCLI.opened))
    return 0


def settle_failure(error: BaseException, folder: object) -> int:
    """Record how a run ended in its folder, tell the user in a few lines, and return the exit status."""
    import torch
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from experiments.runs.folder import RunFolder
    from experiments.runs.results import ResultsStatus
    from lightning_modules import collectives

    if isinstance(error, SystemExit) and error.code in (0, None) and not isinstance(error, SIGTERMException):
        return 0  # --help-all, --print_config (SIGTERMException is a SystemExit without a code)
    text = str(error)
    resume = f" The same command with --run_dir {folder.path} resumes it." if isinstance(folder, RunFolder) else ""
    status: ResultsStatus
    cause, alike = find_input_error(error), False  # alike: all ranks leave so, and one says it
    told_to = isinstance(error, (KeyboardInterrupt, SIGTERMException, SystemExit))
    torn = collectives.several() and last_words.torn(error)
    other = last_words.of_another(folder.path) if isinstance(folder, RunFolder) and (told_to or torn) else None
    if cause is not None:
        status, message, code, alike = "failed", str(cause), 2, isinstance(cause, AgreedError)
    elif torn or other is not None:
        status, code, alike = "failed", 1, True
        message = other or "another process of the run ended before this one, and says why where it was started."
    elif isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in text:
        status, code = "oom", 1
        message = (
            f"out of memory: {text.splitlines()[0].rstrip('. ') if text else 'host memory'}. Try a smaller "
            "--model.init_args.gradient_cache_chunk (retrieval: same gradients), half the --data.init_args.batch_size with twice "
            "the --trainer.accumulate_grad_batches (captioning: same gradients), activation checkpointing, or bf16-mixed."
        )
    elif (full := next((each for each in chain(error) if is_disk_full(each)), None)) is not None:
        status, code = "failed", 1
        message = f"the disk is full ({getattr(full, 'filename', None) or 'while writing'}). Free some space.{resume}"
    elif (why := lost_worker(error)) is not None:
        status, message, code = "failed", f"{why}{resume}", 1
    elif isinstance(error, preemption.Preempted):
        preemption.leave()
        status, message, code, alike = "interrupted", f"preempted {error}.{resume}", preemption.PREEMPTED, True
    elif (notice := preemption.told()) is not None:  # a worker or another rank was quicker to go
        status, message, code = "interrupted", f"stopped by {notice.name}; {type(error).__name__}: {text}.{resume}", 130
    elif told_to:
        status, message, code = "interrupted", f"interrupted.{resume}", 130
    else:
        refused = refusal(error)
        status, code = "failed", 1 if refused is None else 2
        log = folder.path if isinstance(folder, RunFolder) else None
        message = with_log(refused or f"{type(error).__name__}: {one_line(error)}", error, log)
    message = conceal(message)
    if isinstance(folder, RunFolder):
        try:
            folder.finish(status, message)
        except OSError as problem:
            print(f"crosslight: could not write {folder.path / 'results.json'}: {problem}", file=sys.stderr)
        if not (folder.ours or alike or status == "interrupted"):
            last_words.leave(folder.path, rank_here(), message)
    first = folder.ours if isinstance(folder, RunFolder) else rank_here() == 0
    if not alike or first:
        print(f"crosslight: error: {message}" if status != "interrupted" else f"crosslight: {message}", file=sys.stderr)
    return code
