"""What results.json says of the checkpoint that a training goes on from."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from datamodules.errors import InputError
from experiments.training import trainer as rooms
from experiments.training.trainer import Trainer, require_data
from lightning_modules.retrieval import RetrievalModule


@pytest.mark.parametrize(
    ("before", "last", "given", "after"),
    [
        (None, None, None, None),
        (None, None, "old.ckpt", "old.ckpt"),
        ("old.ckpt", "last.ckpt", None, "old.ckpt"),  # resumed: its first attempt began there
        ("old.ckpt", None, None, None),  # it kept nothing, and begins anew
        ("old.ckpt", None, "other.ckpt", "other.ckpt"),
    ],
)
def test_it_is_where_the_training_that_is_kept_began(
    before: str | None, last: str | None, given: str | None, after: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def place(name: str | None) -> str | None:
        return None if name is None else str(tmp_path / name)

    folder = SimpleNamespace(results=SimpleNamespace(resumed_from=place(before)), last_checkpoint=place(last))
    folder.update = lambda **entries: vars(folder.results).update(entries)
    fits: list[Any] = []
    trainer = SimpleNamespace(
        run_folder=folder,
        fit=lambda *_, **options: fits.append(options["ckpt_path"]),
        _best=None,
        global_step=1,
        current_epoch=1,
        _require_sound=lambda *_, **__: None,
    )
    monkeypatch.setattr(rooms, "trains", lambda model: True)
    Trainer.fit_or_resume(trainer, None, None, place(given))  # type: ignore[arg-type]
    assert folder.results.resumed_from == place(after)
    assert fits == [place(last or given)]


@pytest.mark.parametrize(
    ("needed", "empty", "says"),
    [
        (RetrievalModule.needs_captions, "val", "data: mine val has images and no captions, without which SimpleNamespace"),
        (RetrievalModule.needs_captions, "test", "data: mine test has images and no captions"),
        (frozenset({"val"}), "test", None),  # captions are written for a server that has the references
        (frozenset({"val"}), "val", "data: mine val has images and no captions"),
    ],
)
def test_a_split_without_captions_is_refused_where_they_are_needed(needed: frozenset[str], empty: str, says: str | None) -> None:
    data = SimpleNamespace(
        name="mine", prepare_data=lambda: None, caption_count=lambda split: 0 if split == empty else 5, split_label=str
    )
    expected = nullcontext() if says is None else pytest.raises(InputError, match=says)
    with expected:
        require_data(SimpleNamespace(needs_captions=needed), "data", data, ("train", "val", "test"))
