"""Small disk caches, and access to their blobs of any size."""

from __future__ import annotations

from pathlib import Path

from jmapfs.cache.disk_cache import DiskCache
from jmapfs.cache.lru import SMALL_OVERHEAD_BYTES


def stored(cache: DiskCache, blob_id: str) -> bytes | None:
    """Return a blob with a valid checksum, or None."""
    found = cache.load(blob_id)
    if found is None or isinstance(found, bytes):
        return found
    with found:
        return found.pread(found.size, 0)


def store(cache: DiskCache, blob_id: str, data: bytes) -> bool:
    """Store a blob; return whether the cache accepted it."""
    return cache.put_many([(blob_id, data)])[0]


def small_cache(directory: Path, count: int, size: int = 1000) -> DiskCache:
    """Return a cache with space for exactly `count` blobs of `size` bytes."""
    cost = size + SMALL_OVERHEAD_BYTES
    return DiskCache(directory / "c", count * cost + cost // 5, reserve_bytes=0)
