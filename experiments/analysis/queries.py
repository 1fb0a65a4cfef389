"""What the queries of a test are about: captions, images, categories and domains, joined to `load_runs(...).per_query()`.

Run folders have ranks and scores; what a query was is in the data set, which is read from where the run's configuration says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamodules.errors import InputError
from experiments.analysis.data import data_of
from experiments.runs.store import Run

if TYPE_CHECKING:
    import pandas as pd

    from datamodules.records import ImageRecord
    from experiments.runs.frames import Runs


def with_data(queries: pd.DataFrame, runs: Runs) -> pd.DataFrame:
    """Queries with what they are about: `image_id` and `file` of the image, `caption` (the query, where it is one; of kind
    `caption` what the run wrote stays), `words` (in that caption), `categories` (Entities' types of the things named in it, or in
    all captions of the image, sorted), `domain` (NoCaps').

    Args:
        queries: `runs.per_query()`, or some of its rows.
        runs: Whose folders say where the data are.

    Raises:
        InputError: A data set is gone, or its content is not what the run was tested on.
    """
    import pandas

    place, queries = queries.index, queries.reset_index(drop=True)  # frames that were put together have rows of one name
    folders = dict(runs.labelled())
    known: dict[Any, Sequence[ImageRecord]] = {}
    parts = []
    for (label, data, kind), rows in queries.groupby(["run", "data", "kind"], sort=False):
        run = folders[label]
        key = (data, run.fingerprint(data), rows["split"].iloc[0])
        if key not in known:  # runs of one data set share it
            known[key] = records_of(run, data)
        parts.append(_described(rows, kind, known[key], f"{run.folder}, {data}"))
    return (pandas.concat(parts).loc[queries.index] if parts else queries).set_axis(place)


def records_of(run: Run, data: str) -> Sequence[ImageRecord]:
    """The images of a test in its order, with their captions.

    Raises:
        InputError: The data set is gone, or has changed since.
    """
    if run.folder is None:
        raise InputError(f"{run.name} has no folder, so nothing says where its data {data} are.")
    module = data_of(Path(run.folder), data)
    records: Sequence[ImageRecord] = module.records("test")
    then, now = run.fingerprint(data), module.fingerprint()
    if then is not None and then != now:
        raise InputError(
            f"{run.folder}: the content of {data} has changed since the run was tested (fingerprint {then} then, {now} now): its "
            "rows are no longer those of the ranks. Put the data back."
        )
    return records


def _described(rows: pd.DataFrame, kind: str, records: Sequence[ImageRecord], where: str) -> pd.DataFrame:
    import pandas

    captions = [caption for record in records for caption in record.captions]
    whose = captions if kind == "t2i" else records
    if int(rows["query"].max()) >= len(whose) or int(rows["image"].max()) >= len(records):
        raise InputError(
            f"{where}: its data have {len(records)} images with {len(captions)} captions, and its ranks are of more."
        )
    images = [records[row] for row in rows["image"]]
    found: dict[str, Any] = {
        "image_id": [record.image_id for record in images],
        "file": [None if record.path is None else str(record.path) for record in images],
        "domain": [record.domain for record in images],
    }
    if kind == "t2i":
        asked = [captions[row] for row in rows["query"]]
        found["caption"] = [caption.text for caption in asked]
        named: list[Sequence[Any]] = [caption.phrases for caption in asked]
    else:
        named = [[phrase for caption in record.captions for phrase in caption.phrases] for record in images]
    found["categories"] = [tuple(sorted({phrase.category for phrase in phrases})) for phrases in named]
    joined = rows.assign(**found)
    if "caption" in joined:
        words = [len(text.split()) if isinstance(text, str) and text else None for text in joined["caption"]]
        joined["words"] = pandas.array(words, dtype="Int64")
    return joined


def found_instead(
    run: Run, data: str, captions: Sequence[int], images: Sequence[int], found: int = 5
) -> tuple[Sequence[ImageRecord], Mapping[str, Any]]:
    """What a retrieval run found for captions and images (rows of its test): the records, and arguments of
    `experiments.analysis.retrieved.contact_sheet`. From the scores that its folder keeps, or else by its model.

    Raises:
        InputError: As `records_of`, or the model cannot be loaded.
    """
    import torch

    from experiments.analysis.retrieved import answered

    records = records_of(run, data)
    texts = [caption.text for record in records for caption in record.captions]
    owner_T = torch.tensor([row for row, record in enumerate(records) for _ in record.captions])
    scores_IT = _scores(run, data, len(records), len(texts))
    right_IT = torch.arange(len(records))[:, None] == owner_T[None]
    return records, {
        "captions": texts,
        "to_images": answered(scores_IT.T, right_IT.T, captions, found),
        "to_texts": answered(scores_IT, right_IT, images, found),
    }


def _scores(run: Run, data: str, images: int, texts: int) -> Any:
    import numpy as np
    import torch

    folder = Path(str(run.folder))
    kept = folder / "scores" / f"{data}-test" / "scores.npy"
    if kept.is_file():
        scores_IT = torch.from_numpy(np.load(kept, allow_pickle=False))
        if scores_IT.shape != (images, texts):
            raise InputError(
                f"{kept} has the shape {tuple(scores_IT.shape)}, and its test {images} images with {texts} captions."
            )
        return scores_IT
    import lightning_modules
    from experiments.analysis.retrieved import embed
    from experiments.training.quiet import quiet

    quiet()
    images_ID, texts_TD, _ = embed(lightning_modules.load(folder), data_of(folder, data), "test")
    return (images_ID @ texts_TD.T).cpu()
