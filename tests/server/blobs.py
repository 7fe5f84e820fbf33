"""The bytes of an account's emails, by blob id.

A blob is kept, or made again from its number each time it is read: 100,000 mails of a benchmark
then cost the memory of their ids only. A blob nobody uses any more is gone, as on a real server.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from typing import Literal

BlobScheme = Literal["plain", "cyrus"]


def blob_id_of(raw: bytes, scheme: BlobScheme) -> str:
    """Return the blob id: ours, or `G` and the SHA-1 as Cyrus makes it."""
    if scheme == "cyrus":
        return "G" + hashlib.sha1(raw, usedforsecurity=False).hexdigest()
    return "B" + hashlib.sha256(raw).hexdigest()[:32]


class BlobStore:
    """The blobs of one account, counted by how many emails use each."""

    def __init__(self, scheme: BlobScheme) -> None:
        self.scheme = scheme
        self._kept: dict[str, bytes] = {}
        self._made: dict[str, tuple[Callable[[int], bytes], int]] = {}
        self._uses: Counter[str] = Counter()

    def keep(self, raw: bytes) -> str:
        """Store the bytes for one more email."""
        blob_id = blob_id_of(raw, self.scheme)
        self._kept[blob_id] = raw
        self._uses[blob_id] += 1
        return blob_id

    def make(self, generate: Callable[[int], bytes], number: int) -> tuple[str, int]:
        """Remember how to make the bytes, for one more email; return blob id and size."""
        raw = generate(number)
        blob_id = blob_id_of(raw, self.scheme)
        self._made[blob_id] = (generate, number)
        self._uses[blob_id] += 1
        return blob_id, len(raw)

    def release(self, blob_id: str) -> None:
        """One email less uses the blob."""
        self._uses[blob_id] -= 1
        if self._uses[blob_id] <= 0:
            del self._uses[blob_id]
            self._kept.pop(blob_id, None)
            self._made.pop(blob_id, None)

    def read(self, blob_id: str) -> bytes | None:
        kept = self._kept.get(blob_id)
        if kept is not None:
            return kept
        made = self._made.get(blob_id)
        return None if made is None else made[0](made[1])

    def number_of(self, blob_id: str) -> int | None:
        """Return what number a made blob is made from; None for one that is kept."""
        made = self._made.get(blob_id)
        return None if made is None else made[1]
