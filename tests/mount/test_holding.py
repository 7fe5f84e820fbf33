"""A mount is held at one state for as long as somebody holds it, and tells what it holds."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from hashlib import sha256
from typing import Any

import msgspec
import pytest

from jmapfs.control.socket_client import Hold
from jmapfs.errors import BusyError, NotMountedError, RelayedError, UsageError
from jmapfs.index.rows import EmailRow as MailRecord
from tests.mount.test_freeze import (
    Mail,
    assert_live,
    freeze,
    new_emails,
    state,
    thaw,
    wait_until_thawed,
)
from tests.mount.test_life import has_ended
from tests.mounting import Home, Mounted, wait_until
from tests.server import ServerProcess, server_process

pytestmark = pytest.mark.mount

HOLDER = """
import sys, time
from pathlib import Path
from jmapfs.control.socket_client import hold
with hold(Path(sys.argv[1])) as held:
    print("held", held.ask("held")["held"], flush=True)
    time.sleep(60)
"""


@pytest.fixture
def server() -> Iterator[ServerProcess]:
    with server_process("empty") as server:
        yield server


@pytest.fixture
def mail(server: ServerProcess) -> Mail:
    return Mail(server)


@pytest.fixture
def mount(home: Home, mail: Mail) -> Iterator[Mounted]:
    with home.mounted(mail.server.url) as mount:
        yield mount


@contextlib.contextmanager
def holder(mount: Mounted) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the mount."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(mount.path)],
        env=mount.home.environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held True\n"
            yield process
        finally:
            process.kill()


def records(held: Hold, path: str = "", count: int = 7) -> list[MailRecord]:
    found: list[MailRecord] = []
    position: int | None = None
    while True:
        answer = held.ask("mails", {"path": path, "after": position, "count": count})
        found += msgspec.convert(answer["mails"], list[MailRecord])
        position = answer["after"]
        if position is None:
            return found


def shown(mount: Mounted) -> dict[str, bytes]:
    """Return the SHA-256 of each mail by its path."""
    return {path: sha256(data).digest() for path, data in mount.contents().items()}


def is_frozen(mount: Mounted) -> bool:
    return bool(mount.ask("status")["frozen"])


def is_held(held: Hold) -> bool:
    return bool(held.ask("held")["held"])


# --- One state


def test_a_hold_sees_one_state_among_changes(mail: Mail, mount: Mounted) -> None:
    before = state(mount)
    emails = {email.id: email for email in mail.control.dump().emails}
    about = mount.ask("status")
    with mount.held() as held:
        for _ in range(3):
            mail.churn()
            mail.control.set_keywords(next(iter(emails)), ["$flagged"])
            mount.sync()
        assert state(mount) == before
        description = held.ask("describe", {"path": ""})
        assert description["email_state"] == about["state"] != mount.ask("status")["state"]
        assert (description["account_id"], description["server"]) == (
            about["account_id"],
            about["server"],
        )
        assert description["username"] == "alice@example.org"
        assert description["mails"] == len(emails)
        assert {box["path"]: box["id"] for box in description["mailboxes"]} == mail.ids
        found = records(held)
        assert {one.id for one in found} == emails.keys()
        files = {path: one for one in found for _, path in one.files}
        contents = shown(mount)
        assert files.keys() == contents.keys()
        for path, one in files.items():
            email = emails[one.id]
            assert contents[path].hex() == email.sha256
            assert (one.blob_id, one.size) == (email.blob_id, len(before[path][1]))
            assert set(one.keywords) == set(email.keywords)
        work = records(held, "Work")
        assert {path for one in work for _, path in one.files} == {
            path for path in contents if path.startswith("Work/")
        }
        assert is_held(held)
    wait_until_thawed(mount)
    assert_live(mount, mail, before)


def test_what_cannot_be_asked(mount: Mounted) -> None:
    with mount.held() as held:
        for command, arguments in (
            ("describe", {"path": "Nothing"}),
            ("describe", {}),
            ("mails", {"path": "Nothing", "after": None, "count": 10}),
            ("mails", {"path": "", "after": -1, "count": 10}),
            ("mails", {"path": "", "after": None, "count": 0}),
            ("mails", {"path": "", "after": None, "count": 1 << 20}),
            ("sync", {}),
        ):
            with pytest.raises(RelayedError) as caught:
                held.ask(command, arguments)
            assert caught.value.exit_code == UsageError.exit_code
        assert is_held(held)


def test_several_accounts(home: Home, server: ServerProcess) -> None:
    Mail(server)
    server.control.add_account("Ateam", "The Team")
    with closing(server.control.account("Ateam")) as team:
        inbox = team.create_mailbox("Inbox", mailbox_id="Inbox")
        team.add_emails(new_emails(0, 3, inbox))
        with home.mounted(server.url, "--all-accounts") as mount, mount.held() as held:
            team.add_emails(new_emails(10, 1, inbox))
            mount.sync()
            with pytest.raises(RelayedError, match="name one of its directories"):
                held.ask("describe", {"path": ""})
            account = held.ask("describe", {"path": "The-Team"})
            assert (account["account_id"], account["root"]) == ("Ateam", "The-Team")
            assert (account["directory"], account["mails"]) == ("", 3)
            found = records(held, "The-Team/Inbox")
            paths = {mount.path / "The-Team" / path for one in found for _, path in one.files}
            assert paths == set((mount.path / "The-Team" / "Inbox").iterdir())
            assert len(found) == 3


# --- How long it lasts


def test_kill_9_of_the_holder_thaws_at_once(mail: Mail, mount: Mounted) -> None:
    before = state(mount)
    with holder(mount) as process:
        mail.churn()
        mount.sync()
        assert state(mount) == before
        process.send_signal(signal.SIGKILL)
        began = time.monotonic()
        wait_until(lambda: not is_frozen(mount), seconds=5)
        assert time.monotonic() - began < 2
    wait_until_thawed(mount)
    assert_live(mount, mail, before)


def test_two_who_hold_it(home: Home, mail: Mail, mount: Mounted) -> None:
    before = state(mount)
    with contextlib.ExitStack() as first, mount.held() as second:
        one = first.enter_context(mount.held())
        mail.churn()
        mount.sync()
        assert records(one) == records(second)
        frozen = mount.status()["frozen"]
        assert (set(frozen), frozen["until"]) == ({"since", "until"}, None)
        assert "for as long as somebody holds it" in home.run("status", mount.path).stdout
        result = home.run("freeze", mount.path)
        assert result.exit_code == 9
        assert "frozen already, for as long as somebody holds it" in result.stderr
        first.close()
        assert mount.status()["frozen"] == frozen
        assert state(mount) == before
        assert is_held(second)
    wait_until_thawed(mount)
    assert_live(mount, mail, before)


def test_a_hold_within_a_freeze(mail: Mail, mount: Mounted) -> None:
    before = state(mount)
    freeze(mount)
    frozen = mount.status()["frozen"]
    mail.churn()
    mount.sync()
    with mount.held() as held:
        assert is_held(held)
        # It is the state of the freeze, not that of now.
        assert {path for one in records(held) for _, path in one.files} == {
            path for path in before if path.endswith(".eml")
        }
        assert mount.status()["frozen"] == frozen
    time.sleep(0.3)
    assert mount.status()["frozen"] == frozen
    assert state(mount) == before
    thaw(mount)
    assert_live(mount, mail, before)


@pytest.mark.parametrize("by", ["thaw", "expiry"])
def test_the_end_of_a_freeze_is_the_end_of_those_who_hold_it(
    mail: Mail, mount: Mounted, by: str
) -> None:
    before = state(mount)
    if by == "expiry":
        # Without a process, which may take longer to start than this lasts.
        mount.ask("freeze", seconds=2)
    with mount.held() as held:
        mail.churn()
        mount.sync()
        if by == "thaw":
            assert is_held(held)
            thaw(mount)
        wait_until(lambda: not is_held(held))
        for command in ("describe", "mails"):
            with pytest.raises(RelayedError, match="the freeze has ended") as caught:
                held.ask(command, {"path": "", "after": None, "count": 10})
            assert caught.value.exit_code == BusyError.exit_code
        wait_until_thawed(mount)
        assert_live(mount, mail, before)
        # Somebody else's is not ended when the first lets go of what is no more.
        again = state(mount)
        with mount.held() as other:
            assert not is_held(held)
            held._connection.close()
            mail.churn()
            mount.sync()
            assert is_held(other)
            assert state(mount) == again
    wait_until_thawed(mount)
    assert_live(mount, mail, again)


def test_one_after_the_other(mail: Mail, mount: Mounted) -> None:
    """The end of a hold and the beginning of the next may meet in any way."""
    for _ in range(20):
        with mount.held() as held:
            mail.control.add_emails(
                new_emails(int(time.time() * 1000) % 10**9, 1, mail.ids["Work"])
            )
            mount.sync()
            assert is_held(held)
            files = {path for one in records(held, count=1000) for _, path in one.files}
            assert files == mount.files().keys()
    wait_until_thawed(mount)
    assert_live(mount, mail, state(mount))


# --- The end of the mount


def test_umount_while_held(mail: Mail, mount: Mounted) -> None:
    pid = mount.status()["pid"]
    with mount.held() as held:
        mail.churn()
        mount.sync()
        mount.umount()
        assert has_ended(pid)
        with pytest.raises(NotMountedError):
            held.ask("held")
    with pytest.raises(NotMountedError), mount.held():
        pass
    assert list(mount.path.iterdir()) == []


def test_a_daemon_that_dies_while_held(mount: Mounted) -> None:
    pid = mount.status()["pid"]
    with mount.held() as held:
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(NotMountedError):
            held.ask("describe", {"path": ""})


def test_it_needs_a_mount_of_ours(home: Home, mount: Mounted) -> None:
    del mount
    arguments: list[Any] = [sys.executable, "-c", HOLDER, str(home.directory)]
    result = subprocess.run(
        arguments, env=home.environment, capture_output=True, text=True, check=False
    )
    assert "NotMountedError" in result.stderr
