"""Runs a private Apache James, which can be reset, disconnected and paused.

    with running_james() as james:
        account = james.add_user("alice")
        account.append("INBOX", b"Subject: Hello\r\n\r\nHello\r\n")

It keeps its mail in memory: `stop` loses mail and users. Clients reach JMAP through a relay
(`tests.james.front`), and `disconnect` ends the relay only.

It does not inherit the environment: the leak check in tests/leaks.py identifies the processes of a
test by a variable, but a server outlives the test that starts it.
"""

from __future__ import annotations

import http.client
import json
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.james import jars
from tests.james.account import Account
from tests.james.config import Config, write_config
from tests.mail_server import processes
from tests.mail_server.account import PASSWORD, MailAccount
from tests.mail_server.private_server import PrivateServer
from tests.mail_server.server import running
from tests.ports import TRIES, PortTakenError, free_ports

START_DEADLINE = 120.0
WEBADMIN_TIMEOUT = 30.0

DOMAIN = "example.org"

_ROOT = Path(__file__).parents[2]
_PORT_TAKEN = re.compile(r"BindException|Address already in use|Failed to bind")

# The first compiler alone and the serial collector: less CPU time for a server that lives briefly.
_JAVA_OPTIONS = (
    "-Xmx512m",
    "-XX:TieredStopAtLevel=1",
    "-XX:+UseSerialGC",
    "-XX:-UsePerfData",  # a file in /tmp, which a killed JVM leaves behind
    "-Djdk.tls.ephemeralDHKeySize=2048",
)


class James(PrivateServer[Config]):
    """A server in its own directory; `url` and the ports never change."""

    PID_FILE = "james.pid"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._java: subprocess.Popen[bytes] | None = None
        self._relay: subprocess.Popen[bytes] | None = None

    @property
    def groups(self) -> frozenset[int]:
        """The process groups of the server and of its relay."""
        relay = None if self._relay is None else self._relay.pid
        return frozenset(group for group in (self.group, relay) if group is not None)

    def start(self) -> None:
        """Start the server without mail and users, and wait until it responds."""
        if self.group is not None:
            return
        directory = self.config.directory
        with self._log.open("wb") as log:
            self._java = subprocess.Popen(
                [
                    shutil.which("java") or "java",
                    *_JAVA_OPTIONS,
                    f"-Dworking.directory={directory}",
                    f"-Dlogback.configurationFile={directory}/conf/logback.xml",
                    *("-cp", jars.directory() / "*"),
                    "org.apache.james.MemoryJamesServerMain",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
                cwd=directory,
                start_new_session=True,
            )
        self.group = self._java.pid
        running.add(self)
        try:
            self._pid_file.write_text(str(self.group))
            self._wait_until_ready()
            self._webadmin("PUT", f"/domains/{DOMAIN}")
            self.reconnect()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server, which loses its mail and users. Its ports then refuse connections."""
        self.disconnect()
        if self.group is None:
            return
        # It has nothing to save, and would take seconds to end by itself.
        processes.end(self.group, timeout=0)
        if self._java is not None:
            self._java.wait()
            self._java = None
        self._pid_file.unlink(missing_ok=True)
        self.group = None
        running.discard(self)

    def reset(self) -> None:
        """Start again with empty accounts of the same users: all ids begin from 1 again."""
        self.stop()
        self.start()
        for name, password in self._passwords.items():
            self.add_user(name, password)

    def disconnect(self) -> None:
        """Refuse JMAP connections and end those that are open; the mail stays, IMAP works."""
        if self._relay is not None:
            processes.end(self._relay.pid)
            self._relay.wait()
            self._relay = None

    def reconnect(self) -> None:
        """Accept JMAP connections again after `disconnect`."""
        if self._relay is not None or self.http_port == self.config.jmap_port:
            return
        with self._log.open("ab") as log:
            self._relay = subprocess.Popen(
                [
                    *(sys.executable, "-m", "tests.james.front"),
                    *(str(self.http_port), str(self.config.jmap_port)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": "/usr/bin:/bin"},
                cwd=_ROOT,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_DEADLINE
        while not _accepts(self.http_port):
            self._check(self._relay, deadline)
            time.sleep(0.02)

    def add_user(self, name: str, password: str = PASSWORD) -> Account:
        """Create a user and, with a first login, the account with its empty mailboxes."""
        account = self.account(name, password)
        path = f"/users/{account.name}"
        if self._webadmin_status("HEAD", path) != http.client.OK:
            self._webadmin("PUT", path, {"password": password})
        self._passwords[name] = password
        # Creates INBOX, Archive, Drafts, Outbox, Sent, Spam and Trash.
        account.mailbox_ids()
        return account

    def account(self, name: str, password: str = PASSWORD) -> Account:
        """Return access to an account, which need not exist; its user is `NAME@example.org`."""
        return Account(self.imap_port, self.http_port, f"{name}@{DOMAIN}", password)

    def delegate(self, owner: MailAccount, reader: MailAccount) -> None:
        """Give `reader` access to the whole account of `owner`: a second one in the session."""
        self._webadmin("PUT", f"/users/{owner.name}/authorizedUsers/{reader.name}")

    @property
    def _log(self) -> Path:
        return self.config.directory / "james.log"

    @property
    def _pid_file(self) -> Path:
        return self.config.directory / self.PID_FILE

    def _webadmin(self, method: str, path: str, body: dict[str, str] | None = None) -> None:
        status = self._webadmin_status(method, path, body)
        if status not in {http.client.OK, http.client.NO_CONTENT}:
            raise RuntimeError(f"James answered {method} {path} with {status}")

    def _webadmin_status(self, method: str, path: str, body: dict[str, str] | None = None) -> int:
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.config.webadmin_port, timeout=WEBADMIN_TIMEOUT
        )
        try:
            connection.request(
                method,
                path,
                json.dumps(body) if body else None,
                {"Content-Type": "application/json"},
            )
            response = connection.getresponse()
            response.read()
            return response.status
        finally:
            connection.close()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_DEADLINE
        assert self._java is not None
        while not self._is_healthy():
            self._check(self._java, deadline)
            time.sleep(0.1)
        greeting = self._imap_greeting()
        if self.config.servername not in greeting:
            raise PortTakenError(greeting)
        # The other ports have no name that identifies the server, but James ends without them.
        self._check(self._java, deadline)

    def _is_healthy(self) -> bool:
        with suppress(OSError, http.client.HTTPException):
            return self._webadmin_status("GET", "/healthcheck") == http.client.OK
        return False

    def _check(self, process: subprocess.Popen[bytes], deadline: float) -> None:
        """Raise an error if the process has ended or the deadline is over."""
        if process.poll() is not None:
            log = self._log.read_text(errors="replace")
            if taken := _PORT_TAKEN.search(log):
                raise PortTakenError(taken[0])
            raise RuntimeError(f"James ended during its start: {log[-4000:]}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"James does not respond within {START_DEADLINE:.0f} s")


@contextmanager
def running_james(*, jmap_version: str = "rfc-8621") -> Iterator[James]:
    """Run a server during the block, and remove it completely.

    With `jmap_version="draft"`, as in James's own default, clients must ask for RFC 8621.
    """
    if reason := jars.missing():
        raise RuntimeError(reason)
    with tempfile.TemporaryDirectory(prefix="james-") as new:
        james = start_new(Path(new), jmap_version=jmap_version)
        try:
            yield james
        finally:
            james.stop()


def start_new(directory: Path, *, relay: bool = True, jmap_version: str = "rfc-8621") -> James:
    """Start a server in `directory`, on free ports.

    Raises:
        PortTakenError: other processes took the ports every time.
    """
    for _ in range(TRIES):
        imap_port, jmap_port, webadmin_port, http_port = free_ports(4)
        config = Config(
            directory,
            servername=f"james-{secrets.token_hex(4)}.test",
            imap_port=imap_port,
            jmap_port=jmap_port,
            webadmin_port=webadmin_port,
            http_port=http_port if relay else jmap_port,
            jmap_version=jmap_version,
        )
        write_config(config)
        james = James(config)
        with suppress(PortTakenError):
            james.start()
            return james
    raise PortTakenError(f"another process took the port {TRIES} times")


def _accepts(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), WEBADMIN_TIMEOUT):
        return True
    return False
