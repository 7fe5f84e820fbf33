"""Mail of another user: an account of its own in the session of the user who may read it."""

from __future__ import annotations

import json
from collections import Counter
from itertools import count
from pathlib import Path

import pytest

from tests.cyrus import Cyrus
from tests.james import James
from tests.mail_server.account import MailAccount
from tests.mail_server.server import MailServer
from tests.mails import list_mails
from tests.mounts import Home
from tests.snapshot.commands import require_whole, take

_numbers = count(1)


@pytest.fixture
def owner(mail_server: MailServer) -> MailAccount:
    account = mail_server.add_user(f"owner{next(_numbers)}")
    account.create_mailbox("Team")
    account.fill("Team", list_mails(0, 3))
    return account


@pytest.fixture
def reader(mail_server: MailServer) -> MailAccount:
    account = mail_server.add_user(f"reader{next(_numbers)}")
    account.fill("INBOX", list_mails(10, 2))
    return account


def allow(server: MailServer, owner: MailAccount, reader: MailAccount) -> None:
    """Let `reader` read the mail of `owner`: on James the whole account, on Cyrus the mailboxes."""
    if isinstance(server, James):
        server.delegate(owner, reader)
    else:
        assert isinstance(server, Cyrus)
        for name in ("INBOX", "Team"):
            owner.share(name, reader.name)


@pytest.mark.mount
def test_an_account_of_another_user(
    mail_server: MailServer, owner: MailAccount, reader: MailAccount, tmp_path: Path
) -> None:
    allow(mail_server, owner, reader)
    home = Home(tmp_path / "home", reader.name, reader.password)
    listed = json.loads(home.run("accounts", "--json", reader.url).stdout)
    assert {one["name"] for one in listed} == {owner.name, reader.name}
    with home.mounted(reader.url, "--account", owner.account_id) as mount:
        assert Counter(mount.contents().values()) == Counter(list_mails(0, 3))
        owner.append("Team", list_mails(20, 1)[0])
        mount.sync()
        assert Counter(mount.contents().values()) == Counter(list_mails(0, 3) + list_mails(20, 1))
    with home.mounted(reader.url, "--all-accounts") as mount:
        contents = [path.read_bytes() for path in mount.path.rglob("*.eml")]
    assert Counter(contents) == Counter(list_mails(0, 3) + list_mails(20, 1) + list_mails(10, 2))
    taken = take(home, reader.url, tmp_path / "dest", "--account", owner.account_id)
    require_whole(taken.path)
    assert len(taken.mails) == 4


@pytest.mark.mount
def test_the_own_account_has_only_own_mail(
    mail_server: MailServer, owner: MailAccount, reader: MailAccount, tmp_path: Path
) -> None:
    """Also on James, where a client may ask for mailboxes of others in the own account."""
    owner.share("Team", reader.name)
    home = Home(tmp_path / "home", reader.name, reader.password)
    with home.mounted(reader.url) as mount:
        assert Counter(mount.contents().values()) == Counter(list_mails(10, 2))
        assert home.run("sync", mount.path).exit_code == 0
        assert mount.status()["shortfall"] is None
    assert mail_server.groups
