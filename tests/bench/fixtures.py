"""What the measurements of a run share: a Cyrus and accounts on it.

They are created at their first use and removed at the end of the run.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.bench.figures import Figure, at_most
from tests.bench.harness import (
    bench_directory,
    bench_home,
    clear,
    memory,
    timed,
    timed_mount,
    unmount,
)
from tests.bench.source_account import SourceAccount, create_source_account, mail_files
from tests.cyrus import Account, Cyrus, running_cyrus
from tests.mounts import Home, Mounted

#: A mailbox of at most 1,000 mails, and its directory.
SEARCHED = "Lists"

_LARGEST = "Archive"
_OTHERS = ("INBOX", "Sent", "Work", "Work/Été")
_PEAK = at_most(250)


@dataclass(frozen=True)
class CachedMail:
    """An account whose mail is all in the disk cache of a home, and copies of it on a real disk.

    The tree is a copy by `rsync -a`; the second one is for programs that compare two trees.
    """

    account: Account
    home: Home
    tree: Path
    second_tree: Path
    mails: int


class Fixtures:
    """The accounts to measure with, and the peak memory of the daemons."""

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
        """A private server; its files are in memory by default, if there is space."""
        return self._stack.enter_context(running_cyrus(self._cyrus_directory))

    @functools.cached_property
    def source(self) -> SourceAccount:
        """The account for measurements without a cache."""
        return create_source_account(self.cyrus, "cold", _shares(self.mails))

    @functools.cached_property
    def _source_of_cached(self) -> SourceAccount:
        return create_source_account(self.cyrus, "cached", _shares(self._cached_mails))

    @functools.cached_property
    def cached(self) -> CachedMail:
        """The account that is read from the caches of jmapfs and of the kernel."""
        source = self._source_of_cached
        home = self._stack.enter_context(self.home(source.account))
        directory = self.directory()
        tree, second = directory / "tree", directory / "second"
        with self.mounted(home, source.account) as (mount, _):
            timed("rsync", "-a", f"{mount.path}/", tree)
        source.check(mail_files(tree), "jmapfs")
        with self.mounted(home, source.account) as (mount, _):
            if (blobs := mount.ask_status().accounts[0].cache.blobs) != len(source):
                raise RuntimeError(f"{blobs} of {len(source)} mails are cached")
        timed("rsync", "-a", f"{tree}/", second)
        return CachedMail(source.account, home, tree, second, len(source))

    def directory(self) -> Path:
        """Return a new directory on a real disk; it is removed at the end of the run.

        Not earlier: for half a minute after the deletion of many files, ext4 skips their inodes
        one by one at each creation (`recently_deleted` in fs/ext4/ialloc.c), and copies take
        several times as long.
        """
        return self._stack.enter_context(bench_directory())

    @contextlib.contextmanager
    def home(self, account: Account) -> Iterator[Home]:
        """Provide a home with empty caches."""
        with bench_home(account.name, account.password) as home:
            yield home

    @contextlib.contextmanager
    def mounted(self, home: Home, account: Account) -> Iterator[tuple[Mounted, float]]:
        """Mount the account; yield the mount and its duration in seconds."""
        try:
            mount, seconds = timed_mount(home, account.url)
            yield mount, seconds
            daemon = psutil.Process(mount.ask_status().pid)
            family = (daemon, *daemon.children(recursive=True))
            self._peaks.append(sum(memory(process.pid)[0] for process in family))
            unmount(mount)
        except BaseException:
            # After a failure, other measurements mount there.
            clear(home)
            raise

    @contextlib.contextmanager
    def mounted_without_cache(self, account: Account) -> Iterator[tuple[Mounted, float]]:
        """Mount the account in a new home, with empty caches."""
        with self.home(account) as home, self.mounted(home, account) as mounted:
            yield mounted

    def peak_memory(self) -> list[Figure]:
        """Return the largest peak memory of all daemons so far."""
        if not self._peaks:
            return []
        return [Figure("peak memory of a daemon in all of it", "MB", (max(self._peaks),), _PEAK)]


def _shares(mails: int) -> dict[str, int]:
    """Return the number of mails by mailbox: one has a tenth, at most 1,000, one two fifths."""
    shares = {SEARCHED: max(1, min(1_000, mails // 10)), _LARGEST: mails * 2 // 5}
    rest = mails - sum(shares.values())
    for number, name in enumerate(_OTHERS):
        shares[name] = (rest + number) // len(_OTHERS)
    return shares
