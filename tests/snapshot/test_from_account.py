"""Snapshots of an account whose index another process writes, and has not brought up to date."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from jmapfs.account import AccountSource, account_directory
from jmapfs.errors import BusyError
from jmapfs.index import database
from jmapfs.index.database import IndexDatabase, WriterLease
from jmapfs.index.reader import IndexReader
from jmapfs.snapshot import from_account
from jmapfs.snapshot.create import create_snapshot
from jmapfs.snapshot.from_account import account_opener
from jmapfs.snapshot.repository import Repository
from jmapfs.snapshot.source import SnapshotSummary
from tests.server import Account, MailServer, running_server
from tests.snapshot.commands import RecordingReport, dates, require_whole
from tests.sync.following import CREDENTIALS, message, small_account


@dataclass(frozen=True)
class BusyAccount:
    """An account with one snapshot; the test holds the lease of its index."""

    account: Account
    source: AccountSource
    directory: Path
    lease: WriterLease
    listener: RecordingReport

    @property
    def dest(self) -> Path:
        return self.directory / "dest"

    def set_consistent(self, consistent: bool) -> None:  # noqa: FBT001 - as the field
        writer = self.lease.writer()
        assert writer is not None
        with writer.transaction():
            writer.set_state(replace(writer.state(), consistent=consistent))

    async def snapshot(self, *, allow_stale: bool = False) -> SnapshotSummary:
        """Create another snapshot."""
        return await snapshot(self.source, self.directory, self.listener, allow_stale=allow_stale)


async def snapshot(
    source: AccountSource,
    directory: Path,
    listener: RecordingReport,
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
async def busy(tmp_path: Path) -> AsyncIterator[BusyAccount]:
    server = MailServer([small_account()])
    async with running_server(server) as url:
        source = AccountSource("alice", f"{url}/session", CREDENTIALS)
        await snapshot(source, tmp_path, RecordingReport())
        directory = account_directory(tmp_path / "cache", source)
        with WriterLease(IndexDatabase(directory)) as lease:
            assert lease.try_acquire() is None
            yield BusyAccount(server.primary, source, tmp_path, lease, RecordingReport())


@pytest.fixture
def tried_to_pin(monkeypatch: pytest.MonkeyPatch) -> trio.Event:
    """Set when the snapshot has tried to pin a state of the index."""
    event = trio.Event()
    try_pin = from_account._AccountOpener._try_pin

    def try_pin_and_tell(self: Any, reader: IndexReader) -> Any:
        trio.from_thread.run_sync(event.set)
        return try_pin(self, reader)

    monkeypatch.setattr(from_account._AccountOpener, "_try_pin", try_pin_and_tell)
    return event


async def test_it_waits_for_a_state_of_the_account(
    busy: BusyAccount, tried_to_pin: trio.Event
) -> None:
    busy.set_consistent(False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(busy.snapshot)
        with trio.fail_after(30):
            await tried_to_pin.wait()
        await trio.sleep(2 * database._CONSISTENT_INTERVAL)
        assert len(dates(busy.dest)) == 1
        busy.set_consistent(True)
    assert busy.listener.notices == []
    assert len(dates(busy.dest)) == 2
    for date in dates(busy.dest):
        require_whole(busy.dest / date)


async def test_an_index_that_is_between_two_states_for_long(
    busy: BusyAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_CONSISTENT_SECONDS", 0.05)
    busy.set_consistent(False)
    with pytest.raises(BusyError, match="try again later"):
        await busy.snapshot()
    assert len(dates(busy.dest)) == 1


@pytest.mark.parametrize("change", ["a mail", "a name"])
async def test_an_index_that_nobody_brings_up_to_date(
    busy: BusyAccount, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """An older state is not presented as the current one."""
    monkeypatch.setattr(from_account, "_UPDATE_SECONDS", 0.3)
    if change == "a mail":
        busy.account.add_email(message(90), ["P0"])
    else:
        # The state of the emails stays the same.
        busy.account.rename_mailbox("P1", "Play")
    with pytest.raises(BusyError, match="not up to date"):
        await busy.snapshot()
    assert len(dates(busy.dest)) == 1
    assert (await busy.snapshot(allow_stale=True)).new == 0
    [notice] = busy.listener.notices
    assert "not up to date; copying its state of" in notice


async def test_an_index_that_stays_between_two_states(
    busy: BusyAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --allow-stale it is copied as well, with a notice."""
    monkeypatch.setattr(from_account, "_UPDATE_SECONDS", 0.3)
    busy.set_consistent(False)
    busy.account.add_email(message(90), ["P0"])
    assert (await busy.snapshot(allow_stale=True)).new == 0
    assert [notice for notice in busy.listener.notices if "between two states" in notice]


async def test_the_other_process_ends(busy: BusyAccount) -> None:
    busy.account.add_email(message(90), ["P0"])
    summaries: list[SnapshotSummary] = []

    async def take() -> None:
        summaries.append(await busy.snapshot())

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take)
            await trio.sleep(2 * from_account._FIRST_PAUSE)
            assert not summaries
            busy.lease.__exit__()
    [summary] = summaries
    assert summary.new == 1
    assert busy.listener.notices == []


async def test_several_of_a_new_account_at_once(tmp_path: Path) -> None:
    """Of several lines of a crontab, one lists the account, and the others wait for it."""
    server = MailServer([small_account(500)])
    listeners = [RecordingReport() for _ in range(3)]
    async with running_server(server) as url:
        source = AccountSource("alice", f"{url}/session", CREDENTIALS)
        async with trio.open_nursery() as nursery:
            for number, listener in enumerate(listeners):
                nursery.start_soon(
                    partial(snapshot, source, tmp_path, listener, dest=f"dest{number}")
                )
    manifests = set()
    for number, listener in enumerate(listeners):
        assert listener.notices == []
        [date] = dates(tmp_path / f"dest{number}")
        require_whole(tmp_path / f"dest{number}" / date)
        manifests.add((tmp_path / f"dest{number}" / date / "manifest.jsonl").read_bytes())
    assert len(manifests) == 1
    assert server.counts.methods["Email/query"] < 10
