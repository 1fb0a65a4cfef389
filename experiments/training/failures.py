"""What a library raises, told in one line: the rest of it goes into a log file, whose place the line names.

An `InputError` says by itself what is wrong. What Lightning or a class of the user's own raises does not, and is several screens
long; whoever needs those finds them in the file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tempfile
import traceback
from pathlib import Path

from datamodules.errors import InputError, chain
from datamodules.files.references import conceal
from experiments.training.starts import rank_here

FILE = "traceback.log"  # in a run folder
_LONGEST = 300
_SHARED = "/dev/shm"
_LITTLE = 256e6  # bytes: Docker gives 64 MB
_CAUSE = re.compile(r"Problem with given class_path '([^']+)':\s+(.+?)(?=\n\s*- |\Z)", re.DOTALL)
_BULLET = re.compile(r"^ *- (.+(?:\n(?! *- | *Given| *Errors| *Subtypes).+)*)$", re.MULTILINE)
_OF_TYPES = (
    "Does not validate",
    "Expected a",
    "Problem with given class_path",
    "Not a valid subclass",
    "Subclass types",
    "a class path",
    "a dict",
)
# What libraries say where it cannot be followed here, and what is said instead.
_ADVICE = (
    (
        r".*(?:Requirement '|`)(tensorboard|mlflow)\b.*(?:not met|is available).*",
        r"\1 is not installed: pip install 'crosslight[\1]', or \1 alone.",
    ),
    (
        r".*argument after \*\* must be a mapping, not (\w+).*",
        r"an option that has options of its own (such as optimization or limits) was given as one value (\1): give them by name.",
    ),
    (
        r"(?:\w+\.)*(\w+)\.__init__\(\) missing \d+ required positional arguments?: (.+)",
        r"\1 needs \2, whose types its constructor does not say: annotate them, which makes them options.",
    ),
    (
        r"Found more than one stateful callback of type `(\w+)`.*",
        r"trainer.callbacks has two of \1 that cannot be told apart (checkpoint.monitor has one of its own): leave one out.",
    ),
    (
        r"`val_check_interval` \((\d+)\) must be less than or equal to the number of the training batches \((\d+)\).*",
        r"trainer.val_check_interval is \1, but an epoch has \2 batches: give at most \2, or a share of an epoch up to 1.0, or "
        "--trainer.check_val_every_n_epoch=null, which counts batches over epochs.",
    ),
)
_REFUSING = (ValueError, TypeError, RuntimeError, NotImplementedError, ImportError)  # MisconfigurationException is an Exception


def is_disk_full(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def lost_worker(error: BaseException) -> str | None:
    """Why a process that reads data is gone, and what to do; None where that is not what the error is, or not known."""
    said = " ".join(str(each) for each in chain(error))
    if re.search(r"received 0 items of ancdata|Too many open files", said):
        return "too many open files: raise their limit (ulimit -n 65536), or give fewer data workers (num_workers)."
    if re.search(r"DataLoader timed out after", said):
        return (
            "no batch came from the data workers for half an hour: the disk of the images hangs, or a worker does (num_workers=0 "
            "reads in the process itself, and shows where)."
        )
    if not re.search(r"DataLoader worker|shared memory", said):
        return None
    if "signal: Killed" in said:
        return "a data worker was killed, most likely for memory: give fewer of them (num_workers), or a smaller batch_size."
    room = shutil.disk_usage(_SHARED).total if os.path.isdir(_SHARED) else 0
    if "Bus error" in said or "shared memory" in said or room < _LITTLE:
        return (
            f"data workers hand batches over in {_SHARED}, whose {room / 1e6:,.0f} MB are full: give the container more (docker "
            "run --shm-size=8g or --ipc=host), or a smaller batch_size, or no workers (num_workers=0)."
        )
    return None


def one_line(error: BaseException) -> str:
    """What an exception says, on one line: without the addresses of objects, cut where it goes on for ever."""
    text = str(error)
    if (cause := inner_cause(text)) is not None:
        text = cause[1]
    elif reasons := own_reasons(text):
        text = reasons[0]
    text = re.sub(r"<?<([\w.]+) object at 0x[0-9a-f]+>>?", r"\1", text)
    text = " ".join(text.split()).strip()
    for theirs, ours in _ADVICE:
        text = re.sub(theirs, ours, text)
    short = text if len(text) <= _LONGEST else f"{text[:_LONGEST].rstrip()} ..."
    return short or type(error).__name__


def inner_cause(text: str) -> tuple[str, str] | None:
    """The class and what is wrong with it, of a dump in which jsonargparse lists why each type of a union does not fit."""
    causes = [
        (path, cause) for path, cause in _CAUSE.findall(text) if "Union subtypes" not in cause and "Parser key" not in cause
    ]
    return causes[0] if "Union subtypes" in text and causes else None


def own_reasons(text: str) -> list[str]:
    """What stands in such a dump besides jsonargparse's own remarks on types: what a module or a constructor said."""
    return [reason for reason in _BULLET.findall(text) if not reason.startswith(_OF_TYPES)] if "Union subtypes" in text else []


def with_log(message: str, error: BaseException, folder: Path | None = None) -> str:
    """The message, and where the whole of the error is: traceback.log of the run folder, or a new file among temporary ones."""
    file = _write(error, folder)
    end = "" if message.endswith((".", "!", "?")) else "."
    return f"{message}{end}" + (f" The traceback is in {file}." if file is not None else "")


def refusal(error: BaseException) -> str | None:
    """What Lightning says of options that it does not take, where that is what the error is; None where it is something else.

    Lightning raises many kinds, from the constructor of its Trainer up to the first step, so that the place tells them: the error
    is raised by Lightning's own code, not below it.
    """
    name = type(error).__name__
    last = traceback.extract_tb(error.__traceback__)[-1:] if error.__traceback__ else []
    inside = any(re.search(r"[/\\](lightning|lightning_utilities)[/\\]", frame.filename) for frame in last)
    if name == "MisconfigurationException" or (inside and isinstance(error, _REFUSING) and name != "AcceleratorError"):
        return f"Lightning refuses these options: {one_line(error)}"
    return None


def refused(what: str, error: Exception) -> InputError:
    """The `InputError` that stands for what a library said of `what` when it was built."""
    said = type(error).__name__ == "MisconfigurationException" or "Union subtypes" in str(error) or "stateful" in str(error)
    kind = "" if said else f"{type(error).__name__}: "
    return InputError(with_log(f"{what}: {kind}{one_line(error)}", error))


def _write(error: BaseException, folder: Path | None) -> Path | None:
    """None where nothing can be written."""
    text = conceal("".join(traceback.format_exception(error)))
    rank = rank_here()
    with contextlib.suppress(OSError):
        if folder is not None:
            file = folder / (FILE if rank == 0 else f"{Path(FILE).stem}-{rank}.log")
            file.write_text(text, encoding="utf-8", errors="backslashreplace")
            return file
    with contextlib.suppress(OSError):
        number, name = tempfile.mkstemp(prefix="crosslight-", suffix=".log")
        with os.fdopen(number, "w", encoding="utf-8", errors="backslashreplace") as log:
            log.write(text)
        return Path(name)
    return None
