"""Flickr30k as a data module; its files and their options are those of sources/flickr30k.py."""

from __future__ import annotations

from datamodules.image_text import ImageTextDataModule
from datamodules.sources.flickr30k import Flickr30kSource


class Flickr30k(Flickr30kSource, ImageTextDataModule):
    __doc__ = Flickr30kSource.__doc__
