"""The way to the server: every HTTP request of an account goes through one Transport.

It keeps what all requests share: the credentials and the origins they may go to, the budget of
requests in flight (API calls and downloads together, as some servers count them), the cool-down
of a busy server, and the counters.

The HTTP connections, and how to be rid of them when they cannot be relied on.

After a suspend, or a change of network, a connection is dead without anybody saying so, and over
HTTP/2 every request would go on waiting on that one connection until TCP gives up after minutes.
And an exchange over HTTP/2 that is cancelled may leave the connection in disorder: a frame half
written, a window that is never opened again, a stream counted twice. So whoever waited in vain, or
left early, renews the pool: later requests open new connections, while requests already in flight
end on the old ones, which are closed with the last of them.
"""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlsplit

import httpx
import trio

from jmapfs.errors import DeadlineError, JmapfsError, ProtocolError, UnreachableError
from jmapfs.jmap.credentials import Credentials
from jmapfs.jmap.http_errors import HTTP_FAILURES, http_error, network_error
from jmapfs.jmap.origins import host_of, secure_origin
from jmapfs.jmap.response import STALL_TIMEOUT, Request, Response, ResponseReader
from jmapfs.jmap.retry import Cooldown, RetryPolicy, TransientError
from jmapfs.jmap.types import decode

CONNECT_TIMEOUT = 10.0
"""Seconds for a connection to come about, TLS included; also for a write to be accepted."""

LOCATION = "jmapfs-location"
"""The header in which a pool hands on where a redirect leads."""

_CLOSE_TIMEOUT = 2.0

# At DEBUG, hpack logs each header block as it is sent, the Authorization header in it.
logging.getLogger("hpack").setLevel(logging.INFO)


class Connections:
    """A pool of connections that can be renewed; HTTP/2 where a server speaks TLS.

    `transport` replaces the network, for tests; it is then used as it is and never renewed.
    `keep_unencrypted` says whether a connection to this machine serves more than one request.
    """

    def __init__(
        self,
        user_agent: str,
        transport: httpx.AsyncBaseTransport | None = None,
        *,
        keep_unencrypted: bool = False,
    ) -> None:
        self._user_agent = user_agent
        self._transport = transport
        self._kept_unencrypted = None if keep_unencrypted else 0
        self._tls = _trust() if transport is None else None
        self._current = self._open()
        self._leases: dict[httpx.AsyncClient, int] = {}
        self._closed = False

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[httpx.AsyncClient]:
        """Lend the current pool for one exchange; raises UnreachableError after `aclose`."""
        if self._closed:
            raise UnreachableError("the connection to the server was given up")
        client = self._current
        self._leases[client] = self._leases.get(client, 0) + 1
        try:
            yield client
        finally:
            self._leases[client] -= 1
            if not self._leases[client]:
                del self._leases[client]
                if client is not self._current:
                    await _close(client)

    def renew(self, client: httpx.AsyncClient) -> None:
        """Let no later request use the connections of `client`, which is under lease."""
        if client is self._current and self._transport is None and not self._closed:
            self._current = self._open()

    async def aclose(self) -> None:
        """Close all connections, those in use too."""
        self._closed = True
        for client in {self._current, *self._leases}:
            await _close(client)

    def _open(self) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=None, keepalive_expiry=60.0)
        mounts: dict[str, httpx.AsyncBaseTransport | None] = {}
        if self._transport is None:
            # http:// is for this machine only: a proxy from the environment would get it all.
            # And a connection for each request: over a kept one, Nagle's algorithm and delayed
            # ACKs make Cyrus take 23 ms for a download that takes 3 ms over a new one.
            mounts["http://"] = httpx.AsyncHTTPTransport(
                limits=httpx.Limits(
                    max_connections=None, max_keepalive_connections=self._kept_unencrypted
                ),
                verify=self._tls or True,
            )
        return httpx.AsyncClient(
            http2=True,
            verify=self._tls or True,
            headers={"User-Agent": self._user_agent},
            timeout=CONNECT_TIMEOUT,
            limits=limits,
            follow_redirects=False,
            event_hooks={"response": [_hide_location]},
            transport=self._transport,
            mounts=mounts,
        )


def _trust() -> ssl.SSLContext:
    context = httpx.create_ssl_context()
    if not {"SSL_CERT_FILE", "SSL_CERT_DIR"} & os.environ.keys():
        # Those who run their own server have their own authority in the system's store.
        context.load_default_certs()
    return context


async def _hide_location(response: httpx.Response) -> None:
    # httpx makes a request of each Location, to be sent or not, and fails where it cannot.
    if "location" in response.headers:
        response.headers[LOCATION] = response.headers.pop("location")


async def _close(client: httpx.AsyncClient) -> None:
    # Closing says goodbye over TLS, which must neither be cut short nor take for ever.
    with trio.move_on_after(_CLOSE_TIMEOUT, shield=True):
        await client.aclose()


T = TypeVar("T")

CONCURRENCY = 8
"""Requests in flight at most, whatever the server allows."""

_CONCURRENCY_AT_FIRST = 2
_LARGEST_ANSWER = 256 * 2**20
_LARGEST_REFUSAL = 64 * 2**10


@dataclass(slots=True)
class Traffic:
    """What was sent and received: HTTP requests (each attempt), blobs and their bytes."""

    requests: int = 0
    blobs: int = 0
    bytes: int = 0


class Transport:
    """Sends requests with credentials, within a budget, until a deadline. Safe for many tasks."""

    def __init__(
        self,
        credentials: Credentials,
        connections: Connections,
        *,
        concurrency: int = CONCURRENCY,
        largest_answer: int = _LARGEST_ANSWER,
    ) -> None:
        self.traffic = Traffic()
        self._credentials = credentials
        self._connections = connections
        self._concurrency = max(1, concurrency)
        self._largest_answer = largest_answer
        self._budget = trio.CapacityLimiter(min(_CONCURRENCY_AT_FIRST, self._concurrency))
        self.cooldown = Cooldown()
        self._trusted: frozenset[str] = frozenset()

    @property
    def concurrency(self) -> int:
        """How many requests may be in flight at once, now."""
        return int(self._budget.total_tokens)

    def allow(self, concurrent_requests: int) -> None:
        """Set the budget to what the server allows, as far as the local cap goes."""
        self._budget.total_tokens = max(1, min(concurrent_requests, self._concurrency))

    def trust(self, origins: Iterable[str]) -> None:
        """Let the credentials go to these origins, and to no other."""
        self._trusted = frozenset(origins)

    def redact(self, text: str) -> str:
        """Return `text`, which a server sent, without the secret."""
        return self._credentials.redact(text)

    def decode(self, answer: Response, type_: type[T], what: str) -> T:
        """Decode the body of an answer; raises ProtocolError, which does not quote the secret."""
        content_type = answer.headers.get("content-type", "no content type")
        try:
            return decode(answer.content, type_, what, content_type=content_type)
        except ProtocolError as error:
            raise ProtocolError(self.redact(str(error))) from None

    async def fetch(
        self, outgoing: Request, *, until: float, largest: int | None = None
    ) -> Response:
        """Send a request, retry it where that may help, and return the whole answer.

        `until` is a moment of trio's clock; `largest` is how many bytes the answer may have, if
        fewer than any may have. Raises UnreachableError, DeadlineError,
        AuthenticationError, RequestError or ProtocolError.
        """
        retries = RetryPolicy(until)
        limit = self._largest_answer if largest is None else min(largest, self._largest_answer)
        while True:
            try:
                async with self.exchange(outgoing, until=until) as incoming:
                    content = await incoming.read(limit)
                    return Response(incoming.status, incoming.headers, outgoing.url, content)
            except TransientError as failure:
                await retries.after(failure)

    @asynccontextmanager
    async def exchange(self, outgoing: Request, *, until: float) -> AsyncIterator[ResponseReader]:
        """Make one attempt: yields the answer as it comes in, its status being as expected.

        It counts in the budget until the block is left. Raises TransientError beside what `fetch`
        raises.
        """
        host = self._check(outgoing)
        async with self._slot(until, host), self._connections.lease() as client:
            started = trio.current_time()
            response = await self._send(client, outgoing, until, host)
            incoming = ResponseReader(
                response, host=host, until=until, spoilt=lambda: self._connections.renew(client)
            )
            try:
                if incoming.status not in outgoing.expected:
                    raise await self._refusal(incoming, host, started)
                self.cooldown.relax()
                yield incoming
            finally:
                await incoming.aclose()

    def _check(self, outgoing: Request) -> str:
        origin = secure_origin(outgoing.url, naming="a URL of the server", error=ProtocolError)
        host = host_of(outgoing.url)
        if outgoing.authenticated and origin not in self._trusted:
            raise ProtocolError(f"credentials are not sent to {host}: the session does not name it")
        return host

    @asynccontextmanager
    async def _slot(self, until: float, host: str) -> AsyncIterator[None]:
        # One task may read several streams at a time, so it is not the task that borrows.
        borrower = object()
        with trio.move_on_at(until) as scope:
            while True:
                await self.cooldown.wait(until)
                await self._budget.acquire_on_behalf_of(borrower)
                if not self.cooldown.active:
                    break
                self._budget.release_on_behalf_of(borrower)
        if scope.cancelled_caught:
            raise DeadlineError(f"no request to {host} came to its turn in time")
        try:
            yield
        finally:
            self._budget.release_on_behalf_of(borrower)

    async def _send(
        self, client: httpx.AsyncClient, outgoing: Request, until: float, host: str
    ) -> httpx.Response:
        headers = {"Accept-Encoding": _coding(outgoing.url), **outgoing.headers}
        if outgoing.authenticated:
            headers["Authorization"] = self._credentials.authorization
        patience = min(outgoing.patience, max(until - trio.current_time(), 0.0))
        # Ours runs out first: httpx's would end every other request of an HTTP/2 connection too.
        backstop = httpx.Timeout(CONNECT_TIMEOUT, read=max(patience, STALL_TIMEOUT) + 5.0)
        self.traffic.requests += 1
        response: httpx.Response | None = None
        with trio.move_on_after(patience):
            try:
                request = client.build_request(
                    outgoing.method,
                    outgoing.url,
                    headers=headers,
                    content=outgoing.content,
                    timeout=backstop,
                )
                response = await client.send(request, stream=True)
            except HTTP_FAILURES as error:
                if not isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)):
                    self._connections.renew(client)
                raise network_error(error, host) from error
            except trio.Cancelled:
                self._connections.renew(client)
                raise
        if response is not None:
            return response
        if trio.current_time() >= until:
            raise DeadlineError(f"{host} did not answer in time ({patience:.0f} s)")
        raise TransientError(DeadlineError(f"{host} did not answer within {patience:.0f} s"))

    async def _refusal(
        self, incoming: ResponseReader, host: str, started: float
    ) -> JmapfsError | TransientError:
        body = await incoming.beginning(_LARGEST_REFUSAL)
        error = http_error(
            incoming.status, incoming.headers, body, host=host, credentials=self._credentials
        )
        if isinstance(error, TransientError) and error.throttled:
            self.cooldown.throttle(error, started=started)
        return error


def _coding(url: str) -> str:
    # http:// is this machine: to compress takes longer there than to send what it saves.
    return "identity" if urlsplit(url).scheme == "http" else "gzip"


@asynccontextmanager
async def open_transport(
    credentials: Credentials,
    *,
    user_agent: str,
    transport: httpx.AsyncBaseTransport | None = None,
    concurrency: int = CONCURRENCY,
) -> AsyncIterator[Transport]:
    """Open a Transport and close its connections at the end of the block.

    `transport` stands in for the network in tests.
    """
    connections = Connections(user_agent, transport)
    try:
        yield Transport(credentials, connections, concurrency=concurrency)
    finally:
        await connections.aclose()
