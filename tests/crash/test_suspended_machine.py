"""A machine that was suspended: its connections are dead, and nothing reports that."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mails import received_at, text_mail
from tests.mounts import Home, Mounted
from tests.relay import Relay
from tests.server import ServerProcess, server_process
from tests.waits import wait_until

pytestmark = pytest.mark.mount

# The difference of the clocks is the size of a file, in hours.
_PROGRAM = """
import os
from jmapfs import suspension
def differences(actual=suspension.clock_differences):
    boot, real = actual()
    return boot + os.stat({path!r}).st_size * 3600, real
suspension.SuspensionDetector.__init__.__defaults__ = (differences,)
from jmapfs.cli.main import main
main()
"""


class Machine:
    """A mount behind a relay, on a machine that can be suspended."""

    def __init__(self, server: ServerProcess, relay: Relay, mount: Mounted, clock: Path) -> None:
        self.server = server
        self.mount = mount
        self._relay = relay
        self._clock = clock

    def suspend_and_resume(self) -> None:
        self._relay.silence()
        with self._clock.open("a") as file:
            file.write("x")


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    clock = tmp_path / "clock"
    clock.touch()
    home = Home(tmp_path / "home", "alice@example.org", "secret")
    home.program = (sys.executable, "-c", _PROGRAM.format(path=str(clock)))
    with server_process("sample", absolute_urls=False) as server:
        port = int(server.url.split(":")[2].partition("/")[0])
        with Relay(port) as relay:
            url = server.url.replace(str(port), str(relay.port))
            with home.mounted(url, "--poll-interval", "3600") as mount:
                wait_until(lambda: mount.ask_status().accounts[0].push)
                yield Machine(server, relay, mount, clock)


def test_after_a_suspension_all_connections_are_new(machine: Machine) -> None:
    check_a_read(machine)
    check_a_read_under_way(machine)
    check_new_mail(machine)


def check_a_read(machine: Machine) -> None:
    """With a dead connection, it would wait for 18 seconds."""
    first, second, *_ = sorted((machine.mount.path / "Inbox").glob("*.eml"))
    assert first.read_bytes()
    machine.suspend_and_resume()
    began = time.monotonic()
    assert second.read_bytes()
    assert time.monotonic() - began < 5


def check_a_read_under_way(machine: Machine) -> None:
    """It is sent again, on a new connection."""
    mail = max((machine.mount.path / "Inbox").glob("*.eml"))
    machine.server.control.set_quirks(download_delay=1.0)
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(mail.read_bytes()))
    before = machine.mount.counts().http["requests"]
    reader.start()
    wait_until(lambda: machine.mount.counts().http["requests"] > before)
    machine.suspend_and_resume()
    machine.server.control.set_quirks(download_delay=0.0)
    reader.join(12)
    assert found
    assert found[0]


def check_new_mail(machine: Machine) -> None:
    """The event stream would be dead for two minutes."""
    machine.suspend_and_resume()
    inbox = machine.mount.path / "Inbox"
    before = len(list(inbox.iterdir()))
    box = machine.server.control.dump().mailbox("Inbox")
    machine.server.control.add_email(text_mail(1), [box.id], received_at=received_at(1))
    wait_until(lambda: len(list(inbox.iterdir())) == before + 1, 12)
    # Push works again.
    wait_until(lambda: machine.mount.ask_status().accounts[0].push, 5)
    machine.server.control.add_email(text_mail(2), [box.id], received_at=received_at(2))
    wait_until(lambda: len(list(inbox.iterdir())) == before + 2, 5)
