"""Records: a report from the archive is the report from the folders; nothing of a model or a machine is in it; damage is told."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from fake_runs import fill

from datamodules.errors import InputError
from experiments.cli.main import run_command
from experiments.runs.records import opened, write_records


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    fill(root, ["mwa/table3"], "miniature", [0, 1])
    for folder in root.iterdir():
        for name in ("checkpoints/best.ckpt", "scores/coco-test/scores.npy", "wandb/debug.log", ".lock"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(b"heavy")
    return root


def test_a_report_from_records_is_the_report_from_the_folders(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = tmp_path / "runs.tar.xz"
    written = ["mwa/table3", "--runs", str(runs), "--out", str(tmp_path / "a"), "--records", str(records)]
    assert run_command("report", written) == 0
    assert f"records: {records} (10 runs)" in capsys.readouterr().out
    assert run_command("report", ["mwa/table3", "--runs", str(records), "--out", str(tmp_path / "b")]) == 0
    for name in ("summary.json", "summary.md", "claims.csv"):
        assert (tmp_path / "a" / name).read_text() == (tmp_path / "b" / name).read_text(), name
    assert json.loads((tmp_path / "b" / "summary.json").read_text())["exhibits"][0]["rows"][0]["n"] == 2
    pages = "".join(page.read_text() for page in (tmp_path / "b").glob("*.html"))
    assert "crosslight-records-" not in pages, "the folder that they were unpacked to is gone"
    assert str(records) in pages


def test_no_weights_and_no_marks_of_the_machine(runs: Path, tmp_path: Path) -> None:
    folders = sorted(runs.iterdir())
    write_records(folders, tmp_path / "a.tar.xz")
    write_records(folders[::-1], tmp_path / "b.tar.xz")
    assert (tmp_path / "a.tar.xz").read_bytes() == (tmp_path / "b.tar.xz").read_bytes()
    with tarfile.open(tmp_path / "a.tar.xz") as archive:
        names = archive.getnames()
        assert {(each.mtime, each.uid, each.uname) for each in archive} == {(0, 0, "")}
    assert {Path(name).parts[0] for name in names} == {folder.name for folder in folders}
    assert not [name for name in names if "heavy" in name or ".ckpt" in name or ".lock" in name or "scores/" in name]
    assert f"{folders[0].name}/results.json" in names


def test_two_folders_of_one_name_are_refused(runs: Path, tmp_path: Path) -> None:
    folder = next(runs.iterdir())
    other = tmp_path / folder.name
    other.mkdir()
    with pytest.raises(InputError, match="have one name"):
        write_records([folder, other], tmp_path / "a.tar.xz")
    assert not (tmp_path / "a.tar.xz").exists()


def test_damaged_records_are_told(runs: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.tar.xz"
    write_records(runs.iterdir(), file)
    whole = file.read_bytes()
    for content in (b"", b"no archive", whole[: len(whole) // 2], whole[:100] + b"x" * 50 + whole[150:]):
        file.write_bytes(content)
        with pytest.raises(InputError, match=f"{file} is no whole archive"), opened([file]):
            pass


@pytest.mark.parametrize(
    ("name", "kind"), [("../outside", tarfile.REGTYPE), ("{}/outside", tarfile.REGTYPE), ("link", tarfile.SYMTYPE)]
)
def test_an_archive_cannot_write_elsewhere(tmp_path: Path, name: str, kind: bytes) -> None:
    file = tmp_path / "a.tar.xz"
    entry = tarfile.TarInfo(name.format(tmp_path))
    entry.type, entry.linkname = kind, str(tmp_path)
    with tarfile.open(file, "w:xz") as archive:
        archive.addfile(entry)
    with pytest.raises(InputError, match="is no whole archive"), opened([file]):
        pass
    assert not (tmp_path / "outside").exists()


def test_an_archive_packed_by_hand_is_read(runs: Path, tmp_path: Path) -> None:
    """Of GNU tar: with folders in it, and ./ before each name."""
    folder = next(runs.iterdir())
    with tarfile.open(tmp_path / "a.tar.xz", "w:xz", format=tarfile.GNU_FORMAT) as archive:
        archive.add(folder, f"./{folder.name}")
    with opened([tmp_path / "a.tar.xz"]) as (unpacked,):
        assert (unpacked / folder.name / "results.json").read_bytes() == (folder / "results.json").read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["mwa/table3", "--records", "runs.zip"], "ends in .tar.xz"),
        (["RUNS", "--records", "runs.tar.xz"], "--records is of exhibits"),
    ],
)
def test_what_cannot_be_written_is_refused_first(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [str(runs) if word == "RUNS" else word for word in options]
    with pytest.raises(InputError, match=message):
        run_command("report", [*words, "--runs", str(runs), "--out", "report"])
    assert not list(tmp_path.rglob("*.html"))
