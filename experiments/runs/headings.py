"""How tables name and write metrics: recalls in percent, caption scores times 100, distances as they are."""

from __future__ import annotations

from collections.abc import Container

# Columns by metric; a table has those of which a run has a value, and those that an evaluation's notes name: {metric: heading}.
RECALLS = {
    "i2t_r1": "i2t R@1", "i2t_r5": "R@5", "i2t_r10": "R@10", "t2i_r1": "t2i R@1", "t2i_r5": "R@5", "t2i_r10": "R@10",
    "rsum": "rsum",
}  # fmt: skip
# Where a run measured relations (pairs with objects): ISDa, both IAIS losses, and how even the attention is that these compare.
RELATIONS = {
    "isda": "ISDa", "iais_singular": "L(s)", "iais_distributed": "L(d)", "evenness_words": "even words",
    "evenness_regions": "even regions",
}  # fmt: skip
# Of NoCaps, as in Table 2 of I-Tuning.
DOMAINS = {
    f"{domain}-domain/{metric}": f"{domain} {heading}"
    for domain in ("in", "near", "out")
    for metric, heading in (("cider", "CIDEr"), ("spice", "SPICE"))
}
CAPTIONS = {
    "bleu_1": "B@1", "bleu_2": "B@2", "bleu_3": "B@3", "bleu_4": "B@4", "meteor": "METEOR", "rouge_l": "ROUGE-L",
    "cider": "CIDEr", "spice": "SPICE",
}  # fmt: skip
_PERCENT = {*RECALLS, "mean_recall"}
_ALL = {**RECALLS, **RELATIONS, **CAPTIONS, **DOMAINS}
NONE = "–"


def counted(number: int, what: str) -> str:
    """ "1 run", "2,000 runs"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def heading(metric: str) -> str:
    """Of a metric that stands alone: R@5 says in which direction."""
    direction = metric.partition("_")[0]
    return f"{direction} {_ALL[metric]}" if _ALL.get(metric, "").startswith("R@") else _ALL.get(metric, metric)


def factor_and_form(metric: str, fractions: Container[str] = ()) -> tuple[int, str]:
    """What a value is multiplied by, and how it is then written.

    Args:
        metric: Its name, without stage and data.
        fractions: Metrics of a user's own that are scores between 0 and 1, as the captions' are.
    """
    if metric.removeprefix("folds_") in _PERCENT:
        return 1, "{:.1f}"
    if metric in RELATIONS:
        return 1, "{:.3f}"
    return (100, "{:.1f}") if metric in CAPTIONS or metric in DOMAINS or metric in fractions else (1, "{:.4g}")


def number(metric: str, value: float | None, fractions: Container[str] = ()) -> str:
    """A value as papers print it; None is a dash."""
    factor, form = factor_and_form(metric, fractions)
    return NONE if value is None else form.format(factor * value)
