"""Real connections on loopback: broken off, left early, cancelled, renewed; none is left open."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import httpx
import pytest
import trio

from jmapfs.errors import UnreachableError
from jmapfs.jmap.http import Connections, Transport
from jmapfs.jmap.response import Request
from jmapfs.jmap.retry import TransientError
from tests.jmap.fake import CREDENTIALS


class Server:
    """Reads requests and sends the bytes of `answer` for each; counts connections."""

    def __init__(self, answer: bytes, *, closes: bool = False) -> None:
        self.answer = answer
        self.closes = closes
        self.connections = 0
        self.open = 0
        self.url = ""
        self._changed = trio.Condition()
        self.asked = 0

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

    async def serve(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        self.open += 1
        try:
            while await stream.receive_some():
                await stream.send_all(self.answer)
                self.asked += 1
                await self.notify()
                if self.closes:
                    break
        except trio.BrokenResourceError:
            pass
        finally:
            self.open -= 1
            await self.notify()
            await trio.aclose_forcefully(stream)


@asynccontextmanager
async def running(server: Server) -> AsyncIterator[tuple[Transport, Connections]]:
    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, server.serve, [listener])
        origin = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        server.url = f"{origin}/x"
        connections = Connections("test", keep_unencrypted=True)
        transport = Transport(CREDENTIALS, connections)
        transport.trust({origin})
        yield transport, connections
        await connections.aclose()
        await server.until(lambda: not server.open)
        gc.collect()
        nursery.cancel_scope.cancel()


def http(body: bytes, length: int) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length + body


async def get(transport: Transport, server: Server) -> bytes:
    outgoing = Request(method="GET", url=server.url)
    async with transport.exchange(outgoing, until=trio.current_time() + 30) as incoming:
        return await incoming.read(1000)


async def test_connection_is_kept() -> None:
    server = Server(http(b"mail", 4))
    async with running(server) as (transport, _):
        for _ in range(3):
            assert await get(transport, server) == b"mail"
    assert server.connections == 1


async def test_connection_to_this_machine_is_not_kept() -> None:
    server = Server(http(b"mail", 4))
    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, server.serve, [listener])
        connections = Connections("test")
        async with connections.lease() as client:
            for _ in range(3):
                await client.get(f"http://127.0.0.1:{listener.socket.getsockname()[1]}/x")
        await connections.aclose()
        await server.until(lambda: not server.open)
        nursery.cancel_scope.cancel()
    assert server.connections == 3


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (http(b"ma", 4), "broke off"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nmail\r\n", "broke off|clos"),
        (b"HTTP/1.1 200 OK\r\nContent-", "broke off"),
        (b"* OK IMAP4rev1 ready\r\n\r\n", "broke off"),
    ],
)
async def test_broken_off(answer: bytes, words: str) -> None:
    server = Server(answer, closes=True)
    async with running(server) as (transport, _):
        with pytest.raises(TransientError, match=words) as caught:
            await get(transport, server)
        assert isinstance(caught.value.error, UnreachableError)


async def test_renewed_while_in_use() -> None:
    server = Server(http(b"mail", 4))
    async with running(server) as (transport, connections):
        async with connections.lease() as old:
            assert (await old.get(server.url)).content == b"mail"
            connections.renew(old)
            connections.renew(old)
            assert await get(transport, server) == b"mail"
            assert server.connections == 2
            assert (await old.get(server.url)).content == b"mail"
        assert old.is_closed
        assert await get(transport, server) == b"mail"
    assert server.connections == 2


async def test_left_early() -> None:
    server = Server(http(b"mail", 1000))
    async with running(server) as (transport, _):
        outgoing = Request(method="GET", url=server.url)
        for _ in range(3):
            async with transport.exchange(outgoing, until=trio.current_time() + 30) as incoming:
                assert await incoming.next_chunk() == b"mail"
        await server.until(lambda: not server.open)


@pytest.mark.parametrize("answer", [b"", http(b"ma", 4)])
async def test_cancelled(answer: bytes) -> None:
    server = Server(answer)
    async with running(server) as (transport, _):
        for count in (1, 2, 3):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(get, transport, server)
                await server.until(partial(lambda n: server.asked == n, count))
                nursery.cancel_scope.cancel()
        await server.until(lambda: not server.open)
    assert server.connections == 3


async def test_refused() -> None:
    with trio.socket.socket() as unused:
        await unused.bind(("127.0.0.1", 0))
        server = Server(b"")
        async with running(server) as (transport, _):
            server.url = f"http://127.0.0.1:{unused.getsockname()[1]}/x"
            transport.trust({server.url.removesuffix("/x")})
            with pytest.raises(TransientError, match="refuses the connection"):
                await get(transport, server)


async def test_proxies_do_not_see_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    server = Server(http(b"mail", 4))
    async with running(server) as (transport, _):
        assert await get(transport, server) == b"mail"


async def test_upset_connection_is_a_failure_of_the_network() -> None:
    def upset(kind: type[Exception]) -> Callable[[httpx.Request], httpx.Response]:
        def handler(_: httpx.Request) -> httpx.Response:
            raise kind("released too many times")

        return handler

    for kind in (ValueError, KeyError, RuntimeError, trio.ClosedResourceError):
        connections = Connections("test", httpx.MockTransport(upset(kind)))
        transport = Transport(CREDENTIALS, connections)
        server = Server(b"")
        server.url = "http://127.0.0.1/x"
        transport.trust({"http://127.0.0.1:80"})
        with pytest.raises(TransientError, match="too many times"):
            await get(transport, server)
        await connections.aclose()
