"""`jmapfs prefetch`: having mounts fetch mail ahead of need, a step at a time.

The mounts remember nothing: what is to be fetched is known here, and what is cached there. So it
can be interrupted at any time, and going on is beginning again.

Which mails there are below some paths: found by listing directories, and nothing is read.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, TypeVar

import click
import msgspec

from jmapfs.cli.options import directory_type, format_size
from jmapfs.cli.output import PrefetchDisplay, console
from jmapfs.control.mounts import mount_of, socket_directory, socket_name
from jmapfs.control.socket_client import ask
from jmapfs.daemon.commands import PREFETCH_STEP, FetchedMails, MissingMails, Reason
from jmapfs.errors import JmapfsError, NotMountedError, RelayedError, StorageError, UsageError

_EMAIL = ".eml"


def mails_below(paths: Iterable[Path]) -> dict[Path, list[int]]:
    """Return the inodes of the mails that paths are or hold, each once, by the mountpoint.

    Raises:
        NotMountedError: a path is in no mount of ours, or in one whose daemon has died.
        UsageError: a path is not there, is no mail, or cannot be listed.
        StorageError: the mount cannot list a directory.
    """
    found: dict[Path, dict[int, None]] = {}
    for path in paths:
        actual = Path(os.path.realpath(path))
        inodes = found.setdefault(_mountpoint_of(actual), {})
        inodes.update(dict.fromkeys(_mails(actual)))
    return {mountpoint: list(inodes) for mountpoint, inodes in found.items()}


def _mountpoint_of(path: Path) -> Path:
    mount = mount_of(path)
    if mount is None:
        raise NotMountedError(f"{path}: jmapfs is not mounted there")
    return mount.mountpoint


def _mails(path: Path) -> Iterator[int]:
    with _explained(path):
        status = path.lstat()
    if stat.S_ISDIR(status.st_mode):
        yield from _mails_in(path)
    elif path.name.endswith(_EMAIL):
        yield status.st_ino
    else:
        raise UsageError(f"{path}: neither a mail nor a directory")


def _mails_in(directory: Path) -> Iterator[int]:
    pending = [str(directory)]
    while pending:
        path = pending.pop()
        with _explained(path), os.scandir(path) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                elif entry.name.endswith(_EMAIL):
                    yield entry.inode()


@contextlib.contextmanager
def _explained(path: Path | str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        message = f"{path}: {error.strerror}"
        if error.errno in {errno.ENOTCONN, errno.ECONNABORTED}:
            raise NotMountedError(message) from error
        if error.errno == errno.EIO:
            raise StorageError(message) from error
        raise UsageError(message) from error


# A step takes a second or two, unless the daemon has much else to do.
_SECONDS: Final = 120.0
# So many times in a row something was in the way and nothing came: then it is in the way.
_VAIN_STEPS: Final = 2

_T = TypeVar("_T")


@click.command("prefetch")
@click.argument("paths", type=directory_type, metavar="PATH…", nargs=-1, required=True)
def prefetch_command(paths: tuple[Path, ...]) -> None:
    """Fetch all mail below each PATH into the cache.

    PATH is a mountpoint, or a directory or mail in a mount. Use this before a flight, or before a
    backup. Cached mail is not fetched again, so an interrupted run can simply be repeated.
    """
    click.echo(prefetch(paths))


def prefetch(paths: Sequence[Path]) -> str:
    """Have all mails below paths cached; return a line that says what there was to do.

    Raises:
        NotMountedError: a path is in no mount of ours, or its daemon does not answer.
        StorageError: the cache is too small for them all.
        JmapfsError: some cannot be had; the exit code is that of the reason.
    """
    display = PrefetchDisplay(console)
    errands = [_Errand(*one, display) for one in mails_below(paths).items()]
    for errand in errands:
        errand.look()
    for errand in errands:
        errand.check()
    for errand in errands:
        errand.fetch()
    wanted = sum(len(errand.wanted) for errand in errands)
    missing = sum(errand.missing for errand in errands)
    if missing:
        raise _failure(errands, wanted, missing)
    fetched = sum(len(errand.fetched) for errand in errands)
    size = format_size(sum(errand.fetched_bytes for errand in errands))
    return f"{_count(wanted)} cached: {fetched:,} fetched ({size}), {wanted - fetched:,} were there"


def _failure(errands: Sequence[_Errand], wanted: int, missing: int) -> JmapfsError:
    """Return the error that says how far it has come, and the first reason why no further."""
    reason = next((errand.reason for errand in errands if errand.reason), None)
    if reason is None:
        # The disk is nearly full, or others have read a great deal meanwhile.
        lost = StorageError("the cache has dropped some again, for want of space")
        reason = Reason.of(lost)
    return RelayedError(
        f"{wanted - missing:,} of {_count(wanted)} cached, {missing:,} not: {reason.error}",
        reason.exit_code,
    )


class _Errand:
    """The mails of one mount that are `wanted` in the cache, and which of them were `fetched`.

    At the end `missing` says how many are not there, and `reason` why.
    """

    def __init__(self, mountpoint: Path, inodes: Iterable[int], display: PrefetchDisplay) -> None:
        self.wanted = dict.fromkeys(inodes)
        self.fetched: set[int] = set()
        self.missing = 0
        self.reason: Reason | None = None
        self._mountpoint = mountpoint
        self._display = display
        self._sizes: dict[int, int] = {}

    @property
    def fetched_bytes(self) -> int:
        """How large the mails are that were fetched."""
        return sum(self._sizes[inode] for inode in self.fetched)

    def look(self) -> None:
        """Find out what is not cached.

        Raises:
            StorageError: the cache is too small for everything.
        """
        taken: Counter[str] = Counter()
        room: dict[str, int] = {}
        for answer in self._missing():
            self._sizes.update(answer.missing)
            for cache in answer.caches:
                taken[cache.account] += cache.wanted
                room[cache.account] = cache.room
        for account, size in taken.items():
            place = f"{self._mountpoint}, {account}" if len(taken) > 1 else str(self._mountpoint)
            _require_room(place, size, room[account])

    def check(self) -> None:
        """Have what is cached read: it may be damaged, and is not to make room for the others."""
        pending = deque(inode for inode in self.wanted if inode not in self._sizes)
        with self._display.checking(len(pending)) as show:
            while pending:
                some = _taken(pending)
                answer = self._ask("missing", some, MissingMails, read=True)
                self._drop(answer.gone)
                self._sizes.update(answer.missing)
                pending.extendleft(reversed(answer.unchecked))
                show(len(some) - len(answer.unchecked))

    def fetch(self) -> None:
        """Have everything fetched that can be had, and find out whether all of it is there."""
        if not self._sizes:
            return
        with self._display.fetching(len(self._sizes), sum(self._sizes.values())) as show:
            for some in self._fetch_all():
                show(len(some), sum(self._sizes[inode] for inode in some))
        self.missing = sum(len(answer.missing) for answer in self._missing())

    def _fetch_all(self) -> Iterator[set[int]]:
        """Fetch, and yield step by step what need not be waited for any longer."""
        refusal = obstacle = None
        vain = 0
        pending = deque(self._sizes)
        while pending and vain < _VAIN_STEPS:
            some = _taken(pending)
            answer = self._ask("prefetch", some, FetchedMails)
            self._drop(answer.gone)
            # What failed is tried again when all the others have been.
            pending.extendleft(reversed(answer.left))
            pending.extend(answer.unreached)
            done = set(some).difference(answer.left, answer.unreached)
            came = done.difference(answer.refused, answer.gone)
            self.fetched |= came
            refusal = refusal or answer.refusal
            if came:
                vain, obstacle = 0, None
            elif answer.obstacle:
                vain, obstacle = vain + 1, answer.obstacle
            yield done
        self.reason = obstacle or refusal

    def _missing(self) -> Iterator[MissingMails]:
        """Ask what is not cached; what the tree does not have any more is not wanted."""
        pending = deque(self.wanted)
        while pending:
            answer = self._ask("missing", _taken(pending), MissingMails)
            self._drop(answer.gone)
            yield answer

    def _drop(self, inodes: Iterable[int]) -> None:
        for inode in inodes:
            self.wanted.pop(inode, None)
            self.fetched.discard(inode)

    def _ask(self, command: str, inodes: Sequence[int], kind: type[_T], **arguments: object) -> _T:
        try:
            answer = ask(
                socket_directory(),
                socket_name(self._mountpoint),
                command,
                seconds=_SECONDS,
                arguments={"inodes": inodes, **arguments},
            )
        except NotMountedError as error:
            raise NotMountedError(f"{self._mountpoint}: {error}") from error
        return msgspec.convert(answer, kind)


def _require_room(place: str, size: int, room: int) -> None:
    if not room:
        raise StorageError(f"{place}: mail is not kept there: mount it with another --cache-size")
    if size > room:
        raise StorageError(
            f"{place}: {format_size(size)} of mail are wanted, and the cache has room for"
            f" {format_size(room)}: mount it with a larger --cache-size"
        )


def _taken(pending: deque[int]) -> list[int]:
    return [pending.popleft() for _ in range(min(PREFETCH_STEP, len(pending)))]


def _count(count: int) -> str:
    return "1 mail is" if count == 1 else f"{count:,} mails are"
