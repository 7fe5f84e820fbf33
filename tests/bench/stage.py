"""What the measurements of one run share: a Cyrus, and accounts on it that are filled once.

All is made when the first measurement asks for it, and is gone at the end of the run.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.bench.figures import Figure, at_most
from tests.bench.stored import Stored, files, store
from tests.bench.surroundings import (
    bench_directory,
    bench_home,
    clear,
    memory,
    timed,
    timed_mount,
    unmount,
)
from tests.cyrus import Account, Cyrus, running_cyrus
from tests.mounting import Home, Mounted

#: The mailbox of at most 1,000 mails, and its directory.
SEARCHED = "Lists"

_LARGEST = "Archive"
_OTHERS = ("INBOX", "Sent", "Work", "Work/Été")
_PEAK = at_most(250)


@dataclass(frozen=True)
class CachedMail:
    """An account all of whose mail is in the disk cache of a home, and its tree on a real disk.

    The tree is a copy by `rsync -a`, and there is a second one, for what compares two.
    """

    account: Account
    home: Home
    tree: Path
    second_tree: Path
    mails: int


class Stage:
    """What there is to measure with, and what was seen of the daemons meanwhile."""

    def __init__(
        self,
        stack: contextlib.ExitStack,
        *,
        mails: int,
        cached_mails: int,
        runs: int,
        cyrus_directory: Path | None = None,
    ) -> None:
        self._cyrus_directory = cyrus_directory
        self.mails = mails
        self.runs = runs
        self._cached_mails = cached_mails
        self._stack = stack
        self._peaks: list[float] = []

    @functools.cached_property
    def cyrus(self) -> Cyrus:
        """A server of our own, its files in memory where there is room, if not said otherwise."""
        return self._stack.enter_context(running_cyrus(self._cyrus_directory))

    @functools.cached_property
    def stored(self) -> Stored:
        """The account that is read while nothing of it is cached."""
        return store(self.cyrus, "cold", _shares(self.mails))

    @functools.cached_property
    def _to_cache(self) -> Stored:
        return store(self.cyrus, "cached", _shares(self._cached_mails))

    @functools.cached_property
    def cached(self) -> CachedMail:
        """The account that is read from the disk cache, and from the kernel's."""
        stored = self._to_cache
        home = self._stack.enter_context(self.home(stored.account))
        directory = self.directory()
        tree, second = directory / "tree", directory / "second"
        with self.mounted(home, stored.account) as (mount, _):
            timed("rsync", "-a", f"{mount.path}/", tree)
        stored.check(files(tree), "the mail to be cached")
        with self.mounted(home, stored.account) as (mount, _):
            if (blobs := mount.ask_status().accounts[0].cache.blobs) != len(stored):
                raise RuntimeError(f"{blobs} mails are cached of {len(stored)}")
        timed("rsync", "-a", f"{tree}/", second)
        return CachedMail(stored.account, home, tree, second, len(stored))

    def directory(self) -> Path:
        """Return a new directory on a real disk, which goes with all others at the end of the run.

        No sooner: for half a minute after many files were deleted, ext4 passes over their inodes
        one by one whenever it makes a new one (`recently_deleted` in fs/ext4/ialloc.c), and who
        copies then takes several times as long.
        """
        return self._stack.enter_context(bench_directory())

    @contextlib.contextmanager
    def home(self, account: Account) -> Iterator[Home]:
        """Have a home with nothing in its caches."""
        with bench_home(account.name, account.password) as home:
            yield home

    @contextlib.contextmanager
    def mounted(self, home: Home, account: Account) -> Iterator[tuple[Mounted, float]]:
        """Have the account mounted; give the mount and how many seconds it took."""
        try:
            mount, seconds = timed_mount(home, account.url)
            yield mount, seconds
            daemon = psutil.Process(mount.ask_status().pid)
            family = (daemon, *daemon.children(recursive=True))
            self._peaks.append(sum(memory(process.pid)[0] for process in family))
            unmount(mount)
        except BaseException:
            # Others are to mount there when this measurement has failed.
            clear(home)
            raise

    @contextlib.contextmanager
    def mounted_anew(self, account: Account) -> Iterator[tuple[Mounted, float]]:
        """Have the account mounted in a home of its own, with nothing cached anywhere."""
        with self.home(account) as home, self.mounted(home, account) as mounted:
            yield mounted

    def peak_memory(self) -> list[Figure]:
        """Return what the largest of all daemons so far had in memory at its peak."""
        if not self._peaks:
            return []
        return [Figure("peak memory of a daemon in all of it", "MB", (max(self._peaks),), _PEAK)]


def _shares(mails: int) -> dict[str, int]:
    """Spread mails over mailboxes: one of a tenth but at most 1,000, one of two fifths."""
    shares = {SEARCHED: max(1, min(1_000, mails // 10)), _LARGEST: mails * 2 // 5}
    rest = mails - sum(shares.values())
    for number, name in enumerate(_OTHERS):
        shares[name] = (rest + number) // len(_OTHERS)
    return shares
