"""Worker of `caption_metrics.py`: pycocoevalcap's scorers in a process of their own, scoring when they are told to.

Imports nothing of this project but the protocol (`workers.py`) and the clock. pycocoevalcap's modules import numpy only; its
wheel is unpacked into a folder that only this process sees.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness import timed
from benchmarks.workers import serve


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--packages", required=True, help="folder with pycocoevalcap 1.2 (caption_metrics.py fills it)")
    parser.add_argument("--captions", required=True, help='JSON: {"references": [[...], ...], "candidates": [...]}, tokenized')
    options = parser.parse_args()
    sys.path.insert(0, options.packages)
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    data = json.loads(Path(options.captions).read_text())
    references = dict(enumerate(data["references"]))
    candidates = {row: [caption] for row, caption in enumerate(data["candidates"])}
    scorers = {"cider": Cider, "bleu": lambda: Bleu(4), "rouge_l": Rouge}
    found: dict[str, Any] = {}

    def run(metric: str) -> dict[str, float]:
        def step() -> None:
            with contextlib.redirect_stdout(sys.stderr):
                found[metric] = scorers[metric]().compute_score(references, candidates)

        return timed(step)

    def scores(metric: str) -> Any:
        whole, each = found[metric]
        if metric == "bleu":
            return [list(map(float, whole)), [list(map(float, column)) for column in zip(*each, strict=True)]]
        return [float(whole), [float(score) for score in each]]

    serve({"run": run, "scores": scores})


if __name__ == "__main__":
    main()
