"""Recorded scores of coco-caption, and obvious twins of its three metrics that need no program."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

RECORDINGS = Path(__file__).parents[1] / "recordings" / "captioning"

Sentences = list[list[str]]


def recorded(name: str) -> dict[str, Any]:
    """`caption_metrics_small` (tokenized) or `caption_metrics_raw` (as written, with the PTB tokens and METEOR)."""
    return json.loads((RECORDINGS / f"{name}.json").read_text())


def ngrams(words: list[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + order]) for i in range(len(words) - order + 1))


def naive_cider(references: Sentences, candidates: list[str]) -> list[float]:
    """Vedantam et al. 2015, Eq. 5 (CIDEr-D): clipped, with the length penalty, times ten."""
    images = len(references)
    scores = []
    for candidate, sentences in zip(candidates, references, strict=True):
        total = 0.0
        for sentence in sentences:
            for order in range(1, 5):

                def weights(text: str, order: int = order) -> dict[tuple[str, ...], float]:
                    counts = ngrams(text.split(), order)
                    return {
                        gram: count
                        * (
                            math.log(images)
                            - math.log(max(1, sum(any(gram in ngrams(s.split(), order) for s in own) for own in references)))
                        )
                        for gram, count in counts.items()
                    }

                h, r = weights(candidate), weights(sentence)
                value = sum(min(h[gram], r[gram]) * r[gram] for gram in h.keys() & r.keys())
                norm = math.hypot(*h.values()) * math.hypot(*r.values())
                delta = max(len(candidate.split()) - 1, 0) - max(len(sentence.split()) - 1, 0)
                total += (value / norm if norm else value) * math.exp(-(delta**2) / 72)
        scores.append(10 * total / 4 / len(sentences))
    return scores


def naive_bleu(references: Sentences, candidates: list[str]) -> list[float]:
    """BLEU-1..4 of the set; without smoothing, so for sets where every order matches somewhere."""
    correct, guessed, length, closest = [0] * 4, [0] * 4, 0, 0
    for candidate, sentences in zip(candidates, references, strict=True):
        words = candidate.split()
        length += len(words)
        closest += min((abs(len(s.split()) - len(words)), len(s.split())) for s in sentences)[1]
        for order in range(4):
            counts = ngrams(words, order + 1)
            guessed[order] += sum(counts.values())
            for gram, count in counts.items():
                correct[order] += min(count, max(ngrams(s.split(), order + 1)[gram] for s in sentences))
    brevity = min(1.0, math.exp(1 - closest / length))
    return [brevity * math.prod(c / g for c, g in zip(correct[:n], guessed[:n], strict=True)) ** (1 / n) for n in range(1, 5)]


def longest_common(a: list[str], b: list[str]) -> int:
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def naive_rouge(references: Sentences, candidates: list[str]) -> list[float]:
    scores = []
    for candidate, sentences in zip(candidates, references, strict=True):
        c = candidate.split(" ")
        common = [(longest_common(c, s.split(" ")), len(s.split(" "))) for s in sentences]
        precision, recall = max(n for n, _ in common) / len(c), max(n / length for n, length in common)
        scores.append((1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision) if precision and recall else 0.0)
    return scores


def random_captions(seed: int, images: int = 12) -> tuple[list[list[str]], list[str]]:
    """Few words, so that n-grams repeat within and between sentences; references differ in number; some sentences are short, one
    candidate is empty, and candidates go on from a reference with words that no reference has."""
    draw = random.Random(seed)
    words = [f"w{n}" for n in range(7)]

    def sentence(least: int, most: int, extra: list[str]) -> str:
        return " ".join(draw.choices(words + extra, k=draw.randint(least, most)))

    references = [[sentence(1, 12, []) for _ in range(draw.randint(1, 6))] for _ in range(images)]
    candidates = [f"{draw.choice(own)} {sentence(1, 6, ['new', 'unseen'])}" for own in references]
    candidates[draw.randrange(images)] = ""
    return references, candidates
