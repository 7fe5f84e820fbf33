"""What whoever holds a mount asks of it, on the connection that holds it.

    {"command": "hold", "arguments": {}}
    {"command": "describe", "arguments": {"path": "Work/Clients"}}
    {"command": "mails", "arguments": {"path": "Work/Clients", "after": null, "count": 2000}}
    {"command": "held", "arguments": {}}

Paths are relative to the mountpoint. The tree is frozen from the first answer to the end of the
connection, unless somebody thaws it: `held` tells.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Annotated, Any, Final

import msgspec

from jmapfs.control.socket_server import ControlSession
from jmapfs.daemon.accounts import MountedAccount
from jmapfs.daemon.freeze import Freezer, Held
from jmapfs.tree.export import FIRST

_LARGEST_PART: Final = 10_000


class _Place(msgspec.Struct, frozen=True):
    path: str


class _Part(msgspec.Struct, frozen=True):
    path: str
    count: Annotated[int, msgspec.Meta(ge=1, le=_LARGEST_PART)]
    after: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)] | None = None


class Holding:
    """Holds of one mount."""

    def __init__(self, accounts: Sequence[MountedAccount], freezer: Freezer) -> None:
        self._accounts = accounts
        self._freezer = freezer

    @contextlib.asynccontextmanager
    async def hold(self, _arguments: Mapping[str, Any]) -> AsyncIterator[ControlSession]:
        """Hold the tree as it is, for as long as the context lasts."""
        async with self._freezer.hold() as held:
            alone = self._accounts[0].slot == 0
            account = self._accounts[0].source.label if alone else None
            questions = _Questions(self._freezer, held)
            yield ControlSession(
                {"since": held.frozen.since, "account": account},
                {
                    "describe": questions.describe,
                    "mails": questions.mails,
                    "held": questions.held,
                },
            )


class _Questions:
    def __init__(self, freezer: Freezer, held: Held) -> None:
        self._freezer = freezer
        self._held = held

    async def describe(self, arguments: Mapping[str, Any]) -> object:
        """Tell whose mail is at and below a path, and how much; see `Records`."""
        return await self._held.records.describe(msgspec.convert(arguments, _Place).path)

    async def mails(self, arguments: Mapping[str, Any]) -> object:
        """Tell mails in order, some `count` of them, and `after` which the others come."""
        part = msgspec.convert(arguments, _Part)
        position = FIRST if part.after is None else part.after
        return await self._held.records.mails(part.path, position, part.count)

    async def held(self, _arguments: Mapping[str, Any]) -> object:
        """Tell whether what was held since the beginning still is."""
        return {"held": self._freezer.holds(self._held)}
