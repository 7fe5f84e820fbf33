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
        self._last_number: int | None = None

    def use_sha1_ids(self) -> dict[str, str]:
        """Give all blobs ids that are SHA-1s; return the new ids by old id."""
        self.scheme = "cyrus"
        renamed = {old: blob_id_of(self.read(old) or b"", "cyrus") for old in self._uses}
        self._stored = {renamed[old]: raw for old, raw in self._stored.items()}
        self._generated = {renamed[old]: made for old, made in self._generated.items()}
        uses: Counter[str] = Counter()
        for old, count in self._uses.items():
            uses[renamed[old]] += count
        self._uses = uses
        return renamed

    def number_from_1(self) -> None:
        """Remove all blobs. In the plain scheme, number later ones from 1, like James."""
        self._stored.clear()
        self._generated.clear()
        self._uses.clear()
        self._last_number = 0

    def add(self, raw: bytes) -> str:
        """Store the bytes for another email; return the blob id."""
        if self._last_number is not None and self.scheme == "plain":
            self._last_number += 1
            blob_id = f"B{self._last_number}"
        else:
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
