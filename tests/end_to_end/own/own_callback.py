"""A callback with a state: it counts steps, and says in a file how many there were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback


class OwnCallback(Callback):
    def __init__(self, file: str) -> None:
        self.file = Path(file)
        self.steps = 0

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.steps += 1

    def on_train_end(self, trainer: Any, *_: Any) -> None:
        if trainer.is_global_zero:
            self.file.write_text(f"{self.steps}")

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
