"""Where content comes from: the little that is asked of a JMAP client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol


class BlobSource(Protocol):
    """Downloads whole blobs; `deadline` is in seconds from now, for everything.

    `blob_ids_are_sha1` says that ids of `G` and 40 hexadecimal digits are SHA-1s of the content.

    Raises, in its methods and from the iteration:
        JmapfsError: the blob cannot be had; a stream that breaks off does not just end.
    """

    @property
    def blob_ids_are_sha1(self) -> bool:
        """Whether content can be checked by its id."""
        ...

    async def download_blob(self, blob_id: str, *, deadline: float) -> bytes:
        """Return the content of a blob."""
        ...

    def stream_blob(
        self, blob_id: str, *, deadline: float
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Return the content of a blob chunk by chunk."""
        ...
