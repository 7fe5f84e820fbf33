"""The control socket of a running mount: one request, one answer, a line of JSON each.

    {"command": "status", "arguments": {}}
    {"answer": {…}}   or   {"error": "…", "exit_code": 9}

The socket lies in a directory that only its owner can enter; that is all the authentication.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import trio

from jmapfs.errors import JmapfsError, NotMountedError, RelayedError, StorageError, UsageError

_log = logging.getLogger(__name__)

_LINE_LIMIT: Final = 1 << 20
_REQUEST_SECONDS: Final = 10

Command = Callable[[Mapping[str, Any]], Awaitable[object]]
"""Answers a request: takes its arguments, returns what JSON can hold."""


class Request(msgspec.Struct, frozen=True):
    """What is asked of a mount."""

    command: str
    arguments: dict[str, Any] = {}


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """What it answers: `answer`, or `error` with the exit code that goes with it."""

    answer: Any = None
    error: str | None = None
    exit_code: int = 0


@contextlib.asynccontextmanager
async def control_socket(
    directory: Path, name: str, commands: Mapping[str, Command]
) -> AsyncIterator[None]:
    """Answer requests on the socket `name` in `directory` while the context lasts.

    Raises:
        StorageError: the socket cannot be made.
    """
    path = directory / name
    path.unlink(missing_ok=True)
    with _short_path(directory, name) as short, trio.socket.socket(socket.AF_UNIX) as listening:
        try:
            await listening.bind(short)
            listening.listen()
        except OSError as error:
            raise StorageError(f"cannot make the socket {path}: {error.strerror}") from error

        async def answer(stream: trio.SocketStream) -> None:
            await _answer_one(stream, commands)

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.serve_listeners, answer, [trio.SocketListener(listening)])
                yield
                nursery.cancel_scope.cancel()
        finally:
            path.unlink(missing_ok=True)


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
            _short_path(directory, name) as short,
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
    except msgspec.MsgspecError as error:
        raise NotMountedError("the daemon ended before it answered") from error
    if answer.error is not None:
        raise RelayedError(answer.error, answer.exit_code)
    return answer.answer


async def _answer_one(stream: trio.SocketStream, commands: Mapping[str, Command]) -> None:
    try:
        async with stream:
            with trio.fail_after(_REQUEST_SECONDS):
                line = await _line(stream)
            answer = msgspec.json.encode(await _answer_to(line, commands)) + b"\n"
            with trio.fail_after(_REQUEST_SECONDS):
                await stream.send_all(answer)
    except (trio.BrokenResourceError, trio.TooSlowError) as error:
        _log.info("a control connection broke off: %r", error)


async def _answer_to(line: bytes, commands: Mapping[str, Command]) -> Answer:
    try:
        request = msgspec.json.decode(line, type=Request)
        command = commands.get(request.command)
        if command is None:
            text = f"the mount does not know the command {request.command!r}"
            return Answer(error=text, exit_code=UsageError.exit_code)
        return Answer(answer=await command(request.arguments))
    except JmapfsError as error:
        return Answer(error=str(error), exit_code=error.exit_code)
    except msgspec.MsgspecError as error:
        return Answer(error=f"not a request: {error}", exit_code=UsageError.exit_code)
    except Exception as error:  # noqa: BLE001 - a bug must not take the mount with it
        _log.exception("a bug in answering a command")
        return Answer(error=f"a bug, {type(error).__name__}: see the log", exit_code=1)


async def _line(stream: trio.SocketStream) -> bytes:
    line = b""
    while not line.endswith(b"\n") and len(line) < _LINE_LIMIT:
        received = await stream.receive_some()
        if not received:
            break
        line += received
    return bytes(line)


def _received(connection: socket.socket) -> bytes:
    parts = []
    while part := connection.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


@contextlib.contextmanager
def _short_path(directory: Path, name: str) -> Iterator[str]:
    """Give a path that fits into a socket address (108 bytes, unix(7)), however deep it lies."""
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{name}"
    finally:
        os.close(descriptor)
