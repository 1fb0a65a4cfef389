"""Kinds `beit3-tokenizer` and `beit3-index`: BEiT-3's token ids, and the index files of its data sets.

Recorded from `XLMRobertaTokenizer("beit3.spm")` of transformers 4, `_get_text_segment` and `make_*_dataset_index` of
`RetrievalDataset`. Both need BEiT-3's sentencepiece file, which no recording holds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from datamodules.errors import InputError
from datamodules.files.releases import SHA256, TOKENIZER
from datamodules.formats.beit3_index import IndexKind, read_index
from datamodules.inputs import TextInput
from datamodules.loading.tokens import Tokenizer
from datamodules.prepare.beit3_index import write_index
from experiments.parity.compare import GroupCheck, compare_lines, not_checked
from experiments.parity.recordings import Recording

_KINDS: dict[str, IndexKind] = {"dataset_coco.json": "coco", "dataset_flickr30k.json": "flickr30k"}
_PREFIX = {"coco": "coco_retrieval.", "flickr30k": "flickr30k."}


def _spm_problem(recording: Recording, spm: Path | None) -> str:
    """Why the sentencepiece file cannot be used for this recording; nothing if it can.

    Raises:
        InputError: There is no such file.
    """
    if spm is None:
        return "give --spm FILE, BEiT-3's beit3.spm"
    try:
        sha256 = hashlib.sha256(spm.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"--spm {spm} cannot be read ({error.strerror}); give BEiT-3's beit3.spm") from error
    wanted = recording.about.get("spm_sha256", SHA256[TOKENIZER])
    return "" if sha256 == wanted else f"{spm.name} is another file (sha256 {sha256[:8]}...) than recorded with ({wanted[:8]}...)"


# ----------------------------------------------------------------------------------------------------------- tokenizer


def check_tokenizer(recording: Recording, spm: Path | None) -> list[GroupCheck]:
    """Ids of every text, whole and cut and padded to the recorded length, and the special tokens. Texts that spell control tokens
    ("</s>") are read as the official code does, which takes them for these; in our data they are text.

    Raises:
        InputError: No such sentencepiece file, or the recording lacks its rows.
    """
    rows, special = recording.value("rows"), recording.about.get("special", {})
    if problem := _spm_problem(recording, spm):
        return [not_checked("token ids", problem)]
    texts = [row["text"] for row in rows]
    tokenizer = Tokenizer(TextInput(str(spm)))
    names = [f"text {number} {text[:24]!r}" for number, text in enumerate(texts)]
    report = [
        compare_lines(
            "token ids",
            {name: _official(tokenizer, text).ids([text])[0] for name, text in zip(names, texts, strict=True)},
            dict(zip(names, (row["ids"] for row in rows), strict=True)),
            f"{spelled} spell control tokens: as the official code reads them" if (spelled := _spelled(tokenizer, texts)) else "",
        )
    ]
    lengths = sorted({int(key.rsplit("_", 1)[1]) for row in rows for key in row if key.startswith("language_tokens_")})
    for length in lengths:
        report += _segments(Tokenizer(TextInput(str(spm), length)), rows, names, length)
    return [*report, _special(tokenizer, special)]


def _spelled(tokenizer: Tokenizer, texts: Sequence[str]) -> int:
    """How many texts spell control tokens."""
    return sum(any(token in text for token in tokenizer._tokenizer.all_special_tokens) for text in texts)


def _official(tokenizer: Tokenizer, text: str) -> Tokenizer:
    """The tokenizer, reading control tokens as such where this text spells any."""
    tokenizer._tokenizer.split_special_tokens = not _spelled(tokenizer, [text])
    return tokenizer


def _segments(tokenizer: Tokenizer, rows: list[dict[str, Any]], names: list[str], length: int) -> list[GroupCheck]:
    """Cut and padded ids with their masks, made from the text and made from its ids (as index files have them)."""
    key, mask_key = f"language_tokens_{length}", f"padding_mask_{length}"
    recorded: dict[str, Any] = {}
    found: dict[str, dict[str, Any]] = {"text": {}, "ids": {}}
    for name, row in zip(names, rows, strict=True):
        if key not in row or mask_key not in row:
            continue
        recorded[name] = (row[key], row[mask_key], row.get("num_tokens"))
        text = _official(tokenizer, row["text"])([row["text"]])
        for way, (tokens_BT, mask_BT) in (("text", text), ("ids", tokenizer.from_ids([row["ids"]]))):
            tokens, mask = tokens_BT[0].tolist(), (~mask_BT[0]).long().tolist()  # recorded: 1 = padding
            padding = length - len(tokens)  # ours pads to the longest of a batch, with the same id
            said = None if row.get("num_tokens") is None else len(tokens) - sum(mask)
            found[way][name] = (tokens + [1] * padding, mask + [1] * padding, said)
    return [compare_lines(f"{length} tokens, from {way}", found[way], recorded) for way in ("text", "ids")]


def _special(tokenizer: Tokenizer, recorded: dict[str, int]) -> GroupCheck:
    (short, _), _ = tokenizer.from_ids([[9], [9, 9]])
    (whole,), _ = tokenizer(["a"])
    unk, mask = tokenizer._tokenizer.convert_tokens_to_ids(["<unk>", "<mask>"])
    found: dict[str, Any] = {
        "bos": int(whole[0]),
        "eos": int(whole[-1]),
        "pad": int(short[-1]),
        "unk": unk,
        "mask": mask,
        "len": tokenizer.vocabulary_size,
    }
    unknown = [name for name in recorded if name not in found]
    note = f"not compared: {', '.join(unknown)}" if unknown else ""
    recorded = {name: value for name, value in recorded.items() if name in found}
    return compare_lines("special tokens", {name: found[name] for name in recorded}, recorded, note)


# --------------------------------------------------------------------------------------------------------------- index


def check_index(recording: Recording, spm: Path | None) -> list[GroupCheck]:
    """The index files that we write from the recorded Karpathy files, line by line, and the recorded ones through our reader.

    Raises:
        InputError: No such sentencepiece file, or the recording lacks its files.
    """
    inputs, outputs = recording.value("inputs"), recording.value("outputs")
    report: list[GroupCheck] = []
    with TemporaryDirectory(prefix="crosslight-parity-") as name:
        folder = Path(name)
        problem = _spm_problem(recording, spm)
        for file, content in inputs.items():
            kind = _KINDS.get(file)
            if problem or kind is None:
                report.append(not_checked(f"writing, {file}", problem or "neither COCO's nor Flickr30k's split file"))
                continue
            annotations = folder / file
            annotations.write_text(json.dumps(content), encoding="utf-8")
            report.append(_written(annotations, kind, Tokenizer(TextInput(str(spm))), outputs))
        report.append(_read(folder, outputs))
    return report


def _written(annotations: Path, kind: IndexKind, tokenizer: Tokenizer, outputs: dict[str, str]) -> GroupCheck:
    recorded = {file: text for file, text in outputs.items() if file.startswith(_PREFIX[kind])}
    group, folder = f"writing, {annotations.name}", annotations.parent / kind
    folder.mkdir()
    try:
        files = write_index(annotations, kind, folder, tokenizer)
    except InputError as error:
        return GroupCheck(group, "OFF", note=str(error))
    found = {path.name: path.read_text(encoding="utf-8") for path in files}
    return compare_lines(group, _by_line(found), _by_line(recorded))


def _by_line(files: dict[str, str]) -> dict[str, str]:
    lines = {f"{file}:{number}": line for file, text in files.items() for number, line in enumerate(text.splitlines(True), 1)}
    return lines | {f"{file} (lines)": str(len(text.splitlines())) for file, text in files.items()}


def _read(folder: Path, outputs: dict[str, str]) -> GroupCheck:
    found: dict[str, Any] = {}
    recorded: dict[str, Any] = {}
    for file, text in outputs.items():
        path = folder / f"recorded.{file}"
        path.write_text(text, encoding="utf-8")
        pairs = [json.loads(line) for line in text.splitlines()]
        for pair in pairs:  # the official reader takes pairs one by one; ours collects those of an image, in the same order
            recorded.setdefault(f"{file}: {pair['image_path']}", []).append(pair["text_segment"])
        for image in read_index(path, folder):
            captions = [list(caption.token_ids or ()) for caption in image.captions]
            assert image.path is not None
            found[f"{file}: {image.path.relative_to(folder)}"] = captions
    return compare_lines("reading", found, recorded)
