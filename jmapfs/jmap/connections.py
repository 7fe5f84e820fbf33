"""The HTTP connections, and how to be rid of them when they cannot be relied on.

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
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import trio

from jmapfs.errors import UnreachableError

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
