"""As much of the Hugging Face Hub's HTTP as pushing to it and pulling from it needs, on this machine.

Repositories are folders of commits in memory. Small files go into a commit themselves, weights through Git LFS, as on the Hub.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

from datamodules.files import hub

TOKEN = "hf_of_me"  # of the user "me", who may write to me/...


@dataclass
class Repository:
    """Files of each commit by its hash, and the commits of branches."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        identity = hashlib.sha1(f"{len(self.commits)} {message}".encode()).hexdigest()
        self.commits[identity], self.branches[branch] = files, identity
        self.messages.append(message)
        return identity

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches.get(revision, revision)]


class HubError(Exception):
    def __init__(self, status: int, message: str = "", code: str = "") -> None:
        self.status, self.headers = status, {"X-Error-Code": code, "X-Error-Message": message}


class Hub:
    """`repositories` are what it holds; `fails` answers a path that matches with a status; `requests` are what was asked."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.uploaded: dict[str, bytes] = {}
        self.fails: dict[str, int] = {}
        self.requests: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                path = unquote(urlsplit(self.path).path)
                outer.requests.append(f"{self.command} {path}")
                token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
                headers: dict[str, str] = {}
                try:
                    for pattern, status in outer.fails.items():
                        if re.search(pattern, f"{self.command} {path}"):
                            raise HubError(status, "it was told to fail")
                    content, headers = outer.answer(self.command, path, body, token)
                    status = 200
                except HubError as error:
                    content, status, headers = b"{}", error.status, error.headers
                    if path == "/api/repos/create":
                        asked = json.loads(body)
                        content = json.dumps({"url": f"{outer.url}/{asked['organization']}/{asked['name']}"}).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    if value:
                        self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            do_GET = do_HEAD = do_POST = do_PUT = answer

            def log_message(self, format: str, *arguments: object) -> None:
                return

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    # ---------------------------------------------------------------------------------------------------- what it answers

    def answer(self, method: str, path: str, body: bytes, token: str) -> tuple[bytes, dict[str, str]]:
        if token and token != TOKEN:
            raise HubError(401, "Invalid credentials in Authorization header")
        routes: list[tuple[str, Callable[..., Any]]] = [
            (r"POST /api/repos/create", self.create),
            (r"POST /api/validate-yaml", lambda token, body: {"errors": [], "warnings": []}),
            (r"POST /api/models/([^/\s]+/[^/\s]+?)/branch/(\S+)", self.branch),
            (r"POST /api/models/([^/\s]+/[^/\s]+?)/preupload/(\S+)", self.preupload),
            (r"POST /api/models/([^/\s]+/[^/\s]+?)/commit/(\S+)", self.commit),
            (r"POST /([^/\s]+/[^/\s]+?)\.git/info/lfs/objects/batch", self.batch),
            (r"PUT /lfs/(\w+)", self.upload),
            (r"GET /api/models/([^/\s]+/[^/\s]+?)/revision/(\S+)", self.revision),
            (r"GET /api/models/([^/\s]+/[^/\s]+)", self.revision),
            (r"GET /api/models/([^/\s]+/[^/\s]+?)/tree/(\S+)", self.tree),
            (r"(?:GET|HEAD) /([^/\s]+/[^/\s]+?)/resolve/([^/]+)/(\S+)", self.file),
        ]
        if f"{method} {path}" == "HEAD /":
            return b"", {}
        for pattern, act in routes:
            if found := re.fullmatch(pattern, f"{method} {path}"):
                content = act(token, body, *found.groups())
                return content if isinstance(content, tuple) else (json.dumps(content).encode(), {})
        raise HubError(404, f"no such address: {method} {path}")

    def _read(self, token: str, name: str, revision: str = "main") -> tuple[Repository, str]:
        repository = self.repositories.get(name)
        if repository is None or (repository.private and token != TOKEN):
            raise HubError(404 if token else 401, "Repository not found", "RepoNotFound")
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            raise HubError(404, "Invalid rev id", "RevisionNotFound")
        return repository, commit

    def _write(self, token: str, name: str) -> Repository:
        if token != TOKEN:
            raise HubError(401)
        if not name.startswith("me/"):
            raise HubError(403, "you don't have the rights")
        return self.repositories[name]

    def create(self, token: str, body: bytes) -> Any:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if token == TOKEN and name in self.repositories:
            raise HubError(409, "You already created this model repo")
        self.repositories[name] = Repository(asked.get("visibility") == "private" or bool(asked.get("private")))
        try:
            self._write(token, name).commit("main", {".gitattributes": b"*.safetensors filter=lfs"}, "initial commit")
        except HubError:
            del self.repositories[name]
            raise
        return {"url": f"{self.url}/{name}"}

    def branch(self, token: str, body: bytes, name: str, branch: str) -> Any:
        repository = self._write(token, name)
        if branch in repository.branches:
            raise HubError(409, "Reference already exists")
        repository.branches[branch] = repository.branches["main"]
        return {}

    def preupload(self, token: str, body: bytes, name: str, revision: str) -> Any:
        self._write(token, name)
        names = [file["path"] for file in json.loads(body)["files"]]
        kinds = {file: "lfs" if file.endswith(".safetensors") else "regular" for file in names}
        return {"files": [{"path": file, "uploadMode": kinds[file], "shouldIgnore": False} for file in names]}

    def batch(self, token: str, body: bytes, name: str) -> Any:
        self._write(token, name)
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.url}/lfs/{each['oid']}"}}} for each in json.loads(body)["objects"]
        ]
        return {"transfer": "basic", "objects": objects}

    def upload(self, token: str, body: bytes, identity: str) -> tuple[bytes, dict[str, str]]:
        assert hashlib.sha256(body).hexdigest() == identity
        self.uploaded[identity] = body
        return b"", {}

    def commit(self, token: str, body: bytes, name: str, branch: str) -> Any:
        repository = self._write(token, name)
        files, message = dict(repository.files(branch)), ""
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.uploaded[value["oid"]]
            else:
                assert line["key"] == "deletedFile"
                del files[value["path"]]
        identity = repository.commit(branch, files, message)
        return {"commitUrl": f"{self.url}/{name}/commit/{identity}", "commitOid": identity}

    def revision(self, token: str, body: bytes, name: str, revision: str = "main") -> Any:
        repository, commit = self._read(token, name, revision)
        siblings = [{"rfilename": file} for file in repository.commits[commit]]
        return {"_id": "0", "id": name, "sha": commit, "private": repository.private, "siblings": siblings, "tags": []}

    def tree(self, token: str, body: bytes, name: str, revision: str) -> Any:
        repository, commit = self._read(token, name, revision)
        files = repository.commits[commit]
        return [
            {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for file, content in files.items()
        ]

    def file(self, token: str, body: bytes, name: str, revision: str, file: str) -> tuple[bytes, dict[str, str]]:
        repository, commit = self._read(token, name, revision)
        if file not in repository.commits[commit]:
            raise HubError(404, "Entry not found", "EntryNotFound")
        content = repository.commits[commit][file]
        return content, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": commit}


@pytest.fixture
def hub_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub that this process asks in place of the real one, with an empty cache and the login of "me"."""
    server = Hub()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its chunks go to servers of their own
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.answers.cache_clear()
    yield server
    server.http.shutdown()
    server.http.server_close()
    hub.answers.cache_clear()
