"""The time of the root of a mount of all accounts, which moves when their directories change."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from jmapfs.account import AccountSource
from jmapfs.daemon.account_list import AccountList, select_accounts
from jmapfs.errors import UnreachableError

START = 1_800_000_000.75


class Accounts:
    """The accounts of a user by id, a clock, and what a mount shows."""

    def __init__(self, cache_root: Path) -> None:
        self.names: dict[str, str] = {"A1": "alice", "A2": "Team"}
        self.now = START
        self.is_online = True
        self.cache_root = cache_root

    async def ask(self, *_: object) -> list[Any]:
        if not self.is_online:
            raise UnreachableError("no answer")
        return [SimpleNamespace(id=one, name=name) for one, name in self.names.items()]

    async def select(self) -> AccountList:
        login = SimpleNamespace(username="alice")
        source = AccountSource("home", "mail.example", cast("Any", login))
        request = SimpleNamespace(source=source, all_accounts=True, cache_root=self.cache_root)
        report = SimpleNamespace(waiting=None, notice=lambda _: None)
        return await select_accounts(cast("Any", request), cast("Any", report))

    async def changed_at(self, at: float) -> int:
        """Mount at a time after START in seconds; return the time of the root after START."""
        self.now = START + at
        return (await self.select()).changed_at - int(START)


@pytest.fixture
def accounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Accounts:
    accounts = Accounts(tmp_path)
    monkeypatch.setattr("jmapfs.daemon.account_list.mail_accounts", accounts.ask)
    clock = SimpleNamespace(time=lambda: accounts.now)
    monkeypatch.setattr("jmapfs.daemon.account_list.time", clock)
    return accounts


async def test_the_time_moves_with_the_names_only(accounts: Accounts) -> None:
    assert await accounts.changed_at(0) == 0
    assert await accounts.changed_at(5) == 0
    accounts.names["A3"] = "Third"
    assert await accounts.changed_at(10) == 11
    # Another mount within the second, and one with a clock that was set back.
    accounts.names["A2"] = "Renamed"
    assert await accounts.changed_at(10.1) == 12
    del accounts.names["A1"]
    assert await accounts.changed_at(-5000) == 13
    assert await accounts.changed_at(20) == 13
    # A new id of the same account changes no name.
    accounts.names = {f"{one}-new": name for one, name in accounts.names.items()}
    assert await accounts.changed_at(30) == 13
    accounts.is_online = False
    assert await accounts.changed_at(40) == 13


@pytest.mark.parametrize(
    ("content", "is_readable"),
    [('{"A1": "alice", "A2": "Team"}', True), ('{"names": 7}', False), ("{", False)],
)
async def test_names_of_an_earlier_version_have_no_time(
    accounts: Accounts, content: str, *, is_readable: bool
) -> None:
    await accounts.select()
    [saved] = accounts.cache_root.rglob("accounts.json")
    saved.write_text(content)
    accounts.is_online = not is_readable
    assert await accounts.changed_at(50) == 50
    accounts.is_online = True
    assert await accounts.changed_at(60) == 50
    assert {one.label for one in (await accounts.select()).sources.values()} == {"alice", "Team"}
