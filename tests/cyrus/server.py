"""One private Cyrus: started, stopped and started again, paused, and gone without a trace.

    with running_cyrus() as cyrus:
        account = cyrus.add_user("alice")
        account.append("INBOX", b"Subject: Hello\r\n\r\nHello\r\n")

It listens on two loopback ports of its own, below the range from which the kernel takes those of
outgoing connections, so that they are still free when the server comes back after a `stop`.

No environment is handed down to it: the leak check in tests/conftest.py knows the processes of a
test by a variable in theirs, and a server outlives the test in which it forks.
"""

from __future__ import annotations

import http.client
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from signal import SIGCONT, SIGSTOP

from tests.cyrus import processes
from tests.cyrus.account import PASSWORD, Account
from tests.cyrus.config import MASTER, Config, lay_out, missing, set_password
from tests.ports import TRIES, PortTakenError, free_ports

START_DEADLINE = 30.0

#: The servers of this process that run now.
running: set[Cyrus] = set()


class Cyrus:
    """A server in a directory of its own; `url` and the ports stay the same for its life."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.group: int | None = None
        self._master: subprocess.Popen[bytes] | None = None

    @classmethod
    def found(cls, config: Config) -> Cyrus:
        """Return the server of `config`, which another process may have left running."""
        cyrus = cls(config)
        with suppress(FileNotFoundError, ValueError):
            pid = int((config.directory / "master.pid").read_text())
            # By now the number may be somebody else's.
            if any(str(config.directory) in one for one in processes.command_line(pid)):
                cyrus.group = pid
        return cyrus

    @property
    def imap_port(self) -> int:
        return self.config.imap_port

    @property
    def http_port(self) -> int:
        return self.config.http_port

    @property
    def url(self) -> str:
        """The session URL, by discovery: Cyrus redirects it to `/jmap`, with status 301."""
        return f"http://127.0.0.1:{self.http_port}/.well-known/jmap"

    def start(self) -> None:
        """Start it, with the mail it had, and wait until IMAP and HTTP answer."""
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
        """End it; the mail stays. Its ports refuse connections from then on."""
        if self.group is None:
            return
        processes.end(self.group)
        if self._master is not None:
            self._master.wait()
            self._master = None
        self.group = None
        running.discard(self)

    def pause(self) -> None:
        """Freeze it: connections are accepted by the kernel, and nothing ever answers."""
        if self.group is not None:
            processes.tell(self.group, SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        if self.group is not None:
            processes.tell(self.group, SIGCONT)

    def add_user(self, name: str, password: str = PASSWORD) -> Account:
        """Make a user and, by a first login, the account with its empty INBOX."""
        set_password(self.config, name, password)
        account = self.account(name, password)
        with account.imap():
            return account

    def account(self, name: str, password: str = PASSWORD) -> Account:
        """Return access to an account, whether it exists or not."""
        return Account(self.imap_port, self.http_port, name, password)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_DEADLINE
        for answer in (self._imap_greeting, self._http_realm):
            while not (said := answer()):
                if self._master is not None and self._master.poll() is not None:
                    log = (self.config.directory / "master.log").read_text(errors="replace")
                    msg = f"Cyrus ended at once: {log}"
                    raise RuntimeError(msg)
                if time.monotonic() > deadline:
                    msg = f"Cyrus does not answer within {START_DEADLINE:.0f} s"
                    raise TimeoutError(msg)
                time.sleep(0.01)
            if self.config.servername not in said:
                raise PortTakenError(said)

    def _imap_greeting(self) -> str:
        with (
            suppress(OSError),
            socket.create_connection(("127.0.0.1", self.imap_port), START_DEADLINE) as connection,
        ):
            return connection.recv(1024).decode(errors="replace")
        return ""

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
    """Run a server for as long as the context lasts, and leave nothing of it behind.

    Its files lie in a new folder in `directory`, by default in memory where there is room. All
    the folders above it must be open to Cyrus, which pytest's `tmp_path` is not.
    """
    if reason := missing():
        raise RuntimeError(reason)
    with tempfile.TemporaryDirectory(prefix="cyrus-", dir=directory or _roomy()) as place:
        cyrus = start_new(Path(place))
        try:
            yield cyrus
        finally:
            cyrus.stop()


def start_new(directory: Path) -> Cyrus:
    """Start a server with no mail in `directory`, on ports that nobody has."""
    for _ in range(TRIES):
        imap_port, http_port = free_ports(2)
        name = f"cyrus-{secrets.token_hex(4)}.test"
        config = Config(directory, name, imap_port, http_port)
        lay_out(config)
        cyrus = Cyrus(config)
        with suppress(PortTakenError):
            cyrus.start()
            return cyrus
    msg = f"{TRIES} times somebody else took the port"
    raise PortTakenError(msg)


def _roomy() -> Path:
    """Return where files are quick to write: Cyrus syncs after every message."""
    memory = Path("/dev/shm")
    if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2 * 2**30:
        return memory
    return Path(tempfile.gettempdir())
