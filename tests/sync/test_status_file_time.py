"""The time of `.jmapfs.json` changes whenever its content changes.

rsync compares sizes and seconds, and Borg and restic compare nanoseconds. They would miss a change
without a new time.
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest

from jmapfs.errors import JmapfsError
from jmapfs.tree.status_file import Reachability, StatusFile
from jmapfs.tree.tree import Tree
from tests.server.quirks import Status
from tests.sync.followed_account import Follower, followed, message, small_account

FUTURE = "2126-01-01T00:00:00Z"


class _StatusFiles:
    """All status files so far."""

    def __init__(self, f: Follower) -> None:
        self._follower = f
        self._seen: list[StatusFile] = [self._current()]

    def _current(self, reachability: Reachability | None = None) -> StatusFile:
        with self._follower.database.reader() as reader:
            tree = Tree(reader, lambda: reachability or Reachability(online=True))
            file = tree.status_file()
        assert file is not None
        return file

    def require_change(self, text: str, reachability: Reachability | None = None) -> None:
        """Check that the content and the seconds differ from all earlier ones."""
        file = self._current(reachability)
        assert text in file.content.decode()
        for earlier in self._seen:
            assert file.content != earlier.content
            assert file.time_ns // 10**9 != earlier.time_ns // 10**9
        self._seen.append(file)

    def require_no_change(self) -> None:
        assert self._current() == self._seen[-1]


@pytest.mark.parametrize("future", [False, True])
async def test_bad_emails_and_a_shortfall_come_and_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, future: bool
) -> None:
    """Also if a round breaks off after they are stored, and if a mail is dated in the future."""
    seconds = itertools.count(int(time.time()), 10)
    monkeypatch.setattr(time, "time", lambda: float(next(seconds)))
    account = small_account()
    if future:
        account.add_email(message(900), ["P0"], received_at=FUTURE, email_id="Mfuture")
    async with followed(account, tmp_path) as f:
        await f.update()
        files = _StatusFiles(f)
        files.require_no_change()

        # A bad email comes with a change, gets another reason, and goes without one.
        f.quirks.email_overrides = {"bad": {"size": "many"}}
        account.add_email(message(500), ["P0"], email_id="bad")
        await f.update()
        files.require_change("many")
        f.quirks.email_overrides = {"bad": {"size": "more"}}
        f.quirks.statuses = [Status("api", 404, count=-1, skip=1)]
        with pytest.raises(JmapfsError):
            await f.update()
        files.require_change("more")
        f.quirks.statuses = []
        await f.update()
        files.require_no_change()
        f.quirks.email_overrides = {}
        await f.update()
        files.require_change("")

        # An id that is listed, but not found.
        f.quirks.phantom_ids = ["phantom"]
        await f.update(compare=True)
        files.require_change("phantom")
        f.quirks.phantom_ids = []
        await f.update(compare=True)
        files.require_change("")

        f.quirks.unlisted_ids = ["M3"]
        with f.writer.transaction():
            f.writer.remove_emails(["M3"])
        await f.update(compare=True)
        files.require_change("shortfall")
        await f.update(compare=True)
        files.require_no_change()
        f.quirks.unlisted_ids = []
        await f.update(compare=True)
        files.require_change("")

        # The reachability is not in the index.
        now = time.time()
        files.require_change(
            "down", Reachability(online=False, since=now, error="down", changed_at=now)
        )
        later = time.time()
        files.require_change(
            "out", Reachability(online=False, since=now, error="out", changed_at=later)
        )
