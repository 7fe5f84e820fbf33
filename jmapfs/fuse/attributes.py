"""Attributes of the tree in the form that the kernel takes."""

from __future__ import annotations

from typing import Final

import pyfuse3

from jmapfs.tree import Attributes, Kind, Ownership
from jmapfs.tree.attributes import BLOCK

# The kernel is told of every change, so it may keep what it knows; at 0, `ls -lR` over 100,000
# emails takes a minute and a half.
_TIMEOUT: Final = 24 * 3600.0

# What comes to be it is told as well; this bounds what it keeps of names that never will.
_NEGATIVE_TIMEOUT: Final = 1.0

_READ_SIZE: Final = 128 * 1024  # st_blksize: what stdio and cp take as the size of their reads


class AttributeWriter:
    """Makes pyfuse3's attributes; everything that is constant is looked up once."""

    def __init__(self, ownership: Ownership) -> None:
        self._uid = ownership.uid
        self._gid = ownership.gid
        self._modes = {kind: ownership.mode(kind) for kind in Kind}

    def entry(self, attributes: Attributes, *, lasting: bool = True) -> pyfuse3.EntryAttributes:
        """Return attributes for the kernel; what is not `lasting` it asks for again at once."""
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = pyfuse3.InodeT(attributes.inode)
        entry.st_mode = pyfuse3.ModeT(self._modes[attributes.kind])
        entry.st_nlink = attributes.links
        entry.st_uid = self._uid
        entry.st_gid = self._gid
        entry.st_size = attributes.size
        entry.st_blksize = _READ_SIZE
        entry.st_blocks = attributes.blocks
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = attributes.time_ns
        entry.entry_timeout = entry.attr_timeout = _TIMEOUT if lasting else 0.0
        return entry


def missing_entry() -> pyfuse3.EntryAttributes:
    """Return the answer that lets the kernel remember that a name is not there."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = pyfuse3.InodeT(0)
    entry.entry_timeout = _NEGATIVE_TIMEOUT
    return entry


def file_system_statistics(*, size: int, files: int) -> pyfuse3.StatvfsData:
    """Return what `df` shows: a full, read-only file system of `size` bytes."""
    statistics = pyfuse3.StatvfsData()
    statistics.f_bsize = statistics.f_frsize = BLOCK
    statistics.f_blocks = (size + BLOCK - 1) // BLOCK
    statistics.f_bfree = statistics.f_bavail = 0
    statistics.f_files = files
    statistics.f_ffree = statistics.f_favail = 0
    statistics.f_namemax = 255
    return statistics
