"""Why a claim is contradicted at a scale, in a sentence of ours: `experiments/results/SCALE/explanations.yaml`.

They are written for the runs whose summary is committed beside them. A claim is known by its exhibit and `scales.claim_key`, so a
claim that is tested otherwise loses its explanation, and a test sees that every committed contradiction has one.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from datamodules.formats.typed import read_typed
from experiments.papers.schema import Scale
from experiments.papers.strict_yaml import read_yaml
from experiments.report import scales
from experiments.report.verdicts import Verdict


def explanations(scale: Scale) -> dict[str, dict[str, str]]:
    """Sentences by exhibit and claim key; none where no file is committed.

    Raises:
        InputError: The file is not of this form.
    """
    file = scales.RESULTS / scale / "explanations.yaml"
    return _read(file) if file.is_file() else {}


@cache
def _read(file: Path) -> dict[str, dict[str, str]]:
    sentences: dict[str, dict[str, str]] = read_typed(dict[str, dict[str, str]], read_yaml(file), str(file))
    return sentences


def explanation(scale: Scale, exhibit: str, verdict: Verdict) -> str:
    """Of a claim that is contradicted; "" of another, or where there is none.

    Its numbers are those of the committed runs. Beside a verdict of others it says so.
    """
    key = scales.claim_key(verdict.claim)
    sentence = explanations(scale).get(exhibit, {}).get(key, "") if verdict.outcome == "contradicted" else ""
    if not sentence:
        return ""
    summary = scales.committed(scale)
    own = summary is not None and summary.claims.get((exhibit, key), {}).get("summary") == verdict.summary
    return sentence if own else f"Of the runs of experiments/results/{scale}: {sentence}"
