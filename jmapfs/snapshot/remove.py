"""Deleting what is not a snapshot, or not any more: directories called `.partial-…`, and no other.

A snapshot that is to go gets such a name first, so that never half of one has a date. Everything
is deleted by its name in a directory that is held open, no symbolic link is followed and no other
file system entered: whatever was put into a snapshot, nothing outside of it goes.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from jmapfs.errors import StorageError
from jmapfs.snapshot.files import sync_directory
from jmapfs.snapshot.repository import PARTIAL, Repository, Snapshot

_PRUNED: Final = "-pruned"
_OPEN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_snapshot(snapshot: Snapshot) -> int:
    """Take its name from a snapshot, in one step, and delete it; see `remove_partial`."""
    path = snapshot.path.with_name(f"{PARTIAL}{snapshot.date}{_PRUNED}")
    try:
        snapshot.path.rename(path)
        sync_directory(path.parent)
    except OSError as error:
        raise StorageError(f"{snapshot.path} cannot be removed: {error.strerror}") from error
    return remove_partial(path)


def half_removed(destination: Repository) -> list[Path]:
    """Return the snapshots that have lost their names and are not deleted yet."""
    return [path for path in destination.partials() if path.name.endswith(_PRUNED)]


def remove_partial(path: Path) -> int:
    """Delete a directory that was begun and not ended; it need not be there any more.

    Return how many bytes the files in it had that had no other name. Files that are shared with
    snapshots stay there.

    Raises:
        StorageError: it cannot be deleted.
        ValueError: it is no such directory, and is left alone.
    """
    if not os.path.lexists(path):
        return 0
    if path not in Repository(path.parent).partials():
        raise ValueError(f"{path} is not for jmapfs to delete")
    try:
        freed = _empty(path)
        path.rmdir()
    except OSError as error:
        raise StorageError(f"{path} cannot be removed: {error.strerror}") from error
    return freed


@dataclass(slots=True)
class _Level:
    """A directory on the way down: which it is, its name, what is still to be deleted in it."""

    identity: tuple[int, int]
    name: str = ""
    directories: list[str] = field(default_factory=list)


def _empty(path: Path) -> int:
    """Delete everything in a directory; return the bytes that nothing names any more.

    Only one directory is open at a time: mailboxes may nest deeper than files can be opened.
    """
    freed = 0
    at = os.open(path, _OPEN)
    try:
        levels = [_Level(_identity(at))]
        freed += _delete_files(at, levels[-1])
        while True:
            if levels[-1].directories:
                name = levels[-1].directories.pop()
                at = _exchanged(at, os.open(name, _OPEN, dir_fd=at))
                levels.append(_Level(_identity(at), name))
                if levels[-1].identity[0] != levels[0].identity[0]:
                    raise OSError(errno.EXDEV, f"{name} in it is another file system")
                freed += _delete_files(at, levels[-1])
            elif len(levels) > 1:
                at = _exchanged(at, os.open("..", _OPEN, dir_fd=at))
                name = levels.pop().name
                if _identity(at) != levels[-1].identity:
                    raise OSError(errno.ESTALE, f"{name} in it was moved meanwhile")
                os.rmdir(name, dir_fd=at)
            else:
                return freed
    finally:
        os.close(at)


def _delete_files(directory: int, level: _Level) -> int:
    """Delete the files in a directory, and note the directories; return the bytes set free."""
    freed = 0
    if not os.fstat(directory).st_mode & stat.S_IWUSR:
        # Somebody was careful with it; nothing can be deleted in it like that.
        os.fchmod(directory, stat.S_IRWXU)
    files: list[str] = []
    # Listed to the end first: not every file system goes on right while names are taken out.
    with os.scandir(directory) as entries:
        for entry in entries:
            names = level.directories if entry.is_dir(follow_symlinks=False) else files
            names.append(entry.name)
    for name in files:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        os.unlink(name, dir_fd=directory)
        if status.st_nlink == 1:
            freed += status.st_size
    return freed


def _identity(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def _exchanged(descriptor: int, other: int) -> int:
    os.close(descriptor)
    return other
