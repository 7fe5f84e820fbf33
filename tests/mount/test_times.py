"""The times of directories in real mounts, compared in whole seconds as many tools do."""

from __future__ import annotations

import shutil
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.mails import fill_new_mailbox, text_mail
from tests.mounts import Home, Mounted
from tests.server import ControlClient, ServerProcess, server_process
from tests.watcher import QUIET

pytestmark = pytest.mark.mount

NAMES = ("Inbox", "Work", "Lists", "Still")


@dataclass(frozen=True)
class Account:
    """An account with some mailboxes, and the ids of them."""

    server: ServerProcess
    ids: dict[str, str]

    @property
    def control(self) -> ControlClient:
        return self.server.control

    def mail(self, mailbox: str) -> str:
        """Return the id of the first mail in a mailbox."""
        return self.control.dump().emails_in(self.ids[mailbox])[0].id


@pytest.fixture
def account() -> Iterator[Account]:
    with server_process("empty") as server:
        ids = {
            name: fill_new_mailbox(
                server.control, [text_mail(100 * number + each) for each in range(4)], name
            )
            for number, name in enumerate(NAMES)
        }
        yield Account(server, ids)


def times(mount: Mounted) -> dict[str, int]:
    """Return the time of each directory in seconds."""
    found = {}
    for path, status in mount.entries().items():
        if stat.S_ISDIR(status.st_mode):
            assert status.st_mtime_ns == status.st_ctime_ns == int(status.st_mtime) * 10**9
            found[path] = int(status.st_mtime)
    return found


def seconds(mount: Mounted, path: str) -> int:
    return int((mount.path / path).stat().st_mtime)


def test_each_change_moves_the_directories_that_it_concerns(account: Account, home: Home) -> None:
    control, ids = account.control, account.ids
    late, early = "2026-01-01T00:00:00Z", "2001-02-03T04:05:06Z"

    def arrival() -> None:
        control.add_email(text_mail(900), [ids["Inbox"]], received_at=late)

    def back_dated_import() -> None:
        control.add_email(text_mail(901), [ids["Inbox"]], received_at=early)

    def move() -> None:
        control.move_email(account.mail("Work"), ids["Work"], ids["Lists"])

    def delete() -> None:
        control.destroy_email(account.mail("Work"))

    def create_mailbox() -> None:
        ids["New"] = control.create_mailbox("New", ids["Lists"])

    def rename_mailbox() -> None:
        control.rename_mailbox(ids["New"], "Other")

    def delete_mailbox() -> None:
        control.destroy_mailbox(ids["New"])

    def rename_top_mailbox() -> None:
        control.rename_mailbox(ids["Work"], "Play")

    changes: dict[Callable[[], None], set[str]] = {
        arrival: {"Inbox"},
        back_dated_import: {"Inbox"},
        move: {"Work", "Lists"},
        delete: {"Work"},
        create_mailbox: {"Lists"},
        rename_mailbox: {"Lists"},
        delete_mailbox: {"Lists"},
        rename_top_mailbox: {""},
    }
    with (
        home.mounted(account.server.url, *QUIET) as mount,
        home.mounted(account.server.url, *QUIET, path=home.directory / "second") as second,
    ):
        for change, expected in changes.items():
            before = times(mount)
            assert times(second) == before
            control.set_keywords(account.mail("Still"), ["$seen"])
            mount.sync()
            assert times(mount) == before
            change()
            mount.sync()
            # The kernel answers from its cache, unless it was told of the change.
            there = [path for path in before if (mount.path / path).exists()]
            moved = {path for path in there if seconds(mount, path) != before[path]}
            assert moved == expected, change
            assert all(seconds(mount, path) > before[path] for path in moved)
            after = times(mount)
            assert {path: after[path] for path in there} == {
                path: seconds(mount, path) for path in there
            }
            # A directory that was renamed keeps its time.
            if change is rename_top_mailbox:
                assert after["Play"] == before["Work"]
            second.sync()
            assert times(second) == after
        kept = times(mount)
    with home.mounted(account.server.url, *QUIET) as mount:
        assert times(mount) == kept


def test_a_frozen_mount_keeps_the_times(account: Account, home: Home) -> None:
    with home.mounted(account.server.url, *QUIET) as mount:
        before = times(mount)
        mount.freeze(60)
        account.control.destroy_email(account.mail("Work"))
        mount.sync()
        assert times(mount) == before
        mount.thaw()
        assert seconds(mount, "Work") > before["Work"]
        assert times(mount) == before | {"Work": seconds(mount, "Work")}


def test_a_lost_index_has_the_time_of_its_next_listing(account: Account, home: Home) -> None:
    with home.mounted(account.server.url, *QUIET) as mount:
        account.control.destroy_email(account.mail("Work"))
        mount.sync()
        before = times(mount)
    shutil.rmtree(home.cache)
    began = int(time.time())
    with home.mounted(account.server.url, *QUIET) as mount:
        after = times(mount)
        assert after.keys() == before.keys()
        assert len(set(after.values())) == 1
        assert began <= after[""] <= time.time()
