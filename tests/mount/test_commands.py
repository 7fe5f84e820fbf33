"""What a mount of several accounts does when it is asked to bring them up to date."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from jmapfs.daemon.commands import Commands
from jmapfs.errors import AuthenticationError


class Keeper:
    """Of an account that is brought up to date in a moment, or cannot be."""

    def __init__(self, *, fails: bool = False) -> None:
        self.synced = 0
        self._fails = fails

    async def sync_now(self) -> None:
        if self._fails:
            await trio.lowlevel.checkpoint()
            raise AuthenticationError("the password is another one now")
        await trio.sleep(0.05)
        self.synced += 1


def commands(keepers: dict[str, Keeper], *, first_slot: int = 1) -> Commands:
    none = cast("Any", None)
    accounts: Any = [
        SimpleNamespace(
            slot=slot,
            source=SimpleNamespace(label=name),
            keeper=keeper,
            content=none,
            disk=none,
        )
        for slot, (name, keeper) in enumerate(keepers.items(), first_slot)
    ]
    return Commands(none, accounts, none, none)


async def test_who_fails_keeps_no_other_from_it() -> None:
    keepers = {"alice": Keeper(), "team": Keeper(fails=True), "rota": Keeper()}
    with pytest.raises(AuthenticationError):
        await commands(keepers).sync({})
    assert [keeper.synced for keeper in keepers.values()] == [1, 0, 1]


async def test_one_of_them_alone() -> None:
    keepers = {"alice": Keeper(), "team": Keeper(fails=True), "rota": Keeper()}
    asked = commands(keepers)
    await asked.sync({"path": "rota/Work"})
    await asked.sync({"path": "rota"})
    assert [keeper.synced for keeper in keepers.values()] == [0, 0, 2]
    with pytest.raises(AuthenticationError):
        await asked.sync({"path": "team"})


async def test_one_account_is_asked_whatever_the_path() -> None:
    keeper = Keeper()
    asked = commands({"alice": keeper}, first_slot=0)
    await asked.sync({"path": "Work/Clients"})
    await asked.sync({})
    assert keeper.synced == 2
