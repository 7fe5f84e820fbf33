"""A real disk, where the page cache means something: which directory is on one, and how to drop it.

In memory (tmpfs, which many systems have as /tmp) nothing is ever read from a disk.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

_IN_MEMORY = {"tmpfs", "ramfs"}
_DROP = Path("/proc/sys/vm/drop_caches")
# Page cache, directory entries and inodes, also those of a FUSE mount (proc_sys_vm(5)).
_EVERYTHING = "3"


def on_disk() -> Path:
    """Return the directory for temporary files, or the first place beside it that is on a disk.

    Raises:
        RuntimeError: there is none.
    """
    checkout = Path(__file__).parents[2]
    places = [Path(tempfile.gettempdir()), Path("/var/tmp"), checkout]
    for place in places:
        if os.access(place, os.W_OK) and _file_system(place) not in _IN_MEMORY:
            return place
    raise RuntimeError(f"none of {', '.join(map(str, places))} is on a disk; set TMPDIR")


def drop_caches(*trees: Path) -> None:
    """Make the next reader of the files in these trees go to the disk for them.

    As root everything goes, also entries and inodes, and of every file system. Others can only
    give up the content, file by file.
    """
    # What is not written yet cannot be dropped.
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
    """Return the type of the file system that `path` is on (proc_pid_mountinfo(5))."""
    number = path.stat().st_dev
    device = f"{os.major(number)}:{os.minor(number)}"
    found = ""
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
        place, _, kind = line.partition(" - ")
        if place.split(" ")[2] == device:
            found = kind.split(" ")[0]
    return found
