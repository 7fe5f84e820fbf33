"""What snapshots there are, and how they are, by what is on record: no manifest is read."""

from __future__ import annotations

import os
from typing import Literal

import msgspec

from jmapfs.errors import AlteredFilesError, MissingFilesError, StorageError, UsageError
from jmapfs.snapshot.manifest import CHECKSUMS, MANIFEST, Description
from jmapfs.snapshot.remove import half_removed
from jmapfs.snapshot.repository import Repository, Snapshot
from jmapfs.snapshot.verify_record import Verification, VerificationRecord

State = Literal["complete", "damaged", "unreadable"]
"""As far as is on record; unreadable is what cannot be read here, or is of a later jmapfs."""


class SnapshotStatus(msgspec.Struct, frozen=True):
    """A snapshot; what it does not say itself is None.

    `files` counts names, `bytes` the content, each blob once. `new`, `gone` and `added_bytes` are
    in comparison to the snapshot `previous`, which may have been pruned since. `verified` is what
    `jmapfs verify` found last.
    """

    date: str
    state: State
    mails: int | None = None
    files: int | None = None
    bytes: int | None = None
    previous: str | None = None
    new: int | None = None
    gone: int | None = None
    added_bytes: int | None = None
    verified: Verification | None = None


class RepositoryOverview(msgspec.Struct, frozen=True):
    """All snapshots of a destination, the oldest first.

    Of `unfinished` runs one may be under way, the others were interrupted; `half_removed` are
    snapshots that an interrupted prune has left.
    """

    snapshots: tuple[SnapshotStatus, ...]
    unfinished: int
    half_removed: int


def list_snapshots(destination: Repository) -> RepositoryOverview:
    """Find out what snapshots there are, and touch nothing.

    Raises:
        UsageError: there is no such directory.
        StorageError: it cannot be read.
    """
    if not destination.path.is_dir():
        raise UsageError(f"{destination.path}: there is no such directory")
    verified = VerificationRecord.read(destination)
    lines = tuple(_line(one, verified.find(one.date)) for one in destination.snapshots())
    pruned = len(half_removed(destination))
    return RepositoryOverview(lines, len(destination.partials()) - pruned, pruned)


def _line(snapshot: Snapshot, verification: Verification | None) -> SnapshotStatus:
    state, description = _read(snapshot)
    if verification is not None and verification.found_damage:
        state = "damaged"
    if description is None:
        return SnapshotStatus(snapshot.date, state, verified=verification)
    return SnapshotStatus(
        date=snapshot.date,
        state=state,
        mails=description.mails,
        files=description.files,
        bytes=description.bytes,
        previous=description.previous,
        new=description.new,
        gone=description.gone,
        added_bytes=description.added_bytes,
        verified=verification,
    )


def _read(snapshot: Snapshot) -> tuple[State, Description | None]:
    try:
        description = snapshot.description()
    except (MissingFilesError, AlteredFilesError):
        return "damaged", None
    except StorageError:
        return "unreadable", None
    files = [snapshot.path / file for file in (MANIFEST, CHECKSUMS)]
    if not all(file.is_file() for file in files):
        return "damaged", description
    readable = all(os.access(file, os.R_OK) for file in files)
    return "complete" if readable else "unreadable", description
