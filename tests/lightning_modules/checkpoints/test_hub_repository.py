"""Exports go to a Hub and come back as they were; what a Hub refuses is told in one line. The Hub is one of this machine."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import Hub, Repository, hub_server  # noqa: F401
from huggingface_hub import constants
from tiny_run import configuration, run_folder

import lightning_modules
from datamodules.errors import InputError
from datamodules.files import hub
from datamodules.files.stand_in import MARK, mark, mark_of
from experiments.cli.main import main
from lightning_modules.checkpoints.hub_repository import is_hub_name, pull, push
from lightning_modules.checkpoints.model_card import FOLDER
from lightning_modules.checkpoints.run_folder import RESULTS_SCHEMA
from lightning_modules.exporting import export_run


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A model and its export."""
    home = tmp_path_factory.mktemp("home")
    return run_folder(home / "run"), export_run(home / "run", home / "export")


def same(one: Any, other: Any) -> bool:
    mine, theirs = one.network.state_dict(), other.network.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())


def content(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


def test_there_and_back(
    export: tuple[Any, Path], hub_server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any  # noqa: F811
) -> None:  # fmt: skip
    model, folder = export
    monkeypatch.chdir(tmp_path)
    assert run("push", "me/adapter", "--export", str(folder), "--private", "--message", "First") == 0
    repository = hub_server.repositories["me/adapter"]
    assert capsys.readouterr().out == f"{hub_server.url}/me/adapter/commit/{repository.branches['main']}\n"
    assert repository.private
    assert repository.messages == ["initial commit", "First"]
    there = repository.files()
    assert f'lightning_modules.load("me/adapter")'.encode() in there["README.md"]  # noqa: F541
    files = content(folder)
    assert {name for name, value in there.items() if files.get(name) != value} == {".gitattributes", "README.md"}

    assert same(lightning_modules.load("me/adapter"), model)
    assert run("pull", "me/adapter") == 0
    pulled = content(tmp_path / "adapter")
    assert pulled == {name: value for name, value in there.items() if name != ".gitattributes"}
    assert same(lightning_modules.load(tmp_path / "adapter"), model)

    hub.answers.cache_clear()
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # gone: from the cache
    assert same(lightning_modules.load("me/adapter"), model)


def test_a_branch_an_update_and_what_is_stale(export: tuple[Any, Path], hub_server: Hub, tmp_path: Path) -> None:  # noqa: F811
    model, folder = export
    push(folder, "me/adapter")
    repository = hub_server.repositories["me/adapter"]
    first = repository.branches["main"]
    repository.files()["files/old.json"] = b"of an older export"
    repository.files()["notes.txt"] = b"mine"
    push(folder, "me/adapter@trial/2", message="Second")
    assert repository.branches["main"] == first
    assert "files/old.json" not in repository.files("trial/2")
    assert repository.files("trial/2")["notes.txt"] == b"mine"
    assert b'load("me/adapter@trial/2")' in repository.files("trial/2")["README.md"]
    repository.files("main")["adapter_config.json"] = b"{}"
    assert same(lightning_modules.load("me/adapter@trial/2"), model)
    with pytest.raises(InputError, match=r"adapter_config\.json was not written by crosslight"):
        lightning_modules.load("me/adapter")


def test_nothing_is_fetched_that_an_export_does_not_list(export: tuple[Any, Path], hub_server: Hub) -> None:  # noqa: F811
    push(export[1], "me/adapter")
    hub_server.repositories["me/adapter"].files().update({"evil.pkl": b"x", "files/evil.py": b"x", "big.safetensors": b"x"})
    lightning_modules.load("me/adapter")
    fetched = {request.rpartition("/")[2] for request in hub_server.requests if "/resolve/" in request}
    assert fetched == {"adapter_config.json", "adapter_model.safetensors", "backbone_model.safetensors", "README.md"}


def test_a_repository_that_is_no_export_or_is_damaged(
    export: tuple[Any, Path], hub_server: Hub, tmp_path: Path  # noqa: F811
) -> None:  # fmt: skip
    hub_server.repositories["me/other"] = Repository(False)
    hub_server.repositories["me/other"].commit("main", {"model.safetensors": b"x", "pytorch_model.bin": b"x"}, "theirs")
    with pytest.raises(InputError, match=r"me/other on the Hub is no export of crosslight: it has no adapter_config\.json"):
        lightning_modules.load("me/other")
    with pytest.raises(InputError, match=r"me/other on the Hub holds something else \(model\.safetensors, pytorch_model\.bin\)"):
        push(export[1], "me/other")
    push(export[1], "me/adapter")
    weights = hub_server.repositories["me/adapter"].files()
    weights["adapter_model.safetensors"] = weights["adapter_model.safetensors"][:-1] + b"\1"
    with pytest.raises(InputError, match=r"adapter_model\.safetensors was damaged or changed"):
        pull("me/adapter", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(InputError, match="out is not an empty folder"):
        pull("me/adapter", tmp_path / "out")


def test_own_classes_need_trust_from_the_hub_too(export: tuple[Any, Path], hub_server: Hub) -> None:  # noqa: F811
    push(export[1], "me/adapter")
    files = hub_server.repositories["me/adapter"].files()
    config = json.loads(files["adapter_config.json"])
    config["backbone_config"]["model"]["class_path"] = "their_module.Mine"
    files["adapter_config.json"] = json.dumps(config).encode()
    with pytest.raises(InputError, match=r"names the class 'their_module\.Mine', which is not crosslight's"):
        lightning_modules.load("me/adapter")


@pytest.mark.parametrize(
    ("name", "token", "fails", "message"),
    [
        ("me/adapter", None, {}, "does not know your token, or there is none. Log in with `hf auth login`."),
        ("me/adapter", "hf_wrong", {}, "does not know your token, or there is none. Log in with `hf auth login`."),
        ("they/adapter", "me", {}, "your token may not write to they/adapter (you don't have the rights"),
        ("me/adapter", "me", {"/commit/": 503}, "me/adapter answered 503 (it was told to fail"),
        ("adapter", "me", {}, "'adapter' is no name on the Hub. Write OWNER/NAME, or OWNER/NAME@REVISION."),
    ],
)
def test_what_a_push_is_refused_is_one_line(
    export: tuple[Any, Path], hub_server: Hub, monkeypatch: pytest.MonkeyPatch, capsys: Any,  # noqa: F811
    name: str, token: str | None, fails: dict[str, int], message: str,
) -> None:  # fmt: skip
    if token != "me":
        monkeypatch.delenv("HF_TOKEN") if token is None else monkeypatch.setenv("HF_TOKEN", token)
    hub_server.fails = fails
    assert run("push", name, "--export", str(export[1])) == 2
    told = capsys.readouterr().err
    assert message in told.splitlines()[-1]  # before it there may be bars of progress
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("name", "token", "fails", "message"),
    [
        (
            "me/nothing",
            "me",
            {},
            "has none of that name, or it is private and you are not logged in. Log in with `hf auth login`.",
        ),
        ("me/secret", None, {}, "There is no folder me/secret here; "),
        ("me/adapter@v9", "me", {}, "me/adapter has no revision v9."),
        ("me/adapter", "hf_wrong", {}, "does not know your token"),
        ("me/adapter", "me", {"/revision/": 500}, "me/adapter is neither a folder here nor in the cache"),
        ("me/adapter", "me", {"/resolve/": 404}, "me/adapter"),
    ],
)
def test_what_a_pull_is_refused_is_one_line(
    export: tuple[Any, Path], hub_server: Hub, monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path,  # noqa: F811
    name: str, token: str | None, fails: dict[str, int], message: str,
) -> None:  # fmt: skip
    push(export[1], "me/adapter")
    push(export[1], "me/secret", private=True)
    if token != "me":
        monkeypatch.delenv("HF_TOKEN") if token is None else monkeypatch.setenv("HF_TOKEN", token)
    hub_server.fails = fails
    capsys.readouterr()
    assert run("pull", name, str(tmp_path / "out")) == 2
    told = capsys.readouterr().err
    assert message in told.splitlines()[-1]  # before it there may be bars of progress
    assert "Traceback" not in told
    assert not (tmp_path / "out").exists()


def test_no_network(export: tuple[Any, Path], hub_server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    unreachable = r"http://127\.0\.0\.1:9 cannot be reached or does not answer: try again when it does"
    with pytest.raises(InputError, match=f"push needs the Hub, and {unreachable}"):
        push(export[1], "me/adapter")
    with pytest.raises(InputError, match=rf"me/adapter is neither a folder here nor in the cache of .*, and {unreachable}"):
        lightning_modules.load("me/adapter")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="HF_HUB_OFFLINE says not to ask it: unset it"):
        push(export[1], "me/adapter")
    monkeypatch.setattr(socket, "getaddrinfo", None)  # nothing of these is a name: nobody is asked
    assert not any(map(is_hub_name, ["runs", "/me/adapter", "me/adapter/more", "../adapter", "me/", "./me/a", "~/a"]))


def test_a_folder_comes_first_and_a_misspelled_run_is_not_asked_for(
    hub_server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(InputError, match=r"runs/typo is neither a run folder .* nor an adapter export .*Hugging Face Hub"):
        lightning_modules.load("runs/typo")
    assert hub_server.requests == []


@pytest.mark.parametrize("merge", [False, True], ids=["adapter", "merged"])
@pytest.mark.parametrize("made_by", ["stand-ins", "a rehearsal"])
def test_what_is_no_result_is_marked_and_not_pushed(
    made_by: str,
    merge: bool,
    hub_server: Hub,  # noqa: F811
    tmp_path: Path,
    capsys: Any,
) -> None:
    """The mark of a run is in its export, in its model card, and in what starts from it; and there it stays."""
    section = configuration()
    section["init_args"]["adapter"] = {"class_path": "lightning_modules.adapters.lora.LoRAAdapter", "init_args": {"rank": 2}}
    run_folder(tmp_path / "run", section=section)
    if made_by == "stand-ins":
        mark(tmp_path / "run", "a run on stand-ins: none of its numbers is a result")
    else:
        results = {"schema": RESULTS_SCHEMA, "fit": None, "provenance": {"rehearsal": True}}
        (tmp_path / "run" / "results.json").write_text(json.dumps(results))
    folder = export_run(tmp_path / "run", tmp_path / "export", merge=merge)
    assert export_run(tmp_path / "run", folder, merge=merge) == folder  # as it is
    assert "**No result** (" in (folder / "README.md").read_text()
    loaded = lightning_modules.load(folder)
    assert "none of its numbers is a result" in str(loaded.no_result)
    assert mark_of(folder / "adapter_model.safetensors") == folder / MARK
    assert run("push", "me/adapter", "--export", str(folder)) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "is marked as no result (" in told
    (folder / MARK).unlink()
    with pytest.raises(InputError, match="lacks STAND-IN"):
        push(folder, "me/adapter")
    assert hub_server.requests == []


def test_an_export_that_is_damaged_is_not_pushed(export: tuple[Any, Path], hub_server: Hub, tmp_path: Path) -> None:  # noqa: F811
    folder = tmp_path / "copy"
    folder.mkdir()
    for name, value in content(export[1]).items():
        (folder / name).write_bytes(value[:-1] if name.endswith(".safetensors") else value)
    with pytest.raises(InputError, match="was damaged or changed"):
        push(folder, "me/adapter")
    assert hub_server.requests == []
    assert FOLDER in (export[1] / "README.md").read_text()
