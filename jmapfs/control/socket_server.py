"""The server of the control socket: answers the requests to a mount; see `messages`.

While a request is being carried out, the server watches the connection. If the client closes the
connection, the work is cancelled. Otherwise a freeze of which no client knows could remain.
"""

import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import trio

from jmapfs.control.messages import AnyRequest, Failure, ReplyLine, short_path
from jmapfs.errors import UNDECODABLE, JmapfsError, StorageError, UsageError, lone_errors

_log = logging.getLogger(__name__)

_LINE_LIMIT: Final = 1 << 20
_REQUEST_SECONDS: Final = 10
# A client that does not read its reply for so long (Ctrl-Z) has lost its lease anyway.
_REPLY_SECONDS: Final = 30

Answer = Callable[[AnyRequest], Awaitable[object]]
"""Carries out a request and returns its reply: any type that msgspec encodes."""


@contextlib.asynccontextmanager
async def control_socket(path: Path, answer: Answer) -> AsyncIterator[None]:
    """Answer requests on the socket at `path` while the context lasts.

    Raises StorageError if the socket cannot be made.
    """
    with short_path(path) as short, trio.socket.socket(socket.AF_UNIX) as listening:
        try:
            _remove(path)
            await listening.bind(short)
            listening.listen()
        except OSError as error:
            raise StorageError(f"cannot make the socket {path}: {error.strerror}") from error
        serve = partial(_serve, answer=answer)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.serve_listeners, serve, [trio.SocketListener(listening)])
                yield
                nursery.cancel_scope.cancel()
        finally:
            _remove(path)


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


async def _serve(stream: trio.SocketStream, answer: Answer) -> None:
    try:
        async with stream:
            with trio.fail_after(_REQUEST_SECONDS):
                line = await _read_line(stream)
            with lone_errors():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_wait_for_disconnect, stream, nursery.cancel_scope)
                    reply = await _reply_to(line, answer)
                    with trio.fail_after(_REPLY_SECONDS):
                        await stream.send_all(msgspec.json.encode(reply) + b"\n")
                    nursery.cancel_scope.cancel()
    except (trio.BrokenResourceError, trio.TooSlowError) as error:
        _log.info("a control connection broke off: %r", error)
    except Exception:  # noqa: BLE001 - a bug must not end the mount
        _log.exception("a bug in a control connection")


async def _read_line(stream: trio.SocketStream) -> bytes:
    line = bytearray()
    while b"\n" not in line and len(line) < _LINE_LIMIT:
        received = await stream.receive_some()
        if not received:
            break
        line += received
    return bytes(line)


async def _wait_for_disconnect(stream: trio.SocketStream, scope: trio.CancelScope) -> None:
    """Cancel `scope` when the client closes the connection."""
    with contextlib.suppress(trio.BrokenResourceError):
        while await stream.receive_some():
            pass
    scope.cancel()


async def _reply_to(line: bytes, answer: Answer) -> ReplyLine:
    try:
        request: AnyRequest = msgspec.json.decode(line, type=AnyRequest)
    except UNDECODABLE as error:
        return _error_line(UsageError(f"not a request: {error}"))
    try:
        return ReplyLine(answer=msgspec.Raw(msgspec.json.encode(await answer(request))))
    except JmapfsError as error:
        return _error_line(error)
    except Exception as error:  # noqa: BLE001 - a bug must not end the mount
        _log.exception("a bug in answering a request")
        return _error_line(error)


def _error_line(error: Exception) -> ReplyLine:
    failure = Failure.of(error)
    # An error can name a file whose name is not text.
    text = failure.error.encode(errors="backslashreplace").decode()
    return ReplyLine(error=text, exit_code=failure.exit_code)
