"""Blobs in memory, bounded in bytes: what the readers of the last seconds may ask for again."""

from __future__ import annotations

from typing import Final

import cachetools

DEFAULT_LIMIT_BYTES: Final = 32 * 1024 * 1024

# What CPython spends beside the content: the headers of the key and the value, and their places in
# the dictionaries of an LRUCache: 262 bytes (measured) with ids of 41 characters, which can be 255.
OVERHEAD_BYTES: Final = 512


def _charge(data: bytes) -> int:
    return len(data) + OVERHEAD_BYTES


class MemoryCache:
    """The most recently used small blobs, whole; for one thread, the one of the event loop.

    `limit_bytes` bounds content and overhead together. A blob larger than a quarter of it is not
    kept: it would push out many that are more likely to be read again.
    """

    def __init__(self, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        self._blobs: cachetools.LRUCache[str, bytes] = cachetools.LRUCache(
            max(limit_bytes, 0), getsizeof=_charge
        )
        self._largest = max(limit_bytes, 0) // 4

    def __contains__(self, blob_id: str) -> bool:
        """Tell whether the blob is here; that is not a use of it."""
        return blob_id in self._blobs

    def __len__(self) -> int:
        """Return the number of blobs."""
        return len(self._blobs)

    @property
    def used_bytes(self) -> int:
        """Bytes in use: content, and a constant for each blob."""
        return int(self._blobs.currsize)

    def get(self, blob_id: str) -> bytes | None:
        """Return the blob, now the most recently used one, or None."""
        return self._blobs.get(blob_id)

    def put(self, blob_id: str, data: bytes) -> bool:
        """Keep the blob and return True; or False where it is too large to be kept."""
        if _charge(data) > self._largest:
            self._blobs.pop(blob_id, None)
            return False
        self._blobs[blob_id] = data
        return True

    def discard(self, blob_id: str) -> None:
        """Forget the blob, if it is here."""
        self._blobs.pop(blob_id, None)

    def clear(self) -> None:
        """Forget every blob."""
        self._blobs.clear()
