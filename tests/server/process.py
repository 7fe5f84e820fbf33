"""Runs the server in its own process, for tests without trio or that pause and kill it."""

from __future__ import annotations

import errno
import os
import secrets
import selectors
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from tests.ports import TRIES, PortTakenError, free_ports

from .control_client import ControlClient
from .launcher import ForkedServer, start_server

_START_SECONDS = 30
_STOP_SECONDS = 5
_TAKEN = os.strerror(errno.EADDRINUSE)
TOKEN_VARIABLE = "JMAP_SERVER_CONTROL_TOKEN"


class ServerProcess:
    """A running server; `server_process` creates and ends it."""

    def __init__(self, arguments: list[str], directory: Path, port: int = 0) -> None:
        self._arguments = arguments
        self._saved = directory / "saved"
        self._stderr_path = directory / "stderr"
        self._token = secrets.token_urlsafe(16)
        self._process: ForkedServer | None = None
        self.url = self._start_on(port) if port else self._start_somewhere()
        self.control = ControlClient(f"{self.url}/control/{self._token}")

    @property
    def pid(self) -> int:
        return self._running().pid

    @property
    def stderr(self) -> str:
        """What the server has written to stderr so far."""
        return self._stderr_path.read_text(errors="replace")

    def stop(self) -> None:
        """Terminate the server as systemd does; do nothing if it has ended."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGCONT)
        self._process.send_signal(signal.SIGTERM)
        if self._process.wait(_STOP_SECONDS):
            self._forget()
        else:
            self.kill()

    def kill(self) -> None:
        """Kill the server, like a power failure."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            assert self._process.wait(_STOP_SECONDS)
            self._forget()

    def pause(self) -> None:
        """Suspend the server: connections stay open, but nothing is answered, not even control."""
        self._running().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._running().send_signal(signal.SIGCONT)

    def restart_on_same_port(self, *, keep: bool = True) -> None:
        """Restart the server at the same URL, with new counts.

        With `keep`, the accounts with their states, the credentials and the quirks are restored; a
        server that was killed gets those of the last `control.save`, or of the start. Without,
        everything is as at the start, and all old states are unknown.
        """
        if keep and self._process is not None:
            self.control.save(self._saved)
        self.stop()
        port = int(self.url.rpartition(":")[2])
        load = ["--load", str(self._saved)] if keep and self._saved.exists() else []
        self.url = self._start_on(port, *load)

    def _start_somewhere(self) -> str:
        for _ in range(TRIES):
            [port] = free_ports(1)
            # Another process may have taken the port meanwhile.
            with suppress(PortTakenError):
                return self._start_on(port)
            self._stderr_path.unlink()
        raise PortTakenError(f"another process took the port {TRIES} times")

    def _start_on(self, port: int, *options: str) -> str:
        arguments = [*self._arguments, "--port", str(port), *options]
        with self._stderr_path.open("ab") as stderr:
            # The server ends when its stdin closes: it must not outlive its test.
            self._process = start_server(
                ["--stop-with-stdin", *arguments], {TOKEN_VARIABLE: self._token}, stderr.fileno()
            )
        line = _first_line(self._process.stdout)
        if not line.startswith("http://"):
            self.kill()
            reason = f"the test server did not start: {line!r}\n{self.stderr}"
            raise PortTakenError(reason) if _TAKEN in self.stderr else RuntimeError(reason)
        return line

    def _running(self) -> ForkedServer:
        if self._process is None:
            raise RuntimeError("the test server is not running")
        return self._process

    def _forget(self) -> None:
        self._running().close()
        self._process = None


@contextmanager
def server_process(
    account: str = "sample",
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    username: str | None = None,
    password: str | None = None,
    token: str | None = None,
    blob_ids: str = "plain",
    **quirks: Any,
) -> Iterator[ServerProcess]:
    """Run a server during the block; `account` is sample, hostile, empty, large:N or
    mailbox:N (as large, but in one mailbox).

    Further arguments are fields of Quirks, set once it runs.
    """
    arguments = ["--host", host, "--account", account, "--blob-ids", blob_ids]
    for option, value in (("--username", username), ("--password", password), ("--token", token)):
        if value is not None:
            arguments += [option, value]
    with tempfile.TemporaryDirectory(prefix="jmap-server-") as directory:
        server = ServerProcess(arguments, Path(directory), port)
        try:
            if quirks:
                server.control.set_quirks(**quirks)
            yield server
        finally:
            server.control.close()
            # Not stopped: it has nothing to save, and would wait for its connections.
            server.kill()


def _first_line(pipe: IO[bytes]) -> str:
    """Return the first line that the server prints, or a part of it at its end or deadline."""
    deadline = time.monotonic() + _START_SECONDS
    line = b""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while not line.endswith(b"\n") and selector.select(deadline - time.monotonic()):
            more = os.read(pipe.fileno(), 1000)
            if not more:
                break
            line += more
    return line.decode().strip()
