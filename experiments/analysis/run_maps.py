"""Attention maps of a run, stored in its folder: the one part of a report that needs the model.

    RUN/attention_maps/relations.npz   UNITER with or without IAIS: a pair's intra-modal self-attention (Figure 7 of IAIS)
    RUN/attention_maps/words.npz       I-Tuning: what each word of a caption attends to (Figure 3 of I-Tuning)
    RUN/attention_maps/shares.npz      I-Tuning: the share of that in the boxes of what words name, over 128 images
    RUN/attention_maps/boxed-0.npz ... the maps and boxes of three of these images

The maps show the first example of the run's own test split: of a pair, the one whose image comes first in the first batch. None
is chosen by its result, and rows of one exhibit show the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from datamodules.errors import InputError
from experiments.analysis.data import data_of
from experiments.analysis.stored_maps import (
    BOXED_FILES,
    MAP_FILES,
    MAPS_FOLDER,
    SHARES_FILES,
    AttentionMaps,
    By,
    WordMaps,
    store_map,
    stored_shares,
)


def make_maps(folder: Path) -> Path:
    """Makes the maps of a run, unless they are there: the file.

    Raises:
        InputError: The run has neither kind of map, its test split is gone, or the model cannot be loaded.
    """
    there = next((file for name in MAP_FILES if (file := folder / MAPS_FOLDER / name).is_file()), None)
    if there is not None:
        return there
    maps = maps_of(folder)
    return store_map(folder, "words.npz" if isinstance(maps, WordMaps) else "relations.npz", maps)


def maps_of(folder: Path, example: int = 0) -> AttentionMaps | WordMaps:
    """The maps of an example, by the run's model.

    Args:
        folder: The run's.
        example: Of a captioner the row of an image in the test split; else a pair of its first batch, in the order of images.

    Raises:
        InputError: The run has neither kind of map or no such example, its test split is gone, or the model cannot be loaded.
    """
    import lightning_modules
    from experiments.training.quiet import quiet
    from lightning_modules.networks.captioner import Captioner

    quiet()
    model: Any = lightning_modules.load(folder)
    data = data_of(folder)
    if isinstance(model.network, Captioner):
        return _word_maps(model, data, example)
    if hasattr(model.network, "relations"):
        return _relation_maps(model, data, folder, example)
    raise InputError(f"{folder} is a run of {type(model.network).__name__}, which has no attention maps to show.")


def make_shares(folder: Path, images: int = 128, by: By = "attention") -> Path:
    """Measures the shares of a captioner's run, unless they are there, and keeps the maps of a few images: the shares' file. The
    data set is Flickr30k with its Entities, in the folder `flickr30k` beside that of the run's own data.

    Raises:
        InputError: The run has no such maps, the data are not there, or the model cannot be loaded.
    """
    try:
        found = stored_shares(folder, by)
        there = found is not None and found.pointed_W is not None
    except InputError:  # it is damaged
        there = False
    return folder / MAPS_FOLDER / SHARES_FILES[by] if there else measure_shares(folder, images, by)


def measure_shares(folder: Path, images: int = 128, by: By = "attention", data: Any = None) -> Path:
    """As `make_shares`, anew.

    Args:
        folder: The run's.
        images: Of the test split, where `data` is None.
        by: What the maps of words are made of.
        data: An image-text data module whose captions have phrases with boxes; None = as `make_shares` has it.

    Raises:
        InputError: See `make_shares`.
    """
    import lightning_modules
    from experiments.analysis.grounding import word_shares
    from experiments.training.quiet import quiet
    from lightning_modules.networks.captioner import Captioner

    quiet()
    network: Any = lightning_modules.load(folder).network
    if not isinstance(network, Captioner):
        raise InputError(
            f"{folder} is a run of {type(network).__name__}, which writes no captions whose words could be looked at."
        )
    data = entities_beside(folder, images) if data is None else data
    shares, pictures = word_shares(network.eval(), data, len(BOXED_FILES), by)
    for name, maps in zip(BOXED_FILES if by == "attention" else (), pictures, strict=False):
        store_map(folder, name, maps)
    return store_map(folder, SHARES_FILES[by], shares)


def entities_beside(folder: Path, images: int) -> Any:
    """Flickr30k with its Entities, the first images of its test, in the folder `flickr30k` beside that of a run's own data.

    Raises:
        InputError: The run's data are in no folder.
    """
    from datamodules.flickr30k_entities import Flickr30kEntities
    from datamodules.image_text import Limits

    root = getattr(data_of(folder), "root", None)
    if root is None:
        raise InputError(f"{folder} is no run on a data set in a folder, beside which Flickr30k's Entities could be.")
    place, limits = str(Path(root).parent / "flickr30k"), Limits(train=1, val=1, test=images)
    return Flickr30kEntities(root=place, split="karpathy", num_workers=0, eval_batch_size=16, limits=limits)


def object_pairs(model: Any, data: Any, folder: Path) -> Any:
    """The loader of a test's pairs of caption and image whose objects are known.

    Raises:
        InputError: The run's data has none.
    """
    data.connect(model.network.inputs)
    loaders = data.evaluation_loaders("test")
    if len(loaders) < 3:
        raise InputError(f"{folder} was not tested on pairs with objects (Flickr30k Entities), which maps of relations need.")
    return loaders[2]


def _relation_maps(model: Any, data: Any, folder: Path, pair: int) -> AttentionMaps:
    import torch
    from transformers import AutoTokenizer

    from lightning_modules.objectives.relation_alignment import Kind, RelationAlignment, Scores

    batch = next(iter(object_pairs(model, data, folder)))
    in_order = batch.images.index_B.argsort(stable=True).tolist()
    if not 0 <= pair < len(in_order):
        raise InputError(f"{folder}: pair {pair} of its test's first batch, which has pairs 0 to {len(in_order) - 1}.")
    row = in_order[pair]
    layer = getattr(model, "isda_layer", model.network.num_layers - 1)
    with torch.no_grad():
        relations = model.network.relations(batch, [layer])
        attended, words, regions = relations.attention[layer], relations.words, relations.regions
        scores = Scores(attended, words, regions)
        kinds: tuple[Kind, ...] = ("singular", "distributed")
        terms = {kind: RelationAlignment(kind)(attended, words, regions, ("language", "vision")) for kind in kinds}
    losses = {kind: sum(float(loss_B[row]) for loss_B in each.values()) for kind, each in terms.items()}
    kept_words, kept_regions = words.mask_BN[row], regions.mask_BN[row]
    pieces = batch.texts.tokens_BT[row][1:][: len(kept_words)][kept_words[: batch.texts.tokens_BT.shape[1] - 1]].tolist()
    name = model.network.inputs.text.tokenizer
    names = [str(piece) for piece in pieces]
    if name is not None:
        names = AutoTokenizer.from_pretrained(name, trust_remote_code=False).convert_ids_to_tokens(pieces)
    return AttentionMaps(
        tuple(names),
        scores.map("L", "L")[row][kept_words][:, kept_words].numpy(),
        scores.map("V", "V")[row][kept_regions][:, kept_regions].numpy(),
        batch.texts.texts[row],
        layer,
        losses["singular"],
        losses["distributed"],
    )


def _word_maps(model: Any, data: Any, image: int) -> WordMaps:
    import torch

    from datamodules.files.images import open_image
    from datamodules.loading.images import evaluation_transform, normalize
    from datamodules.records import ImageBatch
    from experiments.analysis.grid import covered_area
    from experiments.analysis.word_maps import token_maps
    from lightning_modules.base import draw_seed

    network = model.network
    data.connect(network.inputs)
    records = data.records("test")
    if not 0 <= image < len(records):
        raise InputError(f"image {image} of the test split, which has images 0 to {len(records) - 1}.")
    record = records[image]
    picture = open_image(record)
    spec = network.vision.image_input
    pixels_B3HW = normalize(evaluation_transform(spec)(picture)[None], spec)
    with torch.no_grad():
        features = network.encode_images(ImageBatch((record.image_id,), torch.zeros(1, dtype=torch.int64), pixels_B3HW))
    ids = network.generate_ids(features, model.decoding, [draw_seed((0, record.image_id))])
    maps = token_maps(network, features, ids)[0]
    area = covered_area(spec, *picture.size)
    width = picture.size[0]
    picture.thumbnail((320, 320))
    scale = picture.size[0] / width
    covered = (area.left * scale, area.top * scale, area.right * scale, area.bottom * scale)
    return WordMaps(
        tuple(word.text for word in maps.words), maps.word_maps(), np.asarray(picture), covered, maps.text, maps.shown
    )
