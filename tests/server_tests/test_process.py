"""The server in its own process: control, pause, kill and restart."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

from tests.mails import new_emails, text_mail
from tests.server import ControlError, PageChange, Status, server_process

from .jmap_client import AUTH


def test_another_process_controls_the_server() -> None:
    with server_process("empty", max_objects_in_get=9) as server:
        control = server.control
        inbox = control.create_mailbox("Inbox", role="inbox")
        other = control.create_mailbox("..", inbox)
        first = control.add_email(b"\x00\xff raw", [inbox], ["$seen"], "1960-01-01T00:00:00Z")
        second, third = control.add_emails(new_emails(map(text_mail, range(2)), inbox, other))
        control.remove_email(second, other)
        control.move_email(third, inbox, other)
        control.copy_email(first, other)
        control.set_keywords(third, ["$flagged"])
        control.rename_mailbox(other, "Other")
        control.move_mailbox(other, None)
        dump = control.dump()
        assert [box.name for box in dump.mailboxes] == ["Inbox", "Other"]
        emails = {email.id: email for email in dump.emails}
        assert emails[first].received_at == "1960-01-01T00:00:00Z"
        assert sorted(emails[first].mailbox_ids) == sorted([inbox, other])
        assert (emails[second].mailbox_ids, emails[third].mailbox_ids) == ([inbox], [other])
        assert emails[third].keywords == ["$flagged"]
        assert control.blob(emails[first].blob_id) == b"\x00\xff raw"
        control.destroy_email(second)
        renamed = control.change_email_ids()
        assert set(renamed) == {first, third}
        assert set(control.change_mailbox_ids()) == {inbox, other}
        assert {email.id for email in control.dump().emails} == set(renamed.values())
        with pytest.raises(ControlError, match="unknown quirk"):
            control.set_quirks(nonsense=1)
        with pytest.raises(ControlError, match="KeyError"):
            control.destroy_email("Mx")
        control.set_quirks(
            statuses=[Status("session", 503)],
            page_changes=[PageChange(2, "destroy_email", {"email_id": "M"})],
        )
        assert control.quirks().max_objects_in_get == 9
        assert httpx.get(f"{server.url}/session").status_code == 503
        assert httpx.get(f"{server.url}/control/wrong/counts").status_code == 404
        counts = control.counts()
        assert (counts.http_requests, counts.endpoints["session"], counts.blobs["x"]) == (1, 1, 0)
        control.reset_counts()
        assert control.counts().http_requests == 0
        control.add_account("Ateam", "team@example.org")
        with control.account("Ateam") as team:
            assert team.dump().emails == []


def test_pause_kill_and_restart() -> None:
    with server_process("empty") as server:
        box = server.control.create_mailbox("Box")
        states = server.control.dump().states
        server.restart_on_same_port()
        assert server.control.dump().states == states
        server.pause()
        with pytest.raises(httpx.TimeoutException):
            httpx.get(f"{server.url}/session", auth=AUTH, timeout=0.2)
        server.resume()
        assert httpx.get(f"{server.url}/session", auth=AUTH).status_code == 200
        server.kill()
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.url}/session", auth=AUTH)
        server.restart_on_same_port()
        assert server.control.dump().mailboxes[0].id == box
        server.restart_on_same_port(keep=False)
        assert server.control.dump().mailboxes == []
        assert server.stderr == ""
        server.pause()
        pid = server.pid
    assert not psutil.pid_exists(pid)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_serves_until_a_signal(number: signal.Signals, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    command = [sys.executable, "-m", "tests.server", "--account", "empty"]
    start = time.monotonic()
    with subprocess.Popen(
        [*command, "--username", "u", "--password", "p", "--ready-file", str(ready)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        url = process.stdout.readline().strip()
        assert time.monotonic() - start < 30
        assert json.loads(ready.read_text())["url"] == url
        assert httpx.get(f"{url}/session", auth=("u", "p")).status_code == 200
        process.send_signal(number)
        assert process.wait(30) == 0
        assert process.stderr.read() == ""


def test_the_server_ends_with_its_stdin() -> None:
    command = [sys.executable, "-m", "tests.server", "--account", "empty", "--stop-with-stdin"]
    with subprocess.Popen(
        command,
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"http://127.0.0.1:")
        process.stdin.close()
        assert process.wait(30) == 0


def test_a_failed_start_gives_the_reason() -> None:
    with pytest.raises(RuntimeError, match="use sample, hostile"), server_process("nonsense"):
        pass
