"""Exports on the Hugging Face Hub: one is put there, and one comes from there. NAME is OWNER/NAME, or OWNER/NAME@REVISION.

huggingface_hub does the work, with the token of its own login (`hf auth login`, or HF_TOKEN); what goes wrong is said in a line.
Of a repository nothing is fetched but what its adapter_config.json lists, and nothing of it is run or unpickled.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datamodules.errors import InputError, some
from datamodules.files.atomic import whole_folder
from datamodules.files.hub import answers, without_waiting
from lightning_modules.checkpoints.adapter_export import CONFIG_FILE, read_adapter_config, require_files
from lightning_modules.checkpoints.model_card import CARD_FILE, FOLDER
from lightning_modules.checkpoints.run_folder import no_result

_NAME = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w][\w./-]*))?")
_IGNORED = {".gitattributes", ".gitignore", CARD_FILE}  # what the Hub itself puts into a new repository


def is_hub_name(text: str) -> bool:
    """Whether a text that names no folder of this machine may name a repository: OWNER/NAME, where there is no folder OWNER."""
    return _NAME.fullmatch(text) is not None and not Path(text).exists() and not Path(text.partition("/")[0]).exists()


def pulled(name: str) -> Path:
    """An export of the Hub in its cache, whole and checked; from the cache alone where the Hub cannot be reached.

    Args:
        name: OWNER/NAME or OWNER/NAME@REVISION.

    Raises:
        InputError: There is no such repository or revision, or no access to it; it is no export, or is damaged.
    """
    repository, revision = _split(name)
    without_waiting(repository)
    with _told(repository, revision):
        folder = _snapshot(repository, revision, [CONFIG_FILE])
        if not (folder / CONFIG_FILE).exists():
            raise InputError(f"{name} on the Hub is no export of crosslight: it has no {CONFIG_FILE}.")
        files = list(read_adapter_config(folder).files)
        _snapshot(repository, folder.name, [glob.escape(file) for file in (CONFIG_FILE, CARD_FILE, *files)])
    require_files(folder, read_adapter_config(folder).files)
    return folder


def pull(name: str, folder: Path) -> Path:
    """`pulled`, copied to a folder of its own.

    Args:
        name: OWNER/NAME or OWNER/NAME@REVISION.
        folder: Where to; created, must be empty or not there.

    Raises:
        InputError: As `pulled`, or `folder` holds something or cannot be written.
    """
    folder = folder.expanduser().resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not an empty folder; give another, or one that does not exist.")
    source = pulled(name)
    names = [CONFIG_FILE, CARD_FILE, *read_adapter_config(source).files]
    try:
        with whole_folder(folder) as part:
            for file in names:
                if (source / file).exists():  # a card may be missing
                    (part / file).parent.mkdir(parents=True, exist_ok=True)
                    (part / file).write_bytes((source / file).read_bytes())
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror or error}).") from error
    return folder


def push(folder: str | Path, name: str, private: bool = False, message: str | None = None) -> str:
    """Put an export on the Hub in one commit, the repository made where there is none. Its card loads it by its name there.

    Args:
        folder: The export.
        name: OWNER/NAME or OWNER/NAME@BRANCH; a branch is made where there is none.
        private: Of a repository that is made.
        message: Of the commit.

    Returns:
        The address of the commit.

    Raises:
        InputError: The folder is no export, is damaged, or comes of stand-ins or a rehearsal; the repository holds something
            else; not logged in, no right to write there, or the Hub cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants

    folder = Path(folder).expanduser()
    repository, branch = _split(name)
    config = read_adapter_config(folder)
    require_files(folder, config.files)
    if (why := no_result(folder)) is not None:
        raise InputError(
            f"{folder} is marked as no result ({why}), so it is not put on the Hub: export a run on real data and weights."
        )
    if constants.is_offline_mode() or not answers(constants.ENDPOINT):
        raise InputError(f"push needs the Hub, and {_why_not(constants.ENDPOINT)}.")
    content: dict[str, Path | bytes] = {file: folder / file for file in (CONFIG_FILE, *config.files)}
    if (folder / CARD_FILE).exists():
        content[CARD_FILE] = (folder / CARD_FILE).read_text(encoding="utf-8").replace(f'"{FOLDER}"', f'"{name}"').encode()
    hub = HfApi()
    with _told(repository, branch):
        hub.create_repo(repository, private=private or None, exist_ok=True)
        if branch is not None:
            hub.create_branch(repository, branch=branch, exist_ok=True)
        there = set(hub.list_repo_files(repository, revision=branch))
        if CONFIG_FILE not in there and (others := sorted(there - _IGNORED)):
            raise InputError(f"{name} on the Hub holds something else ({some(others)}). Give another name, or empty it first.")
        stale = [file for file in there if file not in content and (file.startswith("files/") or file.endswith(".safetensors"))]
        additions = [CommitOperationAdd(file, source) for file, source in content.items()]
        deletions = [CommitOperationDelete(file) for file in sorted(stale)]
        text = message or "Export of crosslight"
        commit = hub.create_commit(repository, [*additions, *deletions], commit_message=text, revision=branch)
    return str(commit.commit_url)


def _split(name: str) -> tuple[str, str | None]:
    found = _NAME.fullmatch(name)
    if found is None:
        raise InputError(f"{name!r} is no name on the Hub. Write OWNER/NAME, or OWNER/NAME@REVISION.")
    return found["name"], found["revision"]


def _snapshot(repository: str, revision: str | None, files: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repository, revision=revision, allow_patterns=files))


@contextmanager
def _told(repository: str, revision: str | None) -> Iterator[None]:
    """What the Hub and its library refuse, as one line with a remedy."""
    from huggingface_hub import constants, errors

    hub = constants.ENDPOINT.removeprefix("https://")
    login = "Log in with `hf auth login`"
    try:
        yield
    except errors.LocalTokenNotFoundError as error:
        raise InputError(f"{hub}: not logged in. {login}.") from error
    except errors.GatedRepoError as error:
        raise InputError(
            f"{hub}/{repository} gives access on request: ask for it on its page, and {login[0].lower()}{login[1:]}."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(f"{hub}/{repository} has no revision {revision}.") from error
    except errors.RepositoryNotFoundError as error:
        nowhere = f"There is no folder {repository} here; {hub} has none of that name, or it is private and you are not logged in"
        raise InputError(f"{nowhere}. {login}.") from error
    except errors.LocalEntryNotFoundError as error:
        raise InputError(f"{repository} is neither a folder here nor in the cache of {hub}, and {_why_not(hub)}.") from error
    except errors.HfHubHTTPError as error:
        raise InputError(_answer(error, hub, repository, login)) from error
    except errors.HTTPError as error:  # type: ignore[attr-defined]  # of the connection: of httpx, or httpx2
        raise InputError(f"{hub} cannot be reached ({_line(error)}). Try again when it can.") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{hub}/{repository}: {_line(error)}") from error


def _why_not(hub: str) -> str:
    """Why the Hub is not asked, and what to do; `without_waiting` goes offline by itself where nothing answers."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "HF_HUB_OFFLINE says not to ask it: unset it"
    return f"{hub} cannot be reached or does not answer: try again when it does"


def _answer(error: Any, hub: str, repository: str, login: str) -> str:
    status = getattr(error.response, "status_code", None)
    told = _line(getattr(error, "server_message", None) or error)
    reasons: Mapping[int | None, str] = {
        401: f"{hub} does not know your token, or there is none. {login}.",
        403: f"{hub}: your token may not write to {repository} ({told}). Give a name of your own, or a token that may.",
    }
    return reasons.get(status, f"{hub}/{repository} answered {status} ({told}). Try again later.")


def _line(error: object) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."
