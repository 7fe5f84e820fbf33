"""`jmapfs prefetch`: downloads email into the caches of mounts, one small request after another.

The emails below the given paths are found by listing directories. No file is read. The mounts
remember nothing between two requests, so an interrupted run can simply be repeated.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import click

from jmapfs.cli.options import directory_type, format_size
from jmapfs.cli.output import print_line
from jmapfs.cli.progress import MailProgress, waiting_shown
from jmapfs.control.messages import (
    PREFETCH_STEP,
    CacheUse,
    Failure,
    MissingMails,
    MissingRequest,
    PrefetchRequest,
)
from jmapfs.control.mounts import DEAD, DEAD_ERRNOS, mount_of, require_readable
from jmapfs.control.socket_client import ask, require_answer
from jmapfs.deadline import LEAST_RATE, LONGEST_STALL, NO_PROGRESS
from jmapfs.errors import (
    DeadlineError,
    JmapfsError,
    NotMountedError,
    RelayedError,
    StorageError,
    UsageError,
)

_EMAIL: Final = ".eml"

# Give up after this many requests in a row in which an obstacle prevented every download.
_FUTILE_REQUESTS: Final = 2

_NAMED: Final = 3


def mails_below(paths: Iterable[Path]) -> dict[Path, dict[int, str]]:
    """Return, for each mountpoint, the emails at and below paths: their inodes and one path each.

    Raises:
        NotMountedError: a path is in no mount of jmapfs, or in a dead mount.
        UsageError: a path does not exist, is not an email, cannot be listed, or is in a mount of
            another user.
        StorageError: the mount cannot list a directory.
    """
    found: dict[Path, dict[int, str]] = {}
    for path in paths:
        actual = Path(os.path.realpath(path))
        mount = mount_of(actual)
        if mount is None:
            raise NotMountedError(
                f"{actual}: jmapfs is not mounted there; jmapfs status shows all mounts"
            )
        require_readable(mount)
        found.setdefault(mount.mountpoint, {}).update(_mails(actual))
    return found


def _mails(path: Path) -> Iterator[tuple[int, str]]:
    with _os_errors(path):
        status = path.lstat()
    if stat.S_ISDIR(status.st_mode):
        yield from _mails_in(path)
    elif path.name.endswith(_EMAIL):
        yield status.st_ino, str(path)
    else:
        raise UsageError(f"{path}: neither a mail nor a directory")


def _mails_in(directory: Path) -> Iterator[tuple[int, str]]:
    pending = [str(directory)]
    while pending:
        path = pending.pop()
        with _os_errors(path), os.scandir(path) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                elif entry.name.endswith(_EMAIL):
                    yield entry.inode(), entry.path


@contextlib.contextmanager
def _os_errors(path: Path | str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in DEAD_ERRNOS:
            raise NotMountedError(f"{path}: {DEAD}") from error
        message = f"{path}: {error.strerror}"
        if error.errno == errno.EIO:
            raise StorageError(message) from error
        raise UsageError(message) from error


@click.command("prefetch")
@click.argument("paths", type=directory_type, metavar="PATH…", nargs=-1, required=True)
def prefetch_command(paths: tuple[Path, ...]) -> None:
    """Fetch all mail below each PATH into the cache.

    PATH is a mountpoint, or a directory or mail in a mount. Use this before a flight, or before a
    backup. Cached mail is not fetched again, so an interrupted run can simply be repeated.
    """
    print_line(prefetch(paths))


def prefetch(paths: Sequence[Path]) -> str:
    """Download all emails below paths into the caches. Return a summary in one line.

    Raises:
        NotMountedError: a path is in no mount of jmapfs, or the mount does not answer.
        StorageError: the cache is too small for all emails.
        JmapfsError: some emails cannot be downloaded. The error has the exit code of its cause.
    """
    for path in paths:
        require_answer(path)
    mounts = [_MountPrefetch(*found) for found in mails_below(paths).items()]
    for mount in mounts:
        mount.find_missing()
    for mount in mounts:
        mount.check()
    for mount in mounts:
        mount.fetch()
    wanted = sum(len(mount.wanted) for mount in mounts)
    missing = [path for mount in mounts for path in mount.missing]
    if missing:
        raise _error(mounts, wanted, missing)
    fetched = sum(len(mount.fetched) for mount in mounts)
    size = format_size(sum(mount.sizes[inode] for mount in mounts for inode in mount.fetched))
    return f"{_count(wanted)} cached: {fetched:,} fetched ({size}), {wanted - fetched:,} were there"


def _error(mounts: Sequence[_MountPrefetch], wanted: int, missing: Sequence[str]) -> JmapfsError:
    reason = next((mount.reason for mount in mounts if mount.reason), None)
    if reason is None:
        # The disk may be nearly full, or other programs may have read much mail meanwhile.
        reason = Failure.of(StorageError("the cache has evicted some of them for lack of space"))
    count = len(missing)
    names = ", ".join(missing[:_NAMED]) + (f" and {count - _NAMED:,} more" * (count > _NAMED))
    return RelayedError(
        f"{wanted - count:,} of {_count(wanted)} cached, {count:,} not: {reason.error} ({names})",
        reason.exit_code,
    )


class _MountPrefetch:
    """The emails of one mount: `wanted` are the emails to cache, `fetched` were downloaded.

    `wanted` has their paths by inode. `sizes` has the size in bytes of each email that was not
    cached before. In the end, `missing` has the paths of emails that are still not cached, and
    `reason` is the cause.
    """

    def __init__(self, mountpoint: Path, wanted: dict[int, str]) -> None:
        self.wanted = wanted
        self.fetched: set[int] = set()
        self.missing: list[str] = []
        self.reason: Failure | None = None
        self._used: Counter[str] = Counter()
        self._mountpoint = mountpoint
        self.sizes: dict[int, int] = {}

    def find_missing(self) -> None:
        """Find the emails that are not cached. Raises StorageError if there is no room for all."""
        caches: dict[str, CacheUse] = {}
        for answer in self._missing():
            self.sizes.update(answer.missing)
            for cache in answer.caches:
                self._used[cache.account] += cache.wanted
                caches[cache.account] = cache
        for cache in caches.values():
            self._require_room(cache)

    def _require_room(self, cache: CacheUse) -> None:
        """Raise StorageError if a cache cannot keep all emails of its account."""
        size = self._used[cache.account]
        place = str(self._mountpoint)
        if len(self._used) > 1:
            place = f"{place}, {cache.account}"
        if not cache.room and cache.limit <= 0:
            raise StorageError(
                f"{place}: the cache keeps no mail: mount it with another --cache-size"
            )
        if size > cache.room:
            disk_is_full = size <= cache.limit
            do = "free space on its disk" if disk_is_full else "mount it with a larger --cache-size"
            raise StorageError(
                f"{place}: {format_size(size)} of mail are wanted, and the cache has room for"
                f" {format_size(cache.room)}: {do}"
            )

    def check(self) -> None:
        """Read the cached emails. This finds damage, and marks the emails as recently used."""
        pending = deque(inode for inode in self.wanted if inode not in self.sizes)
        watch = _Watch()
        with MailProgress("checking the cache", len(pending)) as progress:
            while pending:
                some = _next_step(pending)
                answer = ask(self._mountpoint, MissingRequest(some, read=True))
                self._drop(answer.gone)
                self.sizes.update(answer.missing)
                pending.extendleft(reversed(answer.unchecked))
                progress.advance(len(some) - len(answer.unchecked))
                watch.note(len(some) - len(answer.unchecked))
                if watch.is_stalled:
                    raise StorageError(f"{self._mountpoint}: the cache is not read: {NO_PROGRESS}")

    def fetch(self) -> None:
        """Download the missing emails, and count those that are still not cached."""
        if not self.sizes:
            return
        size = sum(self.sizes.values())
        with (
            MailProgress("fetching mail", len(self.sizes), size) as progress,
            waiting_shown(self._mountpoint),
        ):
            for some in self._fetch_all():
                progress.advance(len(some), sum(self.sizes[inode] for inode in some))
        self.missing = [
            self.wanted[inode]
            for answer in self._missing()
            for inode, _ in answer.missing
            if inode in self.wanted
        ]

    def _fetch_all(self) -> Iterator[set[int]]:
        """Download step by step. Yield the emails that each step has finished."""
        refusal = obstacle = None
        futile = 0
        pending = deque(self.sizes)
        watch = _Watch()
        while pending and futile < _FUTILE_REQUESTS and not watch.is_stalled:
            some = _next_step(pending)
            answer = ask(self._mountpoint, PrefetchRequest(some))
            self._drop(answer.gone)
            # Emails that failed are tried again after all others.
            pending.extendleft(reversed(answer.left))
            pending.extend(answer.unreached)
            done = set(some).difference(answer.left, answer.unreached)
            fetched = done.difference(answer.refused, answer.gone)
            self.fetched |= fetched
            refusal = refusal or answer.refusal
            watch.note(len(fetched), answer.received)
            if fetched:
                futile, obstacle = 0, None
            elif answer.obstacle:
                futile, obstacle = futile + 1, answer.obstacle
            yield done
            try:
                for cache in answer.caches:
                    self._require_room(cache)
            except StorageError as error:
                # The disk has become full. Each further mail would evict another one.
                obstacle = Failure.of(error)
                break
        if watch.is_stalled:
            obstacle = obstacle or Failure.of(DeadlineError(NO_PROGRESS))
        self.reason = obstacle or refusal

    def _missing(self) -> Iterator[MissingMails]:
        """Ask which emails are not cached. Drop the emails that are no longer in the tree."""
        pending = deque(self.wanted)
        while pending:
            answer = ask(self._mountpoint, MissingRequest(_next_step(pending)))
            self._drop(answer.gone)
            yield answer

    def _drop(self, inodes: Iterable[int]) -> None:
        for inode in inodes:
            self.wanted.pop(inode, None)
            self.fetched.discard(inode)


class _Watch:
    """Tells whether nothing was done for LONGEST_STALL seconds. Bytes give more time."""

    def __init__(self) -> None:
        self._until = time.monotonic() + LONGEST_STALL

    def note(self, mails: int, received: int = 0) -> None:
        """Record how many mails were done, and how many bytes arrived."""
        latest = time.monotonic() + LONGEST_STALL
        self._until = latest if mails else min(latest, self._until + received / LEAST_RATE)

    @property
    def is_stalled(self) -> bool:
        """Whether to give up."""
        return time.monotonic() >= self._until


def _next_step(pending: deque[int]) -> list[int]:
    return [pending.popleft() for _ in range(min(PREFETCH_STEP, len(pending)))]


def _count(count: int) -> str:
    return "1 mail is" if count == 1 else f"{count:,} mails are"
