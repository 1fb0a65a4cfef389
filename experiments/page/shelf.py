"""Models that are loaded when they are first asked for, and the indexes of their folders, which are made meanwhile.

Visitors share models and indexes, and nothing else: what one of them asks for is in no object here.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

import lightning_modules
from datamodules.errors import InputError, find_input_error, printable
from experiments.analysis.captions import captioner_of
from experiments.analysis.data import data_of
from experiments.page.folder import ImageFolder
from experiments.page.offers import Offer, Use
from experiments.page.pairs import Pairs
from experiments.serving.index import ImageIndex
from experiments.serving.indexing import Encoding, update_index
from experiments.serving.models import model_key, two_encoders
from experiments.training.failures import one_line
from lightning_modules.retrieval import RetrievalModule

MOST_OWN = 5_000  # images of a run's own data that are shown where no folder was named: what can be encoded while one waits


@dataclass(frozen=True)
class Progress:
    """How far an index is.

    Args:
        state: What goes on.
        done: Images that are encoded.
        total: Images to encode.
        broken: Images that cannot be read, a line each.
        error: Why there is none.
        hints: Captions of the model's own data: what it was trained to read.
    """

    state: Literal["loading", "encoding", "ready", "failed"] = "loading"
    done: int = 0
    total: int = 0
    broken: tuple[str, ...] = ()
    error: str = ""
    hints: tuple[str, ...] = ()


@dataclass(frozen=True)
class Loading:
    """How models are loaded: the options of `lightning_modules.load`, and where they run."""

    backbone: str | None = None
    tokenizer: str | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


class Shelf:
    """The models of a page.

    Args:
        offers: What can be chosen.
        images: The folder that all of them are used on; None = each on that of its own data, where that is small enough.
        index: A finished index of `images`, of the only model that searches; None = the page makes its own.
        loading: How.
        kept: Where its own indexes lie.

    Raises:
        InputError: The folder has no images.
    """

    def __init__(
        self, offers: Sequence[Offer], images: Path | None, index: ImageIndex | None, loading: Loading, kept: Path
    ) -> None:
        self._offers = {offer.name: offer for offer in offers}
        self._images = None if images is None else ImageFolder(images)
        self._fixed, self._loading, self._kept = index, loading, kept
        self._models: dict[str, Any] = {}
        self._locks = {name: threading.Lock() for name in self._offers}
        self._own: dict[Path, ImageFolder | None] = {}
        self._starting = threading.Lock()
        self._progress: dict[str, Progress] = {}
        self._indexes: dict[str, ImageIndex] = {}
        self._pairs: dict[str, Pairs] = {}

    def of(self, use: Use) -> list[Offer]:
        """The offers that are good for something, as far as is known."""
        return [offer for offer in self._offers.values() if offer.use in (use, None)]

    def offer(self, name: str | None, use: Use) -> Offer | None:
        """The one of this name, or the first for this use; None where there is none for it.

        Raises:
            InputError: There is none of this name.
        """
        if not name:
            return next(iter(self.of(use)), None)
        if name not in self._offers:
            raise InputError(f"no run {name!r} is offered here.")
        return self._offers[name]

    def model(self, offer: Offer) -> Any:
        """The loaded model, on its device.

        Raises:
            InputError: It cannot be loaded.
        """
        with self._locks[offer.name]:
            if offer.name not in self._models:
                how = self._loading
                model: Any = lightning_modules.load(offer.place, backbone=how.backbone, tokenizer=how.tokenizer)
                self._models[offer.name] = model.to(self._loading.device)
            return self._models[offer.name]

    def folder(self, offer: Offer) -> ImageFolder | None:
        """The images that a model is used on; None where there are none to show."""
        if self._images is not None or offer.root is None:
            return self._images
        if offer.root not in self._own:
            try:
                found = ImageFolder(offer.root)
            except InputError:  # its data are gone, or of another machine: the page says that none are shown
                found = None
            self._own[offer.root] = found if found is not None and len(found) <= MOST_OWN else None
        return self._own[offer.root]

    def writer_of(self, folder: ImageFolder) -> Offer | None:
        """A captioner that is used on the same images."""
        return next((offer for offer in self.of("captions") if offer.use and self.folder(offer) is folder), None)

    # ------------------------------------------------------------------------------------------------- getting ready

    def progress(self, offer: Offer, use: Use) -> Progress:
        """How far a model is, and for searches its index: both begin when this is first asked for."""
        name = f"{use} {offer.name}"
        with self._starting:
            if name in self._progress:
                return self._progress[name]
            self._progress[name] = Progress()
        threading.Thread(target=self._prepare, args=(offer, use), daemon=True, name=name).start()
        return self._progress[name]

    def ready(self, offer: Offer) -> tuple[ImageIndex, RetrievalModule]:
        """A finished index with its model.

        Raises:
            InputError: It is not finished, or cannot be.
        """
        progress = self.progress(offer, "search")
        if progress.state == "failed":
            raise InputError(progress.error)
        if progress.state != "ready":
            raise InputError("the images are still being encoded; ask again when that is done.")
        return self._indexes[offer.name], self._models[offer.name]

    def pairs(self, offer: Offer) -> Pairs:
        """The pairs of a run.

        Raises:
            InputError: They are not there yet, or cannot be.
        """
        progress = self.progress(offer, "pairs")
        if progress.state != "ready":
            raise InputError(progress.error or "the model is still being loaded; ask again when that is done.")
        return self._pairs[offer.name]

    def _prepare(self, offer: Offer, use: Use) -> None:
        name = f"{use} {offer.name}"
        try:
            if use == "search":
                self._progress[name] = self._prepared(offer)
            elif use == "pairs":
                self._pairs[offer.name] = Pairs(self.model(offer), data_of(offer.place))
                self._progress[name] = Progress("ready")
            else:
                captioner_of(self.model(offer), Path(offer.name), maps=False)
                self._progress[name] = Progress("ready")
        except Exception as error:  # of a thread that nobody waits for: the page says it
            told = find_input_error(error)
            reason = str(told) if told else f"{type(error).__name__}: {one_line(error)}"
            self._progress[name] = Progress("failed", error=reason)

    def _prepared(self, offer: Offer) -> Progress:
        model = two_encoders(self.model(offer), offer.name)
        folder = self.folder(offer)
        if folder is None:
            raise InputError("there are no images to search; open the page with --images DIR.")
        if self._fixed is not None:
            self._fixed.require_model(model, offer.name)
            self._indexes[offer.name] = self._fixed
            return Progress("ready", len(self._fixed), len(self._fixed), hints=_hints(offer, model))
        key = hashlib.sha256(os.fsencode(f"{model_key(model)} {folder.root.resolve()}")).hexdigest()[:24]

        def tell(done: int, total: int) -> None:
            self._progress[f"search {offer.name}"] = Progress("encoding", done, total)

        update = update_index(self._kept / key, folder.root, model, offer.place, how=Encoding(tell=tell))
        self._indexes[offer.name] = ImageIndex(self._kept / key)
        broken = tuple(line.replace(f"{printable(str(folder.root))}/", "") for line in update.broken)
        return Progress("ready", update.images, update.images, broken, hints=_hints(offer, model))


def _hints(offer: Offer, model: RetrievalModule, count: int = 3) -> tuple[str, ...]:
    """Captions of the split that a run was tested on; none where its data are not here."""
    if offer.root is None or not offer.root.is_dir():
        return ()
    try:
        data = data_of(offer.place)
        data.connect(model.network.inputs)
        records = data.records("test")
    except InputError:  # of a part that is missing: an example is no reason to show no page
        return ()
    chosen = [records[len(records) * place // count] for place in range(min(count, len(records)))]
    return tuple(dict.fromkeys(min((one.text for one in record.captions), key=len) for record in chosen if record.captions))


def kept_indexes() -> Path:
    """Where a page keeps the indexes that it makes: in the cache of this user."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "crosslight" / "page"
