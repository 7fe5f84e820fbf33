"""A TCP proxy that adds latency: each byte takes half a round trip.

with delayed(account.imap_port, account.http_port, seconds=0.05) as (imap_port, http_port):
    ...

There is no bandwidth limit and no loss, and the order is preserved. A new connection costs one
round trip for the handshake: the first bytes of the client wait for it. The proxy connects to the
server when the handshake would have reached it, so the greeting of a server arrives after two
round trips.

Both ends are acknowledged at once (TCP_QUICKACK, TCP_NODELAY), so a Nagle algorithm waits
microseconds instead of a round trip. This favors programs that send a request or a response in
several segments, but no peer suffers from delayed ACKs of 40 ms on loopback.

The proxy is a separate process, so that it does not share an interpreter with the measured
program. It ends with its standard input, at the latest with its parent process.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import selectors
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

_ROOT = Path(__file__).parents[2]
_START_SECONDS = 10
_END_SECONDS = 5
_HOST = "127.0.0.1"


@contextlib.contextmanager
def delayed(*ports: int, seconds: float) -> Iterator[tuple[int, ...]]:
    """Run a proxy with this round-trip time; yield its ports for `ports`, in order.

    Raises:
        RuntimeError: the proxy does not start.
    """
    with subprocess.Popen(
        [sys.executable, "-m", "tests.bench.proxy", str(seconds), *map(str, ports)],
        cwd=_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            yield _ports_of(process)
        finally:
            # This closes its standard input, which ends it.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=_END_SECONDS)
            process.kill()


def _ports_of(process: subprocess.Popen[bytes]) -> tuple[int, ...]:
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        line = process.stdout.readline() if selector.select(_START_SECONDS) else b""
    if not line:
        raise RuntimeError("the proxy does not start")
    return tuple(map(int, line.split()))


class _Link:
    """One direction of a connection: delivers in order, after a delay, once it is open."""

    def __init__(self, seconds: float, *, is_open: bool) -> None:
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[float, Callable[[], None]]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._is_open = is_open

    def open(self) -> None:
        """Start to deliver."""
        self._is_open = True
        self._arrive()

    def send(self, deliver: Callable[[], None], *, no_sooner_than: float = 0) -> None:
        """Call `deliver` after the delay, which starts at `no_sooner_than` or now."""
        due = max(self._loop.time(), no_sooner_than) + self._seconds
        self._waiting.append((due, deliver))
        if self._is_open and self._timer is None:
            self._timer = self._loop.call_at(due, self._arrive)

    def discard(self) -> None:
        """Discard what has not arrived."""
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arrive(self) -> None:
        self._timer = None
        now = self._loop.time()
        while self._waiting and self._waiting[0][0] <= now:
            self._waiting.popleft()[1]()
        if self._waiting:
            self._timer = self._loop.call_at(self._waiting[0][0], self._arrive)


class _Peer(asyncio.Protocol):
    """One end of a connection; it sends through a link to the other end."""

    def __init__(self, link: _Link, *, no_sooner_than: float = 0) -> None:
        self.link = link
        self.other: _Peer | None = None
        self.transport: asyncio.Transport | None = None
        self._no_sooner_than = no_sooner_than
        self._sent_eof = self._received_eof = False

    def write(self, data: bytes) -> None:
        """Write what the other end sent."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    def write_eof(self) -> None:
        """Write the end of the other direction; close the connection when both have ended."""
        self._received_eof = True
        if self.transport is not None:
            # The connection may have been reset; asyncio will report it.
            with contextlib.suppress(OSError):
                self.transport.write_eof()
            if self._sent_eof:
                self.transport.close()

    def close(self) -> None:
        """Close the connection after pending writes."""
        if self.transport is not None:
            self.transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        assert self.transport is not None
        # The kernel resets this option after some segments.
        connection: socket.socket = self.transport.get_extra_info("socket")
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        self._send(lambda other: other.write(data))

    def eof_received(self) -> bool:
        self._sent_eof = True
        self._send(lambda other: other.write_eof())
        # True keeps the connection open for the other direction.
        return not self._received_eof

    def connection_lost(self, error: Exception | None) -> None:
        del error
        self.transport = None
        self._send(lambda other: other.close())
        if self.other is not None:
            self.other.link.discard()

    def pause_writing(self) -> None:
        # A slow reader must not fill our memory.
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.resume_reading()

    def _send(self, action: Callable[[_Peer], None]) -> None:
        def deliver() -> None:
            if self.other is not None:
                action(self.other)

        self.link.send(deliver, no_sooner_than=self._no_sooner_than)


class _Client(_Peer):
    """The end of the client, which creates the end of the server."""

    def __init__(self, port: int, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        accepted = loop.time()
        super().__init__(_Link(seconds / 2, is_open=False), no_sooner_than=accepted + seconds)
        self._port = port
        self._seconds = seconds
        self._connecting: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._connecting = asyncio.create_task(self._connect())

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        if self.other is None and self._connecting is not None:
            self._connecting.cancel()

    async def _connect(self) -> None:
        # The end of the handshake and the first bytes arrive at the same time.
        await asyncio.sleep(self._seconds * 1.5)
        try:
            _, self.other = await asyncio.get_running_loop().create_connection(
                self._server, _HOST, self._port
            )
        except OSError:
            if self.transport is not None:
                self.transport.abort()
        else:
            self.link.open()

    def _server(self) -> _Peer:
        server = _Peer(_Link(self._seconds / 2, is_open=True))
        server.other = self
        return server


async def _serve(seconds: float, ports: list[int]) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), ended.set)
    servers = [
        await loop.create_server(functools.partial(_Client, port, seconds), _HOST, 0)
        for port in ports
    ]
    print(*(server.sockets[0].getsockname()[1] for server in servers), flush=True)
    await ended.wait()


def main() -> None:
    # Ctrl-C in a terminal signals all processes; the proxy must outlive the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The timeouts of epoll are whole milliseconds, which is too coarse.
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(_serve(float(sys.argv[1]), [int(port) for port in sys.argv[2:]]))


if __name__ == "__main__":
    main()
