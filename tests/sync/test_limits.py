"""An account that is larger than the limits, in part or as a whole, and the tree that is shown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from jmapfs.errors import ProtocolError
from jmapfs.jmap import answers, mailboxes
from jmapfs.jmap.answers import AnswerLimit
from tests.sync.followed_account import followed, small_account


async def test_too_many_mailboxes_leave_the_tree_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mailboxes, "MOST_MAILBOXES", 5)
    async with followed(small_account(), tmp_path) as f:
        await f.update()
        shown = f.emails_shown()
        new = [f.account.create_mailbox(f"New {number}") for number in range(2)]
        f.account.set_keywords("M3", ["$flagged"])
        with pytest.raises(ProtocolError, match="more than 5 mailboxes"):
            await f.update()
        assert f.emails_shown() == shown
        f.account.destroy_mailbox(new[0])
        await f.update()
        await f.assert_as_if_new()


async def test_a_known_email_that_becomes_too_large_is_still_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_BASE", "_OBJECT", "_REFERENCED", "_ID"):
        limit = getattr(answers, name)
        monkeypatch.setattr(answers, name, AnswerLimit(limit.bytes, limit.values // 50))
    async with followed(small_account(), tmp_path) as f:
        await f.update()
        shown = f.emails_shown()
        f.account.set_keywords("M3", [f"k{number}" for number in range(30_000)])
        f.account.set_keywords("M5", ["$flagged"])
        await f.update()
        assert f.emails_shown() == shown
        f.account.set_keywords("M3", ["$seen"])
        await f.update()
        await f.assert_as_if_new()


async def test_changes_that_are_too_large_are_found_by_a_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with followed(small_account(), tmp_path) as f:
        await f.update()
        f.account.set_keywords("M3", ["$flagged"])
        f.account.destroy_email("M5")
        limit_of = answers._limit_of
        base = answers._BASE

        def limit_changes(name: str, arguments: Mapping[str, object]) -> AnswerLimit:
            return base * -1 if name.endswith("/changes") else limit_of(name, arguments)

        monkeypatch.setattr(answers, "_REFERENCED", AnswerLimit(0, 0))
        monkeypatch.setattr(answers, "_limit_of", limit_changes)
        await f.update()
        await f.assert_as_if_new()
