"""What was found when snapshots were verified: DEST/.jmapfs/verified.json.

It is a memory, not a proof. Without it nothing is taken for good, and nothing for damaged.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final

import msgspec

from jmapfs.errors import UNDECODABLE, StorageError
from jmapfs.snapshot.files import created, sync_directory
from jmapfs.snapshot.findings import Outcome
from jmapfs.snapshot.repository import Repository, is_date

_NAME: Final = "verified.json"
_NEW: Final = "verified.json.new"
# Some 100 bytes are for one snapshot.
_MOST_BYTES: Final = 64 << 20
_LOCK_SECONDS: Final = 10.0
_PAUSE_SECONDS: Final = 0.05
_DAMAGE: Final[frozenset[Outcome]] = frozenset({"altered", "missing"})


class Verification(msgspec.Struct, frozen=True):
    """What was found `when` (UTC) a snapshot was verified last; `quick`: no content was read."""

    when: Annotated[datetime, msgspec.Meta(tz=True)]
    outcome: Outcome
    quick: bool

    @property
    def found_damage(self) -> bool:
        """Whether mail, or what tells of it, is not as it was; what is extra harms none."""
        return self.outcome in _DAMAGE


class _Document(msgspec.Struct, frozen=True):
    snapshots: dict[str, Verification] = {}


class VerificationRecord:
    """The verifications that are on record for a destination, by the dates of snapshots."""

    def __init__(self, verifications: dict[str, Verification]) -> None:
        self._verifications = verifications

    @classmethod
    def read(cls, destination: Repository) -> VerificationRecord:
        """Return what is on record; what cannot be read, or is something else, is nothing."""
        return cls(_read(destination.state_directory))

    def find(self, date: str) -> Verification | None:
        """Return what was found last in a snapshot, or None if it was never verified."""
        return self._verifications.get(date)

    def is_damaged(self, date: str) -> bool:
        """Tell whether damage was found in a snapshot."""
        verification = self.find(date)
        return verification is not None and verification.found_damage

    def doubts(self, date: str, taken: datetime) -> bool:
        """Tell whether a snapshot may have files in which damage was found since it was taken.

        Files are shared, so that may have been in any other. Only that its own were read since
        then, and were right, is a reason not to doubt it.
        """
        if self.is_damaged(date):
            return True
        own = self.find(date)
        since = taken if own is None or own.quick else max(taken, own.when)
        return any(one.found_damage and one.when >= since for one in self._verifications.values())


def destination_of(directory: Path) -> Repository | None:
    """Return the destination that a snapshot is in; None for a copy somewhere else.

    Raises:
        StorageError: the directory around it cannot be read.
    """
    destination = Repository(directory.parent)
    if not is_date(directory.name):
        return None
    if destination.state_directory.is_dir():
        return destination
    others = [one for one in destination.snapshots() if one.path != directory]
    return destination if others else None


def record(destination: Repository, date: str, verification: Verification) -> None:
    """Put what was found in a snapshot on record, and on the disk; forget snapshots that are gone.

    Where content was read and damage found, what a look without reading finds changes nothing:
    it cannot tell that the damage is undone.

    Raises:
        StorageError: it cannot be written.
    """
    directory = destination.state_directory
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        with _alone(directory):
            kept = _read(directory)
            before = kept.get(date)
            if before is None or not (
                verification.quick and not before.quick and before.found_damage
            ):
                kept[date] = verification
            there = {one: kept[one] for one in sorted(kept) if (destination.path / one).is_dir()}
            _write(directory, msgspec.json.encode(_Document(there)))
    except OSError as error:
        raise StorageError(
            f"{directory}: what was found cannot be put on record: {error.strerror}"
        ) from error


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Keep others from writing between our reading and our writing."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    """Wait for the lock, which others have for a moment; raises TimeoutError."""
    until = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                raise TimeoutError(errno.ETIMEDOUT, "another process is at work on it") from None
            time.sleep(_PAUSE_SECONDS)
        except OSError:
            # Not every file system has locks (NFS wants files for it): then the last one counts.
            return
        else:
            return


def _read(directory: Path) -> dict[str, Verification]:
    try:
        document = msgspec.json.decode(_content(directory / _NAME), type=_Document)
    except (OSError, *UNDECODABLE):
        return {}
    return {date: one for date, one in document.snapshots.items() if is_date(date)}


def _content(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return b""
        return file.read(_MOST_BYTES)


def _write(directory: Path, content: bytes) -> None:
    new = directory / _NEW
    new.unlink(missing_ok=True)
    with os.fdopen(created(new, 0o600), "wb") as file:
        file.write(msgspec.json.format(content, indent=2) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    new.replace(directory / _NAME)
    sync_directory(directory)
