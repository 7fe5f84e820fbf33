"""What is being read in this process, and must therefore not be evicted by it."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator


class Pins:
    """Counted pins on keys; safe to use from several threads."""

    def __init__(self) -> None:
        # Reentrant: a forgotten blob is unpinned by the garbage collector, which may run anywhere.
        self._lock = threading.RLock()
        self._counts: Counter[bytes] = Counter()

    def __contains__(self, key: bytes) -> bool:
        """Tell whether somebody is reading `key`."""
        with self._lock:
            return key in self._counts

    def pin(self, key: bytes) -> None:
        """Keep `key` until `unpin` was called as often as this."""
        with self._lock:
            self._counts[key] += 1

    def unpin(self, key: bytes) -> None:
        """Take one pin away."""
        with self._lock:
            self._counts[key] -= 1
            if self._counts[key] <= 0:
                del self._counts[key]

    @contextlib.contextmanager
    def pinned(self, key: bytes) -> Iterator[None]:
        """Keep `key` for as long as the context lasts."""
        self.pin(key)
        try:
            yield
        finally:
            self.unpin(key)
