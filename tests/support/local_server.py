"""A server on this machine that behaves as a test wants it to."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class Server:
    """Serves `files` with Range; `cut[path]` closes the first connections to a path after so many bytes; `first[path]` are
    answers (status and headers) that come before the file; `page`, where there is one, is what all ask for instead; `headers`
    go with every file, and an If-Range that is not their ETag or Last-Modified has the whole sent, where `conditions`."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut: dict[str, list[int]] = {}
        self.first: dict[str, list[tuple[int, dict[str, str]]]] = {}
        self.ranges = self.conditions = True
        self.headers: dict[str, str] = {}
        self.page: bytes | None = None
        self.requests: list[tuple[str, str | None]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = self.headers.get("Range")
                outer.requests.append((self.path, asked))
                if first := outer.first.get(self.path):
                    status, headers = first.pop(0)
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.close_connection = True
                    return
                if outer.page is not None:  # of a network that wants a login: without a length
                    self.send_response(200)
                    self.end_headers()
                    self.wfile.write(outer.page)
                    self.close_connection = True
                    return
                content = outer.files.get(self.path)
                if content is None:
                    self.send_error(404)
                    return
                start = 0
                condition = self.headers.get("If-Range")
                unchanged = not outer.conditions or condition in (None, *outer.headers.values())
                if asked and outer.ranges and unchanged:
                    start = int(re.fullmatch(r"bytes=(\d+)-", asked).group(1))  # type: ignore[union-attr]
                    if start >= len(content):
                        self.send_response(416)
                        self.send_header("Content-Range", f"bytes */{len(content)}")
                        self.send_header("Content-Length", "0")
                        self.end_headers()
                        return
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                else:
                    self.send_response(200)
                self.send_header("Content-Length", str(len(content) - start))
                for name, value in outer.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                cuts = outer.cut.get(self.path, [])
                self.wfile.write(content[start : cuts.pop(0)] if cuts else content[start:])
                self.close_connection = True

            def log_message(self, format: str, *arguments: object) -> None:
                return

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()
