"""The accounts that tests of snapshots share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests import corpus
from tests.cyrus import Account
from tests.snapshot.accounts import Stored, fill


@pytest.fixture(scope="module")
def stored(fresh_account: Callable[[], Account]) -> Stored:
    """All of the corpus."""
    account = fresh_account()
    mails = [*corpus.nasty_mails(), *(corpus.real_mails() or corpus.plain_mails())]
    return Stored(account, fill(account, list(dict.fromkeys(mails))))


@pytest.fixture
def few(cyrus_account: Account) -> Stored:
    """An account of sixty mails, for a test that changes it."""
    return Stored(cyrus_account, fill(cyrus_account, list(corpus.mails(60))))
