"""A lease keeps a mount frozen until it expires or is given back, and gives access to records."""

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

import pytest

from jmapfs.control import messages
from jmapfs.control.messages import (
    DescribeRequest,
    MailsRequest,
    RenewRequest,
    Request,
)
from jmapfs.errors import BusyError, NotMountedError, RelayedError, UsageError
from tests.mount.changing_account import (
    ChangingAccount,
    assert_live,
    read_state,
    small_emails,
    wait_until_thawed,
)
from tests.mounts import SHORT_LEASE, Home, Mounted
from tests.server import ServerProcess
from tests.waits import has_ended, wait_until

pytestmark = pytest.mark.mount

# Keeps the mount frozen with a lease of two seconds that is renewed every half second.
HOLDER = """
import sys
from pathlib import Path
from jmapfs.control import socket_client
socket_client.LEASE_SECONDS = 2.0
socket_client.RENEWAL_SECONDS = 0.5
with socket_client.FreezeLease(Path(sys.argv[1]), join=True) as lease:
    print("frozen", flush=True)
    sys.stdin.readline()
    print("renewed", lease.renew(), flush=True)
print("released", flush=True)
"""


@pytest.fixture
def server(account: ChangingAccount) -> ServerProcess:
    return account.server


@contextlib.contextmanager
def holder(mount: Mounted) -> Iterator[subprocess.Popen[str]]:
    """Another process that keeps the mount frozen."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(mount.path)],
        env=mount.home.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "frozen\n"
            yield process
        finally:
            process.kill()


def digests(mount: Mounted) -> dict[str, bytes]:
    """Return the SHA-256 of each email by its path."""
    return {path: sha256(data).digest() for path, data in mount.contents().items()}


# --- One state


def test_a_lease_keeps_one_state_among_changes(account: ChangingAccount, mount: Mounted) -> None:
    before = read_state(mount)
    emails = {email.id: email for email in account.control.dump().emails}
    status = mount.ask_status().accounts[0]
    with mount.leased() as frozen:
        for _ in range(3):
            account.churn()
            account.control.set_keywords(next(iter(emails)), ["$flagged"])
            mount.sync()
        assert read_state(mount) == before
        description = frozen.describe()
        assert description.email_state == status.state != mount.ask_status().accounts[0].state
        assert (description.account_id, description.server) == (status.account_id, status.server)
        assert description.username == "alice@example.org"
        assert description.mails == len(emails)
        assert {box.path: box.id for box in description.mailboxes} == account.ids
        found = frozen.emails()
        assert {one.id for one in found} == emails.keys()
        files = {path: one for one in found for _, path in one.files}
        contents = digests(mount)
        assert files.keys() == contents.keys()
        for path, one in files.items():
            email = emails[one.id]
            assert contents[path].hex() == email.sha256
            assert (one.blob_id, one.size) == (email.blob_id, len(before[path][1]))
            assert set(one.keywords) == set(email.keywords)
        work = frozen.emails("Work")
        assert {path for one in work for _, path in one.files} == {
            path for path in contents if path.startswith("Work/")
        }
        assert frozen.is_valid()
    assert_live(mount, account, before)


def test_requests_that_cannot_be_answered(mount: Mounted) -> None:
    with mount.leased() as frozen:
        lease = frozen.lease.id
        requests: list[Request[Any]] = [
            DescribeRequest(lease, "Nothing"),
            MailsRequest(lease, "Nothing", 0, 10),
            MailsRequest(lease, "", -1, 10),
            MailsRequest(lease, "", 0, 0),
            MailsRequest(lease, "", 0, 1 << 20),
            RenewRequest(lease, 0),
        ]
        for request in requests:
            with pytest.raises(RelayedError) as caught:
                mount.ask(request)
            assert caught.value.exit_code == UsageError.exit_code
        unknown: list[Request[Any]] = [
            DescribeRequest("other", ""),
            MailsRequest("other", "", 0, 10),
        ]
        for request in unknown:
            with pytest.raises(RelayedError) as caught:
                mount.ask(request)
            assert caught.value.exit_code == BusyError.exit_code
        assert frozen.is_valid()


def test_several_accounts(home: Home, server: ServerProcess) -> None:
    server.control.add_account("Ateam", "The Team")
    with closing(server.control.account("Ateam")) as team:
        inbox = team.create_mailbox("Inbox", mailbox_id="Inbox")
        team.add_emails(small_emails(0, 3, inbox))
        with home.mounted(server.url, "--all-accounts") as mount, mount.leased() as frozen:
            team.add_emails(small_emails(10, 1, inbox))
            mount.sync()
            with pytest.raises(RelayedError, match="name one of its directories"):
                frozen.describe()
            description = frozen.describe("The-Team")
            assert (description.account_id, description.root) == ("Ateam", "The-Team")
            assert (description.directory, description.mails) == ("", 3)
            found = frozen.emails("The-Team/Inbox")
            paths = {mount.path / "The-Team" / path for one in found for _, path in one.files}
            assert paths == set((mount.path / "The-Team" / "Inbox").iterdir())
            assert len(found) == 3


# --- How long it lasts


def test_the_figures_that_are_documented() -> None:
    assert messages.LEASE_SECONDS == 30
    assert messages.RENEWAL_SECONDS <= messages.LEASE_SECONDS / 3


def test_a_process_renews_its_lease_and_gives_it_back(
    account: ChangingAccount, mount: Mounted
) -> None:
    before = read_state(mount)
    with holder(mount) as process:
        account.churn()
        mount.sync()
        frozen = mount.status()["frozen"]
        # Longer than the lease.
        time.sleep(3)
        assert mount.status()["frozen"] == frozen
        assert read_state(mount) == before
        output, _ = process.communicate("\n", timeout=20)
    assert output == "renewed True\nreleased\n"
    assert not mount.is_frozen
    assert_live(mount, account, before)


def test_kill_9_of_a_process_lets_its_lease_expire(
    account: ChangingAccount, mount: Mounted
) -> None:
    before = read_state(mount)
    with holder(mount) as process:
        account.churn()
        mount.sync()
        assert read_state(mount) == before
        process.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        wait_until(lambda: not mount.is_frozen)
        assert time.monotonic() - killed < 4
    wait_until_thawed(mount)
    assert_live(mount, account, before)
    assert "its last lease has expired" in mount.home.log()


def test_a_stopped_process_loses_its_lease_and_notices_it(
    account: ChangingAccount, mount: Mounted
) -> None:
    before = read_state(mount)
    with holder(mount) as process:
        account.churn()
        mount.sync()
        process.send_signal(signal.SIGSTOP)
        wait_until_thawed(mount)
        assert_live(mount, account, before)
        process.send_signal(signal.SIGCONT)
        output, _ = process.communicate("\n", timeout=20)
    assert output == "renewed False\nreleased\n"


def test_a_killed_freeze_command_lets_its_lease_expire(home: Home, mount: Mounted) -> None:
    # Only `jmapfs freeze` is killed; the command continues.
    with subprocess.Popen(
        [
            *SHORT_LEASE,
            "freeze",
            mount.path,
            "sh",
            "-c",
            "echo $$; exec sleep 60",
        ],
        env=home.environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        command_pid = int(process.stdout.readline())
        assert mount.is_frozen
        process.kill()
        wait_until_thawed(mount)
        os.kill(command_pid, signal.SIGKILL)


def test_two_leases(home: Home, account: ChangingAccount, mount: Mounted) -> None:
    before = read_state(mount)
    with contextlib.ExitStack() as first, mount.leased() as second:
        one = first.enter_context(mount.leased())
        account.churn()
        mount.sync()
        assert one.emails() == second.emails()
        frozen = mount.status()["frozen"]
        assert (set(frozen), frozen["until"]) == ({"since", "until"}, None)
        assert "until a process releases it" in home.run("status", mount.path).stdout
        result = home.run("freeze", mount.path)
        assert result.exit_code == 9
        assert "frozen already, until a process releases it" in result.stderr
        first.close()
        assert mount.status()["frozen"] == frozen
        assert read_state(mount) == before
        assert not one.is_valid()
        assert second.is_valid()
    assert not mount.is_frozen
    assert_live(mount, account, before)


def test_a_lease_within_a_freeze(account: ChangingAccount, mount: Mounted) -> None:
    before = read_state(mount)
    mount.freeze(600)
    frozen = mount.status()["frozen"]
    account.churn()
    mount.sync()
    with mount.leased() as lease:
        # It is the state of the freeze, not the current one.
        assert {path for one in lease.emails() for _, path in one.files} == {
            path for path in before if path.endswith(".eml")
        }
        assert mount.status()["frozen"] == {**frozen, "until": None}
    assert mount.status()["frozen"] == frozen
    assert read_state(mount) == before
    assert mount.thaw()
    assert_live(mount, account, before)


def test_a_lease_outlasts_the_freeze_that_it_joined(
    account: ChangingAccount, mount: Mounted
) -> None:
    before = read_state(mount)
    mount.freeze(1)
    with mount.leased() as lease:
        account.churn()
        mount.sync()
        time.sleep(1.5)
        assert lease.is_valid()
        assert read_state(mount) == before
    assert not mount.is_frozen
    assert_live(mount, account, before)


def test_a_thaw_ends_all_leases(account: ChangingAccount, mount: Mounted) -> None:
    before = read_state(mount)
    with mount.leased() as frozen:
        account.churn()
        mount.sync()
        assert frozen.is_valid()
        assert mount.home.run("thaw", mount.path).exit_code == 0
        assert not frozen.is_valid()
        lost: list[Request[Any]] = [
            DescribeRequest(frozen.lease.id, ""),
            MailsRequest(frozen.lease.id, "", 0, 10),
        ]
        for request in lost:
            with pytest.raises(RelayedError, match="the freeze has ended") as caught:
                mount.ask(request)
            assert caught.value.exit_code == BusyError.exit_code
        assert_live(mount, account, before)
        # A lease that was lost does not end the freeze of another.
        again = read_state(mount)
        with mount.leased() as other:
            assert not frozen.is_valid()
            assert not mount.ask(messages.ThawRequest(frozen.lease.id)).was_frozen
            account.churn()
            mount.sync()
            assert other.is_valid()
            assert read_state(mount) == again
    assert_live(mount, account, again)


def test_one_freeze_after_another(account: ChangingAccount, mount: Mounted) -> None:
    for number in range(20):
        with mount.leased() as frozen:
            account.control.add_emails(small_emails(5000 + number, 1, account.ids["Work"]))
            mount.sync()
            assert frozen.is_valid()
            files = {path for one in frozen.emails(count=1000) for _, path in one.files}
            assert files == mount.files().keys()
    assert_live(mount, account, read_state(mount))


# --- The end of the mount


def test_umount_while_a_lease_is_on(account: ChangingAccount, mount: Mounted) -> None:
    pid = mount.status()["pid"]
    with mount.leased() as frozen:
        account.churn()
        mount.sync()
        mount.umount()
        assert has_ended(pid)
        assert not frozen.is_valid()
    with pytest.raises(NotMountedError), mount.leased():
        pass
    assert list(mount.path.iterdir()) == []


def test_a_daemon_that_dies_while_a_lease_is_on(mount: Mounted) -> None:
    pid = mount.status()["pid"]
    with mount.leased() as frozen:
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(NotMountedError):
            frozen.describe()


def test_a_lease_needs_a_mount_of_ours(home: Home, mount: Mounted) -> None:
    del mount
    arguments: list[Any] = [sys.executable, "-c", HOLDER, str(home.directory)]
    result = subprocess.run(
        arguments, env=home.environment, capture_output=True, text=True, check=False
    )
    assert "NotMountedError" in result.stderr
