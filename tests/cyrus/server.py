"""Runs a private Cyrus, which can be stopped, restarted and paused.

    with running_cyrus() as cyrus:
        account = cyrus.add_user("alice")
        account.append("INBOX", b"Subject: Hello\r\n\r\nHello\r\n")

It listens on two ports of loopback that are not ephemeral ports, so that they are still free after
a `stop`.

It does not inherit the environment: the leak check in tests/leaks.py identifies the processes of a
test by a variable, but a server forks processes in one test that outlive it.
"""

from __future__ import annotations

import http.client
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.cyrus.account import Account
from tests.cyrus.config import MAIL_DIRECTORIES, MASTER, Config, missing, set_password, write_config
from tests.mail_server import processes
from tests.mail_server.account import PASSWORD
from tests.mail_server.private_server import PrivateServer
from tests.mail_server.server import running
from tests.ports import TRIES, PortTakenError, free_ports

START_DEADLINE = 30.0


class Cyrus(PrivateServer[Config]):
    """A server in its own directory; `url` and the ports never change."""

    PID_FILE = "master.pid"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._master: subprocess.Popen[bytes] | None = None

    @property
    def groups(self) -> frozenset[int]:
        """The process groups of the server."""
        return frozenset() if self.group is None else frozenset([self.group])

    def start(self) -> None:
        """Start the server with its mail, and wait until IMAP and HTTP respond."""
        if self.group is not None:
            return
        directory = self.config.directory
        with (directory / "master.log").open("ab") as log:
            self._master = subprocess.Popen(
                [
                    MASTER,
                    *("-C", directory / "imapd.conf"),
                    *("-M", directory / "cyrus.conf"),
                    *("-p", directory / "master.pid"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
                cwd="/",
                start_new_session=True,
            )
        self.group = self._master.pid
        running.add(self)
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server; its mail stays. Its ports then refuse connections."""
        if self.group is None:
            return
        processes.end(self.group)
        if self._master is not None:
            self._master.wait()
            self._master = None
        self.group = None
        running.discard(self)

    def disconnect(self) -> None:
        """Refuse connections and end those that are open; the mail stays."""
        self.stop()

    def reconnect(self) -> None:
        """Accept connections again after `disconnect`."""
        self.start()

    def reset(self) -> None:
        """Remove all mail and start again; users and ports stay. Their accounts are empty."""
        self.stop()
        for name in MAIL_DIRECTORIES:
            shutil.rmtree(self.config.directory / name)
        write_config(self.config)
        self.start()
        for user, password in self._passwords.items():
            self.add_user(user, password)

    def add_user(self, name: str, password: str = PASSWORD) -> Account:
        """Create a user and, with a first login, the account with its empty INBOX."""
        set_password(self.config, name, password)
        self._passwords[name] = password
        account = self.account(name, password)
        with account.imap():
            return account

    def account(self, name: str, password: str = PASSWORD) -> Account:
        """Return access to an account, which need not exist."""
        return Account(self.imap_port, self.http_port, name, password)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_DEADLINE
        for identify in (self._imap_greeting, self._http_realm):
            while not (identity := identify()):
                if self._master is not None and self._master.poll() is not None:
                    log = (self.config.directory / "master.log").read_text(errors="replace")
                    msg = f"Cyrus ended during its start: {log}"
                    raise RuntimeError(msg)
                if time.monotonic() > deadline:
                    msg = f"Cyrus does not respond within {START_DEADLINE:.0f} s"
                    raise TimeoutError(msg)
                time.sleep(0.01)
            if self.config.servername not in identity:
                raise PortTakenError(identity)

    def _http_realm(self) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, START_DEADLINE)
        with suppress(OSError, http.client.HTTPException):
            try:
                connection.request("GET", "/jmap/")
                response = connection.getresponse()
                response.read()
                return response.getheader("WWW-Authenticate") or f"HTTP {response.status}"
            finally:
                connection.close()
        return ""


@contextmanager
def running_cyrus(directory: Path | None = None) -> Iterator[Cyrus]:
    """Run a server during the block, and remove it completely.

    Its files are in a new subdirectory of `directory`, by default in memory if there is space. The
    user of Cyrus must be able to access the parents, unlike those of pytest's `tmp_path`.
    """
    if reason := missing():
        raise RuntimeError(reason)
    with tempfile.TemporaryDirectory(prefix="cyrus-", dir=directory or _default_directory()) as new:
        cyrus = start_new(Path(new))
        try:
            yield cyrus
        finally:
            cyrus.stop()


def start_new(directory: Path) -> Cyrus:
    """Start a server without mail in `directory`, on free ports.

    Raises:
        PortTakenError: other processes took the ports every time.
    """
    for _ in range(TRIES):
        imap_port, http_port = free_ports(2)
        name = f"cyrus-{secrets.token_hex(4)}.test"
        config = Config(directory, name, imap_port, http_port)
        write_config(config)
        cyrus = Cyrus(config)
        with suppress(PortTakenError):
            cyrus.start()
            return cyrus
    msg = f"another process took the port {TRIES} times"
    raise PortTakenError(msg)


def _default_directory() -> Path:
    """Return a directory in memory if possible: Cyrus syncs after every message."""
    memory = Path("/dev/shm")
    if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2 * 2**30:
        return memory
    return Path(tempfile.gettempdir())
