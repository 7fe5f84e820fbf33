"""What a mount of several accounts does when it is asked to bring them up to date."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from jmapfs.control.messages import SyncRequest
from jmapfs.daemon.commands import Commands
from jmapfs.errors import AuthenticationError


class Login:
    """A login with nothing to retry."""

    def retry_now(self) -> None:
        pass


class Follower:
    """The follower of an account that is brought up to date in a moment, or cannot be."""

    def __init__(self, *, fails: bool = False) -> None:
        self.syncs = 0
        self._fails = fails

    async def sync_now(self, **_: object) -> None:
        if self._fails:
            await trio.lowlevel.checkpoint()
            raise AuthenticationError("the password has changed")
        await trio.sleep(0.05)
        self.syncs += 1


def commands(followers: dict[str, Follower], *, first_number: int = 1) -> Commands:
    none = cast("Any", None)
    accounts: Any = [
        SimpleNamespace(
            number=number,
            source=SimpleNamespace(label=name, login=Login()),
            follower=follower,
            content=SimpleNamespace(failures=set()),
            disk=none,
        )
        for number, (name, follower) in enumerate(followers.items(), first_number)
    ]
    return Commands(none, accounts, none, none, none, none)


async def test_an_account_that_fails_does_not_keep_others_from_being_updated() -> None:
    followers = {"alice": Follower(), "team": Follower(fails=True), "rota": Follower()}
    with pytest.raises(AuthenticationError):
        await commands(followers).sync(SyncRequest())
    assert [follower.syncs for follower in followers.values()] == [1, 0, 1]


async def test_one_account_alone_is_updated_by_its_path() -> None:
    followers = {"alice": Follower(), "team": Follower(fails=True), "rota": Follower()}
    several = commands(followers)
    await several.sync(SyncRequest("rota/Work"))
    await several.sync(SyncRequest("rota"))
    assert [follower.syncs for follower in followers.values()] == [0, 0, 2]
    with pytest.raises(AuthenticationError):
        await several.sync(SyncRequest("team"))


async def test_a_single_account_is_updated_whatever_the_path() -> None:
    follower = Follower()
    single = commands({"alice": follower}, first_number=0)
    await single.sync(SyncRequest("Work/Clients"))
    await single.sync(SyncRequest())
    assert follower.syncs == 2
