"""A proxy between jmapfs and any JMAP server on this machine, which injects faults.

with fault_proxy(server.url) as proxy:
    proxy.inject(BY_NAME["cut in the body"], {Kind.DOWNLOAD}, count=1)
    ...  # jmapfs uses proxy.url
    assert proxy.injected == 1
    proxy.clear()

The proxy parses each request, and knows its kind from the URLs of the session and the names of the
methods. It rewrites the URLs of the session to itself. With a certificate, it speaks TLS.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import socket
import ssl
import struct
import subprocess
import threading
from collections import Counter
from collections.abc import AsyncGenerator, Collection, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import h11
import trio

from tests.faults.faults import Answer, Fault, Step, Steps

_HOST = "127.0.0.1"
_CHUNK = 65536
_START_SECONDS = 10
# These describe one connection, or the framing that a fault chooses.
_NOT_FORWARDED = {b"connection", b"keep-alive", b"transfer-encoding", b"content-length"}
_COMMENTS = b": this is a comment\n\n" * 50
_BROKEN = (OSError, trio.BrokenResourceError, trio.ClosedResourceError, h11.ProtocolError)


class Kind(StrEnum):
    """What a request is for."""

    SESSION = "session"
    API = "api"  # without those of BLOB_GET
    BLOB_GET = "blob-get"
    DOWNLOAD = "download"
    EVENTS = "events"


CONTENT = frozenset({Kind.DOWNLOAD, Kind.BLOB_GET})
ALL = frozenset(Kind)


@dataclass
class _Injection:
    """A fault that is to be injected `left` times."""

    fault: Fault
    kinds: frozenset[Kind]
    left: float

    def take(self) -> bool:
        """Return whether the fault is to be injected now, and count it."""
        if self.left <= 0:
            return False
        self.left -= 1
        return True


@dataclass
class FaultProxy:
    """Counts requests by kind, and injects faults. Use it from any thread.

    url: the address of the proxy, which stands for `target`.
    injected: how many faults were injected since `inject`.
    elsewhere: the URL of another host, to which redirects lead.
    leaked: the kinds of the requests that were redirected to that host with credentials.
    """

    target: str
    certificate: Path | None = None
    url: str = ""
    elsewhere: str = ""
    requests: Counter[Kind] = field(default_factory=Counter)
    injected: int = 0
    leaked: Counter[str] = field(default_factory=Counter)
    _injection: _Injection | None = None
    _paths: dict[str, Kind] = field(default_factory=dict)
    # Connections that wait for a request, and event streams: those that `disconnect` ends.
    _waiting: set[trio.CancelScope] = field(default_factory=set)
    _token: trio.lowlevel.TrioToken | None = None
    _scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    def inject(
        self,
        fault: Fault,
        kinds: Collection[Kind] = ALL,
        *,
        count: int | None = None,
        disconnect: bool = False,
    ) -> None:
        """Inject a fault into the next `count` requests of these kinds, or into all of them.

        A fault that happens at connecting ends all kept connections and event streams, and affects
        new connections, whatever they are for. `disconnect` ends the connections as well.
        """
        self.injected = 0
        left = math.inf if count is None else count
        self._injection = _Injection(fault, frozenset(kinds), left)
        if disconnect or fault.at_connect:
            self.disconnect()

    def clear(self) -> None:
        """Inject no more faults. Connections that are stalled now stay so."""
        self._injection = None

    def disconnect(self) -> None:
        """End all kept connections and event streams."""
        assert self._token is not None

        def cancel() -> None:
            for scope in self._waiting:
                scope.cancel()

        trio.from_thread.run_sync(cancel, trio_token=self._token)

    def stop(self) -> None:
        """End the proxy."""
        assert self._token is not None
        trio.from_thread.run_sync(self._scope.cancel, trio_token=self._token)

    async def serve(self, started: threading.Event) -> None:
        """Serve until `stop`."""
        self._token = trio.lowlevel.current_trio_token()
        with self._scope:
            async with trio.open_nursery() as nursery:
                listeners = await trio.open_tcp_listeners(0, host=_HOST)
                others = await trio.open_tcp_listeners(0, host=_HOST)
                scheme = "https" if self.certificate else "http"
                self.url = f"{scheme}://{_HOST}:{listeners[0].socket.getsockname()[1]}"
                self.elsewhere = f"{scheme}://{_HOST}:{others[0].socket.getsockname()[1]}/"
                tls = _tls_context(self.certificate)
                nursery.start_soon(trio.serve_listeners, _Server(self, tls).serve, listeners)
                nursery.start_soon(trio.serve_listeners, _Server(self, tls).serve_other, others)
                started.set()

    def fault_for(self, kind: Kind | None) -> Fault | None:
        """Return the fault for a request of this kind, or for a new connection (None)."""
        injection = self._injection
        if injection is None or injection.fault.at_connect != (kind is None):
            return None
        if (kind is not None and kind not in injection.kinds) or not injection.take():
            return None
        self.injected += 1
        return injection.fault

    def kind_of(self, method: bytes, path: str, body: bytes) -> Kind:
        """Return the kind of a request."""
        known = [prefix for prefix in self._paths if path.startswith(prefix)]
        kind = self._paths[max(known, key=len)] if known else Kind.SESSION
        if kind is not Kind.API:
            return kind
        # Cyrus has the session and the API at one URL.
        if method == b"GET":
            return Kind.SESSION
        return Kind.BLOB_GET if b'"Blob/get"' in body else Kind.API

    def learn(self, body: bytes) -> bytes:
        """Note the URLs of a session; return it with those of the target replaced by ours."""
        try:
            session = json.loads(body)
            urls = {Kind.API: "apiUrl", Kind.DOWNLOAD: "downloadUrl", Kind.EVENTS: "eventSourceUrl"}
            found = {kind: str(session[name]) for kind, name in urls.items() if name in session}
        except (ValueError, TypeError):
            return body
        for kind, url in found.items():
            parts = urlsplit(url.partition("{")[0])
            self._paths[parts.path] = kind
        return body.replace(self.target.encode(), self.url.encode())

    @contextlib.contextmanager
    def ended_by_disconnect(self) -> Iterator[None]:
        """Leave the block at `disconnect`."""
        with trio.CancelScope() as scope:
            self._waiting.add(scope)
            try:
                yield
            finally:
                self._waiting.discard(scope)


@dataclass
class _Request:
    method: bytes
    target: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes = b""


class _Server:
    """Serves the connections of a proxy."""

    def __init__(self, proxy: FaultProxy, tls: ssl.SSLContext | None) -> None:
        self._proxy = proxy
        self._tls = tls
        self._target = urlsplit(proxy.target)

    async def serve(self, tcp: trio.SocketStream) -> None:
        """Serve one connection of a client."""
        wire = _Wire(tcp)
        with contextlib.suppress(*_BROKEN):
            if fault := self._proxy.fault_for(None):
                nothing = Answer(200, (), b"")
                await _Connection(tcp, wire).play(fault.steps(nothing), forward=None)
            else:
                stream: trio.abc.Stream = tcp
                if self._tls is not None:
                    stream = trio.SSLStream(
                        wire, self._tls, server_side=True, https_compatible=True
                    )
                await self._serve_requests(_Connection(stream, wire))
        with contextlib.suppress(OSError):
            await trio.aclose_forcefully(tcp)

    async def serve_other(self, tcp: trio.SocketStream) -> None:
        """Serve the other host: it counts requests with credentials."""
        stream: trio.abc.Stream = tcp
        if self._tls is not None:
            stream = trio.SSLStream(tcp, self._tls, server_side=True, https_compatible=True)
        with contextlib.suppress(*_BROKEN):
            while request := await _receive(stream):
                kind = request.target.decode().strip("/")
                names = {name for name, _ in request.headers}
                self._proxy.leaked[kind] += b"authorization" in names
                await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        await trio.aclose_forcefully(tcp)

    async def _serve_requests(self, connection: _Connection) -> None:
        while True:
            request = None
            with self._proxy.ended_by_disconnect():
                request = await _receive(connection.stream)
            if request is None or not await self._answer(connection, request):
                return

    async def _answer(self, connection: _Connection, request: _Request) -> bool:
        """Answer a request; return whether the connection can serve another one."""
        proxy = self._proxy
        kind = proxy.kind_of(request.method, request.target.decode(), request.body)
        proxy.requests[kind] += 1
        fault = proxy.fault_for(kind)
        async with await trio.open_tcp_stream(_HOST, self._target.port or 80) as upstream:
            response, client = await self._ask(upstream, request)
            headers = tuple(
                (name.decode(), value.decode("latin-1"))
                for name, value in response.headers
                if name not in _NOT_FORWARDED
            )
            if kind is Kind.EVENTS and response.status_code == 200:
                body = _COMMENTS
            else:
                async with contextlib.aclosing(_chunks(upstream, client)) as chunks:
                    body = b"".join([chunk async for chunk in chunks])
                if kind is Kind.SESSION:
                    body = proxy.learn(body)
            here = proxy.url + request.target.decode()
            good = Answer(response.status_code, headers, body, here, proxy.elsewhere + kind)
            if kind is Kind.EVENTS and response.status_code == 200:
                forward: bytes | _Events = _Events(good, upstream, client, proxy)
            else:
                forward = good.framed()
            steps: Steps = (Step.FORWARD,) if fault is None else fault.steps(good)
            return await connection.play(steps, forward)

    async def _ask(
        self, upstream: trio.SocketStream, request: _Request
    ) -> tuple[h11.Response, h11.Connection]:
        client = h11.Connection(h11.CLIENT)
        headers = [
            (name, value)
            for name, value in request.headers
            if name not in _NOT_FORWARDED | {b"host", b"accept-encoding"}
        ]
        own = [(b"Host", self._target.netloc.encode()), (b"Connection", b"close")]
        if request.body or request.method == b"POST":
            own.append((b"Content-Length", str(len(request.body)).encode()))
        sent = client.send(
            h11.Request(method=request.method, target=request.target, headers=[*headers, *own])
        )
        data = client.send(h11.Data(data=request.body)) or b""
        end = client.send(h11.EndOfMessage()) or b""
        await upstream.send_all((sent or b"") + data + end)
        while not isinstance(event := client.next_event(), h11.Response):
            if event is h11.NEED_DATA:
                client.receive_data(await upstream.receive_some(_CHUNK))
            elif not isinstance(event, h11.InformationalResponse):
                raise h11.RemoteProtocolError("the server did not answer")
        return event, client


@dataclass
class _Events:
    """The rest of an event stream."""

    good: Answer
    upstream: trio.SocketStream
    client: h11.Connection
    proxy: FaultProxy

    async def send(self, stream: trio.abc.Stream) -> None:
        await stream.send_all(self.good.head("Connection: close"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._until_closed, stream, nursery.cancel_scope)
            with self.proxy.ended_by_disconnect(), contextlib.suppress(*_BROKEN):
                async with contextlib.aclosing(_chunks(self.upstream, self.client)) as chunks:
                    async for chunk in chunks:
                        await stream.send_all(chunk)
            nursery.cancel_scope.cancel()

    async def _until_closed(self, stream: trio.abc.Stream, scope: trio.CancelScope) -> None:
        with contextlib.suppress(*_BROKEN):
            await stream.receive_some(1)
        scope.cancel()


@dataclass
class _Connection:
    """A connection of a client, with and without TLS."""

    stream: trio.abc.Stream
    wire: _Wire

    async def play(self, steps: Steps, forward: bytes | _Events | None) -> bool:
        """Take the steps; return whether the connection can serve another request."""
        for step in steps:
            if isinstance(step, (bytes, bytearray)):
                await self.stream.send_all(step)
            elif isinstance(step, float):
                await trio.sleep(step)
            elif step is Step.FORWARD and isinstance(forward, _Events):
                await forward.send(self.stream)
                return False
            elif step is Step.FORWARD and isinstance(forward, bytes):
                await self.stream.send_all(forward)
            elif step is Step.GARBLE:
                self.wire.garbled = True
            elif step is Step.STALL:
                await self._until_closed()
                return False
            else:
                if step is Step.RESET:
                    self.wire.reset()
                return False
        return True

    async def _until_closed(self) -> None:
        with contextlib.suppress(*_BROKEN):
            while await self.wire.tcp.receive_some(_CHUNK):
                pass


class _Wire(trio.abc.Stream):
    """The bytes on the network; it can flip a bit in those that are sent next."""

    def __init__(self, tcp: trio.SocketStream) -> None:
        self.tcp = tcp
        self.garbled = False

    async def send_all(self, data: Any) -> None:
        if self.garbled:
            self.garbled = False
            changed = bytearray(data)
            changed[len(changed) // 2] ^= 1
            data = changed
        await self.tcp.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.tcp.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self.tcp.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self.tcp.aclose()

    def reset(self) -> None:
        """Have the next close send a TCP reset."""
        linger = struct.pack("ii", 1, 0)
        self.tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


async def _receive(stream: trio.abc.Stream) -> _Request | None:
    """Return the next request, or None at the end of the connection."""
    # Clients do not send a request before the answer to the last one, so each has its own parser.
    parser = h11.Connection(h11.SERVER)
    request: _Request | None = None
    while True:
        event = parser.next_event()
        if event is h11.NEED_DATA:
            data = await stream.receive_some(_CHUNK)
            if not data and request is None and not parser.trailing_data[0]:
                return None
            parser.receive_data(bytes(data))
        elif isinstance(event, h11.Request):
            request = _Request(event.method, event.target, list(event.headers))
        elif isinstance(event, h11.Data) and request is not None:
            request.body += bytes(event.data)
        else:
            return request


async def _chunks(
    upstream: trio.SocketStream, client: h11.Connection
) -> AsyncGenerator[bytes, None]:
    """Yield the body of the server's answer."""
    while not isinstance(event := client.next_event(), h11.EndOfMessage):
        if event is h11.NEED_DATA:
            client.receive_data(await upstream.receive_some(_CHUNK))
        elif isinstance(event, h11.Data):
            yield bytes(event.data)
        else:
            return


def _tls_context(certificate: Path | None) -> ssl.SSLContext | None:
    if certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    return context


def make_certificate(directory: Path) -> Path | None:
    """Return a file with a key and its certificate for 127.0.0.1; None without openssl(1).

    The certificate signs itself, so it also is the authority (`ca_file`, `SSL_CERT_FILE`).
    """
    if shutil.which("openssl") is None:
        return None
    path = directory / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-nodes", "-newkey", "ec", "-days", "2"),
            *("-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", "/CN=jmapfs"),
            *("-addext", f"subjectAltName=IP:{_HOST}", "-keyout", path, "-out", f"{path}.crt"),
        ],
        check=True,
        capture_output=True,
    )
    path.write_bytes(path.read_bytes() + Path(f"{path}.crt").read_bytes())
    return path


class _Thread:
    """Runs a proxy in a thread of its own."""

    def __init__(self, proxy: FaultProxy) -> None:
        self._proxy = proxy
        self._started = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(proxy.serve, self._started))

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(_START_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        self._proxy.stop()
        self._thread.join()


@contextlib.contextmanager
def fault_proxy(target: str, certificate: Path | None = None) -> Iterator[FaultProxy]:
    """Run a proxy for the server at the URL `target` during the block; with a certificate, TLS."""
    proxy = FaultProxy(target, certificate)
    with _Thread(proxy):
        yield proxy
