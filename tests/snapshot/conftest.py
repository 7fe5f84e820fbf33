"""The accounts that tests of snapshots share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests import corpus
from tests.cyrus import Account
from tests.cyrus_mail import StoredMail, store_mails


@pytest.fixture(scope="module")
def stored(fresh_account: Callable[[], Account]) -> StoredMail:
    """All of the corpus."""
    return store_mails(fresh_account(), corpus.all_mails())


@pytest.fixture
def few(cyrus_account: Account) -> StoredMail:
    """An account of sixty mails, for a test that changes it."""
    return store_mails(cyrus_account, list(corpus.mails(60)))
