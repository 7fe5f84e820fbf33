"""Opening the event source of a session (RFC 8620 §7.3), and reading it for hours.

A stream shares neither the budget of requests in flight nor their connections. It has one of its
own, over HTTP/1.1, because a stream of HTTP/2 that is abandoned is never reset by httpcore and
stays open on the server.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus

import httpx
import trio

from jmapfs.errors import (
    DeadlineError,
    JmapfsError,
    ProtocolError,
    RequestError,
)
from jmapfs.jmap.blobs import expand
from jmapfs.jmap.connections import CONNECT_TIMEOUT, Connections
from jmapfs.jmap.credentials import Credentials
from jmapfs.jmap.event_stream import MEDIA_TYPE
from jmapfs.jmap.failures import HTTP_FAILURES, network_failure
from jmapfs.jmap.incoming import STALL_TIMEOUT, Incoming
from jmapfs.jmap.origins import host_of, secure_origin
from jmapfs.jmap.refusals import refusal
from jmapfs.jmap.retrying import TransientError
from jmapfs.jmap.session import Session
from jmapfs.jmap.transport import Transport
from jmapfs.jmap.wording import printable

_HEADERS = {"Accept": MEDIA_TYPE, "Accept-Encoding": "identity", "Cache-Control": "no-store"}
_LARGEST_REFUSAL = 64 * 2**10


@dataclass(frozen=True, slots=True)
class PushSettings:
    """What the streams of a session are opened with; `transport` replaces the network in tests."""

    credentials: Credentials
    user_agent: str
    transport: httpx.AsyncBaseTransport | None = None


class EventSourceBody(Incoming):
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
                raise network_failure(error, self._host) from error
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
    headers = {**_HEADERS, "Authorization": credentials.authorization}
    response = await _send(client, url, headers, host=host, until=until)
    if response.status_code == HTTPStatus.OK and _media_type(response) == MEDIA_TYPE:
        cooldown.relax()
        return EventSourceBody(response, host=host, ping=ping)
    incoming = Incoming(
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
            raise network_failure(error, host) from error
    raise _silence(host, trio.current_time() - began)


async def _refusal(
    incoming: Incoming, host: str, credentials: Credentials
) -> JmapfsError | TransientError:
    if incoming.status == HTTPStatus.OK:
        seen = printable(incoming.headers.get("content-type", ""), 80) or "something unnamed"
        return ProtocolError(f"{host} answers with {seen}, which is no event stream")
    body = await incoming.beginning(_LARGEST_REFUSAL)
    error = refusal(incoming.status, incoming.headers, body, host=host, credentials=credentials)
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
