"""The command line as a user types it, on a tiny world, in this process or in one of its own."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import io
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import forks
import numpy as np
import pytest
import torch
from forks import ended
from torch import Tensor

HERE = Path(__file__).parent
ROOT = HERE.parent.parent  # before what is installed: the tests of a worktree run its own code
# 27 training images in batches of 8: three steps an epoch, three images left over. 7 images to validate, 11 to test: all odd.
TRAIN, VAL, TEST, BATCH = 27, 7, 11, 8
STEPS = TRAIN // BATCH
COMMON = (
    "-c=configs/trainer/demo.yaml", "-c=configs/model/dual_tiny.yaml", "-c=configs/data/world.yaml",
    f"--data.init_args.batch_size={BATCH}", "--data.init_args.eval_batch_size=4", "--trainer.precision=32-true",
    "--trainer.log_every_n_steps=1",
)  # fmt: skip
# A BEiT-3 below the demo's size, for `arguments(row, *BEIT3)`: the later file's network replaces the two towers.
BEIT3 = (
    "-c", "configs/model/beit3_tiny.yaml", "--model.init_args.network.init_args.image_size=32",
    "--model.init_args.network.init_args.width=24", "--model.init_args.network.init_args.num_layers=2",
    "--model.init_args.network.init_args.ffn_width=48",
)  # fmt: skip
# A CLIP as Hugging Face's library builds it, on smaller images.
CLIP = ("-c", "configs/model/clip_tiny.yaml", "--model.init_args.network.init_args.image_size=32")
# A CLIP as the library open_clip builds it, which is an extra: its tests are left out where it is not installed.
OPEN_CLIP = (
    "-c", "configs/model/open_clip_vit_b32.yaml", "--model.init_args.network.init_args.name=null",
    "--model.init_args.network.init_args.weights=random",
    "--model.init_args.network.init_args.config={embed_dim: 16, "
    "vision_cfg: {image_size: 32, layers: 2, width: 24, head_width: 8, patch_size: 16}, "
    "text_cfg: {context_length: 32, vocab_size: 49408, width: 24, heads: 3, layers: 2}}",
)  # fmt: skip
NEEDS_OPEN_CLIP = pytest.mark.skipif(
    importlib.util.find_spec("open_clip") is None, reason="open_clip is not installed: pip install 'crosslight[open_clip]'"
)
# A UNITER below the demo's size on the same photographs: their 135 training captions in batches of 8 positives a side with 6
# candidates each, and 6 steps of two such batches, a validation after the third and the last.
_NETWORK = "--model.init_args.network.init_args"
UNITER = (
    "-c", "configs/trainer/demo.yaml", "-c", "configs/model/uniter_tiny.yaml", "-c", "configs/data/world_entities.yaml",
    f"{_NETWORK}.init_std=0.3", f"{_NETWORK}.width=24", f"{_NETWORK}.num_heads=2", f"{_NETWORK}.num_layers=2",
    f"{_NETWORK}.ffn_width=48",
    "--model.init_args.hard_negatives=3", "--data.init_args.ranking.candidates=6", f"--data.init_args.batch_size={BATCH}",
    "--data.init_args.eval_batch_size=8", "--trainer.log_every_n_steps=1", "--trainer.accumulate_grad_batches=2",
    "--trainer.max_epochs=-1", "--trainer.max_steps=6", "--trainer.check_val_every_n_epoch=null",
    "--trainer.val_check_interval=6",
)  # fmt: skip
# A ViLT below the demo's size on the same data and steps, of 16 patches a photograph.
VILT = (
    *UNITER[:2], "-c", "configs/model/vilt_tiny.yaml", "-c", "configs/data/world_patches.yaml",
    f"{_NETWORK}.config={{hidden_size: 24, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 48, image_size: 32, "
    "patch_size: 8, vocab_size: 320, max_position_embeddings: 64, initializer_range: 0.2}",
    f"{_NETWORK}.weights=random", *UNITER[UNITER.index("--model.init_args.hard_negatives=3"):],
)  # fmt: skip
# The same UNITER to be pre-trained: 27 training images in batches of 8, of one task each; 6 steps of two such batches.
PRETRAINING = (
    "-c", "configs/trainer/demo.yaml", "-c", "configs/model/uniter_pretraining_tiny.yaml",
    "-c", "configs/data/world_entities.yaml",
    f"{_NETWORK}.init_std=0.3", f"{_NETWORK}.width=24", f"{_NETWORK}.num_heads=2", f"{_NETWORK}.num_layers=2",
    f"{_NETWORK}.ffn_width=48", "--checkpoint.monitor=val/loss", "--checkpoint.mode=min", f"--data.init_args.batch_size={BATCH}",
    "--data.init_args.eval_batch_size=8", "--data.init_args.pretraining.consecutive=2", "--trainer.log_every_n_steps=1",
    "--trainer.accumulate_grad_batches=2", "--trainer.max_epochs=-1", "--trainer.max_steps=6",
    "--trainer.check_val_every_n_epoch=null", "--trainer.val_check_interval=6",
)  # fmt: skip
# A captioner below the demo's size: the 135 training captions in batches of 20, each image of a batch once, and 6 steps of two
# such batches, a validation after the third and the last; 7 images to validate, 11 to test.
CAPTIONER = (
    "-c", "configs/trainer/demo.yaml", "-c", "configs/model/captioner_tiny.yaml", "-c", "configs/data/world_captions.yaml",
    f"{_NETWORK}.vision.init_args.options={{img_size: 32, patch_size: 16, embed_dim: 24, depth: 1, num_heads: 3}}",
    f"{_NETWORK}.vision.init_args.image_size=32",
    f"{_NETWORK}.language.init_args.config={{model_type: gpt2, n_embd: 24, n_layer: 2, n_head: 2, n_positions: 64, "
    "vocab_size: 320, bos_token_id: 3, eos_token_id: 3, pad_token_id: 0, initializer_range: 0.3}",
    "--data.init_args.batch_size=20", "--data.init_args.eval_batch_size=2", "--model.init_args.decoding.max_new_tokens=8",
    "--model.init_args.decoding.num_beams=3", "--model.init_args.scoring.metrics=[bleu, rouge_l, cider]",
    "--model.init_args.scoring.tokenizer=simple", "--model.init_args.optimization.lr=0.02",
    "--trainer.log_every_n_steps=1", "--trainer.accumulate_grad_batches=2", "--trainer.max_epochs=-1", "--trainer.max_steps=6",
    "--trainer.check_val_every_n_epoch=null", "--trainer.val_check_interval=6",
)  # fmt: skip
# Row lora_both: LoRA in both towers behind a linear prefix, as small as these towers.
_ADAPTERS = "lightning_modules.adapters"
BRIDGED = (
    "--model.init_args.adapter.init_args.adapters="
    f"[{{class_path: {_ADAPTERS}.clipcap.ClipCap, init_args: {{mapping: linear, prefix_length: 2}}}}, "
    f"{{class_path: {_ADAPTERS}.lora.LoRAAdapter, init_args: {{rank: 2, towers: both}}}}]",
)
_WANDB_SERVICE = "WANDB_SERVICE"  # of a W&B run in the tests' own process: another process would write into that one's service
RECALLS = {f"{direction}_r{k}" for direction in ("i2t", "t2i") for k in (1, 5, 10)} | {"rsum"}


def arguments(row: str, *more: str) -> list[str]:
    """Options of a row of MWA's tables on the tiny world."""
    pairs = [part for each in COMMON for part in (["-c", each[3:]] if each.startswith("-c=") else [each])]
    return [*pairs, "-c", f"experiments/papers/mwa/variants/{row}.yaml", *more]


def uniter(row: str, *more: str) -> list[str]:
    """Options of a row of IAIS's tables on the tiny world."""
    return [*UNITER, "-c", f"experiments/papers/iais/variants/{row}.yaml", *more]


def vilt(row: str, *more: str) -> list[str]:
    """The same with ViLT."""
    return [*VILT, "-c", f"experiments/papers/iais/variants/{row}.yaml", *more]


_SCORERS = {
    "visual_bert": "{hidden_size: 24, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 48, vocab_size: 320, "
    "max_position_embeddings: 64, visual_embedding_dim: 108, pad_token_id: 0, initializer_range: 0.2}",
    "blip": "{text_config: {hidden_size: 24, encoder_hidden_size: 24, num_hidden_layers: 2, num_attention_heads: 2, "
    "intermediate_size: 48, vocab_size: 321, max_position_embeddings: 64, initializer_range: 0.2}, vision_config: "
    "{hidden_size: 24, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 48, image_size: 32, patch_size: 16, "
    "initializer_range: 0.2}, image_text_hidden_size: 8}",
    "bridgetower": "{hidden_size: 24, num_hidden_layers: 2, num_attention_heads: 2, text_config: {hidden_size: 24, "
    "num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 48, vocab_size: 320, max_position_embeddings: 64, "
    "pad_token_id: 0}, vision_config: {hidden_size: 64, num_hidden_layers: 2, image_size: 32, patch_size: 16}}",
}


def shape(name: str) -> tuple[str, ...]:
    """Options that make the tiny configuration of a pair scorer as small as the tiny world wants it."""
    return (f"{_NETWORK}.config={_SCORERS[name]}",)


def scorer(name: str, *more: str) -> list[str]:
    """Ranking on the tiny world by another pair scorer: one of the names in `_SCORERS`."""
    data = "world_entities" if name == "visual_bert" else "world_patches"
    rest = UNITER[UNITER.index("--model.init_args.hard_negatives=3") :]
    files = ("-c", f"configs/model/{name}_tiny.yaml", "-c", f"configs/data/{data}.yaml")
    return [*UNITER[:2], *files, *shape(name), *rest, *more]


def typed(page: Path, instead: Mapping[str, str], under: str = "") -> list[list[str]]:
    """What a page tells its reader to type, in its order, without `crosslight`.

    Args:
        page: The file.
        instead: What stands for a part of a word, such as a tiny configuration for one that needs the Hub.
        under: A heading; the default takes the whole page.
    """
    text = page.read_text()
    if under:
        _, _, text = text.partition(f"# {under}\n")
        text = re.split(r"^#+ ", text, maxsplit=1, flags=re.MULTILINE)[0]
    blocks = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    found = [shlex.split(line.removeprefix("$ "))[1:] for line in "".join(blocks).replace("\\\n", " ").splitlines()]
    for real, tiny in instead.items():
        found = [[word.replace(real, tiny) for word in words] for words in found]
    return found


def captioner(row: str, *more: str) -> list[str]:
    """Options of a row of I-Tuning's tables on the tiny world."""
    return [*CAPTIONER, "-c", f"experiments/papers/i_tuning/variants/{row}.yaml", *more]


@dataclass(frozen=True)
class Answer:
    """How a command ended: its exit status and what it printed."""

    status: int
    out: str
    error: str


def crosslight(command: str, *options: str) -> Answer:
    """`crosslight COMMAND OPTIONS` in this process."""
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        status = _status(command, options)
    return Answer(status, out.getvalue(), error.getvalue())


def _status(command: str, options: Sequence[str]) -> int:
    from experiments.cli.main import main

    try:
        main([command, *options])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def succeed(command: str, *options: str) -> Answer:
    answer = crosslight(command, *options)
    assert answer.status == 0, answer.error
    return answer


@contextlib.contextmanager
def started(program: Sequence[str], *options: str) -> Iterator[subprocess.Popen[str]]:
    """The same in a process of its own, in its own session, so that nothing of it outlives the test."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE}:{ROOT}"}
    for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "CROSSLIGHT_RANK0_RUN_FOLDER",
                 _WANDB_SERVICE):  # fmt: skip
        environment.pop(name, None)
    with subprocess.Popen(
        [*program, *options],
        env=environment, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)


def python_m() -> list[str]:
    return [sys.executable, "-m", "experiments.cli"]


def script() -> list[str]:
    """The installed entry `crosslight`, or the module where only the source tree is there."""
    installed = Path(sys.executable).with_name("crosslight")
    return [str(installed)] if installed.exists() else python_m()


@contextlib.contextmanager
def forked(
    log: Path, command: str, *options: str, first: Callable[[], None] | None = None, **environment: str
) -> Iterator[BaseProcess]:
    """The same in a process of its own that has everything imported already: see `forks`.

    Args:
        log: File for what it prints.
        command: Of crosslight.
        options: Likewise.
        first: Called there before the command.
        environment: More variables.
    """
    with forks.forked(_child, command, options, first, log=log, **environment) as process:
        yield process


def _child(command: str, options: Sequence[str], first: Callable[[], None] | None) -> int:
    os.environ.pop(_WANDB_SERVICE, None)
    if first is not None:
        first()
    return _status(command, options)


def torchrun(rank: int, size: int, port: int) -> dict[str, str]:
    """The variables that torchrun gives a process of one machine."""
    return {
        "RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "GROUP_RANK": "0", "ROLE_RANK": f"{rank}", "WORLD_SIZE": f"{size}",
        "LOCAL_WORLD_SIZE": f"{size}", "GROUP_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}",
        "TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_RESTART_COUNT": "0",
    }  # fmt: skip


def run_by_one_and_by_two(command: Callable[..., list[str]], logs: Path) -> None:
    """`crosslight run` of `command("one")` in this process beside `command("two", ...)` in two ranks, as torchrun starts them."""
    two, port = command("two", "--trainer.devices=2", "--trainer.strategy=ddp"), free_port()
    files = [logs / f"rank{rank}" for rank in (0, 1)]
    with (
        forked(files[0], "run", *two, **torchrun(0, 2, port)) as first,
        forked(files[1], "run", *two, **torchrun(1, 2, port)) as second,
    ):
        succeed("run", *command("one"))
        for process, log in zip((first, second), files, strict=True):
            status, printed = ended(process, log)
            assert status == 0, printed
            assert "rror" not in printed, printed


def killed_and_resumed(command: Callable[[Path], list[str]], folder: Path, step: int) -> tuple[Path, Path]:
    """`crosslight run` of `command(RUN)` to the end; and killed after a step and resumed by the same words: the weights must be
    the same, to the bit.

    Args:
        command: Options with the run folder; with a checkpoint before the step.
        folder: For both runs.
        step: After which it is killed.

    Returns:
        The run folders: whole, resumed.
    """
    whole, cut, spent = folder / "whole", folder / "cut", folder / "power cut"
    switch = (
        "--trainer.callbacks=kill_switch.KillSwitch",
        f"--trainer.callbacks.step={step}",
        f"--trainer.callbacks.spent={spent}",
    )
    with forked(folder / "log", "run", *command(cut), *switch) as process:
        status, printed = ended(process, folder / "log")
    assert status == -signal.SIGKILL, printed
    assert results(cut)["status"] == "running"
    assert 0 < torch.load(cut / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] <= step
    for run in (cut, whole):
        succeed("run", *command(run), *switch)
    assert [results(run)["attempts"] for run in (whole, cut)] == [1, 2]
    ours, theirs = weights(cut, "last.ckpt"), weights(whole, "last.ckpt")
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert torch.equal(ours[key], tensor), key
    return whole, cut


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def results(run: Path) -> dict[str, Any]:
    return json.loads((run / "results.json").read_text())


def recalls(run: Path, data: str = "flickr30k") -> dict[str, float]:
    found = [evaluation for evaluation in results(run)["evaluations"] if evaluation["data"] == data]
    assert len(found) == 1
    return found[0]["metrics"]


def scores(run: Path, name: str = "flickr30k_entities") -> Tensor:
    """The kept score matrix of a test [images, captions]."""
    return torch.from_numpy(np.load(run / "scores" / f"{name}-test" / "scores.npy"))


def captions(run: Path, name: str = "flickr30k") -> dict[Any, str]:
    """The captions of a test by image id."""
    return {each["image_id"]: each["caption"] for each in json.loads((run / "captions" / f"{name}-test.json").read_text())}


def weights(run: Path, name: str) -> dict[str, Tensor]:
    return torch.load(run / "checkpoints" / name, weights_only=True)["state_dict"]


def metrics(run: Path, column: str) -> list[tuple[int, float]]:
    """(step, value) of every row of metrics.csv that has the column."""
    with open(run / "metrics.csv", newline="") as file:
        return [(int(row["step"]), float(row[column])) for row in csv.DictReader(file) if row.get(column)]


def wait(process: subprocess.Popen[str], seconds: float = 280) -> tuple[int, str]:
    """Exit status and everything it printed; generous, because a loaded machine needs a minute to import torch."""
    out, error = process.communicate(timeout=seconds)
    return process.returncode, out + error
