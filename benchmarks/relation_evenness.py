"""Is attention within a modality still about anything? How evenly words look at words, and regions at regions, over a run's test.

    python benchmarks/relation_evenness.py runs/papers/iais-base-flickr30k-*

ISDa and IAIS's losses are distances between two maps, and two maps that are even agree whatever there is to see. For each run:
over how many words or regions a row of the map is spread (exp of its entropy; the layer of ISDa, mean over heads), beside how
many there are. As many as there are is even; 1 is one word. The pairs are those of ISDa: Flickr30k Entities' captions with their
image.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

# The file is run by its path: the packages beside this folder must be found without an installation, too.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datamodules.errors import InputError


def evenness(run: Path) -> str:
    """Of words and of regions: over how many a row is spread, and how many there are (means over pairs)."""
    import torch

    import lightning_modules
    from experiments.analysis.data import data_of
    from experiments.analysis.run_maps import object_pairs
    from lightning_modules.objectives.relation_alignment import Scores

    module: Any = lightning_modules.load(run)
    pairs = object_pairs(module, data_of(run), run)
    network, layer = module.network.eval(), getattr(module, "isda_layer", module.network.num_layers - 1)
    spread: dict[str, list[float]] = {"L": [], "V": []}
    there: dict[str, list[int]] = {"L": [], "V": []}
    with torch.no_grad():
        for batch in pairs:
            relations = network.relations(batch, [layer])
            scores = Scores(relations.attention[layer], relations.words, relations.regions)
            for side, mask_BN in scores.masks.items():
                for map_NN, kept_N in zip(scores.map(side, side), mask_BN, strict=True):
                    rows = map_NN[kept_N][:, kept_N]
                    if len(rows) > 1:  # of one there is nothing to choose from
                        spread[side].append(float(torch.special.entr(rows).sum(-1).exp().mean()))
                        there[side].append(len(rows))
    return "; ".join(
        f"{name} {fmean(spread[side]):.2f} of {fmean(there[side]):.2f} ({len(there[side])} pairs)"
        for side, name in (("L", "words"), ("V", "regions"))
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    for run in parser.parse_args().runs:
        try:
            print(f"{run.name}: {evenness(run)}", flush=True)
        except InputError as error:
            print(f"relation_evenness: error: {error}", file=sys.stderr)
            raise SystemExit(2) from None


if __name__ == "__main__":
    main()
