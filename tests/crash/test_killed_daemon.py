"""A daemon that is killed at any moment: the mount says so, and the next one shows the truth."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jmapfs.control.mounts import mount_at
from tests.crash.forked import ForkedHome, ForkedProcess, Trap
from tests.crash.kills import Kills, each_number_of_kills, files_below
from tests.mails import random_mail
from tests.mount.changing_account import ChangingAccount, State, read_state, tree_of
from tests.mounts import Result, portable
from tests.waits import wait_until

pytestmark = pytest.mark.mount

READERS = 3
LARGE_BYTES = 1_500_000
_DEAD = {errno.ENOTCONN, errno.ECONNABORTED}


class DaemonLife:
    """Runs daemons on one home and account, and checks what programs see of them."""

    def __init__(self, home: ForkedHome, account: ChangingAccount) -> None:
        self.path = home.directory / "mnt"
        self.path.mkdir()
        self.left: set[str] | None = None
        self._home = home
        self._account = account
        self._url = account.server.url
        self._known: set[str] = set()
        self._read: set[str] = set()
        self._seen: State = {}
        for number in range(2):
            self._add_large(number)

    def start(self, trap: Trap | None = None, *, count_calls: bool = False) -> ForkedProcess:
        return self._home.start(
            *("mount", "--foreground", "--verbose", self._url, self.path),
            trap=trap,
            count_calls=count_calls,
        )

    def use(self, process: ForkedProcess) -> None:
        """Read everything, change the account, and unmount: until the end, or until the kill."""
        while not self.is_mounted() and not process.ended(0.005):
            pass
        self._read.clear()
        self._note_contents()
        self._account.churn(2)
        self._note_contents()
        readers = [
            threading.Thread(target=self._read_all, args=(process, number))
            for number in range(READERS)
        ]
        self._errors: list[BaseException] = []
        for reader in readers:
            reader.start()
        self._account.churn(2)
        for reader in readers:
            reader.join()
        assert not self._errors, self._errors
        self._note_contents()
        assert self._read <= self._known
        if not process.ended():
            # One more listing, from the beginning.
            self._account.control.forget_changes()
            self._home.run("sync", self.path)
            self._home.run("umount", self.path)

    def is_mounted(self) -> bool:
        mount = mount_at(self.path)
        return mount is not None and mount.ours

    def check_death(self) -> bool:
        """Check that a dead mount is no empty directory; return whether there is one."""
        if not self.is_mounted():
            # It was killed before it had mounted, or after it had unmounted.
            assert list(self.path.iterdir()) == []
            return False
        wait_until(lambda: errno_of(lambda: os.statvfs(self.path)) in _DEAD, 5)
        assert errno_of(lambda: list(self.path.iterdir())) == errno.ENOTCONN
        assert errno_of(lambda: os.statvfs(self.path)) == errno.ENOTCONN
        return True

    def check_next(self) -> None:
        """The next mount needs no repair, and shows what the server has."""
        with self._home.mounted(self._url, path=self.path) as mount:
            assert "only reads the index" not in mount.result.stderr
            found = read_state(mount)
            assert tree_of(found) == self._account.tree()
            assert_nothing_moved(self._seen, found)
            self._seen = found
            blobs = mount.ask_status().accounts[0].cache.blobs
            assert blobs > 0
        large = [name for name in self.files() if "/large/" in name]
        assert len(large) <= 2
        left = self.files() - set(large)
        if self.left is None:
            self.left = left
        assert left == self.left

    def check_like_another_machine(self, directory: Path) -> None:
        """The index that survived all kills is that of a first listing."""
        other = ForkedHome(
            directory, self._home.username, self._home.password, forker=self._home.forker
        )
        with (
            self._home.mounted(self._url, path=self.path) as mount,
            other.mounted(self._url) as fresh,
        ):
            survived, listed = mount.entries(), fresh.entries()
            assert {path: portable(one) for path, one in survived.items()} == {
                path: portable(one) for path, one in listed.items()
            }

    def files(self) -> set[str]:
        """Return the files of the cache, the state and the runtime directory."""
        return files_below(*(self._home.directory / name for name in ("cache", "state", "run")))

    def _read_all(self, process: ForkedProcess, number: int) -> None:
        """Read all files; only the death of the daemon is an excuse for an error."""
        chance = random.Random(number)
        try:
            names = {path.name for path in self.path.iterdir()}
            assert ".jmapfs.json" in names or not self.is_mounted()
            files = sorted(self.path.rglob("*.eml"))
            chance.shuffle(files)
            for path in files:
                try:
                    self._read.add(hashlib.sha256(path.read_bytes()).hexdigest())
                except OSError as error:
                    # The account changes: a mail that is gone cannot be read.
                    if error.errno not in {errno.ENOENT, errno.EIO}:
                        raise
        except OSError as error:
            if not process.ended(2):
                self._errors.append(error)
        except BaseException as error:  # noqa: BLE001 - raised in the test
            self._errors.append(error)

    def _note_contents(self) -> None:
        self._known |= {email.sha256 for email in self._account.control.dump().emails}

    def _add_large(self, number: int) -> None:
        self._account.control.add_email(
            random_mail(number, LARGE_BYTES), [self._account.ids["Work"]]
        )


def errno_of(attempt: Callable[[], object]) -> int | None:
    try:
        attempt()
    except OSError as error:
        return error.errno
    return None


def assert_nothing_moved(before: State, after: State) -> None:
    """What is in both states has the same inode, mode, size and times; directories go forwards."""
    for path in before.keys() & after.keys() - {".jmapfs.json"}:
        old, new = before[path][0], after[path][0]
        # The second and third fields are the mode and the number of links.
        assert old[0] == new[0], path
        if stat.S_ISDIR(old[1]):
            assert old[1] == new[1], path
            assert old[6] <= new[6], path
        else:
            assert old[1:2] + old[3:] == new[1:2] + new[3:], path
            assert before[path][1] == after[path][1], path


@each_number_of_kills
def test_a_daemon_killed_at_any_moment(
    account: ChangingAccount, home: ForkedHome, chance: random.Random, kills: int, tmp_path: Path
) -> None:
    life = DaemonLife(home, account)
    began = time.monotonic()
    process = life.start(count_calls=True)
    life.use(process)
    result = process.result()
    assert result.exit_code == 0, result
    every = Kills(kills, chance, process.calls(), time.monotonic() - began)
    life.check_next()
    deaths = 0

    def run(trap: Trap) -> bool:
        nonlocal deaths
        process = life.start(trap)
        life.use(process)
        killed = process.was_trapped()
        if life.check_death():
            assert killed
            deaths += 1
            if chance.random() < 0.5:
                cleared = home.run("umount", life.path)
                assert cleared == Result(0, "", "")
                assert list(life.path.iterdir()) == []
        life.check_next()
        return killed

    every.repeat(run)
    # Most kills left a dead mount.
    assert deaths > kills // 4
    life.check_like_another_machine(tmp_path / "other")
