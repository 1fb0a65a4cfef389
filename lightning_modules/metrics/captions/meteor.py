"""METEOR 1.5 (Denkowski and Lavie, WMT 2014) by its own jar, an outside Java program, called as coco-caption's `meteor.py` does.

The score of a set is not the mean of its images': the program adds up the counts of all and scores the sums.
"""

from __future__ import annotations

import subprocess
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from lightning_modules.metrics.captions.caption_metric import CaptionMetric, Captions, MetricScores
from lightning_modules.metrics.captions.java import LOCALE, failed, find_java, meteor_jar

_BREAK = " ||| "  # separates sentences in the program's lines


class METEOR(CaptionMetric):
    """METEOR, key meteor."""

    name = "meteor"
    heading = "METEOR"

    def require(self) -> None:
        meteor_jar()
        find_java()

    def score(self, captions: Captions) -> MetricScores:
        rows_of = self.references.rows_of
        scores_I, (whole, *parts) = meteor(
            self.references.sentences, captions.sentences, [rows.tolist() for rows in rows_of.values()]
        )
        values = {self.name: whole} | {f"{domain}/{self.name}": part for domain, part in zip(rows_of, parts, strict=True)}
        return MetricScores(values, {self.name: scores_I})


def meteor(
    references: Sequence[Sequence[str]], candidates: Sequence[str], subsets: Sequence[Sequence[int]] = ()
) -> tuple[npt.NDArray[np.float64], list[float]]:
    """METEOR of every image [I], and of the whole set followed by those of the subsets, between 0 and 1.

    Args:
        references: Tokenized sentences of each image.
        candidates: One tokenized sentence an image.
        subsets: Rows of images to score as sets of their own.

    Raises:
        Unavailable: Java or the jar is missing.
        InputError: The program fails.
    """
    jar, java = meteor_jar(), find_java()
    command = [java, *LOCALE, "-Xmx2G", "-jar", jar, "-", "-", "-stdio", "-l", "en", "-norm"]
    with tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=jar.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
        )
        try:
            lines = [
                _BREAK.join(["SCORE", *map(_plain, sentences), _plain(candidate)])
                for sentences, candidate in zip(references, candidates, strict=True)
            ]
            counts = _ask(process, lines, len(lines))
            scores: list[list[float]] = []
            for rows in (range(len(counts)), *subsets):
                line = _BREAK.join(["EVAL", *(counts[row] for row in rows)])
                scores.append([float(score) for score in _ask(process, [line], len(rows) + 1)])
        except (EOFError, ValueError) as error:
            with suppress(subprocess.TimeoutExpired):  # its own status says more than that of a kill
                process.wait(timeout=5)
            process.kill()
            status = process.wait()
            complaints.seek(0)
            raise failed("METEOR", status, complaints.read() or str(error).encode()) from error
        finally:
            process.kill()  # it would wait for more lines
            process.communicate()
    return np.array(scores[0][:-1]), [score for *_, score in scores]


def _plain(sentence: str) -> str:
    return sentence.replace("|||", "").replace("  ", " ")


def _ask(process: subprocess.Popen[bytes], lines: Sequence[str], answers: int) -> list[str]:
    """Writes lines and reads so many, at the same time: both pipes are short."""
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None
    assert stdout is not None

    def write() -> None:
        with suppress(BrokenPipeError):  # the program has ended, which reading tells
            for line in lines:
                stdin.write(line.encode("utf-8", "replace") + b"\n")
            stdin.flush()

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    read: list[str] = []
    for _ in range(answers):
        line = stdout.readline()
        if not line:
            raise EOFError(f"it ended after {len(read)} of {answers} answers")
        read.append(line.decode("utf-8").strip())
    writer.join()
    return read
