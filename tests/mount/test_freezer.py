"""When a tree is frozen and thaws: without a mount, with a kernel that may be slow."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing

from jmapfs.control.messages import FreezeStatus, Lease
from jmapfs.daemon import freeze
from jmapfs.daemon.freeze import Freezer
from jmapfs.daemon.view import MountView
from jmapfs.errors import BusyError
from jmapfs.index import database as index_database
from jmapfs.index.database import IndexDatabase
from jmapfs.index.reader import IndexReader
from jmapfs.sync.follower import ConnectionState
from jmapfs.tree.status_file import ONLINE, time_text


class Kernel:
    """Replaces the invalidator and the operations; the kernel answers once `answers` is set."""

    def __init__(self) -> None:
        self.answers = trio.Event()
        self.asked = trio.Event()
        self.listed = trio.Event()
        self.listed.set()
        self.is_paused = False
        self.shown: object = None

    def pause(self) -> None:
        self.is_paused = True

    def resume(self) -> None:
        self.is_paused = False

    async def invalidate_up_to(self, _reader: object) -> None:
        self.asked.set()
        await self.answers.wait()

    async def invalidate(self) -> None:
        await trio.lowlevel.checkpoint()

    def show(self, tree: object, _listing_tree: object) -> None:
        self.shown = tree

    async def wait_for_listings(self) -> None:
        await self.listed.wait()


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
async def nursery() -> AsyncIterator[trio.Nursery]:
    async with trio.open_nursery() as nursery:
        yield nursery
        nursery.cancel_scope.cancel()


LIVE = cast("Any", object())


@pytest.fixture
def database(tmp_path: Path) -> IndexDatabase:
    database = IndexDatabase(tmp_path)
    database.prepare()
    return database


@pytest.fixture
def account(database: IndexDatabase) -> Any:
    return SimpleNamespace(
        number=0,
        database=database,
        follower=SimpleNamespace(connection=ConnectionState(online=True, since=0.0)),
        reachability=lambda: ONLINE,
    )


def set_consistent(database: IndexDatabase, *, consistent: bool) -> None:
    with database.writer() as writer, writer.transaction():
        writer.set_state(replace(writer.state(), consistent=consistent))


@pytest.fixture
async def freezer(account: Any, kernel: Kernel, nursery: trio.Nursery) -> AsyncIterator[Freezer]:
    kernel.show(LIVE, LIVE)
    stand_in = cast("Any", kernel)
    freezer = Freezer([account], [stand_in], stand_in, MountView(LIVE, LIVE, 0), nursery)
    yield freezer
    freezer.close()


def assert_thawed(freezer: Freezer, kernel: Kernel) -> None:
    assert freezer.frozen is None
    assert freezer.view.tree is kernel.shown is LIVE
    assert not kernel.is_paused


def is_valid(freezer: Freezer, lease: Lease) -> bool:
    try:
        freezer.renew(lease.id, 60)
    except BusyError:
        return False
    return True


async def test_it_is_frozen_when_the_kernel_has_answered(freezer: Freezer, kernel: Kernel) -> None:
    kernel.answers.set()
    lease = await freezer.freeze(60)
    assert freezer.frozen == FreezeStatus(time_text(lease.since), None)
    assert freezer.view.tree is kernel.shown is not LIVE
    assert kernel.is_paused
    assert is_valid(freezer, lease)
    assert await freezer.thaw(lease.id)
    assert_thawed(freezer, kernel)
    assert not is_valid(freezer, lease)
    assert not await freezer.thaw(lease.id)


async def test_a_lease_expires(
    freezer: Freezer, kernel: Kernel, autojump_clock: trio.testing.MockClock
) -> None:
    assert autojump_clock.autojump_threshold == 0

    kernel.answers.set()
    lease = await freezer.freeze(30)
    await trio.sleep(29)
    freezer.renew(lease.id, 30)
    await trio.sleep(29)
    assert freezer.frozen is not None
    await trio.sleep(2)
    assert_thawed(freezer, kernel)
    with pytest.raises(BusyError, match="has ended"):
        freezer.renew(lease.id, 30)
    with pytest.raises(BusyError, match="has ended"):
        freezer.records(lease.id)


async def test_renewals_do_not_extend_a_lease_beyond_its_limit(
    freezer: Freezer, kernel: Kernel, autojump_clock: trio.testing.MockClock
) -> None:
    assert autojump_clock.autojump_threshold == 0

    kernel.answers.set()
    lease = await freezer.freeze(30, limit=40)
    assert freezer.frozen is not None
    until = time_text(lease.since + 40)
    assert freezer.frozen.until in {until, time_text(lease.since + 41)}
    await trio.sleep(25)
    freezer.renew(lease.id, 30)
    await trio.sleep(16)
    assert_thawed(freezer, kernel)
    assert not await freezer.thaw(lease.id)


async def test_it_thaws_when_the_last_lease_has_gone(
    freezer: Freezer, kernel: Kernel, autojump_clock: trio.testing.MockClock
) -> None:
    assert autojump_clock.autojump_threshold == 0

    kernel.answers.set()
    first = await freezer.freeze(30, limit=30)
    second = await freezer.freeze(60, join=True)
    assert second.since == first.since
    assert freezer.frozen is not None
    assert freezer.frozen.until is None
    await trio.sleep(31)
    assert not is_valid(freezer, first)
    assert is_valid(freezer, second)
    third = await freezer.freeze(30, join=True)
    assert await freezer.thaw(second.id)
    assert freezer.frozen is not None
    await trio.sleep(31)
    assert not is_valid(freezer, third)
    assert_thawed(freezer, kernel)


async def test_a_second_freeze_is_refused(freezer: Freezer, kernel: Kernel) -> None:
    kernel.answers.set()
    lease = await freezer.freeze(60, limit=60)
    with pytest.raises(BusyError, match="frozen already, until"):
        await freezer.freeze(60)
    assert await freezer.thaw()
    assert not is_valid(freezer, lease)
    assert_thawed(freezer, kernel)


async def test_the_timeout_of_a_freeze_does_not_end_the_next_one(
    freezer: Freezer, kernel: Kernel, autojump_clock: trio.testing.MockClock
) -> None:
    assert autojump_clock.autojump_threshold == 0
    kernel.answers.set()
    await freezer.freeze(1, limit=1)
    assert await freezer.thaw()
    lease = await freezer.freeze(60)
    await trio.sleep(2)
    assert is_valid(freezer, lease)


async def test_a_freeze_while_another_ends_begins_after_it(
    freezer: Freezer, kernel: Kernel, nursery: trio.Nursery
) -> None:
    kernel.answers.set()
    first = await freezer.freeze(60)
    kernel.listed = trio.Event()
    nursery.start_soon(freezer.thaw)
    await trio.testing.wait_all_tasks_blocked()
    assert freezer.frozen is None
    leases: list[Lease] = []

    async def second() -> None:
        leases.append(await freezer.freeze(60, join=True))

    async with trio.open_nursery() as inner:
        inner.start_soon(second)
        await trio.testing.wait_all_tasks_blocked()
        assert not leases
        kernel.listed.set()
    assert is_valid(freezer, leases[0])
    assert not is_valid(freezer, first)


async def test_a_freeze_that_nobody_waits_for_ends(
    freezer: Freezer, kernel: Kernel, nursery: trio.Nursery
) -> None:
    """A client that disconnects before the kernel has answered leaves nothing frozen."""
    scope = trio.CancelScope()

    async def freeze() -> None:
        with scope:
            await freezer.freeze(60)
            raise AssertionError

    nursery.start_soon(freeze)
    await kernel.asked.wait()
    assert freezer.frozen is not None
    scope.cancel()
    await trio.testing.wait_all_tasks_blocked()
    assert_thawed(freezer, kernel)


async def test_a_lease_that_joins_waits_for_the_kernel_as_well(
    freezer: Freezer, kernel: Kernel, nursery: trio.Nursery
) -> None:
    scope, frozen = trio.CancelScope(), trio.Event()
    leases: list[Lease] = []

    async def first() -> None:
        with scope:
            await freezer.freeze(60)
            raise AssertionError

    async def second() -> None:
        leases.append(await freezer.freeze(60, join=True))
        frozen.set()

    nursery.start_soon(first)
    await kernel.asked.wait()
    nursery.start_soon(second)
    await trio.testing.wait_all_tasks_blocked()
    # The kernel may have been told only a part of the changes.
    scope.cancel()
    await trio.testing.wait_all_tasks_blocked()
    assert not frozen.is_set()
    kernel.answers.set()
    await frozen.wait()
    assert freezer.frozen is not None
    assert await freezer.thaw(leases[0].id)
    assert_thawed(freezer, kernel)


async def test_a_kernel_that_does_not_answer(
    freezer: Freezer, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freeze, "_FREEZE_SECONDS", 0.05)
    with pytest.raises(BusyError, match="not frozen"):
        await freezer.freeze(60)
    await trio.testing.wait_all_tasks_blocked()
    assert_thawed(freezer, kernel)


async def test_a_freeze_waits_for_a_consistent_state(
    freezer: Freezer, kernel: Kernel, nursery: trio.Nursery, database: IndexDatabase
) -> None:
    set_consistent(database, consistent=False)
    kernel.answers.set()
    nursery.start_soon(freezer.freeze, 60)
    await trio.sleep(2 * index_database._CONSISTENT_INTERVAL)
    assert_thawed(freezer, kernel)
    set_consistent(database, consistent=True)
    await kernel.asked.wait()
    # Later changes of the index do not end the freeze.
    set_consistent(database, consistent=False)
    assert freezer.frozen is not None
    assert freezer.view.tree is kernel.shown is not LIVE
    assert await freezer.thaw()


async def test_a_freeze_is_refused_while_there_is_no_consistent_state(
    freezer: Freezer, kernel: Kernel, database: IndexDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_consistent(database, consistent=False)
    monkeypatch.setattr(index_database, "_CONSISTENT_SECONDS", 0.05)
    for join in (False, True):
        with pytest.raises(BusyError, match="between two states"):
            await freezer.freeze(60, join=join)
    assert_thawed(freezer, kernel)


async def test_a_freeze_does_not_wait_while_the_server_is_unreachable(
    freezer: Freezer, kernel: Kernel, database: IndexDatabase, account: Any
) -> None:
    """Then the index would not become consistent."""
    set_consistent(database, consistent=False)
    account.follower.connection = ConnectionState(online=False, since=0.0)
    kernel.answers.set()
    lease = await freezer.freeze(60)
    assert await freezer.thaw(lease.id)
    assert_thawed(freezer, kernel)


async def test_a_thaw_does_not_wait_for_a_freeze_that_waits(
    freezer: Freezer, nursery: trio.Nursery, database: IndexDatabase
) -> None:
    set_consistent(database, consistent=False)
    nursery.start_soon(freezer.freeze, 60)
    await trio.testing.wait_all_tasks_blocked()
    with trio.fail_after(5):
        assert not await freezer.thaw()


async def test_the_readers_are_closed_if_the_mount_ends_during_a_thaw(
    account: Any, database: IndexDatabase, kernel: Kernel
) -> None:
    opened: list[IndexReader] = []

    @contextlib.contextmanager
    def open_reader() -> Iterator[IndexReader]:
        with database.reader() as reader:
            opened.append(reader)
            yield reader
            opened.remove(reader)

    account.database = SimpleNamespace(
        reader=open_reader, require_complete=database.require_complete
    )
    stand_in = cast("Any", kernel)
    async with trio.open_nursery() as nursery:
        freezer = Freezer([account], [stand_in], stand_in, MountView(LIVE, LIVE, 0), nursery)
        with contextlib.closing(freezer):
            kernel.answers.set()
            await freezer.freeze(60)
            assert opened
            kernel.listed = trio.Event()
            nursery.start_soon(freezer.thaw)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            await trio.lowlevel.checkpoint_if_cancelled()
    assert not opened
