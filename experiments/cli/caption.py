"""What a trained captioner writes about images and folders of images; --maps draws where it looks (I-Tuning).

  crosslight caption runs/coco-i-tuning photos --out captions.jsonl

Photographs are as in training and evaluation: upright where their EXIF data say how they were held. Images that cannot be
read are named at the end (exit status 1), and the rest is captioned.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from datamodules.errors import InputError, line_of, printable, some
from datamodules.formats.caption_results import image_id_of, write_caption_results
from datamodules.formats.problems import is_sound
from experiments.cli._parser import Parser, add_fields, given_fields, number_or, require_apart, require_writable
from experiments.cli._serving import add_model_options, tell, tell_broken, tell_no_result, tell_others
from experiments.serving.caption_file import ENDINGS, CaptionFile, Row
from lightning_modules.networks.decoding import Decoding


def add_options(parser: Parser) -> None:
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="a run folder (its best checkpoint), an export, or OWNER/NAME of the Hub"
    )
    parser.add_argument(
        "images", nargs="+", type=Path, metavar="IMAGE", help="an image, or a folder with images in folders of any depth"
    )
    add_model_options(parser, batch_size=16)
    option = parser.add_argument
    option(
        "--out", type=Path, metavar="FILE",
        help=".jsonl or .csv: a row an image, with the log-probability of its caption; there already, it is gone on with. .json: "
        "coco-caption's results; image_id is a file's name without its ending (of COCO's names the number)",
    )  # fmt: skip
    option("--seed", type=int, default=0, metavar="N", help="of --sample")
    maps = parser.add_argument_group("where the words look (I-Tuning only)").add_argument
    maps(
        "--maps",
        type=Path,
        metavar="DIR",
        help="a picture for each image, DIR/NAME.png: where each word of its caption looks",
    )
    maps(
        "--layer", type=number_or("last", "mean"), metavar="WHICH",
        help="of the language model, from 0; last (with a module; the default) or mean (of all modules)",
    )  # fmt: skip
    maps("--head", type=number_or("mean"), metavar="WHICH", help="from 0, or mean (the default)")
    maps(
        "--position", choices=("predicts", "reads"),
        help="a token's map is that of the position that wrote it (predicts, the default), or of the next one, which reads it",
    )  # fmt: skip
    add_fields(parser.add_argument_group("decoding; what is not given is as the run has it"), Decoding, joint="-", defaults=False)


def run(options: argparse.Namespace) -> int:
    shown = {name: value for name in ("layer", "head", "position") if (value := getattr(options, name)) is not None}
    if shown and options.maps is None:
        raise InputError(f"--{next(iter(shown))} chooses what --maps shows; give --maps DIR too.")
    if options.batch_size < 1:
        raise InputError(f"--batch-size is {options.batch_size}; give at least 1.")
    paths, others = _listed(options.images)
    _require_files(paths, options.out, options.maps)

    import lightning_modules
    from experiments.analysis.captions import MapOptions, captioner_of, write_captions
    from experiments.serving.models import find_device
    from experiments.training.quiet import quiet
    from lightning_modules.extraction.progress import progress_bar

    quiet()
    map_options = None if options.maps is None else MapOptions(options.maps, **shown)
    _require_own_pictures(paths, map_options)
    model: Any = lightning_modules.load(options.run, backbone=options.backbone, tokenizer=options.tokenizer)
    tell_no_result(model, options.run)
    network = captioner_of(model, options.run, maps=map_options is not None)
    decoding = replace(model.decoding, **given_fields(options, Decoding))
    network.to(find_device(options.device))
    kept = _Kept(options.out, network, decoding, options.seed, paths, map_options)
    todo = [path for path in paths if str(path) not in kept.there]
    broken: list[str] = []
    with progress_bar(sys.stderr.isatty() and not sys.stdout.isatty()) as bar:  # on a terminal the captions say how far it is
        task = bar.add_task("captions", total=len(todo))
        for batch in write_captions(network, todo, decoding, map_options, options.batch_size, options.seed, options.workers):
            for path, written in batch.captions:
                print(f"{line_of(path)}: {printable(written.text)}", flush=True)
            broken += [*kept.add(batch.captions), *batch.broken.values()]
            bar.advance(task, len(batch.captions) + len(batch.broken))
    kept.finish()
    if options.out is not None:
        tell(f"{options.out}: {len(todo) - len(broken):,} captions written, {len(kept.there):,} were there")
    tell_others(others)
    return tell_broken(broken)


class _Kept:
    """The captions in --out, where there is one.

    Args:
        out: The file.
        network: What writes.
        decoding: How.
        seed: Of sampling.
        paths: Images that are captioned.
        maps: Which pictures of maps there are to be; an image without its one is captioned again.

    Raises:
        InputError: The file has captions of another model or decoding.
    """

    def __init__(self, out: Path | None, network: Any, decoding: Decoding, seed: int, paths: Sequence[Path], maps: Any) -> None:
        from datamodules.files.digests import readable_digests
        from lightning_modules.captioning import caption_conditions
        from lightning_modules.checkpoints.fingerprint import settings_digest

        self._out, self._results, self._file = out, dict[str, str](), None
        self._began, self._written = time.time_ns(), 0
        self.there: set[str] = set()  # files that have a caption already
        if out is not None and out.suffix.lower() in ENDINGS:
            conditions = caption_conditions(network, decoding, seed) | {"settings": settings_digest(network)}
            if isinstance(network.language.text_input.tokenizer, str):  # it makes words of ids
                conditions["words"] = sorted(network.language.hf_tokenizer.get_vocab().items())
            self._file = CaptionFile(out, hashlib.sha256(json.dumps(conditions, sort_keys=True).encode()).hexdigest()[:16])
            self._digests = readable_digests(paths)[0]
            self._contents = {str(path): content for path, content in self._digests.items()}
            undrawn = [] if maps is None else [path for path in paths if not _is_drawn(path, maps)]
            self.there = self._file.keep(self._contents | dict.fromkeys(map(str, undrawn), ""))

    def add(self, captions: Sequence[tuple[Path, Any]]) -> list[str]:
        """A batch, of rows in the file when this returns; without images that have changed meanwhile: a line for each."""
        if self._file is not None:
            from datamodules.files.digests import changed_since

            rows = []
            changed = changed_since({path: self._digests.get(path, "") for path, _ in captions}, self._began)
            for path, each in captions:
                if path in changed:
                    continue
                content = self._contents[str(path)]
                numbers = round(each.log_prob, 5), len(each.ids), each.ended
                rows.append(Row(str(path), each.text, *numbers, content, self._file.job))
            self._file.add(rows)
            return [f"{path} changed while it was read: caption it again." for path in changed]
        self._results |= {image_id_of(path.stem): each.text for path, each in captions}
        if len(self._results) >= 1.1 * self._written:  # all of it is written each time
            self.finish()
        return []

    def finish(self) -> None:
        """What is not in the file yet; others may write it then."""
        if self._file is not None:
            self._file.close()
        elif self._out is not None and len(self._results) > self._written:
            write_caption_results(self._out, self._results, list(self._results))
            self._written = len(self._results)


def _is_drawn(image: Path, maps: Any) -> bool:
    from experiments.analysis.captions import said_of

    return said_of(maps.file_of(image)) == (str(image), maps.shown)


def _require_own_pictures(paths: Sequence[Path], maps: Any) -> None:
    """See that no picture would replace one of another image, or anything else.

    Raises:
        InputError: One would.
    """
    from experiments.analysis.captions import said_of

    for path in paths if maps is not None else ():
        picture = maps.file_of(path)
        said = said_of(picture) if picture.exists() else None
        its = said is not None and (said[0] == str(path) or (os.path.exists(said[0]) and os.path.samefile(said[0], path)))
        if picture.exists() and not its:
            what = "no picture of --maps" if said is None else f"that of {said[0]}"
            raise InputError(f"--maps: {picture} is there and is {what}. Give another folder for {path}.")


def _require_ours(out: Path, ids: set[str]) -> None:
    """A .json is written whole: what is there may be an earlier file of these very images, and nothing else.

    Raises:
        InputError: It is something else.
    """
    if not out.exists():
        return
    from datamodules.files.json_file import read_json

    try:
        there = read_json(out, "captions")
        known = {str(each["image_id"]) for each in there}
        ours = isinstance(there, list) and all(each.keys() == {"image_id", "caption"} for each in there)
    except (InputError, TypeError, KeyError, AttributeError):
        ours = False
    if not ours:
        raise InputError(f"--out {out} is there and is no file of captions. Give another name, or delete it.")
    if others := known - {str(each) for each in ids}:
        raise InputError(
            f"--out {out} has captions of {len(others)} other images ({some(sorted(others))}), which would be lost: a .json is "
            "written whole. Give another name, delete it, or write a .jsonl, which is gone on with."
        )


def _listed(given: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """The images that are meant, folders opened, and what else is in these.

    Raises:
        InputError: A folder has no images.
    """
    from datamodules.files.images import image_files_below

    paths: list[Path] = []
    others: list[str] = []
    for path in given:
        if not path.is_dir():
            paths.append(path)
            continue
        names, left = image_files_below(path)
        if not names:
            raise InputError(f"{path} has no images below it.")
        paths += [path / name for name in names]
        others += left
    return list(dict.fromkeys(paths)), others


def _require_files(paths: Sequence[Path], out: Path | None, maps: Path | None) -> None:
    """Before a model is loaded.

    Raises:
        InputError: A file does not exist, two have one name where names are ids, or a name that has to be written is no text.
    """
    if out is not None and out.suffix.lower() not in (*ENDINGS, ".json"):
        raise InputError(f"--out {out}: give a name that ends in .jsonl, .csv or .json.")
    require_writable(out, "--out")
    for path in paths:
        if not path.exists() and not path.is_symlink():
            raise InputError(f"image {path} does not exist.")
        if out is not None and not is_sound(str(path)):
            raise InputError(
                f"image {path}: its name is not UTF-8, so --out cannot hold it; rename the file, or leave out --out."
            )
    stems = [path.stem for path in paths]
    require_apart(out, "--out", paths)
    if maps is not None:
        for path in paths:
            require_apart(maps / f"{path.stem}.png", "--maps", [path])  # others have other names
        if maps.exists() and not (maps.is_dir() and os.access(maps, os.W_OK)):
            raise InputError(f"--maps {maps} is no folder that can be written to. Give another folder.")
    by_id = out is not None and out.suffix.lower() == ".json"
    for option, names in (("--out", map(image_id_of, stems) if by_id else ()), ("--maps", stems if maps else ())):
        for name, count in Counter(names).most_common(1):
            if count > 1:
                raise InputError(f"{count} images are named {name}, which {option} knows them by; give them one by one.")
    if out is not None and by_id:
        _require_ours(out, {image_id_of(path.stem) for path in paths})
