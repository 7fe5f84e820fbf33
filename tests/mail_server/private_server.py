"""What the private servers have in common: a saved configuration, ports and a process group."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from signal import SIGCONT, SIGSTOP
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

from tests.mail_server import processes

GREETING_TIMEOUT = 30.0


class ServerConfig(Protocol):
    """The configuration of a server on loopback; it is a dataclass."""

    @property
    def directory(self) -> Path: ...
    @property
    def imap_port(self) -> int: ...
    @property
    def http_port(self) -> int: ...


C = TypeVar("C", bound=ServerConfig)


def save_config(config: ServerConfig, name: str) -> None:
    """Save a configuration as a file in the directory of its server."""
    saved = {**vars(config), "directory": str(config.directory)}
    (config.directory / name).write_text(json.dumps(saved))


def load_config(make: Callable[..., C], directory: Path, name: str) -> C | None:
    """Return the configuration of the server in `directory`, if there is one."""
    try:
        saved: dict[str, Any] = json.loads((directory / name).read_text())
    except FileNotFoundError:
        return None
    return make(**{**saved, "directory": directory})


class PrivateServer(Generic[C]):
    """A server in its own directory; its ports never change. `group` is None if it is stopped."""

    PID_FILE: ClassVar[str]

    def __init__(self, config: C) -> None:
        self.config = config
        self.group: int | None = None
        self._passwords: dict[str, str] = {}

    @classmethod
    def existing(cls, config: C) -> Self:
        """Return the server of `config`, which another process may have started."""
        server = cls(config)
        with suppress(FileNotFoundError, ValueError):
            pid = int((config.directory / cls.PID_FILE).read_text())
            # Another process may have this PID now.
            if any(str(config.directory) in one for one in processes.command_line(pid)):
                server.group = pid
        return server

    @property
    def imap_port(self) -> int:
        return self.config.imap_port

    @property
    def http_port(self) -> int:
        return self.config.http_port

    @property
    def url(self) -> str:
        """The URL for discovery, which the server redirects to its session."""
        return f"http://127.0.0.1:{self.http_port}/.well-known/jmap"

    def pause(self) -> None:
        """Suspend the server: the kernel accepts connections, but nothing responds."""
        if self.group is not None:
            processes.send_signal(self.group, SIGSTOP)

    def resume(self) -> None:
        """Continue after `pause`."""
        if self.group is not None:
            processes.send_signal(self.group, SIGCONT)

    def _imap_greeting(self) -> str:
        address = ("127.0.0.1", self.imap_port)
        with suppress(OSError), socket.create_connection(address, GREETING_TIMEOUT) as connection:
            return connection.recv(1024).decode(errors="replace")
        return ""
