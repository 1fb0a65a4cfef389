"""What a recorded recording is, and what a check of it reports.

A recording is `NAME.json` (its `kind`, sizes, what was recorded) and mostly `NAME.safetensors` beside it, with tensors named
`weights/...`, `inputs/...`, `outputs/...` and `grads/...`. No size is assumed: all come from the two files.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from datamodules.errors import InputError

# ------------------------------------------------------------------------------------------------------------ recordings


@dataclass(frozen=True)
class Recording:
    """One recording: what its .json says, and its tensors (none when it has no .safetensors)."""

    path: Path
    kind: str
    about: dict[str, Any]
    tensors: dict[str, Tensor]
    sha256: str | None  # of the .safetensors as it is now

    def value(self, *keys: str) -> Any:
        """A value of the .json, by its path of keys.

        Raises:
            InputError: The .json has no such key.
        """
        found: Any = self.about
        for depth, key in enumerate(keys):
            if not isinstance(found, dict) or key not in found:
                raise InputError(f"{self.path}: has no {'.'.join(keys[: depth + 1])!r}; a recording of kind {self.kind} needs it")
            found = found[key]
        return found

    def tensor(self, name: str) -> Tensor:
        """A tensor that the check cannot do without (an input).

        Raises:
            InputError: The .safetensors has no such tensor.
        """
        if name not in self.tensors:
            source = self.path.with_suffix(".safetensors")
            raise InputError(f"{source}: has no tensor {name!r}; a recording of kind {self.kind} needs it (record it again)")
        return self.tensors[name]

    def group(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under `prefix/`, without it."""
        return {name.removeprefix(f"{prefix}/"): t for name, t in self.tensors.items() if name.startswith(f"{prefix}/")}


def read_recording(path: Path) -> Recording:
    """Read `NAME.json` and the `NAME.safetensors` beside it.

    Raises:
        InputError: A file is missing, damaged or no recording. A recording without tensors of its own (its .json says neither
            `tensors` nor `sha256`) needs no .safetensors here; its checker says so if it does.
    """
    if path.suffix != ".json":
        raise InputError(f"{path} is no recording's .json; give the .json files (the .safetensors lie beside them)")
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; give the .json files of recorded recordings") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error})") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is no valid JSON ({error}); it may be cut short: copy it again") from error
    if not isinstance(about, dict) or not isinstance(about.get("kind"), str):
        raise InputError(f"{path} has no 'kind', so it is no recording; give the .json files of recorded recordings")
    beside = path.with_suffix(".safetensors")
    if not beside.is_file():
        if "tensors" in about or "sha256" in about:
            raise InputError(f"{beside} is missing; it holds the tensors of {path.name} and must lie beside it")
        return Recording(path, about["kind"], about, {}, None)
    try:
        stored = beside.read_bytes()
        tensors = load(stored)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{beside} cannot be read ({error}); it may be cut short: copy it again") from error
    return Recording(path, about["kind"], about, tensors, hashlib.sha256(stored).hexdigest())


# ------------------------------------------------------------------------------------------------------------- reports
