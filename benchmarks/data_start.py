"""Worker of `data_at_full_size.py`: a process that starts on a data set when it is told to, and knows its seconds and memory.

`datamodules` are those that PYTHONPATH names, of any revision; from beside this file comes the protocol (`workers.py`) alone.
"""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # behind PYTHONPATH

from benchmarks.workers import serve


def spent() -> float:
    """User and system seconds of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def pss(process: int) -> int:
    """Proportional set size of a process, in bytes."""
    for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/{process}/smaps_rollup has no Pss line")


class Start:
    """A process that starts on a data set, in steps."""

    def imports(self) -> dict[str, float]:
        """What a run of any of these imports."""
        import PIL.Image
        import torchvision.transforms.v2
        import transformers

        import lightning_modules.captioning
        import lightning_modules.ranking
        import lightning_modules.retrieval

        del PIL, torchvision, transformers, lightning_modules
        return {"cpu_s": spent(), "pss": pss(os.getpid())}

    def first_batch(
        self, name: str, data: str, tokenizer: str, workers: int = 0, rank: int = 0, world_size: int = 1
    ) -> dict[str, Any]:
        """The data module up to its first batch.

        Args:
            name: One of those of `module_of`.
            data: Folder of the data sets.
            tokenizer: Folder of one.
            workers: Data workers.
            rank: Of this process.
            world_size: Ranks.
        """
        began = spent()
        self.module, inputs = module_of(name, Path(data), tokenizer, workers, world_size)
        self.module.connect(inputs, rank, world_size)
        stage = "test" if name == "nocaps" else "fit"
        self.module.prepare_data()
        self.module.setup(stage)
        loader = self.module.test_dataloader()[0] if stage == "test" else self.module.train_dataloader()
        self.batches = iter(loader)
        next(self.batches)
        return {"cpu_s": spent() - began, "pss": pss(os.getpid())}

    def unknown_words(self, name: str) -> dict[str, float]:
        """What a run says of its captions before its first step."""
        began = spent()
        self.module.unknown_words("test" if name == "nocaps" else "train")
        return {"cpu_s": spent() - began, "pss": pss(os.getpid())}

    def more(self, batches: int) -> dict[str, Any]:
        """So many batches more; then the memory of this process and of its workers."""
        for _ in range(batches):
            next(self.batches)
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        return {"process": os.getpid(), "children": [int(child) for child in children]}

    def fingerprint(self) -> str:
        """Of the data."""
        return str(self.module.fingerprint())


def module_of(name: str, data: Path, tokenizer: str, workers: int, world_size: int) -> tuple[Any, Any]:
    """The data module of a name, and what its network wants."""
    from datamodules.coco import COCO
    from datamodules.flickr30k import Flickr30k
    from datamodules.flickr30k_entities import Flickr30kEntities
    from datamodules.inputs import ImageInput, Inputs, RegionInput, TextInput
    from datamodules.loading.ranking import Ranking
    from datamodules.loading.region_files import RegionFiles
    from datamodules.nocaps import NoCaps
    from datamodules.visual_genome import VisualGenome

    half = (0.5, 0.5, 0.5)
    image, text = ImageInput(224, half, half, resize="squash"), TextInput(tokenizer, max_tokens=64)
    pairs, captions = Inputs(image, text), Inputs(image, text, captions=True)
    options: dict[str, Any] = {"num_workers": workers, "batch_size": 8 * world_size, "eval_batch_size": 8}
    one = options | {"batch_size": world_size}

    def regions(*image_db: str, **texts: list[str]) -> RegionFiles:
        return RegionFiles(
            [f"img_db/{each}" for each in image_db],
            text_db={split: [f"txt_db/itm_{each}.db" for each in those] for split, those in texts.items()},
        )

    kinds: dict[str, tuple[Any, str, dict[str, Any], Inputs]] = {
        "coco": (COCO, "coco", options, pairs),
        "flickr30k": (Flickr30k, "flickr30k", options, pairs),
        "entities": (
            Flickr30kEntities, "flickr30k", one | {"ranking": Ranking(candidates=63), "augment": "none"},
            Inputs(image, text, ranking=True),
        ),
        "visual_genome": (VisualGenome, "visual_genome", options | {"augment": "none"}, captions),
        "nocaps": (NoCaps, "nocaps", options | {"augment": "none"}, captions),
        "coco_regions": (
            COCO, "coco",
            one | {
                "regions": regions(
                    "coco_train2014", "coco_val2014", train=["coco_train", "coco_restval"], val=["coco_val"], test=["coco_test"]
                )
            },
            Inputs(None, text, RegionInput(2048)),
        ),
        "flickr30k_regions": (
            Flickr30k, "flickr30k",
            one | {
                "regions": regions(
                    "flickr30k", train=["flickr30k_train"], val=["flickr30k_val"], test=["flickr30k_test"]
                )
            },
            Inputs(None, text, RegionInput(2048)),
        ),
    }  # fmt: skip
    kind, folder, own, inputs = kinds[name]
    return kind(str(data / folder), **own), inputs


if __name__ == "__main__":
    start = Start()
    serve({name: getattr(start, name) for name in ("imports", "first_batch", "unknown_words", "more", "fingerprint")})
