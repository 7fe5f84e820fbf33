"""A snapshot that is killed at any moment: what has a date is whole, and the next run goes on."""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from jmapfs.snapshot.repository import Repository
from tests.crash.forked import ForkedHome, ForkedProcess, Trap
from tests.crash.kills import Kills, each_number_of_kills, files_below
from tests.mails import random_mail
from tests.mount.changing_account import ChangingAccount, small_emails
from tests.mounts import Mounted
from tests.snapshot.commands import dates, everything_in, require_whole, tree_of

NEW_MAILS = 30
LARGE_BYTES = 1_500_000


class SnapshotLife:
    """Takes snapshots of an account that changes, and checks what each run leaves."""

    def __init__(self, home: ForkedHome, account: ChangingAccount, mount: Mounted | None) -> None:
        self.dest = home.directory / "dest"
        self._home = home
        self._account = account
        self._mount = mount
        self._earlier: dict[str, dict[str, tuple[int, int, int, int]]] = {}
        self._left: set[str] = set()
        self._next = 10_000

    def change(self) -> None:
        control, ids = self._account.control, self._account.ids
        self._account.churn(1)
        control.add_emails(small_emails(self._next, NEW_MAILS, ids["Inbox"]))
        control.add_email(random_mail(self._next, LARGE_BYTES), [ids["Work"]])
        emails = control.dump().emails_in(ids["Inbox"])
        control.destroy_emails([email.id for email in emails[: NEW_MAILS - 10]])
        self._next += NEW_MAILS

    def start(self, trap: Trap | None = None, *, count_calls: bool = False) -> ForkedProcess:
        source = self._account.server.url if self._mount is None else self._mount.path
        arguments = ("snapshot", "--json", "--max-gone", "100", source, self.dest)
        return self._home.start(*arguments, trap=trap, count_calls=count_calls)

    def check_killed(self) -> None:
        """What was published before the kill is whole; what was published earlier is the same."""
        for date in dates(self.dest):
            path = self.dest / date
            if date not in self._earlier:
                require_whole(path)
                self._earlier[date] = everything_in(path)
            assert everything_in(path) == self._earlier[date]

    def check_next(self) -> None:
        """The next run succeeds, uses what was staged, and leaves only snapshots."""
        staged = self._staged()
        if self._mount is not None:
            # The lease of a run that was killed lasts for half a minute.
            self._mount.thaw()
            self._mount.sync()
        result = self.start().result()
        assert (result.exit_code, result.stderr) == (0, ""), result
        summary = json.loads(result.stdout)
        assert summary["taken_over"] >= staged.total()
        assert {path.name for path in self.dest.iterdir()} == {
            ".jmapfs",
            "latest",
            *dates(self.dest),
        }
        assert (self.dest / "latest").resolve().name == summary["date"]
        found = Counter(digest for digest, _, _ in tree_of(Path(summary["path"])).values())
        truth: Counter[str] = sum(self._account.tree().values(), Counter())
        assert found == truth
        assert self._home.run("verify", "--quiet", summary["path"]).exit_code == 0
        left = files_below(self.dest / ".jmapfs")
        self._left = self._left or left
        assert left == self._left
        self.check_killed()

    def _staged(self) -> Counter[str]:
        """Return the contents of interrupted runs that the account still has, whole in a file."""
        wanted = {email.blob_id: email.size for email in self._account.control.dump().emails}
        previous = self._blobs_of_last()
        found: Counter[str] = Counter()
        for path in Repository(self.dest).unfinished():
            with contextlib.suppress(FileNotFoundError):
                for line in (path / "journal.jsonl").read_bytes().splitlines()[1:]:
                    with contextlib.suppress(msgspec.DecodeError):
                        blob_id, size, _, file, *_ = msgspec.json.decode(line)
                        file = path / file
                        is_whole = file.is_file() and file.stat().st_size == size
                        if is_whole and wanted.get(blob_id) == size and blob_id not in previous:
                            found[blob_id] = 1
        return found

    def _blobs_of_last(self) -> set[str]:
        if not dates(self.dest):
            return set()
        lines = (self.dest / dates(self.dest)[-1] / "manifest.jsonl").read_bytes().splitlines()
        return {str(msgspec.json.decode(line).get("blobId", "")) for line in lines}


@each_number_of_kills
@pytest.mark.parametrize("mounted", [False, pytest.param(True, marks=pytest.mark.mount)])
def test_a_snapshot_killed_at_any_moment(
    account: ChangingAccount, home: ForkedHome, chance: random.Random, kills: int, *, mounted: bool
) -> None:
    with contextlib.ExitStack() as stack:
        mount = stack.enter_context(home.mounted(account.server.url)) if mounted else None
        life = SnapshotLife(home, account, mount)
        life.change()
        began = time.monotonic()
        process = life.start(count_calls=True)
        assert process.result().exit_code == 0
        seconds = time.monotonic() - began
        every = Kills(kills // 2, chance, process.calls(), seconds, core="snapshot/")
        staged = published = 0

        def run(trap: Trap) -> bool:
            nonlocal staged, published
            # Sometimes several interrupted runs are left.
            if chance.random() < 0.7:
                life.change()
            before = dates(life.dest)
            killed = life.start(trap).was_trapped()
            life.check_killed()
            staged += killed and bool(Repository(life.dest).unfinished())
            published += killed and dates(life.dest) != before
            if chance.random() < 0.7:
                life.check_next()
            return killed

        every.repeat(run)
        assert staged > kills // 10
        life.check_next()
