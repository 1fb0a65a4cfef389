"""Flickr8k as a data module; its files and their options are those of sources/flickr8k.py."""

from __future__ import annotations

from datamodules.image_text import ImageTextDataModule
from datamodules.sources.flickr8k import Flickr8kSource


class Flickr8k(Flickr8kSource, ImageTextDataModule):
    __doc__ = Flickr8kSource.__doc__
