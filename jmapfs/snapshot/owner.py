"""Which account a repository belongs to: DEST/.jmapfs/repository.json.

The file marks a directory as a repository, also while it has no snapshot: the first run may have
been interrupted. Earlier versions wrote no such file. The snapshots tell the same then.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

import msgspec

from jmapfs.errors import UNDECODABLE, StorageError, storage_errors
from jmapfs.private_files import create_file, open_reading, private_directory
from jmapfs.snapshot.files import sync_directory
from jmapfs.snapshot.manifest import Origin
from jmapfs.snapshot.verify_record import STATE_DIRECTORY

_FORMAT: Final = 1
_NAME: Final = "repository.json"
_NEW_NAME: Final = "repository.json.new"
_MAX_BYTES: Final = 1 << 20


class _AnyOwner(msgspec.Struct):
    """The member that the files of all versions have."""

    format: int


class _Owner(msgspec.Struct, frozen=True):
    format: int
    origin: Origin


def has_owner(repository: Path) -> bool:
    """Return whether a directory is marked as a repository."""
    return os.path.lexists(repository / STATE_DIRECTORY / _NAME)


def read_owner(repository: Path) -> Origin | None:
    """Return the account that a repository belongs to; None if the file is missing or damaged.

    Raises StorageError if a later version has written the file.
    """
    path = repository / STATE_DIRECTORY / _NAME
    try:
        with open_reading(path) as file:
            content = file.read(_MAX_BYTES)
        number = msgspec.json.decode(content, type=_AnyOwner).format
        if number > _FORMAT:
            raise StorageError(
                f"{path}: written by a later jmapfs (format {number}): use that version"
            )
        return msgspec.json.decode(content, type=_Owner).origin
    except (OSError, *UNDECODABLE):
        return None


def write_owner(repository: Path, origin: Origin) -> None:
    """Record the account on the disk. The caller has the lock. Raises StorageError."""
    directory = repository / STATE_DIRECTORY
    new = directory / _NEW_NAME
    with storage_errors(directory):
        private_directory(directory, shared=True)
        with contextlib.suppress(FileNotFoundError):
            new.unlink()
        content = msgspec.json.format(msgspec.json.encode(_Owner(_FORMAT, origin)), indent=2)
        with os.fdopen(create_file(new, 0o600), "wb") as file:
            file.write(content + b"\n")
            file.flush()
            os.fsync(file.fileno())
        new.replace(directory / _NAME)
        sync_directory(directory)
