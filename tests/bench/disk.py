"""Finds a directory on a real disk, and drops the caches of the kernel.

Measurements of reads need a real disk: on tmpfs, which many systems use for /tmp, files are always
in memory.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from jmapfs.control.mounts import mounts

_IN_MEMORY = {"tmpfs", "ramfs"}
_DROP = Path("/proc/sys/vm/drop_caches")
# Page cache, directory entries and inodes, also those of a FUSE mount (proc_sys_vm(5)).
_EVERYTHING = "3"


def on_disk() -> Path:
    """Return the directory for temporary files, or another one that is on a disk.

    Raises:
        RuntimeError: no such directory is writable.
    """
    checkout = Path(__file__).parents[2]
    places = [Path(tempfile.gettempdir()), Path("/var/tmp"), checkout]
    for place in places:
        if os.access(place, os.W_OK) and _file_system(place) not in _IN_MEMORY:
            return place
    raise RuntimeError(f"none of {', '.join(map(str, places))} is on a disk; set TMPDIR")


def drop_caches(*trees: Path) -> None:
    """Make the next reads of the files in these trees come from the disk.

    Root drops all caches of all file systems, entries and inodes included. Other users can drop
    the content of each file only.
    """
    # Dirty pages cannot be dropped.
    os.sync()
    try:
        _DROP.write_text(_EVERYTHING)
    except OSError:
        for tree in trees:
            for path in tree.rglob("*"):
                _drop_content(path)


def _drop_content(path: Path) -> None:
    if path.is_file():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _file_system(path: Path) -> str:
    """Return the type of the file system that `path` is on."""
    number = path.stat().st_dev
    device = f"{os.major(number)}:{os.minor(number)}"
    return next((mount.fstype for mount in mounts() if mount.device == device), "")
