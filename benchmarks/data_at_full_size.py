"""What data sets of full size cost: processor seconds from the start of a process to its first batch, and memory.

    crosslight data stand-in coco DIR            # and flickr30k, visual_genome, nocaps: 2 GB in all
    python benchmarks/data_at_full_size.py DIR/data --before 32de321 --out data_at_full_size.json      # 40 minutes on 2 cores
    python benchmarks/data_at_full_size.py DIR/data --rounds 1 --only coco --grid 2x2

    coco, flickr30k            pixels and text, as configs/data/coco.yaml
    entities                   Flickr30k with phrases and boxes, positives with 63 candidates, as flickr30k_entities_pixels.yaml
    visual_genome, nocaps      captions; of nocaps the test
    coco_regions, flickr30k_regions      UNITER's databases of regions and of text, positives with 399 candidates

Seconds are user and system ones of one process without data workers (getrusage), one thread, in three states: `before`, the code
of another revision (--before); `first`, ours with nothing kept; `again`, ours after that. In parts: imports; the data module up
to its first batch; then, as each run does before its first step, the words that the tokenizer does not know. Goal: `again` takes
at most a third of `before`, all parts together. Where imports alone are more than that it cannot be reached: the column beside it
has the same without them.

Memory is the proportional set size (PSS: a page that n processes share counts as 1/n for each) after the first batch, and in each
cell of --grid that of all ranks and their data workers together, after every worker made --batches batches. Prediction: what one
process has above its imports is a batch, the tokenizer and what it has looked at of a mapped file, under 0.2 GB. Goal: at most
0.4 GB. A cell whose memory this machine lacks is left out, and the result says so.

Rounds go over all states of all data sets in turn. Medians are shown, and the JSON has every round.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

# The file is run by its path: the packages beside this folder must be found without an installation, too.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import harness
from benchmarks.data_start import pss
from benchmarks.workers import Worker

ROOT = Path(__file__).resolve().parents[1]

NAMES = ("coco", "flickr30k", "entities", "visual_genome", "nocaps", "coco_regions", "flickr30k_regions")
PACKAGES = ("datamodules", "lightning_modules", "experiments", "configs")
GOAL_SECONDS, GOAL_BYTES = 1 / 3, 400_000_000
SPARE = 2_000_000_000  # bytes of memory that are left to others


class Code:
    """A state of the code, in a folder, with what it keeps."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder, self.cache = folder, cache

    def start(self) -> Worker:
        """A process of it."""
        os.environ |= {"PYTHONPATH": str(self.folder), "CROSSLIGHT_CACHE": str(self.cache)}
        return Worker([str(ROOT / "benchmarks" / "data_start.py")])


def code_now(folder: Path) -> Path:
    """The packages as they are here now, in a folder: who goes on working on them changes nothing of what is measured."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def code_of(revision: str, folder: Path) -> Path:
    """The packages of a revision, unpacked in a folder."""
    archive = subprocess.run(
        ["git", "-C", str(ROOT), "archive", revision, *PACKAGES],
        check=True, capture_output=True,
    )  # fmt: skip
    folder.mkdir()
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


def write_tokenizer(folder: Path) -> None:
    """A BERT tokenizer of the stand-ins' words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    from datamodules.standin.word_pieces import WordPieces

    ids = {piece: number for number, piece in enumerate(WordPieces().vocabulary())}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    around = [(token, ids[token]) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=around)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]",
    ).save_pretrained(folder)  # fmt: skip


def one_process(code: Code, name: str, data: Path, tokenizer: Path, fingerprint: bool) -> dict[str, Any]:
    """Seconds and memory of a start, part by part."""
    worker = code.start()
    try:
        parts = {
            "imports": worker.ask("imports"),
            "first_batch": worker.ask("first_batch", name=name, data=str(data), tokenizer=str(tokenizer)),
            "unknown_words": worker.ask("unknown_words", name=name),
        }
        return parts | ({"fingerprint": worker.ask("fingerprint")} if fingerprint else {})
    finally:
        worker.close()


def together(
    code: Code, name: str, data: Path, tokenizer: Path, cell: tuple[int, int], batches: int, needed: float
) -> dict[str, Any]:
    """Memory of all ranks with all their data workers, at once.

    Args:
        code: Whose.
        name: Of the data set.
        data: Folder of the data sets.
        tokenizer: Folder of one.
        cell: Ranks, and data workers of each.
        batches: That each worker makes, at least.
        needed: Bytes that it will take, about.
    """
    ranks, each = cell
    if needed + SPARE > (free := available()):
        return {"left_out": f"about {needed / 1e9:.0f} GB are needed, {free / 1e9:.0f} GB are free"}
    with ExitStack() as started:
        processes = [code.start() for _ in range(ranks)]
        for process in processes:
            started.callback(process.close)

        def live(rank: int) -> dict[str, Any]:
            process = processes[rank]
            process.ask("imports")
            at = {"rank": rank, "world_size": ranks, "workers": each}
            process.ask("first_batch", name=name, data=str(data), tokenizer=str(tokenizer), **at)
            found: dict[str, Any] = process.ask("more", batches=batches * max(each, 1))
            return found

        with ThreadPoolExecutor(ranks) as pool:
            alive = list(pool.map(live, range(ranks)))
        own = [pss(each["process"]) for each in alive]
        theirs = [pss(child) for each in alive for child in each["children"]]
    return {"pss": sum(own) + sum(theirs), "rank_pss": statistics.median(own), "worker_pss": statistics.median(theirs or [0])}


def available() -> int:
    """Bytes of memory that this machine has left."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return 1024 * int(lines["MemAvailable"].split()[0])


# -------------------------------------------------------------------------------------------------------------- result


def seconds_of(rounds: Sequence[Mapping[str, Any]], parts: Sequence[str]) -> float:
    """Median over rounds of these parts together."""
    return statistics.median(sum(each[part]["cpu_s"] for part in parts) for each in rounds)


def summary(name: str, states: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """A data set's row: medians of each state, ratios to `before` where it was measured, and whether the goals are reached."""
    whole, own = ("imports", "first_batch", "unknown_words"), ("first_batch", "unknown_words")
    row: dict[str, Any] = {"name": name}
    for state, rounds in states.items():
        row[state] = {
            "cpu_s": seconds_of(rounds, whole),
            "first_batch_cpu_s": seconds_of(rounds, ("imports", "first_batch")),
            "cpu_s_above_imports": seconds_of(rounds, own),
            "pss": statistics.median(each["first_batch"]["pss"] for each in rounds),
            "pss_above_imports": statistics.median(each["first_batch"]["pss"] - each["imports"]["pss"] for each in rounds),
        }
    if "before" in row:
        row["ratio"] = row["again"]["cpu_s"] / row["before"]["cpu_s"]
        row["ratio_above_imports"] = row["again"]["cpu_s_above_imports"] / row["before"]["cpu_s_above_imports"]
        row["seconds_reached"] = row["ratio"] <= GOAL_SECONDS
    row["memory_reached"] = row["again"]["pss_above_imports"] <= GOAL_BYTES
    return row


def report(result: Mapping[str, Any]) -> str:
    states = [state for state in ("before", "first", "again") if state in result["rows"][0]]
    head = ("data", *(f"{state} s" for state in states), "ratio", "above imports", *(f"{state} GB" for state in states))
    rows = [
        (
            row["name"], *(f"{row[state]['cpu_s']:.1f}" for state in states),
            *(f"{row[key]:.2f}" if key in row else "" for key in ("ratio", "ratio_above_imports")),
            *(f"{row[state]['pss_above_imports'] / 1e9:.2f}" for state in states),
        )
        for row in result["rows"]
    ]  # fmt: skip
    cells = [
        (
            cell["name"], cell["state"], f"{cell['ranks']} x {cell['workers']}",
            *(f"{cell[key] / 1e9:.2f}" if key in cell else "" for key in ("pss", "rank_pss", "worker_pss")),
            cell.get("left_out", ""),
        )
        for cell in result["cells"]
    ]  # fmt: skip
    low, high = result["load_average"]
    return "\n".join(
        [
            f"Processor seconds, and PSS above imports, medians of {result['rounds']} rounds; {result['device']['name']}, load "
            f"average {low:.1f} to {high:.1f}; before: {result['before']}; {result['date']}.",
            "",
            harness.table(head, rows),
            "",
            harness.table(("data", "code", "ranks x workers", "all GB", "a rank", "a worker", "left out"), cells, texts=3),
        ]
    )


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print the tables, return what --out would hold."""
    parser = harness.command_line(__doc__, "write everything, each round included, as JSON", rounds=3)
    parser.add_argument("data", type=Path, help="folder of the data sets, as CROSSLIGHT_DATA")
    parser.add_argument("--before", metavar="REVISION", help="of git, to compare with")
    parser.add_argument("--only", nargs="+", default=list(NAMES), choices=NAMES, metavar="NAME", help="some of the above")
    parser.add_argument("--grid", nargs="*", default=["2x2", "8x8"], metavar="RxW", help="ranks x data workers of each")
    parser.add_argument("--grid-only", nargs="+", default=["coco"], choices=NAMES, metavar="NAME", help="data sets of --grid")
    parser.add_argument("--batches", type=int, default=8, help="of each data worker, before memory is read")
    options = parser.parse_args(arguments)
    cells = [tuple(map(int, cell.split("x"))) for cell in options.grid]
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    loads = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_tokenizer(tokenizer := folder / "tokenizer")
        now = code_now(folder / "now")
        codes = {"again": Code(now, folder / "kept")}
        if options.before:
            codes["before"] = Code(code_of(options.before, folder / "before"), folder / "kept_before")
        found: dict[str, dict[str, list[dict[str, Any]]]] = {name: {} for name in options.only}
        for round_ in range(options.rounds):
            for name in options.only:
                turns = [("first", Code(now, folder / f"first_{name}_{round_}")), *codes.items()]
                if not round_:
                    one_process(codes["again"], name, options.data, tokenizer, False)  # it keeps what the others find
                for state, code in turns:
                    measured = one_process(code, name, options.data, tokenizer, not round_ and state != "first")
                    found[name].setdefault(state, []).append(measured)
                    harness.tell(f"round {round_ + 1}: {name} {state}: {json.dumps(measured)}")
                loads.append(os.getloadavg()[0])
        for name, states in found.items():
            told = {state: rounds[0]["fingerprint"] for state, rounds in states.items() if "fingerprint" in rounds[0]}
            if len(set(told.values())) > 1:
                raise SystemExit(f"{name}: the fingerprints of the data differ: {told}")
        rows = [summary(name, states) for name, states in found.items()]
        pss_of = {(row["name"], state): row[state]["pss"] for row in rows for state in codes}
        grid = []
        for name in (name for name in options.grid_only if name in found):
            for cell in cells:
                for state, code in codes.items():
                    needed = cell[0] * (1 + 0.25 * cell[1]) * pss_of[name, state]
                    measured = together(code, name, options.data, tokenizer, cell, options.batches, needed)
                    grid.append({"name": name, "state": state, "ranks": cell[0], "workers": cell[1], **measured})
                    harness.tell(json.dumps(grid[-1]))
        loads.append(os.getloadavg()[0])
    asked = {"rounds": options.rounds, "before": options.before, "batches": options.batches}
    begun = harness.heading("data_at_full_size", "cpu", asked, environment=())
    result = {**begun, "load_average": [min(loads), max(loads)], "rows": rows, "cells": grid, "each": found}
    print(report(result))
    harness.write(result, options.out)
    return result


if __name__ == "__main__":
    main()
