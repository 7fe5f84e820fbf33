"""A TCP proxy that makes a server look far away: every byte is half a round trip under way.

with delayed(account.imap_port, account.http_port, seconds=0.05) as (imap_port, http_port):
    ...

Nothing but time is taken away: there is no limit on bandwidth and no loss, the order stays, and
bytes that come together leave together. A new connection costs one round trip, as the handshake
does: what the client sends first waits for that, and the server is connected to when it would
have learnt of the client, so that a server that speaks first is heard after two round trips.

Both ends are acknowledged at once (TCP_QUICKACK, TCP_NODELAY): what a Nagle algorithm at one end
waits for is then a matter of microseconds, where a real line would make it wait for a round trip.
That flatters whoever sends a request or an answer in pieces, and so no peer is put at a
disadvantage by loopback's delayed ACKs of 40 ms.

It is a process of its own, so that it shares no interpreter with what is measured. It ends when
its standard input does, at the latest with whoever started it.
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
    """Run a proxy with this round-trip time; give the ports that lead to `ports`, in order.

    Raises:
        RuntimeError: it does not start.
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
            # Closes its standard input, and so ends it.
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


class _Line:
    """One direction of a connection: what is sent arrives in order, each after its time.

    One that is not open yet keeps what it is given.
    """

    def __init__(self, seconds: float, *, is_open: bool) -> None:
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[float, Callable[[], None]]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._is_open = is_open

    def open(self) -> None:
        """Let through what waits, and from now on everything."""
        self._is_open = True
        self._arrive()

    def send(self, deliver: Callable[[], None], *, no_sooner_than: float = 0) -> None:
        """Call `deliver` when the time on the way is over, counted from `no_sooner_than`."""
        due = max(self._loop.time(), no_sooner_than) + self._seconds
        self._waiting.append((due, deliver))
        if self._is_open and self._timer is None:
            self._timer = self._loop.call_at(due, self._arrive)

    def cut(self) -> None:
        """Lose what is under way."""
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


class _End(asyncio.Protocol):
    """One end of a connection: what it says goes down a line to the other end."""

    def __init__(self, line: _Line, *, no_sooner_than: float = 0) -> None:
        self.line = line
        self.other: _End | None = None
        self.transport: asyncio.Transport | None = None
        self._no_sooner_than = no_sooner_than
        self._said_all = self._heard_all = False

    def hear(self, data: bytes) -> None:
        """Hand on what the other end said."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    def hear_end(self) -> None:
        """Hand on that the other end says no more; the connection is over when both do not."""
        self._heard_all = True
        if self.transport is not None:
            # It may have been reset a moment ago, of which asyncio is about to tell.
            with contextlib.suppress(OSError):
                self.transport.write_eof()
            if self._said_all:
                self.transport.close()

    def close(self) -> None:
        """Close it behind what is still to be heard."""
        if self.transport is not None:
            self.transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        assert self.transport is not None
        # The kernel forgets it after some segments.
        connection: socket.socket = self.transport.get_extra_info("socket")
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        self._tell(lambda other: other.hear(data))

    def eof_received(self) -> bool:
        self._said_all = True
        self._tell(lambda other: other.hear_end())
        # True keeps it open for what is still to be heard.
        return not self._heard_all

    def connection_lost(self, error: Exception | None) -> None:
        del error
        self.transport = None
        self._tell(lambda other: other.close())
        if self.other is not None:
            self.other.line.cut()

    def pause_writing(self) -> None:
        # Who reads slowly is not to fill our memory.
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.resume_reading()

    def _tell(self, what: Callable[[_End], None]) -> None:
        def deliver() -> None:
            if self.other is not None:
                what(self.other)

        self.line.send(deliver, no_sooner_than=self._no_sooner_than)


class _Client(_End):
    """The end at the client, which makes the other one."""

    def __init__(self, port: int, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        accepted = loop.time()
        super().__init__(_Line(seconds / 2, is_open=False), no_sooner_than=accepted + seconds)
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
            self.line.open()

    def _server(self) -> _End:
        server = _End(_Line(self._seconds / 2, is_open=True))
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
    # Ctrl-C in a terminal reaches all of a benchmark; this ends when what uses it has ended.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Not epoll, whose timeouts are whole milliseconds: ten of them would be a fifth of 50.
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(_serve(float(sys.argv[1]), [int(port) for port in sys.argv[2:]]))


if __name__ == "__main__":
    main()
