"""Is attention within a modality still about anything? How evenly words look at words, and regions at regions, over a run's test.

    python benchmarks/relation_evenness.py runs/papers/iais-base-flickr30k-*

ISDa and IAIS's losses are distances between two maps, and two maps that are even agree whatever there is to see. For each run:
over how many words or regions a row of the map is spread (exp of its entropy; last layer, mean over heads), beside how many there
are. As many as there are is even; 1 is one word. The pairs are those of ISDa: Flickr30k Entities' captions with their image.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

# The file is run by its path: the packages beside this folder must be found without an installation, too.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def evenness(run: Path) -> dict[str, tuple[float, float, int]]:
    """Of words and regions: over how many a row is spread, how many there are (means over pairs), and the number of pairs."""
    import torch

    import lightning_modules
    from experiments.analysis.data import data_of
    from lightning_modules.objectives.relation_alignment import Scores

    module: Any = lightning_modules.load(run)
    network = module.network.eval()
    data = data_of(run)
    data.prepare_data()
    data.connect(network.inputs)
    layer = network.num_layers - 1
    spread: dict[str, list[float]] = {"words": [], "regions": []}
    there: dict[str, list[int]] = {"words": [], "regions": []}
    with torch.no_grad():
        for batch in data.evaluation_loaders("test")[2]:
            relations = network.relations(batch, [layer])
            scores = Scores(relations.attention[layer], relations.words, relations.regions)
            for name, side, items in (("words", "L", relations.words), ("regions", "V", relations.regions)):
                for map_NN, kept in zip(scores.map(side, side), items.mask_BN, strict=True):
                    rows = map_NN[kept][:, kept]
                    if len(rows) > 1:
                        rows = rows / rows.sum(-1, keepdim=True)
                        spread[name].append(float(torch.special.entr(rows).sum(-1).exp().mean()))
                        there[name].append(len(rows))
    return {
        name: (sum(spread[name]) / len(spread[name]), sum(there[name]) / len(there[name]), len(there[name])) for name in spread
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    for run in parser.parse_args().runs:
        found = evenness(run)
        print(
            f"{run.name}: "
            + "; ".join(f"{name} {got:.2f} of {all_:.2f} ({pairs} pairs)" for name, (got, all_, pairs) in found.items())
        )


if __name__ == "__main__":
    main()
