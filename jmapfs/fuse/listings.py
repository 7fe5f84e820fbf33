"""Listings that are kept: names and attributes in the form that the kernel takes, made once.

A directory that nothing happened to is listed again and again: by each `find`, `ls -lR` and
`rsync`. What is kept of one is good for one version of the directory (see `TreeView.version`): for
as long as another listing would say the same.
"""

from __future__ import annotations

from itertools import count, islice, repeat
from typing import Final

import pyfuse3
from cachetools import LRUCache

from jmapfs.fuse.attributes import AttributeWriter
from jmapfs.tree import DirectoryListing

# How many entries are kept in all; each takes about 350 bytes.
_LIMIT: Final = 24 * 1024

# What a directory takes beside its entries, counted as entries: there may be many empty ones.
_OVERHEAD: Final = 4

# How many entries are made ahead of what the kernel has room for.
_PIECE: Final = 256


class KeptListing:
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


class KeptListings:
    """The listings of one tree by inode; the least recently used goes first."""

    def __init__(self, attributes: AttributeWriter, limit: int = _LIMIT) -> None:
        self._attributes = attributes
        self._limit = limit
        self._kept: LRUCache[int, KeptListing] = LRUCache(
            limit, getsizeof=lambda kept: _size(kept.listing)
        )

    def get(self, inode: int, version: object) -> KeptListing | None:
        """Return what is kept of a directory, if it is of that version."""
        kept = self._kept.get(inode)
        return kept if kept is not None and kept.version == version else None

    def keep(self, inode: int, listing: DirectoryListing, version: object) -> KeptListing | None:
        """Keep a listing of that version, or of a later one, unless it is too long."""
        if _size(listing) > self._limit:
            return None
        kept = self._kept[inode] = KeptListing(listing, version, self._attributes)
        return kept

    def clear(self) -> None:
        """Keep nothing: another tree is shown."""
        self._kept.clear()


def _size(listing: DirectoryListing) -> int:
    return len(listing) + _OVERHEAD
