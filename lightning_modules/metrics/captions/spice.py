"""SPICE 1.0 (Anderson et al., ECCV 2016), an outside Java program: F-score over the scene graphs of candidate and references.

Parsing takes the time (minutes for a thousand images); parsed sentences are kept in a cache folder, so a second run with the
same references takes seconds.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from datamodules.errors import InputError
from lightning_modules.metrics.captions.caption_metric import CaptionMetric, Floats
from lightning_modules.metrics.captions.java import LOCALE, SPICE_JAVA, find_java, folder, run, spice_folder

MEMORY = "8G"  # of the Java heap, as in coco-caption
# Its serialiser reads private fields of these, which Java has forbidden since version 16.
_OPENED = ("lang", "math", "util", "util.concurrent", "net", "text")


class SPICE(CaptionMetric):
    """SPICE, key spice.

    Args:
        cache: See `spice`.
    """

    name = "spice"
    heading = "SPICE"

    def __init__(self, cache: Path | None = None) -> None:
        self.cache = cache

    def require(self) -> None:
        spice_folder()
        find_java(SPICE_JAVA)

    def score_images(self, references: Sequence[Sequence[str]], captions: Sequence[str]) -> Floats:
        return spice(references, captions, self.cache)


def spice(
    references: Sequence[Sequence[str]], candidates: Sequence[str], cache: Path | None = None, threads: int | None = None
) -> npt.NDArray[np.float64]:
    """SPICE of every image [I], between 0 and 1. The score of the whole set is the mean.

    Args:
        references: Tokenized sentences of each image (coco-caption gives it the PTB tokens, not the raw sentences).
        candidates: One tokenized sentence an image.
        cache: Folder of parsed sentences (default: $CROSSLIGHT_CACHE/captions/spice_cache).
        threads: Of the program (default: it takes all).

    Raises:
        Unavailable: Java 9 or later, or a jar, is missing.
        InputError: The program fails, or finds no score for an image.
    """
    jars, java = spice_folder(), find_java(SPICE_JAVA)
    cache = cache or folder() / "spice_cache"
    cache.mkdir(parents=True, exist_ok=True)
    opened = [part for name in _OPENED for part in ("--add-opens", f"java.base/java.{name}=ALL-UNNAMED")]
    asked = [
        {"image_id": row, "test": candidate, "refs": list(sentences)}
        for row, (sentences, candidate) in enumerate(zip(references, candidates, strict=True))
    ]
    with tempfile.TemporaryDirectory(prefix="crosslight-spice-") as temporary:
        question, answer = Path(temporary) / "in.json", Path(temporary) / "out.json"
        question.write_text(json.dumps(asked))
        options: list[str | Path] = ["-cache", cache.absolute(), "-out", answer, "-subset", "-silent"]
        if threads is not None:
            options += ["-threads", str(threads)]
        command = [java, *opened, *LOCALE, f"-Xmx{MEMORY}", "-cp", f"{jars}/*", "edu.anu.spice.SpiceScorer", question, *options]
        said = run(command, "SPICE", cwd=Path(temporary))
        if not answer.is_file():  # it has been seen to fail with status 0
            raise InputError(f"SPICE wrote no scores: {said.decode('utf-8', 'replace').strip()[-300:]}")
        scores = json.loads(answer.read_text())
    found = {item["image_id"]: item["scores"]["All"]["f"] for item in scores}
    values = [found.get(row) for row in range(len(asked))]
    lacking = [row for row, value in enumerate(values) if value is None or math.isnan(value)]
    if lacking:
        raise InputError(f"SPICE gave no score for {len(lacking)} images, first row {lacking[0]}: {candidates[lacking[0]]!r}")
    return np.array(values, dtype=np.float64)
