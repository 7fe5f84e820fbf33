"""The mount as the source of a snapshot: what it hears from whoever holds it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from jmapfs.errors import NotMountedError
from jmapfs.snapshot import from_mount
from jmapfs.snapshot.from_mount import _MountedTree

TREE = {
    "server": "https://example.org/jmap/",
    "account_id": "a",
    "account_name": "alice",
    "username": "alice",
    "email_state": "s1",
    "synced_at": 1_700_000_000.0,
    "settled": True,
    "root": "",
    "directory": "",
    "mails": 0,
    "mailboxes": [],
}


class Answering:
    """In the place of a hold; it notes what is asked, and at some time answers no more."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.often = trio.Event()

    def ask(
        self, command: str, _arguments: Mapping[str, object], *, seconds: float
    ) -> dict[str, Any]:
        assert seconds > 0
        self.asked.append(command)
        if command == "describe":
            return TREE
        if len(self.asked) > 3:
            trio.from_thread.run_sync(self.often.set)
            raise NotMountedError("the daemon does not answer")
        return {"held": True}


async def test_it_is_told_that_it_is_still_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(from_mount, "_STAY_SECONDS", 0.01)
    held = Answering()
    tree = _MountedTree(cast("Any", held), Path("/mnt"), "")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tree.stay)
        with trio.fail_after(10):
            # An error is for whoever copies; this goes on.
            await held.often.wait()
            held.often = trio.Event()
            await held.often.wait()
        nursery.cancel_scope.cancel()
    assert set(held.asked[1:]) == {"held"}
