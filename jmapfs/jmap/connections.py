"""HTTP/1.1 connections that acknowledge data at once and are kept for later requests.

Cyrus writes the head and the body of a response separately and leaves Nagle's algorithm on, so its
kernel holds back the end of the body until the client acknowledges the head. On a kept connection
the client's kernel delays that acknowledgement by up to 40 ms. TCP_QUICKACK (tcp(7)) ends the
delay. The kernel clears the option by itself, so it is set before every read.

httpx is built on httpcore, but only httpcore accepts a network backend as an argument. So
`ConnectionPool` is an httpx transport over a connection pool of httpcore.
"""

from __future__ import annotations

import base64
import os
import socket
import ssl
import urllib.request
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import httpcore
import httpx
import trio

from jmapfs.errors import ConfigError
from jmapfs.jmap.http_errors import ProxyFailure
from jmapfs.private_files import open_regular
from jmapfs.protection import Secret

NEW_CONNECTION = "jmapfs.new_connection"
"""The extension of a request that must not use a kept connection."""

_KEEPALIVE_SECONDS = 60.0

# The subclasses of these errors have the same names in httpx.
_HTTPCORE_ERRORS = (
    httpcore.TimeoutException,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    httpcore.UnsupportedProtocol,
)


class ConnectionPool(httpx.AsyncBaseTransport):
    """A pool of kept connections to any number of servers.

    The pool does not limit the number of connections, because the caller limits its requests.
    Requests to https:// use the proxy that the environment names. Requests to http:// never use a
    proxy, because http:// is allowed for this machine only. A request with the extension
    NEW_CONNECTION gets a connection of its own, which is closed after the response.

    Certificates are checked against the usual authorities, and against those in `ca_file`. Raises
    ConfigError if the proxy or a file of authorities cannot be used.
    """

    def __init__(self, ca_file: Path | None = None) -> None:
        tls = _tls_context(ca_file)
        proxy = _environment_proxy(tls)
        self._proxy_secret = _proxy_secret(proxy)
        self._kept = _Route(tls, proxy, max_idle=None)
        self._unkept = _Route(tls, proxy, max_idle=0)
        self._pools = [*self._kept.pools, *self._unkept.pools]
        self._closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; the caller reads the body of the response.

        If a kept connection ends before the response, the request is sent again on a new
        connection. This is safe because requests only read. Raises httpx.TransportError if the
        request or its response failed, and ProxyFailure if the proxy is the cause.
        """
        proxy = self._kept.proxy_for(request.url)
        while True:
            connecting = _ConnectTrace()
            with _proxy_failures(proxy, connecting), _httpx_errors():
                try:
                    response = await self._send(request, connecting)
                except (httpcore.RemoteProtocolError, httpcore.ReadError):
                    if connecting.started or self._closed:
                        raise
                    await self.close_idle()
                    continue
                except BaseException:
                    # httpcore 1.0 leaves a connection open if the request is cancelled in the TLS
                    # handshake or right after it.
                    await connecting.aclose()
                    raise
            return httpx.Response(
                status_code=response.status,
                headers=response.headers,
                stream=_Body(response),
                extensions=response.extensions,
            )

    async def close_idle(self) -> None:
        """Close all idle connections. After a change of network these may be dead.

        If the pool has just given one of them to a request, the request gets a new connection.
        """
        for pool in self._pools:
            for connection in pool.connections:
                if connection.is_idle():
                    await connection.aclose()

    async def close_connections(self) -> None:
        """Close all connections, including those in use; later requests open new ones."""
        for pool in self._pools:
            for connection in pool.connections:
                await connection.aclose()

    async def aclose(self) -> None:
        """Close all connections, including those in use; later requests fail."""
        self._closed = True
        for pool in self._pools:
            await pool.aclose()

    async def _send(self, request: httpx.Request, connecting: _ConnectTrace) -> httpcore.Response:
        url = request.url
        route = self._unkept if request.extensions.get(NEW_CONNECTION) else self._kept
        return await route.pool_for(url).handle_async_request(
            httpcore.Request(
                method=request.method,
                url=_httpcore_url(url),
                headers=request.headers.raw,
                content=_Content(request.content),
                extensions={**request.extensions, "trace": connecting.note},
            )
        )


class _Route:
    """The pools for direct and for proxied connections. They keep `max_idle` connections each."""

    def __init__(
        self, tls: ssl.SSLContext, proxy: httpcore.Proxy | None, *, max_idle: int | None
    ) -> None:
        self._proxy = proxy
        self._direct = _pool(tls, None, max_idle)
        self._proxied = None if proxy is None else _pool(tls, proxy, max_idle)
        self.pools = [pool for pool in (self._direct, self._proxied) if pool is not None]

    def proxy_for(self, url: httpx.URL) -> httpcore.Proxy | None:
        return None if url.scheme == "http" or _bypasses_proxy(url) else self._proxy

    def pool_for(self, url: httpx.URL) -> httpcore.AsyncConnectionPool:
        if self._proxied is not None and self.proxy_for(url) is not None:
            return self._proxied
        return self._direct


def _tls_context(ca_file: Path | None) -> ssl.SSLContext:
    try:
        if file := os.environ.get("SSL_CERT_FILE"):
            os.close(open_regular(file, follow=True))
        context = httpx.create_ssl_context()
    except OSError as error:
        raise ConfigError(
            "the certificate authorities that SSL_CERT_FILE or SSL_CERT_DIR names cannot be read:"
            f" {error.strerror or error}"
        ) from error
    if not {"SSL_CERT_FILE", "SSL_CERT_DIR"} & os.environ.keys():
        # The system's store usually contains private certificate authorities too.
        context.load_default_certs()
    if ca_file is not None:
        try:
            # OpenSSL would wait for a FIFO.
            os.close(open_regular(ca_file, follow=True))
            context.load_verify_locations(ca_file)
        except OSError as error:
            reason = "no certificates" if isinstance(error, ssl.SSLError) else error.strerror
            raise ConfigError(f"ca_file: {ca_file}: {reason}") from error
    return context


def _pool(
    tls: ssl.SSLContext, proxy: httpcore.Proxy | None, max_idle: int | None
) -> httpcore.AsyncConnectionPool:
    return httpcore.AsyncConnectionPool(
        ssl_context=tls,
        proxy=proxy,
        max_connections=None,
        # httpcore 1.0 also counts connections in use here. So a limit other than None and 0 would
        # close idle connections too early.
        max_keepalive_connections=max_idle,
        keepalive_expiry=_KEEPALIVE_SECONDS,
        network_backend=_QuickAckBackend(),
    )


def _environment_proxy(tls: ssl.SSLContext) -> httpcore.Proxy | None:
    proxies = urllib.request.getproxies()
    address = proxies.get("https") or proxies.get("all")
    if not address:
        return None
    try:
        proxy = httpx.Proxy(address if "://" in address else f"http://{address}")
    except (httpx.InvalidURL, ValueError):
        proxy = None
    if proxy is None or proxy.url.scheme not in {"http", "https"} or not proxy.url.host:
        raise ConfigError(
            "the proxy that the environment names is not usable: give a URL http://… or https://…"
        )
    tls_to_proxy = tls if proxy.url.scheme == "https" else None
    return httpcore.Proxy(_httpcore_url(proxy.url), auth=proxy.raw_auth, ssl_context=tls_to_proxy)


def _proxy_secret(proxy: httpcore.Proxy | None) -> Secret | None:
    """Return the password for a proxy, which then does not appear in texts."""
    if proxy is None or proxy.auth is None:
        return None
    encoded = base64.b64encode(b":".join(proxy.auth)).decode("ascii").rstrip("=")
    return Secret(proxy.auth[1].decode(errors="surrogateescape"), encoded)


def _httpcore_url(url: httpx.URL) -> httpcore.URL:
    return httpcore.URL(
        scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
    )


def _bypasses_proxy(url: httpx.URL) -> bool:
    # An entry of NO_PROXY may have a port.
    return any(map(urllib.request.proxy_bypass, (url.host, f"{url.host}:{url.port or 443}")))


class _ConnectTrace:
    """Follows the trace of httpcore to find the connection that a request opened, if any.

    `started` tells whether the request opens a connection. `tunnelled` tells whether the proxy, if
    there is one, has connected it to the server.
    """

    def __init__(self) -> None:
        self.started = False
        self.tunnelled = False
        self._stream: httpcore.AsyncNetworkStream | None = None

    async def note(self, event: str, details: Mapping[str, object]) -> None:
        if event == "connection.connect_tcp.started":
            self.started = True
        elif event == "proxy.start_tls.started":
            self.tunnelled = True
        elif event == "connection.connect_tcp.complete":
            self._stream = cast("httpcore.AsyncNetworkStream", details["return_value"])

    async def aclose(self) -> None:
        """Close the connection that the request opened, if any."""
        if self._stream is not None:
            with trio.CancelScope(shield=True):
                await self._stream.aclose()


class _Content:
    """The body of a request. Each iteration yields it once.

    httpx and httpcore use an async generator. If the request is cancelled, the generator is not
    exhausted, and trio warns of that when it is collected.
    """

    def __init__(self, content: bytes) -> None:
        self._chunks = [content] if content else []

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _Content(b"".join(self._chunks))

    async def __anext__(self) -> bytes:
        if not self._chunks:
            raise StopAsyncIteration
        return self._chunks.pop()


class _Body(httpx.AsyncByteStream):
    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _httpx_errors():
            async for chunk in cast("AsyncIterable[bytes]", self._response.stream):
                yield chunk

    async def aclose(self) -> None:
        with _httpx_errors():
            await self._response.aclose()


@contextmanager
def _httpx_errors() -> Iterator[None]:
    try:
        yield
    except _HTTPCORE_ERRORS as error:
        raise getattr(httpx, type(error).__name__)(str(error)) from error


@contextmanager
def _proxy_failures(proxy: httpcore.Proxy | None, connecting: _ConnectTrace) -> Iterator[None]:
    """Convert an error before `proxy` has connected to the server to a ProxyFailure."""
    try:
        yield
    except httpx.TransportError as error:
        if proxy is None or not connecting.started or connecting.tunnelled:
            raise
        name = f"the proxy {proxy.url.host.decode()}:{proxy.url.origin.port}"
        raise ProxyFailure(str(error), name) from error


class _QuickAckBackend(httpcore.AsyncNetworkBackend):
    def __init__(self) -> None:
        self._trio = httpcore.TrioBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the interface of httpcore
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        stream = await self._trio.connect_tcp(host, port, timeout, local_address, socket_options)
        return _QuickAckStream(stream, stream.get_extra_info("socket"))


class _QuickAckStream(httpcore.AsyncNetworkStream):
    """`stream` is a TCP connection, or TLS over a TCP connection. `tcp` is the TCP socket."""

    def __init__(self, stream: httpcore.AsyncNetworkStream, tcp: trio.socket.SocketType) -> None:
        self._stream = stream
        self._tcp = tcp

    async def read(
        self,
        max_bytes: int,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> bytes:
        try:
            # Setting the option also sends an acknowledgement that the kernel has delayed.
            self._tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        except OSError as error:
            raise httpcore.ReadError(str(error)) from error
        return await self._stream.read(max_bytes, timeout)

    async def write(
        self,
        buffer: bytes,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> None:
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        tls = await self._stream.start_tls(ssl_context, server_hostname, timeout)
        return _QuickAckStream(tls, self._tcp)

    def get_extra_info(self, info: str) -> object:
        return self._stream.get_extra_info(info)
