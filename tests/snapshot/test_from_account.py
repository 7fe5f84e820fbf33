"""Snapshots of an account whose index another process keeps, and is just bringing up to date."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import trio

from jmapfs.account import AccountSource, WriterLease, account_directory
from jmapfs.errors import BusyError
from jmapfs.index.database import IndexDatabase
from jmapfs.index.reader import IndexReader
from jmapfs.index.rows import AccountState
from jmapfs.snapshot import from_account
from jmapfs.snapshot.create import create_snapshot
from jmapfs.snapshot.from_account import account_opener
from jmapfs.snapshot.repository import Repository
from jmapfs.snapshot.source import SnapshotSummary
from tests.server import Account, MailServer, running_server
from tests.snapshot.snapshots import Listener, dates, require_whole
from tests.sync.following import CREDENTIALS, message, small_account


@dataclass(frozen=True)
class Kept:
    """An account of which there is a snapshot, and whose index somebody else keeps now."""

    account: Account
    source: AccountSource
    directory: Path
    lead: WriterLease
    listener: Listener

    @property
    def dest(self) -> Path:
        return self.directory / "dest"

    def become(self, *, settled: bool) -> None:
        writer = self.lead.take()
        assert writer is not None
        with writer.transaction():
            writer.set_state(replace(writer.state(), consistent=settled))

    async def take(self, *, allow_stale: bool = False) -> SnapshotSummary:
        """Take another snapshot."""
        return await taken(self.source, self.directory, self.listener, allow_stale=allow_stale)


async def taken(
    source: AccountSource,
    directory: Path,
    listener: Listener,
    *,
    allow_stale: bool = False,
    dest: str = "dest",
) -> SnapshotSummary:
    cache = directory / "cache"
    async with account_opener(source, cache, listener, allow_stale=allow_stale) as opener:
        return await create_snapshot(
            opener, Repository(directory / dest), max_gone=50, report=listener
        )


@pytest.fixture
async def kept(tmp_path: Path) -> AsyncIterator[Kept]:
    server = MailServer([small_account()])
    async with running_server(server) as url:
        source = AccountSource("alice", f"{url}/session", CREDENTIALS)
        await taken(source, tmp_path, Listener())
        directory = account_directory(tmp_path / "cache", source)
        with WriterLease(directory, IndexDatabase(directory)) as lead:
            assert lead.try_now() is None
            yield Kept(server.primary, source, tmp_path, lead, Listener())


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> trio.Event:
    """Set when the state of the index was looked at."""
    event = trio.Event()
    pinned_state = from_account._pinned_state

    def looked_at(reader: IndexReader) -> AccountState:
        trio.from_thread.run_sync(event.set)
        return pinned_state(reader)

    monkeypatch.setattr(from_account, "_pinned_state", looked_at)
    return event


async def test_it_waits_for_a_state_of_the_account(kept: Kept, looked: trio.Event) -> None:
    kept.become(settled=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kept.take)
        with trio.fail_after(30):
            await looked.wait()
        await trio.sleep(2 * from_account._PAUSE_SECONDS)
        assert len(dates(kept.dest)) == 1
        kept.become(settled=True)
    assert kept.listener.notices == []
    assert len(dates(kept.dest)) == 2
    for date in dates(kept.dest):
        require_whole(kept.dest / date)


async def test_an_index_that_is_between_two_states_for_long(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(from_account, "_SETTLING_SECONDS", 0.05)
    kept.become(settled=False)
    with pytest.raises(BusyError, match="try again later"):
        await kept.take()
    assert len(dates(kept.dest)) == 1


@pytest.mark.parametrize("change", ["a mail", "a name"])
async def test_an_index_that_nobody_brings_up_to_date(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """An older state is not passed off as that of now."""
    monkeypatch.setattr(from_account, "_KEEPER_SECONDS", 0.3)
    if change == "a mail":
        kept.account.add_email(message(90), ["P0"])
    else:
        # The state of the emails stays the same.
        kept.account.rename_mailbox("P1", "Play")
    with pytest.raises(BusyError, match="not up to date"):
        await kept.take()
    assert len(dates(kept.dest)) == 1
    assert (await kept.take(allow_stale=True)).new == 0
    [notice] = kept.listener.notices
    assert "not up to date; what follows is its state of" in notice


async def test_an_index_that_stays_between_two_states(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is content with an older state gets that, too, and is told."""
    monkeypatch.setattr(from_account, "_KEEPER_SECONDS", 0.3)
    kept.become(settled=False)
    kept.account.add_email(message(90), ["P0"])
    assert (await kept.take(allow_stale=True)).new == 0
    assert [notice for notice in kept.listener.notices if "between two states" in notice]


async def test_whoever_kept_the_index_ends(kept: Kept) -> None:
    kept.account.add_email(message(90), ["P0"])
    summaries: list[SnapshotSummary] = []

    async def take() -> None:
        summaries.append(await kept.take())

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take)
            await trio.sleep(2 * from_account._PAUSE_SECONDS)
            assert not summaries
            kept.lead.__exit__()
    [summary] = summaries
    assert summary.new == 1
    assert kept.listener.notices == []


async def test_several_of_a_new_account_at_once(tmp_path: Path) -> None:
    """Two lines of a crontab: one of them lists the account, and the others wait for it."""
    server = MailServer([small_account(500)])
    listeners = [Listener() for _ in range(3)]
    async with running_server(server) as url:
        source = AccountSource("alice", f"{url}/session", CREDENTIALS)
        async with trio.open_nursery() as nursery:
            for number, listener in enumerate(listeners):
                taking = partial(taken, source, tmp_path, listener, dest=f"dest{number}")
                nursery.start_soon(taking)
    manifests = set()
    for number, listener in enumerate(listeners):
        assert listener.notices == []
        [date] = dates(tmp_path / f"dest{number}")
        require_whole(tmp_path / f"dest{number}" / date)
        manifests.add((tmp_path / f"dest{number}" / date / "manifest.jsonl").read_bytes())
    assert len(manifests) == 1
    assert server.counts.methods["Email/query"] < 10
