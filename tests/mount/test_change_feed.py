"""Waiting for changes of names: without a mount, with a kernel that is told by the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
import trio
import trio.testing

from jmapfs.control.messages import Changes
from jmapfs.daemon import change_feed
from jmapfs.daemon.change_feed import ChangeFeed
from jmapfs.tree import name_changes
from jmapfs.tree.name_changes import NameChange
from tests.indexed import email, file_name
from tests.tree.test_name_changes import Account


class Mount:
    """An account whose kernel learns of its state when the test says so."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.account = Account(directory, stack)
        self.known = self.account.shown()[0]
        self._listeners: list[Callable[[], None]] = []
        account = SimpleNamespace(number=0, database=self.account.database)
        self.feed = ChangeFeed(cast("Any", [account]), cast("Any", [self]))

    def add_listener(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)

    def tell(self) -> None:
        self.known = self.account.shown()[0]
        for listener in self._listeners:
            listener()

    async def after(self, position: str | None, seconds: float = 60) -> Changes:
        return msgspec.json.decode(await self.feed.after(position, seconds), type=Changes)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    with ExitStack() as stack:
        yield Mount(tmp_path, stack)


def path(number: int) -> str:
    return f"Inbox/{file_name(email(f'{number}'))}"


async def test_changes_are_reported_when_the_kernel_knows_them(mount: Mount) -> None:
    position = (await mount.after(None)).position
    mount.account.put("1", "A")
    assert await mount.after(position, 0) == Changes(position)
    mount.tell()
    # The index is already ahead of what the kernel knows.
    mount.account.put("2", "A")
    mount.account.remove("1")
    first = await mount.after(position)
    assert first.changes == [NameChange(new=path(1))]
    mount.tell()
    second = await mount.after(first.position)
    assert second.changes == [NameChange(path(1)), NameChange(new=path(2))]
    # A client whose reply was lost asks again. Another one is some states behind.
    assert await mount.after(first.position) == second
    assert (await mount.after(position)).changes == [NameChange(new=path(2))]
    assert (await mount.after(None)).position == second.position


async def test_waiting_clients(mount: Mount, autojump_clock: trio.testing.MockClock) -> None:
    del autojump_clock
    position = (await mount.after(None)).position
    replies: list[Changes] = []

    gone = trio.CancelScope()

    async def wait(scope: trio.CancelScope) -> None:
        with scope:
            replies.append(await mount.after(position))

    async with trio.open_nursery() as nursery:
        for scope in (gone, trio.CancelScope(), trio.CancelScope()):
            nursery.start_soon(wait, scope)
        await trio.testing.wait_all_tasks_blocked()
        # This client closes its connection.
        gone.cancel()
        # Nothing has changed, or no name has.
        mount.tell()
        mount.account.put("1", "A")
        mount.account.remove("1")
        mount.tell()
        await trio.sleep(30)
        assert replies == []
        mount.account.put("2", "A")
        mount.tell()
    assert [one.changes for one in replies] == [[NameChange(new=path(2))]] * 2
    started = trio.current_time()
    assert (await mount.after(replies[0].position)).changes == []
    assert trio.current_time() - started == 60


async def test_old_positions_and_too_many_changes_are_unknown(
    mount: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(change_feed, "_MOST_POSITIONS", 2)
    position = latest = (await mount.after(None)).position
    for number in range(3):
        mount.account.put(f"{number}", "A")
        mount.tell()
        latest = (await mount.after(latest)).position
    assert await mount.after(position) == Changes(latest, unknown=[""])
    monkeypatch.setattr(name_changes, "_MOST_CHARACTERS", 2 * len(path(1)))
    for email_ids, unknown in (("34", []), ("567", [""])):
        for email_id in email_ids:
            mount.account.put(email_id, "A")
        mount.tell()
        reply = await mount.after(latest)
        assert reply.unknown == unknown
        latest = reply.position
