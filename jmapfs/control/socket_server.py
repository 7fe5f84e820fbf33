"""Answering what is asked of a mount over its control socket; see `protocol`.

A session ends with the connection, and at once: the peer is listened to also while it is being
answered, so that what it held is let go of when it is killed. One that is stopped, and asks
nothing for ten minutes, has let go as well.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import trio

from jmapfs.control.messages import ControlReply, ControlRequest, short_path
from jmapfs.errors import UNDECODABLE, JmapfsError, StorageError, UsageError, lone_errors

_log = logging.getLogger(__name__)

_LINE_LIMIT: Final = 1 << 20
_REQUEST_SECONDS: Final = 10
# Somebody may have stopped the peer for a moment (Ctrl-Z), and it has something to lose.
_SESSION_SEND_SECONDS: Final = 60
# One that was stopped for longer than this must not keep the tree still for good.
_SILENCE_SECONDS: Final = 600

Command = Callable[[Mapping[str, Any]], Awaitable[object]]
"""Answers a request: takes its arguments, returns what JSON can hold."""


@dataclass(frozen=True, slots=True)
class ControlSession:
    """A connection that stays open: the answer that began it, and what can be asked on it."""

    opening: object
    commands: Mapping[str, Command]


SessionCommand = Callable[[Mapping[str, Any]], AbstractAsyncContextManager[ControlSession]]
"""Begins a session, and ends it with its context."""


@contextlib.asynccontextmanager
async def control_socket(
    directory: Path,
    name: str,
    commands: Mapping[str, Command],
    sessions: Mapping[str, SessionCommand] | None = None,
) -> AsyncIterator[None]:
    """Answer requests on the socket `name` in `directory` while the context lasts.

    Raises:
        StorageError: the socket cannot be made.
    """
    path = directory / name
    path.unlink(missing_ok=True)
    with short_path(directory, name) as short, trio.socket.socket(socket.AF_UNIX) as listening:
        try:
            await listening.bind(short)
            listening.listen()
        except OSError as error:
            raise StorageError(f"cannot make the socket {path}: {error.strerror}") from error

        async def serve(stream: trio.SocketStream) -> None:
            await _serve(stream, commands, sessions or {})

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.serve_listeners, serve, [trio.SocketListener(listening)])
                yield
                nursery.cancel_scope.cancel()
        finally:
            path.unlink(missing_ok=True)


class _Lines:
    """The lines that a peer sends."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._rest = bytearray()

    async def next(self) -> bytes:
        """Return the next line, cut where it is too long; nothing at the end."""
        while b"\n" not in self._rest and len(self._rest) < _LINE_LIMIT:
            received = await self._stream.receive_some()
            if not received:
                break
            self._rest += received
        end = self._rest.find(b"\n") + 1 or len(self._rest)
        line = bytes(self._rest[:end])
        del self._rest[:end]
        return line


async def _serve(
    stream: trio.SocketStream,
    commands: Mapping[str, Command],
    sessions: Mapping[str, SessionCommand],
) -> None:
    try:
        async with stream:
            lines = _Lines(stream)
            with trio.fail_after(_REQUEST_SECONDS):
                line = await lines.next()
            request = _decoded(line)
            begin = sessions.get(request.command) if isinstance(request, ControlRequest) else None
            if isinstance(request, ControlRequest) and begin is not None:
                await _converse(stream, lines, begin(request.arguments))
            else:
                await _answer_while_there(stream, request, commands)
    except (trio.BrokenResourceError, trio.TooSlowError) as error:
        _log.info("a control connection broke off: %r", error)
    except Exception:  # noqa: BLE001 - a bug must not take the mount with it
        _log.exception("a bug in a control connection")


async def _answer_while_there(
    stream: trio.SocketStream,
    request: ControlRequest | ControlReply,
    commands: Mapping[str, Command],
) -> None:
    """Answer, unless the peer goes first: then nobody would undo what was done for it."""

    async def listen(ended: trio.CancelScope) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            while await stream.receive_some():
                pass
        ended.cancel()

    with lone_errors():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen, nursery.cancel_scope)
            await _send(stream, await _answer_to(request, commands), _REQUEST_SECONDS)
            nursery.cancel_scope.cancel()


async def _converse(
    stream: trio.SocketStream, lines: _Lines, beginning: AbstractAsyncContextManager[ControlSession]
) -> None:
    """Hold a session, until the peer closes the connection, or asks nothing for ten minutes."""
    sender, requests = trio.open_memory_channel[bytes](1)

    async def listen(ended: trio.CancelScope) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            while True:
                with trio.move_on_after(_SILENCE_SECONDS) as silence:
                    line = await lines.next()
                if silence.cancelled_caught:
                    _log.warning("a session ends: nothing was asked for %d s", _SILENCE_SECONDS)
                    break
                # A line that does not end is too long, or its peer has gone.
                if not line.endswith(b"\n"):
                    break
                try:
                    sender.send_nowait(line)
                except trio.WouldBlock:
                    _log.info("a session ends: it does not wait for its answers")
                    break
        ended.cancel()

    async def hold_session() -> None:
        async with contextlib.AsyncExitStack() as stack:
            session: ControlSession | None = None

            async def begin() -> object:
                nonlocal session
                session = await stack.enter_async_context(beginning)
                return session.opening

            await _send(stream, await _answer_of(begin), _SESSION_SEND_SECONDS)
            if session is not None:
                async for line in requests:
                    answer = await _answer_to(_decoded(line), session.commands)
                    await _send(stream, answer, _SESSION_SEND_SECONDS)

    with lone_errors():
        async with sender, requests, trio.open_nursery() as nursery:
            nursery.start_soon(listen, nursery.cancel_scope)
            await hold_session()
            nursery.cancel_scope.cancel()


def _decoded(line: bytes) -> ControlRequest | ControlReply:
    """Return the request that a line is, or what is to be answered where it is none."""
    try:
        return msgspec.json.decode(line, type=ControlRequest)
    except UNDECODABLE as error:
        return ControlReply(error=f"not a request: {error}", exit_code=UsageError.exit_code)


async def _answer_to(
    request: ControlRequest | ControlReply, commands: Mapping[str, Command]
) -> ControlReply:
    if isinstance(request, ControlReply):
        return request
    command = commands.get(request.command)
    if command is None:
        text = f"the mount does not know the command {request.command!r}"
        return ControlReply(error=text, exit_code=UsageError.exit_code)
    arguments = request.arguments
    return await _answer_of(lambda: command(arguments))


async def _answer_of(question: Callable[[], Awaitable[object]]) -> ControlReply:
    try:
        return ControlReply(answer=await question())
    except JmapfsError as error:
        return ControlReply(error=str(error), exit_code=error.exit_code)
    except msgspec.ValidationError as error:
        return ControlReply(error=f"not a request: {error}", exit_code=UsageError.exit_code)
    except Exception as error:  # noqa: BLE001 - a bug must not take the mount with it
        _log.exception("a bug in answering a command")
        return ControlReply(error=f"a bug, {type(error).__name__}: see the log", exit_code=1)


async def _send(stream: trio.SocketStream, answer: ControlReply, seconds: float) -> None:
    with trio.fail_after(seconds):
        await stream.send_all(_encoded(answer) + b"\n")


def _encoded(answer: ControlReply) -> bytes:
    try:
        return msgspec.json.encode(answer)
    except UnicodeEncodeError:
        return msgspec.json.encode(ControlReply(error="the answer is not text", exit_code=1))
