"""Push (RFC 8620 §7): an event stream over which the server says that something changed.

Push is a hint, never the truth: what cannot be understood is passed over, and whoever listens has
to ask what changed, also once after each connecting.

The text/event-stream format (WHATWG HTML §9.2): bytes as they come, events as they are whole.

Opening the event source of a session (RFC 8620 §7.3), and reading it for hours.

A stream shares neither the budget of requests in flight nor their connections. It has one of its
own, over HTTP/1.1, because a stream of HTTP/2 that is abandoned is never reset by httpcore and
stays open on the server.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeAlias

import httpx
import msgspec
import trio
from httpx_sse import EventSource, ServerSentEvent

from jmapfs.errors import (
    DeadlineError,
    JmapfsError,
    ProtocolError,
    RequestError,
    ServerError,
    UnreachableError,
)
from jmapfs.jmap.api import Api
from jmapfs.jmap.blobs import expand
from jmapfs.jmap.credentials import Credentials
from jmapfs.jmap.http import CONNECT_TIMEOUT, Connections, Transport
from jmapfs.jmap.http_errors import HTTP_FAILURES, http_error, network_error, printable
from jmapfs.jmap.methods import AccountMethods
from jmapfs.jmap.origins import host_of, secure_origin
from jmapfs.jmap.response import STALL_TIMEOUT, ResponseReader
from jmapfs.jmap.retry import TransientError
from jmapfs.jmap.session import Session
from jmapfs.jmap.types import decode

MEDIA_TYPE = "text/event-stream"

LARGEST_EVENT = 1 << 20
"""Bytes. A StateChange names every account that changed, and a user may share thousands."""

_HEADERS = {"Content-Type": f"{MEDIA_TYPE}; charset=utf-8"}


class EventDecoder:
    """Decodes a stream piece by piece, holding no more than one event that is not whole yet."""

    def __init__(self) -> None:
        self._pending = bytearray()
        self._after_cr = False

    def feed(self, data: bytes) -> Iterator[ServerSentEvent]:
        """Yield the events that `data` completes; iterate to the end before the next call.

        Raises ProtocolError when one is larger than LARGEST_EVENT, be it a line without an end.
        """
        # An event ends at its first empty line. Where the last of these is shows in what is new.
        start = max(0, len(self._pending) - 1)
        self._pending += self._with_plain_lines(data)
        if (end := self._pending.rfind(b"\n\n", start)) >= 0:
            whole = bytes(self._pending[: end + 2])
            del self._pending[: end + 2]
            yield from _events(whole)
        if len(self._pending) > LARGEST_EVENT:
            raise ProtocolError(f"the server sends an event of more than {LARGEST_EVENT:,} bytes")

    def _with_plain_lines(self, data: bytes) -> bytes:
        """Return `data` with each line ending in LF, where CRLF and CR are as good."""
        if self._after_cr:
            data = data.removeprefix(b"\n")
            self._after_cr = False
        if data:
            self._after_cr = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _events(whole: bytes) -> Iterator[ServerSentEvent]:
    # httpx-sse reads from a response only, and its way for asynchronous ones (`aiter_sse`) leaves
    # the generators of httpx below it to the garbage collector when it is left early. So what is
    # whole becomes a small response of its own, which is read without waiting.
    return EventSource(httpx.Response(200, headers=_HEADERS, content=whole)).iter_sse()


_EVENT_SOURCE_HEADERS = {
    "Accept": MEDIA_TYPE,
    "Accept-Encoding": "identity",
    "Cache-Control": "no-store",
}
_LARGEST_REFUSAL = 64 * 2**10


@dataclass(frozen=True, slots=True)
class PushSettings:
    """What the streams of a session are opened with; `transport` replaces the network in tests."""

    credentials: Credentials
    user_agent: str
    transport: httpx.AsyncBaseTransport | None = None


class EventSourceBody(ResponseReader):
    """An answer without an end, which may be silent for as long as two pings are apart."""

    def __init__(self, response: httpx.Response, *, host: str, ping: float) -> None:
        super().__init__(response, host=host, until=math.inf, spoilt=_nothing_to_renew)
        self.ping = ping

    async def _read(self) -> bytes:
        with trio.move_on_after(2 * self.ping):
            try:
                return await anext(self._chunks)
            except StopAsyncIteration:
                self._ended = True
                return b""
            except HTTP_FAILURES as error:
                self._ended = True
                raise network_error(error, self._host) from error
        self._ended = True
        raise _silence(self._host, 2 * self.ping)


class _OwnConnection(Connections):
    """The connection of one stream, over HTTP/1.1; nothing else ever uses it."""

    def _open(self) -> httpx.AsyncClient:
        mounts: dict[str, httpx.AsyncBaseTransport | None] = {}
        if self._transport is None:
            # http:// is for this machine only: a proxy from the environment would get it all.
            mounts["http://"] = httpx.AsyncHTTPTransport(verify=self._tls or True)
        return httpx.AsyncClient(
            http2=False,
            verify=self._tls or True,
            headers={"User-Agent": self._user_agent},
            # Silence is timed where it is waited for, in `_send` and `_read`.
            timeout=httpx.Timeout(CONNECT_TIMEOUT, read=None),
            follow_redirects=False,
            event_hooks={"response": [_forget_location]},
            transport=self._transport,
            mounts=mounts,
        )


def event_source(session: Session, types: Sequence[str], ping: int) -> str:
    """Return where to listen; raises ProtocolError when that is nowhere credentials may go.

    `ping` is in seconds.
    """
    template = session.event_source_url
    if template is None:
        raise ProtocolError("the session names no event source")
    values = {"types": ",".join(types), "closeafter": "no", "ping": str(ping)}
    # Fastmail's template has been seen without its variables.
    missing = [f"{name}={{{name}}}" for name in values if f"{{{name}}}" not in template]
    if missing:
        template += ("&" if "?" in template else "?") + "&".join(missing)
    url = expand(template, values)
    origin = secure_origin(url, naming="eventSourceUrl in the session", error=ProtocolError)
    if origin not in session.origins:
        raise ProtocolError(f"credentials are not sent to {host_of(url)}, which is not the server")
    return url


@asynccontextmanager
async def open_event_source(
    url: str, settings: PushSettings, transport: Transport, *, ping: int
) -> AsyncIterator[EventSourceBody]:
    """Open the stream, and end it with the block; `transport` is whose cool-down is observed.

    Raises TransientError, AuthenticationError, or a ServerError when there is no stream to be had.
    """
    connection = _OwnConnection(settings.user_agent, settings.transport)
    try:
        async with connection.lease() as client:
            body = await _listen(client, url, settings.credentials, transport, ping)
            try:
                yield body
            finally:
                await body.aclose()
    finally:
        await connection.aclose()


async def _listen(
    client: httpx.AsyncClient,
    url: str,
    credentials: Credentials,
    transport: Transport,
    ping: int,
) -> EventSourceBody:
    until = trio.current_time() + max(2.0 * ping, CONNECT_TIMEOUT)
    # A stream takes no part in the transport's budget, but in the pause of a busy server it does.
    cooldown = transport.cooldown
    try:
        await cooldown.wait(until)
    except JmapfsError as reason:
        raise TransientError(reason) from None
    started = trio.current_time()
    transport.traffic.requests += 1
    host = host_of(url)
    headers = {**_EVENT_SOURCE_HEADERS, "Authorization": credentials.authorization}
    response = await _send(client, url, headers, host=host, until=until)
    if response.status_code == HTTPStatus.OK and _media_type(response) == MEDIA_TYPE:
        cooldown.relax()
        return EventSourceBody(response, host=host, ping=ping)
    incoming = ResponseReader(
        response, host=host, until=trio.current_time() + STALL_TIMEOUT, spoilt=_nothing_to_renew
    )
    try:
        error = await _refusal(incoming, host, credentials)
    finally:
        await incoming.aclose()
    if isinstance(error, TransientError) and error.throttled:
        cooldown.throttle(error, started=started)
    raise error


async def _send(
    client: httpx.AsyncClient, url: str, headers: dict[str, str], *, host: str, until: float
) -> httpx.Response:
    began = trio.current_time()
    with trio.move_on_at(until):
        try:
            request = client.build_request("GET", url, headers=headers)
            return await client.send(request, stream=True)
        except HTTP_FAILURES as error:
            raise network_error(error, host) from error
    raise _silence(host, trio.current_time() - began)


async def _refusal(
    incoming: ResponseReader, host: str, credentials: Credentials
) -> JmapfsError | TransientError:
    if incoming.status == HTTPStatus.OK:
        seen = printable(incoming.headers.get("content-type", ""), 80) or "something unnamed"
        return ProtocolError(f"{host} answers with {seen}, which is no event stream")
    body = await incoming.beginning(_LARGEST_REFUSAL)
    error = http_error(incoming.status, incoming.headers, body, host=host, credentials=credentials)
    # The same credentials are good for everything else.
    if incoming.status == HTTPStatus.FORBIDDEN:
        return RequestError(str(error), status=incoming.status)
    return error


def _media_type(response: httpx.Response) -> str:
    value: str = response.headers.get("content-type", "")
    return value.partition(";")[0].strip().lower()


def _silence(host: str, seconds: float) -> TransientError:
    return TransientError(DeadlineError(f"{host} was silent for {seconds:.0f} s"))


def _nothing_to_renew() -> None:
    """Do nothing: the connection goes with the stream."""


async def _forget_location(response: httpx.Response) -> None:
    # httpx makes a request of each Location, to be sent or not, and fails where it cannot.
    response.headers.pop("location", None)


logger = logging.getLogger(__name__)

TYPES = ("Email", "Mailbox")
"""The types whose changes are asked for."""

# Seconds. No server pings so rarely: a larger number is in milliseconds, as Stalwart gives it.
_LONGEST_INTERVAL = 1000.0


class PushUnavailableError(ServerError):
    """The server does not push, or not in a way that can be used; this session need not ask again.

    It is not in the tree of `jmapfs.errors`, for it never ends a command: there is polling.
    """


@dataclass(frozen=True, slots=True)
class Connected:
    """The stream is open: what changes from now on is told, what changed before is not."""


@dataclass(frozen=True, slots=True)
class StateChange:
    """Something of these types changed in the account; some of TYPES, at least one."""

    types: frozenset[str]


PushEvent: TypeAlias = Connected | StateChange


class _StateChangeDocument(msgspec.Struct):
    changed: dict[str, object]
    # Fastmail leaves it out.
    kind: str = msgspec.field(name="@type", default="StateChange")


class _PingDocument(msgspec.Struct):
    interval: float


class PushStream:
    """The events of one connection; an asynchronous iterator for one task, which ends by raising.

    A wait that is cancelled ends the stream too.
    """

    def __init__(self, body: EventSourceBody, account_id: str, transport: Transport) -> None:
        self._body = body
        self._account_id = account_id
        self._redact = transport.redact
        self._decoder = EventDecoder()
        self._events: deque[PushEvent] = deque([Connected()])

    def __aiter__(self) -> PushStream:
        return self

    async def __anext__(self) -> PushEvent:
        """Return the next event; raises UnreachableError or PushUnavailableError."""
        while not self._events:
            with _in_terms_of_push():
                chunk = await self._body.next_chunk()
                if not chunk:
                    raise TransientError(UnreachableError("the server ended the event stream"))
                for event in self._decoder.feed(chunk):
                    self._take(event)
        return self._events.popleft()

    def _take(self, event: ServerSentEvent) -> None:
        try:
            if event.event == "state":
                self._take_change(event.data.encode())
            elif event.event == "ping":
                self._take_ping(event.data.encode())
        except ProtocolError as error:
            logger.debug("passed over: %s", self._redact(str(error)))

    def _take_change(self, data: bytes) -> None:
        document = decode(data, _StateChangeDocument, "an event of the server")
        if document.kind != "StateChange":
            kind = printable(document.kind, 80)
            raise ProtocolError(f"an event of the server is a {kind}, not a StateChange")
        states = document.changed.get(self._account_id, {})
        if not isinstance(states, dict):
            raise ProtocolError("an event of the server names no types")
        if types := frozenset(states).intersection(TYPES):
            self._events.append(StateChange(types))

    def _take_ping(self, data: bytes) -> None:
        interval = decode(data, _PingDocument, "a ping of the server").interval
        if interval > _LONGEST_INTERVAL:
            interval = min(interval / 1000, _LONGEST_INTERVAL)
        self._body.ping = max(self._body.ping, interval)


class PushMethods(AccountMethods):
    """The event stream of an account."""

    def __init__(self, api: Api, account_id: str, push_settings: PushSettings) -> None:
        super().__init__(api, account_id)
        self.push_settings = push_settings

    @asynccontextmanager
    async def push(self, *, ping: float = 60.0) -> AsyncIterator[PushStream]:
        """Open an event stream: its first event is Connected, all others are StateChanges.

        `ping` is how often the server is asked for a sign of life, in seconds, rounded up to whole
        ones; below 30 it may not comply. After two such intervals of silence, or two of its own if
        they are longer, the stream counts as broken.

        Opening and iterating raise PushUnavailableError, which is final for this session, and
        UnreachableError, after which to connect again, with back-off; opening raises also
        AuthenticationError. A busy server is given the pause that all requests share: opening
        waits for its end, or raises UnreachableError at once if that is too far away.
        """
        seconds = max(1, math.ceil(ping))
        async with AsyncExitStack() as stack:
            with _in_terms_of_push():
                url = event_source(self.api.session, TYPES, seconds)
                body = await stack.enter_async_context(
                    open_event_source(url, self.push_settings, self.api.transport, ping=seconds)
                )
            yield PushStream(body, self.account_id, self.api.transport)


@contextmanager
def _in_terms_of_push() -> Iterator[None]:
    """Turn what is raised below into the few errors that matter to whoever listens."""
    try:
        yield
    except TransientError as failure:
        error = failure.error
        if isinstance(error, UnreachableError):
            raise error from failure.__cause__
        raise UnreachableError(str(error)) from error
    except ServerError as error:
        raise PushUnavailableError(f"no push: {error}") from error
