"""A server that is stopped and started, and a server that begins again with empty accounts."""

from __future__ import annotations

import errno
import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import pytest

from tests import corpus
from tests.mail_server.account import MailAccount
from tests.mail_server.append import Message
from tests.mail_server.server import MailServer
from tests.mounts import Home, Mounted
from tests.snapshot.commands import dates, require_whole, take
from tests.waits import wait_until

pytestmark = pytest.mark.mount

_START = datetime(2024, 3, 1, tzinfo=UTC)
_COUNT = 12

_users = count(1)


@pytest.fixture
def account(private_mail_server: MailServer) -> MailAccount:
    return private_mail_server.add_user(f"user{next(_users)}")


@pytest.fixture
def home(account: MailAccount, tmp_path: Path) -> Home:
    return Home(tmp_path / "home", account.name, account.password)


def equal_sizes(kind: str) -> list[bytes]:
    """Return mails whose sizes do not tell them from those of another kind of five letters."""
    return [b"Subject: %b %03d\r\n\r\nText.\r\n" % (kind.encode(), n) for n in range(_COUNT)]


def deliver(account: MailAccount, mails: Iterable[bytes], *, days: int = 0) -> None:
    messages = [
        Message(mail, received=_START + timedelta(days=days, minutes=number))
        for number, mail in enumerate(mails)
    ]
    account.fill("INBOX", messages)


def read_all(mount: Mounted, *, directory: str = "") -> Counter[bytes]:
    return Counter(path.read_bytes() for path in (mount.path / directory).rglob("*.eml"))


def is_online(mount: Mounted) -> bool:
    return json.loads((mount.path / ".jmapfs.json").read_bytes())["online"] is True


def read_or_nothing(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def deliver_old(account: MailAccount, mails: Iterable[bytes]) -> None:
    """Deliver mail after other changes: a Cyrus that begins again must not have this state soon."""
    for kind in ("extra", "again"):
        account.expunge("INBOX", account.fill("INBOX", equal_sizes(kind)))
    deliver(account, mails)


def assert_unreadable(path: Path) -> None:
    with pytest.raises(OSError, check=lambda error: error.errno == errno.EIO):
        path.read_bytes()


def test_a_mount_that_begins_without_its_server(
    private_mail_server: MailServer, account: MailAccount, home: Home
) -> None:
    mails = list(corpus.mails(_COUNT))
    account.create_mailbox("Work")
    account.fill("INBOX", mails[:6])
    account.fill("Work", mails[6:])
    with home.mounted(account.url) as mount:
        before = mount.files()
        cached = read_all(mount, directory=account.inbox)
    private_mail_server.disconnect()
    with home.mounted(account.url) as mount:
        assert mount.result.stderr.count("offline") == 1
        assert set(mount.files()) == set(before)
        assert read_all(mount, directory=account.inbox) == cached
        assert_unreadable(min((mount.path / "Work").iterdir()))
        assert home.run("sync", mount.path).exit_code == 5
        private_mail_server.reconnect()
        account.append("INBOX", corpus.varied(mails[0], 1))
        # It comes back, and the mount finds out by itself.
        wait_until(lambda: is_online(mount), seconds=90)
        wait_until(lambda: len(list((mount.path / account.inbox).iterdir())) == 7)
        assert read_all(mount, directory="Work") == Counter(mails[6:])


def test_a_server_that_stops_and_starts_under_a_mount(
    private_mail_server: MailServer, account: MailAccount, home: Home, tmp_path: Path
) -> None:
    mails = equal_sizes("first")
    deliver(account, mails)
    with home.mounted(account.url, "--poll-interval", "1") as mount:
        paths = sorted((mount.path / account.inbox).iterdir())
        content = paths[0].read_bytes()
        private_mail_server.disconnect()
        assert home.run("sync", mount.path).exit_code == 5
        assert not is_online(mount)
        assert paths[0].read_bytes() == content
        assert_unreadable(paths[-1])
        assert home.run("snapshot", account.url, tmp_path / "dest").exit_code == 5
        private_mail_server.reconnect()
        account.move("INBOX", [1], "Trash" if "Trash" in account.mailbox_ids() else "INBOX")
        assert home.run("sync", mount.path).exit_code == 0
        assert read_all(mount) == Counter(mails)
        # Without a sync, the mount follows the account again as well.
        account.append("INBOX", b"Subject: later\r\n\r\n")
        wait_until(lambda: len(mount.files()) == _COUNT + 1, seconds=90)
        taken = take(home, account.url, tmp_path / "dest")
    require_whole(taken.path)


def test_an_account_that_is_reset_under_a_mount(
    private_mail_server: MailServer, account: MailAccount, home: Home, tmp_path: Path
) -> None:
    """James then uses the ids of the old mail for other mail, here of equal size."""
    old, new = equal_sizes("first"), equal_sizes("other")
    deliver_old(account, old)
    with home.mounted(account.url) as mount:
        paths = sorted((mount.path / account.inbox).iterdir())
        cached = {path: path.read_bytes() for path in paths[: _COUNT // 2]}
        taken = take(home, account.url, tmp_path / "dest")
        private_mail_server.reset()
        deliver(account, new, days=365)

        result = home.run("sync", mount.path)
        assert result.exit_code == 14, result
        assert f"{_COUNT} of {_COUNT} mails are gone" in result.stderr
        # The old tree stays. It shows old content or none.
        for path in paths:
            if path in cached:
                assert path.read_bytes() == cached[path]
            else:
                assert read_or_nothing(path) in {*old, None}
        assert home.run("snapshot", account.url, tmp_path / "dest").exit_code == 14
        assert dates(tmp_path / "dest") == [taken.path.name]

        assert home.run("sync", "--accept-deletions", mount.path).exit_code == 0
        assert read_all(mount) == Counter(new)
    again = take(home, account.url, tmp_path / "dest", "--max-gone", "100")
    require_whole(again.path)
    assert Counter(path.read_bytes() for path in again.path.rglob("*.eml")) == Counter(new)
    saved = [hashlib.sha256(path.read_bytes()).digest() for path in taken.path.rglob("*.eml")]
    assert Counter(saved) == Counter(hashlib.sha256(mail).digest() for mail in old)


def test_an_account_that_was_reset_while_it_was_not_mounted(
    private_mail_server: MailServer, account: MailAccount, home: Home
) -> None:
    """Ids, sizes and times are equal: only the subjects differ."""
    old, new = equal_sizes("first"), equal_sizes("other")
    deliver_old(account, old)
    with home.mounted(account.url) as mount:
        assert read_all(mount) == Counter(old)
    private_mail_server.reset()
    deliver(account, new)
    with home.mounted(account.url) as mount:
        if mount.status()["stale"]:
            assert home.run("sync", "--accept-deletions", mount.path).exit_code == 0
        assert read_all(mount) == Counter(new)
