"""A mount whose rounds or reads fail all the time makes few requests, and recovers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.mails import received_at, text_mail
from tests.mounts import Home, Mounted
from tests.server import ControlClient, MethodFault, Status, server_process
from tests.waits import wait_until

pytestmark = pytest.mark.mount

SECONDS = 8


def deliver_for(control: ControlClient, seconds: float) -> int:
    """Deliver mail, so that push events are sent all the time; return how many requests came."""
    end = time.monotonic() + seconds
    before = control.counts().http_requests
    number = 0
    while time.monotonic() < end:
        control.add_email(text_mail(number), ["Inbox"], received_at=received_at(number))
        number += 1
        time.sleep(0.1)
    return control.counts().http_requests - before


def is_failing(mount: Mounted) -> bool:
    return bool(mount.status()["failures"] > 0)


@pytest.mark.parametrize(
    "quirks",
    [
        {"method_faults": [MethodFault("Mailbox/changes", "forbidden", count=-1)]},
        {"statuses": [Status("api", 404, count=-1)]},
    ],
)
def test_push_does_not_repeat_a_round_that_fails(home: Home, quirks: dict[str, Any]) -> None:
    with server_process("empty") as server:
        server.control.create_mailbox("Inbox", mailbox_id="Inbox")
        with home.mounted(server.url) as mount:
            wait_until(lambda: mount.status()["push"] is True)
            assert (mount.status()["failures"], mount.status()["next_try"]) == (0, None)
            server.control.set_quirks(**quirks)
            server.control.add_email(text_mail(0), ["Inbox"])
            wait_until(lambda: is_failing(mount))
            # Tries after 1, 4 and 8 seconds, of about five requests each.
            assert deliver_for(server.control, SECONDS) <= 25
            status = mount.status()
            assert status["failures"] >= 2
            assert status["next_try"] > status["since"]
            text = home.run("status", mount.path).stdout
            assert f"{status['failures']} times in a row, next try at {status['next_try']}" in text
            shown = (mount.path / ".jmapfs.json").read_text()
            assert status["next_try"] not in shown
            modified = (mount.path / ".jmapfs.json").stat().st_mtime
            refused = home.run("sync", mount.path)
            assert refused.exit_code == 6
            assert mount.status()["failures"] > status["failures"]
            assert (mount.path / ".jmapfs.json").stat().st_mtime == modified
            server.control.set_quirks(method_faults=[], statuses=[])
            # The user need not wait.
            assert home.run("sync", mount.path).exit_code == 0
            status = mount.status()
            assert (status["online"], status["failures"], status["next_try"]) == (True, 0, None)
            assert len(list((mount.path / "Inbox").iterdir())) > 10


def test_a_program_that_reads_a_lost_mail_in_a_loop(home: Home) -> None:
    with (
        server_process("sample") as server,
        home.mounted(server.url, "--poll-interval", "3600") as mount,
    ):
        wait_until(lambda: mount.status()["push"] is True)
        server.control.set_quirks(download_fault="not-found", blob_get=False)
        before = server.control.counts().http_requests
        path = next(iter(sorted((mount.path / "Inbox").glob("*.eml"))))
        end, reads = time.monotonic() + SECONDS, 0
        while time.monotonic() < end:
            assert not is_readable(path)
            reads += 1
        assert reads > 50
        assert server.control.counts().http_requests - before <= 40
        server.control.set_quirks(download_fault=None)
        mount.sync()
        assert is_readable(path)


def is_readable(path: Path) -> bool:
    try:
        path.read_bytes()
    except OSError:
        return False
    return True
