"""A mount that is compared with its account, change by change. A module can override `account`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mail_server.account import MailAccount
from tests.mounts import Home, Mounted
from tests.watcher import QUIET, Watcher, fill_mailboxes, home_of


@pytest.fixture
def account(mail_account: MailAccount) -> MailAccount:
    """An account with some mail in nested mailboxes."""
    fill_mailboxes(mail_account)
    return mail_account


@pytest.fixture
def home(account: MailAccount, tmp_path: Path) -> Home:
    """A user's environment with the credentials of the account."""
    return home_of(account, tmp_path)


@pytest.fixture
def mount(account: MailAccount, home: Home) -> Iterator[Mounted]:
    """The account, mounted; it follows only `jmapfs sync` and push."""
    with home.mounted(account.url, *QUIET) as mount:
        yield mount


@pytest.fixture
def watcher(account: MailAccount, mount: Mounted) -> Watcher:
    """A comparison of the mount with its account."""
    return Watcher(mount, account)
