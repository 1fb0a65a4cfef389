"""What a start costs: processor seconds of commands and imports, as multiples of `import torch` in the same run.

    python benchmarks/startup.py --out startup.json       # 5 rounds, 8 minutes on 2 cores
    python benchmarks/startup.py --rounds 1 --only torch lightning lightning_lazy

    torch             `import torch`: the unit
    lightning         `import lightning.pytorch`
    lightning_lazy    the same through the doors of datamodules/lazy_imports.py. Goal: as near to 1 as can be
    retrieval, ranking, captioning, data, cli       our modules (cli: experiments.training.lightning_cli)
    run_dual, run_beit3, run_uniter, run_captioner  `crosslight run` of a packaged miniature to the end of its first optimizer
                      step, where the process is left at once. Goal: at most 2
    help, data_check, sweep_status, table, report, score      the commands, whole. Without torch they take a fraction of 1

Every round runs each of them once in a process of its own, so that what else the machine does is shared by all. Seconds are user
and system ones of the process and its children (getrusage), with one thread; wall time on shared cores means nothing. Ratios are
of the minima and of the medians. The first round reads files that later ones find in memory: it is a warm-up and not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# The file is run by its path: the packages beside this folder must be found without an installation, too.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.runs.provenance import device_state, git_state, versions

ROOT = Path(__file__).resolve().parents[1]
IMPORTS = {
    "torch": "import torch",
    "lightning": "import lightning.pytorch",
    "lightning_lazy": "import lightning_modules, lightning.pytorch",
    "retrieval": "import lightning_modules.retrieval",
    "ranking": "import lightning_modules.ranking",
    "captioning": "import lightning_modules.captioning",
    "data": "import datamodules.flickr30k, datamodules.flickr30k_entities",
    "cli": "import experiments.training.lightning_cli",
}
GOALS = {"run_dual": 2, "run_beit3": 2, "run_uniter": 2, "run_captioner": 2}
_DEMO = ("-c", "configs/trainer/demo.yaml", "--trainer.max_epochs=1", "--data.init_args.batch_size=8")
_TOWERS = (
    "-c",
    "configs/model/dual_tiny.yaml",
    "-c",
    "configs/data/world.yaml",
    "-c",
    "experiments/papers/mwa/variants/full.yaml",
)
RUNS = {
    "run_dual": _TOWERS,
    "run_beit3": (*_TOWERS[:4], "-c", "configs/model/beit3_tiny.yaml", *_TOWERS[4:]),
    "run_uniter": (
        "-c", "configs/model/uniter_tiny.yaml", "-c", "configs/data/world_entities.yaml", "-c",
        "experiments/papers/iais/variants/distributed.yaml", "--data.init_args.ranking.candidates=6",
        "--model.init_args.hard_negatives=3",
    ),
    "run_captioner": (
        "-c", "configs/model/captioner_tiny.yaml", "-c", "configs/data/world_captions.yaml", "-c",
        "experiments/papers/i_tuning/variants/i_tuning.yaml",
    ),
}  # fmt: skip
# A callback for the run's own process, in a file of its own: this one must not be imported there.
FIRST_STEP = """\
import os

from lightning.pytorch.callbacks import Callback


class FirstStep(Callback):
    def on_train_batch_end(self, *arguments):
        os._exit(0)
"""


def crosslight(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "experiments.cli", *arguments]


def commands(folder: Path, only: Sequence[str]) -> dict[str, list[str]]:
    """Name to command line. What the commands read is made in `folder` first."""
    world, run = folder / "world", folder / "whole"
    environment = surroundings(folder)
    (folder / "papers").mkdir()
    (folder / "first_step.py").write_text(FIRST_STEP)
    leave = "--trainer.callbacks=[{class_path: first_step.FirstStep}]"
    made = crosslight("world", str(world), "--scenes", "60", "--image-size", "32")
    subprocess.run(made, env=environment, check=True, stdout=subprocess.DEVNULL)
    results = folder / "captions.json"
    references = world / "flickr30k" / "dataset_flickr30k.json"
    every = {name: [sys.executable, "-c", line] for name, line in IMPORTS.items()}
    for name, options in RUNS.items():
        every[name] = crosslight("run", *_DEMO[:2], *options, *_DEMO[2:], f"--run_dir={folder / name}", leave)
    every |= {
        "help": crosslight("--help"),
        "data_check": crosslight("data", "check", "flickr30k", str(world / "flickr30k"), "--workers", "1"),
        "sweep_status": crosslight("sweep", "status", "mwa/table1", "--out", str(folder / "papers")),
        "table": crosslight("table", str(run)),
        "report": crosslight("report", "mwa/table1", "--runs", str(folder / "papers"), "--out", str(folder / "report")),
        "score": crosslight(
            "score", str(results), "--references", str(references), "--metrics", "bleu,cider", "--tokenizer", "simple"
        ),
    }
    chosen = {name: line for name, line in every.items() if not only or name in (*only, "torch")}
    if "table" in chosen:
        whole = [*_DEMO[:2], *_TOWERS, *_DEMO[2:], "--trainer.max_steps=1", "--trainer.val_check_interval=1", f"--run_dir={run}"]
        subprocess.run(
            crosslight("run", *whole), env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    if "score" in chosen:
        images = [image for image in json.loads(references.read_text())["images"] if image["split"] == "test"]
        said = [{"image_id": image["imgid"], "caption": image["sentences"][0]["raw"]} for image in images]
        results.write_text(json.dumps(said))
    return chosen


def surroundings(folder: Path) -> Mapping[str, str]:
    path = os.pathsep.join([str(ROOT), str(folder)])
    added = {"PYTHONPATH": path, "CROSSLIGHT_WORLD": str(folder / "world"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **added}


def processor_seconds(command: Sequence[str], folder: Path) -> float:
    """User and system seconds of a command and its children.

    Raises:
        RuntimeError: It failed; with what it printed.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.run(
        command, env=surroundings(folder), cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{process.stdout[-2000:]}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def summary(seconds: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """A row of each: minimum, median, and both as multiples of torch's."""
    unit = seconds["torch"]
    return [
        {
            "name": name,
            "cpu_s": list(each),
            "min_cpu_s": min(each),
            "median_cpu_s": statistics.median(each),
            "min_ratio": min(each) / min(unit),
            "median_ratio": statistics.median(each) / statistics.median(unit),
            "goal": GOALS.get(name),
        }
        for name, each in seconds.items()
    ]


def report(result: Mapping[str, Any]) -> str:
    lines = [
        f"Processor seconds, {result['rounds']} rounds after a warm-up, one thread; {result['date']}.",
        "",
        "| what | min s | median s | min / torch | median / torch | goal |",
        "| --- |" + " ---: |" * 5,
    ]
    for row in result["rows"]:
        goal = f"<= {row['goal']}" if row["goal"] else ""
        lines.append(
            f"| {row['name']} | {row['min_cpu_s']:.2f} | {row['median_cpu_s']:.2f} | {row['min_ratio']:.2f} "
            f"| {row['median_ratio']:.2f} | {goal} |"
        )
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--rounds", type=int, default=5, help="counted rounds, after one that is not")
    add("--only", nargs="+", default=[], help="some of the names above; torch is always measured")
    add("--out", type=Path, help="write everything, each round included, as JSON")
    return parser


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print the table, return what --out would hold."""
    options = parser().parse_args(arguments)
    loads = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        lines = commands(folder, options.only)
        seconds: dict[str, list[float]] = {name: [] for name in lines}
        for round_ in range(options.rounds + 1):
            for name, line in lines.items():
                spent = processor_seconds([each.replace("/run_", f"/{round_}_run_") for each in line], folder)
                if round_:
                    seconds[name].append(spent)
            loads.append(os.getloadavg()[0])
    result = {
        "benchmark": "startup",
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "rounds": options.rounds,
        "git": git_state(ROOT / "benchmarks"),
        "versions": versions(),
        "device": device_state("cpu"),
        "load_average": [min(loads), max(loads)],
        "rows": summary(seconds),
    }
    print(report(result))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    return result


if __name__ == "__main__":
    main()
