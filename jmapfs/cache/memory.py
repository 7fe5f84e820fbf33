"""Blobs in this process: recently used small blobs in memory, and the blobs of open files."""

from collections import Counter
from collections.abc import Callable
from typing import Final, Protocol

import cachetools

# What CPython spends in addition to the content: the headers of the key and the value, and their
# places in the dictionaries of an LRUCache. 262 bytes were measured with ids of 41 characters; ids
# may have 255.
OVERHEAD_BYTES: Final = 512


def _cost(data: bytes) -> int:
    return len(data) + OVERHEAD_BYTES


class MemoryCache:
    """The most recently used small blobs; only the event loop may use this object.

    `limit_bytes` bounds content and overhead together. A blob larger than a quarter of the limit is
    not kept: it would evict many blobs that are more likely to be read again.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._blobs: cachetools.LRUCache[str, bytes] = cachetools.LRUCache(
            max(limit_bytes, 0), getsizeof=_cost
        )
        self._largest = max(limit_bytes, 0) // 4

    def __contains__(self, blob_id: str) -> bool:
        """Return whether the blob is in memory; the call does not count as a use."""
        return blob_id in self._blobs

    def get(self, blob_id: str) -> bytes | None:
        """Return the blob, or None. A returned blob is now the most recently used one."""
        return self._blobs.get(blob_id)

    def remove(self, blob_id: str) -> None:
        """Remove the blob, if it is in memory."""
        self._blobs.pop(blob_id, None)

    def put(self, blob_id: str, data: bytes) -> bool:
        """Keep the blob; return False if it is too large to be kept."""
        if _cost(data) > self._largest:
            self._blobs.pop(blob_id, None)
            return False
        self._blobs[blob_id] = data
        return True


class OpenBlob(Protocol):
    """A blob of `size` bytes that can be read in pieces, from worker threads."""

    size: int

    def pread(self, length: int, offset: int) -> bytes:
        """Return exactly min(length, size - offset) bytes; StorageError if that fails."""

    def close(self) -> None:
        """Close it; closing twice does nothing."""


class MemoryBlob:
    """An open blob that is in no cache; it exists until its last holder releases it."""

    def __init__(self, data: bytes | bytearray, on_close: Callable[[], None] | None = None) -> None:
        self.size = len(data)
        self._data = memoryview(data)
        self._on_close = on_close

    def pread(self, length: int, offset: int) -> bytes:
        """Return exactly min(length, size - offset) bytes."""
        return bytes(self._data[offset : offset + length])

    def close(self) -> None:
        """Release the memory."""
        on_close, self._on_close = self._on_close, None
        self._data = memoryview(b"")
        if on_close is not None:
            on_close()


class OpenBlobs:
    """Counts the holders of each blob (file handles and reads), and keeps it open for them.

    `close` is called with each OpenBlob that nobody holds any more; it must not block.
    """

    def __init__(self, close: Callable[[OpenBlob], None]) -> None:
        self._close = close
        self._holders: Counter[str] = Counter()
        self._open: dict[str, OpenBlob] = {}

    def hold(self, blob_id: str) -> None:
        """Count one more holder; an open blob stays open while it has a holder."""
        self._holders[blob_id] += 1

    def release(self, blob_id: str) -> None:
        """Undo one `hold`. When no holder is left, the blob is closed."""
        left = self._holders[blob_id] - 1
        if left > 0:
            self._holders[blob_id] = left
            return
        del self._holders[blob_id]
        blob = self._open.pop(blob_id, None)
        if blob is not None:
            self._close(blob)

    def is_held(self, blob_id: str) -> bool:
        """Return whether the blob has a holder."""
        return blob_id in self._holders

    def get(self, blob_id: str) -> OpenBlob | None:
        """Return the blob if it is open."""
        return self._open.get(blob_id)

    def add(self, blob_id: str, blob: OpenBlob) -> None:
        """Keep an open blob for its holders; close it if there are none."""
        if blob_id in self._holders and blob_id not in self._open:
            self._open[blob_id] = blob
        else:
            self._close(blob)

    def forget(self, blob_id: str, blob: OpenBlob) -> None:
        """Forget an open blob that cannot be read; its holders will open it again."""
        # The blob is not closed here: another thread may be reading from the descriptor, whose
        # number must not be reused meanwhile. The garbage collector closes it.
        if self._open.get(blob_id) is blob:
            del self._open[blob_id]

    def remove_all(self) -> list[OpenBlob]:
        """Forget all blobs and holders; return the open blobs. The caller must close them."""
        blobs = list(self._open.values())
        self._open.clear()
        self._holders.clear()
        return blobs
