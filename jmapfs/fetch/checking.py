"""Whether a blob is what its id says (Cyrus: `G` and the SHA-1 of the content)."""

from __future__ import annotations

import hashlib
import re
from typing import Final

from jmapfs.errors import BlobMismatchError

_SHA1_BLOB_ID: Final = re.compile(r"G([0-9a-f]{40})")


class ContentCheck:
    """Checks the content of one blob as it comes; `enabled` where the server's ids are SHA-1s."""

    def __init__(self, blob_id: str, *, enabled: bool) -> None:
        match = _SHA1_BLOB_ID.fullmatch(blob_id) if enabled else None
        self._wanted = match[1] if match else None
        self._hash = hashlib.sha1(usedforsecurity=False)

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next piece."""
        if self._wanted is not None:
            self._hash.update(data)

    def finish(self) -> None:
        """Compare.

        Raises:
            BlobMismatchError: these are not the bytes of the blob.
        """
        if self._wanted is not None and self._hash.hexdigest() != self._wanted:
            raise BlobMismatchError("the content of a blob does not have the SHA-1 in its id")
