"""From an official checkpoint to a reloaded adapter at BEiT-3's base size, on real photographs: does it work, in what memory?

    CROSSLIGHT_DATA=/data CROSSLIGHT_BEIT3_SPM=beit3.spm python benchmarks/official_checkpoint.py --out result.json
    make beit3-official                                                        # the same

Each stage is a process of its own, whose peak resident size is read when it ends (the kernel's, `wait4`):

    write    a base network of 222,167,041 random parameters, written in the official layout (224 px, 890 MB)
    run      `crosslight run` on the packaged configurations: loaded at another resolution (positions interpolated), MWA-tuned
             some steps on Flickr8k's photographs, validated, tested
    export   `crosslight export`: the adapter alone, some 27 MB
    tuned    `lightning_modules.load(RUN)`: embeddings of test photographs and captions
    reloaded `lightning_modules.load(EXPORT)`: the same embeddings, from checkpoint and export
    frozen   the network without the adapter: to see that the steps changed something

It ends with status 1 unless the embeddings of `tuned` and `reloaded` are equal, those of `frozen` are not, and every stage stayed
below 8 GiB. Random weights do not retrieve anything, so recalls mean nothing here. The folder of the run is removed at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# The file is run by its path: the packages beside this folder must be found without an installation, too.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from benchmarks import harness

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT = "beit3_base_itc_patch16_224.pth"  # the name that configs/model/beit3_base_224.yaml looks for
LIMIT_BYTES = 8 * 2**30


# ---------------------------------------------------------------------------------------------------------------- the stages


def write(path: str, sizes: Mapping[str, Any]) -> None:
    """A network with random weights, in the official layout."""
    import torch

    from lightning_modules.checkpoints.beit3 import write_official
    from lightning_modules.networks.beit3 import BEiT3Retrieval

    torch.manual_seed(0)
    write_official(BEiT3Retrieval(tokenizer="none", **sizes), path)


def embed(source: str, out: str, config: str, frozen: bool) -> None:
    """Embeddings of the test split of a run's data.

    Args:
        source: Run folder or adapter export; with `frozen` unused.
        out: A .npz with images [I, D] and texts [C, D].
        config: The run's config.yaml: which data, and which backbone for `frozen`.
        frozen: Take the backbone of `config` as its checkpoint has it, without an adapter.
    """
    import numpy as np
    import torch
    import yaml

    import lightning_modules
    from datamodules.flickr8k import Flickr8k
    from datamodules.image_text import Limits
    from lightning_modules.checkpoints.fill import fill
    from lightning_modules.networks.beit3 import BEiT3Retrieval

    settings = yaml.safe_load(Path(config).read_text())
    network: Any
    if frozen:
        network = fill(BEiT3Retrieval(**settings["model"]["init_args"]["network"]["init_args"])).eval()
    else:
        network = lightning_modules.load(source).network
    arguments = dict(settings["data"]["init_args"])
    arguments["limits"] = Limits(**arguments["limits"])
    data = Flickr8k(**arguments)
    data.connect(network.inputs)
    images, texts = data.evaluation_loaders("test")
    with torch.inference_mode():
        found = {
            "images": torch.cat([network.encode_images(batch) for batch in images]).numpy(),
            "texts": torch.cat([network.encode_texts(batch) for batch in texts]).numpy(),
        }
    np.savez(out, **found)


# ------------------------------------------------------------------------------------------------------------- running them


def stage(name: str, command: Sequence[str], environment: Mapping[str, str]) -> dict[str, Any]:
    """Run a process to its end: wall and CPU seconds, peak resident bytes.

    Raises:
        SystemExit: It failed.
    """
    harness.tell(f"{name}: {' '.join(command)}")
    started, _ = harness.clock()
    process = subprocess.Popen(command, env=dict(environment))
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"stage {name} ended with status {process.returncode}; what it said is above")
    row = {
        "stage": name,
        "wall_s": round(harness.clock()[0] - started, 1),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_rss_bytes": 1024 * usage.ru_maxrss,  # Linux counts in KiB
    }
    harness.tell(f"{name}: {row['wall_s']} s, peak {row['peak_rss_bytes'] / 2**30:.2f} GiB")
    return row


def compare(folder: Path) -> dict[str, float]:
    """Largest absolute differences between the embeddings of the stages."""
    import numpy as np

    found = {name: np.load(folder / f"{name}.npz") for name in ("tuned", "reloaded", "frozen")}
    sides = ("images", "texts")
    rows = {f"{side}_rows": len(found["tuned"][side]) for side in sides}
    return rows | {
        f"{other}_{side}_difference": float(np.abs(found["tuned"][side] - found[other][side]).max())
        for other in ("reloaded", "frozen")
        for side in sides
    }


def problems(result: Mapping[str, Any]) -> list[str]:
    """What was promised and did not hold."""
    found = result["embeddings"]
    out = [
        f"stage {row['stage']} took {row['peak_rss_bytes'] / 2**30:.2f} GiB, more than {LIMIT_BYTES / 2**30:.0f}"
        for row in result["stages"]
        if row["peak_rss_bytes"] > LIMIT_BYTES
    ]
    for side in ("images", "texts"):
        if found[f"reloaded_{side}_difference"] > 1e-6:
            out.append(f"embeddings of {side} differ by {found[f'reloaded_{side}_difference']:.1e} after the reload")
        if found[f"frozen_{side}_difference"] < 1e-4:
            out.append(f"embeddings of {side} did not change by tuning ({found[f'frozen_{side}_difference']:.1e})")
    return out


def parser() -> argparse.ArgumentParser:
    made = harness.command_line(__doc__, "write the result as JSON")
    add = made.add_argument
    add("--spm", type=Path, default=os.environ.get("CROSSLIGHT_BEIT3_SPM"), help="beit3.spm (CROSSLIGHT_BEIT3_SPM)")
    add("--image-size", type=int, default=128, help="resolution to load at; the checkpoint has 224")
    add("--steps", type=int, default=12)
    add("--batch", type=int, default=16)
    add("--precision", default="32-true", help="of the training steps; bf16-mixed is faster where the chip has it")
    add("--work", type=Path, help="folder for checkpoint and run, 1 GB (a temporary one)")
    add("--network", default="{}", help="JSON of BEiT3Retrieval arguments for a smaller network")
    add("--stage", nargs="+", help=argparse.SUPPRESS)  # how this script starts itself
    return made


def run(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """All stages in `work`, and what they gave."""
    sizes: dict[str, Any] = json.loads(options.network)
    weights, folder, export = work / "weights", work / "run", work / "export"
    weights.mkdir(parents=True)
    (weights / "beit3.spm").symlink_to(options.spm.resolve())
    environment = {**os.environ, "CROSSLIGHT_WEIGHTS": str(weights), "WANDB_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    me = [sys.executable, str(Path(__file__).resolve()), "--stage"]
    cli = [sys.executable, "-m", "experiments.cli"]
    network = "--model.init_args.network.init_args"
    training = [
        *cli, "run",
        "-c", "configs/trainer/cpu.yaml", "-c", "configs/model/beit3_base_224.yaml",
        "-c", "configs/data/flickr8k.yaml", "-c", "experiments/papers/mwa/variants/mwa.yaml",
        f"{network}.image_size={options.image_size}", *(f"{network}.{name}={value}" for name, value in sizes.items()),
        f"--data.init_args.batch_size={options.batch}", "--data.init_args.eval_batch_size=32", "--data.init_args.num_workers=0",
        f"--data.init_args.limits.train={options.steps * options.batch}", "--data.init_args.limits.val=32",
        "--data.init_args.limits.test=32", "--trainer.max_epochs=1", f"--trainer.precision={options.precision}",
        "--trainer.log_every_n_steps=1", f"--run_dir={folder}",
    ]  # fmt: skip
    config = str(folder / "config.yaml")

    def embeddings(name: str, source: Path) -> dict[str, Any]:
        return stage(name, [*me, "embed", str(source), str(work / f"{name}.npz"), config, name], environment)

    checkpoint = weights / CHECKPOINT
    stages = [
        stage("write", [*me, "write", str(checkpoint), json.dumps({"image_size": 224, **sizes})], environment),
        stage("run", training, environment),
        stage("export", [*cli, "export", str(folder), str(export)], environment),
        embeddings("tuned", folder),
        embeddings("reloaded", export),
        embeddings("frozen", folder),
    ]
    results = json.loads((folder / "results.json").read_text())
    return {
        "checkpoint_bytes": checkpoint.stat().st_size,
        "export_bytes": sum(file.stat().st_size for file in export.iterdir()),
        "stages": stages,
        "embeddings": compare(work),
        "run_results": results,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 = all held, 1 = not."""
    options = parser().parse_args(arguments)
    if options.stage:
        name, *rest = options.stage
        if name == "write":
            write(rest[0], json.loads(rest[1]))
        else:
            embed(rest[0], rest[1], rest[2], rest[3] == "frozen")
        return 0
    if options.spm is None or not Path(options.spm).is_file():
        raise SystemExit(f"BEiT-3's tokenizer is needed: --spm FILE or CROSSLIGHT_BEIT3_SPM (got {options.spm})")
    options.spm = Path(options.spm)
    if not os.environ.get("CROSSLIGHT_DATA"):
        raise SystemExit("CROSSLIGHT_DATA must name the folder that holds flickr8k/ (photographs and Karpathy's split)")
    settings: dict[str, Any] = {name: getattr(options, name) for name in ("image_size", "steps", "batch", "precision")}
    settings["network"] = json.loads(options.network)
    result = harness.heading("official_checkpoint", "cpu", settings, environment=())
    if options.work:
        options.work.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="beit3-official-", dir=options.work))
    try:
        result |= run(options, work)
    finally:
        shutil.rmtree(work)
    result["problems"] = problems(result)
    harness.write(result, options.out)
    shown = [(row["stage"], row["peak_rss_bytes"] / 2**30, row["wall_s"], row["cpu_s"]) for row in result["stages"]]
    rows = [[name, f"{peak:.2f}", f"{wall}", f"{cpu}"] for name, peak, wall, cpu in shown]
    print(harness.table(["stage", "peak RSS GiB", "wall s", "CPU s"], rows))
    print(json.dumps(result["embeddings"], indent=1))
    print("\n".join(f"PROBLEM: {problem}" for problem in result["problems"]) or "equal after the reload, and below 8 GiB")
    return 1 if result["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
