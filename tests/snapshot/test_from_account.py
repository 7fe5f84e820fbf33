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
from jmapfs.errors import BusyError, RelayedError, StorageError, TooMuchGoneError
from jmapfs.index import database
from jmapfs.index.database import IndexDatabase, WriterLease
from jmapfs.index.reader import IndexReader
from jmapfs.index.rows import StaleTree
from jmapfs.jmap.login import Login
from jmapfs.snapshot import from_account
from jmapfs.snapshot.create import create_snapshot
from jmapfs.snapshot.from_account import account_opener
from jmapfs.snapshot.repository import Repository
from jmapfs.snapshot.source import SnapshotSummary
from tests.server import Account, MailServer, running_server
from tests.snapshot.commands import RecordingReport, dates, require_whole
from tests.sync.followed_account import CREDENTIALS, message, small_account
from tests.waits import wait_until_async


@dataclass(frozen=True)
class BusyAccount:
    """An account with one snapshot; the test holds the lease of its index."""

    account: Account
    source: AccountSource
    directory: Path
    lease: WriterLease
    report: RecordingReport

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
        return await snapshot(self.source, self.directory, self.report, allow_stale=allow_stale)


async def snapshot(
    source: AccountSource,
    directory: Path,
    report: RecordingReport,
    *,
    allow_stale: bool = False,
    dest: str = "dest",
) -> SnapshotSummary:
    cache = directory / "cache"
    async with account_opener(source, cache, report, allow_stale=allow_stale) as opener:
        return await create_snapshot(
            opener, Repository(directory / dest), max_gone=50, report=report
        )


@pytest.fixture
async def busy(tmp_path: Path) -> AsyncIterator[BusyAccount]:
    server = MailServer([small_account()])
    async with running_server(server) as url:
        source = AccountSource("alice", f"{url}/session", Login(CREDENTIALS))
        await snapshot(source, tmp_path, RecordingReport())
        directory = account_directory(tmp_path / "cache", source)
        with WriterLease(IndexDatabase(directory)) as lease:
            assert lease.try_acquire() is None
            yield BusyAccount(server.primary, source, tmp_path, lease, RecordingReport())


@pytest.fixture
def pin_attempts(monkeypatch: pytest.MonkeyPatch) -> list[IndexReader]:
    """Gets the reader at each attempt to pin a state of the index."""
    attempts: list[IndexReader] = []
    try_pin = from_account._AccountOpener._try_pin

    def try_pin_recorded(self: Any, reader: IndexReader) -> Any:
        attempts.append(reader)
        return try_pin(self, reader)

    monkeypatch.setattr(from_account._AccountOpener, "_try_pin", try_pin_recorded)
    return attempts


async def test_it_waits_for_a_state_of_the_account(
    busy: BusyAccount, pin_attempts: list[IndexReader]
) -> None:
    busy.set_consistent(False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(busy.snapshot)
        await wait_until_async(lambda: len(pin_attempts) > 2, seconds=30)
        assert len(dates(busy.dest)) == 1
        busy.set_consistent(True)
    assert busy.report.notices == []
    assert len(dates(busy.dest)) == 2
    for date in dates(busy.dest):
        require_whole(busy.dest / date)


async def test_an_index_that_stays_inconsistent_is_an_error(
    busy: BusyAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_CONSISTENT_SECONDS", 0.05)
    busy.set_consistent(False)
    with pytest.raises(BusyError, match="try again later"):
        await busy.snapshot()
    assert len(dates(busy.dest)) == 1


@pytest.mark.parametrize("change", ["a mail", "a name"])
async def test_an_index_that_is_not_up_to_date_is_an_error(
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
    [notice] = busy.report.notices
    assert "not up to date; copying its state of" in notice


async def test_it_does_not_wait_for_a_mount_whose_disk_is_full(
    busy: BusyAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RelayedError("cannot write the index: the disk is full", StorageError.exit_code)

    monkeypatch.setattr(from_account, "_sync_mounts", fail)
    busy.account.add_email(message(90), ["P0"])
    with trio.fail_after(from_account._UPDATE_SECONDS / 2):
        with pytest.raises(BusyError, match="the disk is full"):
            await busy.snapshot()
        assert (await busy.snapshot(allow_stale=True)).new == 0


@pytest.mark.parametrize("same_state", [False, True])
async def test_a_stale_index_of_another_process_is_an_error(
    busy: BusyAccount, monkeypatch: pytest.MonkeyPatch, *, same_state: bool
) -> None:
    """Even if the server has the state of the index: a reset server may have it by chance."""
    monkeypatch.setattr(from_account, "_UPDATE_SECONDS", 30)
    writer = busy.lease.writer()
    assert writer is not None
    with writer.transaction():
        stale = StaleTree(1.0, 1.0, 20, 23, reset=False, email_state="x", reason="it was listed")
        writer.set_state(replace(writer.state(), stale=stale))
    if not same_state:
        busy.account.add_email(message(90), ["P0"])
    with pytest.raises(TooMuchGoneError, match="20 of 23 mails"):
        await busy.snapshot()
    assert len(dates(busy.dest)) == 1
    assert (await busy.snapshot(allow_stale=True)).new == 0
    assert "copying its state of" in busy.report.notices[-1]


async def test_an_inconsistent_index_is_copied_if_allowed(
    busy: BusyAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --allow-stale it is copied as well, with a notice."""
    monkeypatch.setattr(from_account, "_UPDATE_SECONDS", 0.3)
    busy.set_consistent(False)
    busy.account.add_email(message(90), ["P0"])
    assert (await busy.snapshot(allow_stale=True)).new == 0
    assert [notice for notice in busy.report.notices if "between two states" in notice]


async def test_it_takes_over_the_index_when_the_other_process_ends(
    busy: BusyAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[BusyError] = []
    request_update = from_account._AccountOpener._request_update

    async def request_recorded(self: Any, error: BusyError, waiter: Any) -> Any:
        requests.append(error)
        return await request_update(self, error, waiter)

    monkeypatch.setattr(from_account._AccountOpener, "_request_update", request_recorded)
    busy.account.add_email(message(90), ["P0"])
    summaries: list[SnapshotSummary] = []

    async def take() -> None:
        summaries.append(await busy.snapshot())

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take)
            await wait_until_async(lambda: len(requests) > 1, seconds=30)
            assert not summaries
            busy.lease.__exit__()
    [summary] = summaries
    assert summary.new == 1
    assert busy.report.notices == []


async def test_several_first_snapshots_at_the_same_time(tmp_path: Path) -> None:
    """Of several lines of a crontab, one lists the account, and the others wait for it."""
    server = MailServer([small_account(500)])
    reports = [RecordingReport() for _ in range(3)]
    async with running_server(server) as url:
        source = AccountSource("alice", f"{url}/session", Login(CREDENTIALS))
        async with trio.open_nursery() as nursery:
            for number, report in enumerate(reports):
                nursery.start_soon(
                    partial(snapshot, source, tmp_path, report, dest=f"dest{number}")
                )
    manifests = set()
    for number, report in enumerate(reports):
        assert report.notices == []
        [date] = dates(tmp_path / f"dest{number}")
        require_whole(tmp_path / f"dest{number}" / date)
        manifests.add((tmp_path / f"dest{number}" / date / "manifest.jsonl").read_bytes())
    assert len(manifests) == 1
    assert server.counts.methods["Email/query"] < 10
