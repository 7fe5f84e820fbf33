"""Asking a mount for something over its control socket, and waiting for the answer."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from jmapfs.control.protocol import Answer, Request, short_path
from jmapfs.errors import UNDECODABLE, NotMountedError

SYNC_SECONDS: Final = 630.0
"""How long to wait for the answer to `sync`: the mount itself gives up before that."""


def ask(
    directory: Path,
    name: str,
    command: str,
    *,
    seconds: float = 10.0,
    arguments: Mapping[str, object] | None = None,
) -> Any:  # noqa: ANN401 - an answer is whatever JSON can hold
    """Send a command to the mount with that socket and return its answer.

    Raises:
        NotMountedError: there is no such socket, or nobody answers within `seconds`.
        JmapfsError: the mount answered with an error; its exit code is that of the error.
    """
    request = msgspec.json.encode(Request(command, dict(arguments or {}))) + b"\n"
    try:
        with (
            short_path(directory, name) as short,
            socket.socket(socket.AF_UNIX) as connection,
        ):
            connection.settimeout(seconds)
            connection.connect(short)
            connection.sendall(request)
            line = _received(connection)
    except OSError as error:
        raise NotMountedError(f"the daemon does not answer: {error}") from error
    try:
        answer = msgspec.json.decode(line, type=Answer)
    except UNDECODABLE as error:
        raise NotMountedError("the daemon ended before it answered") from error
    return answer.content()


def _received(connection: socket.socket) -> bytes:
    parts = []
    while part := connection.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)
