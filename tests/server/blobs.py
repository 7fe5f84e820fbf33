"""The blobs of an account, by blob id.

A blob is stored, or generated from a number each time it is read: then the 100,000 mails of a
benchmark need memory for their ids only. An unused blob is removed, as on a real server.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from typing import Literal

BlobScheme = Literal["plain", "cyrus"]


def blob_id_of(raw: bytes, scheme: BlobScheme) -> str:
    """Return the blob id: our own form, or `G` and the SHA-1 as on Cyrus."""
    if scheme == "cyrus":
        return "G" + hashlib.sha1(raw, usedforsecurity=False).hexdigest()
    return "B" + hashlib.sha256(raw).hexdigest()[:32]


class BlobStore:
    """The blobs of one account, with the number of emails that use each."""

    def __init__(self, scheme: BlobScheme) -> None:
        self.scheme = scheme
        self._stored: dict[str, bytes] = {}
        self._generated: dict[str, tuple[Callable[[int], bytes], int]] = {}
        self._uses: Counter[str] = Counter()

    def add(self, raw: bytes) -> str:
        """Store the bytes for another email; return the blob id."""
        blob_id = blob_id_of(raw, self.scheme)
        self._stored[blob_id] = raw
        self._uses[blob_id] += 1
        return blob_id

    def add_generated(self, generate: Callable[[int], bytes], number: int) -> tuple[str, int]:
        """Generate the bytes of another email when they are read; return blob id and size."""
        raw = generate(number)
        blob_id = blob_id_of(raw, self.scheme)
        self._generated[blob_id] = (generate, number)
        self._uses[blob_id] += 1
        return blob_id, len(raw)

    def release(self, blob_id: str) -> None:
        """Remove a use of the blob, and the blob after the last one."""
        self._uses[blob_id] -= 1
        if self._uses[blob_id] <= 0:
            del self._uses[blob_id]
            self._stored.pop(blob_id, None)
            self._generated.pop(blob_id, None)

    def read(self, blob_id: str) -> bytes | None:
        stored = self._stored.get(blob_id)
        if stored is not None:
            return stored
        generated = self._generated.get(blob_id)
        return None if generated is None else generated[0](generated[1])

    def number_of(self, blob_id: str) -> int | None:
        """Return the number that a blob is generated from; None for a stored one."""
        generated = self._generated.get(blob_id)
        return None if generated is None else generated[1]
