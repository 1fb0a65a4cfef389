"""Your own images and captions as a data module; the table and its options are those of sources/table.py."""

from __future__ import annotations

from datamodules.image_text import ImageTextDataModule
from datamodules.sources.table import TableSource


class Table(TableSource, ImageTextDataModule):
    __doc__ = TableSource.__doc__
