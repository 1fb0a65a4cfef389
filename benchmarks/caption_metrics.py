"""CIDEr-D, BLEU and ROUGE-L: ours against pycocoevalcap's, equal scores first, then times. Interleaved in one run.

    python benchmarks/caption_metrics.py --out caption_metrics.json                  # 5,000 images x 5 made-up references
    python benchmarks/caption_metrics.py --references CAPTIONS.json --results RESULTS.json   # real ones (COCO's formats)

Two processes take turns; each measures its own CPU seconds, from tokenized text to the scores of every image (tokenizing, which
both leave to the same program, is not in them). pycocoevalcap 1.2 is unpacked from its wheel into a folder of its own the first
time, and seen only by that process (`caption_metrics_reference.py`). Before the timing both score everything, and the run ends
here if a score differs by more than 1e-9.

    pycocoevalcap       reads, counts and scores
    ours                likewise: references and document frequencies counted anew
    ours, kept          the references were counted before, as at every validation of a training run but the first

Made-up captions have the lengths of COCO's (8 to 16 words, 10.8 on average) and words by Zipf's law; candidates are mostly
stretches of their references.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

# The file is run by its path: the packages beside this folder must be found without an installation, too.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import harness
from benchmarks.workers import Worker, packages_alone

HERE = Path(__file__).resolve().parent
PYCOCOEVALCAP = "pycocoevalcap==1.2"
METRICS = ("cider", "bleu", "rouge_l")
GOAL = 5.0  # times pycocoevalcap's CIDEr-D
DIFFERENCE = 1e-9


def made_up(images: int, references: int, vocabulary: int = 8000) -> tuple[list[list[str]], list[str]]:
    """References of each image and a candidate, all tokenized, the same at every call."""
    draw = random.Random(0)
    words = [f"w{rank}" for rank in range(vocabulary)]
    chances = list(accumulate(1 / (rank + 3) for rank in range(vocabulary)))
    lengths = (8, 9, 9, 10, 10, 10, 11, 11, 12, 13, 16)
    sentences = []
    candidates = []
    for _ in range(images):
        topic = draw.choices(words, cum_weights=chances, k=12)
        own = []
        for _ in range(references):
            length = draw.choice(lengths)
            common = draw.choices(words, cum_weights=chances, k=length)
            start = draw.randrange(len(topic) - 3)
            own.append(" ".join([*common[: length - 4], *topic[start : start + 4]]))
        sentences.append(own)
        source = draw.choice(own).split()
        candidates.append(" ".join([*source[2:], *draw.choices(words, cum_weights=chances, k=draw.randint(0, 4))]))
    return sentences, candidates


def from_files(references: Path, results: Path) -> tuple[list[list[str]], list[str]]:
    """The same of files in COCO's formats, tokenized without Java."""
    from experiments.analysis.caption_scores import choose, read_references, read_results
    from lightning_modules.metrics.captions.tokenizer import simple

    captions, _ = read_results(results)
    chosen, _ = choose(captions, read_references(references, "test"), results, references, partial=True)
    sentences = [simple([caption.text for caption in record.captions]) for record in chosen]
    return sentences, simple([captions[record.image_id] for record in chosen])


def ours(metric: str, references: Sequence[Sequence[str]], candidates: Sequence[str], kept: Any = None) -> tuple[Any, Any]:
    """Score of the set and of each image, in the shape that the worker gives."""
    from lightning_modules.metrics.captions.bleu import BLEUCounts
    from lightning_modules.metrics.captions.rouge_l import rouge_l

    if metric == "rouge_l":
        each = rouge_l(references, candidates)
        return float(each.mean()), each
    counted = kept or prepared(references)
    matched = counted.references.match(candidates)
    if metric == "cider":
        each = counted.scores(matched)
        return float(each.mean()), each
    counts = BLEUCounts(counted.references, matched)
    return counts.corpus(), counts.per_image()


def prepared(references: Sequence[Sequence[str]]) -> Any:
    """References, counted and weighted."""
    from lightning_modules.metrics.captions.cider import CIDErReferences
    from lightning_modules.metrics.captions.ngrams import ReferenceNgrams

    return CIDErReferences(ReferenceNgrams(references))


def package_folder(given: Path | None) -> Path:
    """The folder with pycocoevalcap alone."""
    return packages_alone(PYCOCOEVALCAP, given)


def largest_difference(a: Any, b: Any) -> float:
    import numpy as np

    return max(float(np.abs(np.asarray(x) - np.asarray(y)).max()) for x, y in zip(a, b, strict=True))


def compare(
    references: list[list[str]], candidates: list[str], packages: Path, rounds: int, metrics: Sequence[str] = METRICS
) -> dict[str, Any]:
    """Equal scores, then interleaved times.

    Raises:
        SystemExit: Scores differ.
    """
    with tempfile.TemporaryDirectory() as folder:
        captions = Path(folder) / "captions.json"
        captions.write_text(json.dumps({"references": references, "candidates": candidates}))
        worker = Worker([str(HERE / "caption_metrics_reference.py"), "--packages", str(packages), "--captions", str(captions)])
    kept = prepared(references)
    turns: dict[str, Callable[[], dict[str, float]]] = {}
    checks = {}
    for metric in metrics:
        worker.ask("run", metric=metric)
        theirs, found = worker.ask("scores", metric=metric), ours(metric, references, candidates)
        checks[metric] = {"difference": largest_difference(found, theirs), "score": theirs[0]}
        if not checks[metric]["difference"] <= DIFFERENCE:
            raise SystemExit(f"the two do not give the same {metric}, so there is nothing to compare: {checks[metric]}")

        def again(what: str = metric, before: Any = None) -> dict[str, float]:
            return harness.timed(lambda: ours(what, references, candidates, before) and None)

        turns[f"{metric}: pycocoevalcap"] = lambda what=metric: worker.ask("run", metric=what)  # type: ignore[misc]
        turns[f"{metric}: ours"] = again
        if metric != "rouge_l":  # counts nothing beforehand
            turns[f"{metric}: ours, kept"] = lambda what=metric: again(what, kept)  # type: ignore[misc]
    steps = harness.interleave(turns, rounds, warm=1)
    worker.close()
    rows = []
    for name in turns:  # a ratio is of theirs to ours: how many times as fast ours is
        row = {"name": name, **harness.summary(steps, f"{name.split(':')[0]}: pycocoevalcap", name)}
        own = harness.summary(steps, name, name)
        rows.append(row | {"cpu_s": own["cpu_s"], "wall_s": own["wall_s"]})
    return {"images": len(candidates), "references": sum(map(len, references)), "checks": checks, "rows": rows, "steps": steps,
            "goal": GOAL}  # fmt: skip


def report(result: dict[str, Any]) -> list[str]:
    lines = [
        f"{result['images']} images, {result['references']} references; largest difference of a score: "
        + ", ".join(f"{metric} {check['difference']:.0e}" for metric, check in result["checks"].items()),
        f"{'':24}{'CPU s':>9}{'wall s':>9}   times as fast (CPU)",
    ]
    for row in result["rows"]:
        spread = "{median:.1f} [{low:.1f}, {high:.1f}]".format(**row["cpu_ratio"])
        lines.append(f"{row['name']:24}{row['cpu_s']:9.3f}{row['wall_s']:9.3f}   {spread}")
    (row,) = (row for row in result["rows"] if row["name"] == "cider: ours")
    reached = row["cpu_ratio"]["median"] >= result["goal"]
    lines.append(f"CIDEr-D: the goal is {result['goal']:.0f} times: {'reached' if reached else 'MISSED'}")
    return lines


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = harness.command_line(f"{__doc__}{harness.READING}", rounds=5)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--captions", type=int, default=5, help="references an image")
    parser.add_argument("--references", type=Path, help="a caption file, instead of made-up ones")
    parser.add_argument("--results", type=Path, help="its results file")
    parser.add_argument("--packages", type=Path, help="folder that has pycocoevalcap (default: installed into the user's cache)")
    options = parser.parse_args(arguments)
    if (options.references is None) != (options.results is None):
        parser.error("--references and --results go together")
    packages = package_folder(options.packages)
    data = from_files(options.references, options.results) if options.results else made_up(options.images, options.captions)
    result = compare(*data, packages, options.rounds)
    print("\n".join(report(result)))
    origin = harness.heading("caption_metrics", "cpu", {})
    harness.write({"device": origin["device"], "versions": origin["versions"], **result}, options.out)
    return result


if __name__ == "__main__":
    main()
