"""COCO captions as a data module; its files and their options are those of sources/coco.py."""

from __future__ import annotations

from datamodules.image_text import ImageTextDataModule
from datamodules.sources.coco import COCOSource


class COCO(COCOSource, ImageTextDataModule):
    __doc__ = COCOSource.__doc__
