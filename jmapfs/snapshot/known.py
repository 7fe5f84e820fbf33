"""The directories in which this user has made snapshots: `$XDG_STATE_HOME/jmapfs/destinations/`.

If a disk is not mounted, its mountpoint is an empty directory. The first snapshot there would fill
the disk of the machine, and nobody would notice that the backups no longer reach their disk. So a
directory that had snapshots must not be empty the next time. Nothing depends on these files: if
they are lost or cannot be written, only this protection is missing.
"""

import contextlib
import os
from pathlib import Path
from typing import Final

import platformdirs

from jmapfs.names import key
from jmapfs.private_files import create_file, private_directory

_DIRECTORY: Final = "destinations"


def is_known(destination: Path) -> bool:
    """Return whether this user has made snapshots in a directory before."""
    return os.path.lexists(_file(destination))


def remember(destination: Path) -> None:
    """Remember that a directory has snapshots, if that is possible."""
    path = _file(destination)
    with contextlib.suppress(OSError):
        private_directory(path.parent, named=path.parent.parent)
        with os.fdopen(create_file(path, 0o600), "wb") as file:
            file.write(os.fsencode(destination) + b"\n")


def _file(destination: Path) -> Path:
    directory = platformdirs.user_state_path("jmapfs") / _DIRECTORY
    return directory / key(os.fsencode(destination).hex(), length=24)
