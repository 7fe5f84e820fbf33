"""Blobs that are kept open for as long as somebody holds them: a file handle, or a read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Protocol


class OpenBlob(Protocol):
    """A blob of `size` bytes that can be read piece by piece, from worker threads."""

    size: int

    def pread(self, length: int, offset: int) -> bytes:
        """Return exactly min(length, size - offset) bytes; StorageError where that cannot be."""
        ...

    def close(self) -> None:
        """Close it; more than once does nothing."""
        ...


class MemoryBlob:
    """A blob that no cache took: it lives as long as it is held."""

    def __init__(self, data: bytes | bytearray, on_close: Callable[[], None] | None = None) -> None:
        self.size = len(data)
        self._data = memoryview(data)
        self._on_close = on_close

    def pread(self, length: int, offset: int) -> bytes:
        """Return exactly min(length, size - offset) bytes."""
        return bytes(self._data[offset : offset + length])

    def close(self) -> None:
        """Let it go."""
        on_close, self._on_close = self._on_close, None
        self._data = memoryview(b"")
        if on_close is not None:
            on_close()


class OpenBlobs:
    """Counts who holds a blob, and keeps at most one Readable for it meanwhile.

    `close` is handed each Readable that is no longer needed; it must not block.
    """

    def __init__(self, close: Callable[[OpenBlob], None]) -> None:
        self._close = close
        self._holders: Counter[str] = Counter()
        self._open: dict[str, OpenBlob] = {}

    def hold(self, blob_id: str) -> None:
        """Keep the blob open, once it is."""
        self._holders[blob_id] += 1

    def release(self, blob_id: str) -> None:
        """Undo one `hold`; the last one closes the blob."""
        left = self._holders[blob_id] - 1
        if left > 0:
            self._holders[blob_id] = left
            return
        del self._holders[blob_id]
        blob = self._open.pop(blob_id, None)
        if blob is not None:
            self._close(blob)

    def holds(self, blob_id: str) -> bool:
        """Tell whether anybody holds the blob."""
        return blob_id in self._holders

    def get(self, blob_id: str) -> OpenBlob | None:
        """Return the blob if it is open."""
        return self._open.get(blob_id)

    def add(self, blob_id: str, blob: OpenBlob) -> None:
        """Keep an open blob for those who hold it; without any it is closed."""
        if blob_id in self._holders and blob_id not in self._open:
            self._open[blob_id] = blob
        else:
            self._close(blob)

    def forget(self, blob_id: str, blob: OpenBlob) -> None:
        """Let go of a blob that cannot be read, whoever holds it: they open it again."""
        # Not closed: another thread may be reading from the descriptor, and its number must not
        # come to mean another file meanwhile. The last reference closes it.
        if self._open.get(blob_id) is blob:
            del self._open[blob_id]

    def take_all(self) -> list[OpenBlob]:
        """Return what is open, for closing; nothing is held afterwards."""
        blobs = list(self._open.values())
        self._open.clear()
        self._holders.clear()
        return blobs
