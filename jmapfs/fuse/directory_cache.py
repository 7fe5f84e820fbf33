"""Listings that are kept: names and attributes in the form that the kernel takes, made once.

A directory that nothing happened to is listed again and again: by each `find`, `ls -lR` and
`rsync`. What is kept of one is good for one version of the directory (see `TreeView.version`): for
as long as another listing would say the same.

Attributes of the tree in the form that the kernel takes.
"""

from __future__ import annotations

from itertools import count, islice, repeat
from typing import Final

import pyfuse3
from cachetools import LRUCache

from jmapfs.tree.tree import BLOCK, Attributes, DirectoryListing, Kind, Ownership

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


# How many entries are kept in all; each takes about 350 bytes.
_LIMIT: Final = 24 * 1024

# What a directory takes beside its entries, counted as entries: there may be many empty ones.
_OVERHEAD: Final = 4

# How many entries are made ahead of what the kernel has room for.
_PIECE: Final = 256


class CachedDirectory:
    """The entries of one directory, each made when it is first reached."""

    def __init__(
        self, listing: DirectoryListing, version: object, attributes: AttributeWriter
    ) -> None:
        self.listing = listing
        self.version = version
        self._attributes = attributes
        self._coming = listing.entries()
        self._names: list[pyfuse3.FileNameT] = []
        self._entries: list[pyfuse3.EntryAttributes] = []

    def hand_out(self, token: pyfuse3.ReaddirToken, start: int) -> None:
        """Hand out entries from a position on, for as long as the kernel takes them."""
        while start < len(self.listing):
            stop = start + _PIECE
            self._make(stop)
            # A loop, but not one of Python's: with it a warm `find` spends most of its time here.
            taken = map(
                pyfuse3.readdir_reply,
                repeat(token),
                self._names[start:stop],
                self._entries[start:stop],
                count(start + 1),
            )
            if not all(taken):
                return
            start = stop

    def _make(self, stop: int) -> None:
        for name, attributes in islice(self._coming, max(0, stop - len(self._names))):
            self._names.append(pyfuse3.FileNameT(name))
            self._entries.append(self._attributes.entry(attributes))


class DirectoryCache:
    """The listings of one tree by inode; the least recently used goes first."""

    def __init__(self, attributes: AttributeWriter, limit: int = _LIMIT) -> None:
        self._attributes = attributes
        self._limit = limit
        self._kept: LRUCache[int, CachedDirectory] = LRUCache(
            limit, getsizeof=lambda kept: _size(kept.listing)
        )

    def get(self, inode: int, version: object) -> CachedDirectory | None:
        """Return what is kept of a directory, if it is of that version."""
        kept = self._kept.get(inode)
        return kept if kept is not None and kept.version == version else None

    def keep(
        self, inode: int, listing: DirectoryListing, version: object
    ) -> CachedDirectory | None:
        """Keep a listing of that version, or of a later one, unless it is too long."""
        if _size(listing) > self._limit:
            return None
        kept = self._kept[inode] = CachedDirectory(listing, version, self._attributes)
        return kept

    def clear(self) -> None:
        """Keep nothing: another tree is shown."""
        self._kept.clear()


def _size(listing: DirectoryListing) -> int:
    return len(listing) + _OVERHEAD
