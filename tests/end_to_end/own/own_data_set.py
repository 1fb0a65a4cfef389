"""A data set of one's own: ROOT/captions.csv has the columns path, caption, split; a path that comes again is another caption."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, ClassVar

from datamodules.errors import InputError
from datamodules.formats.parsing import Parsed
from datamodules.image_text import ImageTextDataModule
from datamodules.records import Caption, ImageRecord


class CSVCaptions(ImageTextDataModule):
    name: ClassVar[str] = "csv_captions"

    def __init__(self, root: str, image_dir: str = ".", **options: Any) -> None:
        super().__init__(root, image_dir, **options)
        self.table = self.root / "captions.csv"

    def annotation_files(self) -> list[Path]:
        return [self.table]

    def require_files(self) -> None:
        if not self.table.exists():
            raise InputError(f"{self.table} is missing; write it with the columns path, caption, split.")

    def parse(self) -> Parsed:
        self.require_files()
        parsed = Parsed(self.table)
        captions: dict[tuple[str, str], list[Caption]] = {}
        with self.table.open(encoding="utf-8", newline="") as file:
            for number, row in enumerate(csv.DictReader(file)):
                captions.setdefault((row["split"], row["path"]), []).append(Caption(str(number), row["caption"]))
        for (split, path), its_captions in captions.items():
            record = ImageRecord(path, self.image_dir / path, tuple(its_captions))
            parsed.splits.setdefault(split, []).append(record)
        return parsed
