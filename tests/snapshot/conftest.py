"""Accounts that the tests of snapshots share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests import corpus
from tests.cyrus import Account
from tests.snapshot.accounts import Stored, fill


@pytest.fixture(scope="module")
def stored(fresh_account: Callable[[], Account]) -> Stored:
    """An account with the whole corpus."""
    account = fresh_account()
    return Stored(account, fill(account, corpus.all_mails()))


@pytest.fixture
def few(cyrus_account: Account) -> Stored:
    """An account with sixty mails, for tests that change it."""
    return Stored(cyrus_account, fill(cyrus_account, list(corpus.mails(60))))
