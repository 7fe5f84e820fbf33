"""Accounts that the tests of snapshots share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests import corpus
from tests.cyrus import Account
from tests.snapshot.served import ServedAccount, served_account
from tests.stored_mail import StoredMail, store_mails


@pytest.fixture(scope="module")
def stored(fresh_account: Callable[[], Account]) -> StoredMail:
    """An account with the whole corpus."""
    return store_mails(fresh_account(), corpus.all_mails())


@pytest.fixture
def few(cyrus_account: Account) -> StoredMail:
    """An account with sixty mails, for tests that change it."""
    return store_mails(cyrus_account, list(corpus.mails(60)))


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[ServedAccount]:
    """An account on a server in this process."""
    async with served_account(tmp_path) as served:
        yield served
