"""A TCP relay in this process that counts the bytes of a server and can break connections.

with Relay(account.http_port) as relay:
    relay.break_after(100_000)
    ...
    relay.restore()
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from functools import partial
from typing import Self

_HOST = "127.0.0.1"
_CHUNK = 65536


class Relay:
    """Forwards `port` of `host` to a port of this machine; `received` counts the server's bytes."""

    def __init__(
        self, target: int, *, target_host: str = _HOST, host: str = _HOST, port: int = 0
    ) -> None:
        self.host = host
        self._target = target_host, target
        self._address = host, port
        self._lock = threading.Lock()
        self._limit: int | None = None
        self._sockets: set[socket.socket] = set()
        self._silent: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self.received = 0

    def __enter__(self) -> Self:
        self._listener = socket.create_server(self._address)
        self.port: int = self._listener.getsockname()[1]
        self._run(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        # Closing alone does not wake `accept`.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._shut_down()
        for thread in self._threads:
            thread.join(10)

    def break_after(self, count: int) -> None:
        """Break all connections, also new ones, after this many more bytes of the server."""
        with self._lock:
            self._limit = self.received + count

    def silence(self) -> None:
        """Drop all data of the present connections: they are dead, but do not end."""
        self._silent |= self._sockets

    def restore(self) -> None:
        """Forward everything again."""
        with self._lock:
            self._limit = None

    @property
    def is_broken(self) -> bool:
        """Whether connections are broken."""
        with self._lock:
            return self._limit is not None and self.received >= self._limit

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.is_broken:
                client.close()
                continue
            try:
                server = socket.create_connection(self._target)
            except OSError:
                client.close()
                continue
            self._run(partial(self._connect, client, server))

    def _connect(self, client: socket.socket, server: socket.socket) -> None:
        """Forward both directions of a connection; close it when both have ended."""
        with client, server:
            self._sockets |= {client, server}
            back = threading.Thread(target=self._forward, args=(server, client, True), daemon=True)
            back.start()
            self._forward(client, server, False)  # noqa: FBT003 - as above, for a thread
            back.join()
            self._sockets -= {client, server}

    def _forward(self, source: socket.socket, target: socket.socket, counted: bool) -> None:  # noqa: FBT001
        with contextlib.suppress(OSError):
            target.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while data := source.recv(_CHUNK):
                if source in self._silent:
                    continue
                allowed = self._allowed(len(data)) if counted else len(data)
                target.sendall(data[:allowed])
                if allowed < len(data) or self.is_broken:
                    self._shut_down()
                    break
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _allowed(self, count: int) -> int:
        with self._lock:
            if self._limit is not None:
                count = max(0, min(count, self._limit - self.received))
            self.received += count
            return count

    def _shut_down(self) -> None:
        for one in list(self._sockets):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _run(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, daemon=True)
        self._threads.append(thread)
        thread.start()
