"""Blobs kept near: in memory, and on the disk; both bounded in bytes.

A blob never changes, so nothing here is ever out of date. Everything can be deleted at any time and
costs a download.
"""

from jmapfs.cache.disk import SMALL_BYTES, CacheStatistics, DiskCache
from jmapfs.cache.large import LargeBlob, LargeWriter
from jmapfs.cache.memory import MemoryCache

__all__ = [
    "SMALL_BYTES",
    "CacheStatistics",
    "DiskCache",
    "LargeBlob",
    "LargeWriter",
    "MemoryCache",
]
