"""Serves a page on an address of this machine."""

from __future__ import annotations

import errno
import socket

import uvicorn
from starlette.types import ASGIApp

from datamodules.errors import InputError


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens there.

    Args:
        host: A name or address of this machine.
        port: 0 = a free one.

    Raises:
        InputError: The port is taken, or the address is not of this machine.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind(address)
            found.listen()
        except OSError:
            found.close()
            raise
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InputError(
                f"port {port} of {host} is taken by another program (or another page); give --port 0 for a free one."
            ) from None
        raise InputError(f"--host {host}, --port {port} cannot be listened on ({error.strerror or error}).") from None
    return found


def is_local(listening: socket.socket) -> bool:
    """Whether nobody but this machine reaches it."""
    name = str(listening.getsockname()[0])
    return name == "::1" or name.startswith("127.")


def serve(app: ASGIApp, listening: socket.socket) -> None:
    """Until it is interrupted."""
    with listening:
        uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off", ws="none")).run(sockets=[listening])
