"""What `jmapfs verify` found in each snapshot: DEST/.jmapfs/verified.json.

Without this record, no snapshot counts as verified or as damaged.
"""

import contextlib
import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from jmapfs.errors import UNDECODABLE, StorageError
from jmapfs.locking import wait_for_lock
from jmapfs.private_files import create_file, open_reading, private_directory
from jmapfs.snapshot.files import sync_directory
from jmapfs.snapshot.manifest import parse_date

Kind = Literal["altered", "missing", "extra"]
Outcome = Literal["good", "altered", "missing", "extra"]
"""The worst kind of finding in a snapshot, or "good"."""

STATE_DIRECTORY: Final = ".jmapfs"
"""The directory of a repository for files that belong to no snapshot."""

_NAME: Final = "verified.json"
_NEW_NAME: Final = "verified.json.new"
# A snapshot takes about 100 bytes.
_MAX_BYTES: Final = 64 << 20
_LOCK_SECONDS: Final = 10.0
_DAMAGE: Final[frozenset[Outcome]] = frozenset({"altered", "missing"})


class Verification(msgspec.Struct, frozen=True):
    """The result of a snapshot's last verification. If it was `quick`, no content was read.

    `when` is in UTC. If it was `online`, the mail was also compared with the server. Earlier
    versions did not write this member.
    """

    when: Annotated[datetime, msgspec.Meta(tz=True)]
    outcome: Outcome
    quick: bool
    online: bool = False

    @property
    def found_damage(self) -> bool:
        """Whether files were altered or missing. Extra files are no damage."""
        return self.outcome in _DAMAGE


class _Document(msgspec.Struct, frozen=True):
    snapshots: dict[str, Verification] = {}


class VerificationRecord:
    """The verifications of the snapshots in the directory `repository`, by date.

    A record that cannot be read counts as empty.
    """

    def __init__(self, repository: Path) -> None:
        self._verifications = _read(repository / STATE_DIRECTORY)

    def find(self, date: str) -> Verification | None:
        """Return the last verification of a snapshot, or None if it was never verified."""
        return self._verifications.get(date)

    def is_damaged(self, date: str) -> bool:
        """Return whether damage was found in a snapshot."""
        verification = self.find(date)
        return verification is not None and verification.found_damage

    def may_be_damaged(self, date: str, taken: datetime, *, online: bool = False) -> bool:
        """Return whether damage found after a snapshot was taken may be in the snapshot's files.

        Snapshots share files, so damage that was found in any snapshot counts. The answer is False
        only if a later verification has read the snapshot's own files and found them right, or if
        no damage was found. With `online`, only comparisons with the server count.
        """
        own = self.find(date)
        since = taken
        if own is not None and (own.online if online else not own.quick):
            since = max(taken, own.when)
        return any(
            one.found_damage and (one is own or one.when >= since)
            for one in self._verifications.values()
            if one.online or not online
        )


def save_verification(repository: Path, date: str, verification: Verification) -> None:
    """Record a verification on the disk, and drop the records of snapshots that are gone.

    A verification that has found damage is only replaced by one that compared as much: a quick one
    cannot tell whether damage to the content is repaired, and without the server none can tell
    whether the content is that of the server. Raises StorageError if the record cannot be written.
    """
    with _updated(repository) as kept:
        before = kept.get(date)
        compares_less = before is not None and (
            (verification.quick and not before.quick) or (before.online and not verification.online)
        )
        if before is None or not (before.found_damage and compares_less):
            kept[date] = verification


def copy_verification(repository: Path, old: str, new: str) -> None:
    """Record the verification of a snapshot also under the date that it is about to get.

    The one under the old date is dropped later, like those of all snapshots that are gone. Raises
    StorageError.
    """
    if VerificationRecord(repository).find(old) is not None:
        with _updated(repository, new) as kept:
            kept[new] = kept[old]


@contextlib.contextmanager
def _updated(repository: Path, coming: str = "") -> Iterator[dict[str, Verification]]:
    """Lend the record for a change, and write it, without the snapshots that are gone.

    The snapshot `coming` does not exist yet.
    """
    directory = repository / STATE_DIRECTORY
    try:
        private_directory(directory, shared=True)
        with _locked(directory):
            kept = _read(directory)
            yield kept
            existing = {
                one: kept[one]
                for one in sorted(kept)
                if one == coming or (repository / one).is_dir()
            }
            _write(directory, msgspec.json.encode(_Document(existing)))
    except OSError as error:
        raise StorageError(
            f"{directory}: the result cannot be recorded: {error.strerror}"
        ) from error


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Prevent other processes from writing the record between our read and our write."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        try:
            wait_for_lock(descriptor, _LOCK_SECONDS)
        except TimeoutError:
            raise
        except OSError:
            # Some file systems, such as NFS, cannot lock a directory. There the last writer wins.
            pass
        yield
    finally:
        os.close(descriptor)


def _read(directory: Path) -> dict[str, Verification]:
    try:
        with open_reading(directory / _NAME) as file:
            document = msgspec.json.decode(file.read(_MAX_BYTES), type=_Document)
    except (OSError, *UNDECODABLE):
        return {}
    return {date: one for date, one in document.snapshots.items() if parse_date(date) is not None}


def _write(directory: Path, content: bytes) -> None:
    new = directory / _NEW_NAME
    new.unlink(missing_ok=True)
    with os.fdopen(create_file(new, 0o600), "wb") as file:
        file.write(msgspec.json.format(content, indent=2) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    new.replace(directory / _NAME)
    sync_directory(directory)
