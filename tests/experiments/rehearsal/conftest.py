"""A paper of tiny runs on a tiny world, at a scale that wants GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

_COST = {"hours": 6.0, "device": "A100", "devices": 2, "disk_gb": 1.0}
_RUNS = {
    "common": {
        "small": {
            "configs": ["configs/trainer/ddp.yaml", "configs/model/beit3_tiny.yaml", "configs/data/world.yaml"],
            "options": {
                "data.init_args.batch_size": 8, "trainer.max_epochs": 4, "trainer.precision": "32-true",
                "trainer.accumulate_grad_batches": 2,
            },
        }
    },
    "runs": {
        "start": {"small": {"command": "fit", "configs": ["experiments/papers/mwa/variants/full.yaml"], "cost": _COST}},
        "tuned": {"small": {"start": "start", "configs": ["experiments/papers/mwa/variants/mwa.yaml"], "cost": _COST}},
    },
}  # fmt: skip
_TABLE = {
    "title": "Tiny", "kind": "table", "variants": [{"label": "tuned", "runs": {"run": "tuned"}}],
    "columns": [
        {"name": "r1", "label": "R@1", "metric": "i2t_r1"}, {"name": "m", "label": "M", "cost": "tunable_parameters"},
    ],
}  # fmt: skip


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the world and the paper."""
    from datamodules.miniworld.write import Splits, write_world

    folder = tmp_path_factory.mktemp("rehearsal")
    splits = Splits(coco=0.25, flickr_train=0.6, flickr_val=0.15)
    write_world(folder / "world", scenes=60, image_size=32, splits=splits, workers=1)
    (folder / "tiny" / "exhibits").mkdir(parents=True)
    (folder / "tiny" / "runs.yaml").write_text(yaml.safe_dump(_RUNS))
    (folder / "tiny" / "exhibits" / "table.yaml").write_text(yaml.safe_dump(_TABLE))
    return folder


@pytest.fixture(scope="module")
def place(tiny: Path) -> Iterator[Path]:
    """The same, which the environment names."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CROSSLIGHT_PAPERS", str(tiny / "tiny"))
        patch.setenv("CROSSLIGHT_WORLD", str(tiny / "world"))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield tiny
    torch.set_num_threads(threads)
