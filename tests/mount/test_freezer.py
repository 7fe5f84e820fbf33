"""Who holds a tree, who lets go, and when it thaws: without a mount, whose kernel may be slow."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing

from jmapfs.daemon import freeze
from jmapfs.daemon.accounts import MountedAccount
from jmapfs.daemon.freeze import Freezer
from jmapfs.daemon.view import MountView
from jmapfs.errors import BusyError
from jmapfs.index.database import IndexDatabase
from jmapfs.sync.follower import ConnectionState


class Kernel:
    """In the place of the kernel's news and of the operations; it agrees when `agrees` is set."""

    def __init__(self) -> None:
        self.agrees = trio.Event()
        self.asked = trio.Event()
        self.held_back = False
        self.shown: object = None

    def hold_back(self) -> None:
        self.held_back = True

    def let_go(self) -> None:
        self.held_back = False

    async def tell_up_to(self, _reader: object) -> None:
        self.asked.set()
        await self.agrees.wait()

    async def tell(self) -> None:
        await trio.lowlevel.checkpoint()

    def show(self, tree: object, _listing_tree: object) -> None:
        self.shown = tree

    async def listings_done(self) -> None:
        await trio.lowlevel.checkpoint()


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


def settle(database: IndexDatabase, *, settled: bool) -> None:
    with database.writer() as writer, writer.transaction():
        writer.set_state(replace(writer.state(), consistent=settled))


@pytest.fixture
async def freezer(
    database: IndexDatabase, kernel: Kernel, nursery: trio.Nursery
) -> AsyncIterator[Freezer]:
    parts: dict[str, Any] = dict.fromkeys(("source", "disk", "content", "traffic", "pages"))
    keeper: Any = SimpleNamespace(connection=ConnectionState(online=True, since=0.0))
    account = MountedAccount(
        slot=0, database=database, keeper=keeper, news=cast("Any", kernel), **parts
    )
    kernel.show(LIVE, LIVE)
    freezer = Freezer([account], cast("Any", kernel), MountView(LIVE, LIVE), nursery)
    yield freezer
    freezer.close()


async def thawed(freezer: Freezer, kernel: Kernel) -> None:
    await trio.testing.wait_all_tasks_blocked()
    assert freezer.frozen is None
    assert freezer.view.tree is kernel.shown is LIVE
    assert not kernel.held_back


async def test_it_is_held_when_the_kernel_agrees(freezer: Freezer, kernel: Kernel) -> None:
    kernel.agrees.set()
    async with freezer.hold() as held:
        assert freezer.holds(held)
        assert freezer.frozen is held.frozen
        assert held.frozen.until is None
        assert freezer.view.tree is kernel.shown is not LIVE
        assert kernel.held_back
    await thawed(freezer, kernel)
    assert not freezer.holds(held)


async def test_who_goes_before_the_kernel_agrees_leaves_nothing_frozen(
    freezer: Freezer, kernel: Kernel, nursery: trio.Nursery
) -> None:
    scope = trio.CancelScope()

    async def hold() -> None:
        with scope:
            async with freezer.hold():
                raise AssertionError

    nursery.start_soon(hold)
    await kernel.asked.wait()
    assert freezer.frozen is not None
    scope.cancel()
    await thawed(freezer, kernel)


async def test_who_comes_second_waits_for_the_kernel_as_well(
    freezer: Freezer, kernel: Kernel, nursery: trio.Nursery
) -> None:
    scope, holding, leave = trio.CancelScope(), trio.Event(), trio.Event()

    async def first() -> None:
        with scope:
            async with freezer.hold():
                raise AssertionError

    async def second() -> None:
        async with freezer.hold():
            holding.set()
            await leave.wait()

    nursery.start_soon(first)
    await kernel.asked.wait()
    nursery.start_soon(second)
    await trio.testing.wait_all_tasks_blocked()
    kernel.asked = trio.Event()
    scope.cancel()
    # The first may have begun to tell the kernel, and not come to an end.
    await kernel.asked.wait()
    assert not holding.is_set()
    kernel.agrees.set()
    await holding.wait()
    assert freezer.frozen is not None
    leave.set()
    await thawed(freezer, kernel)


async def test_a_kernel_that_does_not_agree(
    freezer: Freezer, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freeze, "_HOLD_SECONDS", 0.05)
    with pytest.raises(BusyError, match="not frozen"):
        async with freezer.hold():
            raise AssertionError
    await thawed(freezer, kernel)


async def test_what_others_raise_while_it_is_held_is_theirs(
    freezer: Freezer, kernel: Kernel
) -> None:
    kernel.agrees.set()
    with pytest.raises(trio.TooSlowError):
        async with freezer.hold():
            raise trio.TooSlowError
    await thawed(freezer, kernel)


async def test_it_waits_for_a_state_of_the_account(
    freezer: Freezer, kernel: Kernel, nursery: trio.Nursery, database: IndexDatabase
) -> None:
    settle(database, settled=False)
    kernel.agrees.set()
    nursery.start_soon(freezer.freeze, 60)
    await trio.sleep(2 * freeze._PAUSE_SECONDS)
    await thawed(freezer, kernel)
    settle(database, settled=True)
    await kernel.asked.wait()
    # The state that is held is not lost by what comes after it.
    settle(database, settled=False)
    assert freezer.frozen is not None
    assert freezer.view.tree is kernel.shown is not LIVE
    assert await freezer.thaw()


async def test_an_account_that_is_between_two_states_for_long(
    freezer: Freezer, kernel: Kernel, database: IndexDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(database, settled=False)
    monkeypatch.setattr(freeze, "_SETTLING_SECONDS", 0.05)
    with pytest.raises(BusyError, match="between two states"):
        await freezer.freeze(60)
    with pytest.raises(BusyError, match="between two states"):
        async with freezer.hold():
            raise AssertionError
    await thawed(freezer, kernel)


async def test_out_of_reach_of_the_server_nothing_is_waited_for(
    freezer: Freezer, kernel: Kernel, database: IndexDatabase
) -> None:
    """Nobody leads the index to a state then: what is shown is what there is."""
    settle(database, settled=False)
    freezer._accounts[0].keeper.connection = ConnectionState(online=False, since=0.0)
    kernel.agrees.set()
    async with freezer.hold() as held:
        assert freezer.holds(held)
    await thawed(freezer, kernel)


async def test_thawing_does_not_wait_for_who_waits(
    freezer: Freezer, nursery: trio.Nursery, database: IndexDatabase
) -> None:
    settle(database, settled=False)
    nursery.start_soon(freezer.freeze, 60)
    await trio.testing.wait_all_tasks_blocked()
    with trio.fail_after(5):
        assert not await freezer.thaw()


async def test_a_freeze_that_nobody_waits_for_ends(
    freezer: Freezer, kernel: Kernel, nursery: trio.Nursery
) -> None:
    scope = trio.CancelScope()

    async def freeze() -> None:
        with scope:
            await freezer.freeze(60)
            raise AssertionError

    nursery.start_soon(freeze)
    await kernel.asked.wait()
    assert freezer.frozen is not None
    scope.cancel()
    await thawed(freezer, kernel)
