"""Snapshots of an account whose index another process keeps, and is just bringing up to date."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import trio

from jmapfs.account import AccountSource, Lead, account_directory
from jmapfs.errors import BusyError
from jmapfs.index import IndexDatabase, IndexWriter
from jmapfs.snapshot import Destination, Summary, account_opener, from_account, take_snapshot
from tests.server import MailServer, running_server
from tests.snapshot.snapshots import Listener, dates, require_whole
from tests.sync.following import CREDENTIALS, small_account


class Attentive(Listener):
    """Notes that there was a notice at all."""

    def __init__(self) -> None:
        super().__init__()
        self.noticed = trio.Event()

    def notice(self, text: str) -> None:
        super().notice(text)
        self.noticed.set()


@dataclass(frozen=True)
class Kept:
    """An account of which there is a snapshot, and whose index somebody else keeps now."""

    source: AccountSource
    directory: Path
    writer: IndexWriter
    listener: Attentive

    @property
    def dest(self) -> Path:
        return self.directory / "dest"

    def become(self, *, settled: bool) -> None:
        with self.writer.transaction():
            self.writer.set_state(replace(self.writer.state(), settled=settled))

    async def take(self) -> Summary:
        """Take another snapshot."""
        return await taken(self.source, self.directory, self.listener)


async def taken(source: AccountSource, directory: Path, listener: Listener) -> Summary:
    async with account_opener(source, directory / "cache", listener) as opener:
        dest = Destination(directory / "dest")
        return await take_snapshot(opener, dest, max_gone=50, report=listener)


@pytest.fixture
async def kept(tmp_path: Path) -> AsyncIterator[Kept]:
    server = MailServer([small_account()])
    async with running_server(server) as url:
        source = AccountSource("alice", f"{url}/session", CREDENTIALS)
        await taken(source, tmp_path, Listener())
        directory = account_directory(tmp_path / "cache", source)
        with Lead(directory, IndexDatabase(directory)) as lead:
            writer = lead.take()
            assert writer is not None
            yield Kept(source, tmp_path, writer, Attentive())


async def test_it_waits_for_a_state_of_the_account(kept: Kept) -> None:
    kept.become(settled=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kept.take)
        with trio.fail_after(30):
            await kept.listener.noticed.wait()
        await trio.sleep(2 * from_account._PAUSE_SECONDS)
        assert len(dates(kept.dest)) == 1
        kept.become(settled=True)
    [notice] = kept.listener.notices
    assert "what follows is its state of" in notice
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
