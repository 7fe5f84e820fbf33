"""Holding a mount at one state, for as long as a connection to it is open.

The mount lets go when the connection closes, however that comes about, and when nothing was asked
for ten minutes. On the same connection it can be asked what it holds; see `mount.holding` for the
questions.

Asking a mount for something over its control socket, and waiting for the answer.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from jmapfs.control.messages import ControlReply, ControlRequest, short_path
from jmapfs.control.mounts import require_mount, socket_directory, socket_name
from jmapfs.errors import UNDECODABLE, NotMountedError, UsageError

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
    request = msgspec.json.encode(ControlRequest(command, dict(arguments or {}))) + b"\n"
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
        answer = msgspec.json.decode(line, type=ControlReply)
    except UNDECODABLE as error:
        raise NotMountedError("the daemon ended before it answered") from error
    return answer.content()


def _received(connection: socket.socket) -> bytes:
    parts = []
    while part := connection.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


_PIECE_BYTES: Final = 1 << 18
_LET_GO: Final = "it has ended, or let go of what it held"


class Hold:
    """A mount that is held; questions can be asked from any thread, and wait for each other.

    `since` is when the freeze began that holds it, in seconds since 1970.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.since = 0.0
        self._connection = connection
        self._lock = threading.Lock()

    def ask(
        self, command: str, arguments: Mapping[str, object] | None = None, *, seconds: float = 10.0
    ) -> Any:  # noqa: ANN401 - an answer is whatever JSON can hold
        """Ask about what is held, and return the answer.

        Raises:
            NotMountedError: there is no answer within `seconds`; the hold has ended.
            JmapfsError: the mount answered with an error; its exit code is that of the error.
        """
        try:
            line = msgspec.json.encode(ControlRequest(command, dict(arguments or {}))) + b"\n"
        except UnicodeEncodeError:
            raise UsageError("what the mount is asked is not text") from None
        with self._lock:
            try:
                answer = msgspec.json.decode(self._exchanged(line, seconds), type=ControlReply)
            except (OSError, *UNDECODABLE) as error:
                # An answer that comes later must not be taken for that to the next question.
                self._connection.close()
                why = _LET_GO if isinstance(error, ConnectionError) else error
                raise NotMountedError(f"the daemon does not answer: {why}") from error
        return answer.content()

    def _exchanged(self, line: bytes, seconds: float) -> bytes:
        deadline = time.monotonic() + seconds
        self._connection.settimeout(seconds)
        self._connection.sendall(line)
        answer = bytearray()
        while not answer.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("timed out")
            self._connection.settimeout(left)
            piece = self._connection.recv(_PIECE_BYTES)
            if not piece:
                raise ConnectionResetError
            answer += piece
        return bytes(answer)


@contextlib.contextmanager
def hold(mountpoint: Path, *, seconds: float = 300.0) -> Iterator[Hold]:
    """Hold the mount at a resolved path at the state it shows, while the context lasts.

    A freeze that is on already is joined, and not ended.

    Raises:
        NotMountedError: nothing of ours is mounted there, or it is not held after `seconds`.
        JmapfsError: it cannot be held.
    """
    require_mount(mountpoint)
    with hold_over(socket_directory(), socket_name(mountpoint), seconds=seconds) as held:
        yield held


@contextlib.contextmanager
def hold_over(directory: Path, name: str, *, seconds: float = 300.0) -> Iterator[Hold]:
    """Hold the mount with that control socket; see `hold`."""
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            with short_path(directory, name) as short:
                connection.settimeout(seconds)
                connection.connect(short)
        except OSError as error:
            raise NotMountedError(f"the daemon does not answer: {error}") from error
        held = Hold(connection)
        held.since = float(held.ask("hold", seconds=seconds)["since"])
        yield held
