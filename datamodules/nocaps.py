"""NoCaps as a data module; its files and their options are those of sources/nocaps.py."""

from __future__ import annotations

from datamodules.image_text import ImageTextDataModule
from datamodules.sources.nocaps import NoCapsSource


class NoCaps(NoCapsSource, ImageTextDataModule):
    __doc__ = NoCapsSource.__doc__
