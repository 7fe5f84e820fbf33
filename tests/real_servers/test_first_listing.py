"""Mail is expunged all through a first listing: mount, snapshot and IMAP agree in the end."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Self

import pytest

from tests.mail_server.account import MailAccount
from tests.mounts import Home
from tests.snapshot.commands import require_whole, take

_COUNT = 1200


class Expunger:
    """Expunges every other mail of the inbox in a thread, a few at a time."""

    def __init__(self, account: MailAccount, first: int) -> None:
        self._account = account
        self._first = first
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.expunged = 0
        self.error: BaseException | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        assert self.error is None
        assert self.expunged > 0

    def _run(self) -> None:
        try:
            for uid in range(self._first, _COUNT + 1, 8):
                if self._stop.is_set():
                    return
                self._account.expunge("INBOX", [uid, uid + 2])
                self.expunged += 2
        except BaseException as error:  # noqa: BLE001 - raised in the test
            self.error = error


@pytest.fixture
def account(mail_account: MailAccount) -> MailAccount:
    mail_account.fill("INBOX", [b"Subject: %04d\r\n\r\nText.\r\n" % n for n in range(_COUNT)])
    return mail_account


def on_imap(account: MailAccount) -> Counter[bytes]:
    """Return the mail of the inbox as IMAP has it."""
    with account.imap() as connection:
        connection.select("INBOX", readonly=True)
        _, parts = connection.uid("FETCH", "1:*", "(BODY.PEEK[])")
        return Counter(bytes(part[1]) for part in parts if isinstance(part, tuple))


@pytest.mark.mount
def test_a_mount(account: MailAccount, tmp_path: Path) -> None:
    home = Home(tmp_path / "home", account.name, account.password)
    with (
        Expunger(account, 1) as expunger,
        home.mounted(account.url, "--poll-interval", "3600") as mount,
    ):
        during = expunger.expunged
        assert during > 0
        expunger.stop()
        assert home.run("sync", mount.path).exit_code == 0
        remaining = on_imap(account)
        assert sum(remaining.values()) == _COUNT - expunger.expunged
        assert Counter(mount.contents().values()) == remaining
        status = mount.status()
        assert (status["bad"], status["shortfall"]) == ([], None)
        # Also a snapshot of the mount, and one that lists the account itself.
        by_mount = take(home, mount.path, tmp_path / "by-mount")
    other = Home(tmp_path / "other", account.name, account.password)
    by_account = take(other, account.url, tmp_path / "by-account")
    for taken in (by_mount, by_account):
        require_whole(taken.path)
        assert Counter(path.read_bytes() for path in taken.path.rglob("*.eml")) == remaining


def test_a_snapshot(account: MailAccount, tmp_path: Path) -> None:
    home = Home(tmp_path / "home", account.name, account.password)
    with Expunger(account, 2):
        first = take(home, account.url, tmp_path / "dest")
    require_whole(first.path)
    remaining = on_imap(account)
    saved = Counter(path.read_bytes() for path in first.path.rglob("*.eml"))
    # What was expunged after the snapshot's state may be in it, but nothing may be missing.
    assert not remaining - saved
    second = take(home, account.url, tmp_path / "dest")
    assert second.summary["fetched"] == 0
    assert Counter(path.read_bytes() for path in second.path.rglob("*.eml")) == remaining
