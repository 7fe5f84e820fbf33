"""`latest`: a symbolic link to the newest snapshot, for people and scripts."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import Final

from jmapfs.snapshot.destination import LATEST, Destination, is_date
from jmapfs.snapshot.syncing import sync_directory

# What file systems answer that have no symbolic links.
_NO_LINKS: Final = frozenset(
    {errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
)


def point_latest(destination: Destination, date: str) -> bool:
    """Let `latest` lead to the snapshot of a date; False where there can be no such link.

    Where something that is no symbolic link has the name, it is the user's, and stays. The
    destination is made, and the caller has its lock.

    Raises:
        OSError: the link cannot be written.
    """
    link = destination.path / LATEST
    if os.path.lexists(link) and not link.is_symlink():
        return False
    # Where nothing is the user's, so what a run that was killed has left can go.
    following = destination.state_directory / LATEST
    with contextlib.suppress(FileNotFoundError):
        following.unlink()
    try:
        following.symlink_to(date)
    except OSError as error:
        if error.errno in _NO_LINKS:
            return False
        raise
    following.rename(link)
    sync_directory(destination.path)
    return True


def latest_date(destination: Destination) -> str | None:
    """Return the date that `latest` leads to, whether or not it is there; None if to no date."""
    try:
        name = str(Path(destination.path / LATEST).readlink())
    except OSError:
        return None
    return name if is_date(name) else None
