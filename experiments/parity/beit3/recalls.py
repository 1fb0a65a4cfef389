"""Kind `retrieval-recall`: recalls of recorded features, one row an image-text pair (`RetrievalHandler.after_eval`)."""

from __future__ import annotations

import re

import torch

from experiments.parity.compare import OUTPUT, GroupCheck, compare, not_checked, stacked
from experiments.parity.recordings import Recording
from lightning_modules.metrics.retrieval import RetrievalRecall

_NAME = re.compile(r"(tr|ir)_r(\d+)")
_OURS = {"tr": "i2t_rank", "ir": "t2i_rank"}  # the official TR is image to text, IR text to image


def check(recording: Recording) -> list[GroupCheck]:
    """Every recorded recall, of any k, and their mean.

    Image features are de-duplicated by image id, the first kept, and sorted by it, as the official handler does.

    Raises:
        InputError: The recording lacks an input.
    """
    recorded = {name: float(value) for name, value in recording.value("metrics").items()}
    images, texts = recording.tensor("inputs/pair_image_feats"), recording.tensor("inputs/pair_text_feats")
    ids, row_of_pair = recording.tensor("inputs/pair_image_ids").unique(return_inverse=True)
    first = torch.full((len(ids),), len(images)).scatter_reduce(0, row_of_pair, torch.arange(len(images)), "amin")

    # The official ranking is torch.topk's, which places equal scores somehow; by row number is what it does where none tie.
    metric = RetrievalRecall(len(ids), len(texts), ties="index")
    metric.update_images(images[first], torch.arange(len(ids)))
    metric.update_texts(texts, torch.arange(len(texts)), row_of_pair)
    named = metric.compute()
    ranks = metric.query_ranks()
    found = {
        name: 100.0 * int((ranks[_OURS[match[1]]] <= int(match[2])).sum()) / len(ranks[_OURS[match[1]]])
        for name in recorded
        if (match := _NAME.fullmatch(name))
    }
    if found and "average_score" in recorded:
        found["average_score"] = sum(found.values()) / len(found)
    unknown = sorted(recorded.keys() - found.keys())
    rows = [compare("recalls", stacked(found), stacked({name: recorded[name] for name in found}), OUTPUT)]
    ours = {f"{way}_r{k}": f"{name}_r{k}" for way, name in (("tr", "i2t"), ("ir", "t2i")) for k in (1, 5, 10)}
    if found.keys() >= {*ours, "average_score"} and len(found) == 7:  # also under the names that runs report
        ours["average_score"] = "mean_recall"
        rows.append(
            compare(
                "recalls as reported",
                {name: named[name] for name in ours.values()},
                stacked({ours[n]: recorded[n] for n in ours}),
                OUTPUT,
            )
        )
    if unknown:
        rows.append(not_checked("other metrics", f"no counterpart of {', '.join(unknown)}"))
    return rows
