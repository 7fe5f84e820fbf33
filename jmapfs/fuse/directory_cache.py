"""Cached listings: names and attributes in the kernel's form, made once for each version.

`find`, `ls -lR` and `rsync` list the same unchanged directories again and again. A cached listing
is valid for one version of its directory (see `TreeView.version`).
"""

from itertools import count, islice, repeat
from typing import Final

import pyfuse3
from cachetools import LRUCache

from jmapfs.tree.tree import BLOCK, Attributes, DirectoryListing, Kind, Ownership

# The kernel is told of every change, so it may cache for long. If this were 0, `ls -lR` of 100,000
# emails would take a minute and a half.
_TIMEOUT: Final = 24 * 3600.0

# New names are announced to the kernel; this bounds its negative cache.
_NEGATIVE_TIMEOUT: Final = 1.0

_READ_SIZE: Final = 128 * 1024  # st_blksize: the read size of stdio and cp

# How many entries are cached in all; each takes about 350 bytes.
_LIMIT: Final = 24 * 1024

# Each cached directory counts as this many extra entries, so that empty ones count as well.
_OVERHEAD: Final = 4

# How many entries are made at a time, before it is known how many of them the kernel takes.
_CHUNK: Final = 256


class AttributeWriter:
    """Makes attributes for pyfuse3; the attributes that never change are prepared once."""

    def __init__(self, ownership: Ownership) -> None:
        self._uid = ownership.uid
        self._gid = ownership.gid
        self._modes = {kind: ownership.mode(kind) for kind in Kind}

    def entry(self, attributes: Attributes, *, lasting: bool = True) -> pyfuse3.EntryAttributes:
        """Return attributes for the kernel, which caches them if they are `lasting`."""
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
    """Return the answer for a name that does not exist; the kernel caches it for a moment."""
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


class CachedDirectory:
    """The entries of one directory, each made when it is first needed."""

    def __init__(
        self, listing: DirectoryListing, version: object, attributes: AttributeWriter
    ) -> None:
        self.listing = listing
        self.version = version
        self._attributes = attributes
        self._remaining = listing.entries()
        self._names: list[pyfuse3.FileNameT] = []
        self._entries: list[pyfuse3.EntryAttributes] = []

    def reply(self, token: pyfuse3.ReaddirToken, start: int) -> None:
        """Return entries from a position on, as many as the kernel takes."""
        while start < len(self.listing):
            stop = start + _CHUNK
            self._make(stop)
            # `map` is faster than a Python loop, which would take most of the time of `find`.
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
        for name, attributes in islice(self._remaining, max(0, stop - len(self._names))):
            self._names.append(pyfuse3.FileNameT(name))
            self._entries.append(self._attributes.entry(attributes))


class DirectoryCache:
    """The listings of one tree by inode; the least recently used is evicted first."""

    def __init__(self, attributes: AttributeWriter, limit: int = _LIMIT) -> None:
        self._attributes = attributes
        self._limit = limit
        self._cached: LRUCache[int, CachedDirectory] = LRUCache(
            limit, getsizeof=lambda cached: _size(cached.listing)
        )

    def get(self, inode: int, version: object) -> CachedDirectory | None:
        """Return the cached listing of a directory if it has that version, otherwise None."""
        cached = self._cached.get(inode)
        return cached if cached is not None and cached.version == version else None

    def put(self, inode: int, listing: DirectoryListing, version: object) -> CachedDirectory | None:
        """Cache a listing of that version, or of a later version, unless it is too long."""
        if _size(listing) > self._limit:
            return None
        cached = self._cached[inode] = CachedDirectory(listing, version, self._attributes)
        return cached

    def clear(self) -> None:
        """Drop all listings: another tree is shown."""
        self._cached.clear()


def _size(listing: DirectoryListing) -> int:
    return len(listing) + _OVERHEAD
