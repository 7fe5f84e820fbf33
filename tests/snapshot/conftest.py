"""Accounts that the tests of snapshots share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests import corpus
from tests.cyrus import Account
from tests.cyrus_mail import StoredMail, store_mails


@pytest.fixture(scope="module")
def stored(fresh_account: Callable[[], Account]) -> StoredMail:
    """An account with the whole corpus."""
    return store_mails(fresh_account(), corpus.all_mails())


@pytest.fixture
def few(cyrus_account: Account) -> StoredMail:
    """An account with sixty mails, for tests that change it."""
    return store_mails(cyrus_account, list(corpus.mails(60)))
