"""Snapshots of accounts whose server was reset, or that were emptied."""

from __future__ import annotations

import shutil

import pytest

from jmapfs.errors import TooMuchGoneError
from jmapfs.snapshot.create import create_snapshot
from jmapfs.snapshot.from_account import account_opener
from jmapfs.snapshot.repository import Repository
from tests.mails import text_mail
from tests.server import Account
from tests.snapshot.commands import RecordingReport, dates
from tests.snapshot.served import MAILS, ServedAccount


def day(minute: int) -> str:
    return f"2024-03-01T00:{minute:02}:00Z"


def reset(account: Account, first: int = 0, *, later: int = 0, equal_sizes: bool = False) -> None:
    """Give an account mails with the ids M1, M2 and so on. Their subjects begin at `first`."""
    mails = [text_mail(first + number, padding=50 - equal_sizes) for number in range(MAILS)]
    times = [day(number + later) for number in range(MAILS)]
    # Of the mail that arrives again, at least one has another time.
    times[0] = day(first)
    account.reset(mails, received_at=times, equal_sizes=equal_sizes)


@pytest.mark.parametrize("cache", ["kept", "deleted"])
@pytest.mark.parametrize("later", [0, 20])
async def test_a_reset_between_two_snapshots(served: ServedAccount, cache: str, later: int) -> None:
    """The ids and the sizes are the same again, and perhaps most times of receipt."""
    account = served.server.primary
    reset(account)
    await served.snapshot()
    reset(account, 50, later=later, equal_sizes=True)
    if cache == "deleted":
        shutil.rmtree(served.directory / "cache")
    if later:
        with pytest.raises(TooMuchGoneError):
            await served.snapshot()
        assert len(dates(served.dest)) == 1
    summary = await served.snapshot(max_gone=100)
    assert summary.fetched + summary.taken_over == MAILS
    again = await served.snapshot()
    assert (again.fetched, again.new, again.gone) == (0, 0, 0)


async def test_an_emptied_account(served: ServedAccount) -> None:
    """The index does not follow the server. So the old state can still be copied."""
    account = served.server.primary
    await served.snapshot()
    gone = list(account.emails)[1:]
    account.destroy_emails(gone)
    account.forget_changes()
    with pytest.raises(TooMuchGoneError, match="--max-gone 100"):
        await served.snapshot()
    assert len(dates(served.dest)) == 1
    assert (await served.snapshot(max_gone=100)).gone == len(gone)


async def test_the_old_state_of_an_emptied_account(served: ServedAccount) -> None:
    await served.snapshot()
    account = served.server.primary
    account.destroy_emails(list(account.emails)[1:])
    account.forget_changes()
    cache = served.directory / "cache"
    report = RecordingReport()
    async with account_opener(served.source, cache, report, allow_stale=True) as opener:
        summary = await create_snapshot(opener, Repository(served.dest), max_gone=50, report=report)
    assert (summary.mails, summary.gone, summary.fetched) == (MAILS + 1, 0, 0)
    assert "copying its state of" in report.notices[-1]
