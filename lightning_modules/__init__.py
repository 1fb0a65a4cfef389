"""From batches to numbers. `load(run_or_export)` gives back a usable model."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from datamodules import lazy_imports

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from lightning_modules.base import TunedModule

lazy_imports.install()


def load(
    run_or_export: str | Path,
    trust: Collection[str] = (),
    backbone: str | Path | None = None,
    tokenizer: str | Path | None = None,
) -> TunedModule:
    """The trained model of a run folder (its best checkpoint) or of an adapter export, in eval mode on the CPU.

        model = lightning_modules.load("runs/f30k-mwa")
        images_ND, texts_ND = model.encode_images(["a.jpg", "b.jpg"]), model.encode_texts(["a dog", "snow"])
        captions = lightning_modules.load("runs/coco-i-tuning").to("cuda").caption(["a.jpg", "b.jpg"])

    Threads may share it: one computes, and others wait. A module of a class of your own that is no `TunedModule` comes back as
    it is, with the methods that it has.

    Args:
        run_or_export: The folder; or an export's name on the Hugging Face Hub, OWNER/NAME or OWNER/NAME@REVISION.
        trust: Modules of your own whose classes it may name, such as ["my_adapter"]: loading imports, and so runs, them.
        backbone: Where the weights lie that it needs and does not hold: the file or folder, or a folder that holds them by their
            names. Of a run, where what it names by a path lies now. None = CROSSLIGHT_BACKBONE, or as it is named.
        tokenizer: In place of the one that it names or holds: a folder, BEiT-3's sentencepiece file, or a name on the Hub.

    Raises:
        InputError: Neither a run folder nor an export, no checkpoint in it, or another backbone than it was trained on.
    """
    from lightning_modules.loading import load_export_or_run

    return cast("TunedModule", load_export_or_run(run_or_export, trust, backbone, tokenizer))
