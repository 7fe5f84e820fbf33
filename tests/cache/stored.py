"""What a disk cache has stored, whatever its size."""

from __future__ import annotations

from jmapfs.cache.disk_cache import DiskCache


def stored(cache: DiskCache, blob_id: str) -> bytes | None:
    """Return a blob, its checksum verified; or None."""
    found = cache.load(blob_id)
    if found is None or isinstance(found, bytes):
        return found
    with found:
        return found.pread(found.size, 0)


def store(cache: DiskCache, blob_id: str, data: bytes) -> bool:
    """Store a blob; tell whether it was kept."""
    return cache.put_many([(blob_id, data)])[0]
