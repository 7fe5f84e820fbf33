"""The list of the snapshots in a repository, with their recorded states, for `jmapfs snapshots`."""

import os
from datetime import UTC, datetime
from typing import Literal

import msgspec

from jmapfs.errors import AlteredFilesError, MissingFilesError, StorageError
from jmapfs.snapshot.manifest import CHECKSUMS, MANIFEST, Description
from jmapfs.snapshot.repository import Repository, Snapshot
from jmapfs.snapshot.verify_record import Verification, VerificationRecord
from jmapfs.tree.status_file import ShortfallStatus

State = Literal["complete", "incomplete", "damaged", "unreadable"]
"""The recorded state. `incomplete`: it was made without mails that the account has.
`unreadable`: we cannot read it, or a later jmapfs made it."""


class SnapshotStatus(msgspec.Struct, frozen=True):
    """A snapshot in the list. Values that the description of the snapshot does not give are None.

    `missing` mails could not be downloaded. With a `shortfall`, the server counted more mails than
    it listed. `files` counts names. `bytes` is the size of the content, each blob counted once.
    `new`, `gone` and `added_bytes` compare with the snapshot `previous`, which may have been pruned
    since. `verified` is the last result of `jmapfs verify`. With `in_future`, the date of the
    snapshot is later than now.
    """

    date: str
    state: State
    mails: int | None = None
    missing: int | None = None
    shortfall: ShortfallStatus | None = None
    files: int | None = None
    bytes: int | None = None
    previous: str | None = None
    new: int | None = None
    gone: int | None = None
    added_bytes: int | None = None
    verified: Verification | None = None
    in_future: bool = False


class RepositoryOverview(msgspec.Struct, frozen=True):
    """All snapshots of a repository, the oldest first.

    `unfinished` contains the runs that did not end. At most one of them may still be running.
    `half_removed` counts the snapshots that an interrupted prune has removed only in part.
    """

    snapshots: tuple[SnapshotStatus, ...]
    unfinished: int
    half_removed: int


def list_snapshots(repository: Repository) -> RepositoryOverview:
    """List the snapshots with their recorded states, without reading their manifests.

    Raises UsageError if the directory does not exist, and StorageError if it cannot be read.
    """
    repository.require_directory()
    record = VerificationRecord(repository.path)
    now = datetime.now(UTC)
    lines = tuple(_status(one, record.find(one.date), now) for one in repository.snapshots())
    half_removed = len(repository.half_removed())
    return RepositoryOverview(lines, len(repository.unfinished()) - half_removed, half_removed)


def _status(snapshot: Snapshot, verification: Verification | None, now: datetime) -> SnapshotStatus:
    in_future = snapshot.is_later_than(now)
    state, description = _recorded_state(snapshot)
    if verification is not None and verification.found_damage:
        state = "damaged"
    if description is None:
        return SnapshotStatus(snapshot.date, state, verified=verification, in_future=in_future)
    return SnapshotStatus(
        date=snapshot.date,
        state=state,
        mails=description.mails,
        missing=description.missing,
        shortfall=description.shortfall,
        files=description.files,
        bytes=description.bytes,
        previous=description.previous,
        new=description.new,
        gone=description.gone,
        added_bytes=description.added_bytes,
        verified=verification,
        in_future=in_future,
    )


def _recorded_state(snapshot: Snapshot) -> tuple[State, Description | None]:
    try:
        description = snapshot.description()
    except (MissingFilesError, AlteredFilesError):
        return "damaged", None
    except StorageError:
        return "unreadable", None
    files = [snapshot.path / file for file in (MANIFEST, CHECKSUMS)]
    if not all(file.is_file() and not file.is_symlink() for file in files):
        return "damaged", description
    is_readable = all(os.access(file, os.R_OK) for file in files)
    if not is_readable:
        return "unreadable", description
    return "incomplete" if description.lacking else "complete", description
