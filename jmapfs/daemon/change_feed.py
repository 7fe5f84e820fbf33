"""The changes of names in a mount, for clients that wait for them (`jmapfs watch`).

A client names the position from which on it wants changes. A position stands for a state of each
account of which the kernel has been told. So nothing is reported while the tree is frozen. Nothing
is computed while no client asks.
"""

import secrets
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import msgspec
import trio

from jmapfs.control.messages import Changes
from jmapfs.daemon.accounts import MountedAccount
from jmapfs.daemon.view import account_directories
from jmapfs.fuse.invalidation import CacheInvalidator
from jmapfs.names import key
from jmapfs.sqlite import sqlite_errors
from jmapfs.tree.name_changes import NameChange, TreeState, name_changes

# A position is used again after at most one run of a command. Only other clients that ask for
# changes meanwhile add positions.
_MOST_POSITIONS: Final = 32

_LARGEST_REPLY: Final = 1 << 27


class ChangeFeed:
    """Reports the changes of a mount; `invalidators` has one for each account, in their order."""

    def __init__(
        self, accounts: Sequence[MountedAccount], invalidators: Sequence[CacheInvalidator]
    ) -> None:
        names = account_directories(accounts)
        self._accounts = [(names.get(one.number, ""), one.database) for one in accounts]
        self._invalidators = invalidators
        self._positions: OrderedDict[str, tuple[TreeState, ...]] = OrderedDict()
        self._salt = secrets.token_hex(8)
        self._waiting = trio.lowlevel.ParkingLot()
        # One large computation at a time: there can be several clients.
        self._limiter = trio.CapacityLimiter(1)
        for invalidator in invalidators:
            invalidator.add_listener(self._wake)

    async def after(self, position: str | None, seconds: float) -> msgspec.Raw:
        """Return `Changes` as JSON; wait for them at most `seconds`.

        Raises StorageError if the index cannot be read.
        """
        deadline = trio.current_time() + seconds
        current = self._current()
        if position is None:
            return _encode(Changes(self._position(current)))
        states = self._positions.get(position)
        if states is None:
            # It is from another daemon, or older than all that are kept.
            return _encode(Changes(self._position(current), unknown=[""]))
        while True:
            # Equal states share their layouts, so this does not compare any directories.
            if current == states:
                with trio.move_on_at(deadline) as timeout:
                    await self._waiting.park()
                if timeout.cancelled_caught:
                    return _encode(Changes(self._position(current)))
            else:
                with sqlite_errors("read the index"):
                    changes = await trio.to_thread.run_sync(
                        self._compare,
                        self._position(current),
                        states,
                        current,
                        limiter=self._limiter,
                    )
                if changes is not None:
                    return changes
                states = current
            current = self._current()

    def _wake(self) -> None:
        self._waiting.unpark_all()

    def _current(self) -> tuple[TreeState, ...]:
        return tuple(invalidator.known for invalidator in self._invalidators)

    def _position(self, states: tuple[TreeState, ...]) -> str:
        numbers = [(one.position, one.layout_version, one.epoch) for one in states]
        position = key(f"{self._salt}{numbers}", length=32)
        self._positions[position] = states
        self._positions.move_to_end(position)
        if len(self._positions) > _MOST_POSITIONS:
            self._positions.popitem(last=False)
        return position

    def _compare(
        self, position: str, before: tuple[TreeState, ...], after: tuple[TreeState, ...]
    ) -> msgspec.Raw | None:
        reply = Changes(position)
        for (root, database), old, new in zip(self._accounts, before, after, strict=True):
            if old == new:
                continue
            with database.reader() as reader:
                changes = name_changes(reader, old, new)
            if changes is None:
                reply.unknown.append(root)
            elif root:
                reply.changes.extend(_below(root, one) for one in changes)
            else:
                reply.changes.extend(changes)
        if not reply.changes and not reply.unknown:
            return None
        encoded = msgspec.json.encode(reply)
        if len(encoded) > _LARGEST_REPLY:
            # Several accounts with very many changes.
            return _encode(Changes(position, unknown=[""]))
        return msgspec.Raw(encoded)


def _below(root: str, change: NameChange) -> NameChange:
    old, new = (None if path is None else f"{root}/{path}" for path in (change.old, change.new))
    return NameChange(old, new, change.directory)


def _encode(reply: Changes) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(reply))
