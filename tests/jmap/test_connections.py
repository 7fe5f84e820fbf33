"""Real connections on loopback: kept, lost, broken off, left early, cancelled; none stays open."""

from __future__ import annotations

import gc
import shutil
import socket
import ssl
import statistics
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpcore
import httpx
import pytest
import trio

from jmapfs.deadline import Deadline
from jmapfs.errors import ConfigError, UnreachableError
from jmapfs.jmap import connections
from jmapfs.jmap.connections import ConnectionPool
from jmapfs.jmap.http import Transport
from jmapfs.jmap.http_errors import ProxyFailure, TransientError
from jmapfs.jmap.login import Login
from jmapfs.jmap.response import HttpRequest
from tests.jmap.fake import CREDENTIALS


class Server:
    """Reads requests and sends the pieces of `answer` for each; counts connections.

    It closes the connection at the requests numbered in `closes_at`, without an answer, and after
    each answer if `closes`. It does not answer those in `silent_at`.
    """

    def __init__(self, *answer: bytes, closes: bool = False) -> None:
        self.answer = answer
        self.closes = closes
        self.closes_at: set[int] = set()
        self.silent_at: set[int] = set()
        self.streams: list[trio.abc.Stream] = []
        self.open = 0
        self.url = ""
        self.asked = 0
        self.received = b""
        self._changed = trio.Condition()

    @property
    def connections(self) -> int:
        return len(self.streams)

    async def until(self, reached: Callable[[], bool]) -> None:
        """Wait until something is true of the server."""
        with trio.fail_after(20):
            async with self._changed:
                while not reached():
                    await self._changed.wait()

    async def notify(self) -> None:
        with trio.CancelScope(shield=True):
            async with self._changed:
                self._changed.notify_all()

    async def serve_tls(self, stream: trio.SSLStream[trio.SocketStream]) -> None:
        with suppress(trio.BrokenResourceError):
            await stream.do_handshake()
            await self.serve(stream, stream.transport_stream)

    async def serve(self, stream: trio.abc.Stream, tcp: trio.SocketStream | None = None) -> None:
        self.streams.append(stream)
        self.open += 1
        tcp = stream if isinstance(stream, trio.SocketStream) else tcp
        if tcp is not None:
            # Nagle's algorithm, which trio turns off: Cyrus leaves it on.
            tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
        try:
            while received := await stream.receive_some():
                self.received += received
                self.asked += 1
                if self.asked in self.closes_at:
                    break
                if self.asked not in self.silent_at:
                    for piece in self.answer:
                        await stream.send_all(piece)
                await self.notify()
                if self.closes:
                    break
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self.open -= 1
            await self.notify()
            await trio.aclose_forcefully(stream)


@asynccontextmanager
async def running(server: Server) -> AsyncIterator[Transport]:
    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, server.serve, [listener])
        origin = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        server.url = f"{origin}/x"
        async with Transport(Login(CREDENTIALS), user_agent="test") as transport:
            transport.set_limits({origin: ""}, 8)
            yield transport
        await server.until(lambda: not server.open)
        gc.collect()
        nursery.cancel_scope.cancel()


def http(body: bytes, length: int) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length + body


MAIL = http(b"mail", 4)


def request_to(server: Server, first_byte_timeout: float = 10.0) -> HttpRequest:
    return HttpRequest(method="GET", url=server.url, first_byte_timeout=first_byte_timeout)


async def get(transport: Transport, server: Server, first_byte_timeout: float = 10.0) -> bytes:
    request = request_to(server, first_byte_timeout)
    async with transport.exchange(request, deadline=Deadline(30)) as reader:
        return bytes(await reader.read(1000))


async def median_seconds(transport: Transport, server: Server) -> float:
    """Return how long one of 50 requests takes."""
    times = []
    for _ in range(50):
        started = trio.current_time()
        assert await get(transport, server) == b"mail"
        times.append(trio.current_time() - started)
    return statistics.median(times)


# --- Connections are kept


async def test_connection_is_kept() -> None:
    server = Server(MAIL)
    async with running(server) as transport:
        for _ in range(3):
            assert await get(transport, server) == b"mail"
    assert server.connections == 1


async def test_data_is_acknowledged_at_once() -> None:
    # The body waits for the acknowledgement of the head: 40 ms each, without TCP_QUICKACK.
    server = Server(http(b"", 4), b"mail")
    async with running(server) as transport:
        assert await median_seconds(transport, server) < 0.03
    assert server.connections == 1


async def test_each_request_in_flight_has_its_own_connection() -> None:
    server = Server(MAIL)
    async with running(server) as transport:
        request, deadline = request_to(server), Deadline(30)
        async with (
            transport.exchange(request, deadline=deadline) as one,
            transport.exchange(request, deadline=deadline) as two,
        ):
            assert [await one.read(9), await two.read(9)] == [b"mail", b"mail"]
        assert await get(transport, server) == b"mail"
    assert server.connections == 2


async def test_a_request_for_a_new_connection_uses_no_kept_one_and_leaves_none() -> None:
    server = Server(MAIL)
    async with running(server) as transport:
        fresh = replace(request_to(server), new_connection=True)
        await get(transport, server)
        for connections in (2, 3):
            async with transport.exchange(fresh, deadline=Deadline(30)) as reader:
                assert await reader.read(9) == b"mail"
            assert server.connections == connections
            await server.until(lambda: server.open == 1)
        # The connection that was kept before is still used for other requests.
        assert await get(transport, server) == b"mail"
        assert server.connections == 3


# --- Connections that the server closed


async def test_kept_connection_that_the_server_closed_is_not_used() -> None:
    server = Server(MAIL)
    async with running(server) as transport:
        await get(transport, server)
        await server.streams[0].aclose()
        assert await get(transport, server) == b"mail"
    assert server.connections == 2


async def test_request_is_sent_again_when_kept_connections_end() -> None:
    server = Server(MAIL)
    async with running(server) as transport:
        await get(transport, server)
        server.closes_at = {2}
        assert await get(transport, server) == b"mail"
    assert (server.connections, server.asked) == (2, 3)
    assert transport.traffic.requests == 2


async def test_request_is_not_sent_again_when_a_new_connection_ends() -> None:
    server = Server(MAIL)
    server.closes_at = {1}
    async with running(server) as transport:
        with pytest.raises(TransientError, match="broke off"):
            await get(transport, server)
    assert (server.connections, server.asked) == (1, 1)


async def test_idle_connections_are_closed_after_a_silent_one() -> None:
    server = Server(MAIL)
    async with running(server) as transport:
        request, deadline = request_to(server), Deadline(30)
        async with (
            transport.exchange(request, deadline=deadline) as one,
            transport.exchange(request, deadline=deadline) as two,
        ):
            assert [await one.read(9), await two.read(9)] == [b"mail", b"mail"]
        assert server.connections == server.open == 2
        server.silent_at = {3}
        with pytest.raises(TransientError, match="did not answer"):
            await get(transport, server, first_byte_timeout=0.2)
        await server.until(lambda: not server.open)
        assert await get(transport, server) == b"mail"
    assert server.connections == 3


async def test_connection_in_use_survives_the_end_of_idle_ones() -> None:
    server = Server(MAIL)
    async with (
        running(server) as transport,
        transport.exchange(request_to(server), deadline=Deadline(30)) as reader,
    ):
        assert isinstance(transport._network, ConnectionPool)
        await transport._network.close_idle()
        assert await reader.read(9) == b"mail"


async def test_closed_transport_opens_no_connection() -> None:
    server = Server(MAIL)
    async with running(server) as transport:
        await transport.aclose()
        with pytest.raises(UnreachableError, match="was closed"):
            await get(transport, server)
    assert server.connections == 0


async def test_closing_ends_requests_in_flight() -> None:
    server = Server(MAIL)
    server.silent_at = {2}
    async with running(server) as transport:
        await get(transport, server)
        async with trio.open_nursery() as nursery:

            async def fails() -> None:
                with pytest.raises(TransientError):
                    await get(transport, server)

            nursery.start_soon(fails)
            await server.until(lambda: server.asked == 2)
            await transport.aclose()
    assert server.connections == 1


# --- Broken, cancelled and refused requests


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (http(b"ma", 4), "broke off"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nmail\r\n", "broke off|clos"),
        (b"HTTP/1.1 200 OK\r\nContent-", "broke off"),
        (b"* OK IMAP4rev1 ready\r\n\r\n", "broke off"),
    ],
)
async def test_response_that_breaks_off_is_an_error(answer: bytes, words: str) -> None:
    server = Server(answer, closes=True)
    async with running(server) as transport:
        with pytest.raises(TransientError, match=words) as caught:
            await get(transport, server)
        assert isinstance(caught.value.error, UnreachableError)


async def test_response_left_early_closes_its_connection() -> None:
    server = Server(http(b"mail", 1000))
    async with running(server) as transport:
        for _ in range(3):
            async with transport.exchange(request_to(server), deadline=Deadline(30)) as reader:
                assert await reader.next_chunk() == b"mail"
        await server.until(lambda: not server.open)


@pytest.mark.parametrize("answer", [b"", http(b"ma", 4)])
async def test_cancelled_request_closes_its_connection(answer: bytes) -> None:
    server = Server(answer)
    async with running(server) as transport:
        for count in (1, 2, 3):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(get, transport, server)
                await server.until(partial(lambda n: server.asked == n, count))
                nursery.cancel_scope.cancel()
        await server.until(lambda: not server.open)
    assert server.connections == 3


async def test_request_cancelled_while_its_content_is_sent_leaves_no_generator() -> None:
    """A generator that is collected before its end would be a ResourceWarning, so an error here."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    # Nobody accepts the connection, so the buffers fill and sending blocks.
    content = b"x" * (64 << 20)
    request = HttpRequest(method="POST", url=f"http://127.0.0.1:{port}/", content=content)
    async with listener, Transport(Login(CREDENTIALS), user_agent="test") as transport:
        transport.trust([f"http://127.0.0.1:{port}"])
        with trio.move_on_after(0.5) as scope:
            await transport.fetch(request, deadline=Deadline(30))
        assert scope.cancelled_caught
        gc.collect()
        await trio.lowlevel.checkpoint()


async def test_cancelled_tls_handshake_closes_its_connection() -> None:
    server = Server()
    async with running(server):
        pool = ConnectionPool()
        request = httpx.Request("GET", server.url.replace("http:", "https:"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.handle_async_request, request)
            await server.until(lambda: server.asked == 1)
            gc.disable()
            nursery.cancel_scope.cancel()
        try:
            await server.until(lambda: not server.open)
        finally:
            gc.enable()
        await pool.aclose()


async def test_connection_of_a_request_cancelled_once_connected_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Server(MAIL)
    scope = trio.CancelScope()
    connect_tcp = httpcore.TrioBackend.connect_tcp

    async def connect_and_cancel(*arguments: Any, **options: Any) -> httpcore.AsyncNetworkStream:
        stream = await connect_tcp(*arguments, **options)
        scope.cancel()
        return stream

    monkeypatch.setattr(httpcore.TrioBackend, "connect_tcp", connect_and_cancel)
    async with running(server) as transport:
        with scope:
            await get(transport, server)
        assert scope.cancelled_caught
        await server.until(lambda: server.connections == 1 and not server.open)


async def test_refused_connection() -> None:
    with trio.socket.socket() as unused:
        await unused.bind(("127.0.0.1", 0))
        server = Server(b"")
        async with running(server) as transport:
            server.url = f"http://127.0.0.1:{unused.getsockname()[1]}/x"
            transport.trust({server.url.removesuffix("/x")})
            with pytest.raises(TransientError, match="refuses the connection"):
                await get(transport, server)


async def test_no_other_source_of_credentials_is_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("default login netrc password netrc\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HOME", str(tmp_path))
    server = Server(MAIL)
    async with running(server) as transport:
        request = HttpRequest(method="GET", url=server.url, authenticated=False)
        async with transport.exchange(request, deadline=Deadline(30)) as reader:
            await reader.read(1000)
    assert b"authorization" not in server.received.lower()


# --- Proxies


async def test_this_machine_is_not_reached_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    server = Server(MAIL)
    async with running(server) as transport:
        assert await get(transport, server) == b"mail"


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "ALL_PROXY"])
async def test_https_goes_through_the_proxy_of_the_environment(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    server = Server(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
    async with running(server):
        monkeypatch.setenv(name, server.url)
        pool = ConnectionPool()
        with pytest.raises(ProxyFailure, match="403 Forbidden"):
            await pool.handle_async_request(httpx.Request("GET", "https://mail.example.invalid/"))
        await pool.aclose()
    assert server.asked == 1


PROXY_ANSWERS = {
    b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n": "403 Forbidden",
    b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n": "407 Proxy",
    b"SSH-2.0-OpenSSH_9.2\r\n": "the proxy",
}


@pytest.mark.parametrize(("answer", "words"), PROXY_ANSWERS.items())
async def test_failing_proxy_is_named(
    answer: bytes, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    server = Server(answer, closes=True)
    async with running(server):
        address = server.url.removeprefix("http://").removesuffix("/x")
        monkeypatch.setenv("HTTPS_PROXY", address)
        error = await proxy_error()
    assert words in error
    assert f"the proxy {address}" in error
    assert "mail.example.invalid" not in error


@pytest.mark.parametrize(
    ("proxy", "words"),
    [
        ("http://127.0.0.1:9", "the proxy 127.0.0.1:9 refuses the connection"),
        ("http://nowhere.invalid:3128", "the proxy nowhere.invalid:3128 is not found"),
    ],
)
async def test_unreachable_proxy_is_named(
    proxy: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    error = await proxy_error()
    assert words in error
    assert "mail.example.invalid" not in error


async def proxy_error() -> str:
    """Return the error of a request through the proxy of the environment."""
    async with Transport(Login(CREDENTIALS), user_agent="test") as transport:
        transport.set_limits({"https://mail.example.invalid:443": "apiUrl"}, 8)
        request = HttpRequest(method="GET", url="https://mail.example.invalid/")
        with pytest.raises(TransientError) as caught:
            async with transport.exchange(request, deadline=Deadline(10)):
                pass
    return str(caught.value)


@pytest.mark.parametrize("no_proxy", ["127.0.0.1", "example.org, 127.0.0.1:9", "*"])
async def test_no_proxy_of_the_environment_is_respected(
    no_proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(MAIL)
    async with running(server):
        monkeypatch.setenv("HTTPS_PROXY", server.url)
        monkeypatch.setenv("NO_PROXY", no_proxy)
        pool = ConnectionPool()
        with pytest.raises(httpx.ConnectError):
            await pool.handle_async_request(httpx.Request("GET", "https://127.0.0.1:9/"))
        await pool.aclose()
    assert server.asked == 0


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "ftp://x", "http://", "http://x:y"])
def test_unusable_proxy_is_refused(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    with pytest.raises(ConfigError, match="proxy"):
        ConnectionPool()


# --- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with a key and its self-signed certificate for 127.0.0.1."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate, and is not installed")
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-nodes", "-newkey", "ec", "-days", "2"),
            *("-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", "/CN=jmapfs"),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", path, "-out", f"{path}.crt"),
        ],
        check=True,
        capture_output=True,
    )
    path.write_bytes(path.read_bytes() + Path(f"{path}.crt").read_bytes())
    return path


@asynccontextmanager
async def running_tls(
    server: Server, certificate: Path, *, ca_file: Path | None = None
) -> AsyncIterator[Transport]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        tls = trio.SSLListener(listener, context, https_compatible=True)
        nursery.start_soon(trio.serve_listeners, server.serve_tls, [tls])
        port = listener.socket.getsockname()[1]
        server.url = f"https://127.0.0.1:{port}/x"
        async with Transport(Login(CREDENTIALS), user_agent="test", ca_file=ca_file) as transport:
            transport.set_limits({f"https://127.0.0.1:{port}": ""}, 8)
            yield transport
        nursery.cancel_scope.cancel()


async def test_tls_connection_is_kept_and_replaced(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    server = Server(http(b"", 4), b"mail")
    async with running_tls(server, certificate) as transport:
        assert await median_seconds(transport, server) < 0.03
        assert server.connections == 1
        server.closes_at = {51}
        assert await get(transport, server) == b"mail"
    assert server.connections == 2


async def test_unknown_certificate_is_refused(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    server = Server(MAIL)
    async with running_tls(server, certificate) as transport:
        with pytest.raises(
            UnreachableError, match=r"certificate of 127\.0\.0\.1:\d+ is not accepted"
        ):
            await get(transport, server)
    assert server.asked == 0


async def tunnel(stream: trio.SocketStream) -> None:
    """Be a proxy for one connection: answer CONNECT, and copy bytes in both directions."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += await stream.receive_some(1)
    host, _, port = head.split()[1].partition(b":")
    assert head.startswith(b"CONNECT ")
    server = await trio.open_tcp_stream(host.decode(), int(port))
    await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")

    async def copy(source: trio.SocketStream, target: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for piece in source:
                await target.send_all(piece)
        nursery.cancel_scope.cancel()

    async with stream, server, trio.open_nursery() as nursery:
        nursery.start_soon(copy, stream, server)
        nursery.start_soon(copy, server, stream)


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy"])
async def test_mail_is_read_through_a_proxy(
    name: str, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for other in ("NO_PROXY", "no_proxy", "HTTPS_PROXY", "https_proxy", "SSL_CERT_FILE"):
        monkeypatch.delenv(other, raising=False)
    server, connections = Server(MAIL), 0

    async def count(stream: trio.SocketStream) -> None:
        nonlocal connections
        connections += 1
        await tunnel(stream)

    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, count, [listener])
        monkeypatch.setenv(name, f"http://127.0.0.1:{listener.socket.getsockname()[1]}")
        async with running_tls(server, certificate, ca_file=certificate) as transport:
            assert await get(transport, server) == b"mail"
            assert await get(transport, server) == b"mail"
        nursery.cancel_scope.cancel()
    assert connections == server.connections == 1


async def test_authorities_in_ca_file_are_accepted_too(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    server = Server(MAIL)
    async with running_tls(server, certificate, ca_file=certificate) as transport:
        assert await get(transport, server) == b"mail"


@pytest.mark.parametrize(("content", "words"), [(None, "No such file"), (b"x", "no certificates")])
def test_unusable_ca_file_is_refused(content: bytes | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"ca_file: {path}: {words}"):
        ConnectionPool(path)


def test_unusable_ssl_cert_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "absent"))
    with pytest.raises(ConfigError, match="SSL_CERT_FILE"):
        ConnectionPool()


async def test_certificates_of_the_system_are_accepted(
    monkeypatch: pytest.MonkeyPatch,
    loaded_certificates: Callable[[Path | None], ssl.SSLContext],
) -> None:
    monkeypatch.setattr(connections, "_tls_context", loaded_certificates)
    loaded = 0

    def load(_: ssl.SSLContext) -> None:
        nonlocal loaded
        loaded += 1

    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    monkeypatch.setattr(ssl.SSLContext, "load_default_certs", load)
    await ConnectionPool().aclose()
    assert loaded == 1
    monkeypatch.setenv("SSL_CERT_DIR", "/")
    await ConnectionPool().aclose()
    assert loaded == 1
