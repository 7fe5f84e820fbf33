"""A TCP relay in this process that counts what a server sends, and cuts the line where told to.

with Relay(account.http_port) as relay:
    relay.cut_after(100_000)
    ...
    relay.mend()
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from functools import partial
from typing import Self

_HOST = "127.0.0.1"
_PIECE = 65536


class Relay:
    """Leads from `port` to a port of this machine; `received` counts the server's bytes."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._limit: int | None = None
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self.received = 0

    def __enter__(self) -> Self:
        self._listening = socket.create_server((_HOST, 0))
        self.port: int = self._listening.getsockname()[1]
        self._run(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        # Closing alone does not wake who waits for a connection.
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._hang_up()
        for thread in self._threads:
            thread.join(10)

    def cut_after(self, count: int) -> None:
        """Let the server say so many more bytes, then break all connections, old and new."""
        with self._lock:
            self._limit = self.received + count

    def mend(self) -> None:
        """Let everything through again."""
        with self._lock:
            self._limit = None

    @property
    def is_cut(self) -> bool:
        """Whether the line is cut."""
        with self._lock:
            return self._limit is not None and self.received >= self._limit

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            if self.is_cut:
                client.close()
                continue
            try:
                server = socket.create_connection((_HOST, self._target))
            except OSError:
                client.close()
                continue
            self._run(partial(self._connect, client, server))

    def _connect(self, client: socket.socket, server: socket.socket) -> None:
        """Pass on both directions of a connection; close it when both have ended."""
        with client, server:
            self._open |= {client, server}
            back = threading.Thread(target=self._pass_on, args=(server, client, True), daemon=True)
            back.start()
            self._pass_on(client, server, False)  # noqa: FBT003 - as above, for a thread
            back.join()
            self._open -= {client, server}

    def _pass_on(self, source: socket.socket, target: socket.socket, counted: bool) -> None:  # noqa: FBT001
        with contextlib.suppress(OSError):
            target.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while data := source.recv(_PIECE):
                allowed = self._allowed(len(data)) if counted else len(data)
                target.sendall(data[:allowed])
                if allowed < len(data) or self.is_cut:
                    self._hang_up()
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

    def _hang_up(self) -> None:
        for one in list(self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _run(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, daemon=True)
        self._threads.append(thread)
        thread.start()
