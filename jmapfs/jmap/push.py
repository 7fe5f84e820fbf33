"""Push (RFC 8620 §7.3): an event stream over which the server says that something changed.

Push is only a hint. Events that cannot be understood are ignored. After each event, and once after
connecting, the listener has to ask what changed.

A stream lasts for hours, so it does not count in the budget of requests in flight.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, TypeAlias

import httpx
import msgspec
import trio
from httpx_sse import EventSource, ServerSentEvent

from jmapfs.deadline import Deadline
from jmapfs.errors import (
    DeadlineError,
    ProtocolError,
    RequestError,
    ServerError,
    UnreachableError,
    printable,
)
from jmapfs.jmap.api import Api
from jmapfs.jmap.blobs import expand
from jmapfs.jmap.http import CONNECT_TIMEOUT, Transport
from jmapfs.jmap.http_errors import TransientError
from jmapfs.jmap.origins import host_of, secure_origin
from jmapfs.jmap.response import HttpRequest, RequestKind, ResponseReader
from jmapfs.jmap.session import Session
from jmapfs.jmap.types import decode

logger = logging.getLogger(__name__)

LARGEST_EVENT = 1 << 20
"""Bytes. A StateChange names every account that changed, and a user may share thousands."""

BURST_BYTES: Final = 2 * LARGEST_EVENT
BYTES_PER_SECOND: Final = 1 << 16
"""A stream may send so many bytes at once, and so many in a second after that.

Otherwise a server that sends garbage as fast as it can would keep a processor busy.
"""

_TYPES: Final = ("Email", "Mailbox")
_MEDIA_TYPE: Final = "text/event-stream"
_EVENT_HEADERS: Final = {"Content-Type": f"{_MEDIA_TYPE}; charset=utf-8"}
_REQUEST_HEADERS: Final = {
    "Accept": _MEDIA_TYPE,
    "Accept-Encoding": "identity",
    "Cache-Control": "no-store",
}
# In seconds. No server pings less often. Larger numbers are milliseconds, as Stalwart sends.
_LONGEST_INTERVAL: Final = 1000.0


class PushUnavailableError(ServerError):
    """The server has no usable push. Do not request push again in this session.

    It is not defined in `jmapfs.errors`, because it never ends a command: the account is polled
    instead.
    """


@dataclass(frozen=True, slots=True)
class Connected:
    """The stream is open. It reports changes from now on, but no earlier changes."""


@dataclass(frozen=True, slots=True)
class StateChange:
    """Something of these types changed in the account: Email, Mailbox or both."""

    types: frozenset[str]


PushEvent: TypeAlias = Connected | StateChange


class EventDecoder:
    """Decodes text/event-stream (WHATWG HTML §9.2) piece by piece.

    It holds no more than one incomplete event.
    """

    def __init__(self) -> None:
        self._pending = bytearray()
        self._after_cr = False

    def feed(self, data: bytes) -> Iterator[ServerSentEvent]:
        """Yield the events that `data` completes. Read all of them before the next call.

        Raises ProtocolError when an event is larger than LARGEST_EVENT.
        """
        # An event ends with an empty line. The pending data contains no complete event, so only the
        # new data can end one.
        start = max(0, len(self._pending) - 1)
        self._pending += self._with_lf(data)
        if (end := self._pending.rfind(b"\n\n", start)) >= 0:
            complete = bytes(self._pending[: end + 2])
            del self._pending[: end + 2]
            # httpx-sse can only read from a response. If its asynchronous iterator is not read to
            # the end, the generators of httpx inside are left to the garbage collector. So the
            # complete events are put into a small response, which is read synchronously.
            yield from EventSource(
                httpx.Response(200, headers=_EVENT_HEADERS, content=complete)
            ).iter_sse()
        if len(self._pending) > LARGEST_EVENT:
            raise ProtocolError(f"the server sends an event of more than {LARGEST_EVENT:,} bytes")

    def _with_lf(self, data: bytes) -> bytes:
        """Return `data` with LF for each line end, which may also be CRLF or CR."""
        if self._after_cr:
            data = data.removeprefix(b"\n")
            self._after_cr = False
        if data:
            self._after_cr = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


class _StateChangeDocument(msgspec.Struct):
    changed: dict[str, object]
    # Fastmail leaves out `@type`.
    kind: str = msgspec.field(name="@type", default="StateChange")


class _PingDocument(msgspec.Struct):
    interval: float


class _Allowance:
    """How many more bytes a stream may send now; it grows by BYTES_PER_SECOND."""

    def __init__(self) -> None:
        self._bytes = float(BURST_BYTES)
        self._counted_at = trio.current_time()

    def take(self, count: int) -> None:
        """Count bytes that have arrived. Raises TransientError if there are too many."""
        now = trio.current_time()
        grown = self._bytes + (now - self._counted_at) * BYTES_PER_SECOND
        self._bytes, self._counted_at = min(grown, BURST_BYTES) - count, now
        if self._bytes < 0:
            raise TransientError(UnreachableError("the server sends too much on the event stream"))


class PushStream:
    """An asynchronous iterator over the events of one connection, for one task.

    It ends only with an error. If the wait for an event is cancelled, the stream ends too. A server
    has to send a ping in time (RFC 8620 §7.3), so bytes that complete no event are as good as none.
    """

    def __init__(self, reader: ResponseReader, account_id: str) -> None:
        self._reader = reader
        self._last_event = trio.current_time()
        self._account_id = account_id
        self._decoder = EventDecoder()
        self._events: deque[PushEvent] = deque([Connected()])
        self._allowance = _Allowance()

    def __aiter__(self) -> PushStream:
        return self

    async def __anext__(self) -> PushEvent:
        """Return the next event; raises UnreachableError or PushUnavailableError."""
        while not self._events:
            with _push_errors():
                chunk = await self._reader.next_chunk()
                if not chunk:
                    raise TransientError(UnreachableError("the server ended the event stream"))
                self._allowance.take(len(chunk))
                for event in self._decoder.feed(chunk):
                    self._last_event = trio.current_time()
                    self._handle(event)
                if trio.current_time() > self._last_event + self._reader.stall_timeout:
                    text = f"{self._reader.host} was silent: bytes arrived, but no event"
                    raise TransientError(DeadlineError(text))
        return self._events.popleft()

    def _handle(self, event: ServerSentEvent) -> None:
        try:
            if event.event == "state":
                self._handle_change(event.data.encode())
            elif event.event == "ping":
                self._handle_ping(event.data.encode())
        except ProtocolError as error:
            logger.debug("event ignored: %s", error)

    def _handle_change(self, data: bytes) -> None:
        document = decode(data, _StateChangeDocument, "an event of the server")
        if document.kind != "StateChange":
            kind = printable(document.kind, 80)
            raise ProtocolError(f"an event of the server is a {kind}, not a StateChange")
        states = document.changed.get(self._account_id, {})
        if not isinstance(states, dict):
            raise ProtocolError("an event of the server names no types")
        if types := frozenset(states).intersection(_TYPES):
            self._events.append(StateChange(types))

    def _handle_ping(self, data: bytes) -> None:
        interval = decode(data, _PingDocument, "a ping of the server").interval
        if interval > _LONGEST_INTERVAL:
            interval = min(interval / 1000, _LONGEST_INTERVAL)
        self._reader.stall_timeout = max(self._reader.stall_timeout, 2 * interval)


class PushMethods(Api):
    """The event stream of an account."""

    @asynccontextmanager
    async def push(self, *, ping: float = 60.0) -> AsyncIterator[PushStream]:
        """Open an event stream. Its first event is Connected, and all others are StateChanges.

        `ping` is the requested interval of pings, rounded up to whole seconds. The server may
        ignore a value below 30. After two intervals without an event the stream counts as broken.
        If the server states an interval longer than `ping`, the server's interval counts.

        Raises, when the stream is opened or iterated: PushUnavailableError: there is no push in
        this session. UnreachableError: the caller should connect again, with back-off. If the
        server is busy, opening waits for the end of the cooldown. If the cooldown ends too late for
        that, opening fails at once. AuthenticationError: the server does not accept the credentials
        (only when opened).
        """
        seconds = max(1, math.ceil(ping))
        async with AsyncExitStack() as stack:
            # The `yield` is not in this block: errors of the caller's code are not errors of push.
            with _push_errors():
                request = HttpRequest(
                    method="GET",
                    url=_event_source(self.session, seconds),
                    kind=RequestKind.PUSH,
                    headers=_REQUEST_HEADERS,
                    # 403 only means that push is not allowed; the credentials may be right.
                    expected=frozenset({HTTPStatus.OK, HTTPStatus.FORBIDDEN}),
                    first_byte_timeout=math.inf,
                )
                reader = await stack.enter_async_context(
                    self.transport.subscribe(
                        request,
                        deadline=Deadline(max(2.0 * seconds, CONNECT_TIMEOUT)),
                        silence=2.0 * seconds,
                    )
                )
                await _check_response(reader, self.transport)
            yield PushStream(reader, self.account_id)


def _event_source(session: Session, ping: int) -> str:
    """Return the URL of the event stream; `ping` is in seconds.

    Raises ProtocolError if the session has no such URL, or if the URL must not get credentials.
    """
    template = session.event_source_url
    if template is None:
        raise ProtocolError("the session names no event source")
    values = {"types": ",".join(_TYPES), "closeafter": "no", "ping": str(ping)}
    # Fastmail's template has been seen without its variables.
    missing = [f"{name}={{{name}}}" for name in values if f"{{{name}}}" not in template]
    if missing:
        template += ("&" if "?" in template else "?") + "&".join(missing)
    url = expand(template, values)
    origin = secure_origin(url, naming="eventSourceUrl in the session", error=ProtocolError)
    if origin not in session.origins:
        raise ProtocolError(f"credentials are not sent to {host_of(url)}: it is not in the session")
    return url


async def _check_response(reader: ResponseReader, transport: Transport) -> None:
    """Raise ServerError if the response is not an event stream."""
    if reader.status != HTTPStatus.OK:
        raise RequestError(str(await transport.error(reader)), status=reader.status)
    media_type = reader.headers.get("content-type", "")
    if media_type.partition(";")[0].strip().lower() != _MEDIA_TYPE:
        shown = printable(media_type, 80) or "no media type"
        raise ProtocolError(f"{reader.host} answers with {shown}, which is no event stream")


@contextmanager
def _push_errors() -> Iterator[None]:
    """Convert TransientError and ServerError to UnreachableError and PushUnavailableError."""
    try:
        yield
    except TransientError as failure:
        error = failure.error
        if isinstance(error, UnreachableError):
            raise error from failure.__cause__
        raise UnreachableError(str(error)) from error
    except ServerError as error:
        raise PushUnavailableError(f"no push: {error}") from error
